"""`expr-lib animate`: give a still face the expressions of a film, frame by frame.

Heavy packages are imported when the command runs. tyro reads the annotations at run time, so this file has no
`from __future__ import annotations`.
"""

import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from expr_lib import SHIPPED
from expr_lib.apps.held_out import say_if_unfamiliar
from expr_lib.apps.options import Checkpoint, NoNumber, Output, Which, count, expect_photographs, may_write, naming
from expr_lib.apps.pictures import shown_size
from expr_lib.errors import InputError
from expr_lib.files import keep_inputs
from expr_lib.importers.choose import Choice
from expr_lib.signals import stop_signals

BATCH = 16
"""Number of frames that the networks process together."""
FOLDER_RATE = 25
"""Frames per second of a folder of images, and of a film without a frame rate."""


def even(photo: Any, longest: int) -> Any:
    """A photograph (H, W, 3) uint8 whose longer side has at most `longest` pixels, with even sides, as films need."""
    import numpy as np
    from PIL import Image

    scale = min(1.0, longest / max(photo.shape[:2]))
    if scale == 1:
        return photo[: len(photo) // 2 * 2, : photo.shape[1] // 2 * 2]
    height, width = (max(2, round(side * scale / 2) * 2) for side in photo.shape[:2])
    return np.array(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS))


def animate(
    face: Annotated[Positional[Path], arg(metavar="FACE")],
    film: Annotated[Positional[Path], arg(metavar="FILM")],
    out: Output = Path("animate.mp4"),
    absolute: bool = False,
    smooth: float = 1.0,
    inputs: bool = False,
    size: NoNumber = None,
    photographs: bool = False,
    which: Which = Choice(),  # noqa: B008 (frozen)
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Give a still face the expressions of a film, frame by frame: expr-lib animate FACE FILM -o out.mp4

    The motion is relative: the still keeps its own expression, and the difference between each frame and the most
    neutral frame of the film is added to it. The largest centred square of the still and of the film is used; in a
    photograph (option --photographs) the face is found and moves where it is. Ctrl-C ends the film early, and the
    frames made so far are written. The extra `films` is needed unless FILM is a folder and the output is a GIF or WebP
    file.

    Args:
        face: an image file (PNG, JPEG, WebP, TIFF, ...).
        film: a film (.mp4, .avi, .mov, .mkv, .webm), or a folder of images in the order of their names.
        out: film to write, .mp4, .gif or .webp; GIF and WebP files get at most 25 frames per second.
        absolute: give the still the expressions of the frames without change.
        smooth: standard deviation, in frames, of the Gaussian over time that smooths the expressions; 0 for none.
        inputs: show the film on the left.
        size: side of the result in pixels; by default that of the still, at most 1024; with --photographs the longer
            side of the photograph, by default its own.
        photographs: find the face in the still, and in the first frame of the film (extra photographs).
        which: one of several faces.
        checkpoint: weights of the swapper (.safetensors).
    """
    import numpy as np

    from expr_lib import films
    from expr_lib.images import read_image, square

    may_write("--out", out)
    if out.suffix.lower() not in films.WRITTEN:
        raise InputError(f"--out {out}: found the ending {out.suffix!r}, expected one of {', '.join(films.WRITTEN)}")
    if not 0 <= smooth <= 100:
        raise InputError(f"--smooth: found {smooth:g}, expected 0 to 100 frames")
    count("--size", 64 if size is None else size, 16, 8192 if photographs else 1024)
    expect_photographs(which, photographs)
    if out.suffix.lower() == ".mp4":
        films.pyav()  # now, not after the film was read
    still = read_image(face)
    keep_inputs([out], films.images_in(film) if film.is_dir() else ())
    rate = films.rate_of(film) or Fraction(FOLDER_RATE)

    import torch
    from tqdm import tqdm

    from expr_lib.importers.align import align, crop
    from expr_lib.photographs import SEEN, editor, find
    from expr_lib.swap import animated, driven, load, read_f_r, smoothed

    swapper = load(checkpoint)
    if photographs:
        still = even(still, size or max(still.shape))
        with naming(face):
            found = find(swapper, still, which)
        own, give = editor(swapper, still, found)
    else:
        if size is None or swapper.config.generator == "drawn":
            size = shown_size(swapper, still)
        still = square(still, size - size % 2)  # (S, S, 3); films have even sides
        own = read_f_r(swapper, square(still, swapper.config.size))
    size = len(still)
    place: list[np.ndarray] = []  # matrix of the face in the first frame, used for all frames so that the head moves

    def cut(frame: np.ndarray, side: int) -> np.ndarray:
        if not photographs:
            return square(frame, side)
        if not place:
            with naming(f"{film}: first frame"):
                place.append(align(frame, side, which).matrix)
        return crop(frame, place[0], side)

    def cut_short(error: Exception) -> None:
        print(f"expr-lib: {error}; the film ends here", file=sys.stderr)

    read, seen = list[torch.Tensor](), list[np.ndarray]()
    with stop_signals(signal.SIGINT) as stop:
        frames = films.frames(film, cut_short)
        begin = next(frames)  # before the progress bar, so that the error for an invalid film is one line
        first = cut(begin, size)
        for frame in tqdm(chain([begin], frames), "reading", unit="frame"):
            seen.append(cut(frame, swapper.config.size))
            if len(seen) == BATCH:
                read.append(read_f_r(swapper, np.stack(seen)))  # (B, n, d)
                seen.clear()
            if stop:
                print("\nexpr-lib: reading stopped; the frames read so far are animated", file=sys.stderr)
                break
    read += [read_f_r(swapper, np.stack(seen))] if seen else []
    f_r = driven(swapper, own, smoothed(torch.cat(read), smooth), absolute)  # (N, n, d)

    def moving(f_r: torch.Tensor) -> Iterator[np.ndarray]:
        return map(give, f_r[:, None]) if photographs else animated(swapper, still, f_r)

    def shown() -> Iterator[np.ndarray]:
        again = films.frames(film) if inputs else None
        for image in tqdm(moving(f_r), "animating", len(f_r), unit="frame"):
            yield image if again is None else np.concatenate([cut(next(again), size), image], 1)

    sample: list[np.ndarray] = []
    if out.suffix.lower() == ".gif":  # a GIF has 255 colours for all frames
        some = f_r[torch.linspace(0, len(f_r) - 1, 8).long()]
        sample = [np.concatenate([first, image], 1) if inputs else image for image in moving(some)]
    n = films.write_film(out, shown(), rate, sample)
    print(f"{out}: {face.name} with the expressions of {film.name}, {n} frames, {float(rate):g} a second")
    faces = found.face if photographs else still, first
    say_if_unfamiliar(swapper.metadata, (face, film), np.stack([square(image, SEEN) for image in faces]))
    if stop or n < len(f_r):
        raise KeyboardInterrupt
