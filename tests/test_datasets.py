"""The data set form: what is refused and how, and what pairs and batches promise."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expr_lib import datasets
from expr_lib.datasets import FaceData, batches, draw_pairs, draw_takes, held_out_pairs, pair_batch, to_float, to_uint8
from expr_lib.errors import InputError
from expr_lib.files import sha256

AU_NAMES = ("AU1", "AU12")
SUBJECTS, PER_SUBJECT, SIZE = 10, 4, 8
ROWS = SUBJECTS * PER_SUBJECT


def write_set(folder: Path) -> Path:
    """A tiny set: 10 subjects x 4 images of 8 px; the first pixel of an image holds its row, the second its subject."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (ROWS, SIZE, SIZE, 3), dtype=np.uint8)
    subject = np.arange(ROWS) // PER_SUBJECT
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(ROWS), subject
    np.save(folder / "images.npy", images)
    split = np.array(["train", "test", "train", "val", "test", "train", "train", "train", "test", "train"])[subject]
    au = np.random.default_rng(1).uniform(0, 5, (ROWS, 2)).astype(np.float32)
    au[3, 1] = np.nan
    table = pd.DataFrame({"subject": subject, "split": split, "AU1": au[:, 0], "AU12": au[:, 1], "yaw": 0.5})
    table.to_csv(folder / "labels.csv", index=False)
    names = ("images.npy", "labels.csv")
    meta = {"format": 1, "generator": "test", "config": {}, "au_names": list(AU_NAMES), "size": SIZE, "rows": ROWS}
    meta["sha256"] = {name: sha256(folder / name) for name in names}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "faces")


@pytest.fixture
def data(folder: Path) -> FaceData:
    return FaceData.open(folder, verify=True)


def edit_cell(folder: Path, line: int, column: str, value: str) -> None:
    table = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False)
    table.loc[line - 2, column] = value
    table.to_csv(folder / "labels.csv", index=False)


def edit_meta(folder: Path, **changes: object) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- open ----------------------------------------------------------------------------------------------------------


def test_open_gives_the_documented_form(data: FaceData) -> None:
    assert len(data) == ROWS and data.size == SIZE and data.au_names == AU_NAMES
    assert isinstance(data.images, np.memmap) and not data.images.flags.writeable
    assert data.images.shape == (ROWS, SIZE, SIZE, 3) and data.images.dtype == np.uint8
    assert data.subject.shape == (ROWS,) and data.subject.dtype == np.int64
    assert data.au.shape == (ROWS, 2) and data.au.dtype == np.float32
    assert set(data.split) == {"train", "val", "test"}


def test_missing_labels_are_nan_and_the_others_exact(data: FaceData) -> None:
    expected = np.random.default_rng(1).uniform(0, 5, (ROWS, 2)).astype(np.float32)
    expected[3, 1] = np.nan
    np.testing.assert_array_equal(data.au, expected)


