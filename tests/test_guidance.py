"""The controlled experiment: what is known about an image is found again, and only the guidance differs."""

import json
from dataclasses import replace
from pathlib import Path

import guidance
import pytest
import time_to_gain
import torch
from guides import EMOTIONS, GUIDES, Facts, Remembered, built_of, editing, expression_class, guided, predicted
from torch import nn

from expr_lib import model
from expr_lib.apps.held_out import held_out_faces
from expr_lib.datasets import to_float
from expr_lib.faces.render import load_renderer
from expr_lib.facs import AU_NAMES
from expr_lib.measure.evaluate import pairs_of
from expr_lib.model import ModelConfig, MovingDG, Swapper
from expr_lib.moving import AtRest

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
C = ModelConfig(size=32, width=16, width_r=16, generator="moved")


@pytest.fixture(scope="module")
def known() -> tuple[Facts, torch.Tensor, torch.Tensor]:
    """Facts, four images (4, 3, 32, 32) in [-1, 1] that they know, and their AUs."""
    facts, plan = Facts(load_renderer().head), held_out_faces(32)
    rows = torch.arange(0, 40, 10)
    pixels, _ = plan.render(Remembered(load_renderer(), facts), rows)
    return facts, to_float(pixels).permute(0, 3, 1, 2), plan.au[rows]


def test_an_image_is_found_again_by_its_pixels_also_mirrored(known) -> None:
    facts, image, au = known
    found, points = facts.of(image)
    assert torch.equal(found, au) and points.shape == (4, 2, 2, 34, 2)
    mirrored, flipped = facts.of(image.flip(-1))
    assert torch.equal(mirrored, au) and torch.equal(flipped, points.flip(2))
    assert not facts.of(image * 0.5)[0].any()  # not a rendered image


def test_landmarks_at_rest_do_not_depend_on_the_expression_and_others_do(known) -> None:
    facts = known[0]
    head = facts.head
    identity = torch.randn(1, head.n_identity).expand(2, -1)
    au = torch.zeros(2, len(AU_NAMES))
    au[1, AU_NAMES.index("AU26")] = 5.0
    still, moved = facts.points(identity, au)
    assert (still - moved).norm(dim=-1).max() > 0.05  # decimetres
    assert (facts.left != facts.right).all()
    mean = head.mean
    torch.testing.assert_close(mean[facts.left] * mean.new_tensor([-1, 1, 1]), mean[facts.right], atol=1e-3, rtol=0)


def test_an_expression_has_the_class_of_its_prototype_and_rest_is_neutral() -> None:
    au = torch.zeros(3, len(AU_NAMES))
    au[0, AU_NAMES.index("AU12")], au[0, AU_NAMES.index("AU6")] = 3.0, 2.0
    au[1, AU_NAMES.index("AU9")], au[1, AU_NAMES.index("AU15")], au[1, AU_NAMES.index("AU17")] = 4.0, 2.0, 2.5
    names = [*EMOTIONS, "neutral"]
    assert [names[k] for k in expression_class(au).argmax(1)] == ["joy", "disgust", "neutral"]
    assert torch.equal(expression_class(au).sum(1), torch.ones(3))


def test_wrong_labels_are_those_of_other_images_in_the_share_that_is_said() -> None:
    class Branch(nn.Module):
        def au(self, f_r: torch.Tensor) -> torch.Tensor:
            return f_r[..., 0].logit()

    f_r = torch.rand(400, 17, 2) * 0.9 + 0.05
    right = predicted().tell(Branch(), f_r, None)
    torch.testing.assert_close(right, f_r[..., :1].expand(-1, -1, 2))
    wrong = predicted(0.3).tell(Branch(), f_r, None)
    changed = (wrong - right).abs().amax(2) > 1e-6
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    for k in range(17):  # each number is still one of the same AU
        assert torch.isin(wrong[:, k], right[:, k]).all()


