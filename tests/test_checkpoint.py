"""Weights in and out: the same bits back, and a line that says what is wrong with any other file."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expr_lib import checkpoint
from expr_lib.checkpoint import check_au_names, load_swapper
from expr_lib.model import ModelConfig, Swapper
from expr_lib.moving import resize

AUS = ("AU1", "AU12", "AU26")


@pytest.fixture
def swapper() -> Swapper:
    torch.manual_seed(0)
    swapper = Swapper(ModelConfig(size=16, n_aus=3, width=16, width_r=16, levels=(2, 3, 4)))
    swapper.au_names = AUS
    return swapper.eval()


@pytest.fixture
def path(swapper: Swapper, tmp_path: Path) -> Path:
    path = tmp_path / "swap.safetensors"
    about = checkpoint.describe(swapper, step=7, data={"sha256": {"images.npy": "abc"}}, metrics={"au_icc": 0.5})
    checkpoint.save(path, checkpoint.module_tensors("ema", swapper), about)
    return path


def test_a_swapper_comes_back_with_the_same_bits(swapper: Swapper, path: Path) -> None:
    back = load_swapper(path)
    assert not back.training and back.config == swapper.config and back.au_names == AUS
    for name, tensor in swapper.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    a, b = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(back.swap(a, b)[0], swapper.swap(a, b)[0])


def test_metadata_comes_back(path: Path) -> None:
    _, about = checkpoint.load(path)
    assert (about["step"], about["size"], about["au_names"]) == (7, 16, list(AUS))
    assert about["metrics"] == {"au_icc": 0.5} and about["data"] == {"sha256": {"images.npy": "abc"}}


def test_what_is_shipped_is_the_average_alone(swapper: Swapper, tmp_path: Path) -> None:
    ema, learning = (
        checkpoint.module_tensors("ema", swapper),
        {"swapper.x": torch.ones(2), "opt_G.0.step": torch.ones(1)},
    )
    checkpoint.save(tmp_path / "run", ema | learning, checkpoint.describe(swapper, step=3))
    checkpoint.ship(tmp_path / "run", tmp_path / "shipped")
    tensors, about = checkpoint.load(tmp_path / "shipped")
    assert tensors.keys() == ema.keys() and about["step"] == 3
    assert all(torch.equal(tensors[name], tensor) for name, tensor in ema.items())


def test_channels_last_weights_come_back(swapper: Swapper, tmp_path: Path) -> None:
    swapper.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    checkpoint.save(tmp_path / "x", checkpoint.module_tensors("ema", swapper), checkpoint.describe(swapper))
    back = load_swapper(tmp_path / "x").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in swapper.state_dict().items())


def test_saving_leaves_no_other_file_and_a_failed_save_leaves_the_old_one(
    swapper: Swapper, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"ema.x": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no.safetensors: not found; expected a checkpoint"):
        load_swapper(tmp_path / "no.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_a_truncated_file(path: Path, keep: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=rf"swap.safetensors: truncated or not safetensors: {len(whole[:keep])} bytes"):
        load_swapper(path)


def test_a_damaged_file(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-10] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"swap.safetensors: damaged: sha256"):
        load_swapper(path)


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors: format: found 'no expr_lib metadata', expected 1"):
        load_swapper(tmp_path / "other.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "new.safetensors", {"expr_lib": json.dumps({"format": 2})})
    with pytest.raises(ValueError, match=r"new.safetensors: format: found 2, expected 1"):
        load_swapper(tmp_path / "new.safetensors")


def test_other_action_units_are_named(path: Path) -> None:
    assert load_swapper(path).au_names == AUS
    with pytest.raises(ValueError, match=r"other action units: has \['AU26'\], lacks \['AU43'\]"):
        check_au_names(AUS, ("AU1", "AU12", "AU43"), path)
    with pytest.raises(ValueError, match=r"other action units: order \['AU1', 'AU12', 'AU26'\]"):
        check_au_names(AUS, ("AU12", "AU1", "AU26"), path)


def test_other_shapes_and_missing_and_unknown_tensors_are_named(swapper: Swapper, tmp_path: Path) -> None:
    path, about = tmp_path / "x.safetensors", checkpoint.describe(swapper)
    good = checkpoint.module_tensors("ema", swapper)

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        checkpoint.save(path, tensors, about)
        with pytest.raises(ValueError, match=message):
            load_swapper(path)

    name = "ema.DG.related.readout"
    refused(good | {name: torch.zeros(4, 8)}, rf"{name}: found shape \(4, 8\), expected shape \(3, 8\)")
    refused({k: v for k, v in good.items() if k != name}, f"{name}: found nothing, expected shape")
    refused(good | {"ema.new": torch.zeros(1)}, r"ema.new: found shape \(1,\), expected no such tensor")
    refused({"D.x": torch.zeros(1), "opt_G.0.step": torch.zeros(1)}, "found only D, opt_G, expected 'ema' weights")


def test_a_configuration_of_another_version_is_refused(swapper: Swapper, tmp_path: Path) -> None:
    about = checkpoint.describe(swapper)
    about["model"]["depth"] = 3
    checkpoint.save(tmp_path / "x", checkpoint.module_tensors("ema", swapper), about)
    with pytest.raises(ValueError, match=r"model configuration: found \['depth'\], expected only"):
        load_swapper(tmp_path / "x")


@pytest.mark.parametrize("fused", [False, True])
def test_adam_goes_on_as_if_nothing_had_happened(tmp_path: Path, fused: bool) -> None:
    def run(steps: int, stop: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # files know no memory format
        unused = torch.nn.Linear(2, 2)  # never gets a gradient, so Adam has no state for it
        weights = [*unused.parameters(), *net.parameters()]
        adam = torch.optim.Adam(weights, 0.1, fused=fused)
        for step in range(steps):
            if step == stop:
                checkpoint.save(tmp_path / "adam", checkpoint.optimizer_tensors("opt", adam), {})
                adam = torch.optim.Adam(weights, 0.1, fused=fused)
                checkpoint.load_optimizer("opt", adam, checkpoint.load(tmp_path / "adam")[0])
            adam.zero_grad()
            net(torch.randn(1, 3, 5, 5)).square().sum().backward()
            adam.step()
        return net.weight.detach()

    assert torch.equal(run(6, None), run(6, 3))


def test_shared_aus_keep_their_heads_in_any_order_and_new_ones_leave_the_image_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = Swapper(ModelConfig(size=16, n_aus=3, width=16, width_r=16))
    old.au_names = AUS
    checkpoint.save(tmp_path / "old", checkpoint.module_tensors("ema", old), checkpoint.describe(old))
    new = Swapper(checkpoint.fine_tune_config(tmp_path / "old", ModelConfig(size=16, n_aus=4)))
    new.au_names = ("AU26", "AU4", "AU1", "AU12")
    heads = checkpoint.start_from(tmp_path / "old", new)
    assert heads == {"kept": ["AU26", "AU1", "AU12"], "new": ["AU4"], "dropped": []}
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        (f_f, f_r), (f_f_old, f_r_old) = new.eval().encode(image), old.eval().encode(image)
        assert torch.equal(f_f, f_f_old) and torch.equal(f_r[:, [2, 3, 0]], f_r_old)
        torch.testing.assert_close(new.DG.related.au(f_r)[:, [2, 3, 0]], old.DG.related.au(f_r_old))
        torch.testing.assert_close(new.generate(f_f, f_r), old.generate(f_f, f_r_old))
        other = f_r.clone()
        other[:, 1] = 1.0  # the new AU has no say yet ...
        assert torch.equal(new.generate(f_f, other), new.generate(f_f, f_r))
    new.generate(f_f, f_r).sum().backward()
    assert new.DG.G.paint.grad is not None and new.DG.G.paint.grad[1].abs().sum() > 0  # ... and can learn to have one


def test_heads_that_the_data_lack_are_dropped_and_what_cannot_fit_is_told(path: Path, tmp_path: Path) -> None:
    old = Swapper(ModelConfig(size=16, n_aus=3, width=16, width_r=16))
    old.au_names = AUS
    checkpoint.save(tmp_path / "old", checkpoint.module_tensors("ema", old), checkpoint.describe(old))
    new = Swapper(checkpoint.fine_tune_config(tmp_path / "old", ModelConfig(size=16, n_aus=1)))
    new.au_names = ("AU12",)
    assert checkpoint.start_from(tmp_path / "old", new) == {"kept": ["AU12"], "new": [], "dropped": ["AU1", "AU26"]}
    assert torch.equal(new.DG.related.readout[0], old.DG.related.readout[1])
    with pytest.raises(ValueError, match="found images of 64 pixels, expected 16"):
        checkpoint.fine_tune_config(tmp_path / "old", ModelConfig(size=64, n_aus=1))
    with pytest.raises(ValueError, match="numbers of AU classes"):
        checkpoint.fine_tune_config(path, ModelConfig(size=16, n_aus=1))


def test_the_moving_generator_takes_over_encoder_and_au_branch_of_a_drawing_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = Swapper(ModelConfig(size=64, n_aus=3, width=16, width_r=16)).eval()
    old.au_names = AUS
    checkpoint.save(tmp_path / "old", checkpoint.module_tensors("ema", old), checkpoint.describe(old))
    config = checkpoint.fine_tune_config(tmp_path / "old", ModelConfig(generator="moved", size=64, n_aus=3))
    new = Swapper(config).eval()
    new.au_names = AUS
    assert config.generator == "moved" and config.width == 16
    assert checkpoint.start_from(tmp_path / "old", new)["kept"] == list(AUS)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(new.read_au(image), old.read_au(image))
    torch.testing.assert_close(new.encode(image)[0].map, old.encode(image)[0])


@pytest.mark.parametrize(("small", "large"), [(32, 64), (64, 128), (32, 128)])
def test_a_network_that_looks_at_more_pixels_begins_as_the_same_function(
    tmp_path: Path, small: int, large: int
) -> None:
    torch.manual_seed(0)
    old = Swapper(ModelConfig(generator="moved", size=small, n_aus=3, width=16, width_r=16)).eval()
    old.au_names = AUS
    for net in (old.DG.take, old.DG.put):
        for last in (net.flow, net.fill):
            torch.nn.init.normal_(last.weight, 0, 0.05)
    checkpoint.save(tmp_path / "old", checkpoint.module_tensors("ema", old), checkpoint.describe(old))
    wanted = ModelConfig(generator="moved", size=large, n_aus=3)
    new = Swapper(checkpoint.fine_tune_config(tmp_path / "old", wanted)).eval()
    new.au_names = AUS
    checkpoint.start_from(tmp_path / "old", new)
    coarse = torch.rand(2, 3, small, small) * 2 - 1
    image = coarse.repeat_interleave(large // small, 2).repeat_interleave(large // small, 3)
    torch.testing.assert_close(new.read_au(image), old.read_au(coarse), atol=1e-4, rtol=1e-4)
    f_r = torch.rand(2, 3, 8)
    edits = [net.DG.put.edits(x, torch.zeros(2, 16, 16, 16), f_r) for net, x in ((old, coarse), (new, image))]
    for before, now in zip(*edits, strict=True):
        torch.testing.assert_close(resize(now, before.shape[-1]), before, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=f"found images of 96 pixels, expected {small}"):
        checkpoint.fine_tune_config(tmp_path / "old", ModelConfig(generator="moved", size=96, n_aus=3))
