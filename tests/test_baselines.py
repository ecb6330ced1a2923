"""The editors do what their papers say, are trained and resumed correctly; speed measures all methods alike."""

import json
from dataclasses import replace
from pathlib import Path

import baselines
import numpy as np
import pytest
import speed
import torch
from baselines import (
    METHODS,
    BaselineConfig,
    Critic,
    Editor,
    branch,
    gradient_penalty,
    like_ours,
    n_parameters,
    open_editor,
    train_editor,
    train_step,
)
from torch import Tensor, nn

from expr_lib import checkpoint
from expr_lib.datasets import FaceData, pair_batch
from expr_lib.model import ModelConfig, Swapper
from expr_lib.step import Batch, TrainConfig, batch_of, partner

C = BaselineConfig(size=16, n_aus=3, width=8, blocks=1, critic_steps=1, lr=2e-3)


@pytest.fixture
def batch(tiny_faces: FaceData) -> Batch:
    torch.manual_seed(0)
    learns = tiny_faces.subset("train")
    config = TrainConfig(model=ModelConfig(size=16, n_aus=3))
    return batch_of(pair_batch(learns, 0, 3, 0), torch.arange(6), config)


def bits(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(t, other[name]) for name, t in one.items())


# -- all of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_each_takes_a_face_apart_and_puts_it_together(name: str, batch: Batch) -> None:
    method = Editor(name, C, lambda image: batch.au).eval()
    f_f, f_r = method.encode(batch.x)
    image = method.generate(f_f, partner(f_r))
    assert image.shape == batch.x.shape and image.abs().max() <= 1
    assert f_f is batch.x and f_r.shape == (6, 3, 1)


@pytest.mark.parametrize("name", METHODS)
def test_critic_and_generator_leave_each_other_alone(name: str, batch: Batch) -> None:
    method = Editor(name, C)
    G, D = bits(method.G), bits(method.D)
    method.critic_step(batch)
    assert same(bits(method.G), G) and not same(bits(method.D), D)
    G, D = bits(method.G), bits(method.D)
    method.generator_step(batch)
    assert not same(bits(method.G), G) and same(bits(method.D), D)


@pytest.mark.parametrize("name", METHODS)
def test_each_learns_to_give_back_a_tiny_batch(name: str, batch: Batch) -> None:
    torch.manual_seed(1)
    method = Editor(name, C)
    loss = [train_step(method, batch, step)["cycle"].item() for step in range(150)]
    assert np.mean(loss[-3:]) < 0.85 * np.mean(loss[:3])


@pytest.mark.parametrize("name", METHODS)
def test_the_critic_of_an_editor_learns_to_read_the_labels(name: str, batch: Batch) -> None:
    torch.manual_seed(1)
    method = Editor(name, C)
    loss = [method.critic_step(batch)["D_labels"].item() for _ in range(40)]
    assert np.mean(loss[-3:]) < 0.5 * np.mean(loss[:3])


def test_the_generator_learns_from_every_fifth_batch_only(batch: Batch) -> None:
    method = Editor("StarGAN", replace(C, critic_steps=5))
    assert ["cycle" in train_step(method, batch, step) for step in range(10)] == ([False] * 4 + [True]) * 2


