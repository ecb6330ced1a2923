"""Files are written whole or not at all, opened only where they are files, and known by the hash of their bytes."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path, *, follow: bool = True) -> BinaryIO:
    """Open a file to read; ``ValueError`` for a pipe, a socket or a device, which could keep a reader waiting for ever.

    ``follow=False`` refuses a link, too.
    """
    if not follow and os.path.islink(path):
        raise ValueError(f"{path}: is a link; expected a file")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError(f"{path}: is no regular file; expected one")
    return os.fdopen(file, "rb")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, under a name that nobody can guess; renamed to ``path`` at the end, or removed on an error.

    A link that lies where the file is made is never followed. The folder must be there.
    """
    _remove_left_over(path)
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(8)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(partial, flags, 0o666), "wb")
    try:
        with file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _remove_left_over(path: Path) -> None:
    """Remove what a killed process has left of ``path``."""
    if os.name != "posix":  # only there it can be asked whether a process lives
        return
    pattern = re.compile(re.escape(f".{path.name[:100]}.") + r"(\d{1,9})-[0-9a-f]{16}\.partial")
    for name in os.listdir(path.parent):
        if match := pattern.fullmatch(name):
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                path.with_name(name).unlink(missing_ok=True)
            except OSError:
                pass  # it lives, and belongs to somebody else


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that no half of it is ever seen."""
    with replacing(path) as file:
        file.write(content)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
