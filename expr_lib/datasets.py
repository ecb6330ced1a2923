"""Data sets, rendered or imported: opening, splitting and drawing pairs.

A data set is a folder of three files:

- `images.npy`  (N, S, S, 3) uint8, read through a memory map,
- `labels.csv`  N rows: `subject, split, AU1, ...` and further columns; an empty AU cell is a missing label. In an
                  optional column `take`, rows with the same number show one person in one view, with different
                  expressions; an empty cell is unknown. Optional columns `yaw` and `pitch` are the pose of the head
                  in degrees; images of a take whose poses are known are paired only if they are `NEAR`,
- `meta.json`   format, AU names, image size, number of rows, content hashes and how the set was made.

Every subject belongs to one split only, so `test` shows people that training has never seen.
"""

from __future__ import annotations

import json
import mmap
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from expr_lib.errors import InputError
from expr_lib.facs import MAX_INTENSITY
from expr_lib.files import replace_file, sha256
from expr_lib.schema import MetaFile, check_format, checked, read_json

SPLITS = ("train", "val", "test")
RESIDENT_BYTES = 2 * 1024**3
"""Data sets with at most this many bytes of images are kept on the device as a whole."""
# with the digits 0 to 9 only, not those of other scripts
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"
NEAR = 4.0
"""Degrees by which yaw and pitch of two images may differ to be paired. On rendered, aligned faces, 4 degrees change
pixels 0.7 times as much as another expression does, 2 degrees 0.4 times, 6 degrees as much. Of pairs in one pose, 17 of
20 are within it by their landmarks."""
TRIES = 1000
"""Rounds in which pairs of near pose are looked for."""
_FIRST = Lock()  # only one of several simultaneous readers copies the images


# -- pixels ----------------------------------------------------------------------------------------------------------


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels in [0, 255] -> float32 in [-1, 1], the range of every network here; any shape."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float pixels, clamped to [-1, 1] -> uint8 in [0, 255], the inverse of `to_float`; any shape."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


