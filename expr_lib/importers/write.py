"""Writing labelled images of any source as a data set folder, with several processes; an import can be resumed.

Images are read, cropped and scaled in chunks by worker processes. The chunks are appended in order to
`images.npy.partial`, each with a line in `import.jsonl` with its checksum and report. An interrupted import
continues after the last valid chunk. At the end the file is renamed, and `meta.json` is written last. `report.csv`
lists everything that was left out, every missing label and every note.
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
from shutil import rmtree
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from expr_lib.errors import MAX_SEED, InputError, check_range
from expr_lib.files import open_regular, replace_file, sha256, writing
from expr_lib.films import file_of, read_picture
from expr_lib.images import square
from expr_lib.importers.align import LandmarkError, align, beyond, cut_out
from expr_lib.importers.choose import Choice
from expr_lib.importers.people import with_people
from expr_lib.importers.source import PEOPLE, LabelledImage, Report, Tree
from expr_lib.schema import ChunkLine, MetaFile, checked, decode, read_json

FORMAT = 1
Kind = Literal[
    "table", "openface", "pyfeat", "blendshapes", "disfa", "bp4d", "ckplus", "rafd", "ganimation", "unlabelled"
]
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test", "": ""}


@dataclass(frozen=True)
class ImportConfig:
    """Settings of an import."""

    size: int = 64  # side of the images in pixels
    find_faces: bool = False  # find landmarks that a source lacks (extra photographs), else crop the centre
    largest: bool = False  # with find_faces, of several faces take the largest
    face: int = 0  # with find_faces, of several faces take this one, counted from 1 from left to right
    val: float = 0.1  # share of the people who are kept for validation, if the source has no splits
    test: float = 0.1  # share of the people who are kept for the test, if the source has no splits
    seed: int = 0  # of the splits
    processes: int = 0  # 0 = one per core

    def __post_init__(self) -> None:
        check_range(
            self, size=(16, 1024), face=(0, 1000), val=(0, 1), test=(0, 1), seed=(0, MAX_SEED), processes=(0, 1024)
        )  # fmt: skip


def import_faces(
    kind: Kind, source: str | Path, out: str | Path, config: ImportConfig | None = None, *, progress: bool = True
) -> Report:
    """Import the data set in `source` into the folder `out`, or continue an interrupted import.

    Returns the report, which is also written to `out/report.csv`. Raises `OSError` if files cannot be read or
    written, `InputError` if nothing could be imported or `out` has other contents, and `BlockingIOError` if
    another process is importing there.
    """
    config, report, out = config or ImportConfig(), Report(), Path(out)
    if config.val + config.test >= 1:
        raise InputError(f"val {config.val:g}, test {config.test:g}: expected shares with a sum below 1")
    tree = Tree(source, report)
    read = import_module(f"expr_lib.importers.{kind}").labelled_images
    faces = list(once(read(tree, report), tree, report))
    report.scale.end()
    if report.scale.looks_small():
        report.note(
            "no intensity is above 1: these look like numbers from 0 to 1, and are read as 0 to 5", report.scale.file
        )
    if not faces and tree.unread:
        raise InputError(tree.unread)
    if not faces:
        raise InputError(
            f"{source}: found no labelled image of the form {kind}{''.join(f'; {x}' for x in report.lines())}"
        )
    with_people(faces, tree, report)
    if any(face.split for face in faces):
        faces = list(with_sound_splits(faces, report))
    split_by_subject(faces, config)
    au_names = sorted({name for face in faces for name in face.au}, key=lambda name: int(name[2:]))
    if not au_names:
        raise InputError(f"{faces[0].where[0]}: found no column of an action unit, expected AU1, AU2, ...")
    lacking = {(face.where[0], name) for face in faces for name in au_names if name not in face.au}
    for file, name in sorted(lacking):
        report.missing("action unit that a label file lacks", file, 0, name)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".import.lock", timeout=0), writing(out):
            write(faces, au_names, Path(source), out, config, {"kind": kind}, report, progress)
    except Timeout:
        raise BlockingIOError(f"{out}: another process is importing here; wait for it to end") from None
    except InputError:
        if os.listdir(out) == [".import.lock"]:
            rmtree(out)
        raise
    return report


def once(faces: Iterator[LabelledImage], tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """Every image once; second labels and images without a label go into the report."""
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
        if rel in tree.films and rel not in tree.copies:
            lacking = len(set(tree.films[rel]) - labelled)
            if lacking == len(tree.films[rel]):
                report.left_out("film without a label", rel)
            elif lacking:
                report.note("film that has frames without a label", rel, 0, f"{lacking} of {len(tree.films[rel])}")
        elif rel in tree.copies and rel not in labelled:
            report.note("image that a program made of another, not used", rel)
        elif rel in images and rel not in labelled:
            report.left_out("image without a label", rel)
        elif rel not in images and rel not in tree.opened and rel.lower() != PEOPLE:
            report.note("file that is neither an image nor a label file of this form, not used", rel)


def with_sound_splits(faces: list[LabelledImage], report: Report) -> Iterator[LabelledImage]:
    """The images whose split is train, val or test and that of the person's first row; others are left out."""
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


