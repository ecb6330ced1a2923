"""What the networks promise about shapes, ranges, mixing and what f_f may carry."""

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from expr_lib.model import D, D_f, D_r, ModelConfig, Swapper, au_classes, mix


def small(**changes) -> ModelConfig:  # type: ignore[no-untyped-def]
    return ModelConfig(**{"size": 32, "n_aus": 5, "width": 16, "width_r": 16, "width_d": 8} | changes)


@pytest.fixture(scope="module")
def swapper() -> Swapper:
    torch.manual_seed(0)
    return Swapper(small()).eval()


# -- AU classes ----------------------------------------------------------------------------------------------------


def test_two_levels_are_absent_and_present() -> None:
    au = tensor([[0.0, 0.99, 1.0, 3.0, 5.0, torch.nan]])
    assert au_classes(au, (2,)).tolist() == [[0, 0, 1, 1, 1, -1]]


def test_six_levels_are_the_facs_letters() -> None:
    assert au_classes(tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]), (6,)).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_each_au_can_have_its_own_levels_and_classes_rise_with_intensity() -> None:
    au = torch.linspace(0, 5, 501)[:, None].expand(-1, 5)
    cls = au_classes(au, (2, 3, 4, 5, 6))
    assert (cls.diff(dim=0) >= 0).all()
    assert cls.amax(0).tolist() == [1, 2, 3, 4, 5] and cls.amin(0).tolist() == [0] * 5
    assert [len(cls[:, k].unique()) for k in range(5)] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("levels", [(1,), (7,), (2, 2)])
def test_impossible_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels"):
        small(levels=levels)


@pytest.mark.parametrize("size", [0, 8, 60])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size.*{size}.* expected (a positive multiple of 16|16 to 512)"):
        small(size=size)