# -- the folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Selected rows of a memory-mapped array, read from disk only when they are indexed."""

    array: np.ndarray  # (M, ...)
    rows: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array[self.rows], dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class FaceData:
    """Images of faces with subjects, splits and AUs; `data[rows]` and `data.subset("train")` are data sets, too."""

    images: np.ndarray | Rows  # (N, S, S, 3) uint8, memory-mapped
    subject: np.ndarray  # (N,) int64
    split: np.ndarray  # (N,) str: "train", "val" or "test"
    au: np.ndarray  # (N, n_aus) float32 in [0, 5]; NaN = missing label
    au_names: tuple[str, ...]
    meta: dict[str, Any]
    take: np.ndarray = None  # type: ignore[assignment]  # (N,) int64: images of one take differ in expression only; -1 = unknown
    pose: np.ndarray = None  # type: ignore[assignment]  # (N, 2) float32 yaw and pitch in degrees; NaN = unknown
    _resident: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.take is None:
            object.__setattr__(self, "take", np.full(len(self.subject), -1))
        if self.pose is None:
            object.__setattr__(self, "pose", np.full((len(self.subject), 2), np.nan, np.float32))

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool | Literal["once"] = False) -> FaceData:
        """Open a data set folder and check it.

        With `verify`, the hashes in `meta.json` are checked, too; with "once", only if the size or time of a file
        has changed since the last check. Raises `FileNotFoundError` for a missing file and `InputError` for a file
        that is not as described above, in one line with the file, the line and column of a label, found and expected.
        """
        folder = Path(folder)
        meta = _read_meta(folder / "meta.json")
        au_names, size, rows = tuple(meta["au_names"]), meta["size"], meta["rows"]
        images = read_images(folder / "images.npy", (rows, size, size, 3))
        subject, split, au, take, pose = _read_labels(folder / "labels.csv", rows, au_names)
        if verify:
            _verify(folder, meta["sha256"], once=verify == "once")
        return cls(images, subject, split, au, au_names, meta, take, pose)

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def size(self) -> int:
        """Height and width of the images in pixels."""
        return self.images.shape[1]

    def __getitem__(self, rows: Any) -> FaceData:
        """The data set of these rows (integer array, slice or boolean mask); the images stay on disk."""
        rows = np.arange(len(self))[rows].reshape(-1)
        array, base = (self.images.array, self.images.rows) if isinstance(self.images, Rows) else (self.images, None)
        images = Rows(array, rows if base is None else base[rows])
        subject, split, au, take, pose = (x[rows] for x in (self.subject, self.split, self.au, self.take, self.pose))
        return FaceData(images, subject, split, au, self.au_names, self.meta, take, pose)

    def subset(self, split: str) -> FaceData:
        """The rows of one split: "train", "val" or "test"."""
        if split not in SPLITS:
            raise InputError(f"split: found {split!r}, expected one of {', '.join(SPLITS)}")
        return self[self.split == split]

    @cached_property
    def takes(self) -> tuple[np.ndarray, ...]:
        """Rows (M,) of all takes with at least two images, take by take, and three more arrays (M,) int64.

        These are, for each row, the start of its take in the first array, the number of images in the take, and the row
        of the take at rest whose pose is nearest (-1 = none is `near`). Raises `InputError` if there is no such take.
        """
        order = np.argsort(self.take, kind="stable")
        _, start, size = np.unique(self.take[order], return_index=True, return_counts=True)
        usable = [np.arange(s, s + n) for s, n in zip(start, size, strict=True) if n > 1 and self.take[order[s]] >= 0]
        if not usable:
            raise InputError("takes: found none with two images, expected the column take in labels.csv")
        neutral = (self.au == 0).all(1)  # NaN is not 0
        rests = [self.nearest(order[at], order[at][neutral[order[at]]]) for at in usable]
        sizes = np.array([len(at) for at in usable])
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        return order[np.concatenate(usable)], starts, np.repeat(sizes, sizes), np.concatenate(rests)

    def near(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Whether yaw and pitch of two rows each (any shape) differ by `NEAR` at most, or are unknown -> bool."""
        return ~(np.abs(self.pose[rows] - self.pose[others]) > NEAR).any(-1)  # NaN is not above anything

    def nearest(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """For each row (M,) the first of the others (K,) whose pose is nearest; -1 if none is `near`."""
        best, least = np.full(len(rows), -1), np.full(len(rows), np.nextafter(NEAR, np.inf))
        for other in others:
            far = np.nan_to_num(np.abs(self.pose[rows] - self.pose[other])).max(-1)  # (M,)
            best[far < least] = other
            least = np.minimum(least, far)
        return best

    def pixels(self, rows: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
        """Images of rows (B,) as uint8 (B, 3, S, S) on the device, in channels-last memory.

        A data set of up to `RESIDENT_BYTES` is copied to the device once and indexed there, so that a GPU does not
        wait; the rows of a larger one are read from disk.
        """
        device = torch.empty(0, device=device).device  # `cuda` and `cuda:0` are the same device
        if self.images.nbytes > RESIDENT_BYTES:
            images = torch.from_numpy(np.array(self.images[rows])).to(device)
        else:
            with _FIRST:
                if device not in self._resident:
                    self._resident[device] = torch.from_numpy(np.array(self.images)).to(device)
            images = self._resident[device][torch.as_tensor(rows, device=device)]
        return images.permute(0, 3, 1, 2)  # (B, S, S, 3) -> (B, 3, S, S)


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a finished data set folder (made by `expr-lib faces`)")
    meta = read_json(path)
    check_format(meta, str(path))
    checked(MetaFile, meta, str(path))
    return meta


def _verify(folder: Path, hashes: dict[str, str], *, once: bool) -> None:
    """InputError if a hash differs; with `once`, files with the same sizes and times as before are not read again."""
    state = {name: (folder / name).stat() for name in hashes}
    seen = {name: [state[name].st_size, state[name].st_mtime_ns, expected] for name, expected in hashes.items()}
    note = folder / ".verified.json"
    with suppress(InputError, OSError):
        if once and read_json(note) == seen:
            return
    for name, expected in hashes.items():
        if (found := sha256(folder / name)) != expected:
            raise InputError(f"{folder / name}: damaged: sha256 {found}, expected {expected} (meta.json)")
    if once:
        with suppress(OSError):  # a read-only folder is verified every time
            replace_file(note, json.dumps(seen).encode())


def read_images(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Images (N, S, S, 3), uint8, as a memory map; `InputError` if the file holds anything else.

    For data sets above `RESIDENT_BYTES`, whose rows are read in random order, reading ahead is turned off.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected uint8 images of shape {shape}")
    try:
        with warnings.catch_warnings(record=True):  # NumPy warns about headers of Python 2
            images = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises various errors for damaged headers
        sizes = f"found {path.stat().st_size} bytes, expected {int(np.prod(shape))} of pixels and a header"
        raise InputError(f"{path}: truncated or not .npy: {sizes} ({error})") from None
    if images.shape != shape or images.dtype != np.uint8:
        raise InputError(f"{path}: found {images.dtype} of shape {images.shape}, expected uint8 of shape {shape}")
    if images.nbytes > RESIDENT_BYTES and isinstance(images.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        images.base.madvise(mmap.MADV_RANDOM)
    return images


def _read_labels(path: Path, rows: int, au_names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """-> subject (N,) int64, split (N,) str, au (N, n_aus) float32, take (N,) int64, pose (N, 2) float32."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected {rows} rows of subject, split and action units")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except ValueError as error:  # ParserError, EmptyDataError, UnicodeDecodeError
        raise InputError(f"{path}: not a readable table: {' '.join(str(error).split())}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: not a readable table: found more cells in each line than column names")
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    if header.duplicated().any():
        raise InputError(f"{path}: column {header[header.duplicated()].iloc[0]}: found twice, expected once")
    for column in ("subject", "split", *au_names):
        if column not in table:
            raise InputError(f"{path}: column {column}: not found, expected the columns subject, split and every AU")
    if len(table) != rows:
        raise InputError(f"{path}: found {len(table)} rows, expected {rows} (meta.json)")

    def check(column: str, good: Any, expected: str) -> None:
        bad = np.flatnonzero(~np.asarray(good, bool))
        if len(bad):
            cell = table[column].iloc[bad[0]]  # line 1 is the header
            raise InputError(f"{path}: line {bad[0] + 2}, column {column}: found {cell!r}, expected {expected}")

    check("subject", table["subject"].str.fullmatch(r"[0-9]{1,18}"), "a whole number >= 0")
    check("split", table["split"].isin(SPLITS), f"one of {', '.join(SPLITS)}")
    home = table.groupby("subject")["split"].transform("first")
    check("split", table["split"] == home, "the split that this subject has in the lines above")

    def numbers(columns: Sequence[str], low: float, high: float) -> np.ndarray:
        """Columns of numbers -> (N, columns) float32; an empty cell is NaN, and so is a column that is not there."""
        found = np.full((rows, len(columns)), np.nan, np.float32)
        for j, name in enumerate(columns):
            if name in table:
                value = pd.to_numeric(table[name], errors="coerce")
                plain = table[name].str.fullmatch(NUMBER, na=False) & value.between(low, high)
                check(name, (table[name] == "") | plain, f"{low:g} to {high:g} or an empty cell")
                found[:, j] = value
        return found

    au, pose = numbers(au_names, 0, MAX_INTENSITY), numbers(("yaw", "pitch"), -180, 180)
    take = np.full(rows, -1)
    if "take" in table:
        known = table["take"] != ""
        check("take", ~known | table["take"].str.fullmatch(r"[0-9]{1,18}"), "a whole number >= 0 or an empty cell")
        take[known] = table.loc[known, "take"].to_numpy(np.int64)
        whose = table.loc[known].groupby("take")["subject"].transform("first").reindex(table.index)
        check("take", ~known | (whose == table["subject"]), "a take of this subject alone")
    return table["subject"].to_numpy(np.int64), table["split"].to_numpy(str), au, take, pose


