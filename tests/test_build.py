"""Building a data set folder: the same bytes whatever happens, and one clear line where it cannot be.

A fake renderer, fast and exact, stands in for the real one, except in the tests at the end.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from expr_lib.datasets import FaceData
from expr_lib.faces import build as module
from expr_lib.faces.build import build
from expr_lib.faces.plan import FacesConfig
from expr_lib.facs import AU_NAMES

REAL_PLAN, REAL_RENDERER = module.plan_faces, module.load_renderer
CONFIG = FacesConfig(n_subjects=10, images_per_subject=20, size=8, seed=3, val=0.2, test=0.2)  # 200 rows: 4 chunks
FILES = ("images.npy", "labels.csv", "meta.json")


class FakePlan:
    """Stands for sample.FacePlan: noise that depends on the seed and the row alone."""

    def __init__(self, config: FacesConfig) -> None:
        self.config, n = config, config.n_subjects * config.images_per_subject
        rng = np.random.default_rng(config.seed)
        self.subject = torch.arange(n) // config.images_per_subject
        share = self.subject.numpy() / config.n_subjects
        self.split = np.where(share < config.val, "val", np.where(share < config.val + config.test, "test", "train"))
        self.take = torch.full((n,), -1)
        self.au = torch.from_numpy(rng.uniform(0, 5, (n, len(AU_NAMES))).astype(np.float32))
        self.views = SimpleNamespace(**{k: torch.full((n,), 1.5) for k in ("yaw", "pitch", "roll")})

    def __len__(self) -> int:
        return len(self.subject)

    def render(self, renderer, rows: torch.Tensor):
        renderer(rows)
        size = self.config.size
        images = np.stack(
            [
                np.random.default_rng([self.config.seed, r]).integers(0, 256, (size, size, 3), np.uint8)
                for r in rows.tolist()
            ]
        )
        return torch.from_numpy(images), None


@pytest.fixture(autouse=True)
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Puts the fakes in place; the list holds the first row of every chunk that was rendered."""
    calls: list[int] = []
    monkeypatch.setattr(module, "plan_faces", FakePlan)
    monkeypatch.setattr(module, "load_renderer", lambda device="cpu": lambda rows: calls.append(int(rows[0])))
    return calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "faces"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "plan_faces", FakePlan)
        patch.setattr(module, "load_renderer", lambda device="cpu": lambda rows: None)
        build(folder, CONFIG, progress=False)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".build.lock"}


