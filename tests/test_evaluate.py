"""The table, measured on faces so simple that every right answer is known: an oracle, a copier, a thief of identities.

A toy face is painted in two halves: the upper half is person and view, the lower half is the expression.
"""

import json

import numpy as np
import pytest
import torch
from torch import nn

from expr_lib.evaluate import (
    MARKERS,
    MEASURES,
    PER_AU,
    ROWS,
    evaluate,
    markdown_table,
    update_readme_table,
    write_results,
)
from expr_lib.faces.sample import FacesConfig, plan_faces
from expr_lib.facs import AU_NAMES, MAX_INTENSITY
from expr_lib.judges import Judges

SIZE = 36
PLAN = plan_faces(FacesConfig(n_subjects=30, images_per_subject=12, size=SIZE, test=0.6))


class ToyRenderer:
    device = "cpu"

    def __call__(self, subjects, au, views, size):
        image = torch.full((len(au), 3, size, size), 0.5)
        image[:, :, : size // 2, :24] = (subjects.identity[:, :24] / 4.4 + 0.5).clamp(0, 1)[:, None, None]
        image[:, :, : size // 2, 24:] = (views.yaw / 64 + 0.5)[:, None, None, None]
        image[:, :, size // 2 :, : 2 * len(AU_NAMES)] = (au / MAX_INTENSITY).repeat_interleave(2, 1)[:, None, None]
        mask = torch.ones(len(au), size, size, dtype=torch.bool)
        return image, mask


class ToyAUJudge:
    def __call__(self, image):
        return (image[:, 0, -1, : 2 * len(AU_NAMES) : 2] + 1) / 2 * MAX_INTENSITY


class ToyIdentityJudge:
    threshold = 0.9

    def features(self, image):
        return image[:, 0, 0, :24]

    def embed(self, features):
        return nn.functional.normalize(features, dim=1)

    def __call__(self, image):
        return self.embed(self.features(image))


JUDGES = Judges(ToyAUJudge(), ToyIdentityJudge())


class Oracle:
    """Takes person and expression apart and puts them together without a loss."""

    def encode(self, image):
        return image[:, :, : SIZE // 2], image[:, :, SIZE // 2 :]

    def generate(self, f_f, f_r):
        return torch.cat([f_f, f_r], 2)


class Copier:
    """Keeps the image in f_f and ignores f_r."""

    def encode(self, image):
        return image, image[:, :, SIZE // 2 :]

    def generate(self, f_f, f_r):
        return f_f


class Thief:
    """Takes all of the other face."""

    def encode(self, image):
        return image[:, :, : SIZE // 2], image

    def generate(self, f_f, f_r):
        return f_r


class Soft(Oracle):
    """An oracle with a lossy generator, which takes half of the expression only."""

    def encode(self, image):
        f_f, f_r = super().encode(image)
        return torch.cat([f_f, f_r], 2), f_r

    def generate(self, f_f, f_r):
        upper, lower = super().encode(f_f)
        return 0.9 * torch.cat([upper, (lower + f_r) / 2], 2)


def table(swapper, **settings):
    settings = {"n_pairs": 100, "batch_size": 40, "n_resamples": 20, "progress": False} | settings
    return evaluate(swapper, PLAN, ToyRenderer(), JUDGES, **settings)


@pytest.fixture(scope="module")
def oracle():
    return table(Oracle(), about={"command": "expr-lib evaluate toy"})


def values(results, row="ours"):
    return {name: figure["value"] for name, figure in results["rows"][row].items()}


def test_an_oracle_scores_1(oracle):
    found = values(oracle)
    assert found["transfer_score"] == pytest.approx(1, abs=1e-4)
    assert found["au_icc"] == pytest.approx(1, abs=1e-3) and found["au_f1"] > 0.97
    assert found["identity_kept"] == 1 and found["ssim"] == pytest.approx(1, abs=1e-4)
    assert abs(found["kid"]) < 0.05
    assert found["psnr"] == pytest.approx(58.9, abs=0.1)
    assert oracle["leaks"]["leak_au"]["value"] == pytest.approx(0.5, abs=0.06)
    assert oracle["leaks"]["leak_id"]["value"] == pytest.approx(1, abs=0.9)


def test_trivial_answers_score_as_the_design_says(oracle):
    copied, other, itself = (values(oracle, row) for row in ("copy-input", "copy-other", "self-reconstruction"))
    assert copied["transfer_score"] == pytest.approx(0, abs=1e-6) and abs(copied["au_icc"]) < 0.1
    assert copied["identity_kept"] == 1 and copied["own_expression_left"] == pytest.approx(1, abs=1e-3)
    assert other["transfer_score"] < 0 and other["au_icc"] == pytest.approx(1, abs=1e-3)
    assert other["identity_kept"] < 0.1
    assert itself["transfer_score"] == pytest.approx(0, abs=1e-6) and itself["ssim"] == pytest.approx(1, abs=1e-4)
    assert abs(copied["kid"]) < 0.05 and abs(other["kid"]) < 0.05  # real images, whoever they show
    for row in ("true render", "self-reconstruction of the truth"):
        ceiling = values(oracle, row)
        assert ceiling["transfer_score"] == 1 and ceiling["identity_kept"] == 1
        assert ceiling["au_icc"] == pytest.approx(1, abs=1e-3)


def test_every_figure_is_there_with_an_interval_around_it(oracle):
    assert list(oracle["rows"]) == list(ROWS) and list(oracle["per_au"]) == list(ROWS)
    assert all(list(figures) == list(MEASURES) for figures in oracle["rows"].values())
    assert all(list(by_au) == list(AU_NAMES) for by_au in oracle["per_au"].values())
    assert all(list(figures) == list(PER_AU) for by_au in oracle["per_au"].values() for figures in by_au.values())
    for row in ("ours", "copy-other"):
        for name, figure in oracle["rows"][row].items():
            if figure["value"] is not None:
                assert figure["low"] - 0.05 <= figure["value"] <= figure["high"] + 0.05, (row, name)
    other = oracle["rows"]["copy-other"]["ssim"]
    assert other["low"] < other["value"] < other["high"]
    assert oracle["n_subjects"] == 18 and oracle["n_pairs"] == 100 and len(oracle["swaps"]) == 200


def test_swaps_are_of_two_held_out_people_in_both_directions(oracle):
    listed = [(s["a"], s["b"]) for s in oracle["swaps"]]
    assert set(listed) == {(b, a) for a, b in listed}
    assert all(PLAN.split[a] == PLAN.split[b] == "test" and PLAN.subject[a] != PLAN.subject[b] for a, b in listed)
    mean = np.mean([s["transfer_score"] for s in oracle["swaps"] if s["transfer_score"] is not None])
    assert mean == pytest.approx(1, abs=1e-3)


def test_a_copier_transfers_nothing_keeps_everyone_and_leaks():
    results = table(Copier())
    found = values(results)
    assert found["transfer_score"] == pytest.approx(0, abs=1e-6)
    assert found["identity_kept"] == 1 and abs(found["au_icc"]) < 0.1
    assert found["own_expression_left"] == pytest.approx(1, abs=1e-3)
    assert results["leaks"]["leak_au"]["value"] > 0.85  # f_f is the image


def test_a_thief_of_identities_is_caught():
    results = table(Thief())
    found = values(results)
    assert found["identity_kept"] < 0.1 and found["transfer_score"] < 0
    assert found["au_icc"] == pytest.approx(1, abs=1e-3)  # the expression alone would praise it
    assert abs(found["own_expression_left"] or 0) < 0.1
    assert results["leaks"]["leak_id"]["value"] > 10  # of 18 people


def test_a_lossy_generator_that_goes_half_way_scores_half():
    results = table(Soft())
    found, itself = values(results), values(results, "self-reconstruction")
    assert found["transfer_score"] == pytest.approx(0.5, abs=0.1)
    assert 0.3 < found["own_expression_left"] and 0.3 < found["au_icc"] < 0.9
    assert values(results, "copy-input")["transfer_score"] == pytest.approx(0, abs=1e-6)
    assert itself["psnr"] < 50 and itself["ssim"] < 1
    assert results["rows"]["self-reconstruction of the truth"]["transfer_score"]["value"] == pytest.approx(1, abs=1e-6)


def test_the_same_seed_gives_the_same_table_and_batches_do_not_matter(oracle):
    again = table(Oracle(), batch_size=7, about={"command": "expr-lib evaluate toy"})
    assert again["swaps"] == oracle["swaps"]
    for row in ROWS:
        for name in MEASURES:
            x, y = oracle["rows"][row][name], again["rows"][row][name]
            assert x["value"] == pytest.approx(y["value"], abs=1e-5), (row, name)
            assert x["low"] == pytest.approx(y["low"], abs=1e-5), (row, name)
    other = table(Oracle(), seed=1, n_probe=0, n_resamples=2)
    assert other["swaps"] != oracle["swaps"]
    assert other["leaks"]["leak_au"]["value"] is None and "`leak_au` –" in markdown_table(other)


def test_training_mode_and_too_few_pairs_are_refused():
    class Training(nn.Module, Oracle):
        pass

    with pytest.raises(ValueError, match="swapper: found in training mode, expected eval mode"):
        table(Training())
    with pytest.raises(ValueError, match=r"split test: .* expected at least 100000"):
        table(Oracle(), n_pairs=100_000)


def test_results_are_json_and_the_readme_holds_their_table(oracle, tmp_path):
    write_results(tmp_path / "metrics.json", oracle)
    assert json.loads((tmp_path / "metrics.json").read_text()) == oracle
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    for _ in range(2):  # a second time changes nothing
        update_readme_table(readme, oracle)
        text = readme.read_text()
        assert text == f"before\n{MARKERS[0]}\n{markdown_table(oracle)}\n{MARKERS[1]}\nafter\n"
    lines = markdown_table(oracle).splitlines()
    assert {line.count("|") for line in lines[: 2 + len(ROWS)]} == {len(MEASURES) + 2}
    assert lines[2].startswith("| **ours** | 1.00 (1.00 – 1.00) | 1.00 ")
    assert "`expr-lib evaluate toy`" in text and "18 held-out people" in text and "nan" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "metrics.json"]
    readme.write_text("no table")
    with pytest.raises(ValueError, match=r"README.md: found no pair of lines"):
        update_readme_table(readme, oracle)
    assert readme.read_text() == "no table"
