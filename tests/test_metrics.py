"""Every measure against values worked out by hand, by definition, or by another library."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import f1_score
from torchmetrics.image.kid import poly_mmd

from expr_lib.measure.metrics import (
    balanced_accuracy,
    bootstrap,
    estimates,
    f1,
    gain,
    icc31,
    identity_kept,
    json_number,
    kid,
    laplacian_variance,
    leak_au,
    leak_id,
    masked_l1,
    mmd2,
    nearer,
    partial_correlation,
    pearson,
    people_kernels,
    polynomial_kernel,
    psnr,
    rest_left,
    sharpness,
    ssim,
    total_transfer_score,
    transfer_score,
)

SHROUT_FLEISS = np.array(  # table 2 of the 1979 paper: 6 targets, 4 judges
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)


def icc31_anova(ratings: np.ndarray) -> float:
    """ICC(3,1) of any number of raters by its mean squares: (n targets, k raters) -> a number."""
    n, k = ratings.shape
    rows, columns, mean = ratings.mean(1, keepdims=True), ratings.mean(0, keepdims=True), ratings.mean()
    bms = k * ((rows - mean) ** 2).sum() / (n - 1)
    ems = ((ratings - rows - columns + mean) ** 2).sum() / ((n - 1) * (k - 1))
    return (bms - ems) / (bms + (k - 1) * ems)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_icc31_agrees_with_the_paper_that_defined_it():
    assert icc31_anova(SHROUT_FLEISS) == pytest.approx(0.71, abs=0.005)  # table 4 of the paper
    for i in range(4):
        for j in range(i):
            x, y = torch.from_numpy(SHROUT_FLEISS[:, [i]]), torch.from_numpy(SHROUT_FLEISS[:, [j]])
            assert icc31(x, y).item() == pytest.approx(icc31_anova(SHROUT_FLEISS[:, [i, j]]))


def test_icc31_by_hand_and_at_its_extremes():
    x = torch.tensor([[0.0], [1.0], [2.0]])
    assert icc31(x, x).item() == pytest.approx(1)
    assert icc31(x + 5, x).item() == pytest.approx(1)  # consistency: an offset is forgiven
    assert icc31(2 * x, x).item() == pytest.approx(2 * 2 / (4 + 1))  # a wider scale is not; a correlation would be 1
    assert icc31(-x, x).item() == pytest.approx(-1)
    assert icc31(torch.ones(3, 1), x).item() == 0  # a judge that always says the same
    assert icc31(torch.ones(3, 1), torch.ones(3, 1)).isnan().all()


@pytest.mark.parametrize("measure", [icc31, pearson, f1])
def test_a_missing_label_leaves_out_its_row_of_its_column_only(measure):
    x, y = rand(30, 3) + 1, rand(30, 3, seed=1) + 1
    full = measure(x, y)
    holes = y.clone()
    holes[:10, 1] = torch.nan
    found = measure(x, holes)
    assert torch.equal(found[[0, 2]], full[[0, 2]])
    assert torch.allclose(found[1:2], measure(x[10:, 1:2], y[10:, 1:2]))
    holes[:, 1] = torch.nan
    assert measure(x, holes).isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"found shapes .* expected one shape"):
        measure(x, y[:, :2])


def test_pearson_agrees_with_numpy():
    x, y = rand(50, 2), rand(50, 2, seed=1)
    expected = [np.corrcoef(x[:, k], y[:, k])[0, 1] for k in range(2)]
    assert pearson(x, y).tolist() == pytest.approx(expected)


def test_f1_agrees_with_scikit_learn():
    x, y = rand(200, 4) + 1, rand(200, 4, seed=1) + 1
    expected = [f1_score(y[:, k] >= 1, x[:, k] >= 1) for k in range(4)]
    assert f1(x, y).tolist() == pytest.approx(expected)
    assert f1(y, y).tolist() == [1.0] * 4
    absent = torch.zeros(5, 1)
    assert f1(absent, absent).isnan().all()
    assert f1(torch.tensor([[1.0]]), torch.tensor([[1.0]])).item() == 1  # FACS A counts as present


def test_partial_correlation_is_the_correlation_of_the_residuals():
    z = rand(300, 2)
    x, y = 0.8 * z + rand(300, 2, seed=1), -0.5 * z + 0.4 * rand(300, 2, seed=1) + rand(300, 2, seed=2)
    for k in range(2):
        given = z[:, [k]].numpy()
        rest = [
            v[:, k].numpy() - LinearRegression().fit(given, v[:, k].numpy()).predict(given) for v in (x, y)
        ]  # fmt: skip
        assert partial_correlation(x, y, z)[k].item() == pytest.approx(np.corrcoef(*rest)[0, 1])


def test_partial_correlation_leaves_out_what_is_missing_in_any_of_the_three():
    x, y, z = (rand(30, 3, seed=k) for k in range(3))
    x[:3, 0], y[3:6, 0], z[6:9, 0] = torch.nan, torch.nan, torch.nan
    z[:, 1] = torch.nan
    found = partial_correlation(x, y, z)
    assert torch.allclose(found[:1], partial_correlation(x[9:, :1], y[9:, :1], z[9:, :1]))
    assert found[1].isnan() and torch.allclose(found[2:], partial_correlation(x[:, 2:], y[:, 2:], z[:, 2:]))


def test_partial_correlation_sees_through_the_other_expression():
    a, b = rand(4000, 1), rand(4000, 1, seed=1)
    a = a + 0.7 * b  # the two faces of a pair resemble each other
    noise = 0.1 * rand(4000, 1, seed=2)
    assert partial_correlation(a, a, b).item() == pytest.approx(1)  # nothing transferred: all of a is left
    assert abs(partial_correlation(b + noise, a, b).item()) < 0.05  # all transferred, though b resembles a
    assert pearson(b + noise, a).item() > 0.5  # which a plain correlation takes for a's own
    assert partial_correlation(b, a, b).isnan().all()  # b itself leaves nothing to correlate


def test_masked_l1_looks_at_the_face_only():
    truth, image = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    image[:, :, 0] = 0.5  # half of the face is off by 0.5
    image[:, :, 3] = 9.0  # the background does not count
    found = masked_l1(image, truth, mask)
    assert found[0].item() == pytest.approx(0.25)
    assert found[1].isnan()


def test_gain_is_the_share_of_the_error_of_doing_nothing_that_is_removed():
    copy = torch.tensor([0.3, 0.1])
    assert gain(torch.zeros(2), copy).item() == 1 and gain(copy, copy).item() == 0
    assert gain(torch.tensor([0.15, 0.05]), copy).item() == pytest.approx(0.5)
    assert gain(2 * copy, copy).item() == pytest.approx(-1)  # worse than not touching the picture
    # of the sums, so a pair that hardly differs cannot drown the others; a swap without a face is left out
    assert gain(torch.tensor([0.1, 0.1, torch.nan]), torch.tensor([0.4, 0.0, 0.2])).item() == pytest.approx(0.5)
    assert gain(torch.zeros(2), torch.zeros(2)).isnan()
    assert nearer(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.2, 0.2, 0.2])).item() == pytest.approx(1 / 3)


def test_rest_left_is_0_for_an_empty_face_and_1_for_a_copy():
    read = torch.tensor([[4.0, 1.0], [0.0, 5.0]])
    assert rest_left(read, read).item() == 1 and rest_left(0 * read, read).item() == 0
    assert rest_left(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), read).item() == pytest.approx(0.2)
    assert rest_left(read, 0 * read).isnan()


def test_transfer_score_is_1_for_the_truth_and_0_for_a_copy():
    d_self, d_truth = torch.tensor([0.4, 0.5]), torch.tensor([0.1, 0.0])
    assert transfer_score(d_truth, d_self, d_truth).tolist() == [1.0, 1.0]
    assert transfer_score(d_self, d_self, d_truth).tolist() == [0.0, 0.0]
    assert transfer_score(torch.tensor([0.25, 1.0]), d_self, d_truth).tolist() == pytest.approx([0.5, -1.0])
    assert transfer_score(torch.tensor(0.2), torch.tensor(0.1), torch.tensor(0.1)).isnan()  # no way to go


def test_total_transfer_score_does_not_drown_in_one_pair_without_a_difference():
    d_swap, d_self = torch.tensor([0.2, 0.2, 0.3]), torch.tensor([0.4, 0.4, 1e-6])
    d_truth = torch.zeros(3)
    assert total_transfer_score(d_swap, d_self, d_truth).item() == pytest.approx((0.8 - 0.7) / 0.8, abs=1e-4)
    assert transfer_score(d_swap, d_self, d_truth).mean() < -1e4
    with_gap = torch.tensor([torch.nan, 0.2]), torch.tensor([torch.nan, 0.4]), torch.tensor([torch.nan, 0.0])
    assert total_transfer_score(*with_gap).item() == pytest.approx(0.5)


def test_ssim_and_psnr_of_each_image():
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    off = image.clone()
    off[1] += 0.2
    assert psnr(off, image)[1].item() == pytest.approx(10 * np.log10(2**2 / 0.2**2), abs=1e-3)  # 20 dB
    assert psnr(off, image)[0].item() == pytest.approx(58.92, abs=0.01)  # equal: the noise of 8 bits
    assert ssim(image, image).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert ssim(off, image)[1] < ssim(off, image)[0]
    assert ssim(image[:1], image[:1]).shape == psnr(image[:1], image[:1]).shape == (1,)


def test_sharpness_is_the_share_of_the_finest_detail_inside_the_face():
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1  # (8, 8) of -1 and 1
    image = board.expand(1, 3, 8, 8)
    inside = torch.zeros(1, 8, 8, dtype=torch.bool)
    inside[:, 2:6, 2:6] = True  # away from the border every Laplacian is 4 * (-x) - 4 x = -8 x
    assert laplacian_variance(image, inside).item() == pytest.approx(64)
    assert sharpness(0.5 * image, image, inside).item() == pytest.approx(0.25)
    outside = torch.where(inside[:, None], image, 0 * image)
    inner = torch.zeros(1, 8, 8, dtype=torch.bool)
    inner[:, 3:5, 3:5] = True
    assert sharpness(outside, image, inner).item() == pytest.approx(1)  # what lies outside does not count
    assert sharpness(image, torch.zeros_like(image), inside).isnan().all()


def test_identity_kept_counts_what_is_above_the_threshold():
    assert identity_kept(torch.tensor([0.9, 0.5, 0.2, -0.3]), 0.4).item() == 0.5


def test_kid_agrees_with_torchmetrics_and_is_0_for_one_distribution():
    x, y, shifted = rand(400, 8), rand(400, 8, seed=1), rand(400, 8, seed=2) + 0.5
    expected = poly_mmd(x, shifted, degree=3, gamma=None, coef=1.0)
    assert kid(x, shifted).item() == pytest.approx(expected.item())
    assert abs(kid(x, y).item()) < 0.01 < 0.1 < kid(x, shifted).item()
    k = polynomial_kernel(x, x)  # of a set with itself: below 0, for each meets itself across the sets only
    itself = -2 / 400 * (k.diag().mean() - (k.sum() - k.trace()) / (400 * 399))
    assert kid(x, x).item() == pytest.approx(itself.item()) == pytest.approx(0, abs=0.05)
    assert kid(x[:200], shifted).item() == pytest.approx(kid(x, shifted).item(), rel=0.4)  # any two sizes
    small = [kid(rand(10, 8, seed=i), rand(10, 8, seed=1000 + i)).item() for i in range(300)]
    assert abs(np.mean(small)) < 3 * np.std(small) / np.sqrt(300)  # unbiased however small the sets


def test_weighted_mmd2_does_not_take_copies_for_a_distance():
    x, y = rand(60, 8), rand(60, 8, seed=1)
    kernels = [polynomial_kernel(u, v) for u, v in ((x, x), (y, y), (x, y))]
    assert mmd2(*kernels, torch.full((60,), 3.0), torch.full((60,), 3.0)).item() == pytest.approx(kid(x, y).item())
    half = (torch.arange(60) < 30).double()
    assert mmd2(*kernels, half, half).item() == pytest.approx(kid(x[:30], y[:30]).item())
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=(500, 2))
    resampled = [mmd2(*kernels, torch.from_numpy(w), torch.from_numpy(v)).item() for w, v in counts]
    copied = [kid(x.repeat_interleave(torch.from_numpy(w), 0), y.repeat_interleave(torch.from_numpy(v), 0)).item()
              for w, v in counts[:100]]  # fmt: skip
    spread = np.std(resampled)
    assert abs(np.mean(resampled) - kid(x, y).item()) < spread / 3
    assert np.mean(copied) - kid(x, y).item() > spread  # what copies would feign


def faces_of(seed: int, shift: float, *, of_b: bool):
    """Features of swaps among 50 people, each of whom has a face, as answers and truths that differ by `shift`."""
    rng = np.random.default_rng(seed)
    face = rng.uniform(-1, 1, size=(50, 4))
    a = np.r_[np.arange(50), rng.integers(50, size=70)]
    b = (a + rng.integers(1, 50, size=120)) % 50
    swapped = torch.from_numpy(np.stack([np.r_[a, b], np.r_[b, a]], 1))  # (240, 2)
    answers, truths = (torch.from_numpy(face[who] + 0.3 * rng.normal(size=(240, 4)))
                       for who in (swapped[:, int(of_b)], swapped[:, 0]))  # fmt: skip
    return answers + shift, truths, swapped, swapped[:, int(of_b)], swapped[:, 0]


def kid_of_people(x, y, swapped, shown_x, shown_y):
    """The value and its bootstrap interval over people."""
    kernels, counts = people_kernels(x, y, swapped, shown_x, shown_y)
    who, total = swapped[:, 0], torch.bincount(swapped[:, 0])

    def statistic(rows):
        times = torch.bincount(who[rows], minlength=len(total)) / total
        return mmd2(*kernels, times, times, counts)

    low, high = bootstrap(statistic, who.numpy(), n_resamples=100)
    return statistic(torch.arange(len(x))).item(), low.item(), high.item()


def test_the_distance_of_people_counts_only_pairs_of_swaps_without_a_common_person():
    x, y, swapped, shown_x, shown_y = faces_of(0, 0.3, of_b=True)
    value, _, _ = kid_of_people(x, y, swapped, shown_x, shown_y)
    apart = torch.tensor([[not {*p} & {*q} for q in swapped.tolist()] for p in swapped.tolist()])
    xx, yy, xy = (polynomial_kernel(u, v)[apart].mean() for u, v in ((x, x), (y, y), (x, y)))
    assert value == pytest.approx((xx + yy - 2 * xy).item())
    assert kid_of_people(y, y, swapped, shown_y, shown_y) == pytest.approx((0, 0, 0))


@pytest.mark.parametrize("of_b", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_kernel_distance_lies_inside_its_interval_which_covers_the_truth(shift, of_b):
    found = np.array([kid_of_people(*faces_of(seed, shift, of_b=of_b)) for seed in range(40)])
    value, low, high = found.T
    assert ((low <= value) & (value <= high)).all()
    truth = value.mean() if shift else 0.0  # unbiased
    assert abs(value.mean() - truth) < 3 * value.std() / np.sqrt(40)
    assert ((low <= truth) & (truth <= high)).mean() >= 0.88


def test_leak_au_by_hand_with_missing_labels():
    au = torch.tensor([[2.0], [2.0], [0.0], [0.0], [0.0], [0.0], [torch.nan]])
    read = torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0], [1.0], [torch.nan]])
    assert leak_au(read, au).item() == pytest.approx((1 / 2 + 3 / 4) / 2)
    nobody = torch.cat([au, torch.zeros(7, 1)], 1)  # an AU that nobody shows says nothing
    read = torch.cat([read, torch.zeros(7, 1)], 1)
    assert balanced_accuracy(read, nobody).isnan().tolist() == [False, True]
    assert leak_au(read, nobody).item() == pytest.approx((1 / 2 + 3 / 4) / 2)


def test_leak_id_by_hand():
    subject, read = np.array([1, 1, 1, 1, 5, 5]), np.array([1, 1, 1, 5, 5, 1])  # recalls 3/4 and 1/2, two subjects
    assert leak_id(read, subject).mean().item() == pytest.approx((3 / 4 + 1 / 2) / 2 * 2)
    assert leak_id(np.ones(6, int), subject).mean().item() == pytest.approx(1)  # always the same guess: chance


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    hits = []
    for trial in range(150):
        rng = np.random.default_rng(trial)
        cluster = np.repeat(np.arange(40), 5)
        values = torch.from_numpy(rng.normal(size=40)[cluster] + rng.normal(size=200))
        low, high = bootstrap(lambda rows, v=values: v[rows].mean(), cluster, n_resamples=200, seed=trial)
        hits.append(bool(low <= 0 <= high))
    assert 0.88 <= np.mean(hits) <= 0.99


def test_bootstrap_counts_people_not_images():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(20), 50)
    values = torch.from_numpy(rng.normal(size=20)[cluster])

    def width(groups):
        low, high = bootstrap(lambda rows: values[rows].mean(), groups, n_resamples=300)
        return high - low

    assert width(cluster) > 4 * width(np.arange(1000))


def test_bootstrap_is_seeded_and_honest_about_the_undefined():
    values, cluster = rand(30), np.arange(30) // 3
    once, again = (bootstrap(lambda rows: values[rows].mean(), cluster, n_resamples=50, seed=4) for _ in range(2))
    assert once == again and once[0] < values.mean() < once[1]
    low, high = bootstrap(lambda rows: torch.tensor([torch.nan, len(rows)]), cluster, n_resamples=5)
    assert low.isnan().tolist() == high.isnan().tolist() == [True, False] and low[1] == 30


def test_bootstrap_draws_whole_clusters_as_many_as_there_are():
    cluster, draws = np.array([3, 1, 3, 1, 3, 2]), []
    bootstrap(lambda rows: draws.append(rows) or torch.zeros(()), cluster, n_resamples=40)
    counts = [torch.bincount(rows, minlength=6).tolist() for rows in draws]
    assert all(c[0] == c[2] == c[4] and c[1] == c[3] and c[0] + c[1] + c[5] == 3 for c in counts)
    assert len({tuple(c) for c in counts}) > 5


def test_figures_are_values_with_their_intervals_ready_for_json():
    values = torch.arange(20.0)[:, None] * torch.tensor([1.0, torch.nan])
    mean, unknown = estimates(lambda rows: values[rows].mean(0), np.repeat(np.arange(10), 2), n_resamples=50)
    assert mean["value"] == 9.5 and mean["low"] < 9.5 < mean["high"]
    assert unknown == {"value": None, "low": None, "high": None}
    assert json_number(1 / 3) == 0.333333 and json_number(float("inf")) is None