# -- shapes and ranges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32, 48, 64, 128])
def test_shapes_and_ranges(size: int) -> None:
    c = small(size=size)
    swapper = Swapper(c)
    image = torch.rand(2, 3, size, size) * 2 - 1
    f_f, f_r = swapper.encode(image)
    assert f_f.shape == (2, 16, size // 4, size // 4)
    assert f_r.shape == (2, 5, 8) and f_r.abs().max() <= 1
    out = swapper.generate(f_f, f_r)
    assert out.shape == image.shape and out.abs().max() <= 1
    level = swapper.intensities(f_r)
    assert level.shape == (2, 5) and level.min() >= 0 and level.max() <= 5
    assert D_f(c)(f_f).shape == (2, 5, 4)
    assert D_r(c, 7)(f_r).shape == (2, 1, 7)
    realism, swap = D(c)(image, torch.zeros(2, 5))
    assert realism.shape == swap.shape == (2, 1, size // 8, size // 8)


def test_f_f_has_unit_power_and_noise_only_while_training(swapper: Swapper) -> None:
    features = swapper.E(torch.rand(2, 3, 32, 32))
    f_f = swapper.DG.free(features)
    assert_close(f_f.square().mean((1, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    assert torch.equal(f_f, swapper.DG.free(features))
    swapper.train()
    noise = swapper.DG.free(features) - f_f
    swapper.eval()
    assert noise.std().item() == pytest.approx(swapper.config.noise, rel=0.1)
    assert abs(noise.mean()) < 0.1


def test_reading_expressions_does_not_see_brightness_and_contrast(swapper: Swapper) -> None:
    image = torch.rand(1, 3, 32, 32) - 0.5
    other = 0.7 * image + 0.2
    assert_close(swapper.read_au(other)[0], swapper.read_au(image)[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(swapper.encode(other)[0], swapper.encode(image)[0], atol=1e-2)  # f_f does see it


def test_an_image_of_one_colour_is_encoded_and_has_a_gradient(swapper: Swapper) -> None:
    image = torch.full((1, 3, 32, 32), 0.3, requires_grad=True)
    swapper.reconstruct(image).sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()
    swapper.zero_grad()


def test_after_the_warm_up_batch_norm_keeps_its_statistics() -> None:
    swapper, image = Swapper(small()), torch.rand(4, 3, 32, 32)

    def moves() -> bool:
        before = [b.clone() for b in swapper.buffers()]
        swapper.encode(image)
        return any(not torch.equal(b, old) for b, old in zip(swapper.buffers(), before, strict=True))

    assert moves()
    swapper.warm = True
    assert not swapper.train().eval().training and not moves()
    assert swapper.train().training and not moves()


# -- swapping and mixing -------------------------------------------------------------------------------------------


def test_swapping_with_oneself_is_self_reconstruction(swapper: Swapper) -> None:
    a = torch.rand(2, 3, 32, 32) * 2 - 1
    one, other = swapper.swap(a, a)
    assert_close(one, swapper.reconstruct(a))
    assert_close(other, one)


def test_a_swap_takes_f_f_from_one_and_f_r_from_the_other(swapper: Swapper) -> None:
    a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    (f_f_a, f_r_a), (f_f_b, f_r_b) = swapper.encode(a), swapper.encode(b)
    swap_a, swap_b = swapper.swap(a, b)
    assert_close(swap_a, swapper.generate(f_f_a, f_r_b))
    assert_close(swap_b, swapper.generate(f_f_b, f_r_a))
    assert not torch.allclose(swap_a, swapper.reconstruct(a), atol=1e-3)


def test_each_au_is_read_from_its_own_vector(swapper: Swapper) -> None:
    f_r = torch.rand(1, 5, 8)
    changed = f_r.clone()
    changed[:, 2] = -changed[:, 2]
    moved = swapper.intensities(changed) != swapper.intensities(f_r)
    assert moved.tolist() == [[False, False, True, False, False]]


def test_mixing_goes_from_a_to_b() -> None:
    a, b = torch.randn(2, 4, 5, 8)
    assert torch.equal(mix(a, b, torch.zeros(5)), a)
    assert torch.equal(mix(a, b, torch.ones(4, 5)), b)
    assert_close(mix(a, b, torch.full((5,), 0.25)), 0.75 * a + 0.25 * b)


def test_mixing_one_au_leaves_the_others() -> None:
    a, b = torch.randn(2, 4, 5, 8)
    mixed = mix(a, b, tensor([0.0, 0.0, 1.0, 0.0, 0.0]))
    assert torch.equal(mixed[:, 2], b[:, 2])
    assert torch.equal(mixed[:, [0, 1, 3, 4]], a[:, [0, 1, 3, 4]])


def test_the_conditional_discriminator_asks_for_aus() -> None:
    torch.manual_seed(0)
    image, zero, some = torch.rand(1, 3, 32, 32), torch.zeros(1, 5), torch.full((1, 5), 3.0)
    for conditional in (True, False):
        d = D(small(conditional=conditional)).eval()
        for one, other in zip(d(image, zero), d(image, some), strict=True):
            assert torch.equal(one, other) != conditional


def test_a_missing_au_is_not_an_absent_one_to_the_discriminator() -> None:
    torch.manual_seed(0)
    d, image = D(small()).eval(), torch.rand(2, 3, 32, 32)
    au = tensor([[2.0, 0.0, 5.0, torch.nan, 0.0], [1.0, 3.0, 0.0, torch.nan, torch.nan]])
    asked, absent = d(image, au)[0], d(image, au.nan_to_num(0.0))[0]
    assert ((asked - absent).flatten(1).abs().amax(1) > 1e-3).all()
    # what a missing AU stands for is one number for each AU, and only images without its label teach it
    assert d.unknown is not None
    asked.square().sum().backward()
    assert d.unknown.grad is not None and (d.unknown.grad != 0).tolist() == [False, False, False, True, True]
    with torch.no_grad():
        d.unknown[3:] = tensor([0.4, 1.0])
    same = tensor([[2.0, 0.0, 5.0, 2.0, 0.0], [1.0, 3.0, 0.0, 2.0, 5.0]])
    assert_close(d(image, au)[0], d(image, same)[0])
