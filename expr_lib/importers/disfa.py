"""DISFA: spontaneous expressions, 27 people, 12 AUs with intensities 0 to 5 for every frame of a film.

Source of the format: Mavadati et al., *DISFA: A Spontaneous Facial Action Intensity Database*, IEEE TAC 4(2), 2013.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from expr_lib.importers.frames import in_step
from expr_lib.importers.labels import intensity
from expr_lib.importers.source import UNKNOWN, LabelledImage, Report, Tree, au_name, whole


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """`ActionUnit_Labels/SN001/SN001_au1.txt`, lines `frame,intensity`; frames are images below a folder SN001.

    Or they are those of a film with SN001 in its name. Labels count frames from 1. Images that count from 0 are
    shifted, with a note in the report.
    """
    files = tree.one_each(
        r"(sn\d{3})_au0*([1-9]\d?)\.txt", lambda m: (m[1].upper(), au_name(m[2]) or ""), "label file of an action unit"
    )
    names = sorted({name for _, name in files}, key=lambda name: int(name[2:]))
    # the name of the folder or of the image contains SN001; the name of the image ends with the number
    frames = tree.frames(r"[^/]*(sn\d{3})(?:[^/]*/(?:[^/]*\D)?|[^/]*\D)0*(\d{1,9})\.(?:jpe?g|png|bmp)")
    for subject in sorted({who for who, _ in files}):
        labels: dict[int, dict[str, float]] = {}
        places: dict[int, tuple[str, int]] = {}
        for name in names:
            if (file := files.get((subject, name))) is None:
                report.missing("no label file", subject, 0, name)
                continue
            seen: dict[int, int] = {}
            for line, row in tree.rows(file):
                frame = whole(row[0])
                if len(row) != 2 or frame is None:
                    report.left_out("line that is not frame,intensity", file, line, " ".join(row)[:40])
                elif frame in seen:
                    report.left_out(
                        "second label of a frame", file, line, f"frame {frame}: first in line {seen[frame]}"
                    )
                else:
                    seen[frame] = line
                    labels.setdefault(frame, {})[name] = intensity(row[1], name, report, file, line)
                    places.setdefault(frame, (file, line))
        images = frames.get((subject,), {})
        shift = 1 if images and labels and min(images) == 0 and min(labels) == 1 else 0
        if images and posixpath.dirname(images[min(images)]) in tree.films:
            images = in_step(list(images.values()), set(labels), 1, min(places.values())[0], report)
        if shift:
            report.note("frames of the images counted from 0, those of the labels from 1", subject)
        for frame in sorted(labels):
            if (image := images.get(frame - shift)) is None:
                report.left_out("label without an image", *places[frame], f"frame {frame} of {subject}")
                continue
            lacking = [name for name in names if name not in labels[frame] and (subject, name) in files]
            if lacking:
                report.missing("frame that a label file lacks", *places[frame], f"frame {frame}: {', '.join(lacking)}")
            au = {name: labels[frame].get(name, UNKNOWN) for name in names}
            yield LabelledImage(image, subject, au, places[frame], take=subject)
