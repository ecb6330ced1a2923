"""The step keeps every gradient where it belongs; the loop can be killed, stopped and broken at any moment."""

import copy
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, multiprocessing, nn

from expr_lib import checkpoint, processes, train
from expr_lib import step as steps
from expr_lib.checkpoint import load_swapper
from expr_lib.datasets import FaceData, pair_batch
from expr_lib.errors import InputError
from expr_lib.model import BatchNorm, ModelConfig, au_classes
from expr_lib.run import all_tensors, lock
from expr_lib.step import (
    Batch,
    Nets,
    TrainConfig,
    Weights,
    augment,
    batch_of,
    both_passes,
    frozen,
    partner,
    train_step,
    update_D,
    update_G,
    warmup_step,
)
from expr_lib.train import build_nets

TINY = TrainConfig(
    steps=12, warmup_steps=4, batch_size=3, warmup_batch_size=3, precision="fp32", device="cpu",
    log_every=1, sample_every=6, save_every=3, n_samples=2,
    model=ModelConfig(size=16, n_aus=3, width=16, width_r=16, width_d=8),
)  # fmt: skip
IN_A_PROCESS = """
import json, sys
from expr_lib.datasets import FaceData
from expr_lib.model import ModelConfig
from expr_lib.step import TrainConfig, Weights
from expr_lib.train import train
c = json.loads(sys.argv[3])
c["model"]["levels"] = tuple(c["model"]["levels"])
c["model"], c["weights"] = ModelConfig(**c["model"]), Weights(**c["weights"])
train(TrainConfig(**c), FaceData.open(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture
def precision() -> str:
    return "fp32"


@pytest.fixture
def nets(tiny_faces: FaceData, precision: str) -> Nets:
    """As after the warm-up."""
    nets = build_nets(replace(TINY, precision=precision), tiny_faces.subset("train"))
    nets.swapper.warm = True
    nets.swapper.train()
    return nets


@pytest.fixture
def batch(tiny_faces: FaceData) -> Batch:
    learn = tiny_faces.subset("train")
    subjects = torch.from_numpy(np.unique(learn.subject))
    return batch_of(pair_batch(learn, 0, TINY.batch_size, 0), subjects, TINY)


def bits(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def reached(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def discriminators(nets: Nets) -> list[nn.Module]:
    return [nets.D, nets.D_f, nets.D_r]


# -- the step ------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def test_the_passes_are_the_papers(nets: Nets, batch: Batch) -> None:
    nets.swapper.eval()
    out = both_passes(nets.swapper, batch.x, detach_f_r=True)
    a, b = batch.x.chunk(2)
    (swap_a, swap_b), (cycle_a, cycle_b) = nets.swapper.swap(a, b), out.cycle.chunk(2)
    torch.testing.assert_close(out.swap, torch.cat([swap_a, swap_b]))
    torch.testing.assert_close((cycle_a, cycle_b), nets.swapper.swap(swap_a, swap_b))
    torch.testing.assert_close(out.self_, nets.swapper.reconstruct(batch.x))
    assert torch.equal(partner(batch.au), torch.cat([*reversed(batch.au.chunk(2))]))


@BOTH
def test_updating_the_discriminators_leaves_every_generator_weight_bit_identical(nets: Nets, batch: Batch) -> None:
    before, others = bits(nets.swapper), [bits(d) for d in discriminators(nets)]
    update_D(nets, batch, both_passes(nets.swapper, batch.x, True), TINY)
    assert changed(nets.swapper, before) == set()
    assert all(p.grad is None for p in nets.swapper.parameters())
    assert all(changed(d, b) for d, b in zip(discriminators(nets), others, strict=True))


@BOTH
def test_updating_the_generator_leaves_every_discriminator_weight_bit_identical(nets: Nets, batch: Batch) -> None:
    before, others = bits(nets.swapper), [bits(d) for d in discriminators(nets)]
    update_G(nets, batch, both_passes(nets.swapper, batch.x, True), TINY)
    assert changed(nets.swapper, before) == {name for name, _ in nets.swapper.named_parameters()}
    for d, b in zip(discriminators(nets), others, strict=True):
        assert changed(d, b) == set() and all(p.grad is None and p.requires_grad for p in d.parameters())
        assert d.training


@BOTH
def test_the_au_branch_gets_no_gradient_from_synthesized_images(nets: Nets, batch: Batch) -> None:
    # without AU labels and subjects nothing is left that may teach the AU branch: all other losses see what G drew
    blind = replace(batch, au=torch.full_like(batch.au, torch.nan), subject=torch.full_like(batch.subject, -1))
    c = replace(TINY, weights=replace(TINY.weights, hide_subject=0.0))
    with nets.accelerator.autocast():
        out = both_passes(nets.swapper, batch.x, detach_f_r=True)
    update_G(nets, blind, out, c)
    assert {name.split(".")[1] for name in reached(nets.swapper)} == {"net", "free", "G"}


@BOTH
def test_guidance_reaches_the_generator_through_frozen_weights(nets: Nets, batch: Batch) -> None:
    swapper = nets.swapper
    image = batch.x.clone().requires_grad_()
    with nets.accelerator.autocast():
        swapper.read_au(batch.x)  # the same weights, first while they learn
        with frozen(swapper):
            swapper.read_au(augment(image))[1].sum().backward()
    assert image.grad is not None and image.grad.any()
    assert reached(swapper) == set()


@pytest.mark.parametrize("detach", [True, False])
def test_reconstruction_reaches_f_r_only_when_it_is_not_detached(nets: Nets, batch: Batch, detach: bool) -> None:
    out = both_passes(nets.swapper, batch.x, detach)
    ((out.self_ - batch.x).abs().mean() + (out.cycle - batch.x).abs().mean()).backward()
    assert ("DG.related.to_f_r.weight" in reached(nets.swapper)) == (not detach)
    assert "DG.G.canvas.weight" in reached(nets.swapper)


@pytest.mark.parametrize("detach", [True, False])
def test_the_cross_cycle_reaches_the_first_pass_only_when_it_is_not_detached(nets: Nets, batch: Batch, detach: bool):
    out = both_passes(nets.swapper, batch.x, detach_swap=detach)
    (arrived,) = torch.autograd.grad(out.cycle.sum(), out.swap, allow_unused=True)
    assert (arrived is None) == detach
    assert out.cycle.requires_grad and out.swap.requires_grad  # guidance and adversaries still teach the first pass


def test_an_end_to_end_cross_cycle_prefers_a_copy_and_a_detached_one_the_swap() -> None:
    """The argument of `both_passes` on numbers: a share m of the expression passes through f_r, 1 - m hides in f_f."""
    a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    for detach, better in ((False, -1), (True, 1)):
        m = torch.tensor(0.2, requires_grad=True)
        swap = (1 - m) * a + m * b
        cycle = (1 - m) * (swap.detach() if detach else swap) + m * a
        (slope,) = torch.autograd.grad((cycle - a).square().mean(), m)
        assert -slope.sign() == better  # descent makes m smaller end to end, larger detached


def test_the_warm_up_trains_the_au_branch_alone(nets: Nets, batch: Batch) -> None:
    before = bits(nets.swapper)
    warmup_step(nets, batch, TINY, 0.5)
    assert {name.split(".")[1] for name in changed(nets.swapper, before)} == {"net", "related"}  # E.net, DG.related


def test_frozen_restores_even_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(net):
        assert not any(p.requires_grad for p in net.parameters()) and not net.training
        raise RuntimeError
    assert [p.requires_grad for p in net.parameters()] == [True, True, False, False] and net.training


def test_augmentation_is_random_for_each_image_mild_and_differentiable() -> None:
    torch.manual_seed(0)
    x = (torch.rand(1, 3, 4, 4) * 2 - 1).repeat_interleave(8, -1).repeat_interleave(8, -2).expand(6, -1, -1, -1).clone()
    y = augment(x.requires_grad_())
    assert y.shape == x.shape and y.isfinite().all()
    assert (y[0] - y[1]).abs().max() > 0.05 and (y - x).abs().mean() < 0.4
    y.sum().backward()
    assert x.grad is not None and x.grad.any()
    torch.testing.assert_close(augment(x, 0.0), x)


@pytest.mark.parametrize("adversary", ["uniform", "none", "reversal", "inverted", "entropy"])
def test_every_adversary_trains_both_sides_and_keeps_them_apart(nets: Nets, batch: Batch, adversary: str) -> None:
    only = Weights(**dict.fromkeys(Weights.__annotations__, 0.0) | {"hide_au": 1.0})
    c = replace(TINY, adversary=adversary, weights=only)
    out, before, others = both_passes(nets.swapper, batch.x, True), bits(nets.swapper), bits(nets.D)
    loss = update_D(nets, batch, out, c)
    assert changed(nets.swapper, before) == set() and loss["D_f"] > 0
    d_f = bits(nets.D_f)
    update_G(nets, batch, out, c)
    assert changed(nets.D_f, d_f) == set() and changed(nets.D, others)
    hides = any("DG.free" in name for name in reached(nets.swapper))
    assert hides == (adversary != "none")


@pytest.mark.parametrize("consistency", ["self", "cycle"])
def test_a_batch_without_any_label_still_trains(nets: Nets, batch: Batch, consistency: str) -> None:
    none = replace(batch, au=torch.full_like(batch.au, torch.nan), cls=torch.full_like(batch.cls, -1))
    none.subject = torch.full_like(batch.subject, -1)
    loss = train_step(nets, none, replace(TINY, consistency=consistency))
    assert all(value.isfinite() for value in loss.values())
    assert loss["au"] == loss["D_f"] == loss["D_r"] == loss["hide_au"] == loss["guide"] == 0


@pytest.mark.parametrize("adversary", ["uniform", "none", "reversal", "inverted", "entropy"])
def test_no_number_stands_for_a_missing_label(
    tiny_faces: FaceData, batch: Batch, monkeypatch: pytest.MonkeyPatch, adversary: str
) -> None:
    """What the code puts in the place of NaN, or of class -1, is in no loss, no gradient and no weight."""
    c, fill, clamp = replace(TINY, adversary=adversary), Tensor.nan_to_num, Tensor.clamp_min
    learn, random = tiny_faces.subset("train"), np.random.default_rng(0)
    learn = replace(learn, au=np.where(random.random(learn.au.shape) < 0.3, np.nan, learn.au))
    au = batch.au.masked_fill(torch.from_numpy(random.random(batch.au.shape) < 0.4), torch.nan)
    holes = replace(batch, au=au, cls=au_classes(au, c.model.au_levels))
    assert (holes.cls == -1).any() and (holes.cls >= 0).any()

    def step(number: float, cls: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        def clamp_min(t: Tensor, least: float) -> Tensor:
            return clamp(t, least) if t.is_floating_point() else t.masked_fill(t < least, cls)

        monkeypatch.setattr(Tensor, "nan_to_num", lambda t: fill(t, number))
        monkeypatch.setattr(Tensor, "clamp_min", clamp_min)
        nets = build_nets(c, learn)
        torch.manual_seed(0)
        losses = warmup_step(nets, holes, c, 1.0) | train_step(nets, holes, c)
        return losses, all_tensors(nets)  # networks and what Adam knows of their gradients

    for one, other in zip(step(0.0, 0), step(3.7, 3), strict=True):
        differ = [name for name in one if not torch.equal(one[name], other[name])]
        assert not differ, differ[:9]


def test_learning_lowers_the_losses(tiny_faces: FaceData, tmp_path: Path) -> None:
    quick = replace(TINY, steps=40, warmup_steps=15, lr=4e-3, sample_every=40, save_every=40)
    quick = replace(quick, weights=replace(quick.weights, self_=100.0))
    train.train(quick, tiny_faces, tmp_path)
    log = list(csv.DictReader((tmp_path / "log.csv").open()))

    def mean(column: str, rows: list[dict[str, str]]) -> float:
        return float(np.mean([float(row[column]) for row in rows]))

    assert mean("au", log[10:15]) < 0.8 * mean("au", log[:5])
    assert mean("self_", log[-5:]) < 0.9 * mean("self_", log[15:18])


# -- the loop ------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_log_samples_and_a_model(tiny_faces: FaceData, tmp_path: Path) -> None:
    path = train.train(TINY, tiny_faces, tmp_path / "run")
    log = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert [int(row["step"]) for row in log] == list(range(1, 13))
    assert log[0]["cycle"] == "" and float(log[-1]["cycle"]) > 0
    samples = sorted((tmp_path / "run" / "samples").iterdir())
    assert [s.name for s in samples] == ["0000006.png", "0000012.png"]
    assert Image.open(samples[0]).size == (2 * 16, 5 * 16)
    swapper = load_swapper(path)
    assert swapper.au_names == tiny_faces.au_names and swapper.config.size == 16 and swapper.config.n_aus == 3
    _, about = checkpoint.load(path)
    assert about["step"] == 12 and about["data"]["sha256"] == tiny_faces.meta["sha256"] and about["train"]["seed"] == 0


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_and_resumed_ends_with_the_bits_of_a_run_that_was_not(
    tiny_folder: Path, tmp_path: Path, one_thread: None
) -> None:
    data, whole, run = FaceData.open(tiny_folder), tmp_path / "whole", tmp_path / "killed"
    c = replace(TINY, steps=30)
    train.train(c, data, whole)

    command = [sys.executable, "-c", IN_A_PROCESS, str(tiny_folder), str(run), json.dumps(asdict(c))]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    deadline, log = time.monotonic() + 60, run / "log.csv"
    while not log.exists() or log.read_text().count("\n") < 8:  # a header and 7 steps: one after the second checkpoint
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_at = checkpoint.load(run / "checkpoint.safetensors")[1]["step"]
    assert 6 <= killed_at < 30

    fewer = replace(c, steps=killed_at)  # in total, all of them done: nothing happens
    train.train(fewer, data, run, allow_changes=True)
    train.train(c, data, run)
    one, _ = checkpoint.load(whole / "checkpoint.safetensors")
    other, about = checkpoint.load(run / "checkpoint.safetensors")
    assert about["step"] == 30 and one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    for same in ("log.csv", "samples/0000030.png"):
        assert (run / same).read_bytes() == (whole / same).read_bytes()


@pytest.mark.parametrize(("number", "leaves"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_before_leaving(
    tiny_faces: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, leaves: type[BaseException]
) -> None:
    step, before = train_step, signal.getsignal(number)

    def interrupted(*args):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), number)
        return step(*args)

    monkeypatch.setattr(train, "train_step", interrupted)
    with pytest.raises(leaves) as left:
        train.train(TINY, tiny_faces, tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["step"] == 5
    assert number == signal.SIGINT or left.value.code == 143  # type: ignore[attr-defined]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("loss", "said"), [(torch.nan, "nan"), (-torch.inf, "-inf"), (101.0, "101")])
def test_an_exploded_loss_stops_and_names_the_last_good_checkpoint(
    tiny_faces: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float, said: str
) -> None:
    path = train.train(replace(TINY, steps=6), tiny_faces, tmp_path)
    good = path.read_bytes()
    monkeypatch.setattr(steps, "agreement_loss", lambda feature, _: feature.mean() * 0 + loss)
    message = rf"step 6: loss exploded \(agree_f {said}, agree_r {said}\); the last good checkpoint is {path}"
    with pytest.raises(FloatingPointError, match=message):
        train.train(TINY, tiny_faces, tmp_path)
    assert path.read_bytes() == good


def test_a_loss_that_explodes_between_two_looks_is_found_before_anything_is_saved(
    tiny_faces: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses come from the device on few steps only; one that was bad for a single step is noticed all the same."""
    c = replace(TINY, steps=20, log_every=100, sample_every=100, save_every=6)
    path, loss, taken = tmp_path / "checkpoint.safetensors", steps.agreement_loss, list[int]()

    def once(feature: Tensor, other: Tensor) -> Tensor:  # two a step, from step 4 on: those of step 7 are bad
        taken.append(len(taken))
        return loss(feature, other) * 0 + 101.0 if taken[-1] // 2 == 3 else loss(feature, other)

    monkeypatch.setattr(steps, "agreement_loss", once)
    message = rf"step 7: loss exploded \(agree_f 101, agree_r 101\); the last good checkpoint is {path}"
    with pytest.raises(FloatingPointError, match=message):
        train.train(c, tiny_faces, tmp_path)
    assert checkpoint.load(path)[1]["step"] == 6
    assert len(taken) == 2 * 8  # steps 4 to 11: found when step 12 was to be saved


