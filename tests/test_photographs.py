"""Photographs are changed at their own size, inside the face only; landmarks are made up, the weights are shipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_align import mapped, points_at

from expr_lib.apps import cli
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer
from expr_lib.images import read_image, write_png
from expr_lib.importers.align import CANONICAL, Aligned, cut_out, face_box, face_weight, inverse, places
from expr_lib.model import Swapper
from expr_lib.moving import beyond, in_one, warp
from expr_lib.photographs import SEEN, edit, express_photograph, move, swap_photographs
from expr_lib.swap import load

SIDE = 300  # of the rendered face in its photograph, in pixels


@pytest.fixture(scope="module")
def swapper() -> Swapper:
    return load()


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Two rendered people, one turned by 90 degrees in its photograph, (500, 640, 3) and (640, 500, 3)."""
    faces = plan_faces(FacesConfig(2, 1, SIDE, seed=3)).render(load_renderer(), [0, 1])[0].numpy()
    large = np.random.default_rng(0).integers(0, 256, (2, 500, 640, 3)).astype(np.uint8)
    large[:, 100 : 100 + SIDE, 200 : 200 + SIDE] = faces
    return [large[0], np.rot90(large[1]).copy()]


@pytest.fixture(scope="module")
def cuts(photos) -> list[Aligned]:
    there = points_at(CANONICAL * SIDE + (200, 100))
    turned = np.stack([there[:, 1], 640 - there[:, 0]], 1)
    return [cut_out(photo, points, SEEN) for photo, points in zip(photos, (there, turned), strict=True)]


def weight_of(photo: np.ndarray, cut: Aligned) -> np.ndarray:
    everything = places(cut.matrix, slice(0, photo.shape[0]), slice(0, photo.shape[1]))
    return face_weight(everything)


def test_the_box_holds_the_ellipse_and_hardly_more(photos, cuts):
    for photo, cut in zip(photos, cuts, strict=True):
        y, x = np.nonzero(weight_of(photo, cut))
        rows, columns = face_box(cut.matrix, photo.shape)
        assert 0 <= y.min() - rows.start <= 5 and 0 <= rows.stop - 1 - y.max() <= 5
        assert 0 <= x.min() - columns.start <= 5 and 0 <= columns.stop - 1 - x.max() <= 5


def test_everything_outside_the_face_is_unchanged_bit_for_bit(swapper, photos, cuts):
    done = swap_photographs(swapper, photos, cuts, torch.ones(17))
    smile = express_photograph(swapper, photos[0], cuts[0], {"AU12": 5.0})
    for photo, cut, result in zip([*photos, photos[0]], [*cuts, cuts[0]], [*done, smile], strict=True):
        changed, outside = (result != photo).any(-1), weight_of(photo, cut) == 0
        assert result.shape == photo.shape and not changed[outside].any() and changed[~outside].mean() > 0.3


def test_a_photograph_swapped_with_itself_stays_as_it_is(swapper, photos, cuts):
    for photo, cut in zip(photos, cuts, strict=True):
        same, _ = swap_photographs(swapper, (photo, photo), (cut, cut), torch.ones(17))
        assert np.abs(same.astype(int) - photo).max() <= 1
        none, _ = swap_photographs(swapper, photos, cuts, torch.zeros(17))
        assert np.abs(none.astype(int) - photos[0]).max() <= 1


def test_a_photograph_of_another_size_and_roll_is_changed_in_the_same_way(swapper, photos, cuts):
    upright = np.rot90(photos[1], -1).copy()
    cut = cut_out(upright, points_at(CANONICAL * SIDE + (200, 100)), SEEN)
    a = express_photograph(swapper, photos[1], cuts[1], {"AU26": 4.0, "AU25": 4.0})
    b = express_photograph(swapper, upright, cut, {"AU26": 4.0, "AU25": 4.0})
    assert np.abs(np.rot90(a, -1).astype(int) - b).mean() < 0.2


