"""Whole families of damaged files and impossible options: all refused in one line with exit code 2, nothing written."""

import contextlib
import copy
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as serialize

from expr_lib import WEIGHTS, checkpoint, tensors
from expr_lib.apps import cli
from expr_lib.datasets import FaceData
from expr_lib.errors import InputError
from expr_lib.faces.build import build
from expr_lib.faces.head import HEAD_FILE, HeadModel
from expr_lib.faces.plan import FacesConfig
from expr_lib.importers.write import ImportConfig
from expr_lib.measure.familiar import Familiar, load_familiar, save_familiar
from expr_lib.measure.judges import AUJudge, IdentityJudge, load_judge, save_judge
from expr_lib.measure.train_judges import JudgeConfig
from expr_lib.model import ModelConfig, Swapper
from expr_lib.step import TakeWeights, TrainConfig, Weights
from expr_lib.train import train

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
AUS = ("AU1", "AU12", "AU26")
SMALL = ModelConfig(size=16, n_aus=3, d=2, c_f=2, width=8, width_r=8, width_d=8)
RUN = TrainConfig(
    steps=2, warmup_steps=1, batch_size=2, warmup_batch_size=2, precision="fp32", device="cpu", n_samples=1, model=SMALL
)
TITLE = "Refused in one line with exit 2, nothing written"


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below one, with size and time."""
    found = {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*") if p.suffix != ".lock"}
    return found


def one_line(text: str) -> None:
    assert text.count("\n") == 0 and 10 < len(text) < 1500, text
    assert "Traceback" not in text and "[Errno" not in text and not re.search("[│─╭╰]|invalid literal", text), text


class Family:
    """Counts what was refused; anything else is an AssertionError."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.n = name, folder, 0

    def command(self, *arguments: Any) -> str:
        before, out, err = state(self.folder), io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
            cli.main([str(a) for a in arguments])
        assert left.value.code == 2, (arguments, left.value.code)
        told = re.sub(r"\r.*", "", err.getvalue()).lstrip("\n")  # without progress bars
        assert told.startswith("expr-lib: error: ") and told.endswith("\n"), (arguments, told)
        one_line(told[:-1])
        assert state(self.folder) == before, (arguments, told)
        self.n += 1
        return told

    def call(self, function: Callable[[], Any]) -> None:
        """The same for what no command reads from a path of the user's."""
        before = state(self.folder)
        with pytest.raises((InputError, FileNotFoundError)) as refused:
            function()
        one_line(str(refused.value))
        assert state(self.folder) == before
        self.n += 1


@pytest.fixture
def family(request: pytest.FixtureRequest, tmp_path: Path, record_property: Any) -> Iterator[Family]:
    name, least = request.param
    family = Family(name, tmp_path)
    yield family
    assert family.n >= least, f"{name}: {family.n} cases, expected {least}"
    record_property("table", f"{TITLE}\n{name:52}{family.n:6}")


def of(name: str, least: int) -> Any:
    return pytest.mark.parametrize("family", [(name, least)], indirect=True, ids=[""])


def generated(n: int) -> Any:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    return settings(max_examples=n, deadline=None, database=None, derandomize=True, suppress_health_check=checks)


def killed(*args: Any, **more: Any) -> None:
    raise KeyboardInterrupt


TREES = st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
HOSTILE = st.one_of(
    st.none(), st.booleans(), st.text(max_size=12), st.sampled_from([-1, 0, -(2**63), 2**64, 10**30, 1_000_003]),
    st.integers(-(10**9), -1), st.floats(0.01, 0.99), st.lists(st.text(max_size=4), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), TREES,
)  # fmt: skip


