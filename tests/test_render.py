"""The renderer and what it is asked to draw: true pictures, alike in every precision, and a true answer to a swap."""

from dataclasses import replace

import pytest
import torch

from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.faces.render import load_renderer, rasterize, rotation
from expr_lib.faces.sample import EXCLUDED
from expr_lib.facs import AU_NAMES

SIZE = 48


@pytest.fixture(scope="module")
def renderer():
    return load_renderer()


@pytest.fixture(scope="module")
def plan():
    return plan_faces(FacesConfig(n_subjects=20, images_per_subject=3, size=SIZE, seed=3))


def draw(renderer, plan, row: int, size: int = 96, **au: float):
    """One frontal face in a steady light: image (S, S, 3) in [0, 1]."""
    view = plan.views[[row]]
    zero = torch.zeros(1)
    view = replace(view, yaw=zero, pitch=zero, roll=zero, gaze=view.gaze * 0, shift=view.shift * 0)
    image, mask = renderer(plan.subjects[[row]], renderer.head.au(**au), view, size)
    return image[0].permute(1, 2, 0), mask[0]


# ---- the rasterizer alone


def test_a_triangle_covers_the_pixel_centres_inside_it():
    points = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 8.0, 1.0], [8.0, 0.0, 1.0]]])  # counter-clockwise, y down
    pixel, triangle, weights = rasterize(points, torch.tensor([[0, 1, 2]]), 8)
    rows, columns = pixel // 8, pixel % 8
    assert len(pixel) == 36 and (rows + columns + 1 <= 8).all()  # centres (c + .5, r + .5) with c + r + 1 <= 8
    torch.testing.assert_close(weights.sum(0), torch.ones(36))
    torch.testing.assert_close(weights[2] * 8, columns + 0.5)
    assert (triangle == 0).all()


def test_back_faces_are_culled_and_the_nearer_triangle_wins():
    near = [[0.0, 0.0, 1.0], [0.0, 8.0, 1.0], [8.0, 0.0, 1.0]]
    far = [[0.0, 0.0, 2.0], [0.0, 16.0, 2.0], [16.0, 0.0, 2.0]]
    points = torch.tensor([near + far])
    pixel, triangle, _ = rasterize(points, torch.tensor([[3, 4, 5], [0, 1, 2]]), 8)
    assert len(pixel) == 64 and (triangle == 1).sum() == 36
    _, triangle, _ = rasterize(points, torch.tensor([[3, 4, 5], [0, 2, 1]]), 8)  # the near one seen from behind
    assert (triangle == 0).all()


def test_rotations_turn_the_way_their_names_say():
    nose, zero, ten = torch.tensor([0.0, 0.0, 1.0]), torch.zeros(1), torch.full((1,), 10.0)
    assert (rotation(ten, zero, zero)[0] @ nose)[0] > 0.17  # yaw: to the subject's left, which is +x
    assert (rotation(zero, ten, zero)[0] @ nose)[1] > 0.17  # pitch: chin up
    matrix = rotation(ten, ten, ten)[0]
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3))


# ---- pictures


def test_float32_and_float64_agree(renderer, plan):
    import copy

    rows = torch.arange(0, 60, 5)
    single, _ = plan.render(renderer, rows)
    subjects, views = plan.subjects[plan.subject[rows]].to(torch.float64), plan.views[rows].to(torch.float64)
    double, _ = copy.deepcopy(renderer).double()(subjects, plan.au[rows].double(), views, SIZE)
    difference = (single.permute(0, 3, 1, 2).double() / 255 - double).abs().amax(1)
    assert (difference <= 1.5 / 255).double().mean() >= 0.995  # half a level of it is the rounding to uint8


def test_the_same_rows_give_the_same_bytes_and_sensible_pictures(renderer, plan):
    images, mask = plan.render(renderer, range(12))
    again, _ = plan.render(renderer, range(12))
    assert torch.equal(images, again) and images.shape == (12, SIZE, SIZE, 3) and images.dtype == torch.uint8
    share = mask.float().mean((1, 2))
    assert ((share > 0.1) & (share < 0.8)).all()  # every picture shows a face, and more than a face
    assert (images.float().std((1, 2, 3)) > 15).all()


def test_the_batch_around_it_hardly_changes_a_picture(renderer, plan):
    together, alone = plan.render(renderer, range(6))[0], plan.render(renderer, [4])[0]
    assert ((together[4].int() - alone[0].int()).abs().amax(-1) > 1).float().mean() < 0.005


