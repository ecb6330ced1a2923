"""Options of the command line: shared types, checks that come before any work, and errors in one line."""

import errno
import inspect
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial, wraps
from importlib.metadata import PackageNotFoundError, requires
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from expr_lib.errors import InputError
from expr_lib.files import keep_inputs
from expr_lib.importers.choose import Choice

Output = Annotated[Path, arg(aliases=["-o"])]
Which = Annotated[Choice, arg(name="")]  # --largest and --face of every command that finds faces
Checkpoint = Annotated[Path, arg(help_behavior_hint="(default: the shipped ones)")]
NoFile = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]  # an option that is off by default
NoNumber = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
Files = Annotated[tuple[Path, ...], arg(metavar="PATH ...", help_behavior_hint="")]
NoText = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]

OUTPUTS = ("out", "run", "figures")
"""Arguments that name what a command writes; all other paths are inputs, which are never replaced."""
ADVICE = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EFBIG: "make room and run the same command again",
    errno.EACCES: "choose a place that you have access to",
    errno.EPERM: "choose a place that you have access to",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "expected an existing file or folder",
    errno.ENOTDIR: "found a file, expected a folder",
    errno.EEXIST: "found a file, expected a folder",
    errno.EISDIR: "expected the name of a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def several(name: str) -> Any:
    """A positional argument of one or more values, as it appears in the help."""
    return arg(metavar=f"{name} ...", help_behavior_hint="(required)")


def parse(command: Callable[..., Any], name: str, arguments: Sequence[str]) -> Callable[[], Any]:
    """The command with its arguments, not yet run.

    InputError if the parser cannot read them or a config refuses a number, and then it names the option as it was
    typed; or if the output would replace an input.
    """

    @wraps(command)
    def bound(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        given = inspect.signature(command).bind(*args, **kwargs).arguments
        paths = {key: value if isinstance(value, tuple) else (value,) for key, value in given.items()}
        files = {key: [path for path in found if isinstance(path, Path)] for key, found in paths.items()}
        outputs = [path for key in OUTPUTS for path in files.pop(key, [])]
        keep_inputs(outputs, chain.from_iterable(files.values()))
        return partial(command, *args, **kwargs)

    explained = io.StringIO()
    try:
        with redirect_stderr(explained):
            return tyro.cli(bound, prog=f"expr-lib {name}", args=arguments)
    except InputError as error:
        raise InputError(_as_typed(str(error), arguments)) from None
    except SystemExit as left:
        why: BaseException | None = left
        while why is not None and not isinstance(why, InputError):
            why = why.__context__
        if left.code == 0:  # --help
            raise
        raise InputError(_as_typed(str(why), arguments) if why else _unboxed(explained.getvalue())) from None


PLAIN = {
    r"no type matching {None}\|INT .* from \[(.*?)\].*": r"found \1, expected a whole number",
    r"invalid literal for int\(\) with base 10: (.*)": r"found \1, expected a whole number",
    r"could not convert string to float: (.*)": r"found \1, expected a number",
    "Exceeds the limit .* has (.*) digits;.*": r"found \1 digits, expected a smaller number",
    "Error parsing ": "",
}
"""What the parser says, as a pattern -> in plain words."""


def _unboxed(box: str) -> str:
    """What the parser explains in a box, as one line without the help that it repeats."""
    parts = re.split(r"[─-]{3,}\S?\s*$", re.sub(r"(?m)^[│|]| [│|]$", "", box), flags=re.MULTILINE)
    text, *more = [" ".join(part.split()) for part in parts[1:]]
    for said, plain in PLAIN.items():
        text = re.sub(said, plain, text)
    meant = re.findall("--[a-z][a-z0-9.-]*", " ".join(part for part in more if part.startswith("Perhaps")))
    return text[:1000] + "".join(f"; perhaps you meant {option}" for option in meant[:1])


def _as_typed(message: str, arguments: Sequence[str]) -> str:
    field, _, rest = message.partition(":")
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and re.split("[.]|--", option)[-1].replace("-", "_").strip("_") == field.strip("_"):
            return f"{option}:{rest}"
    return message


def needed(module: str) -> str:
    """The command that installs a missing module, with the smallest extra that contains it."""
    with suppress(PackageNotFoundError):
        declared = [re.fullmatch(r"([\w-]+).*; extra == ['\"](\w+)['\"]", text) for text in requires("expr-lib") or []]
        size = Counter(found[2] for found in declared if found)
        extras = [found[2] for found in declared if found and found[1].replace("-", "_") == module]
        if extras:
            return f'this command needs {module}: pip install "expr-lib[{min(extras, key=lambda name: size[name])}]"'
    return f"found no module {module}, expected it to be installed: pip install expr-lib"


def one_line(error: BaseException) -> str:
    """An error in one line; an error of the operating system gets the file and advice."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return needed(error.name.partition(".")[0])
    text = str(error)
    if isinstance(error, OSError) and text.startswith("[Errno"):
        name = error.filename2 or error.filename  # of a renaming, what the user named
        what = f"{os.fsdecode(name)}: cannot be read or written" if name else "cannot read or write"
        advice = ADVICE.get(error.errno or 0, "set it right and run the same command again")
        text = f"{what}: {(error.strerror or 'error').lower()}; {advice}"
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())  # names may hold anything
    return text if len(text) < 1400 else f"{text[:1000]} ... {text[-300:]}"


@contextmanager
def naming(what: str | Path) -> Iterator[None]:
    """Inside, an InputError is about this file or frame, which is put before its message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def count(option: str, value: int, least: int, most: int) -> int:
    """The value if it is in the range [least, most], else an InputError that names the option."""
    if not least <= value <= most:
        raise InputError(f"{option}: found {value}, expected {least:,} to {most:,}")
    return value


def expect_photographs(which: Choice, photographs: bool) -> None:
    """InputError if a face is chosen without --photographs, which finds the faces."""
    if which != Choice() and not photographs:
        raise InputError("--largest, --face: expected together with --photographs, which finds the faces")


def may_write(option: str, path: Path, *, folder: bool = False, ending: str = "") -> None:
    """InputError if a folder, or a file with this ending, cannot be created at `path`; nothing is created."""
    if path.exists() and path.is_dir() != folder:
        kind = "file" if path.is_dir() != folder and folder else "folder"
        raise InputError(f"{option} {path}: is a {kind}, expected the name of a {'folder' if folder else 'file'}")
    if ending and path.suffix.lower() != ending:
        raise InputError(f"{option} {path}: found the ending {path.suffix!r}, expected {ending!r}")
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists() or parent.is_symlink())
    if there != path and not there.is_dir():
        raise InputError(f"{option} {path}: {there} is a file, expected a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"{option} {path}: {there} cannot be written to; choose another place")


def device_of(name: str) -> str:
    """The device of an option, with `auto` for the fastest one; InputError for an unknown or missing device."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch("cpu|(cuda|mps|xpu)(:[0-9]{1,2})?", name):
        raise InputError(f"--device: found {name!r}, expected auto, cpu, cuda or mps")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name