@pytest.mark.parametrize("name", METHODS)
def test_a_guide_reads_the_edits_and_learns_nothing(name: str, batch: Batch) -> None:
    torch.manual_seed(1)
    method = Editor(name, C)
    assert "guide" not in method.generator_step(batch)

    class Brightness(nn.Module):
        """Reads all AUs from how bright an image is."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(5.0))

        def read_au(self, image: Tensor) -> tuple[None, Tensor]:
            return None, (self.scale * image.mean((1, 2, 3)))[:, None].expand(-1, 3)  # (B, 3)

    method.guide = Brightness()  # type: ignore[assignment]
    strong = replace(batch, au=torch.full_like(batch.au, 5.0))
    loss = [method.generator_step(strong)["guide"].item() for _ in range(40)]
    assert np.mean(loss[-3:]) < 0.7 * np.mean(loss[:3])  # the edits got brighter
    assert method.guide.scale.item() == 5.0 and method.guide.scale.grad is None
    assert method.generator_step(replace(batch, au=torch.full_like(batch.au, torch.nan)))["guide"] == 0


@pytest.mark.parametrize("name", METHODS)
def test_missing_labels_count_for_nothing(name: str, batch: Batch) -> None:
    method = Editor(name, C)
    losses = train_step(method, replace(batch, au=torch.full_like(batch.au, torch.nan)), 0)
    assert all(value.isfinite() for value in losses.values())
    assert all(losses[key] == 0 for key in ("labels", "D_labels") if key in losses)


@pytest.mark.parametrize("name", METHODS)
def test_a_baseline_can_be_as_large_as_ours(name: str) -> None:
    ours = n_parameters(Swapper(ModelConfig()))
    assert n_parameters(Editor(name, like_ours(name, BaselineConfig())).G) == pytest.approx(ours, rel=0.2)


def test_the_published_generator_has_the_published_size() -> None:
    """StarGAN at 128 px: 8.4 million parameters with five attributes, and a critic of 44.8 million."""
    c = BaselineConfig(size=128)
    with torch.device("meta"):
        assert n_parameters(Editor("StarGAN", c).G) == pytest.approx(8.4e6, rel=0.03)
        assert n_parameters(Critic(c, 5)) == pytest.approx(44.8e6, rel=0.01)


# -- what each is known for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_the_gradient_penalty_of_a_linear_critic(norm: float) -> None:
    w = torch.randn(3 * 8 * 8)
    w = norm * w / w.norm()
    real, fake = torch.randn(2, 4, 3, 8, 8).unbind()
    penalty = gradient_penalty(lambda x: (x.flatten(1) @ w)[:, None], real, fake)
    assert penalty.item() == pytest.approx((norm - 1) ** 2, abs=1e-5)


def test_a_mask_of_zero_gives_the_image_back(batch: Batch) -> None:
    method = Editor("GANimation", C)
    assert method.G.mask is not None
    nn.init.zeros_(method.G.mask.weight)
    nn.init.constant_(method.G.mask.bias, -100.0)
    image, mask = method.edit(batch.x, partner(batch.au))
    assert torch.equal(image, batch.x) and mask.max() < 1e-6
    nn.init.constant_(method.G.mask.bias, 100.0)
    assert not torch.allclose(method.edit(batch.x, partner(batch.au))[0], batch.x, atol=0.1)


def test_an_editor_without_a_mask_paints_what_to_add(batch: Batch) -> None:
    method = Editor("StarGAN", C, lambda image: batch.au)
    nn.init.zeros_(method.G.color.weight)
    nn.init.zeros_(method.G.color.bias)
    assert torch.equal(method.edit(batch.x, partner(batch.au))[0], batch.x)
    nn.init.constant_(method.G.color.bias, 100.0)
    assert method.generate(*method.encode(batch.x)).max() <= 1  # whatever is added


# -- guidance ------------------------------------------------------------------------------------------------------


def test_the_branch_of_a_swapper_reads_any_size() -> None:
    swapper = Swapper(ModelConfig(size=16, n_aus=3)).eval()
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(branch(swapper)(image), swapper.intensities(swapper.read_au(image)[0]))
    assert branch(swapper)(torch.rand(2, 3, 32, 32)).shape == (2, 3)


# -- training --------------------------------------------------------------------------------------------------

LEARN = TrainConfig(steps=5, warmup_steps=0, batch_size=3, ema=0.9, precision="fp32", device="cpu", save_every=2)


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tiny_faces: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = replace(C, critic_steps=2)
    whole, _ = checkpoint.load(train_editor("GANimation", c, tiny_faces, LEARN, tmp_path / "whole"))
    step = baselines.train_step

    def killed(method, batch, n):  # type: ignore[no-untyped-def]
        if n == 3:
            raise SystemExit("killed")
        return step(method, batch, n)

    monkeypatch.setattr(baselines, "train_step", killed)
    with pytest.raises(SystemExit):
        train_editor("GANimation", c, tiny_faces, LEARN, tmp_path / "run")
    monkeypatch.undo()
    path = train_editor("GANimation", c, tiny_faces, LEARN, tmp_path / "run")
    again, about = checkpoint.load(path)
    assert about["step"] == 5 and same(whole, again) and whole.keys() == again.keys()
    written = path.stat().st_mtime_ns
    train_editor("GANimation", c, tiny_faces, LEARN, tmp_path / "run")
    assert path.stat().st_mtime_ns == written  # finished: nothing happens


def test_a_checkpoint_comes_back_as_the_averaged_editor(tiny_faces: FaceData, tmp_path: Path, batch: Batch) -> None:
    path = train_editor("StarGAN", C, tiny_faces, LEARN, tmp_path)
    tensors, _ = checkpoint.load(path)
    editor = open_editor(path, lambda image: batch.au)
    assert not editor.training and editor.c == C
    assert same(bits(editor.G), {k.removeprefix("ema."): t for k, t in tensors.items() if k.startswith("ema.")})
    assert not same(bits(editor.G), {k.removeprefix("G."): t for k, t in tensors.items() if k.startswith("G.")})


# -- speed ---------------------------------------------------------------------------------------------------------


def test_exponents_are_those_of_power_laws() -> None:
    x = [32.0, 64.0, 128.0]
    assert speed.exponent(x, [3 * v**2 for v in x]) == 2.0
    assert speed.exponent(x, [7.0] * 3) == 0.0
    assert speed.exponent([1.0], [1.0]) is None


def test_tasks_take_turns_and_stop_in_time() -> None:
    turns: list[str] = []
    tasks = {name: (lambda name=name: turns.append(name)) for name in "ab"}
    times = speed.interleaved(tasks, 3, 60.0)
    assert turns == list("abababab") and [len(t) for t in times.values()] == [3, 3]
    assert [len(t) for t in speed.interleaved(tasks, 1000, 0.0).values()] == [1, 1]


def test_flops_are_those_of_the_formula() -> None:
    conv, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 8, 8)
    assert speed.flops({"forward": lambda: conv(x)}) == 2 * 2 * 5 * 3 * 9 * 8 * 8


@pytest.mark.parametrize("name", ("ours", *METHODS))
def test_every_method_is_measured_on_the_same_images(name: str) -> None:
    one = speed.prepare(speed.Setting(name, size=32, pairs=2, n_aus=3, precision="fp32"))
    assert one.swap().shape == (4, 3, 32, 32) and one.dtype == torch.float32
    assert one.trained > one.parameters and speed.flops(one.parts) > 1e8
    assert set(one.parts) == ({"step"} if name == "ours" else {"critic", "generator"})


# -- reports -------------------------------------------------------------------------------------------------------

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("speed*.json")), ids=lambda file: file.name)
def test_the_tables_of_speed_are_those_of_the_result_file(file: Path, tmp_path: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    assert speed.report(found, f"{file.stem}.png") == file.with_suffix(".md").read_text(encoding="utf-8")
    speed.picture(found, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