def test_a_second_training_in_the_same_folder_is_refused(tiny_faces: FaceData, tmp_path: Path) -> None:
    train.train(replace(TINY, steps=2), tiny_faces, tmp_path)
    before = (tmp_path / "log.csv").read_bytes()
    with lock(tmp_path), pytest.raises(BlockingIOError, match=f"{tmp_path}: another process is training here"):
        train.train(TINY, tiny_faces, tmp_path)
    assert (tmp_path / "log.csv").read_bytes() == before
    train.train(replace(TINY, steps=3), tiny_faces, tmp_path)  # free again


def test_a_run_leaves_no_thread_behind(tiny_faces: FaceData, tmp_path: Path) -> None:
    before = threading.active_count()
    train.train(replace(TINY, steps=2), tiny_faces, tmp_path)
    assert threading.active_count() <= before


def test_a_run_is_not_continued_with_other_data_or_another_model(tiny_faces: FaceData, tmp_path: Path) -> None:
    train.train(replace(TINY, steps=2), tiny_faces, tmp_path)
    other = replace(tiny_faces, au_names=("AU1", "AU12", "AU43"))
    with pytest.raises(ValueError, match=r"checkpoint.safetensors: other action units: has \['AU26'\]"):
        train.train(TINY, other, tmp_path)
    wide = replace(TINY, model=replace(TINY.model, width_r=32))
    with pytest.raises(ValueError, match=r"swapper.DG.related.to_f_r.weight: found shape"):
        train.train(wide, tiny_faces, tmp_path)


