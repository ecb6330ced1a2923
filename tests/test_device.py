"""A forgotten `device=` is found without a GPU, too: tensors that only claim to be elsewhere, and raise when mixed.

`OnGPU` reports the device `meta`, holds its numbers on the CPU, and refuses what a GPU refuses: an operation on tensors
of two devices, and a conversion to numpy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from toy import PLAN, ToyRenderer

from expr_lib import train
from expr_lib.datasets import FaceData, pair_batch
from expr_lib.facs import AU_NAMES
from expr_lib.losses import ADVERSARIES
from expr_lib.measure.evaluate import evaluate
from expr_lib.measure.judges import AUJudge, IdentityJudge, Judges, judge_all
from expr_lib.measure.train_judges import JudgeConfig, train_au_judge, train_identity_judge
from expr_lib.model import ModelConfig, Swapper
from expr_lib.run import sample, table
from expr_lib.step import Batch, Nets, TakeWeights, TrainConfig, batch_of, train_step, warmup_step
from expr_lib.swap import express_images, rest_images, swap_images
from expr_lib.take_step import take_step

GPU = torch.device("meta")
COPIES = ("_to_copy", "copy_", "set_data")
INDEXING = ("index.Tensor", "index_put")  # a tensor on a GPU may be indexed by one on the CPU, not the other way round


class OnGPU(torch.Tensor):
    """A tensor that says it is on `GPU`; `value` is the tensor on the CPU that holds its numbers."""

    @staticmethod
    def __new__(cls, value: Tensor) -> OnGPU:
        self = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
            device=GPU,
        )  # fmt: skip
        self.value = value
        return self

    def __repr__(self) -> str:
        return f"OnGPU({self.value})"

    def tolist(self) -> list[Any]:
        return self.value.tolist()

    def new_tensor(self, x: Any, **kind: Any) -> Tensor:
        return torch.tensor(x, device=GPU, **{"dtype": self.dtype} | kind)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def numpy(self) -> None:
        raise TypeError("can't convert a tensor on a GPU to numpy, use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return on_device(operation, args, kwargs or {})


class Generator(torch.Generator):
    """Random numbers of any device, from the CPU."""

    def __new__(cls, device=None):
        return super().__new__(cls, "cpu")


class Pretend(TorchDispatchMode):
    """Inside, what is made with `device=GPU` is an `OnGPU`."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        with self:  # in inference mode some operations arrive whole, such as `to`
            parts = operation.decompose(*args, **kwargs or {})
        return on_device(operation, args, kwargs or {}) if parts is NotImplemented else parts


def on_device(operation, args, kwargs):
    """Run an operation on the CPU, and hand its result back on the device where a GPU would leave it."""
    name = str(operation).removeprefix("aten.")
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [isinstance(x, OnGPU) for x in tensors]
    strangers = [x for x in tensors if not isinstance(x, OnGPU) and x.dim()]  # a single number may be anywhere
    mixed = any(there) and bool(strangers) and not name.startswith(COPIES)
    if mixed and not (name.startswith(INDEXING) and there[0]):
        raise RuntimeError(f"{name}: found tensors on two devices: {[tuple(x.shape) for x in strangers]} on the CPU")
    device = kwargs.get("device")
    gpu = torch.device(device) == GPU if device is not None else there[0] if name.startswith("copy_") else any(there)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args_here, kwargs_here = tree_map(lambda x: x.value if isinstance(x, OnGPU) else x, (args, kwargs))
    result = operation(*args_here, **kwargs_here)
    if not gpu or not operation._schema.returns or name.startswith("_local_scalar"):
        return result
    first = operation._schema.arguments[0] if operation._schema.arguments else None
    if first is not None and first.alias_info is not None and first.alias_info.is_write:
        return args[0]  # in place
    return tree_map(lambda x: OnGPU(x) if isinstance(x, Tensor) else x, result)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    new_tensor = torch.tensor

    # these never reach the dispatcher
    def tensor(x: Any, device: Any = None, **kind: Any) -> Tensor:
        made = new_tensor(x, **kind)
        return made if device is None else made.to(device)

    for module in (torch, importlib.import_module("torchmetrics.functional.image.psnr")):
        monkeypatch.setattr(module, "tensor", tensor)
    monkeypatch.setattr(torch, "Generator", Generator)
    adam = importlib.import_module("torch.optim.adam")  # fused, it accepts a list of device types only
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    one = SimpleNamespace(
        device=GPU,
        num_processes=1,
        is_main_process=True,
        autocast=nullcontext,
        backward=lambda loss: loss.backward(),
    )
    monkeypatch.setattr(train, "accelerator", lambda config: one)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    with Pretend():
        yield


