"""Any image file in, a plain RGB array out; and PNG files written whole or not at all.

What a photograph may bring along (EXIF rotation, transparency, 16 bits, a palette, CMYK) is settled here, once. What is
no usable image is refused in one line that names the file, what was found and what was expected.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from expr_lib.files import open_regular, replacing

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
"""All that is read, whatever a file's name is. Others start programs (EPS), or few people test what decodes them."""
MIN_SIDE = 16
"""Pixels; a smaller image holds no face."""
MAX_PIXELS = 100_000_000
"""Refused above this, before anything is decoded: a few kilobytes of PNG can unfold into gigabytes."""


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file -> (H, W, 3) uint8 RGB, upright, transparency laid on white; of several frames the first.

    Raises ``FileNotFoundError``, ``IsADirectoryError`` or ``PermissionError`` where there is no file to read, and
    ``ValueError`` where it is no regular file or no image, is damaged, is smaller than 16 pixels a side or larger than
    100 megapixels.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected an image file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; expected an image file")
    if not path.is_file():
        raise ValueError(f"{path}: is a pipe, a socket or a device; expected an image file")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path}: may not be read; expected an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata are no concern of a reader
            with open_regular(path) as file, _quiet_tiff(file), Image.open(file, formats=FORMATS) as image:
                width, height = image.size  # from the header: nothing is decoded yet
                if min(width, height) < MIN_SIDE:
                    raise ValueError(f"found {width} x {height} pixels, expected at least {MIN_SIDE} x {MIN_SIDE}")
                if width * height > MAX_PIXELS:
                    raise ValueError(f"found {width} x {height} pixels, expected at most {MAX_PIXELS:,} in all")
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        expected = "an image (PNG, JPEG, WebP, TIFF, GIF, BMP, PPM)"
        raise ValueError(f"{path}: {_looks_like(path)}, expected {expected}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: found far more pixels than the {MAX_PIXELS:,} that are allowed") from None
    except Exception as error:  # decoders of damaged files raise whatever they trip over: OSError, SyntaxError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        damaged = "" if reason.startswith("found ") else "damaged image: "
        raise ValueError(f"{path}: {damaged}{reason}") from None


def square(image: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square of an image (H, W, 3) uint8, resized to (size, size, 3) without aliasing."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if side == size:
        return image[top : top + side, left : left + side]
    box = (left, top, left + side, top + side)
    picture = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.array(picture)


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write (H, W, 3) uint8 as PNG under a temporary name, then rename it; folders on the way are made.

    Raises ``ValueError`` for another ending than ``.png`` and ``IsADirectoryError`` where a folder has that name.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: found the ending {path.suffix!r}, expected '.png'")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected the name of a PNG file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(image).save(file, format="PNG")
    return path


@contextmanager
def _quiet_tiff(file: BinaryIO) -> Iterator[None]:
    """Keep libtiff, which cannot be asked, from writing lines of its own to stderr: what is wrong is said here."""
    start = file.read(4)
    file.seek(0)
    if start not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        yield
        return
    with _stderr_lock, open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


_stderr_lock = threading.Lock()


def _to_rgb(image: Image.Image) -> np.ndarray:
    """A decoded picture of any mode -> (H, W, 3) uint8."""
    if image.mode.startswith("I"):  # 16 bits of gray, in one of Pillow's spellings
        gray = np.asarray(image, np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError(f"found values from {gray.min()} to {gray.max()}, expected 8 or 16 bits a channel")
        return np.repeat((gray / 257).round().astype(np.uint8)[..., None], 3, axis=2)  # (H, W) -> (H, W, 3)
    if image.mode == "F":
        raise ValueError("found floating-point pixels, expected 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _looks_like(path: Path) -> str:
    """What a file that is no image seems to be."""
    with open_regular(path) as file:
        start = file.read(512)
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return "found HEIC, which cannot be read here (save it as JPEG or PNG)"
    if not start:
        return "found an empty file"
    try:
        start.decode()
    except UnicodeDecodeError:
        return "found no image format that can be read"
    return "found text"