def split_by_subject(faces: list[LabelledImage], config: ImportConfig) -> None:
    """Draw a split for every person without one."""
    people = sorted({face.subject for face in faces if not face.split})
    order = np.random.default_rng(config.seed).permutation(len(people))
    n_val, n_test = round(config.val * len(people)), round(config.test * len(people))
    rank = {people[person]: place for place, person in enumerate(order)}
    for face in faces:
        if not face.split:
            place = rank[face.subject]
            face.split = "val" if place < n_val else "test" if place < n_val + n_test else "train"


# -- pixels ----------------------------------------------------------------------------------------------------------

Job = tuple[str, list[tuple[str, np.ndarray | None]], int, Choice | None]  # root, (image, landmarks), size, find faces
Case = tuple[int, str, str, str]  # number of the image, kind, reason, detail
Turn = tuple[int, float, float]  # number of the image, yaw and pitch in degrees
Done = tuple[bytes, list[Case], list[Turn]]  # pixels of the usable images, cases for the report, poses by landmarks
BEYOND = 0.05
"""Share of a face outside its image above which the report has a note."""
SUSPECT = 0.1
"""Share of landmarks outside their image above which all are doubtful, since the images may be scaled copies."""
UNUSABLE, UNFIT = "image that cannot be used", "landmarks that do not fit their image"


def read_chunk(job: Job) -> Done:
    """Read, crop and scale one chunk of images, in a worker process."""
    root, wanted, size, find = job
    pixels, cases, turns = io.BytesIO(), list[Case](), list[Turn]()
    for i, (rel, points) in enumerate(wanted):
        try:
            image, cut = read_picture(Path(root, rel)), None
            if points is not None:
                if np.abs(points).max() <= 2:  # MediaPipe's landmarks are shares of the image
                    points = points * (image.shape[1], image.shape[0])
                cut = cut_out(image, points, size)
                if (share := beyond(cut.matrix, image.shape[:2])) > BEYOND:
                    cases.append(
                        (
                            i,
                            "note",
                            "face that reaches beyond its image, with repeated pixels",
                            f"{share:.0%}",
                        )
                    )
            elif find:
                cut = align(image, size, find)
            pixels.write(np.ascontiguousarray(cut.face if cut else square(image, size)).data)
            if cut:
                turns.append((i, round(cut.turn[0], 1), round(cut.turn[1], 1)))
        except (ValueError, OSError) as error:
            reason = UNFIT if isinstance(error, LandmarkError) else UNUSABLE
            cases.append((i, "left out", reason, str(error).removeprefix(f"{file_of(Path(root, rel))}: ")))
    return pixels.getvalue(), cases, turns


def chunks(faces: list[LabelledImage], config: ImportConfig, root: Path, first: int) -> Iterator[Job]:
    size = chunk_size(config)
    for start in range(first * size, len(faces), size):
        wanted = [(face.image, face.points) for face in faces[start : start + size]]
        yield str(root), wanted, config.size, Choice(config.largest, config.face) if config.find_faces else None