@pytest.mark.parametrize("name", ["images.npy", "labels.csv", "meta.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: not found"):
        FaceData.open(folder)


def test_truncated_images_are_named(folder: Path) -> None:
    path = folder / "images.npy"
    whole = path.stat().st_size
    for length in (0, 5, 100, whole // 2, whole - 1):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match=rf"images\.npy: truncated .*: found {length} bytes, expected 7680 "):
            FaceData.open(folder)
        write_set(folder)


@pytest.mark.parametrize(
    "array",
    [np.zeros((ROWS, SIZE, SIZE), np.uint8), np.zeros((ROWS, SIZE, SIZE, 3), np.float32), np.zeros((1, 1), object)],
    ids=["shape", "dtype", "objects"],
)
def test_images_of_another_form_are_refused(folder: Path, array: np.ndarray) -> None:
    np.save(folder / "images.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"images\.npy: .*found .*expected"):
        FaceData.open(folder)


@pytest.mark.parametrize(
    ("line", "column", "value", "message"),
    [
        (2, "subject", "", "found '', expected a whole number >= 0"),
        (9, "subject", "-1", "found '-1', expected a whole number >= 0"),
        (9, "subject", "1.5", "found '1.5', expected a whole number >= 0"),
        (41, "split", "dev", "found 'dev', expected one of train, val, test"),
        (5, "split", "test", "found 'test', expected the split that this subject has in the lines above"),
        (7, "AU1", "5.01", "found '5.01', expected 0 to 5 or an empty cell"),
        (7, "AU1", "-0.1", "found '-0.1', expected 0 to 5 or an empty cell"),
        (40, "AU12", "n/a", "found 'n/a', expected 0 to 5 or an empty cell"),
        (40, "AU12", "nan", "found 'nan', expected 0 to 5 or an empty cell"),
        (40, "AU12", "inf", "found 'inf', expected 0 to 5 or an empty cell"),
    ],
)
def test_a_bad_cell_is_named(folder: Path, line: int, column: str, value: str, message: str) -> None:
    edit_cell(folder, line, column, value)
    with pytest.raises(ValueError) as error:
        FaceData.open(folder)
    assert str(error.value) == f"{folder / 'labels.csv'}: line {line}, column {column}: {message}"


def test_a_missing_column_missing_rows_and_a_ragged_line_are_named(folder: Path) -> None:
    path = folder / "labels.csv"
    good = path.read_text()
    path.write_text(good.replace("AU12", "AU99"))
    with pytest.raises(ValueError, match="column AU12: not found"):
        FaceData.open(folder)
    path.write_text("".join(good.splitlines(keepends=True)[:-3]))
    with pytest.raises(ValueError, match="found 37 rows, expected 40"):
        FaceData.open(folder)
    path.write_text(good.replace("\n1,", "\n1,,,,,,,1,", 1))
    with pytest.raises(ValueError, match=r"not a readable table: .*line 6"):
        FaceData.open(folder)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a readable table"):
        FaceData.open(folder)
    path.write_bytes(b"subject,split\xff\n")
    with pytest.raises(ValueError, match="not a readable table"):
        FaceData.open(folder)


@pytest.mark.parametrize(
    "changes", [{"format": 2}, {"size": "64"}, {"rows": None}, {"au_names": "AU1"}, {"sha256": []}, {"size": 64}]
)
def test_bad_meta_is_refused(folder: Path, changes: dict) -> None:
    edit_meta(folder, **changes)
    with pytest.raises(ValueError, match=r"found .*, expected"):
        FaceData.open(folder)


def test_meta_that_is_no_json_is_refused(folder: Path) -> None:
    for text in ("{", "[]", ""):
        (folder / "meta.json").write_text(text)
        with pytest.raises(ValueError, match=r"meta\.json"):
            FaceData.open(folder)


@pytest.mark.parametrize("name", ["images.npy", "labels.csv"])
def test_verify_finds_a_changed_byte(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1  # a pixel; a digit of the last column
    (folder / name).write_bytes(content)
    FaceData.open(folder)
    with pytest.raises(ValueError, match=rf"{name}: damaged: sha256 [0-9a-f]{{64}}, expected [0-9a-f]{{64}}"):
        FaceData.open(folder, verify=True)


# -- subsets -------------------------------------------------------------------------------------------------------


def test_splits_share_no_subject_and_lose_no_row(data: FaceData) -> None:
    parts = [data.subset(name) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(data)
    subjects = [set(part.subject.tolist()) for part in parts]
    assert not (subjects[0] & subjects[1] or subjects[0] & subjects[2] or subjects[1] & subjects[2])


def test_rows_of_a_subset_stay_together(data: FaceData) -> None:
    part = data.subset("test")[::2]
    assert part.images.shape == (len(part), SIZE, SIZE, 3)
    for i in range(len(part)):
        row = part.images[i][0, 0, 0]  # the pixel that holds the row in the whole set
        assert part.subject[i] == data.subject[row] and part.split[i] == "test"
        np.testing.assert_array_equal(part.au[i], data.au[row])
        np.testing.assert_array_equal(part.images[i], data.images[row])
    np.testing.assert_array_equal(part.pixels(np.array([1, 0]))[0].permute(1, 2, 0).numpy(), part.images[1])


def test_an_unknown_split_is_refused(data: FaceData) -> None:
    with pytest.raises(ValueError, match="found 'dev', expected one of train, val, test"):
        data.subset("dev")


# -- pairs ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=8),
    n=st.integers(0, 50),
    seed=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
)
def test_pairs_never_share_a_subject(sizes: list[int], n: int, seed: int, order) -> None:
    subject = np.repeat(np.arange(len(sizes)), sizes)
    order.shuffle(subject)
    pairs = draw_pairs(subject, n, np.random.default_rng(seed))
    assert pairs.shape == (n, 2) and pairs.dtype == np.int64
    assert (subject[pairs[:, 0]] != subject[pairs[:, 1]]).all()


def test_pairs_are_uniform_over_all_rows_of_other_subjects() -> None:
    subject = np.array([0, 0, 0, 1, 2, 2])
    pairs = draw_pairs(subject, 60_000, np.random.default_rng(0))
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(pairs.T), 1)
    others = subject[:, None] != subject[None]
    expected = others / others.sum(1, keepdims=True) / 6
    np.testing.assert_allclose(counts / len(pairs), expected, atol=0.004)


@pytest.mark.parametrize("subject", [[], [3], [3, 3, 3]])
def test_one_subject_makes_no_pairs(subject: list[int]) -> None:
    with pytest.raises(ValueError, match="two subjects"):
        draw_pairs(np.array(subject, np.int64), 4, np.random.default_rng(0))


def test_a_batch_holds_what_the_set_holds(data: FaceData) -> None:
    batch = pair_batch(data, step=7, batch_size=32, seed=3)
    assert batch.image.shape == (64, 3, SIZE, SIZE) and batch.image.dtype == torch.uint8 and batch.rest is None
    rows = batch.image[:, 0, 0, 0].long().numpy()
    np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1).numpy(), data.images[rows])
    np.testing.assert_array_equal(batch.au.numpy(), data.au[rows])
    np.testing.assert_array_equal(batch.subject.numpy(), data.subject[rows])
    assert (batch.subject[:32] != batch.subject[32:]).all()


def test_pairs_inside_a_take_come_with_the_face_at_rest() -> None:
    take = np.array([7, 7, 7, -1, 3, 3, 5, -1])  # 5 has one image, -1 is unknown: neither makes pairs
    au = np.array([[1, 2], [0, 0], [3, 0], [0, 0], [1, 1], [0, np.nan], [0, 0], [1, 0]], np.float32)
    images = np.arange(8, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    subject, split = np.array([0, 0, 0, 1, 1, 1, 2, 2]), np.full(8, "train")
    data = FaceData(images, subject, split, au, ("AU1", "AU12"), {}, take)
    drawn = draw_takes(data, 2000, np.random.default_rng(0))
    assert set(map(tuple, drawn.tolist())) == {
        (0, 1, 1), (0, 2, 1), (1, 0, 1), (1, 2, 1), (2, 0, 1), (2, 1, 1), (4, 5, -1), (5, 4, -1),
    }  # fmt: skip
    assert np.bincount(drawn[:, 0], minlength=8)[[0, 1, 2, 4, 5]] == pytest.approx(400, abs=80)
    batch = pair_batch(data, 0, 16, seed=1, takes=True)
    rows, rest = batch.image[:, 0, 0, 0].long(), batch.rest[:, 0, 0, 0].long()
    assert (take[rows[:16]] == take[rows[16:]]).all() and (rows[:16] != rows[16:]).all()
    assert torch.equal(batch.has_rest, rows <= 2) and (rest[rows <= 2] == 1).all()
    np.testing.assert_array_equal(take[rest], take[rows])
    assert same(pair_batch(data, 0, 16, seed=1, takes=True), batch)
    with pytest.raises(ValueError, match="takes: found none with two images"):
        draw_takes(data[[0, 3, 4, 6]], 1, np.random.default_rng(0))


def test_pairs_inside_a_take_are_near_in_pose() -> None:
    """Yaw 0, 4 and 8: 0 and 8 are no pair; the fourth is turned away, of the fifth nothing is known."""
    pose = np.array([[0, 0], [4, 0], [8, 4], [0, 30], [np.nan, np.nan], [3, 0], [7, 0]], np.float32)
    au = np.ones((7, 1), np.float32)
    au[[0, 2]] = 0  # at rest
    images, subject = np.zeros((7, 8, 8, 3), np.uint8), np.array([0, 0, 0, 0, 0, 1, 1])
    take = np.array([0, 0, 0, 0, 0, 1, 1])
    data = FaceData(images, subject, np.full(7, "train"), au, ("AU12",), {}, take, pose)
    drawn = draw_takes(data, 4000, np.random.default_rng(0))
    near = {(0, 1), (1, 2), (0, 4), (1, 4), (2, 4), (3, 4), (5, 6)}
    assert {tuple(pair) for pair in drawn[:, :2].tolist()} == near | {(b, a) for a, b in near}
    assert {(first, rest) for first, _, rest in drawn.tolist()} == {
        (0, 0),
        (1, 0),
        (2, 2),
        (3, -1),
        (4, 0),
        (5, -1),
        (6, -1),
    }
    np.testing.assert_array_equal(data[[6, 2]].pose, pose[[6, 2]])
    with pytest.raises(InputError, match="found 0 pairs within 4 degrees of yaw and pitch"):
        draw_takes(data[[0, 2, 3]], 1, np.random.default_rng(0))


def same(x, y) -> bool:
    return all(torch.equal(torch.nan_to_num(vars(x)[k].float(), -1), torch.nan_to_num(vars(y)[k].float(), -1))
               for k in vars(x) if vars(x)[k] is not None)  # fmt: skip


def test_a_batch_depends_on_seed_and_step_alone(folder: Path) -> None:
    first, second = FaceData.open(folder), FaceData.open(folder)
    history = [pair_batch(first, step, 8, seed=5) for step in range(6)]
    assert same(pair_batch(second, 4, 8, seed=5), history[4])
    assert not same(history[0], history[1])
    assert not same(history[0], pair_batch(first, 0, 8, seed=6))


def test_a_resumed_stream_sees_the_same_batches(data: FaceData) -> None:
    whole, resumed = batches(data, 4, seed=1), batches(data, 4, seed=1, first=3)
    for step, batch in zip(range(6), whole, strict=False):
        assert same(batch, pair_batch(data, step, 4, 1))
        if step >= 3:
            assert same(batch, next(resumed))
    whole.close(), resumed.close()


def test_a_large_set_is_read_from_disk_and_gives_the_same_batches(
    folder: Path, data: FaceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = pair_batch(data.subset("train"), 2, 16, seed=0)
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 100)
    part = FaceData.open(folder).subset("train")
    assert same(pair_batch(part, 2, 16, seed=0), resident)
    assert not part._resident


def test_a_small_set_moves_to_the_device_once(data: FaceData) -> None:
    kept = [pair_batch(data, step, 4, 0) and data._resident[torch.device("cpu")].data_ptr() for step in range(3)]
    assert len(set(kept)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_on_a_gpu_equal_those_on_the_cpu(data: FaceData) -> None:
    batch = pair_batch(data, 1, 8, 0, device="cuda")
    assert batch.image.is_cuda and batch.au.is_cuda and batch.subject.is_cuda
    assert torch.equal(batch.image.cpu(), pair_batch(data, 1, 8, 0).image)


# -- held-out pairs ------------------------------------------------------------------------------------------------


def test_held_out_pairs_are_fixed_distinct_and_held_out(data: FaceData) -> None:
    pairs = held_out_pairs(data, 40, seed=0)
    assert pairs.shape == (40, 2) and pairs.dtype == np.int64
    assert (data.split[pairs] == "test").all()
    assert (data.subject[pairs[:, 0]] != data.subject[pairs[:, 1]]).all()
    assert len({frozenset(pair) for pair in pairs.tolist()}) == 40
    np.testing.assert_array_equal(pairs, held_out_pairs(data, 40, seed=0))
    np.testing.assert_array_equal(pairs[:9], held_out_pairs(data, 9, seed=0))
    assert (pairs != held_out_pairs(data, 40, seed=1)).any()


def test_every_possible_held_out_pair_can_be_had_but_no_more(data: FaceData) -> None:
    assert len(held_out_pairs(data, 48, seed=0)) == 48  # 3 subjects x 4 images: 3 * 4 * 4
    with pytest.raises(ValueError, match=r"split test: 48 pairs .* expected at least 49"):
        held_out_pairs(data, 49, seed=0)
    with pytest.raises(ValueError, match="split val: 0 pairs"):
        held_out_pairs(data, 1, seed=0, split="val")


# -- pixels --------------------------------------------------------------------------------------------------------


def test_pixels_survive_the_way_there_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert to_float(pixels).min() == -1 and to_float(pixels).max() == 1
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    assert to_uint8(to_float(pixels).bfloat16()).sub(pixels).to(torch.int8).abs().max() <= 1


# -- one copy on the device, one look at the hashes -----------------------------------------------------------------


def test_two_names_of_a_device_are_one_and_simultaneous_first_readers_make_one_copy(
    data: FaceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, array = [], np.array

    def slow(images: object) -> np.ndarray:
        copies.append(images)
        time.sleep(0.05)
        return array(images)

    monkeypatch.setattr(datasets.np, "array", slow)
    with ThreadPoolExecutor(4) as readers:
        found = list(readers.map(lambda where: data.pixels(np.arange(3), where), ("cpu", "cpu:0", "cpu", "cpu:0")))
    assert len(copies) == 1 and len(data._resident) == 1
    assert all(torch.equal(f, found[0]) for f in found)


def test_hashes_are_compared_once_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, sha = list[str](), datasets.sha256
    monkeypatch.setattr(datasets, "sha256", lambda path: read.append(path.name) or sha(path))
    for _ in range(2):
        FaceData.open(folder, verify="once")
        assert read == ["images.npy", "labels.csv"]
    (folder / ".verified.json").write_text("damaged")
    FaceData.open(folder, verify="once")
    assert len(read) == 4
    content = bytearray((folder / "images.npy").read_bytes())
    content[-1] ^= 1
    (folder / "images.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.npy: damaged"):
        FaceData.open(folder, verify="once")
