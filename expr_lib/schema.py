"""Schemas of all metadata in files: weights, data sets, journals and results, with types and limits.

Every file is checked against one of these before it is used; the ranges of network sizes are in `ModelConfig`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from expr_lib.errors import InputError
from expr_lib.files import open_regular

FORMAT = 1
MAX_BYTES = 16 * 2**20
"""Largest size of metadata; the largest training state needs a hundredth of it."""
MAX_DEPTH = 20

Size = Annotated[int, Meta(ge=1, le=4096)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
Name = Annotated[str, Meta(max_length=200)]
Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
AUNames = Annotated[tuple[Annotated[str, Meta(pattern=r"^AU[0-9]{1,3}\Z")], ...], Meta(min_length=1, max_length=100)]
Kind = TypeVar("Kind")


class Made(Struct):
    """Origin of the data set on which weights were trained."""

    generator: Name | None = None
    config: dict[str, Any] = {}
    sha256: dict[str, Name] = {}


class SwapperFile(Struct):
    """A swapper, released or in training. `model` is a `ModelConfig`, `train` a `TrainConfig`."""

    model: dict[str, Any]
    au_names: AUNames
    size: Size
    step: Count = 0
    train: dict[str, Any] = {}
    data: Made = msgspec.field(default_factory=Made)
    start: dict[str, Any] = {}
    changes: list[dict[str, Any]] = []

    def __post_init__(self) -> None:
        check_unique(self.au_names)


class JudgeFile(Struct):
    """A judge. `config` has the arguments of its class."""

    kind: Literal["AUJudge", "IdentityJudge"]
    config: dict[str, Size]
    au_names: AUNames | None = None
    threshold: Annotated[float, Meta(ge=-1, le=1)] | None = None
    ceilings: dict[str, Any] = {}
    data: Made = msgspec.field(default_factory=Made)
    training: dict[str, Any] = {}

    def __post_init__(self) -> None:
        check_unique(self.au_names or ())
        if self.kind == "AUJudge" and self.au_names and len(self.au_names) != self.config.get("n_aus"):
            raise ValueError(
                f"au_names: found {len(self.au_names)}, expected {self.config.get('n_aus')} (config.n_aus)"
            )


class FamiliarFile(Struct):
    """The familiarity scale of the identity judge whose file has this hash."""

    judge: Hash


class HeadFile(Struct):
    """The head model: names of its parts, maps and actions, and its landmarks in metres."""

    parts: list[Name]
    maps: list[Name]
    actions: list[Name]
    landmarks: dict[str, tuple[float, float, float]]
    quality: dict[str, float]


class DataFile(Struct):
    """Common part of `meta.json` of a data set and of the journal while it is rendered."""

    format: Literal[1]
    au_names: AUNames
    size: Size
    rows: Annotated[int, Meta(ge=1, le=10**9)]
    generator: Name | None = None
    config: dict[str, Any] = {}

    def __post_init__(self) -> None:
        check_unique(self.au_names)


class MetaFile(DataFile, kw_only=True):
    """A finished data set."""

    sha256: dict[Literal["images.npy", "labels.csv"], Name]


class JournalFile(DataFile, kw_only=True):
    """The journal of a data set that is being rendered: the type of device and a checksum per finished chunk."""

    device: Name
    crc32: list[Annotated[int, Meta(ge=0, lt=2**32)]] = []


class ChunkLine(Struct):
    """A line of the journal of an import: a finished chunk and its cases, each with the number of its image."""

    bytes: Count
    crc32: Annotated[int, Meta(ge=0, lt=2**32)]
    told: list[tuple[int, Literal["left out", "note"], str, str]]
    turns: list[tuple[int, float, float]]  # number of the image, yaw and pitch of the head in degrees


class Estimate(Struct):
    """A number with its interval; None if it is undefined."""

    value: float | None
    low: float | None
    high: float | None


class ResultsFile(Struct):
    """Results of `expr-lib evaluate`: every measure of every row, and the choice of pairs."""

    rows: dict[str, dict[str, Estimate]]
    n_pairs: Count
    seed: Count
    split: Name
    size: Size
    generator: Name
    about: dict[str, Any]

    def __post_init__(self) -> None:
        if "ours" not in self.rows:
            raise ValueError(f"rows: found {sorted(self.rows)}, expected ours")


def check_unique(names: tuple[str, ...]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"au_names: found {twice[0]} twice, expected every name once")


def decode(text: str | bytes, where: str) -> Any:
    """Decode JSON; InputError if it is invalid, too long or nested too deeply."""
    if len(text) > MAX_BYTES:
        raise InputError(f"{where}: found {len(text):,} bytes of JSON, expected at most {MAX_BYTES:,}")
    try:
        found = msgspec.json.decode(text)
        deep = not _is_shallow(found, MAX_DEPTH)
    except RecursionError:
        deep = True
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
    if deep:
        raise InputError(f"{where}: found JSON with more than {MAX_DEPTH} levels, expected fewer")
    return found


def read_json(path: Path) -> Any:
    """Decode the JSON in a file; InputError as in `decode`."""
    with open_regular(path) as file:
        return decode(file.read(MAX_BYTES + 1), str(path))


def checked(kind: type[Kind], found: Any, where: str) -> Kind:
    """Convert to a `kind`, a Struct or a dataclass; InputError names the field, found and expected.

    `where` names the file in the message. Ranges are checked by the dataclass itself.
    """
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_plain(str(error), found)}") from None


def check_format(found: Any, where: str) -> None:
    """InputError if decoded JSON is not an object or has another format version."""
    form = found.get("format") if isinstance(found, dict) else type(found).__name__
    if isinstance(form, bool) or form != FORMAT:
        raise InputError(f"{where}: format: found {_short(form)}, expected {FORMAT}")


def _is_shallow(found: Any, levels: int) -> bool:
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return levels > 0 and all(_is_shallow(value, levels - 1) for value in inner)


def _plain(message: str, found: Any) -> str:
    """An error message of msgspec -> `field: found ..., expected ...`."""
    message, _, path = message.partition(" - at ")
    path = path.strip("`").removeprefix("$").removeprefix(".").removeprefix("key in ")
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            found = found[int(index) if index else key]
        except (KeyError, IndexError, TypeError):
            found = None
    if missing := re.fullmatch("Object missing required field `(.+)`", message):
        return f"{'.'.join(filter(None, (path, missing[1])))}: found nothing, expected an entry"
    if not message.startswith(("Expected", "Invalid")):
        return ": ".join(filter(None, (path, message)))  # of a dataclass
    expected = re.sub("^Expected |, got .*|^Invalid .*", "", message).replace("`", "") or "one of the known values"
    return f"{path or 'metadata'}: found {_short(found)}, expected {expected}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
