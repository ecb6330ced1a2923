"""The commands that change pictures: ``expr-lib swap`` and ``express``.

Nothing heavy is imported before a command runs. Annotations are values here, tyro reads them: no
``from __future__ import annotations``.
"""

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from expr_lib import SHIPPED
from expr_lib.apps.held_out import say_if_unfamiliar
from expr_lib.apps.options import Checkpoint, Output, chosen_face, input_errors, may_write
from expr_lib.errors import InputError


def swap(
    a: Annotated[Positional[Path], arg(metavar="A")],
    b: Annotated[Positional[Path], arg(metavar="B")],
    out: Output = Path("swap.png"),
    inputs: bool = False,
    only: tuple[str, ...] = (),
    amount: float = 1.0,
    photographs: bool = False,
    largest: bool = False,
    face: int = 0,
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Swap the expressions of two image files: left, A with the expression of B; right, B with the expression of A.

    The largest centred square of each image is used; with --photographs the face is found, swapped and pasted back.
    The shipped weights have seen rendered faces only: on photographs expect the gist at best. A line on stderr says
    when an image is far from what they know.

    Args:
        a: an image file (PNG, JPEG, WebP, TIFF, ...).
        b: another one.
        out: PNG file to write.
        inputs: put the two input squares above the two results.
        only: action units to swap, such as AU12 AU25; all where none is named.
        amount: how far to go, from 0 (own expression) to 1 (the other's).
        photographs: find the face in each and paste the result back (extra photographs).
        largest: of several faces in a photograph take the largest.
        face: of several faces take this one, counted from 1 from left to right.
        checkpoint: weights of the swapper (.safetensors).
    """
    import numpy as np

    from expr_lib.images import read_image, square, write_png
    from expr_lib.importers.align import Choice, align, beside, paste

    may_write("--out", out, ending=".png")
    choice = chosen_face(largest, face)
    if choice != Choice() and not photographs:
        raise InputError("--largest and --face choose among the faces of photographs; expected --photographs with them")
    with input_errors():
        images = [read_image(path) for path in (a, b)]  # before the networks are imported: a wrong file is told at once

    from expr_lib.swap import amounts, load, swap_images

    swapper = load(checkpoint)
    weights = amounts(swapper.au_names, only, amount)
    size = shown_size(swapper, *images)
    aligned = []
    for path, image in zip((a, b), images, strict=True) if photographs else ():
        with input_errors(f"{path}: "):
            aligned.append(align(image, size, choice))
    faces = np.stack([cut.face for cut in aligned] or [square(image, size) for image in images])  # (2, S, S, 3)
    swapped = np.stack(swap_images(swapper, faces[0], faces[1], weights))
    rows = np.stack([faces, swapped] if inputs else [swapped])  # (R, 2, S, S, 3)
    picture = rows.transpose(0, 2, 1, 3, 4).reshape(-1, 2 * size, 3)  # (R, 2, S, S, 3) -> (R * S, 2 * S, 3)
    if photographs:
        done = [paste(image, face, cut) for image, face, cut in zip(images, swapped, aligned, strict=True)]
        picture = np.concatenate([beside(*row) for row in ((images, done) if inputs else (done,))])
    write_png(out, picture)
    print(f"{out}: {a.name} with the expression of {b.name}, and the other way round")
    say_if_unfamiliar(swapper.metadata, (a, b), faces)


def express(
    face: Annotated[Positional[Path], arg(metavar="FACE")],
    intensities: Annotated[Positional[tuple[str, ...]], arg(metavar="AU=INTENSITY")],
    out: Output = Path("express.png"),
    from_rest: bool = False,
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Give a face an expression by numbers: expr-lib express FACE AU12=4 AU6=3 -o smile.png

    The largest centred square of the image is used, at its own resolution. Action units that are not named stay as they
    are read from the face.

    Args:
        face: an image file (PNG, JPEG, WebP, TIFF, ...).
        intensities: action units with intensities from 0 (absent) to 5 (FACS letter E).
        out: PNG file to write.
        from_rest: set all action units that are not named to 0.
        checkpoint: weights of the swapper (.safetensors).
    """
    from expr_lib.images import read_image, square, write_png

    may_write("--out", out, ending=".png")
    with input_errors():
        image = read_image(face)

    from expr_lib.swap import express_images, load, parse_expression

    swapper = load(checkpoint)
    asked = parse_expression(intensities, swapper.au_names)
    cut = square(image, shown_size(swapper, image))
    write_png(out, express_images(swapper, cut, asked, from_rest))
    print(f"{out}: {face.name} with " + ", ".join(f"{name} {value:g}" for name, value in asked.items()))
    say_if_unfamiliar(swapper.metadata, (face,), cut[None])


def shown_size(swapper: Any, *images: Any) -> int:
    """Pixels a side of the result: those of the smallest image, 1024 at most, or what a drawing generator draws."""
    if swapper.config.generator == "drawn":
        return int(swapper.config.size)
    return min(1024, *(side for image in images for side in image.shape[:2]))
