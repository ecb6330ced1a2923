"""Figures: what is drawn where, that labels fit their images, and that nothing else of matplotlib changes."""

from __future__ import annotations

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from expr_lib.facs import ACTION_UNITS, AU_NAMES
from expr_lib.images import read_image
from expr_lib.measure import plots

pytestmark = pytest.mark.usefixtures("no_figure_stays_open")


def colors(rows: int, columns: int) -> np.ndarray:
    """Flat images, each of its own color, (R, C, 8, 8, 3) uint8."""
    flat = np.random.default_rng(0).integers(40, 216, (rows, columns, 1, 1, 3), np.uint8)
    return flat.repeat(8, 2).repeat(8, 3)


def test_every_image_stands_in_its_row_and_column(tmp_path):
    images = colors(2, 3)
    figure = plots.grid(images, cell=1.0)
    figure.set_dpi(60)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # (120, 180, 3)
    assert drawn.shape == (120, 180, 3)
    for r in range(2):
        for c in range(3):
            assert abs(drawn[60 * r + 30, 60 * c + 30].astype(int) - images[r, c, 0, 0]).max() <= 1


def test_labels_must_match():
    with pytest.raises(ValueError, match="row_labels: found 1, expected 2"):
        plots.grid(colors(2, 3), row_labels=["a"])
    with pytest.raises(ValueError, match="column_labels: found 2, expected 3"):
        plots.grid(colors(2, 3), column_labels=["a", "b"])
    with pytest.raises(ValueError, match=r"expected \(rows, columns, S, S, 3\)"):
        plots.grid(colors(2, 3)[0])
    with pytest.raises(ValueError, match="labels: found 2, expected 3"):
        plots.sheet(colors(2, 3)[0], ["a", "b"], columns=2)


def test_a_sheet_shows_all_images_and_leaves_the_rest_empty():
    figure = plots.sheet(colors(1, 5)[0], list("abcde"), columns=3)
    assert [bool(axes.images) for axes in figure.axes] == [True] * 5 + [False]
    assert [axes.get_title() for axes in figure.axes[:5]] == list("abcde")


def test_labels_do_not_overlap_in_the_picture_of_this_project():
    au = np.zeros((8, len(AU_NAMES)))
    au[:, -4:-1] = 5  # the longest label there is: AU 23+25+26
    figure = plots.swaps(*colors(4, 8), au)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) == 8
    assert all(one.x1 < two.x0 for one, two in pairwise(boxes))


def test_strongest():
    au = np.zeros(len(AU_NAMES))
    assert plots.strongest(au + 0.9) == "neutral"
    au[[AU_NAMES.index(name) for name in ("AU12", "AU6", "AU25", "AU43")]] = 5, 3, 4, 2
    assert plots.strongest(au) == "AU 6+12+25"


def test_compare_says_every_number():
    axes = plots.compare({"ours": 0.4, "copy": 0.0}, label="score", intervals={"ours": (0.3, 0.5)})
    assert [text.get_text() for text in axes.texts] == ["0.40", "0.00"]
    assert axes.get_xlabel() == "score"
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.3, 0.5]]


def test_the_style_ends_with_its_block():
    before = dict(plt.rcParams)
    with plots.style():
        assert plt.rcParams["font.size"] >= 14  # legible from the last row
    assert dict(plt.rcParams) == before


def test_a_figure_is_saved_whole(tmp_path):
    path = plots.save(plots.grid(colors(2, 3)), tmp_path / "new" / "figure.png")
    assert read_image(path).std() > 5
    assert "<svg" in plots.save(plots.grid(colors(1, 2)), tmp_path / "figure.svg").read_text()
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["figure.png", "figure.svg"]


def test_a_figure_of_few_colors_is_small_and_looks_the_same(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), np.uint8)
    figure = plots.grid(noise)
    full, few = plots.save(figure, tmp_path / "full.png"), plots.save(figure, tmp_path / "few.png", colors=256)
    assert few.stat().st_size < full.stat().st_size / 2
    one, two = (read_image(path).astype(int) for path in (full, few))
    assert one.shape == two.shape and abs(one - two).mean() < 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.png", "full.png"]


def test_the_palette_tells_regions_apart_in_gray_scale_or_by_hue():
    """Under deuteranopia (Viénot et al. 1999) no two region colors fall together."""
    assert set(plots.REGION_COLORS) == {unit.region for unit in ACTION_UNITS}
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in plots.REGION_COLORS.values()])
    linear = rgb**2.2
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = np.clip(linear @ deutan.T, 0, 1) ** (1 / 2.2)
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(rgb), 1)]
    assert distance.min() > 0.12
