"""DISFA: spontaneous expressions, 27 people, 12 AUs with intensities 0 to 5 for every frame of a film; and DISFA+.

Source of the format: Mavadati et al., *DISFA: A Spontaneous Facial Action Intensity Database*, IEEE TAC 4(2), 2013.
DISFA+ is described by Mavadati et al., *Extended DISFA Dataset*, CVPR Workshops 2016, but its files are not; what is
read here is what published programs read, and was not tried on the data set itself.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from expr_lib.errors import InputError
from expr_lib.importers.frames import in_step
from expr_lib.importers.labels import intensity
from expr_lib.importers.source import UNKNOWN, LabelledImage, Report, Tree, au_name, whole


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """`ActionUnit_Labels/SN001/SN001_au1.txt`, lines `frame,intensity`; frames are images below a folder SN001.

    Or they are those of a film with SN001 in its name. Labels count frames from 1. Images that count from 0 are
    shifted, with a note in the report. DISFA+ is recognised by its label files, see `of_trials`.

    Raises `InputError` if there are label files of both: their frames of one person have the same numbers.
    """
    trials = tree.one_each(
        r"(sn\d{3})/([^/]+)/au0*([1-9]\d?)\.txt",
        lambda m: (m[1].upper(), m[2].upper(), au_name(m[3]) or ""),
        "label file of an action unit",
    )
    files = tree.one_each(
        r"(sn\d{3})_au0*([1-9]\d?)\.txt", lambda m: (m[1].upper(), au_name(m[2]) or ""), "label file of an action unit"
    )
    if trials and files:
        both = f"{next(iter(files.values()))} of DISFA and {next(iter(trials.values()))} of DISFA+"
        raise InputError(f"{tree.root}: found {both}, expected one of the two in a folder")
    if trials:
        yield from of_trials(trials, tree, report)
        return
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


def of_trials(files: dict[tuple[str, str, str], str], tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """DISFA+: `Labels/SN001/TRIAL/AU1.txt`, lines `000.jpg 0` below a header; images are `SN001/TRIAL/000.jpg`.

    `files` are the label files by person, trial and AU.
    """
    frames = tree.frames(r"(sn\d{3})/([^/]+)/0*(\d{1,9})\.(?:jpe?g|png|bmp)")
    labels: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    places: dict[tuple[str, str, int], tuple[str, int]] = {}
    for (subject, trial, name), file in files.items():
        seen, of_trial = dict[int, int](), labels.setdefault((subject, trial), {})
        for line, cells in tree.rows(file):
            row = " ".join(cells).split()
            match = re.fullmatch(r"(\d{1,9})\.(?:jpe?g|png|bmp)", row[0].lower(), re.ASCII) if len(row) == 2 else None
            if match is None and (seen or line > 2):
                report.left_out("line that is not image and intensity", file, line, " ".join(row)[:40])
            elif match and (frame := int(match[1])) in seen:
                report.left_out("second label of a frame", file, line, f"{row[0]}: first in line {seen[frame]}")
            elif match:
                seen[frame] = line
                of_trial.setdefault(frame, {})[name] = intensity(row[1], name, report, file, line)
                places.setdefault((subject, trial, frame), (file, line))
    for (subject, trial), of_trial in labels.items():
        names = {name for who, what, name in files if (who, what) == (subject, trial)}
        for frame, au in sorted(of_trial.items()):
            where = places[subject, trial, frame]
            if lacking := sorted(names - au.keys()):
                report.missing("frame that a label file lacks", *where, f"frame {frame}: {', '.join(lacking)}")
            if image := frames.get((subject, trial), {}).get(frame):
                yield LabelledImage(image, subject, au, where, take=f"{subject} {trial}")
            else:
                report.left_out("label without an image", *where, f"frame {frame} of {subject} {trial}")
