"""Muon: nearly orthogonal updates of the movers' convolutions, and Adam, to the bit, for everything else."""

import pytest
import torch

from expr_lib.blocks import ModelConfig
from expr_lib.model import Swapper
from expr_lib.muon import Muon, muon, orthogonalized

CONFIG = ModelConfig(size=64, n_aus=3, width=16, width_r=16, generator="moved")


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (32, 32), (5, 8, 24)])
def test_all_singular_values_become_about_1(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = torch.linalg.svdvals(orthogonalized(matrix))
    assert 0.3 < found.min() and found.max() < 1.25


def test_directions_are_kept():
    left, right = (torch.linalg.qr(torch.randn(8, 8))[0] for _ in range(2))
    values = torch.tensor([8.0, 5.0, 3.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    back = left.T @ orthogonalized(left * values @ right) @ right.T
    assert torch.allclose(back, back.diagonal().diag_embed(), atol=1e-4) and (back.diagonal() > 0.5).all()


def test_a_step_has_the_direction_of_the_orthogonalized_gradient_whatever_its_length():
    gradient = torch.randn(4, 2, 3, 3)
    for length in (1e-3, 1.0, 1e3):
        weight = torch.nn.Parameter(torch.zeros(4, 2, 3, 3))
        optimizer = Muon([{"params": [weight], "muon": True}], lr=0.01)
        weight.grad = length * gradient
        optimizer.step()
        expected = -0.01 * 0.2 * 18**0.5 * orthogonalized(gradient.flatten(1)).view_as(weight)
        assert torch.allclose(weight, expected, atol=1e-6)
        assert optimizer.state[weight].keys() == {"step", "exp_avg"}


def test_the_other_weights_are_updated_by_adam():
    nets = [Swapper(CONFIG), Swapper(CONFIG)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours, adam = muon(nets[0], 1e-3), torch.optim.Adam(nets[1].parameters(), 1e-3, betas=(0.9, 0.99), fused=True)
    for _ in range(3):
        for one, other in zip(*(net.parameters() for net in nets), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ours.step(), adam.step()
    by_muon = {id(weight) for weight in ours.param_groups[1]["params"]}
    for (name, one), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other) == (id(one) not in by_muon), name


def test_muon_has_the_convolutions_inside_the_movers():
    swapper = Swapper(CONFIG)
    names = {id(weight): name for name, weight in swapper.named_parameters()}
    found = {names[id(weight)] for weight in muon(swapper, 1e-3).param_groups[1]["params"]}
    assert {"DG.take.block1.conv1.weight", "DG.put.coarse.weight", "DG.put.up64.weight"} < found
    assert not any(part in name for name in found for part in ("E.", "related", "free", "fine", "flow", "fill", "bias"))
    assert len(muon(swapper, 1e-3, use=False).param_groups) == 1
    assert len(muon(Swapper(ModelConfig(generator="drawn")), 1e-3).param_groups) == 1
