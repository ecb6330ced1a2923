"""The probes find what is there, nothing where nothing is, and are not fooled by knowing the person."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import JUDGES, PLAN, Mixer, MPSJudge, ToyRenderer

from expr_lib.facs import AU_NAMES
from expr_lib.measure.metrics import balanced_accuracy, leak_au, leak_id
from expr_lib.measure.probes import PROBE_SEED, by_numbers, cross_talk, leaks, probe_au, probe_subject, render

K = {name: k for k, name in enumerate(AU_NAMES)}


# -- f_f -----------------------------------------------------------------------------------------------------------


def people(n_subjects=40, per_subject=20, seed=0):
    """Maps of noise (N, 4, 8, 8), who they show, AUs (N, 3): common, rare, and one that nobody shows."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n_subjects), per_subject)
    au = np.where(rng.random((len(subject), 3)) < [0.5, 0.2, 0.0], rng.uniform(1, 5, (len(subject), 3)), 0)
    return torch.from_numpy(rng.normal(size=(len(subject), 4, 8, 8))).float(), subject, torch.from_numpy(au).float()


def reads(f_f, au, n=600, **settings):
    """Balanced accuracy for each AU: fitted to the first n rows, asked about the others."""
    return balanced_accuracy(probe_au(f_f[:n], au[:n], f_f[n:], **settings), au[n:])


def test_probe_au_finds_a_leak_wherever_it_is_and_nothing_in_noise():
    f_f, _, au = people(n_subjects=100)  # 1,400 images are asked about, so chance alone stays within 0.04 of a half
    found = reads(f_f, au)
    assert (found[:2] - 0.5).abs().max() < 0.08 and found[2].isnan()  # an AU that nobody shows cannot be read
    f_f[:, 0, 2, 2] += 2.5 * (au[:, 0] >= 1)  # one number of 256
    f_f[:, 1] += 0.5 * (au[:, 1] >= 1)[:, None, None]  # a little everywhere
    assert reads(f_f, au)[:2].min() > 0.75


def test_probe_au_finds_what_no_straight_line_does():
    f_f, _, au = people()
    sign = f_f[:, 0, 4, 5].sign()  # the sign is random, only together with its neighbour it means something
    f_f[:, 0, 4, 5], f_f[:, 0, 4, 4] = 3 * sign, 3 * sign * torch.where(au[:, 0] >= 1, 1.0, -1.0)
    assert reads(f_f, au)[0] > 0.85


def test_probe_au_does_not_take_knowing_the_person_for_reading_the_face():
    f_f, subject, au = people()
    rng = np.random.default_rng(1)
    habit = rng.random(40) < 0.5  # some people always show AU1, and the map only says who it is
    au[:, 0] = torch.from_numpy(habit[subject] * 3.0)
    f_f = 0.1 * f_f + torch.from_numpy(rng.normal(size=(40, 4, 8, 8))[subject]).float()
    assert reads(f_f, au)[0] < 0.75  # of people it has not met; it knows those that it was fitted to:
    assert balanced_accuracy(probe_au(f_f[:600], au[:600], f_f[:600]), au[:600])[0] > 0.95


def test_probe_au_leaves_missing_labels_out_and_repeats_itself():
    f_f, _, au = people()
    f_f[:, 0, 2, 2] += 4.0 * (au[:, 0] >= 1)
    au[:400:2, 0] = torch.nan
    state = torch.random.get_rng_state()
    read = probe_au(f_f[:600], au[:600], f_f[600:], epochs=3)
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's random numbers change
    assert torch.equal(read[:, :2], probe_au(f_f[:600], au[:600], f_f[600:], epochs=3)[:, :2])
    assert not torch.equal(read[:, :2], probe_au(f_f[:600], au[:600], f_f[600:], epochs=3, seed=1)[:, :2])
    assert balanced_accuracy(read, au[600:])[0] > 0.8


