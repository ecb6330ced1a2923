"""Reading a dict of numbers from a pickle without unpickling it.

A pickle is a program. Its opcodes are read here one by one (`pickletools`) into plain values: strings, numbers,
bytes, tuples, lists, dicts and the three records below. Only the opcodes that `pickle.dump` writes for numpy arrays,
numpy numbers and `OrderedDict` (protocols 0 to 5) are accepted. Arrays are built at the end, from a checked shape,
type and length.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from expr_lib.errors import InputError

MAX_BYTES = 256_000_000
MAX_OPCODES = 30_000_000
"""A million faces need about 25 million; the limit protects the memory."""
MAX_STACK = 100_000
"""Limit for the values on the stack; real files need about 2,000."""
MAX_KEPT = 10_000_000
"""Limit for the values in the memo."""
TYPES = {name: np.dtype(name) for name in "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split()}


@dataclass(slots=True, frozen=True)
class Named:
    """The name of a class or function in the file."""

    name: str


@dataclass(slots=True)
class Type:
    """A numpy dtype of plain numbers."""

    name: str
    order: str = "="


@dataclass(slots=True)
class Array:
    """The bytes of an array, or of one number (shape `()`)."""

    type: Type | None = None
    shape: tuple[int, ...] = ()
    data: bytes = b""

    def fill(self, kind: Any, shape: Any, data: Any) -> Array:
        if isinstance(data, str):  # bytes as written by Python 2
            data = data.encode("latin1")
        if not isinstance(kind, Type) or not isinstance(data, bytes):
            raise InputError("refused: an array that does not hold plain numbers")
        if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
            raise InputError("refused: an array whose shape is not made of numbers")
        if math.prod(shape) * TYPES[kind.name].itemsize != len(data):
            raise InputError(f"refused: an array of {len(data)} bytes, expected as many as its shape and type need")
        self.type, self.shape, self.data = kind, shape, data
        return self

    def numbers(self) -> np.ndarray:
        """All numbers, flat."""
        if self.type is None:
            return np.zeros(0)
        return np.frombuffer(self.data, TYPES[self.type.name].newbyteorder(self.type.order))  # type: ignore[arg-type]


class Reader:
    """Interprets the opcodes of one pickle with plain values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.kept: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for count, (name, argument) in enumerate(opcodes(data)):
            if name == "STOP":
                return self.pop()
            self.step(name, argument)
            if count > MAX_OPCODES or len(self.kept) > MAX_KEPT or len(self.stack) + len(self.marks) > MAX_STACK:
                raise InputError("refused: it holds more than a million faces need")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise InputError("damaged: it takes more than there is")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise InputError("damaged: it takes more than there is")
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def top(self, kind: type, opcode: str) -> Any:
        found = self.pop()
        self.stack.append(found)
        if type(found) is not kind:
            raise InputError(f"refused: opcode {opcode} acts on {said(found)}, expected a {kind.__name__}")
        return found

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in PLAIN:
            self.stack.append(checked(argument))
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            value = self.pop()
            self.stack.append(value)
            self.kept[len(self.kept) if opcode == "MEMOIZE" else argument] = value
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self.kept:
                raise InputError("damaged: it comes back to what was never there")
            self.stack.append(self.kept[argument])
        elif opcode == "MARK":
            self.marks.append(len(self.stack))
        elif opcode in TUPLES:
            self.stack.append(tuple([self.pop() for _ in range(TUPLES[opcode])][::-1]))
        elif opcode == "TUPLE":
            self.stack.append(tuple(self.since_mark()))
        elif opcode in ("EMPTY_LIST", "LIST"):
            self.stack.append(self.since_mark() if opcode == "LIST" else [])
        elif opcode in ("APPEND", "APPENDS"):
            values = [self.pop()] if opcode == "APPEND" else self.since_mark()
            self.top(list, opcode).extend(values)
        elif opcode in ("EMPTY_DICT", "DICT"):
            self.stack.append(self.pairs({}, self.since_mark() if opcode == "DICT" else []))
        elif opcode in ("SETITEM", "SETITEMS"):
            values = [self.pop(), self.pop()][::-1] if opcode == "SETITEM" else self.since_mark()
            self.pairs(self.top(dict, opcode), values)
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            words = [self.pop(), self.pop()][::-1] if opcode == "STACK_GLOBAL" else argument.split(" ", 1)
            self.stack.append(named(".".join(map(str, words)) if all(type(w) is str for w in words) else "no name"))
        elif opcode == "REDUCE":
            arguments, function = self.pop(), self.pop()
            if type(function) is not Named or type(arguments) is not tuple:
                raise InputError(f"refused: opcode REDUCE acts on {said(function)}, expected a name and a tuple")
            self.stack.append(self.made(function.name, arguments))
        elif opcode == "BUILD":
            self.build(self.pop())
        elif opcode not in ("PROTO", "FRAME"):
            raise InputError(f"refused: opcode {opcode}, expected arrays, dicts and strings only")

    def pairs(self, into: dict[str, Any], values: list[Any]) -> dict[str, Any]:
        if len(values) % 2:
            raise InputError("damaged: a dict with a name without a value")
        for name, value in zip(values[::2], values[1::2], strict=True):
            if type(name) is not str:
                raise InputError(f"found a dict whose names are not all text ({said(name)}), expected names of images")
            into[name] = value
        return into

    def made(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """The result of a known function, as a plain value."""
        if name == "_codecs.encode" and [type(a) for a in arguments] == [str, str] and arguments[1] == "latin1":
            return arguments[0].encode("latin1")
        if name in ("builtins.bytes", "__builtin__.bytes") and arguments == ():
            return b""
        if name == "collections.OrderedDict" and len(arguments) <= 1:
            pairs = arguments[0] if arguments else []
            if type(pairs) is list and all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
                return self.pairs({}, [value for pair in pairs for value in pair])
        if name == "numpy.dtype" and len(arguments) == 3 and type(arguments[0]) is str and arguments[0] in TYPES:
            return Type(arguments[0])
        if name == "numpy.core.multiarray._reconstruct" and arguments[:1] == (Named("numpy.ndarray"),):
            return Array()
        if name == "numpy.core.multiarray.scalar" and len(arguments) == 2:
            return Array().fill(arguments[0], (), arguments[1])
        if name == "numpy.core.numeric._frombuffer" and len(arguments) == 4:
            return Array().fill(arguments[1], arguments[2], arguments[0])
        raise InputError(f"refused: opcode REDUCE calls {name} with {said(arguments)}, expected plain numbers")

    def build(self, state: Any) -> None:
        """Fill the record on top of the stack: the byte order of a type, the bytes of an array."""
        target = self.pop()
        self.stack.append(target)
        if type(target) is Array and type(state) is tuple and len(state) == 5 and target.type is None:
            _, shape, kind, _, data = state
            target.fill(kind, shape, data)
        elif type(target) is Type and type(state) is tuple and len(state) == 8 and state[1] in ("<", ">", "|", "="):
            if state[2:5] != (None, None, None) or target.order != "=":
                raise InputError("refused: opcode BUILD gives a number type fields, expected plain numbers")
            target.order = state[1]
        else:
            raise InputError(f"refused: opcode BUILD acts on {said(target)}, expected an array or a number type")


PLAIN = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
KNOWN = (
    "numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer", "_codecs.encode", "builtins.bytes", "__builtin__.bytes",
    "collections.OrderedDict",
)  # fmt: skip


def opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    """Name and argument of each opcode, as by `pickletools.genops`.

    Unlike there, a string of Python 2, protocol 0, may contain any byte, not only ASCII.
    """
    stream = io.BytesIO(data)
    while code := stream.read(1):
        known = pickletools.code2op.get(code.decode("latin1"))  # type: ignore[attr-defined]
        if known is None:
            raise InputError(f"damaged, or no pickle: found the byte {code!r} where an opcode should be")
        if known.name == "STRING":
            text = pickletools.read_stringnl(stream, decode=False)
            assert isinstance(text, bytes)
            yield known.name, text.decode("unicode_escape" if b"\\" in text else "latin1")
        else:
            yield known.name, known.arg.reader(stream) if known.arg else None
    raise InputError("damaged, or no pickle: it ends before its last opcode")


def checked(value: Any) -> Any:
    """An argument; `InputError` for a number of more than 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InputError("refused: a whole number of more than 64 bits")
    return bytes(value) if isinstance(value, bytearray) else value


def named(name: str) -> Named:
    name = name.replace("numpy._core.", "numpy.core.", 1)
    if name not in KNOWN:
        raise InputError(f"refused: it asks for {said(name)[1:-1]}, expected arrays, dicts and strings only")
    return Named(name)


def said(value: Any) -> str:
    """A short description of a value, for error messages."""
    if isinstance(value, str):
        return ascii(value[:60])
    if isinstance(value, Named):
        return value.name
    return {Array: "an array", Type: "a number type"}.get(type(value), f"a {type(value).__name__}")


def read_pickle(data: bytes) -> dict[str, Any]:
    """The dict in a pickle, values as `numbers` takes them; `InputError` in one line for anything else."""
    if len(data) > MAX_BYTES:
        raise InputError(f"found {len(data):,} bytes, expected at most {MAX_BYTES:,}")
    try:
        found = Reader().read(data)
    except (UnicodeError, OverflowError) as error:
        raise InputError(f"damaged, or no pickle: {type(error).__name__}") from None
    except ValueError as error:
        text = " ".join(str(error).split())[:200]
        whole = text.startswith(("refused: ", "damaged", "found "))
        raise InputError(text if whole else f"damaged, or no pickle: {text}") from None
    if type(found) is not dict:
        raise InputError(f"found {said(found)}, expected a dict from names to arrays")
    return found


def numbers(value: Any, length: int) -> list[float] | str:
    """A list, tuple or array of `length` numbers as a flat list, or a description of any other value."""
    if isinstance(value, Array):
        found = value.numbers()
        right = len(found) == length and found.dtype.kind in "fiu"
        return found.astype(float).tolist() if right else f"{found.dtype} of length {len(found)}"
    if not isinstance(value, list | tuple):
        return said(value)
    if len(value) != length:
        return f"{type(value).__name__} of length {len(value)}"
    flat: list[float] = []
    for one in value:
        if isinstance(one, Array) and one.shape == () and one.numbers().dtype.kind in "fiu":
            flat += one.numbers().astype(float).tolist()
        elif type(one) in (int, float):
            flat.append(float(one))
        else:
            return f"{type(value).__name__} that holds {said(one)}"
    return flat