def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_used(tiny_faces: FaceData, tmp_path: Path) -> None:
    path = train.train(TINY, tiny_faces, tmp_path)
    whole, previous = path.read_bytes(), tmp_path / "checkpoint.prev.safetensors"
    assert checkpoint.load(previous)[1]["step"] == 9
    path.write_bytes(whole[:-100])
    with pytest.warns(UserWarning, match=rf"{path}: truncated .*; {previous} is used instead"):
        train.train(TINY, tiny_faces, tmp_path)
    assert path.read_bytes() == whole  # the same three steps again, to the same bits
    path.write_bytes(whole[:-100])
    previous.unlink()
    with pytest.raises(ValueError, match=rf"{path}: truncated"):
        train.train(TINY, tiny_faces, tmp_path)


def test_tensorboard_has_what_the_log_has(tiny_faces: FaceData, tmp_path: Path) -> None:
    train.train(replace(TINY, steps=6), tiny_faces, tmp_path)
    time.sleep(1)  # TensorBoard reads its files in the order of their names, which hold the second and sort 10 before 9
    train.train(replace(TINY, steps=9), tiny_faces, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    log = list(csv.DictReader((tmp_path / "log.csv").open()))
    for name in ("au", "G", "D_f"):
        kept = [(e.step, e.value) for e in events.Scalars(f"loss/{name}")]
        assert kept == [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-4)) for row in log if row[name]]
    assert [e.step for e in events.Images("samples")] == [6, 9]


