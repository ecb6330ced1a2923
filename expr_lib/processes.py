"""Random numbers and means over a batch that is split among several processes.

Each of n processes (on CPUs, GPUs or machines; `accelerate launch` or `torchrun` starts them) holds the same weights
and its part of the same batch. With these functions and averaged gradients, n processes take the same step as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """Number of processes that train together, at least 1."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def part(whole: Tensor) -> Tensor:
    """This process's part of a batch that holds all a and then all b: (2B, ...) -> (2B / n, ...)."""
    if count() == 1:
        return whole
    return whole.unflatten(0, (2, count(), -1))[:, dist.get_rank()].flatten(0, 1)


def draw(kind: Callable[..., Tensor], rows: int, *shape: int, device: torch.device) -> Tensor:
    """This process's part (rows, *shape) of what `torch.rand` or `torch.randn` draws for the whole batch."""
    return part(kind(rows * count(), *shape, device=device))


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        t = t.clone()
        dist.all_reduce(t)
        return t / count()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:  # the mean is self-adjoint
        return _Mean.apply(grad[0])  # type: ignore[no-untyped-call]


def mean(t: Tensor) -> Tensor:
    """The mean of a tensor over the processes; differentiable, with the gradient of the mean of all losses."""
    return t if count() == 1 else _Mean.apply(t)  # type: ignore[no-untyped-call]