@pytest.mark.parametrize("name", GUIDES)
def test_the_encoder_is_frozen_and_the_generator_learns(name: str, known) -> None:
    facts, image, _ = known
    with built_of(MovingDG=guided(MovingDG, name, facts)):
        swapper = Swapper(C)
    swapper.warm = True
    swapper.train()
    f_f, told = swapper.encode(image)
    assert isinstance(f_f, AtRest) and told.shape == (4, 17, C.d)
    swapper.generate(f_f, told.roll(1, 0)).square().mean().backward()
    learns = {n for n, p in swapper.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(n.startswith("E.") for n in learns)
    assert any(n.startswith("DG.related.") for n in learns) == GUIDES[name].learned
    assert any(n.startswith("DG.take.") for n in learns) and any(n.startswith("DG.put.") for n in learns)
    assert ("DG.linear.weight" in learns) == bool(GUIDES[name].numbers)


def test_a_drawing_generator_is_told_by_a_guide_too(known) -> None:
    facts, image, au = known
    with built_of(DG=guided(model.DG, "true AUs", facts)):
        swapper = Swapper(replace(C, generator="drawn")).eval()
        f_f, told = swapper.encode(image)
    assert isinstance(f_f, torch.Tensor) and torch.allclose(told[..., 0] * 5, au, atol=1e-6)
    assert swapper.generate(f_f, told).shape == image.shape


def test_networks_are_built_of_other_classes_only_inside() -> None:
    with built_of(MovingDG=guided(MovingDG, "class", None)):
        assert hasattr(Swapper(C).DG, "linear")
    assert type(Swapper(C).DG) is MovingDG is model.MovingDG


def test_an_editor_keeps_the_image_as_its_f_f(known) -> None:
    _, image, _ = known
    with built_of(MovingDG=editing("GANimation")):
        swapper = Swapper(C).eval()
    f_f, told = swapper.encode(image)
    assert f_f.face is image and swapper.generate(f_f, told).abs().max() <= 1


def test_the_gain_on_half_of_the_aus_is_0_for_the_input_and_1_for_the_truth() -> None:
    plan, renderer = held_out_faces(32), load_renderer()
    only = torch.tensor([name in guidance.HALVES["fine"] for name in AU_NAMES])
    shown = replace(plan, au=plan.au * only)
    pairs = pairs_of(plan, 4)
    rows = pairs.T.reshape(-1)
    truth = to_float(shown.render(renderer, rows, au_rows=pairs[:, ::-1].T.reshape(-1))[0]).permute(0, 3, 1, 2)

    class Fixed:
        def __init__(self, copy: bool) -> None:
            self.copy = copy

        def encode(self, image):
            return image, torch.zeros(len(image), 1, 1)

        def generate(self, f_f, f_r):
            return f_f if self.copy else truth

    for copy, expected in ((True, 0.0), (False, 1.0)):
        found = guidance.gain_on(guidance.HALVES["fine"], Fixed(copy), plan, renderer, 4)
        assert found["value"] == pytest.approx(expected, abs=1e-6)


def test_the_halves_are_all_action_units() -> None:
    assert sorted(guidance.HALVES["coarse"] + guidance.HALVES["fine"]) == sorted(AU_NAMES)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("guidance.json")), ids=lambda file: file.name)
def test_the_table_is_that_of_the_result_file(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    assert guidance.text_of(found) == file.with_suffix(".md").read_text(encoding="utf-8")
    assert guidance.short_table(found["rows"]) in (RESULTS.parent / "README.md").read_text(encoding="utf-8")


def test_each_level_of_gain_is_reached_when_it_is_first_passed() -> None:
    found = time_to_gain.reached([100, 200, 300], [60.0, 120.0, 180.0], [0.05, 0.31, 0.25])
    steps = {row["gain"]: (row["minutes"], row["step"]) for row in found}
    assert steps == {**dict.fromkeys((0.1, 0.2, 0.225, 0.3), (2.0, 200)), 0.4: (None, None), 0.45: (None, None)}


def test_the_quick_training_passes_half_of_the_bar_and_its_table_says_what_its_file_says() -> None:
    file = RESULTS / "quick-64.json"
    found = json.loads(file.read_text())
    assert time_to_gain.text_of(found) == file.with_suffix(".md").read_text(encoding="utf-8")
    assert found["gain"]["low"] > 0.225 and found["minutes"] < 18  # rendering takes two more