def test_a_known_flow_moves_the_pixels_by_it():
    """A shift to the right in the frame of a face is the same shift, turned and scaled, in the photograph."""
    y, x = np.mgrid[:200, :240]
    photo = np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8)
    points = mapped(np.array([[0.8, -0.6, 60.0], [0.6, 0.8, -10.0]]), points_at(CANONICAL * 100 + 20))
    matrix = cut_out(photo, points, SEEN).matrix
    edits = torch.zeros(1, 6, 64, 64)
    edits[:, 0], edits[:, 2] = 0.1, 1.0  # half sides to the right; everything is kept
    inside = weight_of(photo, Aligned(photo, points, matrix)) == 1
    shift = inverse(matrix)[:, :2] @ (0.05, 0)
    moved = move(photo, matrix, edits)[inside].astype(float) - photo[inside]
    np.testing.assert_allclose(moved.mean(0), [*shift, 0], atol=0.1)
    edits[:, 2], edits[:, 3:] = 0.0, 0.5  # everything is painted in one colour
    assert (move(photo, matrix, edits)[inside] == 191).all()


def test_strips_and_faces_beyond_the_border_change_nothing(swapper, photos, cuts, monkeypatch):
    whole = express_photograph(swapper, photos[0], cuts[0], {"AU4": 5.0})
    monkeypatch.setattr("expr_lib.photographs.STRIP", 2000)
    assert np.abs(express_photograph(swapper, photos[0], cuts[0], {"AU4": 5.0}).astype(int) - whole).max() <= 1
    part = photos[0][:, 240:].copy()  # the side of the face is cut off
    cut = cut_out(part, points_at(CANONICAL * SIDE + (-40, 100)), SEEN)
    assert express_photograph(swapper, part, cut, {"AU4": 5.0}).shape == part.shape


def test_two_edits_in_one_are_the_two_in_turn():
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), size=64, mode="bicubic")

    def some() -> tuple[torch.Tensor, ...]:
        small = torch.rand(1, 6, 4, 4)
        smooth = torch.nn.functional.interpolate(small, size=64, mode="bilinear")
        return 0.1 * (smooth[:, :2] - 0.5), smooth[:, 2:3], 2 * smooth[:, 3:] - 1

    first, second = some(), some()
    expected = image
    for flow, mask, colours in (first, second):
        expected = (1 - mask) * warp(expected, flow) + mask * colours
    edits = in_one(first, second, 64)
    found = edits[:, 2:3] * warp(image, edits[:, :2]) + edits[:, 3:]
    assert (found - expected).abs().mean() < 0.01
    nothing = beyond(edits, edits)
    assert nothing[:, :2].abs().max() == 0 and (nothing[:, 2] == 1).all() and (nothing[:, 3:] == 0).all()


def test_the_own_expression_is_no_edit_and_drawn_faces_are_pasted(swapper, photos, cuts):
    assert np.abs(edit(swapper, photos[0], cuts[0], lambda own: own).astype(int) - photos[0]).max() <= 1
    from expr_lib import FIRST

    drawing = load(FIRST)
    cut = cut_out(photos[0], cuts[0].points, drawing.config.size)
    drawn = edit(drawing, photos[0], cut, lambda own: own)
    assert (drawn == photos[0])[weight_of(photos[0], cut) == 0].all() and (drawn != photos[0]).any()


def test_the_commands_write_full_size_files(tmp_path, capsys, monkeypatch, photos, cuts):
    found = {photo.shape: cut.points for photo, cut in zip(photos, cuts, strict=True)}
    monkeypatch.setattr("expr_lib.importers.align.find_faces", lambda photo: [found[photo.shape]])
    a, b = (str(write_png(tmp_path / f"{name}.png", photo)) for name, photo in zip("ab", photos, strict=True))
    out = tmp_path / "s.png"
    cli.main(["swap", a, b, "--photographs", "-o", str(out)])
    assert sorted(path.name for path in tmp_path.glob("s*")) == ["s-b.png", "s.png"]
    assert read_image(out).shape == photos[0].shape and read_image(tmp_path / "s-b.png").shape == photos[1].shape
    cli.main(["swap", a, b, "--photographs", "--inputs", "-o", str(out)])
    assert read_image(tmp_path / "s-overview.png").shape[0] == 2 * 640
    smile = tmp_path / "smile.png"
    cli.main(["express", a, "AU12=5", "--photographs", "--face", "1", "-o", str(smile)])
    assert read_image(smile).shape == photos[0].shape and (read_image(smile) != photos[0]).any()
    with pytest.raises(SystemExit):
        cli.main(["express", a, "AU12=5", "--face", "1", "-o", str(smile)])
    assert "expected together with --photographs" in capsys.readouterr().err