@pytest.fixture
def real(rendered: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the fakes away again."""
    monkeypatch.setattr(module, "plan_faces", REAL_PLAN)
    monkeypatch.setattr(module, "load_renderer", REAL_RENDERER)


# -- what is written -----------------------------------------------------------------------------------------------


def test_the_folder_opens_as_a_data_set_and_holds_the_plan(tmp_path: Path) -> None:
    data = FaceData.open(build(tmp_path / "a" / "faces", CONFIG, progress=False), verify=True)
    plan = FakePlan(CONFIG)
    assert data.au_names == AU_NAMES and data.size == 8 and len(data) == 200
    np.testing.assert_array_equal(data.images, plan.render(lambda rows: None, torch.arange(200))[0])
    np.testing.assert_array_equal(data.au, plan.au)
    np.testing.assert_array_equal(data.subject, plan.subject)
    np.testing.assert_array_equal(data.split, plan.split)
    assert data.meta["config"]["seed"] == 3 and data.meta["generator"] == module.VERSION
    assert set(contents(tmp_path / "a" / "faces")) == set(FILES)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, whole: dict[str, bytes]) -> None:
    build(tmp_path / "same", CONFIG, progress=False)
    assert contents(tmp_path / "same") == whole
    other = FacesConfig(n_subjects=10, images_per_subject=20, size=8, seed=4, val=0.2, test=0.2)
    build(tmp_path / "other", other, progress=False)
    assert all(contents(tmp_path / "other")[name] != whole[name] for name in FILES)


def test_a_finished_folder_is_left_alone(tmp_path: Path, rendered: list[int]) -> None:
    folder = build(tmp_path / "faces", CONFIG, progress=False)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    rendered.clear()
    build(folder, CONFIG, progress=False)
    assert rendered == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_progress_is_shown_only_when_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "quiet", CONFIG, progress=False)
    assert capfd.readouterr() == ("", "")
    build(tmp_path / "loud", CONFIG)
    assert "200/200" in capfd.readouterr().err


# -- killed --------------------------------------------------------------------------------------------------------


def run_and_die(folder: Path, calls_to_live: int) -> None:
    """In a child: build, but SIGKILL oneself when a chunk, a rename or a removal begins for the given time."""
    left = [calls_to_live]

    def count_down(real):
        def wrapped(*args, **kwargs):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args, **kwargs)

        return wrapped

    FakePlan.render = count_down(FakePlan.render)
    os.replace, Path.unlink, os.fsync = count_down(os.replace), count_down(Path.unlink), count_down(os.fsync)
    build(folder, CONFIG, progress=False)


def in_child(target, *args) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=target, args=args)
    child.start()
    return child


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_killed_before_every_single_step_it_ends_with_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], rendered: list[int]
) -> None:
    for step in range(100):
        child = in_child(run_and_die, tmp_path / str(step), step)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        rendered.clear()
        build(tmp_path / str(step), CONFIG, progress=False)
        assert contents(tmp_path / str(step)) == whole, f"killed before step {step}"
        kept = min(max(0, (step - 1) // 2), 4)  # a first journal, then chunk, journal, chunk, journal, ...
        assert rendered == [0, 64, 128, 192][kept:], f"killed before step {step}"
    assert step >= 12  # 4 chunks and 5 journals, the flush, labels, the pixels' name, meta, the journal's removal


def run_and_hang(folder: Path, chunk: int) -> None:
    """In a child: build, but never come back from rendering this chunk."""
    module.load_renderer = lambda device="cpu": lambda rows: time.sleep(600 if rows[0] == chunk * module.CHUNK else 0)
    build(folder, CONFIG, progress=False)


def finished_chunks(folder: Path) -> int:
    return len(json.loads((folder / "build.json").read_text())["crc32"]) if (folder / "build.json").exists() else -1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_killed_from_outside_again_and_again_it_still_ends_with_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], rendered: list[int]
) -> None:
    for chunk in (0, 1, 3):
        child = in_child(run_and_hang, tmp_path / "faces", chunk)
        while finished_chunks(tmp_path / "faces") < chunk:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    build(tmp_path / "faces", CONFIG, progress=False)
    assert rendered == [192]
    assert contents(tmp_path / "faces") == whole


def interrupted(folder: Path, after: int) -> Path:
    """An unfinished folder with this many finished chunks."""

    def stop(rows: torch.Tensor) -> None:
        if rows[0] == after * module.CHUNK:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_renderer", lambda device="cpu": stop)
        with pytest.raises(KeyboardInterrupt):
            build(folder, CONFIG, progress=False)
    return folder


def test_a_resumed_run_renders_only_what_is_missing(
    tmp_path: Path, rendered: list[int], whole: dict[str, bytes]
) -> None:
    folder = interrupted(tmp_path / "faces", after=2)
    with pytest.raises(FileNotFoundError, match=r"meta\.json: not found; expected a finished data set"):
        FaceData.open(folder)
    build(folder, CONFIG, progress=False)
    assert rendered == [128, 192]
    assert contents(folder) == whole


@pytest.mark.parametrize("damage", ["changed", "shorter", "longer", "gone"])
def test_damage_to_unfinished_pixels_is_found_and_mended(
    tmp_path: Path, rendered: list[int], whole: dict[str, bytes], damage: str
) -> None:
    partial = interrupted(tmp_path / "faces", after=3) / "images.npy.partial"
    content = bytearray(partial.read_bytes())
    if damage == "changed":
        content[128 + 70 * 8 * 8 * 3] ^= 1  # in row 70, the second chunk
    partial.write_bytes({"shorter": content[:-5], "longer": content + bytes(99_999), "gone": b""}.get(damage, content))
    build(tmp_path / "faces", CONFIG, progress=False)
    assert rendered == {"changed": [64, 192], "shorter": [128, 192], "longer": [192], "gone": [0, 64, 128, 192]}[damage]
    assert contents(tmp_path / "faces") == whole


# -- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("key", "found", "expected"), [("seed", 3, 7), ("size", 8, 16), ("images_per_subject", 20, 21), ("val", 0.2, 0.3)]
)
def test_other_settings_are_refused_and_nothing_is_touched(
    tmp_path: Path, finished: bool, key: str, found: float, expected: float
) -> None:
    folder = build(tmp_path / "faces", CONFIG, progress=False) if finished else interrupted(tmp_path / "faces", 2)
    before = contents(folder)
    other = FacesConfig(**{**vars(CONFIG), key: expected})
    with pytest.raises(ValueError, match=rf"json: other settings: {key}: found {found}, expected {expected}"):
        build(folder, other, progress=False)
    assert contents(folder) == before


def test_another_generator_or_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(tmp_path / "faces", 2)
    with pytest.raises(ValueError, match="other settings: device: found 'cpu', expected 'cuda'"):
        build(folder, CONFIG, device="cuda", progress=False)
    monkeypatch.setattr(module, "VERSION", "next")
    with pytest.raises(ValueError, match=r"other settings: generator: found .* expected 'next'"):
        build(folder, CONFIG, progress=False)


def test_files_of_another_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images.npy").write_bytes(b"somebody's work")
    with pytest.raises(ValueError, match=r"found images\.npy without meta\.json, expected a new or an empty folder"):
        build(tmp_path, CONFIG, progress=False)
    assert contents(tmp_path) == {"images.npy": b"somebody's work"}


@pytest.mark.parametrize("name", ["images.npy", "labels.csv"])
@pytest.mark.parametrize("damage", ["changed", "truncated", "empty", "gone"])
def test_damage_to_a_finished_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    file = build(tmp_path / "faces", CONFIG, progress=False) / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes({"changed": content, "truncated": content[:-1]}.get(damage, b""))
    if damage == "gone":
        file.unlink()
    with pytest.raises(ValueError, match=rf"{name}: damaged: found .*, expected [0-9a-f]{{64}}; delete the folder"):
        build(tmp_path / "faces", CONFIG, progress=False)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\x00"])
@pytest.mark.parametrize("name", ["meta.json", "build.json"])
def test_a_damaged_record_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = interrupted(tmp_path / "faces", 1)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: damaged: .*expected a JSON object; delete the folder"):
        build(folder, CONFIG, progress=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_second_builder_is_refused_while_the_first_lives(tmp_path: Path, whole: dict[str, bytes]) -> None:
    first = in_child(run_and_hang, tmp_path / "faces", 2)
    while finished_chunks(tmp_path / "faces") < 2:
        time.sleep(0.01)
    with pytest.raises(BlockingIOError, match="another process is building here"):
        build(tmp_path / "faces", CONFIG, progress=False)
    assert finished_chunks(tmp_path / "faces") == 2
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    build(tmp_path / "faces", CONFIG, progress=False)  # a dead builder is no obstacle
    assert contents(tmp_path / "faces") == whole


# -- a full disk ---------------------------------------------------------------------------------------------------


def test_too_little_room_is_said_before_any_work(
    tmp_path: Path, rendered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(OSError, match="cannot write: disk full: found 0 MB free, expected 0 MB; 0 of 200 images"):
        build(tmp_path / "faces", CONFIG, progress=False)
    assert rendered == []


def run_with_limit(folder: Path, limit: int, answer: multiprocessing.Queue) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        build(folder, CONFIG, progress=False)
    except OSError as error:
        answer.put(str(error))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_disk_that_fills_up_keeps_what_was_finished(
    tmp_path: Path, rendered: list[int], whole: dict[str, bytes]
) -> None:
    answer = multiprocessing.get_context("fork").Queue()
    child = in_child(run_with_limit, tmp_path / "faces", 30_000, answer)  # of 38,528 bytes
    child.join()
    error = answer.get(timeout=5)
    assert "cannot write: File too large; 128 of 200 images are finished and kept" in error and "\n" not in error
    build(tmp_path / "faces", CONFIG, progress=False)
    assert rendered == [128, 192]
    assert contents(tmp_path / "faces") == whole


def test_a_disk_without_room_for_the_last_file_says_so(
    tmp_path: Path, rendered: list[int], whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str, write=module._write) -> None:
        if path.name in ("labels.csv", "meta.json"):
            raise OSError(28, "No space left on device")
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", full)
        with pytest.raises(OSError, match="cannot write: No space left on device; 200 of 200 images are finished"):
            build(tmp_path / "faces", CONFIG, progress=False)
    rendered.clear()
    build(tmp_path / "faces", CONFIG, progress=False)
    assert rendered == [] and contents(tmp_path / "faces") == whole


# -- the real renderer ---------------------------------------------------------------------------------------------

SMALL = FacesConfig(n_subjects=5, images_per_subject=2, size=32, seed=1, val=0.2, test=0.2)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 4)
        patch.setattr(module, "plan_faces", REAL_PLAN)
        patch.setattr(module, "load_renderer", REAL_RENDERER)
        return build(tmp_path_factory.mktemp("real") / "faces", SMALL, progress=False)


def test_rendered_faces_survive_an_interruption_byte_by_byte(
    tmp_path: Path, real: None, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    write, journals = module._write, []

    def stop_after_two_chunks(path: Path, text: str) -> None:
        write(path, text)
        journals.append(path)
        if len(journals) == 3:  # the empty one and two chunks
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", stop_after_two_chunks)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "faces", SMALL, progress=False)
    build(tmp_path / "faces", SMALL, progress=False)
    assert contents(tmp_path / "faces") == contents(faces)


def test_a_face_does_not_depend_on_the_others_in_its_chunk(real: None, faces: Path) -> None:
    data, plan, renderer = FaceData.open(faces, verify=True), REAL_PLAN(SMALL), REAL_RENDERER()
    assert set(data.split) == {"train", "val", "test"}
    for row in (0, 3, 9):
        alone = plan.render(renderer, torch.tensor([row]))[0][0].numpy()
        away = np.abs(alone.astype(int) - data.images[row]).max(-1) > 1
        assert away.mean() < 0.005  # rounding may tip single pixels on an edge


DATA = Path(__file__).parents[1] / "data"


def test_the_sample_is_six_people_with_the_same_six_expressions(tmp_path: Path, real: None) -> None:
    folder = module.write_sample(tmp_path / "data", size=16)
    labels = pd.read_csv(folder / "labels.csv")
    assert len(labels) == 36 and sorted(labels["file"]) == sorted(path.name for path in folder.glob("*.png"))
    au = labels[list(AU_NAMES)].to_numpy().reshape(6, 6, -1)
    assert (au == au[0]).all() and len(np.unique(au[0], axis=0)) == 6
    table = pd.read_csv(folder / "co-occurrence.csv", index_col="given")
    assert list(table.columns) == list(AU_NAMES) and list(table.index) == ["any", *AU_NAMES]
    assert (np.diag(table.iloc[1:]) == 1).all() and table.to_numpy().min() >= 0
    # what data/ shows is what the generator makes today; if not: write_sample("data"), and look at the data card
    pd.testing.assert_frame_equal(labels, pd.read_csv(DATA / "labels.csv"), atol=0.02)
    pd.testing.assert_frame_equal(table, pd.read_csv(DATA / "co-occurrence.csv", index_col="given"), atol=0.005)


def test_the_data_card_shows_every_file_and_the_figures_of_the_sample() -> None:
    card = (DATA / "README.md").read_text(encoding="utf-8")
    files = pd.read_csv(DATA / "labels.csv")["file"]
    assert all(f"]({file})" in card and Image.open(DATA / file).size == (128, 128) for file in files)
    shares = pd.read_csv(DATA / "co-occurrence.csv", index_col="given").loc["any"]
    assert all(f"| {name} | " in card and f"| {100 * share:.0f} % |" in card for name, share in shares.items())


def test_a_renderer_that_rounds_otherwise_each_time_still_ends_with_a_sound_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA adds up in any order: a set that was interrupted there is sound, and no promise is made of its bytes."""
    render, calls = FakePlan.render, list[int]()

    def unsteady(self, renderer, rows, **more):
        images, masks = render(self, renderer, rows, **more)
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (images ^ (len(calls) % 2)).to(torch.uint8), masks

    monkeypatch.setattr(FakePlan, "render", unsteady)
    config = FacesConfig(13, 10, size=16)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, config, progress=False)
    build(tmp_path, config, progress=False)
    assert len(FaceData.open(tmp_path, verify=True)) == 130 and sum(calls) == 64 + 64 + 66
    said = " ".join(str(build.__doc__).split())
    assert "On a CPU the same settings give the same bytes" in said and "CUDA" in said
