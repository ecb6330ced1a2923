"""``expr-lib animate``: the expressions of a film, frame by frame, on a still face.

Nothing heavy is imported before the command runs. Annotations are values here, tyro reads them: no
``from __future__ import annotations``.
"""

import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from expr_lib import SHIPPED
from expr_lib.apps.held_out import say_if_unfamiliar
from expr_lib.apps.options import Checkpoint, NoNumber, Output, count, may_write, naming
from expr_lib.apps.pictures import shown_size
from expr_lib.errors import InputError
from expr_lib.signals import stop_signals

BATCH = 16
"""Frames that go through the networks together."""
FOLDER_RATE = 25
"""Frames a second of a folder of images, and of a film that does not say."""


def animate(
    face: Annotated[Positional[Path], arg(metavar="FACE")],
    film: Annotated[Positional[Path], arg(metavar="FILM")],
    out: Output = Path("animate.mp4"),
    absolute: bool = False,
    smooth: float = 1.0,
    inputs: bool = False,
    size: NoNumber = None,
    photographs: bool = False,
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Give a still face the expressions of a film, frame by frame: expr-lib animate FACE FILM -o out.mp4

    The motion is relative: the still keeps its own expression, and what is added is the difference between each frame
    and the most neutral frame of the film. Of both the largest centred square is used. Ctrl-C ends the film early: what
    has been made until then is written. Needs the extra `films`, unless FILM is a folder and the output a GIF or WebP.

    Args:
        face: an image file (PNG, JPEG, WebP, TIFF, ...).
        film: a film (.mp4, .avi, .mov, .mkv, .webm), or a folder of images in the order of their names.
        out: film to write: .mp4, .gif or .webp; of these two 25 frames a second at most.
        absolute: give the still the expressions of the frames as they are.
        smooth: standard deviation, in frames, of the Gaussian over time that smooths the expressions; 0 for none.
        inputs: show the film on the left.
        size: pixels a side of the result; by default those of the still, 1024 at most.
        photographs: find the face in the still, and in the first frame of the film (extra photographs).
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
    count("--size", 64 if size is None else size, 16, 1024)
    if out.suffix.lower() == ".mp4":
        films.pyav()  # now, not after the film was read
    still = read_image(face)
    rate = films.rate_of(film) or Fraction(FOLDER_RATE)

    import torch
    from tqdm import tqdm

    from expr_lib.importers.align import align, crop
    from expr_lib.swap import animated, driven, load, read_f_r, smoothed

    swapper = load(checkpoint)
    if size is None or swapper.config.generator == "drawn":
        size = shown_size(swapper, still)
    size -= size % 2  # films have even sides
    with naming(face):
        still = align(still, size).face if photographs else square(still, size)  # (S, S, 3)
    place: list[np.ndarray] = []  # of the face in the first frame: the head may move in it, as the film has it

    def cut(frame: np.ndarray, side: int) -> np.ndarray:
        if not photographs:
            return square(frame, side)
        if not place:
            with naming(f"{film}: first frame"):
                place.append(align(frame, side).matrix)
        return crop(frame, place[0], side)

    def cut_short(error: Exception) -> None:
        print(f"expr-lib: {error}; taken as the end of the film", file=sys.stderr)

    read, seen = list[torch.Tensor](), list[np.ndarray]()
    with stop_signals(signal.SIGINT) as stop:
        frames = films.frames(film, cut_short)
        begin = next(frames)  # before there is a progress bar: what is no film is told in one line
        first = cut(begin, size)
        for frame in tqdm(chain([begin], frames), "reading", unit="frame"):
            seen.append(cut(frame, swapper.config.size))
            if len(seen) == BATCH:
                read.append(read_f_r(swapper, np.stack(seen)))  # (B, n, d)
                seen.clear()
            if stop:
                print("\nexpr-lib: reading stopped; what was read is animated", file=sys.stderr)
                break
    read += [read_f_r(swapper, np.stack(seen))] if seen else []
    own = read_f_r(swapper, square(still, swapper.config.size))
    f_r = driven(swapper, own, smoothed(torch.cat(read), smooth), absolute)  # (N, n, d)

    def shown() -> Iterator[np.ndarray]:
        again = films.frames(film) if inputs else None
        for image in tqdm(animated(swapper, still, f_r), "animating", len(f_r), unit="frame"):
            yield image if again is None else np.concatenate([cut(next(again), size), image], 1)

    sample: list[np.ndarray] = []
    if out.suffix.lower() == ".gif":  # which has 255 colours for all frames
        some = f_r[torch.linspace(0, len(f_r) - 1, 8).long()]
        sample = [*animated(swapper, still, some), *[first] * (8 * inputs)]
    n = films.write_film(out, shown(), rate, sample)
    print(f"{out}: {face.name} with the expressions of {film.name}, {n} frames, {float(rate):g} a second")
    say_if_unfamiliar(swapper.metadata, (face, film), np.stack([still, first]))
    if stop or n < len(f_r):
        raise KeyboardInterrupt
