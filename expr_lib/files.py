"""Reading regular files only, writing files whole or not at all, and hashing their bytes."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from expr_lib.errors import InputError


def open_regular(path: str | Path, *, follow: bool = True, write: bool = False) -> BinaryIO:
    """Open a regular file for reading; with `follow=False`, not through a symbolic link.

    With `write`, open it for reading and writing, and make it if it is missing. Raises `InputError` for a pipe, a
    socket or a device, which could block the reader for ever, for a folder, and for a link.
    """
    if not follow and os.path.islink(path):
        raise InputError(f"{path}: found a symbolic link, expected a file")
    flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)), 0o666)
    if not stat.S_ISREG(mode := os.fstat(file).st_mode):
        os.close(file)
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise InputError(f"{path}: found {found}, expected a regular file")
    return os.fdopen(file, "r+b" if write else "rb")


def keep_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise `InputError` if a path to be written is one of the inputs, also through a link or in another spelling."""
    found = {key: path for path in inputs if (key := _identity(path))}
    for out in outputs:
        if (key := _identity(out)) in found:
            raise InputError(f"{out}: found the input {found[key]}, expected another place for the output")


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file or folder have in common, as in `os.path.samefile`; None if there is nothing."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, an error of the operating system that names no file, as that of a full disk does, is about this one."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; it is renamed to `path` at the end, or removed after an error.

    The temporary name is random, and a link that has it is not followed. The folder must exist.
    """
    _remove_left_over(path)
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(8)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(partial, flags, 0o666), "wb")
    try:
        with writing(path), file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _remove_left_over(path: Path) -> None:
    """Remove temporary files for `path` that killed processes have left behind."""
    if os.name != "posix":  # elsewhere there is no way to ask whether a process is alive
        return
    pattern = re.compile(re.escape(f".{path.name[:100]}.") + r"(\d{1,9})-[0-9a-f]{16}\.partial")
    for name in os.listdir(path.parent):
        if match := pattern.fullmatch(name):
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                path.with_name(name).unlink(missing_ok=True)
            except OSError:
                pass  # the process is alive and belongs to another user


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
