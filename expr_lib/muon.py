"""Muon for the convolutions inside the movers; Adam for all other weights.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces the gradient of a weight matrix, after
momentum, by the nearest matrix whose singular values are all about 1, so that a step changes the layer equally in
every direction. Adam scales each number alone, and most of its steps lie in a few directions. `benchmarks/ablations.py`
compares the two inside takes.

torch's own Muon takes matrices only; here a convolution (c_out, c_in, k, k) counts as the matrix (c_out, c_in k k).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
FASTER = 2.5
"""The learning rate of Muon, in multiples of Adam's. Our choice; with 1 the first 400 steps are slower."""


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values of about 1, (..., m, n) -> (..., m, n).

    Five Newton-Schulz steps of degree 5 with Jordan's coefficients bring every singular value that is not tiny to
    between 0.7 and 1.2, which is near enough and much cheaper than a singular value decomposition.
    """
    x = matrix.float()
    x = x if (wide := x.shape[-2] <= x.shape[-1]) else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


class Muon(torch.optim.Adam):
    """Adam whose groups with `muon=True` are updated by Muon, with Nesterov momentum.

    The state of a weight in such a group is `step` and `exp_avg`, the mean gradient. An update has a root mean square
    of about 0.2, like one by Adam (Liu et al., Muon is Scalable for LLM Training, 2025), so `lr` means the same.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"] if group.get("muon") else ():
                if (grad := weight.grad) is None:
                    continue
                if not (state := self.state[weight]):
                    state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight)}
                state["step"] += 1
                mean = state["exp_avg"].lerp_(grad, 1 - MOMENTUM)
                update = orthogonalized(grad.lerp(mean, MOMENTUM).flatten(1))
                weight.sub_(update.view(weight.shape), alpha=0.2 * max(update.shape) ** 0.5 * group["lr"])
                weight.grad = None  # so that Adam leaves it as it is
        return super().step(closure)


def muon(net: nn.Module, lr: float, use: bool = True) -> Muon:
    """The optimizer of a swapper inside takes.

    Muon updates the convolutions inside the movers, except those next to the pixels, `fine`, `flow` and `fill`. A drawn
    generator has none; without `use` there are none either, and Adam updates everything.
    """
    inside, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, weight in net.named_parameters():
        mover = use and (".take." in name or ".put." in name) and name.split(".")[-2] not in ("fine", "flow", "fill")
        (inside if mover and weight.ndim == 4 else others).append(weight)
    groups: list[dict[str, Any]] = [{"params": others}]
    if inside:
        groups.append({"params": inside, "muon": True, "faster": FASTER})
    return Muon(groups, lr, betas=(0.9, 0.99), fused=True)
