"""What a notebook builds inline agrees, number by number, with what the library has under the same name."""

from __future__ import annotations
import __future__

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from expr_lib import blocks, datasets, losses, model, moving, step, take_step, train
from expr_lib.faces.plan import FacesConfig, plan_faces
from expr_lib.facs import AU_NAMES
from expr_lib.measure import metrics
from expr_lib.step import TrainConfig

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def inline(notebook: str, *names: str, **given: Any) -> SimpleNamespace:
    """The functions of these names, as the code cells of a notebook define them; `given` is what they call besides."""
    cells = nbformat.read(next(NOTEBOOKS.glob(f"{notebook}_*.ipynb")), as_version=4).cells
    nodes = [node for cell in cells if cell.cell_type == "code" for node in ast.parse(cell.source).body]
    found = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    scope: dict[str, Any] = {"torch": torch, "F": F, "np": np, "nn": nn, "Tensor": Tensor} | given
    flags = __future__.annotations.compiler_flag  # annotations stay text: they need no import
    for name in names:
        exec(compile(ast.Module([found[name]], []), f"notebook {notebook}: {name}", "exec", flags), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


def test_a_name_that_no_cell_defines_is_noticed():
    with pytest.raises(KeyError, match="no_such_function"):
        inline("00", "no_such_function")


# -- 02 Why an autoencoder tangles ---------------------------------------------------------------------------------


def test_02_swap_of_halves():
    swapper = model.Swapper(model.ModelConfig(size=16, n_aus=3, width=16, width_r=16)).eval()
    a, b = torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = swapper.swap(a, b)
    for image, other in zip(inline("02", "swap_halves").swap_halves(swapper, a, b), expected, strict=True):
        torch.testing.assert_close(image, other)


def test_02_balanced_accuracy():
    g = torch.Generator().manual_seed(0)
    read, true = (torch.rand(50, 4, generator=g) < share for share in (0.6, 0.3))
    found = inline("02", "balanced_accuracy").balanced_accuracy(read.numpy(), true.numpy())
    assert found == pytest.approx(float(metrics.leak_au(read.double(), 5.0 * true)))


# -- 03 Adversarial disentanglement --------------------------------------------------------------------------------


def test_03_multi_class_adversary():
    here = inline("03", "mean_over_labels", "class_weights", "class_discriminator_loss", "class_confusion_loss")
    g = torch.Generator().manual_seed(0)
    score, cls = torch.randn(40, 5, 4, generator=g), torch.randint(0, 4, (40, 5), generator=g) % 3
    cls[0] = 3  # rare, and there
    weight = losses.class_weights(cls, 4)
    torch.testing.assert_close(here.class_weights(cls, 4), weight)
    for name in ("class_discriminator_loss", "class_confusion_loss"):
        torch.testing.assert_close(getattr(here, name)(score, cls, weight), getattr(losses, name)(score, cls, weight))


def test_03_balanced_accuracy():
    g = torch.Generator().manual_seed(0)
    score, cls = torch.randn(60, 4, 2, generator=g), torch.randint(0, 2, (60, 4), generator=g)
    found = inline("03", "balanced_accuracy").balanced_accuracy(score, cls)
    assert found == pytest.approx(float(metrics.leak_au(score.argmax(-1).double(), 5.0 * cls)))


# -- 04 Swapping and swap consistency ------------------------------------------------------------------------------


def test_04_losses_of_pictures():
    here = inline("04", "reconstruction_loss", "lsgan_d_loss", "lsgan_g_loss")
    x, y = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for name in ("reconstruction_loss", "lsgan_d_loss"):
        torch.testing.assert_close(getattr(here, name)(x, y), getattr(losses, name)(x, y))
    torch.testing.assert_close(here.lsgan_g_loss(x), losses.lsgan_g_loss(x))


def test_04_one_training_step_ends_with_the_librarys_weights(tiny_faces: datasets.FaceData):
    learn = tiny_faces.subset("train")
    c = TrainConfig(
        batch_size=3, precision="fp32", device="cpu",
        model=model.ModelConfig(size=16, n_aus=3, width=16, width_r=16, width_d=8, conditional=False),
        weights=step.Weights(hide_subject=0.0),
    )  # fmt: skip
    here = inline(
        "04", "optimizer_step", "partner", "both_passes", "reconstruction_loss", "lsgan_d_loss", "lsgan_g_loss",
        "update_D", "update_G",
        Passes=step.Passes, augment=step.augment, frozen=step.frozen, au_loss=losses.au_loss,
        class_confusion_loss=losses.class_confusion_loss, agreement_loss=losses.agreement_loss,
        class_discriminator_loss=losses.class_discriminator_loss,
    )  # fmt: skip
    after = []
    for own in (here, step):
        nets = train.build_nets(c, learn)
        for optimizer in (nets.opt_G, nets.opt_D, nets.opt_f):
            optimizer.param_groups[0]["eps"] = 1e-4  # or Adam's first step follows the sign of what is only rounding
        nets.swapper.warm = True
        nets.swapper.train()
        pairs = datasets.pair_batch(learn, 0, c.batch_size, 0)
        torch.manual_seed(0)
        batch = step.batch_of(pairs, torch.from_numpy(np.unique(learn.subject)), c)
        torch.manual_seed(1)  # f_f is noisy: the passes of both must draw the same noise
        out = own.both_passes(nets.swapper, batch.x, True)
        torch.manual_seed(2)
        loss = own.update_D(nets, batch, out, c) | own.update_G(nets, batch, out, c)
        after.append((loss, nets.swapper.state_dict(), nets.D.state_dict(), nets.D_f.state_dict()))
    (loss, *networks), (expected, *expected_networks) = after
    del expected["D_r"], expected["hide_subject"]  # the notebook leaves D_r out
    torch.testing.assert_close(loss, expected)
    for network, expected_network in zip(networks, expected_networks, strict=True):
        torch.testing.assert_close(network, expected_network, rtol=1e-4, atol=2e-5)


# -- 05 Training for real ------------------------------------------------------------------------------------------


def test_05_learning_rate_and_decay(tiny_faces: datasets.FaceData):
    here = inline("05", "learning_rate", "decay")
    c = TrainConfig(steps=1000, warmup_steps=200)
    w = nn.Parameter(torch.zeros(1))
    nets = SimpleNamespace(**{name: torch.optim.Adam([w]) for name in ("opt_G", "opt_D", "opt_f")})
    for done in (0, 1, 3, 100, 199, 200, 350, 600, 701, 999):
        train.set_learning_rates(nets, c, done)
        assert here.learning_rate(c, done) == pytest.approx(nets.opt_G.param_groups[0]["lr"])
        ema, model = nn.Linear(1, 1), nn.Linear(1, 1)
        ema.weight.data.fill_(1.0), model.weight.data.fill_(0.0)
        train.average(ema, model, c.ema, done)
        assert here.decay(done, c) == pytest.approx(ema.weight.item())


# -- 06 Does it work? ----------------------------------------------------------------------------------------------


def test_06_measures():
    here = inline("06", "masked_l1", "gain", "transfer_score", "icc31", "partial_correlation", "identity_kept")
    g = torch.Generator().manual_seed(0)
    image, truth = torch.randn(2, 6, 3, 8, 8, generator=g)
    mask = torch.rand(6, 8, 8, generator=g) < 0.5
    torch.testing.assert_close(here.masked_l1(image, truth, mask), metrics.masked_l1(image, truth, mask))
    swap, self_, true = torch.rand(3, 50, generator=g)
    torch.testing.assert_close(here.gain(swap, self_), metrics.gain(swap, self_))
    torch.testing.assert_close(
        here.transfer_score(swap, self_, true), metrics.transfer_score(swap, self_, true), equal_nan=True
    )
    x, y, z = torch.rand(3, 50, 4, generator=g).double()
    torch.testing.assert_close(here.icc31(x, y), metrics.icc31(x, y))
    torch.testing.assert_close(here.partial_correlation(x, y, z), metrics.partial_correlation(x, y, given=z))
    torch.testing.assert_close(here.identity_kept(x[:, 0], 0.4), metrics.identity_kept(x[:, 0], 0.4))


def test_06_bootstrap_over_people():
    here, person = inline("06", "bootstrap"), np.arange(40) // 4
    values = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = here.bootstrap(lambda rows: float(values[rows].mean()), person, 200, seed=3)
    expected = metrics.bootstrap(lambda rows: values[rows].mean(), person, n_resamples=200, seed=3)
    assert found == pytest.approx([float(x) for x in expected])


# -- 07 The feature spaces -----------------------------------------------------------------------------------------


def test_07_scores_of_neighbours():
    here = inline("07", "vote", "agreement", "company", "neighbours", "kept", NearestNeighbors=NearestNeighbors)
    rng = np.random.default_rng(0)
    group, values = np.repeat(np.arange(10), 6), rng.random((60, 2))
    r = metrics.pearson(*(torch.from_numpy(x) for x in (values, values[::-1].copy())))
    np.testing.assert_allclose(here.agreement(values, values[::-1]), r.numpy())
    # points that are the values: strangers near by have nearly the same; of one's own group nobody votes
    assert (here.agreement(here.vote(values, values, group, k=3), values) > 0.9).all()
    own, shared = np.eye(10)[group] + 0.01 * rng.random((60, 10)), rng.random((10, 2))[group]  # a place, a value each
    assert (here.agreement(here.vote(own, shared, group, k=5), shared) < 0.5).all()
    assert here.company(own, group, k=5) == pytest.approx(1 / (5 / 59))
    assert here.company(rng.random((60, 3)), group, k=5) < 2.5
    assert here.kept(values, values) == 1.0 and here.kept(values, rng.random((60, 2))) < 0.5


# -- 10 A generator that moves -------------------------------------------------------------------------------------


def test_10_bilinear_sampling_and_its_slope():
    here = inline("10", "bilinear", "warp_by_hand", "slope")
    g = torch.Generator().manual_seed(0)
    image, flow = torch.rand(2, 3, 8, 8, generator=g).double(), 0.4 * torch.randn(2, 2, 8, 8, generator=g).double()
    centre = (torch.arange(8).double() + 0.5) / 4 - 1
    place = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1) + flow.permute(0, 2, 3, 1)
    expected = F.grid_sample(image, place, padding_mode="border", align_corners=False)
    torch.testing.assert_close(here.warp_by_hand(image, flow), expected)
    torch.testing.assert_close(here.warp_by_hand(image, 0 * flow), image)
    place = torch.tensor([5.25, 3.5], dtype=torch.double, requires_grad=True)
    value = here.bilinear(image[:1, :1], *place.reshape(2, 1, 1, 1)).sum()
    (gradient,) = torch.autograd.grad(value, place)
    torch.testing.assert_close(torch.stack(here.slope(image[0, 0], 5.25, 3.5)), gradient)