# -- pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """B pairs as read: all first images, then all second images, so that rolling by B exchanges them."""

    image: Tensor  # (2B, 3, S, S) uint8
    au: Tensor  # (2B, n_aus) float32 in [0, 5]; NaN = missing label
    subject: Tensor  # (2B,) int64
    rest: Tensor | None = None  # (2B, 3, S, S) uint8: for pairs inside a take, the image of the take at rest
    has_rest: Tensor | None = None  # (2B,) bool: is there such an image? If not, `rest` is the image itself


def draw_pairs(subject: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw pairs -> rows (n, 2) int64: a uniform over all rows, b uniform over the rows of all other subjects."""
    if len(subject) == 0 or (subject == subject[0]).all():
        raise InputError(f"pairs: expected at least two subjects, found {min(len(subject), 1)} in {len(subject)} rows")
    a, b = rng.integers(len(subject), size=(2, n))  # (n,), (n,)
    while (same := subject[a] == subject[b]).any():
        b[same] = rng.integers(len(subject), size=same.sum())  # until no subject is paired with itself
    return np.stack([a, b], axis=1)


def draw_takes(data: FaceData, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw pairs -> rows (n, 3) int64: two images of one take, and the image of the take at rest, or -1 if it has none.

    The first is uniform over all rows of takes with at least two images, the second over the other rows of the take;
    pairs whose poses are not near are drawn again. At rest are images whose labels are all known and 0; the one is
    taken whose pose is nearest, if it is near. Raises `InputError` if no take has two images of near pose.
    """
    order, start, size, rest = data.takes
    found = np.empty((0, 3), np.int64)
    for _ in range(TRIES):
        at = rng.integers(len(order), size=n)  # (n,)
        step = rng.integers(1, size[at])  # (n,) 1 .. size - 1, so never the same image
        second = start[at] + (at - start[at] + step) % size[at]
        drawn = np.stack([order[at], order[second], rest[at]], axis=1)
        found = np.concatenate([found, drawn[data.near(drawn[:, 0], drawn[:, 1])]])
        if len(found) >= n:
            return found[:n]
    raise InputError(f"takes: found {len(found)} pairs within {NEAR:g} degrees of yaw and pitch, expected more")


def pair_batch(
    data: FaceData, step: int, batch_size: int, seed: int, device: str | torch.device = "cpu", *, takes: bool = False
) -> Pairs:
    """Batch number `step`, a function of data, `seed` and `step`, so that a resumed run has the same batches.

    Pairs are of two subjects or, with `takes`, of two images of one take, with the face at rest if it is known.
    Raises `InputError` if the data have fewer than two subjects, or no take of two images.
    """
    rng = np.random.default_rng([seed, step])
    drawn = (
        draw_takes(data, batch_size, rng) if takes else draw_pairs(data.subject, batch_size, rng)
    )  # (B, 3) or (B, 2)
    rows = drawn[:, :2].T.reshape(-1)  # (2B,)
    au, subject = (torch.from_numpy(x).to(device) for x in (data.au[rows], data.subject[rows]))
    if not takes:
        return Pairs(data.pixels(rows, device), au, subject)
    rest = np.tile(drawn[:, 2], 2)  # (2B,)
    found = rest >= 0
    image, at_rest = data.pixels(np.concatenate([rows, np.where(found, rest, rows)]), device).chunk(2)
    return Pairs(image, au, subject, at_rest, torch.from_numpy(found).to(device))


def batches(
    data: FaceData, batch_size: int, *, seed: int, device: str | torch.device = "cpu", first: int = 0,
    takes: bool = False,
) -> Iterator[Pairs]:  # fmt: skip
    """The endless batches `first`, `first + 1`, ... of `pair_batch`; a thread prepares the next one."""
    with ThreadPoolExecutor(max_workers=1) as reader:

        def read(step: int) -> Future[Pairs]:
            return reader.submit(pair_batch, data, step, batch_size, seed, device, takes=takes)

        ahead = read(first)
        for step in count(first + 1):
            batch, ahead = ahead.result(), read(step)
            yield batch


def held_out_pairs(data: FaceData, n: int, seed: int, *, split: str = "test") -> np.ndarray:
    """A fixed list of n pairs for measurements: rows (n, 2) of `data`, in `split`, each of two subjects.

    No pair occurs twice, in either order. A shorter list is the beginning of a longer one. Raises `InputError` if
    the split has fewer than n such pairs.
    """
    rows = np.flatnonzero(data.split == split)
    _, sizes = np.unique(data.subject[rows], return_counts=True)
    possible = (len(rows) ** 2 - int((sizes**2).sum())) // 2
    if n > possible:
        raise InputError(f"split {split}: {possible} pairs of two subjects in {len(rows)} rows, expected at least {n}")
    rng, seen = np.random.default_rng(seed), dict[tuple[int, int], tuple[int, int]]()
    while len(seen) < n:
        for a, b in rows[draw_pairs(data.subject[rows], 256, rng)].tolist():
            seen.setdefault((min(a, b), max(a, b)), (a, b))
    return np.array(list(seen.values())[:n], np.int64).reshape(n, 2)