def test_probe_au_reads_rendered_faces_from_their_pixels_and_nothing_from_shuffled_labels(faces_of_two):
    """Where f_f is the image itself, the probe must see the expression: else 0.5 would say nothing about f_f."""
    (image, au), (other, other_au) = faces_of_two
    common = [K[name] for name in ("AU12", "AU25", "AU26", "AU43")]
    read = probe_au(image, au, other)
    assert balanced_accuracy(read, other_au)[common].nanmean() > 0.65
    order = torch.randperm(len(au), generator=torch.Generator().manual_seed(0))
    assert leak_au(probe_au(image, au[order], other), other_au).item() == pytest.approx(0.5, abs=0.06)


@pytest.fixture(scope="module")
def faces_of_two():
    """Renders of 32 px of 60 people, and of 20 others: two pairs of images (N, 3, 32, 32) and AUs (N, 17)."""
    from expr_lib.faces.plan import FacesConfig, plan_faces
    from expr_lib.faces.render import Renderer, load_renderer

    renderer, found = Renderer(load_renderer().head, supersample=1), []
    for n, seed in ((60, 1), (20, 2)):
        plan = plan_faces(FacesConfig(n, 10, size=32, seed=seed))
        views = plan.views  # all from the front, in the middle: a small probe and few images must do
        still = {name: torch.zeros_like(getattr(views, name)) for name in ("yaw", "pitch", "roll", "shift")}
        plan = replace(plan, views=replace(views, **still))
        chunks = torch.arange(len(plan)).split(100)
        found.append((torch.cat([render(plan, renderer, rows, "cpu") for rows in chunks]), plan.au))
    return found


def test_leaks_are_measured_on_people_whom_the_probe_has_not_met():
    """Two people of one name and number are not one person: the plan of the probe has another seed."""

    class Keeps(Mixer):
        met = torch.zeros(0, 24)

        def encode(self, image):
            self.met = torch.cat([self.met, image[:, 0, 0, :24]])
            return super().encode(image)

    swapper, rows = Keeps(), np.flatnonzero(PLAN.split == "test")
    found = leaks(swapper, PLAN, ToyRenderer(), rows, 200, n_resamples=10, progress=False)
    asked, fitted = swapper.met[: len(rows)], swapper.met[len(rows) :]
    assert found["n_images"] == len(rows) and found["n_fitted"] == len(fitted) == 200
    assert torch.cdist(asked, fitted).min() > 0.05
    assert list(found["per_au"]) == list(AU_NAMES)
    by_au = [unit["value"] for unit in found["per_au"].values()]
    assert found["leak_au"]["value"] == pytest.approx(np.mean([x for x in by_au if x is not None]), abs=1e-5)
    assert PROBE_SEED not in (0, 4610)


# -- f_r -----------------------------------------------------------------------------------------------------------


def test_leak_id_is_1_by_chance_and_the_number_of_subjects_at_most():
    rng, subject = np.random.default_rng(0), np.repeat(np.arange(10), 30)
    noise = torch.from_numpy(rng.normal(size=(300, 3, 4)))
    assert leak_id(probe_subject(noise, subject), subject).mean().item() == pytest.approx(1, abs=0.6)
    noise[:, 0, 0] += 100 * torch.from_numpy(subject)
    noise[:, 1:] = 0
    noise[:, 0, 1:] = 0
    assert leak_id(probe_subject(noise, subject), subject).mean() > 9
    few = np.concatenate([subject, [77]])
    read = probe_subject(torch.cat([noise, noise[:1]]), few)
    assert (
        read[-1] == -1 and leak_id(read, few)[-1].isnan() and leak_id(read, few).nanmean() > 9
    )  # a person of one image is left out
    assert leak_id(probe_subject(noise[:3], np.arange(3)), np.arange(3)).isnan().all()


# -- one AU alone --------------------------------------------------------------------------------------------------


def talk(swapper, n_each=6):
    rows = np.flatnonzero(PLAN.split == "test")
    pairs = np.stack([rows, np.roll(rows, 30)], 1)
    settings = {"n_resamples": 10, "progress": False, "batch_size": 50}
    return cross_talk(swapper, PLAN, ToyRenderer(), JUDGES.au, pairs, n_each=n_each, **settings)


