"""Pickles are read as data: real files come in, everything else is refused in one line, and nothing ever runs."""

from __future__ import annotations

import itertools
import pickle
import pickletools
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expr_lib.importers import pickled
from expr_lib.importers.ganimation import labelled_images
from expr_lib.importers.pickled import numbers, read_pickle
from expr_lib.importers.source import Report, Tree

AU = np.linspace(0, 5, 17)
WRITTEN = {
    "float64": AU,
    "float32": AU.astype(np.float32),
    "big-endian": AU.astype(">f8"),
    "integers": np.arange(17) % 5,
    "row": AU[None],
    "column in Fortran's order": np.asfortranarray(AU[:, None]),
    "list": AU.tolist(),
    "tuple": tuple(AU.tolist()),
    "numpy numbers": [np.float32(x) for x in AU],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", [dict, OrderedDict])
def test_real_files_come_in(protocol, form):
    found = read_pickle(pickle.dumps(form(WRITTEN), protocol))
    for what, values in WRITTEN.items():
        assert numbers(found[what], 17) == pytest.approx(np.array(values, float).reshape(-1).tolist()), what


@pytest.mark.parametrize("form", [b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"])
@pytest.mark.parametrize("protocol", [0, 2])
def test_files_of_python_2_and_of_numpy_before_2_come_in(form, protocol):
    text = np.arange(17, dtype="<f4").tobytes()
    spelt = b"S" + repr(text)[1:].encode() + b"\n" if protocol == 0 else b"T\x44\0\0\0" + text
    one = form + b"_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I17\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"
    one += b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n" + spelt + b"tb"
    ordered = b"ccollections\nOrderedDict\n((lp1\n(lp2\nS'N_0'\na" + one + b"aatR."
    for data in (b"(dS'N_0'\n" + one + b"s.", ordered):
        assert numbers(read_pickle(data)["N_0"], 17) == list(range(17))


@pytest.mark.parametrize("value", ["text", None, AU[:3], [1.0] * 16 + ["x"], AU > 1, [AU.tolist()] * 17, {}])
def test_what_is_not_17_numbers_is_said(value):
    assert isinstance(numbers(read_pickle(pickle.dumps({"a": value}))["a"], 17), str)


def refused(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        read_pickle(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


TYPE = b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TYPE + b"(I3\nS'<'\nN(S'a'\nt(dI99999\nI-1\nI0\ntb.", "opcode BUILD"),  # fields with offsets of its own
        (b"cnumpy.core.multiarray\n_reconstruct\n(dS'__defaults__'\nNsb.", "opcode BUILD acts on numpy.core"),
        (b"cnumpy.core.multiarray\n_reconstruct\nS'a'\nI1\ns.", "opcode SETITEM acts on numpy.core"),
        (ARRAY + b"I0\nI1\ns.", "opcode SETITEM acts on an array"),
        (ARRAY + b"(I1\n(I99999999999\nt" + TYPE + b"I0\nS'abc'\ntb.", "array of 3 bytes"),
        (ARRAY + b"(I1\n(I-1\nt" + TYPE + b"I0\nS''\ntb.", "shape"),
        (b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.", "opcode REDUCE calls numpy.dtype"),
        (b"cnumpy\nndarray\n(I99999999999\ntR.", "opcode REDUCE calls numpy.ndarray"),
        (b"(S'ls'\nios\nsystem\n.", "opcode INST"),
        (b"(cos\nsystem\nS'ls'\no.", "asks for os.system"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "opcode NEWOBJ"),
        (b"Pa\n.", "opcode PERSID"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"L" + b"9" * 5000 + b"L\n.", "damaged"),
        (b"\x80\x02\x8a\x09" + b"\xff" * 8 + b"\x01.", "more than 64 bits"),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fabc.", "damaged"),
        (b"T\xff\xff\xff\x7fabc.", "damaged"),
        (b"(" * 200_000 + b".", "more than a million faces"),
        (b"N" * 200_000 + b".", "more than a million faces"),
    ],
)
def test_programs_are_refused_by_the_name_of_what_they_use(data, said):
    assert said in refused(data)


def test_a_file_that_only_keeps_things_ends_at_a_limit(monkeypatch):
    monkeypatch.setattr(pickled, "MAX_KEPT", 1000)
    assert "more than a million faces" in refused(b"N" + b"\x94" * 2000 + b".")
    monkeypatch.setattr(pickled, "MAX_OPCODES", 1000)
    assert "more than a million faces" in refused(b"]]a" * 2000 + b".")
    monkeypatch.setattr(pickled, "MAX_BYTES", 1000)
    assert "expected at most 1,000" in refused(bytes(2000))


def test_a_list_within_itself_and_tuples_of_tuples_are_not_unfolded():
    within = b"}S'a'\n]p1\n" + b"g1\n" * 17 + b"a" * 17 + b"s."
    assert isinstance(numbers(read_pickle(within)["a"], 17), str)
    doubled = b"\x80\x02}S'a'\n)q\x01h\x01\x86" * 1000 + b"s."
    assert isinstance(numbers(read_pickle(doubled)["a"], 17), str)


# -- 10,000 damaged files ------------------------------------------------------------------------------------------

SOUND = [pickle.dumps(form, protocol) for form in (WRITTEN, OrderedDict(a=AU, b=AU.tolist())) for protocol in range(6)]
PIECES = [[end for _, _, end in pickletools.genops(data)] + [len(data)] for data in SOUND]
MUTATED = 25


def mutated(which: int, chance: np.random.Generator) -> bytes:
    """A real file with bytes changed, or with opcodes moved, doubled and left out."""
    data, pieces = bytearray(SOUND[which]), PIECES[which]
    if chance.random() < 0.5:
        for place in chance.integers(0, len(data), chance.integers(1, 6)):
            data[place] = chance.integers(0, 256) if chance.random() < 0.5 else data[place] ^ 1 << chance.integers(0, 8)
        return bytes(data)
    spans = [bytes(data[a:b]) for a, b in itertools.pairwise(pieces)]
    for _ in range(chance.integers(1, 6)):
        a, b = chance.integers(0, len(spans), 2)
        what = chance.integers(0, 3)
        if what == 0:
            spans[a], spans[b] = spans[b], spans[a]
        elif what == 1:
            spans.insert(a, spans[b])
        elif len(spans) > 1:
            del spans[a]
    return b"".join(spans)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(SOUND) - 1), st.integers(0, 2**32))
def test_ten_thousand_damaged_files_neither_crash_nor_hang_nor_allocate(which, seed):
    chance = np.random.default_rng(seed)
    files = [mutated(which, chance) for _ in range(MUTATED)]
    tracemalloc.start()
    try:
        for data in files:
            try:
                for value in read_pickle(data).values():
                    found = numbers(value, 17)
                    assert isinstance(found, str) or len(found) == 17
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) < 300
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# -- the folder ----------------------------------------------------------------------------------------------------


def test_names_with_blanks_and_dots_are_one_name_each(tmp_path: Path):
    (tmp_path / "imgs").mkdir()
    for name in ("a.b.jpg", "c d.jpg", "e.jpg"):
        (tmp_path / "imgs" / name).write_bytes(b"x")
    (tmp_path / "aus_openface.pkl").write_bytes(pickle.dumps({"a.b": AU, "c d": AU, "e": AU}, 4))
    (tmp_path / "train_ids.csv").write_text("e.jpg\na.b.jpg\n\n")
    (tmp_path / "test_ids.csv").write_text("c d.jpg\r\n")
    report = Report()
    found = {face.image: face.split for face in labelled_images(Tree(tmp_path, report), report)}
    assert found == {"imgs/a.b.jpg": "train", "imgs/c d.jpg": "test", "imgs/e.jpg": "train"} and not report.cases