def chunk_size(config: ImportConfig) -> int:
    """Number of images in a chunk, at most 4 MB of pixels, to limit the memory of the queue."""
    return max(1, min(256, 4_000_000 // (3 * config.size**2)))


def work(jobs: Iterator[Job], processes: int) -> Iterator[Done]:
    """The results in order; at most two chunks per process are in progress."""
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
            raise OSError("a worker process died (out of memory?); the same command continues the import") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write(
    faces: list[LabelledImage], au_names: list[str], source: Path, out: Path, config: ImportConfig,
    about: dict[str, Any], report: Report, progress: bool,
) -> None:  # fmt: skip
    """Write the folder `out`; `meta.json` is written last and marks it as complete."""
    partial, journal, size = out / "images.npy.partial", out / "import.jsonl", config.size
    settings = {"format": FORMAT, "size": size, "au_names": au_names} | about | {"plan": digest(faces, source, config)}
    if (meta := out / "meta.json").exists():
        if checked(MetaFile, read_json(meta), str(meta)).config.get("plan") != settings["plan"]:
            raise InputError(f"{out}: found another data set, expected a new or an empty folder")
        report.cases[:] = read_report(out / "report.csv")
        journal.unlink(missing_ok=True)
        return
    lines = [json.dumps(settings)]
    if journal.exists():
        with open_regular(journal, follow=False) as opened:
            found = opened.read().decode(errors="replace").split("\n")
        if found[0] != lines[0]:
            raise InputError(f"{out}: found an unfinished import of other files or settings, expected an empty folder")
        lines += found[1:-1]  # without an incomplete last line
    elif (out / "images.npy").exists():
        raise InputError(f"{out}: found images.npy without meta.json, expected a new or an empty folder")
    if not partial.exists() and (out / "images.npy").exists():  # killed between the two renames at the end
        os.replace(out / "images.npy", partial)
    with open_regular(partial, follow=False, write=True) as file:
        header(file, 0, size)
        done = sound_chunks(file, lines[1:], len(faces), config)
        file.truncate()
        replace_text(journal, "\n".join(lines[: 1 + len(done)]) + "\n")
        cases: list[tuple[Any, ...]] = [
            (k * chunk_size(config) + i, *why) for k, chunk in enumerate(done) for i, *why in chunk.told
        ]
        turns = [(k * chunk_size(config) + i, *turn) for k, chunk in enumerate(done) for i, *turn in chunk.turns]
        todo = chunks(faces, config, source, len(done))
        first = len(done) * chunk_size(config)
        bar = tqdm(total=len(faces), initial=min(first, len(faces)), unit="image", disable=not progress)
        processes = config.processes or os.cpu_count() or 1
        with bar, journal.open("a") as log:
            for pixels, bad, turned in work(todo, 1 if len(faces) - first <= 64 else processes):
                file.write(pixels)
                file.flush()
                line = {"bytes": len(pixels), "crc32": zlib.crc32(pixels), "told": bad, "turns": turned}
                log.write(json.dumps(line) + "\n")
                log.flush()
                cases += [(first + i, *why) for i, *why in bad]
                turns += [(first + i, *turn) for i, *turn in turned]
                bar.update(min(chunk_size(config), len(faces) - first))
                first += chunk_size(config)
        lost = {i for i, kind, *_ in cases if kind == "left out"}
        kept = len(faces) - len(lost)
        header(file, kept, size)
        file.flush()
        os.fsync(file.fileno())
    report.cases += [(kind, reason, faces[i].image, 0, why) for i, kind, reason, why in cases]
    unfit, marked = sum(case[2] == UNFIT for case in cases), sum(face.points is not None for face in faces)
    if kept and unfit > SUSPECT * marked:
        report.note(
            "landmarks do not fit so many images that those of the others are doubtful", "", 0, f"{unfit} of {marked}"
        )
    if kept == 0:  # the same command works when the source was repaired
        journal.unlink()
        partial.unlink()
        raise InputError(f"{source}: found no usable image; {'; '.join(report.lines())}")
    for row, yaw, pitch in turns:
        faces[int(row)].turn = yaw, pitch
    good = [face for i, face in enumerate(faces) if i not in lost]
    replace_text(out / "labels.csv", labels(good, au_names))
    rows = [(kind, what, name, str(line or ""), detail) for kind, what, name, line, detail in report.cases]
    replace_text(out / "report.csv", table([("kind", "what", "file", "line", "detail"), *rows]))
    hashes = {"images.npy": sha256(partial), "labels.csv": sha256(out / "labels.csv")}
    os.replace(partial, out / "images.npy")
    cut = {"by landmarks": sum(face.points is not None for face in good)}
    cut["faces found" if config.find_faces else "centre square"] = len(good) - cut["by landmarks"]
    meta_ = {"format": FORMAT, "generator": f"import {about['kind']}", "au_names": au_names, "size": size, "rows": kept}
    meta_ |= {"config": settings | {"cut": cut}, "report": report.counts(), "sha256": hashes}
    replace_text(meta, json.dumps(meta_, indent=1) + "\n")
    journal.unlink()


def read_report(path: Path) -> list[tuple[str, str, str, int, str]]:
    """The cases in report.csv; InputError if something else stands there."""
    try:
        with open_regular(path) as file:
            _, *listed = csv.reader(io.StringIO(file.read().decode(), newline=""))
        return [(kind, what, name, int(line or 0), detail) for kind, what, name, line, detail in listed]
    except (ValueError, csv.Error):
        raise InputError(f"{path}: damaged report of an import; remove the folder and import again") from None


def sound_chunks(file: Any, lines: list[str], n: int, config: ImportConfig) -> list[ChunkLine]:
    """The chunks of the journal of n images that are whole; sets the file position behind the last of them."""
    sound: list[ChunkLine] = []
    for line, first in zip(lines, range(0, n, size := chunk_size(config)), strict=False):
        start = file.tell()
        try:
            chunk = checked(ChunkLine, decode(line, "journal"), "journal")
        except InputError:
            break
        lost = {i for i, kind, *_ in chunk.told if kind == "left out"}
        kept = min(size, n - first) - len(lost)
        places = [*(case[0] for case in chunk.told), *(turn[0] for turn in chunk.turns)]
        inside = all(0 <= i < min(size, n - first) for i in places)
        good = inside and chunk.bytes == kept * 3 * config.size**2
        if not good or zlib.crc32(file.read(chunk.bytes)) != chunk.crc32:
            file.seek(start)
            break
        sound.append(chunk)
    return sound


def header(file: Any, rows: int, size: int) -> None:
    """Write the .npy header, whose length does not depend on the number of rows."""
    file.seek(0)
    shape = {"descr": "|u1", "fortran_order": False, "shape": (rows, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, shape)


def digest(faces: list[LabelledImage], source: Path, config: ImportConfig) -> str:
    """Hash of everything to be written: images (name, length, time), labels, splits, landmarks and settings."""
    sha = hashlib.sha256(repr((config.size, config.find_faces, config.largest, config.face)).encode())
    for face in faces:
        state = os.stat(file_of(source / face.image))
        points = b"" if face.points is None else face.points.tobytes()
        who = face.subject, face.split, face.take, sorted(face.au.items())
        sha.update(repr((face.image, state.st_size, state.st_mtime_ns, *who)).encode() + points)
    return sha.hexdigest()


def labels(faces: list[LabelledImage], au_names: list[str]) -> str:
    """labels.csv: subject, split, take, AUs, yaw, pitch, person and path of the image; what is unknown is empty."""
    people = {name: i for i, name in enumerate(sorted({face.subject for face in faces}))}
    # a take belongs to one person, even if the source uses its name twice
    takes = {take: i for i, take in enumerate(sorted({(face.subject, face.take) for face in faces if face.take}))}

    def cell(value: float) -> str:
        return "" if np.isnan(value) else f"{value:g}"

    rows: list[tuple[str, ...]] = [("subject", "split", "take", *au_names, "yaw", "pitch", "person", "image")]
    for face in faces:
        values = (cell(face.au.get(name, np.nan)) for name in au_names)
        take = str(takes.get((face.subject, face.take), ""))
        who, image = str(people[face.subject]), posixpath.normpath(face.image)
        rows.append((who, face.split, take, *values, *map(cell, face.turn), face.subject, image))
    return table(rows)


def table(rows: list[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def replace_text(path: Path, text: str) -> None:
    """Write text, whole or not at all; file names that are not UTF-8 are written with escapes."""
    replace_file(path, text.encode("utf-8", "backslashreplace"))