def edited(about: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another entry at `a.b`; the entry is removed if the value is `...`."""
    about = copy.deepcopy(about)
    *way, last = place.split(".")
    inner = about
    for key in way:
        inner = inner[key]
    inner.pop(last, None)
    if value is not ...:
        inner[last] = value
    return about


# -- weights -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swapper() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    torch.manual_seed(0)
    swapper = Swapper(SMALL)
    swapper.au_names = AUS
    return checkpoint.module_tensors("ema", swapper), checkpoint.describe(swapper, step=7)


def write_raw(path: Path, weights: dict[str, torch.Tensor], about: Any, **more: Any) -> None:
    """What `tensors.write` would refuse to write."""
    if isinstance(about, dict):
        about = {"format": 1, "sha256": tensors.digest(weights)} | about | more
    path.write_bytes(serialize(weights, {"expr_lib": about if isinstance(about, str) else json.dumps(about)}))


def opened(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata, without the hash, which `write_raw` makes anew."""
    weights, about = tensors.read(path)
    return weights, {key: value for key, value in about.items() if key != "sha256"}


@of("metadata of a swapper", 150)
def test_metadata_of_a_swapper(family: Family, tmp_path: Path, swapper: Any) -> None:
    weights, about = swapper
    path, out = tmp_path / "swap.safetensors", tmp_path / "out.safetensors"
    places = ["au_names", "model", "size", "format", "sha256"]
    places += [f"model.{field.name}" for field in fields(ModelConfig) if field.name != "conditional"]

    @generated(150)
    @given(st.sampled_from(places), HOSTILE)
    def changed(place: str, value: Any) -> None:
        assume(not (place == "model.noise" and type(value) in (int, float) and 0 <= value <= 100))
        write_raw(path, weights, edited({"format": 1, "sha256": tensors.digest(weights)} | about, place, value))
        family.command("ship", path, "-o", out)

    changed()
    for place in ("au_names", "model", "size"):
        write_raw(path, weights, edited(about, place, ...))
        assert place in family.command("ship", path, "-o", out)
    for names in (["AU1", "AU1", "AU2"], ["AU1", "AU2"], ["AU1", "AU2", "smile"], ["AU1", "AU2", "AU٣"], []):
        write_raw(path, weights, about, au_names=names)
        assert "au_names" in family.command("swap", *photos(tmp_path), "--checkpoint", path, "-o", tmp_path / "x.png")
    for text in ("[" * 100_000 + "]" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "[]", "7", "", '{"format": 1'):
        write_raw(path, weights, text)
        family.command("ship", path, "-o", out)
    write_raw(path, weights, about, model=about["model"] | {"depth": 3})
    assert "depth" in family.command("ship", path, "-o", out)


def photos(folder: Path) -> list[Path]:
    from PIL import Image

    paths = [folder / name for name in ("a.png", "b.png")]
    for path in paths:
        if not path.exists():
            Image.new("RGB", (20, 20), (120, 90, 80)).save(path)
    return paths


@of("tensors of a swapper", 80)
def test_tensors_of_a_swapper(family: Family, tmp_path: Path, swapper: Any) -> None:
    weights, about = swapper
    path, out = tmp_path / "swap.safetensors", tmp_path / "out.safetensors"

    def poison(number: float, t: torch.Tensor) -> torch.Tensor:
        t = t.float().clone()
        t.view(-1)[-1] = number
        return t

    damages: dict[str, Callable[[torch.Tensor], Any]] = {
        "NaN": partial(poison, math.nan), "Inf": partial(poison, math.inf), "shape": lambda t: t[None],
        "complex": lambda t: t.to(torch.complex64), "bool": lambda t: t.bool(), "int8": lambda t: t.to(torch.int8),
        "float64": lambda t: t.double(), "missing": lambda t: None, "int32": lambda t: t.to(torch.int32),
    }  # fmt: skip

    @generated(80)
    @given(st.sampled_from(sorted(weights)), st.sampled_from(sorted(damages)))
    def changed(name: str, damage: str) -> None:
        bad = damages[damage](weights[name])
        write_raw(path, {k: v for k, v in (weights | {name: bad}).items() if v is not None}, about)
        assert name in family.command("ship", path, "-o", out)

    changed()
    write_raw(path, weights | {"ema.new": torch.zeros(1)}, about)
    family.command("ship", path, "-o", out)
    name = next(name for name in weights if name.endswith("running_var"))
    write_raw(path, weights | {name: -weights[name]}, about)
    assert "negative variance" in family.command("ship", path, "-o", out)
    for table in (torch.zeros(3, 6, 3), torch.full((3, 6, 2), math.nan), torch.zeros(3, 6, 2).double()):
        write_raw(path, weights | {"table.f_r": table}, about)
        assert "table.f_r" in family.command("ship", path, "-o", out)
    write_raw(path, weights | {"table.f_f": torch.zeros(3, 6, 2)}, about)
    assert "table.f_f" in family.command("ship", path, "-o", out)
    write_raw(path, {"D.x": torch.zeros(1)}, about)
    assert "expected 'ema' weights" in family.command("ship", path, "-o", out)


@of("bytes of a swapper: cut, changed, not ours", 50)
def test_bytes_of_a_swapper(family: Family, tmp_path: Path, swapper: Any) -> None:
    path, out = tmp_path / "swap.safetensors", tmp_path / "out.safetensors"
    tensors.write(path, *swapper)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")

    @generated(50)
    @given(st.booleans(), st.floats(0, 0.999), st.integers(1, 255))
    def changed(cut: bool, where: float, flip: int) -> None:
        at = int(where * len(whole)) if cut else header + int(where * (len(whole) - header))
        path.write_bytes(whole[:at] if cut else whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        family.command("ship", path, "-o", out)

    changed()
    for text in (b"", b"no", b"\xff" * 8, b"\xff" * 100, whole[8:], (1 << 40).to_bytes(8, "little") + whole[8:]):
        path.write_bytes(text)
        family.command("ship", path, "-o", out)
    path.write_bytes(serialize({"x": torch.zeros(1)}, {"format": "pt"}))
    family.command("ship", path, "-o", out)
    family.command("ship", tmp_path, "-o", out)
    family.command("ship", tmp_path / "no", "-o", out)


@of("judges, scale and head (library)", 90)
def test_judges_scale_and_head(family: Family, tmp_path: Path) -> None:
    torch.manual_seed(0)
    identity, au = tmp_path / "id-judge-64.safetensors", tmp_path / "au-judge-64.safetensors"
    judges = {identity: IdentityJudge(2, 4), au: AUJudge(3, 2)}
    for path, judge in judges.items():
        judge.metadata = {"au_names": list(AUS)}
        save_judge(path, judge)
    known = Familiar(judges[identity], torch.zeros(44), torch.ones(44))
    save_familiar(known, tmp_path)
    scale = tmp_path / "familiar-64.safetensors"
    loads: dict[Path, Callable[[], Any]] = {
        identity: lambda: load_judge(identity, IdentityJudge), au: lambda: load_judge(au, AUJudge),
        scale: lambda: load_familiar(known.judge, tmp_path),
    }  # fmt: skip
    good = {path: opened(path) for path in loads}
    places = {identity: ["kind", "config", "config.width", "config.dim"], au: ["kind", "config.n_aus", "config.width"]}
    places[au] += ["au_names"]
    places[scale] = ["judge"]

    @generated(70)
    @given(st.sampled_from(list(loads)), st.data())
    def metadata(path: Path, data: st.DataObject) -> None:
        place, value = data.draw(st.sampled_from(places[path])), data.draw(HOSTILE)
        assume(not (place == "au_names" and value is None))
        write_raw(path, good[path][0], edited(good[path][1], place, value))
        family.call(loads[path])
        write_raw(path, *good[path])

    metadata()
    for path, (weights, about) in good.items():
        for name, wrong in ((next(iter(weights)), torch.nan), (list(weights)[-1], torch.inf)):
            write_raw(path, weights | {name: torch.full_like(weights[name].float(), wrong)}, about)
            family.call(loads[path])
            write_raw(path, {k: v for k, v in weights.items() if k != name}, about)
            family.call(loads[path])
        write_raw(path, weights, about)
    weights, about = opened(HEAD_FILE)
    path = tmp_path / "head.safetensors"
    for change in (
        {"actions": []}, {"parts": "skin"}, {"maps": ["brow"]}, {"landmarks": {"eye": [1.0]}}, {"quality": None},
    ):  # fmt: skip
        write_raw(path, weights, about | change)
        family.call(partial(HeadModel, path))
    for name, tensor in {
        "mean": weights["mean"][:-1], "triangles": weights["triangles"] + 6000, "map_uv": weights["map_uv"] * torch.nan,
    }.items():  # fmt: skip
        write_raw(path, weights | {name: tensor}, about)
        family.call(partial(HeadModel, path))


# -- training goes on ----------------------------------------------------------------------------------------------


@of("a run that is resumed with other settings", 25)
def test_a_resumed_run(family: Family, tmp_path: Path, tiny_folder: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out.safetensors"
    train(RUN, FaceData.open(tiny_folder, verify="once"), run)
    path = run / "checkpoint.safetensors"
    common = ["train", tiny_folder, "--run", run, *"--steps 2 --warmup-steps 1 --batch-size 2 --n-samples 1".split()]
    common += [*"--warmup-batch-size 2 --precision fp32 --device cpu --model.d 2 --model.c-f 2 --model.width 8".split()]
    common += [*"--model.width-r 8 --model.width-d 8".split()]
    for other in (
        "--seed 1", "--lr 0.001", "--lr-d 0.001", "--warmup-lr 0.001", "--batch-size 3", "--warmup-batch-size 3",
        "--adversary none", "--model.noise 0.5", "--steps 1", "--cooldown 0.5", "--ema 0.9", "--weights.au 1",
        "--consistency cycle", "--no-detach-swap", "--feature-d-steps 1", "--warmup-steps 0", "--model.d 3",
        "--take-lr 0.001", "--take-weights.rest 1", "--model.width-d 16", "--model.no-conditional",
    ):  # fmt: skip
        told = family.command(*common, *other.split())
        assert str(path) in told
        if not other.startswith("--model"):
            assert (
                "--allow-changes" in told and other.split()[0].strip("-").replace("-", "_").removeprefix("no_") in told
            )
    assert "found no take with two images" in family.command(*common, "--supervision", "takes")
    weights, about = opened(path)
    for change in (
        {"train": about["train"] | {"weights": 3}}, {"train": about["train"] | {"take_weights": {"au": -1}}},
        {"train": about["train"] | {"supervision": "none"}}, {"train": about["train"] | {"take_lr": 0}},
        {"step": "2"}, {"step": -1}, {"train": []}, {"data": 3}, {"changes": {}}, {"au_names": ["AU1", "AU12", "AU4"]},
    ):  # fmt: skip
        write_raw(path, weights, about | change)
        family.command(*common)
    for name in ("opt_G.0.exp_avg", "D.trunk.0.bias", "swapper.DG.related.readout"):
        write_raw(path, weights | {name: weights[name] * torch.nan}, about)
        family.command(*common)
        write_raw(path, {k: v for k, v in weights.items() if k != name}, about)
        family.command(*common)
    write_raw(path, weights | {"opt_G.x.exp_avg": torch.zeros(1)}, about)
    family.command(*common)
    family.command("train", tiny_folder, "--run", run, "--start-from", out)


# -- options -------------------------------------------------------------------------------------------------------

CONFIGS: list[tuple[str, str, type]] = [
    ("train", "", TrainConfig), ("train", "weights.", Weights), ("train", "take_weights.", TakeWeights),
    ("train", "model.", ModelConfig),
    ("faces", "", FacesConfig), ("judges", "", JudgeConfig), ("import", "", ImportConfig),
]  # fmt: skip
NOT_ZERO = """steps warmup_batch_size batch_size warmup_lr lr take_lr lr_d feature_d_steps log_every sample_every
save_every n_samples size n_aus d c_f width width_r width_d n_subjects images_per_subject
images_per_take epochs scale""".split()


@of("numbers of every config", 200)
def test_numbers_of_every_config(family: Family, tmp_path: Path, tiny_folder: Path) -> None:
    """Every field of every config, those too that are added later."""
    for command, prefix, config in CONFIGS:
        where = {"import": ["table", tiny_folder, tmp_path / "new"], "faces": [tmp_path / "new"]}
        options = {"judges": ["-o", tmp_path / "new"], "train": ["--run", tmp_path / "new"]}.get(command, [])
        for field in fields(config):
            kind = str(field.type)
            values = ["nan", "inf", "-inf", "-1e9", "1e30"] * (kind == "float") + ["-1", str(10**30)] * (kind == "int")
            values += ["0"] * (field.name in NOT_ZERO and kind in ("int", "float"))
            option = f"--{prefix.replace('_', '-')}{re.sub('(?<=.)_(?=.)', '-', field.name)}"
            for value in values:
                told = family.command(command, *where.get(command, [tiny_folder]), *options, f"{option}={value}")
                assert option in told and "found" in told and "expected" in told, told


@of("what the parser cannot read", 250)
def test_what_the_parser_cannot_read(family: Family) -> None:
    for command in cli.COMMANDS:
        for wrong in (
            ["--no-such-option"],
            ["--no-such-option", "1"],
            ["a"] * 9 + ["--no-such=1"],
            ["--" + "x" * 5000],
        ):
            family.command(command, *wrong)
    assert "perhaps you meant --amount" in family.command("swap", "a", "b", "--amout", "1")
    for command, prefix, config in CONFIGS:
        where = {"import": ["table", "a", "b"], "judges": ["a"]}.get(command, [])
        for field in fields(config):
            if (kind := str(field.type)) in ("int", "float"):
                option = f"--{prefix.replace('_', '-')}{re.sub('(?<=.)_(?=.)', '-', field.name)}"
                for value in ("", "x", "1 2", "a|b", "[1]") + ("1.5", "9" * 5000) * (kind == "int"):
                    told = family.command(command, *where, f"{option}={value}")
                    assert option in told and "found" in told and "expected" in told, told
    for command, option in (("evaluate", "--size"), ("animate", "--size"), ("app", "--port"), ("demo", "--pairs")):
        assert "whole number" in family.command(command, *["a"] * 2 * (command == "animate"), f"{option}=x")


@of("files that are pipes, folders, links or devices", 70)
def test_files_that_are_pipes_folders_links_or_devices(family: Family, tmp_path: Path, swapper: Any) -> None:
    weights, out, (a, b) = tmp_path / "swap.safetensors", tmp_path / "new", photos(tmp_path)
    tensors.write(weights, *swapper)
    for name in ("pipe", "pipe\n.png"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "no")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for name in ("pipe", "pipe\n.png", "folder", "nowhere", "round", "x" * 300, "a.png/x", "\udcff.png", "/dev/zero"):
        odd, png = tmp_path / name, ("-o", out.with_suffix(".png"))
        for arguments in (
            ("swap", odd, b, *png), ("express", odd, "AU1=1", *png), ("swap", a, b, "--checkpoint", odd, *png),
            ("ship", odd, "-o", out.with_suffix(".safetensors")), ("card", odd, a), ("judges", odd, "-o", out),
            ("train", odd, "--run", out), ("import", "table", odd, out),
            ("evaluate", weights, "-o", out.with_suffix(".json"), "--beside", odd),
            ("evaluate", weights, "-o", out.with_suffix(".json"), "--readme", odd),
        ):  # fmt: skip
            family.command(*arguments)


@pytest.mark.parametrize("command", [("import", "table"), ("faces",)])
@pytest.mark.parametrize(
    "name", ["images.npy.partial", "import.jsonl", "build.json", "meta.json", "labels.csv", ".lock"]
)
def test_a_link_is_never_written_through(command: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("victim")
    (tmp_path / "source").mkdir()
    photos(tmp_path / "source")
    (tmp_path / "source" / "labels.csv").write_text("image,AU1\na.png,1\nb.png,2\n")
    out = tmp_path / "out"
    out.mkdir()
    place = f".{command[0].replace('faces', 'build')}.lock" if name == ".lock" else name
    (out / place).symlink_to(tmp_path / "victim")
    more = ["--n-subjects=2", "--images-per-subject=2", "--size=16"]
    with contextlib.suppress(SystemExit):
        cli.main([*command, *[str(tmp_path / "source")] * (len(command) - 1), str(out), *more * (len(command) == 1)])
    assert (tmp_path / "victim").read_text() == "victim"


@of("other options", 30)
def test_other_options(
    family: Family, tmp_path: Path, tiny_folder: Path, swapper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "swap.safetensors"
    tensors.write(weights, *swapper)
    new, pair = tmp_path / "new", photos(tmp_path)
    image = ["swap", *pair, "-o", tmp_path / "x.png", "--checkpoint", weights]
    for value in ("-1", "0", "7", str(10**9)):
        family.command("demo", "-o", new, "--pairs", value)
    for value in ("-1", "0", "5", str(10**9)):
        family.command("evaluate", weights, "-o", new / "x.json", "--pairs", value)
    for value in ("-1", "0", "15", "1000000"):
        family.command("align", *pair, "-o", new, "--size", value)
        family.command("evaluate", weights, "-o", new / "x.json", "--size", value)
    for value in ("-1", "1001"):
        family.command("align", *pair, "-o", new, "--face", value)
        family.command(*image, "--photographs", "--face", value)
    family.command("align", *pair, "-o", new, "--face", "1", "--largest")
    for word in ("AU1", "AU99=1", "AU1=6", "AU1=nan", "AU1=1e9", "AU1=٣", "AU1=1_0"):
        family.command("express", pair[0], word, "-o", tmp_path / "x.png", "--checkpoint", weights)
    told = family.command("express", pair[0], "AU1=1", "-o", tmp_path / "x.png", "--checkpoint", weights)
    assert "no table of f_r" in told
    for text in ("", "[]", '{"rows": 3}', '{"rows": {"ours": {}}, "n_pairs": 6}'):
        (tmp_path / "beside.json").write_text(text)
        told = family.command("evaluate", weights, "-o", new / "x.json", "--beside", tmp_path / "beside.json")
        assert "beside.json" in told
    told = family.command("evaluate", weights, "-o", new / "x.json", "--size", 32)
    assert "images of 16 pixels only" in told
    family.command("train", tiny_folder, "--run", new, "--generator", "moved")
    for value in ("nan", "inf", "-0.1", "1.1"):
        family.command(*image, "--amount", value)
    for value in ("AU99", "smile", "", "au1"):
        family.command(*image, "--only", value)
    for value in ("gpu", "", "cuda:99", "meta", "cpu:cpu"):
        family.command("faces", new, "--device", value)
        family.command("judges", tiny_folder, "-o", new, "--device", value)
    family.command("faces", new, "--val", "0.6", "--test", "0.6")
    family.command("faces", new, "--n-subjects", "1000000", "--images-per-subject", "100000")
    family.command("faces", new, "--images-per-take", "3")
    family.command("train", tiny_folder, "--run", new, "--n-samples", "1000")
    family.command("train", tiny_folder, "--run", new, "--start-from", tmp_path / "no")
    widest = "--model.width 1024 --model.width-r 2048 --model.width-d 1024 --model.d 256 --model.c-f 512"
    monkeypatch.setattr("expr_lib.train.MAX_NUMBERS", 10**8)
    assert "weights" in family.command("train", tiny_folder, "--run", new, *widest.split())
    family.command("align", "-o", new)
    family.command("align", tmp_path / "no.png", "-o", new)
    family.command("dance")


@of("where the output may go", 25)
def test_where_the_output_may_go(family: Family, tmp_path: Path, tiny_folder: Path, swapper: Any) -> None:
    weights, file, folder, pair = (
        tmp_path / "swap.safetensors",
        tmp_path / "file",
        tmp_path / "folder",
        photos(tmp_path),
    )
    tensors.write(weights, *swapper)
    file.write_text("x")
    folder.mkdir()
    long = tmp_path / ("x" * 300)
    for place in (file, file / "below", long):
        family.command("demo", "-o", place)
        family.command("faces", place)
        family.command("import", "table", tiny_folder, place)
        family.command("align", *pair, "-o", place)
        family.command("train", tiny_folder, "--run", place)
        family.command("judges", tiny_folder, "-o", place)
        family.command("evaluate", weights, "-o", tmp_path / "x.json", "--figures", place)
    for place in (folder, file / "x", file, long):
        family.command("swap", *pair, "-o", place, "--checkpoint", weights)
        family.command("express", pair[0], "AU1=1", "-o", place, "--checkpoint", weights)
        family.command("evaluate", weights, "-o", place)
        family.command("ship", weights, "-o", place)
    (tmp_path / "no-utf8.md").write_bytes(b"\xff\xfe\xff")
    for readme in (tmp_path / "nonexistent", folder, file, tmp_path / "no-utf8.md"):
        family.command("evaluate", weights, "-o", tmp_path / "x.json", "--readme", readme)


@of("outputs that are inputs", 50)
def test_an_input_is_never_replaced(family: Family, tmp_path: Path, tiny_folder: Path, swapper: Any) -> None:
    """In any spelling, through any link, also by a name that the command makes of the output's."""
    weights, (a, b), film = tmp_path / "swap.safetensors", photos(tmp_path), tmp_path / "film"
    tensors.write(weights, *swapper)
    data = tmp_path / "data"
    for folder, names in ((film, ("1.png", "2.webp")), (data, ("meta.json", "labels.csv", "images.npy"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes((tiny_folder / name).read_bytes() if folder == data else a.read_bytes())
    (tmp_path / "b-b.png").write_bytes(b.read_bytes())

    def other_names(path: Path) -> Iterator[Path]:
        yield path
        yield Path(os.path.relpath(path))
        yield film / ".." / path.name
        (tmp_path / "links").mkdir(exist_ok=True)
        (link := tmp_path / "links" / path.name).symlink_to(path)
        yield link
        if path.is_file():
            (hard := tmp_path / "links" / f"hard-{path.name}").hardlink_to(path)
            yield hard

    for name in other_names(a):
        for arguments in (
            ("swap", a, b), ("swap", b, a), ("swap", name, b), ("express", a, "AU1=1"), ("express", name, "AU1=1"),
            ("animate", a, film), ("read", b, a),
        ):  # fmt: skip
            assert "found the input" in family.command(*arguments, "-o", a if name in arguments else name)
    for name in other_names(weights):
        family.command("ship", weights, "-o", name)
        family.command("evaluate", b, "--beside", weights, weights, "-o", name)
    for name in other_names(film):
        family.command("align", film, "-o", name)
        family.command("align", film / "1.png", "-o", name)
    for name in other_names(data):
        family.command("import", "table", data, name)
        family.command("train", data, "--run", name)
        family.command("judges", data, "-o", name)
    family.command("animate", a, film, "-o", film / "2.webp")
    family.command("align", film, data, "-o", tmp_path)
    family.command("swap", a, tmp_path / "b-b.png", "--photographs", "-o", tmp_path / "b.png")
    family.command("evaluate", weights, "-o", tmp_path / "x.json", "--readme", readme := tmp_path / "x.md")
    readme.write_text("x")
    assert "found the input" in family.command("evaluate", weights, "-o", tmp_path / "x.json", "--readme", readme)


# -- a full disk ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file gets more than `room` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@of("files that do not fit on the disk", 21)
def test_files_that_do_not_fit_on_the_disk(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before is whole, and no temporary file is left."""
    (a, b), film, results = photos(tmp_path), tmp_path / "film", RESULTS / "moved-64.json"
    film.mkdir()
    (film / "1.png").write_bytes(a.read_bytes())
    weights = WEIGHTS / "moved-64.safetensors"
    monkeypatch.setattr("expr_lib.measure.evaluate.evaluate", lambda *a, **b: json.loads(results.read_text()))
    for out, *arguments in (
        ("x.png", "swap", a, b, "--checkpoint", weights), ("x.png", "express", a, "AU12=3", "--checkpoint", weights),
        ("x.csv", "read", a, "--checkpoint", weights), ("x.safetensors", "ship", weights),
        ("x.gif", "animate", a, film, "--checkpoint", weights),
        ("x.webp", "animate", a, film, "--checkpoint", weights), ("x.json", "evaluate", weights),
    ):  # fmt: skip
        for room in (0, 60):
            with full_disk(room):
                told = family.command(*arguments, "-o", tmp_path / out)
            assert f"{tmp_path / out}: cannot be" in told and "make room" in told
        (tmp_path / out).write_text("what was there before")
        with full_disk(60):
            family.command(*arguments, "-o", tmp_path / out)


@of("runs, renderings and imports on a full disk", 7)
def test_runs_that_do_not_fit_on_the_disk(family: Family, tmp_path: Path, tiny_folder: Path) -> None:
    """What was finished is kept, and the same command goes on when there is room again."""
    source = tmp_path / "source"
    source.mkdir()
    photos(source)
    (source / "labels.csv").write_text("image,AU1\na.png,1\nb.png,2\n")
    small = "--batch-size 2 --warmup-steps 1 --n-samples 1 --warmup-batch-size 2 --precision fp32 --device cpu"
    small += " --model.d 2 --model.c-f 2 --model.width 8 --model.width-r 8 --model.width-d 8 --steps"
    commands: dict[str, list[Any]] = {
        "faces": ["faces", "OUT", *"--n-subjects 8 --images-per-subject 16 --size 16 --device cpu".split()],
        "import": ["import", "table", source, "OUT"],
        "train": ["train", tiny_folder, "--run", "OUT", *small.split(), "2"],
    }

    def run(name: str, out: Path, room: int | None = None) -> str:
        err = io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stderr(err))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if room is not None:
                stack.enter_context(pytest.raises(SystemExit, match="2"))
                stack.enter_context(full_disk(room))
            cli.main([str(out if x == "OUT" else x) for x in commands[name]])
        told = re.sub(r"\r.*", "", err.getvalue()).strip("\n")
        if room is not None:
            one_line(told)
            assert f"error: {out}" in told and "make room" in told and not [*out.rglob(".*.partial")]
            family.n += 1
        return told

    for name, product in (("faces", "images.npy"), ("import", "images.npy"), ("train", "checkpoint.safetensors")):
        run(name, whole := tmp_path / f"whole-{name}")
        for room in (150, 12_000):
            run(name, out := tmp_path / f"{name}-{room}", room)
            assert not (out / product).exists()
            run(name, out)
            assert (out / product).read_bytes() == (whole / product).read_bytes()
    good = (whole / product).read_bytes()
    commands["train"][-1] = "3"
    run("train", whole, 12_000)
    assert (whole / product).read_bytes() == good


# -- data sets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("meta.json", "labels.csv", "images.npy"):
        (folder / name).write_bytes((tiny_folder / name).read_bytes())
    return folder


@of("meta.json of a data set", 80)
def test_meta_of_a_data_set(family: Family, data: Path, tmp_path: Path) -> None:
    meta = json.loads((data / "meta.json").read_text())
    places = ["format", "au_names", "size", "rows", "sha256"]

    @generated(70)
    @given(st.sampled_from(places), HOSTILE)
    def changed(place: str, value: Any) -> None:
        assume(not (place == "sha256" and value == {}))
        (data / "meta.json").write_text(json.dumps(edited(meta, place, value)))
        family.command("train", data, "--run", tmp_path / "run")

    changed()
    for place in places:
        (data / "meta.json").write_text(json.dumps(edited(meta, place, ...)))
        assert place in family.command("judges", data, "-o", tmp_path / "judges")
    for text in (
        "",
        "{",
        "[]",
        "3",
        "NaN",
        "[" * 10_000,
        '{"a":' * 50 + "1" + "}" * 50,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin1"),
    ):
        (data / "meta.json").write_text(text)
        family.command("train", data, "--run", tmp_path / "run")


@of("labels.csv of a data set", 45)
def test_labels_of_a_data_set(family: Family, data: Path, tmp_path: Path) -> None:
    path = data / "labels.csv"
    whole = path.read_text()
    header, first, *rest = whole.splitlines()

    def refused(*lines: str) -> str:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return family.command("train", data, "--run", tmp_path / "run")

    cells = first.split(",")
    for column, values in {
        0: ["", "-1", "1.5", "٣", "²", "１", "x", "9" * 19, " 1", "1_0", "+1"],
        1: ["", "dev", "Train", "val ", "0"],
        2: ["-0.1", "5.1", "nan", "inf", "1e9", "٣", "１", "½", "1_0", "0x1", "1,0", " 1", "five", "1e-9999", "--1"],
    }.items():
        for value in values:
            assert "labels.csv" in refused(header, ",".join([*cells[:column], value, *cells[column + 1 :]]), *rest)
    for names in ("subject,split,AU1,AU1,AU12,AU26", "subject,subject,split,AU1,AU12,AU26"):
        assert "twice" in refused(names, *(",".join([line, "1"]) for line in (first, *rest)))
    for names in ("", "subject", header.replace("AU12", "AU13"), header.upper(), header.replace(",", ";")):
        refused(names, first, *rest)
    refused(header, *(f"9,{line}" for line in (first, *rest)))  # one more cell than names in every line
    for lines in (rest, [first, first, *rest], [first, "", *rest], [first + ",1", *rest], [first.split(",")[0], *rest]):
        refused(header, *lines)
    path.write_bytes(whole.encode("utf-16"))
    family.command("train", data, "--run", tmp_path / "run")
    path.write_text(whole.replace("1", "2", 1))  # readable, and not what was written
    family.command("train", data, "--run", tmp_path / "run")


@of("images.npy of a data set", 25)
def test_images_of_a_data_set(family: Family, data: Path, tmp_path: Path) -> None:
    path = data / "images.npy"
    whole = path.read_bytes()

    def header(text: str) -> bytes:
        text = text.ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + whole[128:]

    form = "{{'descr': {}, 'fortran_order': {}, 'shape': {}}}"
    shapes = [
        "(-1, 16, 16, 3)",
        "(32, 16, 16)",
        "(32, 16, 16, -3)",
        f"({10**30}, 16, 16, 3)",
        "32",
        "('a',)",
        "()",
        "(32.0, 16, 16, 3)",
        "(32L, 16L, 16L, 3L)",  # of Python 2, which NumPy warns about
    ]
    contents = [header(form.format("'|u1'", False, shape)) for shape in shapes]
    contents += [
        header(form.format(kind, False, "(32, 16, 16, 3)")) for kind in ("'|O'", "'<f4'", "'|i1'", "7", "'<U99'")
    ]
    contents += [header(form.format("'|u1'", order, "(32, 16, 16, 3)")) for order in ("7", "None")]
    contents += [
        header("(" * 100),
        header("__import__('os')"),
        header(""),
        b"",
        b"no",
        whole[:50],
        whole[:-1],
        whole[128:],
    ]
    contents += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (200, 5000, len(whole) - 1)]
    for content in contents:
        path.write_bytes(content)
        assert "images.npy" in family.command("train", data, "--run", tmp_path / "run")


@of("journal and meta.json of rendered faces", 60)
def test_journal_of_rendered_faces(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expr_lib.faces import build as module

    folder = tmp_path / "faces"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.FacePlan, "render", killed)
        build(folder, FacesConfig(2, 2, size=16), progress=False)
    journal = folder / "build.json"
    good = json.loads(journal.read_text())
    command = ["faces", folder, *"--n-subjects 2 --images-per-subject 2 --size 16 --device cpu".split()]
    places = [
        "format",
        "generator",
        "config",
        "au_names",
        "size",
        "rows",
        "device",
        "crc32",
        "config.seed",
        "config.val",
    ]

    @generated(60)
    @given(st.sampled_from(places), HOSTILE)
    def changed(place: str, value: Any) -> None:
        assume(not (place == "crc32" and value == []) and not (place == "config.seed" and value == 0))
        journal.write_text(json.dumps(edited(good, place, value)))
        family.command(*command)

    changed()
    for text in ("", "{", "[]", "[" * 10_000):
        journal.write_text(text)
        family.command(*command)
    for hashes in ({}, [], {"images.npy": 3}, {"../x": "y"}, None):
        (folder / "meta.json").write_text(json.dumps(edited(good, "device", ...) | {"sha256": hashes}))
        family.command(*command)


@of("meta.json, report and journal of an import", 28)
def test_what_an_import_left_behind(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expr_lib.importers import write as module

    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "labels.csv").write_text("image,AU1\na.png,1\nb.png,2\n")
    for bad in (b"no image", b""):
        (source / "a.png").write_bytes(bad)
        family.call(lambda: module.import_faces("table", source, out, progress=False))
    (source / "a.png").unlink()
    photos(source)  # repaired: now the same command works
    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(module, "sha256", killed)
        cli.main(["import", "table", str(source), str(out)])
    journal, pixels = out / "import.jsonl", (out / "images.npy.partial").read_bytes()
    head, line, _ = journal.read_text().split("\n")
    chunk = json.loads(line)

    @generated(30)
    @given(st.sampled_from(["bytes", "crc32", "told", "told"]), HOSTILE | st.just([[0, "left out", "x", "y"]]))
    def changed(place: str, value: Any) -> None:
        """A chunk that the journal describes wrongly is made again: what comes out is the same."""
        for path in out.iterdir():
            path.unlink()
        (out / "images.npy.partial").write_bytes(pixels)
        journal.write_text(f"{head}\n{json.dumps(edited(chunk, place, value))}\n")
        cli.main(["import", "table", str(source), str(out)])
        assert (out / "images.npy").read_bytes() == pixels and len((out / "labels.csv").read_text().split("\n")) == 4

    changed()
    good = {name: (out / name).read_bytes() for name in ("meta.json", "report.csv")}
    meta = json.loads(good["meta.json"])
    texts = ["", "[]", "3", "[" * 10_000, *(json.dumps(edited(meta, "config", x)) for x in (None, [], "x", 3))]
    texts += [json.dumps(edited(meta, place, x)) for place in ("format", "rows", "size") for x in (None, -1, "3", ...)]
    reports = ["", "a\nb\n", "a\n1,2,3,²,5\n", f"a\n1,2,3,{'9' * 5000},5\n", "a\n" + "x" * 200_000, "a\n1,2,3,4,5,6\n"]
    for name, contents in (("meta.json", texts), ("report.csv", reports)):
        for content in contents:
            (out / name).write_text(content)
            assert name in family.command("import", "table", source, out)
        (out / name).write_bytes(good[name])


# -- what is no input ----------------------------------------------------------------------------------------------


def test_a_value_error_that_is_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("a bug")

    monkeypatch.setitem(cli.COMMANDS, "broken", (broken, ""))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["broken"])


def test_a_bad_save_never_replaces_a_good_file(tmp_path: Path, swapper: Any) -> None:
    weights, about = swapper
    path = tmp_path / "swap.safetensors"
    tensors.write(path, weights, about)
    good, name = path.read_bytes(), next(iter(weights))
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(FloatingPointError, match=rf"swap.safetensors: not written: {name} contains"):
            tensors.write(path, weights | {name: torch.full_like(weights[name], number)}, about, keep_previous=True)
        assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]
    tensors.write(path, weights, about | {"step": 8}, keep_previous=True)
    path.write_bytes(path.read_bytes()[:-9])  # damaged on the disk: it must not push out the good one before it
    tensors.write(path, weights, about | {"step": 9}, keep_previous=True)
    assert tensors.previous(path).read_bytes() == good and tensors.read(path)[1]["step"] == 9


def test_the_schema_follows_the_dataclass(tmp_path: Path, swapper: Any) -> None:
    """Of `ModelConfig` no second list is kept: what it gets is known, typed and ranged at once."""
    _, about = swapper
    for name in {field.name for field in fields(ModelConfig)}:
        with pytest.raises(InputError, match=name):
            checkpoint.model_config(edited(about, f"model.{name}", {"no": "such"}), "x")
    assert checkpoint.model_config(about, "x") == replace(SMALL)
