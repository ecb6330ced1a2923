"""Cropping the face from each photograph of a folder, with contact sheets that show the results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw

from expr_lib.errors import InputError
from expr_lib.files import keep_inputs
from expr_lib.images import read_image, write_png
from expr_lib.importers.align import Aligned, align, inverse
from expr_lib.importers.choose import Choice


def contact_row(name: str, photo: np.ndarray | None, result: Aligned | str) -> np.ndarray:
    """One line of a contact sheet, (H, W, 3) uint8, for a photograph (None if it could not be read) and its result.

    From left to right: the photograph with the landmarks and the frame of the crop, the crop, and the name or the
    reason why it was left out.
    """
    height, pad = 220, 12
    row = Image.new("RGB", (2 * height + 420 + 4 * pad, height + pad), "white")
    draw = ImageDraw.Draw(row)
    if photo is not None:
        scale = height / max(photo.shape[:2])
        size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
        row.paste(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS), (pad, pad))
        if isinstance(result, Aligned):
            corners = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]])
            frame = corners @ inverse(result.matrix).T  # (5, 2) in the photograph
            draw.line([(x + pad, y + pad) for x, y in frame * scale], fill="#56B4E9", width=2)
            for x, y in result.points * scale + pad:
                draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill="#E69F00")
    if isinstance(result, Aligned):
        row.paste(
            Image.fromarray(result.face).resize((height, height), Image.Resampling.BICUBIC), (2 * pad + height, pad)
        )
    text = name if isinstance(result, Aligned) else f"{name}\n\nleft out:\n" + "\n".join(wrap(result, 46))
    draw.multiline_text((3 * pad + 2 * height, pad + 4), text, fill="#222222", font_size=17, spacing=6)
    return np.array(row)


PAGE = 20
"""Number of photographs on one page of the contact sheet, which is then 4,640 pixels high."""


def align_all(paths: Sequence[Path], out: Path, size: int, choice: Choice) -> Iterator[str]:
    """Crop the face from each photograph, also from those in folders, to `out`; yields a line for each file written.

    Subfolders are kept, so that files with the same name stay apart. One photograph and one page of the contact sheet
    are in memory at a time. Raises `InputError` if there is no file, if one would be written among the photographs and,
    after the contact sheets are written, if no face was found.
    """
    files = list(files_below(paths, out))
    keep_inputs({out / below.parent for _, below in files}, {file.parent for file, _ in files})
    if not any(file.exists() for file, _ in files):
        raise InputError(f"{', '.join(map(str, paths)) or 'PHOTOGRAPH'}: found no file, expected photographs")
    pages, rows = -(-len(files) // PAGE), list[np.ndarray]()
    sheets = [out / (f"contact-sheet-{k:0{len(str(pages))}}.png" if pages > 1 else "contact-sheet.png")
              for k in range(1, pages + 1)]  # fmt: skip
    written = {str(path).lower() for path in sheets}
    for n, (file, below) in enumerate(files, 1):
        photo = None
        try:
            photo = read_image(file)
            result: Aligned | str = align(photo, size, choice)
        except (InputError, OSError) as error:
            result = str(error).removeprefix(f"{file}: ")
        rows.append(contact_row(str(below), photo, result))
        if isinstance(result, Aligned):
            names = chain([below.stem], (f"{below.stem}-{k}" for k in count(2)))  # 1.jpg and 1.png
            target = next(x for name in names if str(x := out / below.with_name(f"{name}.png")).lower() not in written)
            written.add(str(target).lower())
            yield str(write_png(target, result.face))
        else:
            yield f"{file}: left out: {result}"
        if len(rows) == PAGE or n == len(files):
            yield str(write_png(sheets[(n - 1) // PAGE], np.concatenate(rows)))
            rows.clear()
    if len(written) == len(sheets):
        raise InputError(f"found no face in any of {len(files)} files, expected at least one; reasons: {sheets[0]}")


def files_below(paths: Sequence[Path], out: Path) -> Iterator[tuple[Path, Path]]:
    """All given files, and all files in the given folders, each with its path below `out`.

    Hidden files, links to folders and the folder `out` are left out.
    """
    several = len(paths) > 1
    for path in paths:
        if not path.is_dir():
            yield path, Path(path.name)
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(
                x for x in folders if not x.startswith(".") and (Path(folder) / x).resolve() != out.resolve()
            )
            for name in sorted(names):
                if not name.startswith("."):
                    file = Path(folder) / name
                    yield file, Path(path.resolve().name if several else "") / file.relative_to(path)


def beside(*rows: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) in rows, scaled to one height of at most 1,200 pixels -> one picture."""
    height = min(1200, max(len(picture) for row in rows for picture in row))
    scaled = [[Image.fromarray(x).resize((round(x.shape[1] * height / len(x)), height)) for x in row] for row in rows]
    return np.concatenate([np.concatenate([np.array(x) for x in row], axis=1) for row in scaled])
