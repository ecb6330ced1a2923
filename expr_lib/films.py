"""Reading the frames of films one by one, and writing films as .mp4, .gif or .webp.

Frames are counted from 1 in the order in which they are shown. Films are always decoded from the beginning, without
seeking by time, so that a variable frame rate, a missing index or a rounded time does not change the numbers. The
frames have names as in a folder of images: frame 12 of `film.avi` is `film.avi/000012.png`.

Needs the extra `films` (PyAV, whose wheels contain the codecs), except for folders of images, GIF and WebP.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from expr_lib.errors import InputError
from expr_lib.files import open_regular, replacing
from expr_lib.images import IMAGE_ENDINGS, MAX_PIXELS, MIN_SIDE, read_image
from expr_lib.signals import stop_signals

ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
MAX_FRAMES = 999_999
"""Largest number of frames in a film, nine hours at 30 frames per second."""
DEMUXERS = "avi,mov,mp4,matroska,webm"
"""Formats that are read, for any file name; others, such as playlists, can open other files or the network."""
GIF_RATE = 25
"""Largest frame rate of a GIF or WebP; of faster films every second, third, ... frame is kept. Our choice."""
STILL = 6
"""Largest change of a pixel, of 255, that is not written to a GIF. Our choice."""


def pyav() -> Any:
    """PyAV without its log messages; `InputError` if the extra is not installed."""
    try:
        import av
    except ImportError:
        raise ImportError('reading and writing films needs PyAV: pip install "expr-lib[films]"') from None
    av.logging.set_level(av.logging.PANIC)
    return av


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container of a film and its first video stream.

    Raises `InputError` in one line for a file that is not a film, has no video, or has frames below 16 pixels a side or
    above 100 megapixels, and for all errors of the decoder in this context.
    """
    av = pyav()
    with open_regular(path) as file:
        try:
            with av.open(file, options={"format_whitelist": DEMUXERS}, buffer_size=1 << 18) as container:
                if not container.streams.video:
                    raise InputError("found no video stream, expected one")
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise InputError("found a video codec that cannot be decoded")
                expect_size(stream.codec_context.width, stream.codec_context.height)
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                yield container, stream
        except ValueError as error:  # some errors of PyAV for damaged data are ValueErrors, too
            found = str(error) if str(error).startswith("found") else f"damaged film: {trouble(error)}"
            raise InputError(f"{path}: {found}") from None
        except (av.FFmpegError, OSError, MemoryError) as error:
            raise InputError(f"{path}: damaged film: {trouble(error)}") from None


def trouble(error: BaseException) -> str:
    """The message of FFmpeg, without numbers and file names."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()).lower() or type(error).__name__


def expect_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        least = f"{MIN_SIDE} x {MIN_SIDE} to {MAX_PIXELS:,} pixels"
        raise InputError(f"found frames of {width} x {height} pixels, expected {least}")


def count_frames(path: Path) -> int:
    """Number of frames in a film, counted by its packets without decoding; `InputError` as in `opened`.

    In a truncated film, the existing frames are counted.
    """
    n = 0
    with opened(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                n += packet.size > 0 and not packet.is_discard
                if n > MAX_FRAMES:
                    break
        except (pyav().FFmpegError, OSError):
            pass  # truncated; the frames before count
        if not 1 <= n <= MAX_FRAMES:
            raise InputError(f"found {'no frame' if n == 0 else 'more frames'}, expected 1 to {MAX_FRAMES:,}")
    return n


def decoded(path: Path) -> Iterator[Any]:
    """PyAV's frames of a film in the order in which they are shown; `InputError` if it is damaged."""
    n = 0
    with opened(path) as (container, stream):
        try:
            for frame in container.decode(stream):
                n += 1
                yield frame
        except (pyav().FFmpegError, OSError) as error:
            raise InputError(f"found damage after frame {n}: {trouble(error)}") from None


def to_rgb(frame: Any) -> np.ndarray:
    """A frame of PyAV -> (H, W, 3) uint8 RGB, rotated as the film requires; `InputError` for a damaged frame."""
    expect_size(frame.width, frame.height)
    if frame.is_corrupt:
        raise InputError("found a damaged frame")
    # the rotation is counter-clockwise, as in FFmpeg's display matrix and in NumPy
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def frames(path: Path, stop: Callable[[Exception], None] | None = None) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of a film, or the images of a folder in the order of their names.

    A film with damage ends before the damaged frame; `stop` is called with the error if there was a frame before it.
    Raises `InputError`, `InputError` or `OSError` if there is no frame.
    """
    n, source = 0, map(read_image, images_in(path)) if path.is_dir() else map(to_rgb, decoded(path))
    try:
        for image in source:
            n += 1
            yield image
    except ValueError as error:
        if n == 0 or stop is None:
            raise
        stop(error)
    if n == 0:
        raise InputError(f"{path}: found no frame, expected at least one")


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name, with numbers in names sorted by value (2 before 10)."""

    def order(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]

    return sorted((path for path in folder.iterdir() if path.name.lower().endswith(IMAGE_ENDINGS)), key=order)


