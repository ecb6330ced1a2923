"""Rendered faces on disk: the data set folder that `datasets` opens.

Rendering can be interrupted, so images are written in chunks of 64. While it is incomplete, the folder has

- `images.npy.partial`  the pixels so far;
- `build.json`          the settings, and one checksum for each chunk that was finished.

A chunk is finished if its pixels have the checksum in the journal. Missing or damaged chunks are rendered again, always
in the same chunks, so that on a CPU the bytes are those of an uninterrupted run. At the end the file of pixels is
renamed, and `meta.json`, which is written last, marks the data set as complete.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from expr_lib.errors import InputError
from expr_lib.faces.plan import VERSION, FacePlan, FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer
from expr_lib.facs import AU_NAMES, PRESENT_AT
from expr_lib.files import open_regular, replace_file, sha256
from expr_lib.schema import FORMAT, JournalFile, Kind, MetaFile, checked, read_json

CHUNK = 64
"""Images per call of the renderer; constant, since other chunks might round some pixels differently."""

SAMPLE_EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "joy": {"AU6": 3.5, "AU12": 4.0, "AU25": 2.5},
    "sadness": {"AU1": 4.0, "AU4": 2.5, "AU15": 3.5, "AU17": 2.0},
    "surprise": {"AU1": 4.0, "AU2": 4.0, "AU5": 3.5, "AU26": 4.0},
    "anger": {"AU4": 4.5, "AU7": 3.5, "AU10": 3.0, "AU25": 3.5},
    "disgust": {"AU4": 1.5, "AU9": 4.5, "AU10": 3.0},
}
"""The expressions of the sample in `data/`; those of data sets are far more varied."""

_REBUILD = "delete the folder to build it again"


def build(
    folder: str | Path, config: FacesConfig, *, device: str | torch.device = "cpu", progress: bool = True
) -> Path:
    """Render the faces of `config` into `folder`, or continue an interrupted run; returns the folder.

    A finished folder with the same settings is checked and not changed. On a CPU the same settings give the same bytes;
    on CUDA, which sums in varying order, some values may differ by 1. After an error the finished images are kept:

    - `InputError`: the folder has other settings, other files or damaged files; nothing is changed;
    - `BlockingIOError`: another process is building there;
    - `OSError`: the disk is full or cannot be written; the same call continues.
    """
    folder, kind = Path(folder), torch.device(device).type
    settings = {
        "format": FORMAT,
        "generator": VERSION,
        "config": asdict(config),
        "au_names": list(AU_NAMES),
        "size": config.size,
        "rows": config.n_subjects * config.images_per_subject,
    }
    if not _is_finished(folder, settings, kind):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".build.lock", timeout=0):
                if not _is_finished(folder, settings, kind):  # again: another process may have been faster
                    _finish(folder, config, settings, device, progress)
        except Timeout:
            raise BlockingIOError(f"{folder}: another process is building here; wait for it to end") from None
    if (journal := folder / "build.json").exists():
        journal.unlink(missing_ok=True)  # also after a run that was killed just before this step
    return folder


def _is_finished(folder: Path, settings: dict[str, Any], kind: str) -> bool:
    """True if complete and valid; False if empty or incomplete with these settings; otherwise an error."""
    meta, journal = folder / "meta.json", folder / "build.json"
    if meta.exists():
        hashes = _read(meta, settings, MetaFile).sha256
        for name in ("images.npy", "labels.csv"):
            expected = hashes.get(name, "a hash")
            actual = sha256(folder / name) if (folder / name).is_file() else "no file"
            if actual != expected:
                raise InputError(f"{folder / name}: damaged: found {actual}, expected {expected}; {_REBUILD}")
        return True
    if journal.exists():
        _read(journal, {**settings, "device": kind}, JournalFile)
    elif found_files := [name for name in ("images.npy", "labels.csv") if (folder / name).exists()]:
        raise InputError(f"{folder}: found {found_files[0]} without meta.json, expected a new or an empty folder")
    return False


@torch.inference_mode()
def _finish(
    folder: Path, config: FacesConfig, settings: dict[str, Any], device: str | torch.device, progress: bool
) -> None:
    images, partial, journal = folder / "images.npy", folder / "images.npy.partial", folder / "build.json"
    renderer, plan, shape = load_renderer(device), plan_faces(config), (settings["rows"], config.size, config.size, 3)
    bytes_per_image, finished = config.size**2 * 3, 0
    try:
        open_regular(partial, follow=False, write=True).close()
        if not journal.exists():
            _write(journal, json.dumps({**settings, "device": torch.device(device).type, "crc32": []}))
        journalled = {**settings, "device": torch.device(device).type}
        checksums = _read(journal, journalled, JournalFile).crc32
        if images.exists():  # killed between renaming the file and writing meta.json
            os.replace(images, partial)
        needed, free = len(plan) * bytes_per_image - partial.stat().st_size, shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"disk full: found {free / 1e6:.0f} MB free, expected {needed / 1e6:.0f} MB")

        bar = tqdm(total=len(plan), unit="image", disable=not progress)
        with open_regular(partial, follow=False, write=True) as file, bar:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            header = file.tell()
            for k, first in enumerate(range(0, len(plan), CHUNK)):
                rows = torch.arange(first, min(first + CHUNK, len(plan)))
                start = header + first * bytes_per_image
                file.seek(start)
                if checksums[k : k + 1] != [zlib.crc32(file.read(len(rows) * bytes_per_image))]:
                    pixels = plan.render(renderer, rows)[0].cpu().contiguous().numpy()  # (B, S, S, 3) uint8
                    file.seek(start)
                    file.write(pixels.data)
                    file.flush()
                    checksums[k : k + 1] = [zlib.crc32(pixels.data)]
                    _write(journal, json.dumps({**journalled, "crc32": checksums}))
                finished += len(rows)
                bar.update(len(rows))
            file.truncate()  # remove anything after the last image
            os.fsync(file.fileno())
        _write(folder / "labels.csv", _labels(plan).to_csv(index=False, lineterminator="\n"))
        hashes = {"images.npy": sha256(partial), "labels.csv": sha256(folder / "labels.csv")}
        os.replace(partial, images)
        _write(folder / "meta.json", json.dumps({**settings, "sha256": hashes}, indent=1) + "\n")
    except OSError as error:
        raise OSError(
            f"{folder}: cannot write: {error.strerror}; {finished} of {len(plan)} images are finished and kept, "
            "make room and run the same command again"
        ) from error


def _labels(plan: FacePlan) -> pd.DataFrame:
    """-> columns subject, split, take (empty = unknown), AU1 ... AU43 (0 to 5), yaw, pitch, roll (degrees)."""
    columns: dict[str, Any] = {"subject": plan.subject.numpy(), "split": np.asarray(plan.split)}
    columns["take"] = ["" if take < 0 else str(take) for take in plan.take.tolist()]
    columns |= dict(zip(AU_NAMES, plan.au.numpy().T, strict=True))
    return pd.DataFrame(columns | {name: getattr(plan.views, name).numpy() for name in ("yaw", "pitch", "roll")})


def write_sample(folder: str | Path, *, size: int = 128) -> Path:
    """Write the browsable sample of `data/`: six people with the same six expressions, as PNG files.

    Also `labels.csv`, with the columns of a data set after the file's name, and `co-occurrence.csv`: of the default
    data set, the share of images with the column's AU among those with the row's AU (`any`: among all images).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    n = len(SAMPLE_EXPRESSIONS)
    plan = plan_faces(FacesConfig(n_subjects=n, images_per_subject=n, size=size, seed=5))
    au = torch.tensor([[units.get(name, 0.0) for name in AU_NAMES] for units in SAMPLE_EXPRESSIONS.values()])  # (6, 17)
    plan = replace(plan, au=au.repeat(n, 1))
    names = [f"subject-{i}-{expression}.png" for i in range(n) for expression in SAMPLE_EXPRESSIONS]
    with torch.inference_mode():
        images = plan.render(load_renderer(), torch.arange(len(plan)))[0].numpy()  # (36, S, S, 3) uint8
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name, optimize=True)
    labels = _labels(plan).drop(columns=["split", "take"]).round(2)
    labels.insert(0, "file", names)
    _write(folder / "labels.csv", labels.to_csv(index=False, lineterminator="\n"))
    present = (plan_faces(FacesConfig()).au >= PRESENT_AT).double().numpy()  # (N, 17)
    together = np.vstack([present.mean(0), (present.T @ present) / present.sum(0)[:, None]])  # (1 + 17, 17)
    table = pd.DataFrame(together, index=["any", *AU_NAMES], columns=list(AU_NAMES)).round(3)
    _write(folder / "co-occurrence.csv", table.to_csv(index_label="given", lineterminator="\n"))
    return folder


def _check_settings(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, value in expected.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            _check_settings(path, found[key], value)
        elif found.get(key) != value:
            raise InputError(
                f"{path}: other settings: {key}: found {found.get(key)!r}, expected {value!r}; choose another folder"
            )


def _read(path: Path, settings: dict[str, Any], kind: type[Kind]) -> Kind:
    """The content of `meta.json` or the journal; `InputError` if it is damaged or has other settings."""
    try:
        found = read_json(path)
    except InputError as error:
        raise InputError(f"{path}: damaged: {error}, expected a JSON object; {_REBUILD}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged: found a {type(found).__name__}, expected a JSON object; {_REBUILD}")
    _check_settings(path, found, settings)
    return checked(kind, found, f"{path}: damaged")


def _write(path: Path, text: str) -> None:
    replace_file(path, text.encode())