def test_10_mover_is_the_librarys():
    here = inline("10", "warp", "edited", "edits", "Mover", Block=blocks.Block, norm=blocks.norm)
    c = model.ModelConfig(n_aus=3, d=2, width=16, generator="moved")
    own, library = here.Mover(c, 5), moving.Mover(c, 5)
    for p in library.parameters():  # flow and mask that are not nothing
        nn.init.normal_(p, 0, 0.2)
    own.load_state_dict(library.state_dict())
    picture, map, f_r = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 5, 16, 16), torch.randn(2, 3, 2)
    assert library.edits(picture, map, f_r)[0].abs().max() > 0.1
    torch.testing.assert_close(own(picture, map, f_r), library(picture, map, f_r), rtol=1e-4, atol=1e-5)


def test_10_the_lost_detail_is_carried_as_in_the_library():
    here = inline("10", "warp", "carried")
    lost, edit = torch.rand(2, 3, 64, 64) - 0.5, (0.1 * torch.randn(2, 2, 64, 64), torch.rand(2, 1, 64, 64), None)
    torch.testing.assert_close(here.carried(lost, edit), moving.carried(lost, (*edit[:2], lost)))


def test_10_losses_of_a_take_step(monkeypatch):
    faces = FacesConfig(n_subjects=2, images_per_subject=3, images_per_take=3, size=64, val=0.0, test=0.0)
    plan = plan_faces(faces)
    pixels = torch.randint(256, (6, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    data = datasets.FaceData(pixels, plan.subject.numpy(), plan.split, plan.au.numpy(), AU_NAMES, {}, plan.take.numpy())
    c = TrainConfig(
        batch_size=3, precision="fp32", device="cpu", supervision="takes",
        take_weights=step.TakeWeights(au=0.0, guide=0.0, take=1.0, rest=1 / 3),
        model=model.ModelConfig(width=16, width_r=16, width_d=8, generator="moved"),
    )  # fmt: skip
    nets = train.build_nets(c, data)
    swapper = nets.swapper.eval()  # no noise, no dropout
    batch = step.batch_of(datasets.pair_batch(data, 0, 3, 0, takes=True), torch.arange(2), c)
    monkeypatch.setattr(model, "carried", lambda lost, edit: 0 * lost)  # the notebook adds it after the training
    for name, change in {"ITSELF": 0.0, "end_warmup": lambda s: None, "augment": lambda x, **how: x}.items():
        monkeypatch.setattr(take_step, name, change)
    with torch.no_grad():
        features = swapper.E(batch.x)
    network = SimpleNamespace(
        put=swapper.DG.put, parameters=swapper.DG.parameters,
        rest=lambda image, features, f_r: (swapper.DG.take(image, features, f_r), swapper.DG.free(features)),
    )  # fmt: skip
    here = inline(
        "10", "difference_weight", "take_loss", "take_step", image=torch.cat([batch.x, batch.rest]), f_r=None,
        features=features,
    )  # fmt: skip
    i = torch.arange(6)
    here.take_step.__globals__["f_r"] = swapper.DG.related(features).detach()
    loss = here.take_step(network, torch.optim.SGD(swapper.parameters(), 0.0), i, i.roll(3), i + 6, heavy=True)
    torch.testing.assert_close(loss, take_step.take_step(nets, batch, c)["G"].detach())


# -- 11 The network ------------------------------------------------------------------------------------------------


def test_11_film_and_gates():
    here = inline("11", "film", "block_by_hand", "painted")
    g = torch.Generator().manual_seed(0)
    block, x, style = blocks.Block(16, 6), torch.randn(2, 16, 4, 4, generator=g), torch.randn(2, 6, generator=g)
    torch.testing.assert_close(here.block_by_hand(block, x, style), block(x, style))
    G = model.G(model.ModelConfig(n_aus=3, d=2, width=16))
    f_r = torch.randn(2, 3, 2, generator=g)
    torch.testing.assert_close(here.painted(G.gate(x).sigmoid(), f_r, G.paint), G.painted(x, f_r))