def rate_of(path: Path) -> Fraction | None:
    """Average frames per second of a film; None for a folder or if it is unknown."""
    if path.is_dir():
        return None
    with opened(path) as (_, stream):
        rate = stream.average_rate
        return Fraction(rate) if rate and 1 <= rate <= 1000 else None


# -- frames as images ----------------------------------------------------------------------------------------------


def frame_paths(film: str, n: int) -> list[str]:
    """Names of the n frames of a film, as if they were images in a folder with the name of the film."""
    return [f"{film}/{k:06d}.png" for k in range(1, n + 1)]


def file_of(path: Path) -> Path:
    """The file that holds an image: the image itself, or the film of a frame such as `film.avi/000012.png`."""
    return path.parent if path.parent.suffix.lower() in ENDINGS and path.parent.is_file() else path


class Playing:
    """The film that was read last, kept open so that frames read in order are decoded once."""

    path, n = Path(), 0
    film: Iterator[Any] = iter(())
    frame: Any = None


def read_picture(path: Path) -> np.ndarray:
    """An image file, or a frame such as `film.avi/000012.png` -> (H, W, 3) uint8 RGB.

    Errors as those of `images.read_image`; `InputError` for a frame that the film does not have.
    """
    film, play = file_of(path), Playing
    if film == path:
        return read_image(path)
    wanted = int(path.stem)
    if play.path != film or play.n > wanted or play.n == 0:
        play.path, play.n, play.film = film, 0, decoded(film)
    try:
        while play.n < wanted:
            play.frame = next(play.film)
            play.n += 1
    except StopIteration:
        n, play.n = play.n, 0
        raise InputError(f"{film}: found {n} frames that can be decoded, expected {wanted} or more") from None
    try:
        return to_rgb(play.frame)
    except ValueError as error:
        raise InputError(f"{film}: {error}") from None


# -- films out -----------------------------------------------------------------------------------------------------


def write_film(path: Path, images: Iterable[np.ndarray], rate: Fraction, sample: Sequence[np.ndarray] = ()) -> int:
    """Write frames (H, W, 3) uint8 of one size as `.mp4`, `.gif` or `.webp` -> the number of frames.

    Ctrl-C ends the film after the current frame, with a complete file. `sample` are some frames, or parts of frames of
    one width, that determine the colours of a GIF. MP4 needs even sides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    n = 0
    with stop_signals(signal.SIGINT) as stop, replacing(path) as file:

        def until_stopped() -> Iterator[np.ndarray]:
            nonlocal n
            for image in images:
                n += 1
                yield image
                if stop:
                    return

        WRITTEN[path.suffix.lower()](file, until_stopped(), rate, sample)
        if n == 0:
            raise InputError(f"{path}: found no frame to write, expected at least one")
    return n


def _write_mp4(file: BinaryIO, images: Iterator[np.ndarray], rate: Fraction, sample: Sequence[np.ndarray]) -> None:
    av = pyav()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate.limit_denominator(65535), pix_fmt="yuv420p")
        for k, image in enumerate(images):
            if k == 0:
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        if stream.width:
            container.mux(stream.encode())


def _write_gif(file: BinaryIO, images: Iterator[np.ndarray], rate: Fraction, sample: Sequence[np.ndarray]) -> None:
    kept, milliseconds = thinned(images, rate)
    kept = held(kept)
    if (first := next(kept, None)) is None:
        return
    colours = Image.fromarray(np.concatenate(sample or [first])).quantize(255)
    plain = (Image.fromarray(x).quantize(palette=colours, dither=Image.Dither.NONE) for x in chain([first], kept))
    next(plain).save(file, "GIF", save_all=True, append_images=plain, duration=milliseconds, loop=0)


def _write_webp(file: BinaryIO, images: Iterator[np.ndarray], rate: Fraction, sample: Sequence[np.ndarray]) -> None:
    kept, milliseconds = thinned(images, rate)
    pictures = map(Image.fromarray, kept)
    if (first := next(pictures, None)) is not None:
        first.save(file, "WEBP", save_all=True, append_images=pictures, duration=milliseconds, loop=0, quality=85)


def thinned(images: Iterator[np.ndarray], rate: Fraction) -> tuple[Iterator[np.ndarray], int]:
    """Every k-th frame, for at most `GIF_RATE` frames per second, and the duration of each in milliseconds."""
    every = math.ceil(rate / GIF_RATE)
    return islice(images, 0, None, every), round(1000 * every / rate)


def held(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Pixels that change by at most `STILL` keep their value, since a GIF would store the noise."""
    shown = None
    for image in images:
        if shown is not None:
            change = np.abs(image.astype(np.int16) - shown).max(-1, keepdims=True)  # (H, W, 1)
            image = np.where(change > STILL, image, shown)
        yield (shown := image)


WRITTEN = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp}