# -- several processes ---------------------------------------------------------------------------------------------


def test_processes_that_cannot_share_a_batch_are_told(
    tiny_faces: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="batch size 3: expected a multiple of the 2 processes"):
        train.train(TINY, tiny_faces, tmp_path)


SHARED = replace(TINY, steps=24, batch_size=4, warmup_batch_size=8, sample_every=100, save_every=100)


def partly_labelled(folder: Path) -> FaceData:
    data = FaceData.open(folder)
    return replace(data, au=np.where(np.arange(data.au.size).reshape(data.au.shape) % 5 == 0, np.nan, data.au))


def learn_smoothly(folder: Path, out: Path) -> None:
    """A whole run whose steps change little when its gradients do.

    At first Adam steps by the sign of each gradient, so that one of 1e-12 that rounding turns round moves a weight by
    2 lr. That is no fault of how the batch is shared; a larger eps makes tiny gradients tiny steps.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", partial(torch.optim.Adam, eps=1e-4))
        train.train(SHARED, partly_labelled(folder), out)


def one_of_two(rank: int, folder: Path, out: Path) -> None:
    """What each of two processes does: a few things on its own, then a whole run."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    drawn = processes.draw(torch.rand, 2, 3, device=torch.device("cpu"))
    x = processes.part(normed()[0]).requires_grad_()
    norm = BatchNorm(2)
    F.mse_loss(norm(x), processes.part(normed()[1])).backward()
    tensors = {"drawn": drawn, "grad": x.grad, "weight": norm.weight.grad, "var": norm.running_var}
    checkpoint.save(out / f"{rank}.safetensors", tensors, {})
    learn_smoothly(folder, out)


