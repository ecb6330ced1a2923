"""What the user-facing swap does with the networks; an untrained, tiny pair of them is enough to show it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expr_lib import checkpoint
from expr_lib.datasets import to_float, to_uint8
from expr_lib.facs import AU_NAMES
from expr_lib.model import ModelConfig, Swapper
from expr_lib.swap import amounts, load, swap_images

SIZE = 32


@pytest.fixture(scope="module")
def swapper() -> Swapper:
    torch.manual_seed(0)
    return Swapper(ModelConfig(size=SIZE, width=16, width_r=16, width_d=8)).eval()


@pytest.fixture(scope="module")
def faces() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8) for _ in range(2))  # type: ignore[return-value]


def test_it_is_the_swap_of_the_method_in_both_directions(swapper, faces):
    a, b = (to_float(torch.from_numpy(f).permute(0, 3, 1, 2)) for f in faces)
    with torch.no_grad():
        expected = [to_uint8(x).permute(0, 2, 3, 1).numpy() for x in swapper.swap(a, b)]
    for found, wanted in zip(swap_images(swapper, *faces), expected, strict=True):
        assert found.dtype == np.uint8 and abs(found.astype(int) - wanted).max() <= 1


def test_weight_zero_is_the_self_reconstruction(swapper, faces):
    kept, _ = swap_images(swapper, *faces, torch.zeros(len(AU_NAMES)))
    own, _ = swap_images(swapper, faces[0], faces[0])
    other, _ = swap_images(swapper, *faces)
    assert abs(kept.astype(int) - own).max() <= 1
    assert abs(kept.astype(int) - other).sum() > 20 * abs(kept.astype(int) - own).sum()


def test_weights_may_differ_from_pair_to_pair(swapper, faces):
    weights = torch.zeros(3, len(AU_NAMES))
    weights[1] = 1.0
    mixed, _ = swap_images(swapper, *faces, weights)
    none, _ = swap_images(swapper, *faces, weights[0])
    full, _ = swap_images(swapper, *faces, weights[1])
    for k, expected in enumerate((none, full, none)):
        assert abs(mixed[k].astype(int) - expected[k]).max() <= 1


def test_one_face_comes_back_as_one_face(swapper, faces):
    a, b = swap_images(swapper, faces[0][0], faces[1][0])
    assert a.shape == b.shape == (SIZE, SIZE, 3)
    assert abs(a.astype(int) - swap_images(swapper, *faces)[0][0]).max() <= 1


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((SIZE, SIZE, 3), np.float32), "float32"),
        (np.zeros((64, 64, 3), np.uint8), r"\(64, 64, 3\)"),
        (np.zeros((3, SIZE, SIZE), np.uint8), r"\(3, 32, 32\)"),
        (np.zeros((SIZE, SIZE), np.uint8), r"\(32, 32\)"),
    ],
)
def test_images_of_another_form_are_refused(swapper, faces, image, found):
    with pytest.raises(ValueError, match=rf"b: found .*{found}.*expected uint8 of shape \(B, 32, 32, 3\)"):
        swap_images(swapper, faces[0][0], image)


def test_amounts():
    assert amounts(AU_NAMES).tolist() == [1.0] * len(AU_NAMES)
    assert amounts(AU_NAMES, ("AU4",), 0.5).tolist() == [0.5 if name == "AU4" else 0.0 for name in AU_NAMES]
    with pytest.raises(ValueError, match="unknown action unit AU99; known: AU1, AU2"):
        amounts(AU_NAMES, ("AU99",))
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="amount: found"):
            amounts(AU_NAMES, (), wrong)


def test_a_checkpoint_swaps_as_the_networks_that_were_saved(swapper, faces, tmp_path):
    path = tmp_path / "swap.safetensors"
    checkpoint.save(path, checkpoint.module_tensors("ema", swapper), checkpoint.describe(swapper))
    for found, expected in zip(swap_images(load(path), *faces), swap_images(swapper, *faces), strict=True):
        assert (found == expected).all()
