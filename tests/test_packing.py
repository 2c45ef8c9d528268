"""Plain values to bytes and back, and what is refused before anything is made of it. More, and at random: test_decoders.py."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discoro.errors import ProtocolError
from discoro.packing import INLINE_BODY, KIB, MAX_HEADER, MAX_ITEMS, MAX_KEYS, MAX_NESTED, MAX_TEXT, pack, unpack, unpack_rows

numbers = st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False)
values = st.recursive(
    st.none() | numbers | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
)


@given(values)
def test_what_is_packed_is_unpacked(value: Any) -> None:
    assert unpack(pack(value)) == value


@pytest.mark.parametrize("value", [{1, 2}, object(), 1 << 64, 1j])
def test_what_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        pack(value)


@pytest.mark.parametrize(
    ("fits", "does_not"),
    [
        ("x" * MAX_TEXT, "x" * (MAX_TEXT + 1)),
        (b"x" * INLINE_BODY, b"x" * (INLINE_BODY + 1)),
        ([0] * MAX_ITEMS, [0] * (MAX_ITEMS + 1)),
        (dict.fromkeys(map(str, range(MAX_KEYS)), 0), dict.fromkeys(map(str, range(MAX_KEYS + 1)), 0)),
        ([[[]] * 8000] * 4, [[[]] * 8000] * 5),
    ],
    ids=["text", "bytes", "array", "map", "arrays in all"],
)
def test_each_limit_is_taken_and_not_passed(fits: Any, does_not: Any) -> None:
    assert unpack(pack(fits)) == fits
    with pytest.raises(ProtocolError):
        unpack(pack(does_not))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000, pack(1) * 2]
    + [msgpack.packb({1: 2}), msgpack.packb(msgpack.ExtType(1, b"")), msgpack.packb(msgpack.Timestamp(1)), b"\xa1\xff"],
)
def test_other_bytes_are_refused_at_once(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="not a discoro header"):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_no_more_bytes_are_looked_at_than_the_limit() -> None:
    with pytest.raises(ProtocolError, match=f"at most {MAX_HEADER}"):
        unpack(bytes(MAX_HEADER + 1))
    with pytest.raises(ProtocolError, match="at most 3"):
        unpack(pack("abc"), 3)


ROWS = [["a", 1], ["b", 2]]


def test_rows_come_one_by_one() -> None:
    rows = unpack_rows(pack(ROWS), KIB, 2, 2)
    assert next(rows) == ROWS[0]
    assert [*rows] == ROWS[1:] and [*unpack_rows(pack([]), KIB, 2, 2)] == []


@pytest.mark.parametrize(
    "listed", [[*ROWS, ["c", 3]], [["a", 1, 2]], [["a"]], ["a"], {"a": 1}, 7, [["a", [1]]], [["a", {"b": 1}]]], ids=repr
)
def test_other_lists_are_refused(listed: Any) -> None:
    with pytest.raises(ProtocolError):
        [*unpack_rows(pack(listed), KIB, 2, 2)]


def test_a_list_with_something_behind_it_or_too_long_is_refused() -> None:
    with pytest.raises(ProtocolError, match="behind"):
        [*unpack_rows(pack(ROWS) + b"\0", KIB, 2, 2)]
    with pytest.raises(ProtocolError, match="at most 4"):
        [*unpack_rows(pack(ROWS), 4, 2, 2)]


def test_the_limit_of_all_arrays_is_above_that_of_one() -> None:
    assert MAX_ITEMS < MAX_NESTED
