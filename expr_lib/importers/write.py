"""Write labelled images of any source as a data set folder: several processes, little memory, nothing lost when killed.

Images are read, cut and scaled in chunks by worker processes; the chunks are appended in order to
``images.npy.partial``, each with a line in ``import.jsonl`` that holds its checksum and what is to be told. Started
again, the same import goes on behind the last sound chunk. At the end the pixels get their name; ``meta.json`` is
written last. ``report.csv`` lists every case that was left out, every missing label and every note.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
import signal
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from expr_lib.errors import MAX_SEED, check_range
from expr_lib.files import replace_file, sha256
from expr_lib.images import read_image, square
from expr_lib.importers.align import LandmarkError, align, beyond, cut_out
from expr_lib.importers.choose import Choice
from expr_lib.importers.people import with_people
from expr_lib.importers.source import PEOPLE, Face, Report, Tree

FORMAT = 1
Kind = Literal["table", "openface", "pyfeat", "blendshapes", "disfa", "bp4d", "ckplus", "rafd", "ganimation"]
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test", "": ""}


@dataclass(frozen=True)
class ImportConfig:
    """How a source becomes a data set."""

    size: int = 64  # pixels a side
    find_faces: bool = False  # where a source has no landmarks: find them (extra photographs), else the centre square
    largest: bool = False  # with find_faces, of several faces take the largest
    face: int = 0  # with find_faces, of several faces take this one, counted from 1 from left to right
    val: float = 0.1  # share of the people, where the source names no splits
    test: float = 0.1
    seed: int = 0  # of the splits
    processes: int = 0  # 0 = one for each core

    def __post_init__(self) -> None:
        check_range(
            self, size=(16, 1024), face=(0, 1000), val=(0, 1), test=(0, 1), seed=(0, MAX_SEED), processes=(0, 1024)
        )  # fmt: skip


def import_faces(
    kind: Kind, source: str | Path, out: str | Path, config: ImportConfig | None = None, *, progress: bool = True
) -> Report:
    """Import the data set in ``source`` into the folder ``out``, or finish what an interrupted import began.

    Returns the report, which is also in ``out/report.csv``. Raises ``OSError`` where files cannot be read or written,
    ``ValueError`` where nothing could be imported or ``out`` holds something else, ``BlockingIOError`` where another
    process is writing there; each in one line.
    """
    config, report, out = config or ImportConfig(), Report(), Path(out)
    if not (0 <= config.val and 0 <= config.test and config.val + config.test < 1):
        raise ValueError(f"val {config.val:g}, test {config.test:g}: expected shares of less than 1 in all")
    if config.size < 16:
        raise ValueError(f"size {config.size}: expected 16 or more")
    tree = Tree(source, report)
    read = import_module(f"expr_lib.importers.{kind}").faces
    faces = list(once(read(tree, report), tree, report))
    report.scale.end()
    if report.scale.looks_small():
        report.note(
            "no intensity is above 1: these look like numbers from 0 to 1, and are read as 0 to 5", report.scale.file
        )
    if not faces:
        raise ValueError(
            f"{source}: found no labelled image of the form {kind}{''.join(f'; {x}' for x in report.lines())}"
        )
    with_people(faces, tree, report)
    if any(face.split for face in faces):
        faces = list(with_sound_splits(faces, report))
    split_by_subject(faces, config)
    au_names = sorted({name for face in faces for name in face.au}, key=lambda name: int(name[2:]))
    if not au_names:
        raise ValueError(f"{faces[0].where[0]}: found no column of an action unit, expected AU1, AU2, ...")
    lacking = {(face.where[0], name) for face in faces for name in au_names if name not in face.au}
    for file, name in sorted(lacking):
        report.missing("action unit that a label file lacks", file, 0, name)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".import.lock", timeout=0):
            write(faces, au_names, Path(source), out, config, {"kind": kind}, report, progress)
    except Timeout:
        raise BlockingIOError(f"{out}: another process is importing here; wait for it to end") from None
    return report


def once(faces: Iterator[Face], tree: Tree, report: Report) -> Iterator[Face]:
    """Every face once; a second label of it, and images that no label names, go into the report."""
    seen: dict[tuple[str, int], tuple[str, int]] = {}
    for face in faces:
        if (first := seen.setdefault((face.image, face.face), face.where)) is not face.where:
            report.left_out(
                "second label of an image", *face.where, f"{face.image}: first in {first[0]} line {first[1]}"
            )
        else:
            yield face
    images, labelled = set(tree.images()), {image for image, _ in seen}
    for rel in tree.files.values():
        if rel in tree.copies and rel not in labelled:
            report.note("image that a program made of another, not used", rel)
        elif rel in images and rel not in labelled:
            report.left_out("image without a label", rel)
        elif rel not in images and rel not in tree.opened and rel.lower() != PEOPLE:
            report.note("file that is neither an image nor a label file of this form, not used", rel)


def with_sound_splits(faces: list[Face], report: Report) -> Iterator[Face]:
    """A person belongs to one split, named train, val or test; rows that say otherwise are left out."""
    home: dict[str, str] = {}
    for face in faces:
        split = SPLITS.get(face.split)
        if split is None:
            report.left_out("unknown split", *face.where, f"found {face.split!r}, expected train, val or test")
        elif home.setdefault(face.subject, split) != split:
            detail = f"{face.subject}: {split or 'none'}, before: {home[face.subject] or 'none'}"
            report.left_out("other split than the person's first row has", *face.where, detail)
        else:
            face.split = split
            yield face


def split_by_subject(faces: list[Face], config: ImportConfig) -> None:
    """Draw the split of every person who has none."""
    people = sorted({face.subject for face in faces if not face.split})
    order = np.random.default_rng(config.seed).permutation(len(people))
    n_val, n_test = round(config.val * len(people)), round(config.test * len(people))
    rank = {people[person]: place for place, person in enumerate(order)}
    for face in faces:
        if not face.split:
            place = rank[face.subject]
            face.split = "val" if place < n_val else "test" if place < n_val + n_test else "train"


# -- pixels --------------------------------------------------------------------------------------------------------

Job = tuple[str, list[tuple[str, np.ndarray | None]], int, Choice | None]  # root, (image, landmarks), size, find faces
Told = tuple[int, str, str, str]  # which image, kind of the case, reason, detail
Done = tuple[bytes, list[Told]]  # pixels of the sound images; what is to be told, of the others and of some of these
TOLD = 0.05
"""Share of a face beyond its image from which on that is told."""
SUSPECT = 0.1
"""Share of landmarks that fit no image from which on those that do are doubtful: the images may be scaled copies."""
UNUSABLE, UNFIT = "image that cannot be used", "landmarks that do not fit their image"


def read_chunk(job: Job) -> Done:
    """What a worker does: read, cut and scale one chunk of images."""
    root, wanted, size, find = job
    pixels, told = io.BytesIO(), list[Told]()
    for i, (rel, points) in enumerate(wanted):
        try:
            image = read_image(os.path.join(root, rel))
            if points is not None:
                if np.abs(points).max() <= 2:  # MediaPipe's shares of the image
                    points = points * (image.shape[1], image.shape[0])
                cut = cut_out(image, points, size)
                if (share := beyond(cut.matrix, image.shape[:2])) > TOLD:
                    told.append(
                        (i, "note", "face that reaches beyond its image, where the edge goes on", f"{share:.0%}")
                    )
                image = cut.face
            else:
                image = align(image, size, find).face if find else square(image, size)
            pixels.write(np.ascontiguousarray(image).data)
        except (ValueError, OSError) as error:
            reason = UNFIT if isinstance(error, LandmarkError) else UNUSABLE
            told.append((i, "left out", reason, str(error).removeprefix(f"{os.path.join(root, rel)}: ")))
    return pixels.getvalue(), told


def chunks(faces: list[Face], config: ImportConfig, root: Path, first: int) -> Iterator[Job]:
    size = chunk_size(config)
    for start in range(first * size, len(faces), size):
        wanted = [(face.image, face.points) for face in faces[start : start + size]]
        yield str(root), wanted, config.size, Choice(config.largest, config.face) if config.find_faces else None


def chunk_size(config: ImportConfig) -> int:
    """Images in a chunk: 4 MB of pixels at most, so that a full queue stays small."""
    return max(1, min(256, 4_000_000 // (3 * config.size**2)))


def work(jobs: Iterator[Job], processes: int) -> Iterator[Done]:
    """The results in order; never more than twice as many chunks on their way as there are processes."""
    if processes == 1:
        yield from map(read_chunk, jobs)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        ahead: deque[Future[Done]] = deque(pool.submit(read_chunk, job) for job in islice(jobs, 2 * processes))
        try:
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(read_chunk, job) for job in islice(jobs, 1))
        except BrokenProcessPool:
            raise OSError("a worker process died (out of memory?); the same command goes on") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write(
    faces: list[Face], au_names: list[str], source: Path, out: Path, config: ImportConfig, about: dict[str, Any],
    report: Report, progress: bool,
) -> None:  # fmt: skip
    """Write the folder ``out``; ``meta.json`` comes last and marks it as complete."""
    partial, journal, size = out / "images.npy.partial", out / "import.jsonl", config.size
    settings = {"format": FORMAT, "size": size, "au_names": au_names} | about | {"plan": digest(faces, source, config)}
    if (meta := out / "meta.json").exists():
        if json.loads(meta.read_bytes()).get("config", {}).get("plan") != settings["plan"]:
            raise ValueError(f"{out}: holds another data set; choose another folder")
        with (out / "report.csv").open(newline="") as opened:
            _, *cases = csv.reader(opened)
        report.cases[:] = [(kind, what, name, int(line or 0), detail) for kind, what, name, line, detail in cases]
        journal.unlink(missing_ok=True)
        return
    lines = [json.dumps(settings)]
    if journal.exists():
        found = journal.read_text().split("\n")
        if found[0] != lines[0]:
            raise ValueError(f"{out}: holds an unfinished import of other files or settings; choose another folder")
        lines += found[1:-1]  # behind the last line end is nothing, or a line that was cut
    elif (out / "images.npy").exists():
        raise ValueError(f"{out}: found images.npy without meta.json, expected a new or an empty folder")
    if not partial.exists():
        partial.touch()
        if (out / "images.npy").exists():  # killed between the two renames at the end
            os.replace(out / "images.npy", partial)
    with partial.open("r+b") as file:
        header(file, 0, size)
        done = sound_chunks(file, lines[1:])
        file.truncate()
        replace_text(journal, "\n".join(lines[: 1 + len(done)]) + "\n")
        told: list[tuple[Any, ...]] = [
            (k * chunk_size(config) + i, *why) for k, chunk in enumerate(done) for i, *why in chunk["told"]
        ]
        todo = chunks(faces, config, source, len(done))
        first = len(done) * chunk_size(config)
        bar = tqdm(total=len(faces), initial=min(first, len(faces)), unit="image", disable=not progress)
        processes = config.processes or os.cpu_count() or 1
        with bar, journal.open("a") as log:
            for pixels, bad in work(todo, 1 if len(faces) - first <= 64 else processes):
                file.write(pixels)
                file.flush()
                log.write(json.dumps({"bytes": len(pixels), "crc32": zlib.crc32(pixels), "told": bad}) + "\n")
                log.flush()
                told += [(first + i, *why) for i, *why in bad]
                bar.update(min(chunk_size(config), len(faces) - first))
                first += chunk_size(config)
        lost = {i for i, kind, *_ in told if kind == "left out"}
        kept = len(faces) - len(lost)
        header(file, kept, size)
        file.flush()
        os.fsync(file.fileno())
    report.cases += [(kind, reason, faces[i].image, 0, why) for i, kind, reason, why in told]
    unfit, marked = sum(case[2] == UNFIT for case in told), sum(face.points is not None for face in faces)
    if kept and unfit > SUSPECT * marked:
        report.note(
            "landmarks do not fit so many images that those of the others are doubtful", "", 0, f"{unfit} of {marked}"
        )
    if kept == 0:
        raise ValueError(f"{source}: no image could be used; {'; '.join(report.lines())}")
    good = [face for i, face in enumerate(faces) if i not in lost]
    replace_text(out / "labels.csv", labels(good, au_names))
    listed = [(kind, what, name, str(line or ""), detail) for kind, what, name, line, detail in report.cases]
    replace_text(out / "report.csv", table([("kind", "what", "file", "line", "detail"), *listed]))
    hashes = {"images.npy": sha256(partial), "labels.csv": sha256(out / "labels.csv")}
    os.replace(partial, out / "images.npy")
    cut = {"by landmarks": sum(face.points is not None for face in good)}
    cut["faces found" if config.find_faces else "centre square"] = len(good) - cut["by landmarks"]
    meta_ = {"format": FORMAT, "generator": f"import {about['kind']}", "au_names": au_names, "size": size, "rows": kept}
    meta_ |= {"config": settings | {"cut": cut}, "report": report.counts(), "sha256": hashes}
    replace_text(meta, json.dumps(meta_, indent=1) + "\n")
    journal.unlink()


def sound_chunks(file: Any, lines: list[str]) -> list[dict[str, Any]]:
    """The journal's chunks whose pixels are as they were written; leaves the file behind the last of them."""
    sound: list[dict[str, Any]] = []
    for line in lines:
        start = file.tell()
        try:
            chunk = json.loads(line)
            good = zlib.crc32(file.read(chunk["bytes"])) == chunk["crc32"]
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            file.seek(start)
            break
        sound.append(chunk)
    return sound