@pytest.fixture(scope="module")
def data() -> FaceData:
    """12 faces of 6 people, two in a take, the first of some takes at rest; one missing label."""
    rng = np.random.default_rng(0)
    au = rng.uniform(0, 5, (12, 3)).astype(np.float32)
    au[::4], au[1, 0] = 0, np.nan
    person = np.arange(12) // 2
    images = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    return FaceData(images, person, np.full(12, "train"), au, ("AU1", "AU12", "AU26"), {}, person)


@pytest.fixture(params=["drawn", "moved"])
def config(request: pytest.FixtureRequest) -> TrainConfig:
    sizes = ModelConfig(size=32, n_aus=3, c_f=4, width=32, width_r=16, width_d=8, generator=request.param)
    return TrainConfig(batch_size=2, model=sizes)


@pytest.fixture
def nets(pretend: None, config: TrainConfig, data: FaceData) -> Nets:
    return train.build_nets(config, data)


def batch(data: FaceData, config: TrainConfig, takes: bool = False) -> Batch:
    subjects = torch.from_numpy(np.unique(data.subject)).to(GPU)
    return batch_of(pair_batch(data, 0, 2, 0, GPU, takes=takes), subjects, config)


def finite_there(loss: dict[str, Tensor]) -> bool:
    return all(isinstance(x, OnGPU) and np.isfinite(x.item()) for x in loss.values())


def test_every_unpaired_step_stays_on_the_device(nets: Nets, config: TrainConfig, data: FaceData) -> None:
    pairs = batch(data, config)
    assert finite_there(warmup_step(nets, pairs, config, 0.5))
    for variant in (*({"adversary": name} for name in ADVERSARIES), {"consistency": "cycle"}):
        assert finite_there(train_step(nets, pairs, replace(config, **variant)))
    train.average(nets.ema, nets.swapper, 0.999, 5)
    assert all(isinstance(p, OnGPU) for net in (nets.swapper, nets.ema, nets.D) for p in net.parameters())


@pytest.mark.parametrize("across", ["nothing", "cycle", "hide_au", "hide_subject", "realism", "swap"])
def test_every_step_inside_takes_stays_on_the_device(
    nets: Nets, config: TrainConfig, data: FaceData, across: str
) -> None:
    weights = TakeWeights() if across == "nothing" else replace(TakeWeights(), **{across: 1.0})
    assert finite_there(take_step(nets, batch(data, config, takes=True), replace(config, take_weights=weights)))


@pytest.mark.parametrize("config", ["drawn"], indirect=True)
@pytest.mark.parametrize("forgotten", ["au_weight", "class_weight", "subject_weight", "warm_up"])
def test_a_planted_fault_is_found(nets: Nets, config: TrainConfig, data: FaceData, forgotten: str) -> None:
    pairs = batch(data, config)
    if forgotten == "warm_up":
        pairs.au = pairs.au.cpu()
    else:
        setattr(nets, forgotten, getattr(nets, forgotten).cpu())
    with pytest.raises(RuntimeError, match="two devices"):
        if forgotten == "warm_up":
            warmup_step(nets, pairs, config, 0.5)
        else:
            train_step(nets, pairs, config)


def test_a_trained_network_is_used_on_the_device(nets: Nets, data: FaceData) -> None:
    face = data.images[:2]
    nets.ema.table = table(nets.ema, data, GPU)
    assert sample(nets.ema, data, np.array([[0, 2], [1, 3]]), GPU).shape == (5 * 32, 2 * 32, 3)
    for answer in (
        *swap_images(nets.ema, face, face[::-1].copy(), torch.tensor([0.0, 0.5, 1.0])),
        express_images(nets.ema, face, {"AU12": 4.0}),
        rest_images(nets.ema, face),
    ):
        assert answer is None or answer.shape == face.shape


def test_evaluation_and_judges_stay_on_the_device(pretend: None, data: FaceData) -> None:
    class OnThisDevice(ToyRenderer):
        device = GPU

    judges = Judges(AUJudge(width=4).to(GPU).eval(), IdentityJudge(width=4).to(GPU).eval())
    judges.identity.metadata["threshold"] = 0.5
    swapper = Swapper(ModelConfig(width=32, width_r=16, generator="moved")).to(GPU).eval()
    settings = {"n_pairs": 12, "n_strata": 2, "n_probe": 20, "n_moves": 2, "n_resamples": 3, "progress": False}
    found = evaluate(swapper, PLAN, OnThisDevice(), judges, device=GPU, **settings)
    assert np.isfinite(found["rows"]["ours"]["gain"]["value"])
    assert judge_all(judges.au, data, device=GPU).shape == (12, len(AU_NAMES))


def test_judges_learn_on_the_device(pretend: None, data: FaceData) -> None:
    config = JudgeConfig(epochs=1, batch_size=6, width=4)
    for learn in (train_au_judge, train_identity_judge):
        assert all(isinstance(p, OnGPU) for p in learn(data, config, device=GPU, progress=False).parameters())