def test_a_clean_mixer_moves_one_au_all_the_way_and_nothing_else():
    found = talk(Mixer())
    assert all(0 < n <= 6 for n in found["n_moves"].values())
    for name in ("network", "true render"):
        assert np.array(found[name]["matrix"], float) == pytest.approx(np.eye(17), abs=0.02)
        assert found[name]["others"]["value"] < 0.01 and found[name]["largest"]["value"] < 0.02
        assert found[name]["monotone"]["value"] == 1 and found[name]["steps_back"]["value"] == 0
        assert [point["value"] for point in found[name]["curve"]] == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.02)
        assert all(moved == pytest.approx(1, abs=0.02) for moved in found[name]["moved"].values())


def test_cross_talk_is_found_in_its_cell_with_its_sign():
    spill = torch.zeros(17, 17)
    spill[K["AU12"], K["AU6"]], spill[K["AU4"], K["AU1"]] = 0.5, -0.3
    found = talk(Mixer(spill, gain=0.8))
    matrix = np.array(found["network"]["matrix"], float)
    assert matrix == pytest.approx(
        np.eye(17) + spill.numpy(), abs=0.02
    )  # relative to what moves, not to what was asked
    assert found["network"]["moved"]["AU12"] == pytest.approx(0.8, abs=0.02)
    assert found["network"]["largest"]["value"] < 0.02  # two of seventeen rows: not in the median
    assert np.array(found["true render"]["matrix"], float) == pytest.approx(np.eye(17), abs=0.02)
    everywhere = talk(Mixer(0.1 * (1 - torch.eye(17))))["network"]
    assert everywhere["others"]["value"] == pytest.approx(0.1, abs=0.01)
    assert everywhere["others"]["low"] <= everywhere["others"]["value"] <= everywhere["others"]["high"]


def test_doing_nothing_and_doing_the_opposite_are_not_clean_moves():
    for gain in (0.0, -1.0):
        found = talk(Mixer(gain=gain))["network"]
        assert found["others"]["value"] is None and found["monotone"]["value"] == 0
        assert all(cell is None for row in found["matrix"] for cell in row)
        assert found["moved"]["AU25"] == pytest.approx(gain, abs=0.02)
    assert found["steps_back"]["value"] == 1


def test_cross_talk_asks_no_gpu_for_double_precision():
    pairs = np.stack([np.arange(0, 12), np.arange(100, 112)], 1)
    settings = {"n_each": 1, "n_resamples": 3, "progress": False}
    on_cpu, on_mps = (
        cross_talk(Mixer(), PLAN, ToyRenderer(), judge, pairs, **settings) for judge in (JUDGES.au, MPSJudge())
    )
    assert on_cpu == on_mps


# -- editing by numbers --------------------------------------------------------------------------------------------


class ByNumbers(Mixer):
    """A toy whose f_r of an intensity is known."""

    def f_r_of(self, au):
        return (2 * au / 5)[..., None]


def test_an_intensity_that_is_asked_for_arrives_and_nothing_else_moves():
    rows = np.arange(0, 40, 4)
    found = by_numbers(ByNumbers(), PLAN, ToyRenderer(), JUDGES.au, rows, batch_size=4, progress=False)
    assert found["n_faces"] == 10
    for table in (found["network"], found["true render"]):
        for unit in table.values():
            assert unit["read"] == pytest.approx([0, 1, 2, 3, 4, 5], abs=0.02)
            assert unit["monotone"] and unit["others"] == pytest.approx(0, abs=0.01)


def test_a_network_that_does_nothing_or_moves_others_too_is_found_out():
    rows = np.arange(0, 40, 4)
    settings = {"batch_size": 10, "progress": False}
    still = by_numbers(ByNumbers(gain=0.0), PLAN, ToyRenderer(), JUDGES.au, rows, **settings)["network"]
    assert all(unit["others"] is None and not unit["monotone"] for unit in still.values())
    spill = torch.zeros(17, 17)
    spill[K["AU12"], K["AU6"]] = -1.6  # as far the other way, on a scale that is cut at 0 and 5
    spilt = by_numbers(ByNumbers(spill), PLAN, ToyRenderer(), JUDGES.au, rows, **settings)["network"]
    assert spilt["AU12"]["others"] == pytest.approx(0.1, abs=0.01) and spilt["AU1"]["others"] < 0.01
