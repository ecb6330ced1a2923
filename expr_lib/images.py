"""Reading image files of any common format as RGB arrays, and writing PNG files whole or not at all.

EXIF rotation, transparency, 16 bits per channel, palettes and CMYK are resolved here. A file that is not a usable image
raises an error of one line with its name, what was found and what was expected.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from expr_lib.errors import InputError
from expr_lib.files import open_regular, replacing

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
"""The formats that are read, whatever the file's name. Other decoders start programs (EPS) or are little tested."""
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""How the photographs of phones begin after `ftyp`; they are read if the extra `photographs` is installed."""
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".heic", ".heif")
"""By which the images in a folder are recognized."""
MIN_SIDE = 16
"""Pixels; smaller images are refused."""
MAX_PIXELS = 100_000_000
"""Larger images are refused before decoding, because a PNG of a few kilobytes can expand to gigabytes."""


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file -> (H, W, 3) uint8 RGB, upright, on a white background; only the first of several frames.

    Raises `FileNotFoundError`, `IsADirectoryError` or `PermissionError` if there is no readable file, and
    `InputError` if it is not a regular file or not an image, is damaged, is smaller than 16 pixels a side or larger
    than 100 megapixels.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: found a folder, expected an image file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; expected an image file")
    if not path.is_file():
        raise InputError(f"{path}: found a pipe, a socket or a device, expected an image file")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path}: no permission to read it; expected a readable image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about unusual metadata
            with open_regular(path) as file, _quiet_tiff(file), Image.open(file, formats=_formats(file)) as image:
                width, height = image.size  # from the header; nothing is decoded yet
                if min(width, height) < MIN_SIDE:
                    raise ValueError(f"found {width} x {height} pixels, expected at least {MIN_SIDE} x {MIN_SIDE}")
                if width * height > MAX_PIXELS:
                    raise ValueError(f"found {width} x {height} pixels, expected at most {MAX_PIXELS:,} in total")
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        expected = "an image (PNG, JPEG, WebP, TIFF, GIF, BMP, PPM)"
        raise InputError(f"{path}: {_looks_like(path)}, expected {expected}") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: found more than {MAX_PIXELS:,} pixels, expected fewer") from None
    except Exception as error:  # decoders raise OSError, SyntaxError and others for damaged files
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        damaged = "" if reason.startswith("found ") else "damaged image: "
        raise InputError(f"{path}: {damaged}{reason}") from None


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Crop an image (H, W, 3) uint8 to its largest centred square, resized to (size, size, 3) without aliasing."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if side == size:
        return image[top : top + side, left : left + side]
    box = (left, top, left + side, top + side)
    picture = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.array(picture)


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write (H, W, 3) uint8 as PNG, whole or not at all; missing folders are created.

    Raises `InputError` for an ending other than `.png` and `IsADirectoryError` if a folder has that name.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: found the ending {path.suffix!r}, expected '.png'")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: found a folder, expected the name of a PNG file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(image).save(file, format="PNG")
    return path


def _formats(file: BinaryIO) -> tuple[str, ...]:
    """`FORMATS`, and that of a HEIC file if pillow-heif is installed, which brings the decoder."""
    start = file.read(12)
    file.seek(0)
    if not _is_heic(start) or find_spec("pillow_heif") is None:
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")


def _is_heic(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in HEIC


@contextmanager
def _quiet_tiff(file: BinaryIO) -> Iterator[None]:
    """Discard the messages of libtiff on stderr, which it has no option for; errors are raised as usual."""
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
    """A decoded image of any mode -> (H, W, 3) uint8."""
    if image.mode.startswith("I"):  # gray of 16 bits, in one of several modes
        gray = np.asarray(image, np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError(f"found values from {gray.min()} to {gray.max()}, expected 8 or 16 bits per channel")
        return np.repeat((gray / 257).round().astype(np.uint8)[..., None], 3, axis=2)  # (H, W) -> (H, W, 3)
    if image.mode == "F":
        raise ValueError("found floating-point pixels, expected 8 or 16 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _looks_like(path: Path) -> str:
    """Describe a file that is not an image."""
    with open_regular(path) as file:
        start = file.read(512)
    if _is_heic(start):
        return 'found HEIC, which needs pillow-heif: pip install "expr-lib[photographs]", or save it as JPEG'
    if not start:
        return "found an empty file"
    try:
        start.decode()
    except UnicodeDecodeError:
        return "found an unknown format"
    return "found text"