def normed() -> tuple[Tensor, Tensor]:
    """Input of a batch norm, and what its output is compared with: (4, 2, 3, 3) each."""
    return torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(1)).unbind()


@pytest.fixture(scope="module")
def two(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(one_of_two, (tiny_folder, out), nprocs=2)
    return out


def test_two_processes_draw_and_normalize_as_one(two: Path) -> None:
    found = [checkpoint.load(two / f"{rank}.safetensors")[0] for rank in (0, 1)]
    torch.manual_seed(0)
    rows = torch.rand(4, 3)  # a1, a2, b1, b2: process 0 has a1 and b1
    assert torch.equal(found[0]["drawn"], rows[[0, 2]]) and torch.equal(found[1]["drawn"], rows[[1, 3]])
    x, norm = normed()[0].requires_grad_(), BatchNorm(2)
    F.mse_loss(norm(x), normed()[1]).backward()
    assert x.grad is not None and norm.weight.grad is not None
    torch.testing.assert_close(torch.stack([f["weight"] for f in found]).mean(0), norm.weight.grad)
    for rank in (0, 1):
        torch.testing.assert_close(found[rank]["grad"] / 2, x.grad[[rank, rank + 2]])  # of the mean of two losses
        torch.testing.assert_close(found[rank]["var"], norm.running_var)


def test_two_processes_learn_as_one(two: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """4 steps of warm-up and 20 of the method, with missing labels: the same losses to 1e-4."""
    learn_smoothly(tiny_folder, tmp_path)
    one, both = (pd.read_csv(run / "log.csv") for run in (tmp_path, two))
    assert len(one) == 24
    pd.testing.assert_frame_equal(one, both, check_exact=False, rtol=1e-4, atol=1e-4)


def test_a_compiled_run_has_the_losses_of_one_that_is_not_and_the_same_names_of_weights(
    tiny_faces: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = nn.Module.compile
    # traced and differentiated as for a real run, but without a compiler of C++, which would take minutes here
    monkeypatch.setattr(nn.Module, "compile", lambda net: whole(net, backend="aot_eager"))
    paths = [train.train(replace(TINY, steps=8, compile=c), tiny_faces, tmp_path / str(c)) for c in (False, True)]
    plain, compiled = (pd.read_csv(path.with_name("log.csv")) for path in paths)
    pd.testing.assert_frame_equal(plain, compiled, check_exact=False, rtol=1e-4, atol=1e-4)
    assert checkpoint.load(paths[0])[0].keys() == checkpoint.load(paths[1])[0].keys()


def test_fine_tuning_says_which_heads_it_keeps_and_learns_from_labels_that_are_missing(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = FaceData.open(tiny_folder)
    first = train.train(TINY, data, tmp_path / "first")
    labels = data.au.copy()
    labels[:, 2] = np.nan  # an AU that nobody labelled
    labels[::2, 0] = np.nan
    other = replace(data, au=labels, au_names=("AU26", "AU4", "AU12"))
    path = train.train(replace(TINY, steps=8, warmup_steps=2), other, tmp_path / "second", first)
    told = f"AU heads of {first}: kept AU26, AU12; new AU4; dropped AU1"
    output = capsys.readouterr()
    assert told in output.out + output.err
    _, about = checkpoint.load(path)
    assert about["train"]["warmup_steps"] == 0  # whatever was asked
    assert about["start"]["heads"] == {"kept": ["AU26", "AU12"], "new": ["AU4"], "dropped": ["AU1"]}
    swapper = load_swapper(path)
    assert swapper.au_names == other.au_names and all(p.isfinite().all() for p in swapper.parameters())
    with (tmp_path / "second/log.csv").open() as file:
        assert all(float(row["au"]) < 10 for row in csv.DictReader(file))


# -- going on with other settings ----------------------------------------------------------------------------------


def test_what_changed_in_a_resumed_run_is_recorded_with_its_step(tiny_faces: FaceData, tmp_path: Path) -> None:
    path = train.train(replace(TINY, steps=5), tiny_faces, tmp_path)
    other = replace(TINY, steps=6, seed=3, weights=replace(TINY.weights, au=2.0))
    with pytest.raises(InputError, match=rf"{path}: made with seed 0 \(now 3\), weights.au 10.0 \(now 2.0\); .*allow"):
        train.train(other, tiny_faces, tmp_path)
    assert checkpoint.load(path)[1]["step"] == 5
    train.train(other, tiny_faces, tmp_path, allow_changes=True)
    _, about = checkpoint.load(path)
    assert about["changes"] == [{"step": 5, "steps": [5, 6], "seed": [0, 3], "weights.au": [10.0, 2.0]}]
    longer = replace(other, steps=7, log_every=2)  # more steps, and what nothing depends on, need no word
    train.train(longer, tiny_faces, tmp_path)
    _, about = checkpoint.load(path)
    assert [change["step"] for change in about["changes"]] == [5, 6] and about["train"]["seed"] == 3
    newer = replace(tiny_faces, meta=tiny_faces.meta | {"sha256": {"images.npy": "f" * 64, "labels.csv": "f" * 64}})
    with pytest.raises(InputError, match=r"made with data.images.npy \w+ \(now f+\), data.labels.csv"):
        train.train(longer, newer, tmp_path)


def test_a_torn_line_of_the_log_is_dropped(tiny_faces: FaceData, tmp_path: Path) -> None:
    train.train(replace(TINY, steps=5), tiny_faces, tmp_path)
    log = tmp_path / "log.csv"
    whole = log.read_bytes()
    for torn in (b"1", b"5,0.3,0.", b"4,\xff\x00", b"\x00" * 40, b"4\n", b"x,y\n"):
        log.write_bytes(whole + torn)
        train.train(replace(TINY, steps=5), tiny_faces, tmp_path)
        assert log.read_bytes() == whole
    assert not list(tmp_path.glob("*.partial"))


def test_samples_take_only_their_own_rows_to_the_device(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = FaceData.open(tiny_folder), list[int]()
    pixels = FaceData.pixels
    monkeypatch.setattr(FaceData, "pixels", lambda self, *more: read.append(len(self)) or pixels(self, *more))
    train.train(replace(TINY, steps=2), data, tmp_path)
    assert data._resident == {} and len(data.subset("train")) in read
    assert all(n in (len(data.subset("train")), *range(1, 2 * TINY.n_samples + 1)) for n in read)


def test_bf16_that_is_only_emulated_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for itself in (False, True):  # T4 and V100; A100 and H100
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        supported = lambda including_emulation=True, itself=itself: itself or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        assert train.multiplies_bf16(cpu=False) == itself


def test_a_model_that_fits_no_memory_is_refused_before_it_is_built(tiny_faces: FaceData, tmp_path: Path) -> None:
    huge = replace(TINY, model=ModelConfig(512, 100, 256, 512, 1.0, 1024, 2048, 1024))
    with pytest.raises(InputError, match=r"found .* weights, expected at most 2,000,000,000"):
        build_nets(huge, tiny_faces)
