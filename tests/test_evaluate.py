"""The table, measured on faces so simple that all answers are known: an oracle, a copier, a thief of identities."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy import JUDGES, PLAN, SIZE, Oracle, ToyIdentityJudge, ToyRenderer

from expr_lib.errors import InputError
from expr_lib.faces.parameters import Views
from expr_lib.faces.sample import sample_views
from expr_lib.facs import AU_NAMES
from expr_lib.measure.cards import MARKERS, folded_table, markdown_table, update_tables
from expr_lib.measure.evaluate import (
    MEASURES,
    PER_AU,
    ROWS,
    SECOND,
    STRATA,
    evaluate,
    mean_expression,
    pose_gap,
    write_results,
)
from expr_lib.measure.report import strata_table


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
    defaults = {"n_pairs": 100, "batch_size": 40, "n_resamples": 20, "progress": False}
    without = {"n_strata": 0, "n_probe": 0, "n_moves": 0}
    return evaluate(swapper, PLAN, ToyRenderer(), JUDGES, **defaults | without | settings)


@pytest.fixture(scope="module")
def oracle():
    return table(Oracle(), n_strata=3, n_probe=600, about={"command": "expr-lib evaluate toy"})


def values(results, row="ours"):
    return {name: figure["value"] for name, figure in results["rows"][row].items()}


def test_an_oracle_scores_1(oracle):
    found = values(oracle)
    assert found["gain"] == pytest.approx(1, abs=1e-3) and found["nearer"] > 0.95
    assert found["rest_left"] is None  # what the oracle keeps is no picture
    assert found["transfer_score"] == pytest.approx(1, abs=1e-4)
    assert found["au_icc"] == pytest.approx(1, abs=1e-3) and found["au_f1"] > 0.97
    assert found["identity_kept"] == 1 and found["ssim"] == pytest.approx(1, abs=1e-4)
    assert abs(found["kid"]) < 0.05
    assert found["psnr"] == pytest.approx(58.9, abs=0.1)
    assert oracle["leaks"]["leak_au"]["value"] == pytest.approx(0.5, abs=0.06)
    assert oracle["leaks"]["leak_id"]["value"] == pytest.approx(1, abs=0.9)


def test_trivial_answers_score_as_the_design_says(oracle):
    copied, other, itself = (values(oracle, row) for row in ("copy-input", "copy-other", "self-reconstruction"))
    assert copied["gain"] == copied["nearer"] == 0 and copied["rest_left"] == 1 and other["gain"] < 0
    assert copied["transfer_score"] == pytest.approx(0, abs=1e-6) and abs(copied["au_icc"]) < 0.1
    assert copied["identity_kept"] == 1 and copied["own_expression_left"] == pytest.approx(1, abs=1e-3)
    assert other["transfer_score"] < 0 and other["au_icc"] == pytest.approx(1, abs=1e-3)
    assert other["identity_kept"] < 0.1
    assert itself["transfer_score"] == pytest.approx(0, abs=1e-6) and itself["ssim"] == pytest.approx(1, abs=1e-4)
    assert abs(copied["kid"]) < 0.05 and abs(other["kid"]) < 0.05  # real images, whoever they show
    for row in ("true render", "self-reconstruction of the truth", "render of what is read"):
        ceiling = values(oracle, row)
        assert ceiling["transfer_score"] == pytest.approx(1, abs=1e-3) and ceiling["identity_kept"] == 1
        assert ceiling["au_icc"] == pytest.approx(1, abs=1e-3)


def test_the_average_face_beats_the_copy_in_pixels_and_shows_nothing_of_b(oracle):
    found = values(oracle, "average face")
    assert 0.05 < found["gain"] < 0.6 and found["gain"] == pytest.approx(found["transfer_score"])
    assert abs(found["au_icc"]) < 0.05 and found["identity_kept"] == 1
    training = PLAN.split == "train"
    assert torch.equal(mean_expression(PLAN), PLAN.au[training].mean(0))
    assert torch.equal(mean_expression(replace(PLAN, split=np.where(training, "test", PLAN.split))), PLAN.au.mean(0))


def test_a_result_file_without_the_average_face_still_makes_a_table(oracle):
    older = oracle | {"rows": {name: row for name, row in oracle["rows"].items() if name != "average face"}}
    assert "average face" in folded_table(oracle) and "average face" not in folded_table(older)


def test_a_result_file_without_a_measure_has_a_dash_in_its_place(oracle):
    def without(figures):
        return {name: figure for name, figure in figures.items() if name != "identity_cosine"}

    older = oracle | {"rows": {name: without(row) for name, row in oracle["rows"].items()}, "about": {"label": "old"}}
    assert "identity_cosine" not in folded_table(older)
    for table_ in (markdown_table(oracle, [older]), markdown_table(older, [oracle | {"about": {"label": "new"}}])):
        head, rows = table_.splitlines()[0], {line.split(" | ")[0].strip("|* "): line for line in table_.splitlines()}
        column = [name.strip(" `").split("`")[0] for name in head.split("|")].index("identity_cosine")
        assert rows["old"].split("|")[column].strip() == "–"
        assert (rows.get("new") or rows["ours"]).split("|")[column].strip() != "–"
    parts = [{**part, "rows": {"ours": without(part["rows"]["ours"])}} for part in oracle["strata"]["pose_gap"]]
    assert " – |" in strata_table(oracle | {"strata": {"pose_gap": parts}})


def test_the_mean_cosine_tells_apart_what_the_threshold_accepts_alike(oracle):
    found = [values(oracle, row)["identity_cosine"] for row in ("copy-input", "average face", "copy-other")]
    assert found[0] == pytest.approx(1, abs=1e-5) and found[0] >= found[1] > 0.9 > found[2]


def test_the_distance_of_distributions_lies_inside_its_interval():
    results = table(Soft(), n_resamples=200)
    for row, figures in results["rows"].items():
        assert figures["kid"]["low"] <= figures["kid"]["value"] <= figures["kid"]["high"], row
    assert results["rows"]["true render"]["kid"] == {"value": 0, "low": 0, "high": 0}


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
    results = table(Copier(), n_probe=600)
    found = values(results)
    assert found["transfer_score"] == pytest.approx(0, abs=1e-6)
    assert found["identity_kept"] == 1 and abs(found["au_icc"]) < 0.1
    assert found["own_expression_left"] == pytest.approx(1, abs=1e-3)
    assert results["leaks"]["leak_au"]["value"] > 0.85  # f_f is the image


def test_a_thief_of_identities_is_caught():
    results = table(Thief(), n_probe=20)
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
    other = table(Oracle(), seed=1, n_resamples=2)
    assert other["swaps"] != oracle["swaps"]
    assert other["leaks"] is other["cross_talk"] is None and "leak_au" not in markdown_table(other)


def test_training_mode_and_too_few_pairs_are_refused():
    class Training(nn.Module, Oracle):
        pass

    with pytest.raises(ValueError, match="swapper: found training mode, expected eval mode"):
        table(Training())
    with pytest.raises(ValueError, match=r"split test: .* expected at least 100000"):
        table(Oracle(), n_pairs=100_000)
    with pytest.raises(ValueError, match="found 5 pairs for 3 strata, expected at least two pairs in each"):
        table(Oracle(), n_pairs=5, n_strata=3)


def test_strata_are_parts_of_one_size_and_add_up_to_the_whole(oracle):
    for name in STRATA:
        parts = oracle["strata"][name]
        assert [part["n_swaps"] for part in parts] == [68, 66, 66]
        assert parts[0]["high"] <= parts[1]["low"] <= parts[1]["high"] <= parts[2]["low"]
        listed = sorted(swap[name] for swap in oracle["swaps"])
        assert (parts[0]["low"], parts[2]["high"]) == (listed[0], listed[-1])
        for row, measure in (("copy-other", "ssim"), ("copy-other", "identity_kept"), ("ours", "psnr")):
            whole = oracle["rows"][row][measure]["value"]
            mean = sum(part["n_swaps"] * part["rows"][row][measure]["value"] for part in parts) / 200
            assert mean == pytest.approx(whole, abs=1e-5)
        assert all(list(part["per_au"]["ours"]) == list(AU_NAMES) for part in parts)


def test_a_measure_that_depends_on_the_distance_shows_it_in_its_strata():
    """Copying is nearer to the truth the more alike the two expressions are, and does not care about the pose."""
    results = table(Copier(), n_strata=3)
    by_distance, by_pose = ([p["rows"]["ours"]["psnr"]["value"] for p in results["strata"][name]] for name in STRATA)
    assert by_distance[0] > by_distance[1] > by_distance[2]
    assert by_distance[0] - by_distance[2] > 2 * abs(by_pose[0] - by_pose[2])


def test_every_swap_says_how_far_apart_its_faces_are(oracle):
    for swap in oracle["swaps"][::17]:
        a, b = swap["a"], swap["b"]
        assert swap["expression_distance"] == pytest.approx(float((PLAN.au[a] - PLAN.au[b]).norm()), abs=1e-4)
        assert swap["pose_gap"] == pytest.approx(float(pose_gap(PLAN.views[[a]], PLAN.views[[b]])), abs=1e-4)
        assert swap["way"] > 0


def test_pose_gap_is_the_angle_between_two_heads():
    def posed(**degrees: float) -> Views:
        angles = {name: torch.tensor([degrees.get(name, 0.0)]) for name in ("yaw", "pitch", "roll")}
        return replace(sample_views(1, torch.Generator()), **angles)

    for one in ({"yaw": 20.0}, {"pitch": -20.0}, {"roll": 20.0}):
        assert pose_gap(posed(**one), posed()).item() == pytest.approx(20, abs=1e-3)
    assert pose_gap(posed(yaw=-15.0), posed(yaw=15.0)).item() == pytest.approx(30, abs=1e-3)
    assert pose_gap(posed(yaw=9, pitch=5), posed(yaw=9, pitch=5)).item() == pytest.approx(0, abs=0.05)
    across = pose_gap(posed(yaw=10), posed(pitch=10)).item()
    assert across == pytest.approx(10 * 2**0.5, abs=0.1)  # at right angles


def test_a_second_identity_judge_adds_its_own_column():
    class Stranger(ToyIdentityJudge):
        """Accepts nobody but the very same picture."""

        threshold = 0.9999

        def __call__(self, image):
            return nn.functional.normalize(image.flatten(1), dim=1)

    results = table(Oracle(), second=Stranger())
    (name,) = SECOND
    assert results["rows"]["copy-input"][name]["value"] == 1 and results["rows"]["copy-other"][name]["value"] == 0
    assert results["rows"]["ours"]["identity_kept"]["value"] == 1 > results["rows"]["ours"][name]["value"]
    assert f"`{name}` ↑ 1 |" in markdown_table(results).splitlines()[0]
    assert set(results["per_au"]["ours"]["AU1"]) == set(PER_AU)


def test_a_row_of_another_checkpoint_says_how_it_was_measured_if_not_as_the_table(oracle):
    about = {"label": "other", "command": "expr-lib evaluate toy"}
    lines = markdown_table(oracle, [oracle | {"about": about}]).splitlines()
    assert lines[3].startswith("| other | ")
    lines = markdown_table(oracle, [oracle | {"about": about, "size": 512, "n_pairs": 7}]).splitlines()
    assert lines[3].startswith("| other (512 px, 7 pairs) | ")
    with pytest.raises(InputError, match="seed: found 99, expected"):
        markdown_table(oracle, [oracle | {"about": about, "seed": 99}])


def test_results_are_json_and_the_readme_holds_their_table(oracle, tmp_path):
    write_results(tmp_path / "metrics.json", oracle)
    assert json.loads((tmp_path / "metrics.json").read_text()) == oracle
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    for _ in range(2):  # a second time changes nothing
        update_tables(readme, oracle)
        text = readme.read_text()
        assert text == f"before\n{MARKERS[0]}\n{folded_table(oracle)}\n{MARKERS[1]}\nafter\n"
    lines = markdown_table(oracle).splitlines()
    assert {line.count("|") for line in lines[: 2 + len(ROWS)]} == {len(MEASURES) + 2}
    assert lines[2].startswith("| **ours** | 1.00 (1.00 – 1.00) | 1.00 ")
    assert "`expr-lib evaluate toy`" in text and "18 held-out people" in text and "nan" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "metrics.json"]
    readme.write_text("no table")
    with pytest.raises(ValueError, match=r"README.md: found no pair of lines"):
        update_tables(readme, oracle)
    assert readme.read_text() == "no table"


def test_evaluate_asks_no_gpu_for_double_precision():
    from toy import MPSJudge

    from expr_lib.measure.judges import Judges

    few = {"n_pairs": 6, "n_strata": 0, "n_probe": 0, "n_moves": 0, "n_resamples": 3, "progress": False}
    judges = Judges(MPSJudge(), JUDGES.identity)
    on_cpu, on_mps = (evaluate(Oracle(), PLAN, ToyRenderer(), judge, **few) for judge in (JUDGES, judges))
    assert on_cpu["rows"] == on_mps["rows"]
