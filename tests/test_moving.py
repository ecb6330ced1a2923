"""The second generation: pixels that move, the face at rest, takes, and editing by numbers."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from expr_lib.apps.held_out import held_out_faces
from expr_lib.checkpoint import load_swapper
from expr_lib.datasets import FaceData, pair_batch, to_float
from expr_lib.errors import InputError
from expr_lib.faces.render import load_renderer
from expr_lib.facs import AU_NAMES
from expr_lib.losses import difference_weight, take_loss
from expr_lib.measure.metrics import masked_l1, sharpness
from expr_lib.model import ModelConfig, Swapper, mean_f_r
from expr_lib.moving import AtRest, Mover, as_map, carried, resize, twice, warp
from expr_lib.run import take_gain, take_pairs
from expr_lib.step import TakeWeights, TrainConfig, batch_of
from expr_lib.swap import express_images, load, parse_expression, swap_images
from expr_lib.take_step import stranger, take_step
from expr_lib.train import build_nets, settled, train

SIZE, N = 32, 3
MODEL = ModelConfig(generator="moved", size=SIZE, n_aus=N, width=16, width_r=16, width_d=8)
TINY = TrainConfig(
    steps=6, warmup_steps=2, warmup_batch_size=4, batch_size=2, log_every=1, sample_every=6, save_every=3, n_samples=2,
    device="cpu", precision="fp32", model=replace(MODEL, generator="drawn"),
)  # fmt: skip


def take_data(n_takes: int = 6, per: int = 3) -> FaceData:
    """Takes of smooth pictures that differ in one patch, whose brightness is the AUs; the first of each is at rest."""
    rng = np.random.default_rng(0)
    n = n_takes * per
    au = rng.uniform(0, 5, (n, N)).astype(np.float32)
    au[::per] = 0
    base = torch.from_numpy(rng.uniform(40, 200, (n_takes, 3, 4, 4)))
    images = F.interpolate(base, size=SIZE, mode="bilinear").repeat_interleave(per, 0)
    for k in range(N):
        images[:, k, 8:24, 4 + 8 * k : 12 + 8 * k] += torch.from_numpy(au[:, k, None, None]) * 10
    pixels = images.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    take = np.arange(n) // per
    split = np.where(take // 2 < 2, "train", "val")
    return FaceData(pixels, take // 2, split, au, AU_NAMES[:N], {"generator": "test"}, take)


@pytest.fixture
def data() -> FaceData:
    return take_data()


def net(**sizes) -> Swapper:
    torch.manual_seed(0)
    swapper = Swapper(replace(MODEL, **sizes)).eval()
    swapper.au_names = AU_NAMES[:N]
    return swapper


# -- moving pixels -------------------------------------------------------------------------------------------------


def test_a_flow_of_0_leaves_every_pixel_and_a_whole_step_moves_it_exactly():
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    still = torch.zeros(2, 2, 16, 16)
    torch.testing.assert_close(warp(image, still), image, atol=1e-5, rtol=0)
    right = still.clone()
    right[:, 0] = 2 / 16  # each pixel taken from its right neighbour
    torch.testing.assert_close(warp(image, right)[..., :-1], image[..., 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(image, right)[..., -1], image[..., -1], atol=1e-5, rtol=0)  # border goes on
    down = still.clone()
    down[:, 1] = 2 / 16
    torch.testing.assert_close(warp(image, down)[:, :, :-1], image[:, :, 1:], atol=1e-5, rtol=0)


def test_the_flow_learns_where_a_picture_has_gone():
    place = torch.linspace(-1, 1, 32)
    blob = lambda x: torch.exp(-((place[None] - x) ** 2 + place[:, None] ** 2) / 0.1)[None, None].repeat(1, 3, 1, 1)  # noqa: E731
    flow = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.Adam([flow], 0.02)
    for _ in range(100):
        loss = F.l1_loss(warp(blob(0.0), flow[:, :, None, None].expand(1, 2, 32, 32)), blob(0.3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert flow[0].tolist() == pytest.approx([-0.3, 0], abs=0.03)


def test_an_untrained_mover_is_nearly_a_copy():
    torch.manual_seed(0)
    mover = Mover(MODEL, 5)
    picture = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    flow, mask, colours = mover.edits(picture, torch.randn(2, 5, 16, 16), torch.randn(2, N, MODEL.d))
    assert flow.shape == (2, 2, 64, 64) and mask.shape == (2, 1, 64, 64) and colours.shape == (2, 3, 64, 64)
    assert (
        flow.abs().max() < 0.01 and mask.mean().item() == pytest.approx(0.047, abs=0.005) and colours.abs().max() < 0.1
    )


def test_lost_detail_follows_the_flow_and_is_left_out_where_something_is_painted():
    lost = torch.rand(2, 3, 16, 16) - 0.5
    still, none, all_, gray = (torch.full((2, c, 8, 8), x) for c, x in ((2, 0.0), (1, 0.0), (1, 1.0), (3, 0.0)))
    torch.testing.assert_close(carried(lost, (still, none, gray)), lost, atol=1e-5, rtol=0)
    assert not carried(lost, (still, all_, gray)).any()
    right = still.clone()
    right[:, 0] = 2 / 16
    torch.testing.assert_close(carried(lost, (right, none, gray))[..., :-1], lost[..., 1:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_face_at_rest_has_the_detail_that_two_warps_would_lose():
    plan, swapper = held_out_faces(128), load()
    pixels, mask = plan.render(load_renderer(), np.arange(8))
    image = to_float(pixels).permute(0, 3, 1, 2)
    features = swapper.E(image)
    f_f, f_r = swapper.DG.disentangle(features, image)
    plain = AtRest(swapper.DG.take(image, features, f_r), f_f.map)
    detailed, soft = (swapper.generate(x, f_r) for x in (f_f, plain))
    assert (sharpness(detailed, image, mask) > sharpness(soft, image, mask)).all()
    assert masked_l1(detailed, image, mask).mean() < 0.9 * masked_l1(soft, image, mask).mean()


def test_the_lost_detail_teaches_take_but_not_put():
    swapper = net().train()
    f_f, _ = swapper.encode(torch.rand(2, 3, SIZE, SIZE) * 2 - 1)
    f_f.face.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in swapper.DG.take.parameters())
    assert all(p.grad is None for p in swapper.DG.put.parameters())


@pytest.mark.parametrize("size", [32, 64, 96, 200])
def test_a_picture_of_any_size_is_moved_at_its_own_resolution(size):
    swapper, image = net(), torch.rand(2, 3, size, size) * 2 - 1
    f_f, f_r = swapper.encode(image)
    assert f_f.face.shape == image.shape and f_f.map.shape == (2, MODEL.c_f, 16, 16) and f_r.shape == (2, N, MODEL.d)
    assert swapper.rest(f_f) is f_f.face and as_map(f_f).shape == (2, 48 + MODEL.c_f, 16, 16)
    assert swapper.generate(f_f, f_r).shape == image.shape
    seen = swapper.encode(image, resize(image, SIZE))
    torch.testing.assert_close(seen[1], f_r)
    pixels = np.zeros((2, size, size, 3), np.uint8)
    assert all(x.shape == pixels.shape for x in swap_images(swapper, pixels, pixels))


def test_two_faces_of_different_sizes_keep_their_own():
    small, large = np.zeros((40, 40, 3), np.uint8), np.full((64, 64, 3), 99, np.uint8)
    a, b = swap_images(net(), small, large)
    assert a.shape == small.shape and b.shape == large.shape
    with pytest.raises(ValueError, match=r"a: found uint8 of shape \(40, 50, 3\), expected .* \(B, R, R, 3\)"):
        swap_images(net(), np.zeros((40, 50, 3), np.uint8), large)


def test_rows_of_faces_at_rest_are_chosen_together():
    f_f = AtRest(torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2), torch.arange(4.0)[:, None, None, None])
    assert len(f_f) == 4 and f_f[[2, 0]].face[:, 0, 0, 0].tolist() == [2, 0] == f_f[[2, 0]].map.flatten().tolist()
    assert twice(f_f).map.flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert torch.equal(as_map(f_f.face), f_f.face)


# -- losses and step -----------------------------------------------------------------------------------------------


def test_take_loss_is_the_weighted_l1_at_three_scales():
    target, weight = torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    assert take_loss(target, target, weight).item() == 0
    assert take_loss(target + 0.5, target, weight).item() == pytest.approx(0.5)
    checkered = torch.ones(8, 8)
    checkered[::2, ::2] = checkered[1::2, 1::2] = -1
    # a checkerboard vanishes at the coarser scales, so a third of it is left
    assert take_loss(target + checkered, target, weight).item() == pytest.approx(1 / 3)
    weight[1] = 0
    assert take_loss(target + torch.tensor([0.2, 9.0])[:, None, None, None], target, weight).item() == pytest.approx(
        0.2
    )


def test_difference_weight_has_mean_1_and_lies_where_two_images_differ():
    a, b = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    assert torch.equal(difference_weight(a, b), torch.ones(1, 1, 16, 16))
    b[..., 4:8, 4:8] = 1
    weight = difference_weight(a, b)
    assert weight.mean().item() == pytest.approx(1) and weight[0, 0, 6, 6] > 10 * weight[0, 0, 14, 14]


def nets_and_batch(data: FaceData, **config):
    learn = data.subset("train")
    c = settled(replace(TINY, **config), learn)
    nets = build_nets(c, learn)
    torch.manual_seed(1)
    pairs = pair_batch(learn, 0, c.batch_size, 0, takes=True)
    return nets, batch_of(pairs, torch.from_numpy(np.unique(learn.subject)), c), c


def test_the_images_of_a_take_are_mirrored_together(data):
    _, batch, _ = nets_and_batch(data, batch_size=64)
    outside = batch.x[:, :, 26:]  # images of a take differ in rows 8 to 24 only
    assert torch.equal(outside[:64], outside[64:]) and torch.equal(batch.rest[:, :, 26:], outside)
    assert batch.has_rest.all() and not torch.equal(batch.x[:64], batch.x[64:])


def test_reconstruction_does_not_reach_f_r_and_the_reading_does_not_reach_the_movers(data):
    def gradients(weights: TakeWeights) -> set[str]:
        nets, batch, c = nets_and_batch(data, take_weights=weights)
        before = {name: p.clone() for name, p in nets.swapper.named_parameters()}
        take_step(nets, batch, c)
        return {
            name.rsplit(".", 1)[0] for name, p in nets.swapper.named_parameters() if not torch.equal(p, before[name])
        }

    pictures = gradients(TakeWeights(au=0.0, guide=0.0))
    assert not any(name.startswith("DG.related") for name in pictures)
    assert any(name.startswith("DG.take") for name in pictures) and any(name.startswith("DG.put") for name in pictures)
    reading = gradients(TakeWeights(take=0.0, rest=0.0, guide=0.0))
    assert any(name.startswith("DG.related") for name in reading)
    assert not any(name.startswith(("DG.take", "DG.put", "DG.free")) for name in reading)


@pytest.mark.parametrize("generator", ["moved", "drawn"])
def test_every_loss_across_people_can_be_added(data, generator):
    everything = TakeWeights(guide=1, cycle=1, hide_au=1, hide_subject=1, realism=1, swap=1)
    nets, batch, c = nets_and_batch(data, take_weights=everything, generator=generator)
    loss = take_step(nets, batch, c)
    names = {"au", "take", "guide", "cycle", "hide_au", "hide_subject", "realism", "swap", "G"}
    names |= {"D_realism", "D_swap", "D_f", "D_r"} | ({"rest"} if generator == "moved" else set())
    assert set(loss) == names and all(value.isfinite() for value in loss.values())
    weighted = sum(getattr(everything, k) * v for k, v in loss.items() if hasattr(everything, k))
    assert loss["G"].item() == pytest.approx(weighted.item(), rel=1e-5)
    assert stranger(stranger(batch.x), back=True).equal(batch.x)


def test_without_an_image_at_rest_the_two_faces_at_rest_of_a_take_are_compared(data):
    au = data.au.copy()
    au[au == 0] = 1
    restless = FaceData(data.images, data.subject, data.split, au, data.au_names, data.meta, data.take)
    nets, batch, c = nets_and_batch(restless)
    assert not batch.has_rest.any()
    assert take_step(nets, batch, c)["rest"].isfinite()


def test_takes_decide_how_training_is_supervised(data):
    learn = data.subset("train")
    alone = FaceData(learn.images, learn.subject, learn.split, learn.au, learn.au_names, learn.meta)
    assert (settled(TINY, learn).supervision, settled(TINY, learn).generator) == ("takes", "moved")
    assert (settled(TINY, alone).supervision, settled(TINY, alone).generator) == ("unpaired", "drawn")
    both = replace(TINY, supervision="takes", generator="drawn")
    assert settled(both, learn).model.generator == "drawn"
    with pytest.raises(ValueError, match="supervision takes: found no take with two images"):
        settled(both, alone)


def test_a_small_set_of_takes_is_learned(data):
    nets, batch, c = nets_and_batch(data, batch_size=4, take_weights=TakeWeights(guide=0.0))
    for group in nets.opt_G.param_groups:
        group["lr"] = 2e-3
    first = take_step(nets, batch, c)
    for _ in range(80):
        last = take_step(nets, batch, c)
    assert last["take"] < 0.7 * first["take"] and last["rest"] < 0.95 * first["rest"]


def test_a_run_on_takes_that_is_interrupted_ends_with_the_same_bits(data, tmp_path, monkeypatch):
    whole = train(TINY, data, tmp_path / "whole")
    from expr_lib import run as run_module

    real = run_module.Run.after

    def stop(self, step, loss):
        real(self, step, loss)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module.Run, "after", stop)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, data, tmp_path / "broken")
    monkeypatch.setattr(run_module.Run, "after", real)
    resumed = load_swapper(train(TINY, data, tmp_path / "broken"))
    expected = load_swapper(whole)
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), expected.state_dict().values(), strict=True)
    )
    assert torch.equal(resumed.table, expected.table) and expected.config.generator == "moved"


def test_the_gain_in_the_log_is_0_for_a_copy_and_1_for_the_other_image_of_the_take(data):
    images, pairs = take_pairs(data, 0)
    assert set(images.split) == {"val"} if (data.split == "val").any() else {"train"}
    assert (images.take[pairs[:, 0]] == images.take[pairs[:, 1]]).all() and (pairs[:, 0] != pairs[:, 1]).all()

    class Fixed:
        def __init__(self, copy: bool) -> None:
            self.copy = copy

        def encode(self, image):
            return image, image

        def generate(self, f_f, f_r):
            return f_f if self.copy else f_r

    assert take_gain(Fixed(True), images, pairs, torch.device("cpu")) == 0
    assert take_gain(Fixed(False), images, pairs, torch.device("cpu")) == 1


def test_the_log_of_a_run_on_takes_has_the_gain_whenever_a_picture_is_made(data, tmp_path):
    train(replace(TINY, sample_every=3, log_every=2, steps=6), data, tmp_path)
    with (tmp_path / "log.csv").open() as file:
        found = {int(row["step"]): row["gain"] for row in csv.DictReader(file)}
    assert [step for step, gain in found.items() if gain] == [3, 6] and -5 < float(found[6]) < 1


def changed_parts(before: Swapper, after: Swapper) -> set[str]:
    names = {name: name.removeprefix("DG.").split(".")[0] for name in before.state_dict()}
    pairs = zip(before.state_dict().items(), after.state_dict().values(), strict=True)
    return {names[name] for (name, a), b in pairs if not torch.equal(a, b)}


def test_takes_without_labels_teach_take_and_put_while_the_au_branch_reads(data, tmp_path, capsys):
    first = train(TINY, data, tmp_path / "first")
    films = replace(data, au=np.full_like(data.au, np.nan), subject=np.zeros_like(data.subject))
    films = films[films.split == "train"]  # of one person
    with pytest.raises(InputError, match="labels: found none"):
        train(TINY, films, tmp_path / "alone")
    capsys.readouterr()
    path = train(replace(TINY, seed=1), films, tmp_path / "films", first)
    before, after = load_swapper(first), load_swapper(path)
    assert "E and the AU branch stay as they are" in capsys.readouterr().out
    assert changed_parts(before, after) == {"free", "take", "put"}
    assert torch.equal(after.table, before.table)
    gone = tmp_path / "gone.safetensors"  # a run that goes on reads nothing but its own checkpoint
    train(replace(TINY, seed=1, steps=3), films, tmp_path / "again", first)
    again = train(replace(TINY, seed=1), films, tmp_path / "again", gone, allow_changes=True)
    assert "--start-from counts for nothing" in capsys.readouterr().out
    assert torch.equal(load_swapper(again).table, before.table)
    assert changed_parts(before, load_swapper(again)) == {"free", "take", "put"}


def test_what_changes_when_a_run_goes_on_is_told(data, tmp_path, capsys):
    first = train(TINY, data, tmp_path / "first")
    config = replace(TINY, warmup_steps=0)
    run = train(config, data, tmp_path / "run", first)
    assert "AU heads of" in capsys.readouterr().out
    other = replace(config, steps=8, log_every=2)
    train(other, data, tmp_path / "run", run)  # its own weights are no start
    told = capsys.readouterr().out
    assert "this run exists and goes on with its own weights; --start-from counts for nothing" in told
    assert "changed from step 6 on: " in told and "steps 6 (now 8)" in told and "log_every 1 (now 2)" in told
    assert "AU heads" not in told and load_swapper(run).metadata["start"]["from"] == str(first)
    with pytest.raises(InputError, match=r"made with take_lr 0\.0004"):
        train(replace(other, take_lr=1e-3), data, tmp_path / "run", first)


# -- editing by numbers --------------------------------------------------------------------------------------------


def test_the_table_holds_means_and_straight_lines_between_them():
    au = torch.tensor([[0.0, 0.0, 2.0], [0.2, torch.nan, 2.0], [4.0, 5.0, 2.0], [3.8, 5.0, 2.0]])
    f_r = torch.arange(12.0).view(4, 3, 1).expand(4, 3, 2)
    table = mean_f_r(f_r, au)
    assert table.shape == (3, 6, 2)
    assert table[0, :, 0].tolist() == pytest.approx([1.5, 3, 4.5, 6, 7.5, 9])  # 0 and 4 are shown
    assert table[1, :, 0].tolist() == pytest.approx([1, 2.5, 4, 5.5, 7, 8.5])  # 0 and 5
    assert table[2, :, 0].tolist() == pytest.approx([6.5] * 6)  # 2 alone


def test_f_r_of_an_intensity_lies_between_two_rows_of_the_table():
    swapper = net()
    with pytest.raises(ValueError, match="no table of f_r"):
        swapper.f_r_of(torch.zeros(1, N))
    swapper.table = torch.arange(6.0)[None, :, None].expand(N, 6, MODEL.d)
    au = torch.tensor([[0.0, 2.5, 5.0]])
    torch.testing.assert_close(swapper.f_r_of(au), au[:, :, None].expand(1, N, MODEL.d))


def test_only_what_is_asked_for_changes():
    swapper = net()
    swapper.table = torch.randn(N, 6, MODEL.d)
    seen = {}
    swapper.DG.put.register_forward_hook(lambda module, given, out: seen.update(f_r=given[2]))
    face = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    second = AU_NAMES[1]
    own = swapper.encode(torch.from_numpy(face).permute(2, 0, 1)[None].float() / 127.5 - 1)[1]
    assert express_images(swapper, face, {second: 4.0}).shape == face.shape
    torch.testing.assert_close(seen["f_r"][:, 1], swapper.table[1, 4][None])
    torch.testing.assert_close(seen["f_r"][:, [0, 2]], own[:, [0, 2]])
    express_images(swapper, face, {second: 4.0}, from_rest=True)
    torch.testing.assert_close(seen["f_r"][:, 0], swapper.table[0, 0][None])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("AU99=1",), "AU99=1: found action unit 'AU99', expected one of AU1"),
        (("AU12=6",), r"AU12=6: found intensity 6, expected 0 \(absent\) to 5"),
        (("AU12=-0.1",), "AU12=-0.1: found intensity -0.1"),
        (("AU12=nan",), "AU12=nan: found intensity nan"),
        (("AU12=1", "AU12=2"), "AU12=2: found AU12 twice"),
        (("AU12",), "AU12: found '' after =, expected a number"),
        (("AU12=high",), "AU12=high: found 'high' after ="),
        ((), "no action unit"),
    ],
)
def test_a_wrong_expression_is_told_in_one_line(words, message):
    with pytest.raises(ValueError, match=message):
        parse_expression(words, AU_NAMES)


def test_an_expression_is_read():
    assert parse_expression(("AU12=4", "AU6=2.5"), AU_NAMES) == {"AU12": 4.0, "AU6": 2.5}
