"""`expr-lib read`: write the AU intensities that the AU branch of a swapper reads from faces to a table.

tyro reads the annotations at run time, so this file has no `from __future__ import annotations`.
"""

import csv
import io
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from expr_lib import SHIPPED
from expr_lib.apps.options import Checkpoint, Output, Which, expect_photographs, may_write, naming, several
from expr_lib.errors import InputError
from expr_lib.files import replace_file
from expr_lib.importers.choose import Choice


def read(
    faces: Annotated[Positional[tuple[Path, ...]], several("FACE")],
    out: Output = Path("read.csv"),
    photographs: bool = False,
    which: Which = Choice(),  # noqa: B008 (frozen)
    checkpoint: Checkpoint = SHIPPED,
) -> None:
    """Read the intensity of each action unit, from 0 to 5, from each face into a table, one row for each image.

    The largest centred square of an image is read; with --photographs the face is found first. The shipped weights were
    trained on rendered faces only. If `unfamiliarity` is above 1, a face is unlike these, as `expr-lib swap` would say.

    Args:
        faces: image files, or folders of image files, with all their subfolders.
        out: CSV file to write, with the columns file and unfamiliarity and one for each action unit.
        photographs: find the face in each photograph (extra photographs).
        which: choice among several faces.
        checkpoint: weights of the swapper (.safetensors).
    """
    may_write("--out", out, ending=".csv")
    expect_photographs(which, photographs)
    import torch

    from expr_lib.datasets import to_float
    from expr_lib.images import read_image, square
    from expr_lib.importers.align import align
    from expr_lib.importers.sheet import files_below
    from expr_lib.measure.familiar import load_unfamiliarity
    from expr_lib.swap import load, read_images

    files = [file for file, _ in files_below(faces, out)]
    if not files:
        raise InputError("FACE: found nothing, expected image files, or folders of them")
    swapper, unfamiliarity = load(checkpoint), load_unfamiliarity()
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["file", "unfamiliarity", *swapper.au_names])
    for file in files:
        image = read_image(file)
        with naming(file):
            face = align(image, swapper.config.size, which).face if photographs else square(image, swapper.config.size)
        seen = to_float(torch.from_numpy(face)[None]).permute(0, 3, 1, 2)  # (1, S, S, 3) -> (1, 3, S, S)
        numbers = [float(unfamiliarity(seen)[0]), *read_images(swapper, face)]
        writer.writerow([file, *(f"{x:.3f}" for x in numbers)])
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, table.getvalue().encode(errors="backslashreplace"))
    print(f"{out}: {len(swapper.au_names)} action units of {len(files)} {'image' if len(files) == 1 else 'images'}")
