"""Films and folders of images without labels, for fine-tuning: each is a take of one person, all AUs are missing."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from expr_lib.facs import AU_NAMES
from expr_lib.importers.source import UNKNOWN, LabelledImage, Report, Tree

MOST = 500
"""Images of one take that are used, evenly spaced: neighbouring frames of a film are almost the same. Our choice."""


def labelled_images(tree: Tree, report: Report) -> Iterator[LabelledImage]:
    """Frames of every film, and the images of every folder, in the order of their names; all AUs are NaN.

    Each is one person, or whom `people.csv` names. The report notes takes of which not all images are used.
    """
    takes = dict(tree.films)
    for rel in tree.images():
        takes.setdefault(posixpath.dirname(rel), []).append(rel)
    for take, images in takes.items():
        every = -(-len(images) // MOST)
        if every > 1:
            report.note("take of which not all images are used", take, 0, f"one in {every} of {len(images):,}")
        for image in images[::every]:
            yield LabelledImage(image, take, dict.fromkeys(AU_NAMES, UNKNOWN), (take, 0), take=take)