def test_the_true_answer_takes_the_expression_and_nothing_else(renderer, plan):
    i, j = [0, 9], [30, 45]
    own, _ = plan.render(renderer, i)
    assert torch.equal(plan.render(renderer, i, au_rows=i)[0], own)
    truth, _ = plan.render(renderer, i, au_rows=j)
    borrowed = replace(plan, au=plan.au.clone())
    borrowed.au[i] = plan.au[j]
    assert torch.equal(borrowed.render(renderer, i)[0], truth)
    corner = (slice(None), slice(2), slice(2))  # background: untouched
    assert torch.equal(own[corner], truth[corner]) and not torch.equal(own, truth)


@pytest.mark.parametrize(
    ("name", "upper"), [("AU1", True), ("AU4", True), ("AU43", True), ("AU12", False), ("AU15", False), ("AU26", False)]
)
def test_an_au_changes_the_half_of_the_face_that_it_lives_in(renderer, plan, name, upper):
    change = (draw(renderer, plan, 2, **{name: 5.0})[0] - draw(renderer, plan, 2)[0]).abs().sum(-1)  # (S, S)
    share = change[: int(0.52 * 96)].sum() / change.sum()
    assert change.sum() > 20
    assert share > 0.8 if upper else share < 0.2


def test_an_open_mouth_is_not_empty(renderer, plan):
    """Teeth are the brightest neutral grey thing around the lips: an open mouth has some, a closed one has none."""
    shut, open_ = (draw(renderer, plan, 1, size=128, **au)[0] for au in ({}, {"AU25": 5.0, "AU10": 4.0}))

    def teeth(image):
        mouth = image[80:110, 44:84]
        return ((mouth.amin(-1) > 0.45) & (mouth.amax(-1) - mouth.amin(-1) < 0.15)).sum()

    assert teeth(open_) > teeth(shut) + 10


# ---- what is drawn


def test_a_plan_is_a_pure_function_of_its_config():
    config = FacesConfig(n_subjects=10, images_per_subject=4, seed=5)
    one, two, other = plan_faces(config), plan_faces(config), plan_faces(replace(config, seed=6))
    assert torch.equal(one.au, two.au) and torch.equal(one.subjects.identity, two.subjects.identity)
    assert not torch.equal(one.au, other.au) and not torch.equal(one.subjects.identity, other.subjects.identity)


def test_splits_are_by_subject():
    plan = plan_faces(FacesConfig(n_subjects=50, images_per_subject=3, val=0.2, test=0.1))
    people = {name: set(plan.subject.numpy()[plan.split == name]) for name in ("train", "val", "test")}
    assert [len(p) for p in people.values()] == [35, 10, 5]
    assert not people["train"] & people["val"] and not people["train"] & people["test"]


def test_expressions_are_possible_and_independent_of_who_and_how():
    plan = plan_faces(FacesConfig(n_subjects=200, images_per_subject=20))
    assert plan.au.min() >= 0 and plan.au.max() <= 5
    for first, second in EXCLUDED:
        both = (plan.au[:, AU_NAMES.index(first)] > 0) & (plan.au[:, AU_NAMES.index(second)] > 0)
        assert not both.any(), (first, second)
    present = (plan.au >= 1).float().mean(0)
    assert (present > 0.05).all() and (present < 0.5).all()
    traits = torch.cat((plan.subjects.identity[plan.subject][:, :5], plan.views.yaw[:, None], plan.views.light), 1)
    r = torch.corrcoef(torch.cat((plan.au, traits), 1).T)[: len(AU_NAMES), len(AU_NAMES) :]
    assert r.abs().max() < 0.08  # 4,000 rows, 200 people


def test_the_images_of_a_take_share_all_but_the_expression_and_begin_at_rest():
    plan = plan_faces(FacesConfig(n_subjects=3, images_per_subject=8, images_per_take=4, seed=5))
    assert plan.take.tolist() == [k // 4 for k in range(24)]
    for rows in torch.arange(24).split(4):
        assert not plan.au[rows[0]].any() and len(plan.au[rows].unique(dim=0)) > 1
        assert len(plan.views.yaw[rows].unique()) == len(plan.views.background[rows].unique(dim=0)) == 1
        assert len(plan.subject[rows].unique()) == 1
    assert len(plan.views.yaw.unique()) == 6  # another view for each take
    alone = plan_faces(FacesConfig(n_subjects=3, images_per_subject=8, seed=5))
    assert alone.take.tolist() == [-1] * 24 and len(alone.views.yaw.unique()) == 24
    with pytest.raises(ValueError, match=r"images_per_take 3: expected a divisor of images_per_subject \(8\)"):
        FacesConfig(images_per_subject=8, images_per_take=3)