def header(file: Any, rows: int, size: int) -> None:
    """The .npy header: as long for any number of rows, so that it can be rewritten at the end."""
    file.seek(0)
    shape = {"descr": "|u1", "fortran_order": False, "shape": (rows, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, shape)


def digest(faces: list[Face], source: Path, config: ImportConfig) -> str:
    """What exactly is to be written: images (name, length, time), labels, splits, landmarks and settings."""
    sha = hashlib.sha256(repr((config.size, config.find_faces, config.largest, config.face)).encode())
    for face in faces:
        state = os.stat(source / face.image)
        points = b"" if face.points is None else face.points.tobytes()
        labels = sorted(face.au.items())
        sha.update(
            repr((face.image, state.st_size, state.st_mtime_ns, face.subject, face.split, face.take, labels)).encode()
        )
        sha.update(points)
    return sha.hexdigest()


def labels(faces: list[Face], au_names: list[str]) -> str:
    """labels.csv: subject, split, take (empty: unknown), AUs, the person's name, the image's path in the source."""
    people = {name: i for i, name in enumerate(sorted({face.subject for face in faces}))}
    # one take is of one person, whatever the source calls it
    takes = {take: i for i, take in enumerate(sorted({(face.subject, face.take) for face in faces if face.take}))}

    def cell(value: float) -> str:
        return "" if np.isnan(value) else f"{value:g}"

    rows: list[tuple[str, ...]] = [("subject", "split", "take", *au_names, "person", "image")]
    for face in faces:
        values = (cell(face.au.get(name, np.nan)) for name in au_names)
        take = str(takes.get((face.subject, face.take), ""))
        image = posixpath.normpath(face.image)
        rows.append((str(people[face.subject]), face.split, take, *values, face.subject, image))
    return table(rows)


def table(rows: list[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def replace_text(path: Path, text: str) -> None:
    """Whole or not at all. A file name that is no UTF-8 is written with escapes."""
    replace_file(path, text.encode("utf-8", "backslashreplace"))
