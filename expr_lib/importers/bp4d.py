"""BP4D and BP4D+: spontaneous expressions; presence of AUs for coded frames, intensities for a few of the AUs.

Source of the format: Zhang et al., *BP4D-Spontaneous*, Image and Vision Computing 32(10), 2014; Zhang et al.,
*Multimodal Spontaneous Emotion Corpus for Human Behavior Analysis* (BP4D+), CVPR 2016.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from expr_lib.importers.frames import in_step
from expr_lib.importers.labels import intensity, presence
from expr_lib.importers.source import UNKNOWN, LabelledImage, Report, Tree, au_name, whole

CODE_UNKNOWN = "9"


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """`AU_OCC/F001_T1.csv` (0, 1, 9 = unknown), `AU_INT/AU06/F001_T1_AU06.csv` (0 to 5, 9); `F001/T1/0001.jpg`.

    Flat names are `F001_T1_0001.jpg`, films `F001_T1.avi` or `F001/T1.avi`. An AU has the intensity in its
    intensity file, if there is one. Otherwise it is `PRESENT`, 0 if absent, and NaN if unknown.
    """
    frames = tree.frames(r"([fm]\d{3})[/_-](t\d+)(?:\.\w+)?[/_-](?:[^/\d]*)0*(\d{1,9})\.(?:jpe?g|png|bmp)")
    graded: dict[tuple[str, str], dict[str, str]] = {}
    of_au = tree.one_each(
        r"([fm]\d{3})_(t\d+)_au0*([1-9]\d?)\.csv",
        lambda m: (m[1].upper(), m[2].upper(), au_name(m[3]) or ""),
        "intensity file of an action unit",
    )
    for (person, task, name), rel in of_au.items():
        graded.setdefault((person, task), {})[name] = rel
    coded = tree.one_each(
        r"([fm]\d{3})_(t\d+)\.csv", lambda m: (m[1].upper(), m[2].upper()), "occurrence file of a film"
    )
    for film in sorted(graded.keys() - coded.keys()):
        for rel in graded[film].values():
            report.left_out("intensity file of a film without an occurrence file", rel)
    for film, file in coded.items():
        strength = {name: intensities(tree, rel, name, report) for name, rel in graded.get(film, {}).items()}
        rows = tree.rows(file)
        _, header = next(rows, (1, []))
        names = [au_name(cell) for cell in header[1:]]
        if not names or None in names:
            odd = header[1:][names.index(None)] if None in names else ""
            report.left_out("label file without AU numbers in line 1", file, 1, f"found {odd!r}")
            continue
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            report.left_out("label file that has an action unit twice", file, 1, f"{twice}")
            continue
        seen: dict[int, int] = {}
        lines, images = list(rows), frames.get(film, {})
        if images and posixpath.dirname(images[min(images)]) in tree.films:
            numbers = {frame for _, row in lines if (frame := whole(row[0])) is not None}
            images = in_step(list(images.values()), numbers, 1, file, report)
        for line, row in lines:
            frame = whole(row[0])
            if len(row) != len(header) or frame is None:
                report.left_out("line of another length than the header", file, line, ",".join(row)[:40])
                continue
            if frame in seen:
                report.left_out("second label of a frame", file, line, f"frame {frame}: first in line {seen[frame]}")
                continue
            seen[frame] = line
            image = images.get(frame)
            if image is None:
                report.left_out("label without an image", file, line, f"frame {frame} of {film[0]} {film[1]}")
                continue
            au = {
                name: presence(cell, name, report, file, line, unknown=CODE_UNKNOWN)
                for name, cell in zip(names, row[1:], strict=True)
                if name
            }
            for name, by_frame in strength.items():
                au[name], _ = by_frame.get(frame, (UNKNOWN, 0))
                if frame not in by_frame:
                    report.missing(
                        "frame that an intensity file lacks", graded[film][name], 0, f"frame {frame}: {name}"
                    )
            yield LabelledImage(image, film[0], au, (file, line), take=" ".join(film))
        for name, by_frame in strength.items():
            for frame, (_, line) in by_frame.items():
                if frame not in seen:
                    where = graded[film][name]
                    report.left_out(
                        "intensity of a frame that the occurrence file lacks", where, line, f"frame {frame}"
                    )


def intensities(tree: Tree, file: str, name: str, report: Report) -> dict[int, tuple[float, int]]:
    """Lines `frame,intensity` -> intensity and line by frame; a second line of a frame is left out."""
    found: dict[int, tuple[float, int]] = {}
    for line, row in tree.rows(file):
        frame = whole(row[0])
        if len(row) != 2 or frame is None:
            if line > 1 or row[0][:1].isdigit():  # some copies of the data have a header
                report.left_out("line that is not frame,intensity", file, line, ",".join(row)[:40])
        elif frame in found:
            report.left_out("second label of a frame", file, line, f"frame {frame}: first in line {found[frame][1]}")
        else:
            found[frame] = intensity(row[1], name, report, file, line, unknown=CODE_UNKNOWN), line
    return found
