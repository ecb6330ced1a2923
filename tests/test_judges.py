"""The judges: shapes, ranges, what training must and must not do, and files that tell what is wrong with them."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from expr_lib.apps.held_out import held_out_faces, say_if_unfamiliar
from expr_lib.datasets import FaceData, to_float
from expr_lib.faces.render import load_renderer
from expr_lib.facs import AU_NAMES
from expr_lib.measure import train_judges as training
from expr_lib.measure.dlib_judge import dlib_judge
from expr_lib.measure.familiar import (
    LIMITS,
    SIGNALS,
    calibrate,
    load_familiar,
    load_unfamiliarity,
    save_familiar,
)
from expr_lib.measure.judges import (
    FALSE_ACCEPTS,
    AUJudge,
    IdentityJudge,
    Judges,
    acceptance,
    judge_all,
    load_judge,
    load_judges,
    pair_cosines,
    save_judge,
)
from expr_lib.measure.train_judges import (
    JudgeConfig,
    au_ceilings,
    au_loss,
    augment_for_judges,
    cosface_loss,
    train_au_judge,
    train_identity_judge,
    train_judges,
)

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
TINY = JudgeConfig(epochs=6, batch_size=32, width=8, lr=1e-2, bf16=False)


def toy_faces(n_subjects=40, per_subject=12, seed=0) -> FaceData:
    """Flat faces: the brightness of the top is the AU, the colours of the bottom are the person."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n_subjects), per_subject)
    au = (rng.random((len(subject), 2)) * 5).astype(np.float32)
    colour = rng.integers(30, 220, (n_subjects, 6))
    images = np.full((len(subject), 64, 64, 3), 128, np.uint8)
    images[:, 4:18, 8:56] = (au[:, 0] * 50)[:, None, None, None]  # both sides, as AUs have
    images[:, 18:32, 8:56] = (au[:, 1] * 50)[:, None, None, None]
    for part in range(2):
        images[:, 36 + 14 * part : 48 + 14 * part, 8:56] = colour[subject, 3 * part : 3 * part + 3][:, None, None]
    split = np.where(subject < n_subjects // 2, "train", np.where(subject < n_subjects * 3 // 4, "val", "test"))
    return FaceData(images, subject, split, au, ("AU1", "AU2"), {"generator": "toy", "sha256": {}, "config": {}})


@pytest.fixture(scope="module")
def faces() -> FaceData:
    return toy_faces()


def test_judges_answer_in_their_ranges_at_any_size():
    torch.manual_seed(0)
    au, identity = AUJudge().eval(), IdentityJudge().eval()
    with torch.no_grad():
        au.head.bias.fill_(50.0)
        for size in (64, 48, 128):
            image = torch.rand(3, 3, size, size) * 2 - 1
            assert torch.equal(au(image), torch.full((3, len(AU_NAMES)), 5.0))  # clamped to intensity E
            assert torch.allclose(identity(image).norm(dim=1), torch.ones(3), atol=1e-5)
            assert identity(image).shape == (3, 128)
    for shape in [(3, 64, 64), (1, 1, 64, 64)]:
        with pytest.raises(ValueError, match=r"image: found shape .* expected \(B, 3, H, W\)"):
            au(torch.zeros(shape))


def test_in_eval_mode_an_answer_does_not_depend_on_the_rest_of_the_batch():
    torch.manual_seed(0)
    image = torch.rand(5, 3, 64, 64) * 2 - 1
    for judge in (AUJudge(width=8).eval(), IdentityJudge(width=8).eval()):
        with torch.no_grad():
            assert torch.allclose(judge(image)[2:3], judge(image[2:3]), atol=1e-5)


def test_au_loss_by_hand_and_blind_to_missing_labels():
    raw = torch.tensor([[1.0, 2.0], [3.0, 9.0]], requires_grad=True)
    au = torch.tensor([[0.0, 4.0], [1.0, torch.nan]])
    loss = au_loss(raw, au, torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx((1 + 4 / 2 + 4) / 3)
    loss.backward()
    assert raw.grad[1, 1] == 0 and raw.grad.isfinite().all()
    assert au_loss(raw, torch.full((2, 2), torch.nan), torch.ones(2)).item() == 0  # nothing known, nothing lost
    never = torch.tensor([[0.0, torch.nan], [1.0, torch.nan]])  # nobody labelled the second AU: it has no variance
    raw.grad = None
    au_loss(raw, never, torch.tensor([1.0, torch.nan])).backward()
    assert raw.grad.tolist() == [[1.0, 0.0], [2.0, 0.0]]


def test_cosface_by_hand():
    embedding, centres = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    expected = -np.log(np.exp(10 * 0.8) / (np.exp(10 * 0.8) + 1))  # cosines 1 and 0, margin 0.2, scale 10
    assert cosface_loss(embedding, centres, torch.tensor([0]), 10.0, 0.2).item() == pytest.approx(expected, rel=1e-3)


def test_augmentation_is_seeded_stays_in_range_and_differs_between_images():
    image = (torch.rand(1, 3, 64, 64) * 2 - 1).expand(6, -1, -1, -1)
    once, again = (augment_for_judges(image, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == image.shape and once.abs().max() <= 1
    assert all((once[0] - once[i]).abs().mean() > 0.01 for i in range(1, 6))
    gentle = augment_for_judges(image, torch.Generator().manual_seed(3), strength=0.0)  # only mirrored
    assert all(torch.allclose(g, image[0], atol=1e-5) or torch.allclose(g, image[0].flip(2), atol=1e-5) for g in gentle)


def test_au_judge_does_not_mind_the_light():
    torch.manual_seed(0)
    judge, image = AUJudge(width=8).eval(), torch.rand(2, 3, 64, 64) - 0.5
    with torch.no_grad():
        assert torch.allclose(judge.raw(image), judge.raw(0.5 * image + 0.2), atol=0.01)
        assert judge.raw(torch.zeros(1, 3, 64, 64)).isfinite().all()  # a flat image has no contrast


def test_au_judge_learns_aus_with_missing_labels_and_repeats_itself(faces):
    au = faces.au.copy()
    au[::3, 0] = np.nan
    holes = replace(faces, au=au)
    judge = train_au_judge(holes, TINY, progress=False)
    test = faces.subset("test")
    ceilings = au_ceilings(judge_all(judge, test), torch.from_numpy(test.au), faces.au_names)
    assert min(ceilings["AU1"]["icc"], ceilings["AU2"]["icc"]) > 0.8
    assert not judge.training and ceilings["mean"]["r"] >= ceilings["mean"]["icc"] - 1e-9
    short = replace(TINY, epochs=1)
    first, second = (train_au_judge(holes, short, progress=False).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_identity_judge_tells_unseen_people_apart(faces):
    judge = train_identity_judge(faces, replace(TINY, epochs=8), progress=False)
    test = faces.subset("test")
    one, two = pair_cosines(judge_all(judge, test), test.subject)
    assert len(one) == 10 * 12 * 11 // 2 and len(one) + len(two) == 120 * 119 // 2
    assert one.mean() > two.mean() + 0.2


def test_train_judges_reports_ships_and_does_not_train_twice(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(FaceData, "open", lambda folder: faces)
    config = replace(TINY, epochs=2)
    report = train_judges("toy", tmp_path, config, progress=False)
    assert report == json.loads((tmp_path / "judges-64.json").read_text())
    assert set(report["au"]) == {"AU1", "AU2", "mean"}
    assert 0 <= report["identity"]["true_accepts"] <= 1 and report["identity"]["subjects"] == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == [  # nothing half-written stays
        "au-judge-64.safetensors", "familiar-64.safetensors", "id-judge-64.safetensors", "judges-64.json"
    ]  # fmt: skip
    judges = load_judges(folder=tmp_path)
    assert isinstance(judges, Judges) and not judges.au.training and not judges.identity.training
    assert not any(p.requires_grad for j in judges for p in j.parameters())
    assert judges.identity.threshold == report["identity"]["threshold"]
    half = faces[(faces.split != "train") & (faces.subject % 2 == 0)]  # the threshold lets 1 % of strangers through
    assert (pair_cosines(judge_all(judges.identity, half), half.subject)[1] > judges.identity.threshold).mean() < 0.0101
    with safe_open(tmp_path / "au-judge-64.safetensors", "pt") as file:
        assert json.loads(file.metadata()["expr_lib"])["ceilings"] == report["au"]

    def train_again(*args, **kwargs):
        raise AssertionError("a finished judge was trained again")

    monkeypatch.setattr(training, "train_au_judge", train_again)
    monkeypatch.setattr(training, "train_identity_judge", train_again)
    assert train_judges("toy", tmp_path, config, progress=False) == report
    with pytest.raises(AssertionError, match="trained again"):
        train_judges("toy", tmp_path, replace(config, seed=1), progress=False)


def test_what_is_unlike_held_out_faces_is_far_and_they_are_not(faces, tmp_path):
    torch.manual_seed(0)
    judge = IdentityJudge(8).eval()
    first, second = (faces[faces.subject % 2 == k] for k in (0, 1))
    familiar = calibrate(judge, first, second)
    distance = familiar.distance(to_float(second.pixels(np.arange(len(second)))))
    assert (distance > 1).float().mean() == pytest.approx(0.01, abs=0.005)  # one false alarm in a hundred
    noise = torch.rand(4, 3, 64, 64) * 2 - 1
    assert familiar.distance(noise).min() > 1.5 * distance.max()
    assert judge.statistics(noise).shape == (4, 22 * 8)
    save_judge(tmp_path / "id-judge-64.safetensors", judge)
    save_familiar(familiar, tmp_path)
    assert torch.equal(load_familiar(judge, tmp_path).distance(noise), familiar.distance(noise))
    save_judge(tmp_path / "id-judge-64.safetensors", IdentityJudge(8).eval())
    with pytest.raises(ValueError, match=r"familiar-64\.safetensors: made for another identity judge"):
        load_familiar(judge, tmp_path)
    (tmp_path / "familiar-64.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"familiar-64\.safetensors: truncated"):
        load_familiar(judge, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"familiar-64\.safetensors: not found"):
        load_familiar(judge, tmp_path / "elsewhere")


def test_the_shipped_scale_belongs_to_the_shipped_judge():
    familiar = load_familiar(load_judges().identity)
    assert familiar.mean.shape == familiar.spread.shape == (704,) and 1 < familiar.limit < 3
    assert familiar.distance(torch.rand(2, 3, 64, 64) * 2 - 1).min() > 1


def test_renders_are_familiar_upside_down_they_are_less_so_and_noise_is_not(capsys):
    images = held_out_faces(128).render(load_renderer(), [0, 100, 200, 300, 400])[0].numpy()  # five people
    both = np.concatenate([images, images[:, ::-1]])
    share, signal = load_unfamiliarity()(to_float(torch.from_numpy(both)).permute(0, 3, 1, 2))
    assert share[:5].max() < 1 < share[5:].max() and share[5:].median() > 1.3 * share[:5].median()
    told = {name for name, x in zip(signal, share, strict=True) if x > 1}
    assert told <= {"reconstruction", "mirror"}  # texture knows little of the arrangement
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    names = [Path(name) for name in ("render", "noise")]
    say_if_unfamiliar({}, names, np.stack([images[0], noise]))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("expr-lib: noise is unlike the faces of the training: ")
    assert any(what in line for what in SIGNALS.values())
    say_if_unfamiliar({"data": {"generator": "import/1"}}, names, np.stack([images[0], noise]))
    assert capsys.readouterr().err == ""  # the limits hold for rendered faces only


@pytest.mark.parametrize("file", sorted(RESULTS.glob("unfamiliar.json")), ids=lambda file: file.name)
def test_the_limits_are_those_that_were_measured_and_few_renders_exceed_them(file):
    results = json.loads(file.read_text())
    assert results["limits"] == LIMITS
    warned = {row["kind"]: row["warned"] for row in results["rows"]}
    assert warned["renders of another seed"] < 0.02 and warned["photographs, aligned"] > 0.7


def test_train_judges_wants_people_to_be_measured_on(faces, tmp_path, monkeypatch):
    monkeypatch.setattr(FaceData, "open", lambda folder: faces.subset("train"))
    with pytest.raises(ValueError, match="toy: val and test: found 0 subjects, expected at least 4"):
        train_judges("toy", tmp_path, TINY, progress=False)


def test_a_full_size_judge_is_small_and_survives_its_file(tmp_path):
    torch.manual_seed(0)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    for judge in (AUJudge().eval(), IdentityJudge().eval()):
        path = tmp_path / "judge.safetensors"
        judge.metadata = {"threshold": 0.5, "au_names": list(AU_NAMES)}
        save_judge(path, judge)
        assert path.stat().st_size <= 2 * 10**6
        again = load_judge(path, type(judge))
        assert again.metadata == judge.metadata
        with torch.no_grad():
            assert torch.allclose(again(image), judge(image), atol=5e-3)  # half precision


def test_broken_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "au-judge-64.safetensors"
    with pytest.raises(FileNotFoundError, match=r"au-judge-64.safetensors: not found"):
        load_judges(folder=tmp_path)
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="truncated or not safetensors"):
        load_judge(path, AUJudge)
    save_judge(path, AUJudge(width=8))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or not safetensors"):
        load_judge(path, AUJudge)
    judge = AUJudge(width=8)
    judge.config = {"n_aus": 3, "width": 8}
    save_judge(path, judge)
    with pytest.raises(ValueError, match=r"head.bias: found shape .* expected shape") as error:
        load_judge(path, AUJudge)
    assert "\n" not in str(error.value)
    save_judge(path, IdentityJudge(width=8))
    save_judge(tmp_path / "id-judge-64.safetensors", IdentityJudge(width=8))
    with pytest.raises(ValueError, match="found IdentityJudge, expected AUJudge"):
        load_judges(folder=tmp_path)


# -- a second opinion ----------------------------------------------------------------------------------------------

HAS_DLIB = all(importlib.util.find_spec(name) for name in ("dlib", "face_recognition_models"))


@pytest.mark.skipif(
    not HAS_DLIB,
    reason="NO DLIB: the second identity judge was not tested. Install the extra photographs and run this again.",
)
def test_dlib_tells_rendered_people_apart_better_than_chance_and_knows_an_image_again():
    from expr_lib.faces.plan import FacesConfig, plan_faces
    from expr_lib.faces.render import load_renderer

    plan = plan_faces(FacesConfig(24, 3, size=64, seed=77))
    images, _ = plan.render(load_renderer(), range(len(plan)))
    faces = FaceData(images.numpy(), plan.subject.numpy(), plan.split, plan.au.numpy(), AU_NAMES, {})
    judge = dlib_judge(faces)
    embedding = judge_all(judge, faces)
    assert embedding.shape == (72, 128) and torch.allclose(embedding.norm(dim=1), torch.ones(72))
    assert torch.allclose(embedding[:7], judge_all(judge, faces[:7]), atol=1e-4)
    one, two = pair_cosines(embedding, faces.subject)
    assert one.mean() > two.mean() + 0.02
    assert judge.ceilings["true_accepts"] > 10 * FALSE_ACCEPTS > judge.ceilings["false_accepts"]
    assert judge.ceilings["subjects"] == 12


def test_without_dlib_the_second_judge_says_what_to_install(faces, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(ImportError, match=r"\[photographs\]"):
        dlib_judge(faces)


def test_acceptance_sets_the_threshold_on_some_people_and_measures_on_others():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(40, 16))

    def data(people):  # images that hold nothing but the number of their person
        subject = np.repeat(people, 6)
        images = np.broadcast_to(subject[:, None, None, None], (len(subject), 16, 16, 3)).astype(np.uint8)
        return FaceData(images, subject, np.full(len(subject), "test"), np.zeros((len(subject), 1)), ("AU1",), {})

    def judge(image):  # a noisy embedding around the person's own
        who = ((image[:, 0, 0, 0] + 1) * 127.5).round().long().numpy()
        embedding = centre[who] + rng.normal(size=(len(who), 16)) * 0.5
        return torch.nn.functional.normalize(torch.from_numpy(embedding), dim=1)

    threshold, ceilings = acceptance(judge, data(np.arange(20)), data(np.arange(20, 40)))
    assert 0 < threshold < 1 and ceilings["subjects"] == 20
    assert ceilings["true_accepts"] > 0.8 and ceilings["false_accepts"] == pytest.approx(0.01, abs=0.02)
