"""The report: every figure shows the numbers of the results, and every table stands in one Markdown file."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from toy import JUDGES, PLAN, SIZE, Mixer, ToyRenderer

from expr_lib.facs import AU_NAMES
from expr_lib.images import read_image
from expr_lib.measure import report
from expr_lib.measure.cards import markdown_table
from expr_lib.measure.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("no_figure_stays_open")

SWAPPER = Mixer(gain=0.7)


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    settings = {"n_pairs": 60, "n_resamples": 10, "n_probe": 20, "n_moves": 2, "progress": False}
    return evaluate(SWAPPER, PLAN, ToyRenderer(), JUDGES, about={"checkpoint": "toy"}, **settings)


@pytest.fixture
def swaps_of_toys(monkeypatch):
    """The gallery swaps with the checkpoint's own code; a toy has none."""

    def swap_images(swapper, a, b):
        faces = [(torch.as_tensor(x).permute(0, 3, 1, 2).float() / 127.5 - 1) for x in (a, b)]
        (f_a, r_a), (f_b, r_b) = (swapper.encode(face) for face in faces)
        done = [
            ((swapper.generate(*x) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy() for x in ((f_a, r_b), (f_b, r_a))
        ]
        return tuple(done)

    monkeypatch.setattr(report, "swap_images", swap_images)


def test_the_report_is_written_whole_with_every_figure(results, swaps_of_toys, tmp_path):
    path, *pictures = report.write_report(
        tmp_path / "new" / "toy.md", results, tmp_path / "new" / "toy", SWAPPER, PLAN, ToyRenderer()
    )
    names = ["transfer", "per-au", "cross-talk", "gallery-best", "gallery-median", "gallery-worst"]
    assert [picture.name for picture in pictures] == [f"{name}.png" for name in names]
    text = path.read_text()
    assert markdown_table(results) in text
    for picture in pictures:
        assert f"](toy/{picture.name})" in text
        assert read_image(picture).std() > 5 and picture.stat().st_size < 400_000
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["toy", "toy.md"]
    assert not plt.get_fignums()
    (alone,) = report.write_report(tmp_path / "alone.md", results, None, SWAPPER, PLAN, ToyRenderer())
    assert "](" not in alone.read_text()


def test_the_tables_hold_every_stratum_and_every_action_unit(results):
    text = report.tables(results)
    for name in AU_NAMES:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
        assert f"{results['per_au']['ours'][name]['au_icc']['value']:.2f} (" in line
    for parts in results["strata"].values():
        for part in parts:
            assert f"{part['low']:.1f} to {part['high']:.1f} | {part['n_swaps']} |" in text
    widths = [[line.count("|") for line in block.splitlines() if "|" in line] for block in text.split("\n\n")]
    assert all(len(set(width)) <= 1 for width in widths)
    assert json.dumps(results).count("NaN") == 0 and "nan" not in text and "None" not in text


def test_a_result_without_the_extra_parts_is_reported_too(results):
    bare = results | {"strata": {name: [] for name in results["strata"]}, "leaks": None, "cross_talk": None}
    text = report.tables(bare)
    assert "leak_au" not in text and "Cross-talk" not in text and "moved alone" not in text
    assert "| AU12 " in text


def test_the_bars_are_the_numbers_of_the_table(results):
    axis = report.per_au(results).axes[0]
    bars = {row: axis.containers[k] for k, row in enumerate(report.SHOWN)}
    for row, color in report.SHOWN.items():
        heights = [bar.get_height() for bar in bars[row]]
        assert heights == pytest.approx(
            [results["per_au"][row][name]["au_icc"]["value"] for name in AU_NAMES], nan_ok=True
        )
        assert to_hex(bars[row][0].get_facecolor()) == color.lower()
    assert len(set(report.SHOWN.values())) == 3


def test_the_line_of_transfer_is_the_quotient_of_the_means(results):
    person = PLAN.subject.numpy()[[swap["a"] for swap in results["swaps"]]]
    axis = report.transfer(results, person, bins=4).axes[0]
    (line,) = [line for line in axis.lines if line.get_marker() == "o"]
    swaps = sorted(results["swaps"], key=lambda swap: swap["expression_distance"])
    part = swaps[:30]
    expected = sum(s["transfer_score"] * s["way"] for s in part) / sum(s["way"] for s in part)
    assert len(line.get_ydata()) == 4 and line.get_ydata()[0] == pytest.approx(expected, abs=0.02)
    assert np.diff(line.get_xdata()).min() > 0


def test_the_picture_of_cross_talk_has_one_cell_for_each_pair_of_units(results):
    figure = report.cross_talk(results)
    network, true = (figure.axes[k].images[0].get_array() for k in (0, 1))
    assert network.shape == true.shape == (17, 17)
    assert np.ma.filled(network, np.nan) == pytest.approx(
        np.array(results["cross_talk"]["network"]["matrix"], float), nan_ok=True
    )
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(AU_NAMES)


def test_galleries_are_ranked_among_pairs_with_a_way_to_go():
    swaps = [{"a": i, "b": 0, "gain": i / 100, "copy": 1.0 + i % 2} for i in range(100)]
    swaps[0] |= {"gain": -50.0, "copy": 1e-6}  # two expressions that look alike
    swaps[2] |= {"gain": -40.0, "copy": 1e-6}
    swaps += [{"a": 200, "b": 0, "gain": None, "copy": 0.0}]
    found = report.ranked(swaps)
    assert [len(found[which]) for which in report.GALLERIES] == [10, 10, 10]
    assert [swap["a"] for swap in found["best"]] == list(range(99, 79, -2))
    assert [swap["a"] for swap in found["worst"]] == list(range(19, 0, -2))
    middle = [swap["a"] for swap in found["median"]]
    assert middle == sorted(middle, reverse=True) and abs(np.mean(middle) - 50) < 2
    few = report.ranked(swaps[3:6])
    assert {which: len(part) for which, part in few.items()} == {"best": 2, "median": 2, "worst": 2}


def test_a_gallery_shows_each_pair_above_its_truth(results, swaps_of_toys):
    worst = report.ranked(results["swaps"])["worst"]
    figure = report.gallery("worst", worst, SWAPPER, PLAN, ToyRenderer())
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == [f"{swap['gain']:.2f}" for swap in worst]
    images = [np.asarray(image.get_array()) for image in axis.images]
    assert len(images) == 4 * len(worst) and images[0].shape == (SIZE, SIZE, 3)
    truth, _ = PLAN.render(ToyRenderer(), [worst[0]["a"]], au_rows=[worst[0]["b"]])
    assert (images[3 * len(worst)] == truth[0].numpy()).all()


def test_the_figures_of_the_shipped_weights_are_small_enough_for_the_readme():
    for picture in (Path(__file__).parents[1] / "benchmarks" / "results").glob("*/*.png"):
        assert picture.stat().st_size < 400_000, picture
