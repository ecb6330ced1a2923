"""The commands that change images: `expr-lib swap` and `express`.

Heavy packages are imported when a command runs. tyro reads the annotations at run time, so this file has no
`from __future__ import annotations`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from expr_lib import SHIPPED
from expr_lib.apps.held_out import say_if_unfamiliar
from expr_lib.apps.options import Checkpoint, Output, Which, expect_photographs, may_write, naming, several
from expr_lib.files import keep_inputs
from expr_lib.importers.choose import Choice


def swap(
    a: Annotated[Positional[Path], arg(metavar="A")],
    b: Annotated[Positional[Path], arg(metavar="B")],
    out: Output = Path("swap.png"),
    inputs: bool = False,
    only: Annotated[tuple[str, ...], arg(metavar="AU ...", help_behavior_hint="")] = (),
    amount: float = 1.0,
    photographs: bool = False,
    which: Which = Choice(),  # noqa: B008 (frozen)
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Swap the expressions of the faces in two image files.

    Without --photographs the largest centred square of each image is used, and one image is written, with A with the
    expression of B on the left and B with the expression of A on the right. With --photographs the face in each
    photograph is found and changed in place, and two images of the size of the photographs are written: A with the
    expression of B as NAME.png, and B with the expression of A as NAME-b.png. If a face is far from those of the
    training, a line on stderr says so.

    Args:
        a: an image file (PNG, JPEG, WebP, TIFF, ...).
        b: another image file.
        out: PNG file to write.
        inputs: also show the two inputs, above the two results; with --photographs in NAME-overview.png.
        only: action units to swap, such as AU12 AU25; by default all.
        amount: share of the other expression, from 0 (own expression) to 1 (other expression).
        photographs: change the face in each photograph, at full size (extra photographs).
        which: choice among several faces.
        checkpoint: weights of the swapper (.safetensors).
    """
    import numpy as np

    from expr_lib.images import square, write_png

    images = read((a, b), out, photographs, which)
    second, overview = (out.with_name(f"{out.stem}-{more}.png") for more in ("b", "overview"))
    keep_inputs((second, overview) if photographs else (), (a, b))

    from expr_lib.swap import amounts, load, swap_images

    swapper = load(checkpoint)
    weights = amounts(swapper.au_names, only, amount)
    if photographs:
        from expr_lib.importers.sheet import beside
        from expr_lib.photographs import find, swap_photographs

        cuts = []
        for path, image in zip((a, b), images, strict=True):
            with naming(path):
                cuts.append(find(swapper, image, which))
        done = swap_photographs(swapper, images, cuts, weights)
        pictures = {out: done[0], second: done[1]} | ({overview: beside(images, done)} if inputs else {})
        faces = np.stack([cut.face for cut in cuts])  # (2, S, S, 3)
    else:
        size = shown_size(swapper, *images)
        faces = np.stack([square(image, size) for image in images])  # (2, S, S, 3)
        rows = [faces] * inputs + [np.stack(swap_images(swapper, faces[0], faces[1], weights))]
        pictures = {out: np.concatenate([np.concatenate(list(row), 1) for row in rows])}  # (R * S, 2 * S, 3)
    for path, picture in pictures.items():
        write_png(path, picture)
    print(f"{', '.join(map(str, pictures))}: {a.name} with the expression of {b.name}, and the other way round")
    say_if_unfamiliar(swapper.metadata, (a, b), faces)


def express(
    image: Annotated[Positional[Path], arg(metavar="FACE")],
    intensities: Annotated[Positional[tuple[str, ...]], several("AU=INTENSITY")],
    out: Output = Path("express.png"),
    from_rest: bool = False,
    photographs: bool = False,
    which: Which = Choice(),  # noqa: B008 (frozen)
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Give a face an expression by numbers: expr-lib express FACE AU12=4 AU6=3 -o smile.png

    The largest centred square of the image is used, at its own resolution; with --photographs the face is found and
    changed in place. Action units that are not named keep their intensities.

    Args:
        image: an image file (PNG, JPEG, WebP, TIFF, ...).
        intensities: action units with intensities from 0 (absent) to 5 (FACS letter E).
        out: PNG file to write.
        from_rest: set all action units that are not named to 0.
        photographs: change the face in the photograph, at full size (extra photographs).
        which: choice among several faces.
        checkpoint: weights of the swapper (.safetensors).
    """
    from expr_lib.images import square, write_png

    (photo,) = read((image,), out, photographs, which)

    from expr_lib.swap import express_images, load, parse_expression

    swapper = load(checkpoint)
    asked = parse_expression(intensities, swapper.au_names)
    if photographs:
        from expr_lib.photographs import express_photograph, find

        with naming(image):
            cut = find(swapper, photo, which)
        face, done = cut.face, express_photograph(swapper, photo, cut, asked, from_rest)
    else:
        face = square(photo, shown_size(swapper, photo))
        done = express_images(swapper, face, asked, from_rest)
    write_png(out, done)
    print(f"{out}: {image.name} with " + ", ".join(f"{name} {value:g}" for name, value in asked.items()))
    say_if_unfamiliar(swapper.metadata, (image,), face[None])


def read(paths: Sequence[Path], out: Path, photographs: bool, which: Choice) -> list[Any]:
    """Read image files, (H, W, 3) uint8 each; the arguments are checked here, before the networks are loaded."""
    from expr_lib.images import read_image

    may_write("--out", out, ending=".png")
    expect_photographs(which, photographs)
    return [read_image(path) for path in paths]


def shown_size(swapper: Any, *images: Any) -> int:
    """Side of the result in pixels: that of the smallest image, at most 1024, or the size of a drawing generator."""
    if swapper.config.generator == "drawn":
        return int(swapper.config.size)
    return min(1024, *(side for image in images for side in image.shape[:2]))
