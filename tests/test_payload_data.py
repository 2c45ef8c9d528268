"""Data in messages: what a user would send arrives as it left, memory uncopied where it can be; the rest is refused by name.

First what is refused, then buffers in this process, then a table of values that one interpreter packs in its `__main__` and
another one, which cannot import it, unpacks and checks; last, the way to a worker and back.
"""

from __future__ import annotations

import array
import asyncio
import collections
import contextlib
import contextvars
import dataclasses
import io
import json
import logging
import mmap
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from discoro import Computation, CoroRef, current_coro, errors, messages, payload, shipping
from discoro.payload import Part
from tests.support.sites import Site, running_site

ROOT = Path(__file__).resolve().parent.parent
LARGE = payload.BULK


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shipped is remembered per process; each test begins as a process does."""
    monkeypatch.setattr(shipping._Shipped, "modules", frozenset())
    monkeypatch.setattr(shipping._Shipped, "marks", (b"__main__",))


def arrived(parts: list[Part]) -> list[Part]:
    """The parts as a link hands them over: small ones as bytes, large ones in memory of the receiver's own."""
    return [bytearray(part) if memoryview(part).nbytes >= payload.OUT_OF_BAND else bytes(part) for part in parts]


def sent(obj: Any, **how: Any) -> Any:
    return payload.unpack(arrived(payload.pack(obj)), **how)


# ---- what is refused ------------------------------------------------------------------------------


class Thing:
    """What is only referred to."""

    def method(self) -> None: ...


class Holder:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self, second: object) -> None:
        self.second = second


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    name: str
    value: object


class Failing(Exception):
    def __init__(self, lock: object) -> None:
        super().__init__("failed")
        self.lock = lock


def caused_by(error: Exception) -> Exception:
    outer = ValueError("outer")
    outer.__cause__ = error
    return outer


class DictOf(dict[str, object]):
    pass


def closed_over(value: object) -> Callable[[], object]:
    return lambda: value


def with_default(value: object) -> Callable[..., object]:
    def function(given: object = value) -> object:
        return given

    return function


def counting() -> Iterator[int]:
    yield 1


async def waiting() -> None: ...


def unsendable() -> Iterator[tuple[str, object, str, str]]:
    """What it is, the object itself, and what the error says of it."""
    view = memoryview(bytes(100))
    with open(__file__, "rb") as file, socket.socket() as connection, mmap.mmap(-1, 4096) as mapped:
        yield "file", file, r"'(_io\.)?BufferedReader' (object|instances)", "send the path of the file"
        yield "socket", connection, "'socket' object", "make it where it is used"
        yield "mmap", mapped, "'mmap.mmap' object", "send the path of the mapped file"
    yield "text file", sys.__stdout__, r"'(_io\.)?TextIOWrapper' (object|instances)", "send the path of the file"
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        yield "database", database, "'sqlite3.Connection' object", "make it where it is used"
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        yield "future", loop.create_future(), "'_asyncio.Future' object", "await it, and send its result"
    with contextlib.closing(waiting()) as coroutine:
        yield "coroutine", coroutine, "'coroutine' object", "did you forget yield or await?"
    yield "generator", counting(), "'generator' object", r"counting\(...\) gives one until it is awaited"
    yield "weak reference", weakref.ref(Thing), "'weakref.ReferenceType' object", "send the object that it refers to"
    yield "weak method", weakref.WeakMethod(Thing().method), "'WeakMethod' object", "send the object that it refers to"
    yield "lock", threading.Lock(), "'_thread.lock' object", "make one where it is used"
    yield "recursive lock", threading.RLock(), "'_thread.RLock' object", "make one where it is used"
    yield "thread-local", threading.local(), "'_thread._local' object", "make it where it is used"
    yield "context variable", contextvars.ContextVar("number"), "'_contextvars.ContextVar' object", "send its value"
    yield "match", re.match("a", "a"), "'re.Match' object", "send what it is made from"
    yield "frame", sys._getframe(), "'frame' object", "make it where it is used"
    yield "made module", types.ModuleType("made"), "the module 'made', which nobody can import", "send what it is made from"
    yield "view with gaps", view[::2], "a memoryview that is not C-contiguous", r"send bytes\(view\)"
    yield "view of records", memoryview(np.zeros(3, "i4,f8")), "a memoryview of format 'T{i:f0:=d:f1:}'", r"send bytes\(view\)"
    yield "empty table", memoryview(np.zeros((3, 0))), r"a memoryview of format 'd' and shape \(3, 0\)", r"send bytes\(view\)"


def test_what_means_something_here_only_is_refused_in_words() -> None:
    for name, obj, what, advice in unsendable():
        with pytest.raises(errors.PackError, match=f"^message\\[1\\]: cannot pickle {what}.*; .*{advice}"):
            payload.pack((name, obj))


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda lock: lock, "message:"),
        (lambda lock: {"a": [0, {"b": (lock,)}]}, "message['a'][1]['b'][0]:"),
        (lambda lock: {("x", 1): lock}, "message[('x', 1)]:"),
        (lambda lock: [{lock: 1}], "message[0] key <unlocked"),
        (lambda lock: [{lock}], "message[0] item <unlocked"),
        (lambda lock: Holder(deep=Holder(lock=lock)), "message.deep.lock:"),
        (lambda lock: [Slotted(lock)], "message[0].second:"),
        (lambda lock: collections.deque([1, lock]), "message[1]:"),
        (lambda lock: collections.OrderedDict(a=lock), "message['a']:"),
        (lambda lock: DictOf(a=lock), "message['a']:"),
        (lambda lock: types.SimpleNamespace(lock=lock), "message.lock:"),
        (lambda lock: Exception("no", lock), "message.args[1]:"),
        (lambda lock: [caused_by(Failing(lock))], "message[0].__cause__.lock:"),
        (lambda lock: ExceptionGroup("g", [Failing(lock)]), "message.args[1][0].lock:"),
        (lambda lock: Record("r", lock), "message.value:"),
        (lambda lock: np.array([1, lock], dtype=object), "message[1]:"),
        (lambda lock: pd.Series([1, lock]), "message"),
        (lambda lock: logging.StreamHandler(), "message.lock:"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # an address would change with each process
)
def test_the_place_of_what_is_refused_is_named(wrap: Callable[[object], object], place: str) -> None:
    with pytest.raises(errors.PackError, match="_thread.R?[lL]ock") as caught:
        payload.pack(wrap(threading.Lock()))
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (closed_over, "(from 'value' in tests.test_payload_data.closed_over.<locals>.<lambda>)"),
        (with_default, "(from a default of tests.test_payload_data.with_default.<locals>.function)"),
    ],
)
def test_the_origin_of_what_is_refused_is_named(wrap: Callable[[object], object], reason: str) -> None:
    with pytest.raises(errors.PackError) as caught:
        payload.pack(wrap(threading.Lock()))
    assert reason in str(caught.value)


def test_a_list_a_hundred_thousand_deep_is_refused_in_words() -> None:
    deep: Any = [bytes(LARGE)]
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.PackError, match="^message: RecursionError.* flatter"):
        payload.pack([deep, bytearray(LARGE)])
    while isinstance(deep, list):  # freed one by one: the interpreter would recurse
        deep = deep.pop()


@pytest.mark.parametrize("head", [b"cut ", b"cut x", b"cut -1", b"cut 99", b"cut 0"])
def test_pieces_that_do_not_fit_are_an_error(head: bytes) -> None:
    _, *pieces = payload.pack([bytes(LARGE)])
    with pytest.raises(errors.UnpackError, match="cannot unpack a message"):
        payload.unpack([head, *pieces[:1]])


def test_a_piece_that_is_missing_is_an_error() -> None:
    parts = payload.pack([bytes(LARGE), "x"])
    for short_of in (parts[:-1], parts[:2], [*parts[:2], parts[2][:-1], *parts[3:]]):
        with pytest.raises(errors.UnpackError, match="cannot unpack a message"):
            payload.unpack(short_of)


# ---- large bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, LARGE + 1, 2_000_000])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: [data],
        lambda data: ((data,), {}),
        lambda data: ((1,), {"frame": [data]}),
        lambda data: {"a": data, "b": [1, data], "c": Record("c", 1)},
        lambda data: [data, lambda: 5],
        lambda data: [closed_over(data), data],
    ],
    ids=["list", "args", "kwargs", "twice", "with code", "in code"],
)
def test_large_bytes_inside_come_back_as_they_were(wrap: Callable[[Any], Any], size: int, kind: type) -> None:
    data = kind(bytes(range(256)) * (size // 256 + 1))[:size]
    found = sent(wrap(data))

    def equal(one: Any, other: Any) -> bool:
        if callable(one):
            return equal(one(), other())
        if isinstance(one, list | tuple):
            return type(one) is type(other) and all(map(equal, one, other))
        return type(one) is type(other) and one == other

    assert equal(found, wrap(data))


def test_large_bytes_inside_leave_uncopied() -> None:
    data = bytes(LARGE)
    for message in ([data], (("a", data), {}), {"x": {"y": data}}, [lambda: 1, data], [1, memoryview(data)]):
        assert any(part is data or lies_in(part) is data for part in payload.pack(message)), message


def lies_in(part: object) -> object:
    while isinstance(part, memoryview):
        part = part.obj
    return part


def test_large_text_comes_back() -> None:
    text = "ä€𝄞" * LARGE
    assert sent([text, text]) == [text, text]
    assert sent(text) == text


def test_the_same_bytes_twice_travel_once_and_stay_the_same() -> None:
    for data in (bytes(LARGE), bytearray(LARGE), b"small", bytearray(b"small")):
        packed = payload.pack([data, {"again": data}])
        assert sum(memoryview(part).nbytes for part in packed) < len(data) + 200
        found = payload.unpack(packed)
        assert found[0] is found[1]["again"]


@pytest.mark.parametrize("count", [2, messages.MAX_PARTS // 2 + 5, 2 * messages.MAX_PARTS])
def test_more_large_bytes_than_a_message_has_parts_go_together(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "BULK", 70_000)  # still above pickle's frames of 64 KiB
    data = [bytes([number % 256]) * 70_000 for number in range(count)]
    packed = payload.pack([data, np.zeros(20_000), np.ones(20_000)])
    assert len(packed) < messages.MAX_PARTS
    found = payload.unpack(packed)
    assert found[0] == data and found[2][0] == 1


def test_many_arrays_and_many_bytes_together() -> None:
    data: list[Any] = [bytes([number % 256]) * 300_000 if number % 2 else np.full(10_000, number) for number in range(300)]
    data += [np.full(10_000, number) for number in range(messages.MAX_PARTS)]
    packed = payload.pack(data)
    assert len(packed) < messages.MAX_PARTS
    for one, other in zip(payload.unpack(packed), data, strict=True):
        assert one == other if isinstance(one, bytes) else (one == other).all()


# ---- a message is a copy --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "writable",
    [
        lambda: bytearray(LARGE),
        lambda: [bytearray(LARGE)],
        lambda: memoryview(bytearray(LARGE)),
        lambda: array.array("B", bytes(LARGE)),
        lambda: np.zeros(LARGE, "u1"),
        lambda: np.zeros(LARGE, "u1")[::2],
        lambda: np.zeros((LARGE, 2), "u1").T,
        lambda: np.zeros(LARGE, "M8[s]"),
        lambda: np.ma.array(np.zeros(LARGE, "u1")),
        lambda: pd.Series(np.zeros(LARGE, "u1")),
    ],
)
def test_what_is_changed_afterwards_does_not_change_what_travels(writable: Callable[[], Any]) -> None:
    obj = writable()
    packed = payload.pack(obj)
    target = obj[0] if isinstance(obj, list) else obj
    target[0] = 1
    found = payload.unpack(packed)
    assert int(np.asarray(found[0]).reshape(-1)[0].astype(int)) == 0


def test_read_only_memory_leaves_uncopied() -> None:
    data = np.zeros(LARGE)
    data.setflags(write=False)
    for obj in (data, [data], data[1:], data.reshape(2, -1).T, memoryview(data)):
        (view,) = (part for part in payload.pack(obj) if isinstance(part, memoryview))
        assert np.shares_memory(np.frombuffer(view), data)


def test_a_read_only_view_of_what_can_be_written_is_copied() -> None:
    """numpy and pandas make such views unasked; the view promises nothing."""
    data = np.zeros(LARGE)
    view = data[:]
    view.setflags(write=False)
    parts = payload.pack([view, memoryview(view)])
    data[:] = 7
    assert [np.asarray(each)[0] for each in payload.unpack(parts)] == [0, 0]
    assert all(type(part) is bytes for part in parts)


ITEMS = 5_000_000  # of 8 bytes


def locked() -> Any:
    array = np.ones(ITEMS)
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("make", "copies_to_send", "copies_to_receive"),
    [
        (lambda: np.ones(ITEMS), 1, 0),
        (lambda: {"a": [np.ones(ITEMS)]}, 1, 0),
        (locked, 0, 0),
        (lambda: ((locked(),), {}), 0, 0),
        (lambda: np.ones(2 * ITEMS)[::2], 1, 1),
        (lambda: np.zeros(ITEMS, "M8[s]"), 1, 0),
        (lambda: pd.DataFrame({"a": np.ones(ITEMS // 2), "t": np.zeros(ITEMS // 2, "M8[s]")}), 1, 0),
        (lambda: bytes(8 * ITEMS), 0, 1),
        (lambda: ((bytes(8 * ITEMS),), {}), 0, 1),
        (lambda: [lambda: 0, bytes(8 * ITEMS)], 0, 1),
        (lambda: bytearray(8 * ITEMS), 1, 0),
        (lambda: [bytearray(8 * ITEMS)], 1, 1),
        (lambda: memoryview(bytearray(8 * ITEMS)), 1, 0),
        (lambda: [memoryview(bytes(8 * ITEMS))], 0, 0),
    ],
    ids=[
        *(
            "array",
            "in a dict",
            "read-only",
            "argument",
            "every second",
            "dates",
            "frame",
            "bytes",
            "bytes as argument",
        ),
        *("bytes and code", "bytearray", "bytearray inside", "memoryview", "read-only view"),
    ],
)
def test_large_memory_is_copied_once_or_not_at_all(
    make: Callable[[], Any], copies_to_send: int, copies_to_receive: int
) -> None:
    obj = make()
    parts, peak = traced(lambda: payload.pack(obj))
    assert peak == pytest.approx(copies_to_send, abs=0.1)
    parts = arrived(parts)
    _, peak = traced(lambda: payload.unpack(parts))
    assert peak == pytest.approx(copies_to_receive, abs=0.1)


def traced(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the most memory that it held meanwhile, in copies of the object."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1] / (8 * ITEMS)
    finally:
        tracemalloc.stop()


# ---- numpy ----------------------------------------------------------------------------------------


def arrays() -> dict[str, Any]:
    base = np.arange(120_000.0).reshape(300, 400)
    return {
        "plain": base,
        "small": np.arange(3),
        "empty": np.zeros((0, 3)),
        "0-d": np.array(3.5),
        "every second": base[:, ::2],
        "backwards": base[::-1],
        "small, every second": np.arange(10)[::2],
        "Fortran": np.asfortranarray(base),
        "axes swapped": base.reshape(30, 10, 400).transpose(1, 0, 2),
        "records": np.zeros(20_000, [("a", "i4"), ("b", "f8", (2,)), ("c", "S3")]),
        "records with dates": np.zeros(20_000, [("a", "M8[ns]"), ("b", "f8")]),
        "aligned records": np.zeros(20_000, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        "objects": np.array([1, "a", None, (2, 3)], dtype=object),
        "text": np.array(["ab", "ä"] * 20_000),
        "variable text": np.array(["ab", "a" * 100], dtype=np.dtypes.StringDType()),
        "bytes": np.array([b"ab", b"c"]),
        "dates": np.arange(20_000).astype("M8[ms]"),
        "small dates": np.array(["2020-01-01", "NaT"], "M8[D]"),
        "a date": np.array("2020-01-01", "M8[D]"),
        "durations": np.arange(20_000).astype("m8[us]"),
        "dates, every second": np.arange(20_000).astype("M8[ms]")[::2],
        "Fortran dates": np.asfortranarray(np.arange(20_000).reshape(100, 200).astype("M8[ms]")),
        "big-endian": np.arange(20_000, dtype=">f8"),
        "half": np.arange(100, dtype="f2"),
        "long double": np.arange(20_000, dtype="g"),
        "complex": np.arange(20_000) * 1j,
        "bool": np.arange(100_000) % 3 == 0,
        "nothing in it": np.zeros(3, "V0"),
        "record array": np.rec.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i8"), ("b", "f8")]),
    }


@pytest.mark.parametrize("writable", [True, False], ids=["writable", "read-only"])
@pytest.mark.parametrize("name", arrays())
def test_an_array_arrives_as_it_was(name: str, writable: bool) -> None:
    original = arrays()[name]
    original.setflags(write=writable)
    for found in (sent(original), sent({"x": [original]})["x"][0], payload.unpack(payload.pack(original))):
        assert type(found) is type(original)
        assert found.dtype == original.dtype and found.shape == original.shape
        assert found.flags.writeable is writable
        assert (
            (found.flags.c_contiguous, found.flags.f_contiguous)[not original.flags.c_contiguous]
            or "every" in name
            or (name in ("backwards", "axes swapped"))
        )
        assert np.array_equal(found, original, equal_nan=original.dtype.kind in "mM")
        if writable and found.size:
            found.flat[0] = found.flat[-1]
    shared = sent(original, shared=True)
    assert np.array_equal(shared, original, equal_nan=original.dtype.kind in "mM")


@pytest.mark.parametrize("writable", [True, False])
def test_a_masked_array_arrives_with_its_mask(writable: bool) -> None:
    original = np.ma.array(np.arange(20_000), mask=np.arange(20_000) % 3 == 0, fill_value=-1)
    original.setflags(write=writable)
    found = sent(original)
    assert type(found) is np.ma.MaskedArray and (found.mask == original.mask).all() and found.sum() == original.sum()
    assert found.flags.writeable is writable and found.fill_value == -1


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_a_mapped_file_arrives_as_the_array_in_it(mode: Any, tmp_path: Path) -> None:
    original = np.memmap(tmp_path / "data", "f8", "w+", shape=(100, 200))
    original[:] = np.arange(200)
    original.flush()
    mapped = np.memmap(tmp_path / "data", "f8", mode, shape=(100, 200))
    found = sent([mapped])[0]
    assert type(found) is np.ndarray and (found == original).all()
    assert found.flags.writeable is (mode != "r")


def test_an_object_array_may_hold_itself() -> None:
    original: Any = np.empty(2, object)
    original[0] = original
    original.setflags(write=False)
    found = sent(original)
    assert found[0] is found and not found.flags.writeable


def test_views_of_one_array_arrive_as_arrays_of_their_own() -> None:
    base = np.arange(100_000)
    first, second = sent([base[:50_000], base[50_000:]])
    first[:] = 0
    assert second[0] == 50_000


def test_the_same_array_twice_stays_the_same() -> None:
    base = np.arange(100_000)
    one, other = sent([base, base])
    assert one is other


@pytest.mark.parametrize(
    "scalar", [np.float32(1.5), np.int8(-3), np.datetime64("2020"), np.bool_(True), np.str_("a"), np.void(b"ab")]
)
def test_numpy_scalars_arrive_as_such(scalar: Any) -> None:
    found = sent(scalar)
    assert type(found) is type(scalar) and found == scalar


class Tagged(np.ndarray):
    """A subclass as numpy's own guide has it: more than an array, with a reduction of its own."""

    tag: str

    def __array_finalize__(self, obj: Any) -> None:
        self.tag = getattr(obj, "tag", "")

    def __reduce__(self) -> Any:
        made, args, state = super().__reduce__()  # type: ignore[misc]
        return made, args, (*state, self.tag)

    def __setstate__(self, state: Any) -> None:
        self.tag = state[-1]
        super().__setstate__(state[:-1])


@pytest.mark.parametrize("writable", [True, False])
def test_a_subclass_keeps_what_it_adds(writable: bool) -> None:
    original = np.arange(3).view(Tagged)
    original.tag = "first"
    original.setflags(write=writable)
    found = sent(original)
    assert type(found) is Tagged and found.tag == "first" and found.flags.writeable is writable


# ---- pandas ---------------------------------------------------------------------------------------

ROWS = 20_000
FRAME = pd.DataFrame(
    {
        "number": range(ROWS),
        "real": np.linspace(0, 1, ROWS),
        "text": [f"row {number}" for number in range(ROWS)],
        "category": pd.Categorical(["u", "v"] * (ROWS // 2)),
        "time": pd.date_range("2020", periods=ROWS, freq="h", tz="Europe/Berlin"),
        "naive": pd.date_range("2020", periods=ROWS, freq="h"),
        "span": pd.to_timedelta(range(ROWS), unit="s"),
        "missing": pd.array([1, None] * (ROWS // 2), dtype="Int64"),
        "object": [None, (1, 2)] * (ROWS // 2),
        "flag": np.arange(ROWS) % 2 == 0,
    }
)


@pytest.mark.parametrize(
    "original",
    [
        FRAME,
        FRAME.head(3),
        FRAME.head(0),
        FRAME.set_index("time"),
        FRAME.groupby("category", observed=True)[["real", "number"]].describe(),
        FRAME[::2],
    ],
    ids=["all", "small", "empty", "by time", "two levels", "every second"],
)
def test_a_frame_arrives_as_it_was_and_can_be_changed(original: pd.DataFrame) -> None:
    found = sent({"frame": original})["frame"]
    pd.testing.assert_frame_equal(found, original)
    for column in found.columns:
        if len(found):
            found.loc[found.index[0], column] = found.loc[found.index[-1], column]
    assert (found[::-1].index == original.index[::-1]).all()


@pytest.mark.parametrize("column", FRAME.columns)
def test_a_series_arrives_as_it_was_and_can_be_changed(column: str) -> None:
    found = sent(FRAME[column])
    pd.testing.assert_series_equal(found, FRAME[column])
    found.iloc[0] = found.iloc[-1]
    assert found.iloc[0] is pd.NA or found.iloc[0] == found.iloc[-1]


@pytest.mark.parametrize(
    "index",
    [pd.Index(["a", "b"]), pd.RangeIndex(5), pd.MultiIndex.from_product([[1, 2], ["a"]]), pd.DatetimeIndex(["2020"], tz="UTC")],
    ids=lambda index: type(index).__name__,
)
def test_an_index_arrives_as_it_was(index: pd.Index) -> None:
    pd.testing.assert_index_equal(sent(index), index, exact=True)


def test_numbers_and_dates_of_a_frame_travel_beside_the_pickle() -> None:
    packed = payload.pack(FRAME[["number", "real", "naive", "span"]])
    assert len(packed) > 3 and memoryview(packed[0]).nbytes < 10_000


# ---- memory of other kinds ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("wrap", [lambda view: view, lambda view: {"x": [view]}], ids=["alone", "inside"])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: memoryview(bytes(size)),
        lambda size: memoryview(bytearray(size)),
        lambda size: memoryview(bytearray(size)).toreadonly(),
        lambda size: memoryview(array.array("d", [1.5] * size)),
        lambda size: memoryview(np.arange(size * 6).reshape(size, 2, 3)),
        lambda size: memoryview(np.arange(size) % 2 == 0),
        lambda size: memoryview(array.array("i", range(size)))[size:],
        lambda size: memoryview(b"xyz" * size)[1:],
        lambda size: memoryview(array.array("H", [7])).cast("B").cast("H", []),
    ],
    ids=["bytes", "bytearray", "read-only", "doubles", "three dimensions", "bool", "empty", "a part", "no dimension"],
)
def test_a_memoryview_arrives_as_one(make: Callable[[int], memoryview], wrap: Callable[[Any], Any], size: int) -> None:
    view = make(size)
    found = sent(wrap(view))
    found = found["x"][0] if isinstance(found, dict) else found
    assert isinstance(found, memoryview)
    assert (found.format, found.shape, found.readonly) == (view.format, view.shape, view.readonly)
    assert found == view


@pytest.mark.parametrize("typecode", "bBhHiIlLqQfd")
@pytest.mark.parametrize("size", [0, 3, 200_000])
def test_an_array_of_the_standard_library_arrives(typecode: str, size: int) -> None:
    original = array.array(typecode, [1] * size)
    found = sent([original])[0]
    assert found == original and found.typecode == typecode
    found.append(1)


def test_files_in_memory_arrive_with_their_position() -> None:
    data, text = io.BytesIO(b"abcdef" * LARGE), io.StringIO("abc")
    data.seek(3)
    text.seek(1)
    found = sent({"d": data, "t": text})
    assert found["d"].read(3) == b"def" and found["t"].read() == "bc"
    found["d"].write(b"x")


# ---- shared: what lies in a mapped file is used as it lies ----------------------------------------


@pytest.fixture
def mapped(tmp_path: Path) -> Callable[[object], list[Part]]:
    """The parts of a message as read-only views of one file, as a broadcast blob has them."""

    def write(obj: object) -> list[Part]:
        parts = payload.pack(obj)
        (tmp_path / "blob").write_bytes(b"".join(parts))
        with (tmp_path / "blob").open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        views, at = [], 0
        for part in parts:
            views.append(whole[at : at + memoryview(part).nbytes])
            at += memoryview(part).nbytes
        return views

    return write


def test_shared_arrays_lie_in_the_file_and_are_read_only(mapped: Callable[[object], list[Part]]) -> None:
    original = {
        "a": np.arange(100_000),
        "m": memoryview(bytearray(LARGE)),
        "d": np.arange(20_000).astype("M8[s]"),
        "b": bytes(LARGE),
    }
    parts = mapped(original)
    found = payload.unpack(parts, shared=True)
    assert (found["a"] == original["a"]).all() and (found["d"] == original["d"]).all() and found["b"] == original["b"]
    assert found["m"].readonly and not found["a"].flags.writeable and not found["d"].flags.writeable
    lying = np.frombuffer(parts[0].obj, "u1")  # type: ignore[union-attr]
    assert all(
        np.shares_memory(lying, np.frombuffer(each, "u1") if each is found["m"] else each)
        for each in (found["a"], found["d"], found["m"])
    )
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_shared_bytes_are_themselves(kind: Any, mapped: Callable[[object], list[Part]]) -> None:
    found = payload.unpack(mapped(kind(LARGE)), shared=True)
    assert type(found) is kind and found == kind(LARGE)


def test_shared_takes_over_no_part() -> None:
    parts: list[Any] = [bytearray(part) for part in payload.pack([np.zeros(LARGE), memoryview(bytearray(LARGE))])]
    found = payload.unpack(parts, shared=True)
    assert not found[0].flags.writeable and found[1].readonly
    flat: list[Any] = [bytearray(part) for part in payload.pack(bytearray(LARGE))]
    payload.unpack(flat, shared=True)[0] = 1
    assert flat[1][0] == 0


def test_a_shared_frame_can_be_reckoned_with(mapped: Callable[[object], list[Part]]) -> None:
    found = payload.unpack(mapped(FRAME), shared=True)
    pd.testing.assert_frame_equal(found, FRAME)
    assert found["real"].sum() == FRAME["real"].sum()
    assert len(found.groupby("category", observed=True)["number"].mean()) == 2


# ---- from one interpreter to another --------------------------------------------------------------

PREAMBLE = """
import abc, array, asyncio, collections, dataclasses, datetime, decimal, enum, fractions, functools, ipaddress, logging
import operator, pathlib, re, types, typing, uuid, zoneinfo
import numpy as np, pandas as pd
"""

SENDER = (
    PREAMBLE
    + """
import json, pickle, sys
from discoro import payload

@dataclasses.dataclass
class Plain:
    x: int
    tags: list = dataclasses.field(default_factory=list)
@dataclasses.dataclass(slots=True)
class Slots:
    x: int
    y: object = None
@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int
@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots:
    x: int
    def double(self): return self.x * 2
class Color(enum.Enum):
    RED = 1
    GREEN = "g"
class Level(enum.IntEnum):
    LOW = 1
class Perm(enum.Flag):
    R = 1
    W = 2
Pair = collections.namedtuple("Pair", "a b")
class Typed(typing.NamedTuple):
    a: int
    b: str = "b"
T, P, Ts = typing.TypeVar("T"), typing.ParamSpec("P"), typing.TypeVarTuple("Ts")
UserId = typing.NewType("UserId", int)
class Box(typing.Generic[T]):
    def __init__(self, value): self.value = value
class Speaks(typing.Protocol):
    def speak(self) -> str: ...
class Dog(Speaks):
    def speak(self): return "wuff"
class Base(abc.ABC):
    @abc.abstractmethod
    def get(self): ...
class Impl(Base):
    def get(self): return 7
class Meta(type):
    def __call__(cls, *args):
        made = super().__call__(*args)
        made.by = "meta"
        return made
class Made(metaclass=Meta): pass
class Node:
    def __init__(self): self.me, self.next = self, None
class Full:
    kind = "full"
    def __init__(self): self.n = 2
    @property
    def twice(self): return self.n * 2
    @functools.cached_property
    def thrice(self): return self.n * 3
    @staticmethod
    def static(): return "static"
    @classmethod
    def named(cls): return cls.__name__
    def method(self, k=1): return self.n * k
class State:
    def __init__(self): self.a, self.cache = 1, lambda: 0
    def __getstate__(self): return {"a": self.a}
    def __setstate__(self, state): self.__dict__.update(state, restored=True)
@functools.singledispatch
def kind(x): return "other"
@kind.register
def _(x: int): return "int"
@functools.cache
def cached(x): return x * 2
def logged(function):
    @functools.wraps(function)
    def wrapper(*args): return ("logged", function(*args))
    return wrapper
@logged
def add(a, b):
    "adds"
    return a + b
def local():
    class Local:
        def __init__(self, n): self.n = n
        def get(self): return self.n
    return Local
def nested(n):
    def inner(k): return n + k
    return inner
def ring():
    a, b = [], {}
    a.append(b); b["a"] = a
    return a
def node():
    one, two = Node(), Node()
    one.next, two.next = two, one
    return one
def same():
    inner = [1]
    return [inner, inner, (inner, {"x": inner})]

out = {}
for name, make, _ in json.loads(sys.stdin.readline()):
    out[name] = payload.pack(eval(make))
pickle.dump(out, sys.stdout.buffer)
"""
)

RECEIVER = (
    PREAMBLE
    + """
import json, pickle, sys
from discoro import payload
rows = json.loads(sys.stdin.buffer.readline())
packed = pickle.load(sys.stdin.buffer)
namespace, results = payload.Namespace("n"), {}
for name, _, check in rows:
    try:
        x = payload.unpack(packed[name], namespace)
        results[name] = eval(check)
    except BaseException as error:
        results[name] = f"{type(error).__name__}: {error}"
print(json.dumps(results))
"""
)

VALUES = [
    # plain values and containers
    (
        "numbers",
        "[1, -2**70, 1.5, float('nan'), 1j, True, None, ...]",
        "x[:3] == [1, -2**70, 1.5] and x[3] != x[3] and x[7] is ...",
    ),
    ("text", "['', 'ä€𝄞', '\\ud800']", "x == ['', 'ä€𝄞', '\\ud800']"),
    ("sets", "[{1, 'a'}, frozenset([(1, 2)])]", "x == [{1, 'a'}, frozenset([(1, 2)])]"),
    (
        "decimal",
        "[decimal.Decimal('1.10'), fractions.Fraction(1, 3)]",
        "str(x[0]) == '1.10' and x[1] == fractions.Fraction(1, 3)",
    ),
    ("datetime", "datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc)", "x.isoformat() == '2020-01-02T00:00:00+00:00'"),
    ("zone", "datetime.datetime(2020, 7, 2, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin'))", "str(x.utcoffset()) == '2:00:00'"),
    ("date and time", "[datetime.date(2020, 1, 1), datetime.time(1, 2), datetime.timedelta(3)]", "x[2].days == 3"),
    ("path", "[pathlib.Path('/a/b'), pathlib.PurePosixPath('c')]", "x[0].name == 'b'"),
    ("uuid", "uuid.UUID(int=5)", "x.int == 5"),
    ("ip", "ipaddress.ip_network('10.0.0.0/8')", "x.num_addresses == 2**24"),
    ("deque", "collections.deque([1, 2, 3], maxlen=3)", "x.maxlen == 3 and list(x) == [1, 2, 3]"),
    ("ordered", "collections.OrderedDict(b=1, a=2)", "list(x) == ['b', 'a'] and type(x) is collections.OrderedDict"),
    ("defaultdict", "collections.defaultdict(list, a=[1])", "x['new'] == []"),
    ("defaultdict of lambda", "collections.defaultdict(lambda: 5)", "x['new'] == 5"),
    ("counter", "collections.Counter('aab')", "x.most_common(1) == [('a', 2)]"),
    ("chain", "collections.ChainMap({'a': 1}, {'b': 2})", "x['b'] == 2"),
    ("range and slice", "[range(1, 9, 2), slice(1, 2)]", "list(x[0]) == [1, 3, 5, 7] and x[1] == slice(1, 2)"),
    ("shared references", "same()", "x[0] is x[1] is x[2][0] is x[2][1]['x']"),
    ("ring", "ring()", "x[0]['a'] is x"),
    ("instances in a ring", "node()", "x.me is x and x.next.next is x"),
    (
        "views of a dict",
        "[{'a': 1}.keys(), {'a': 1}.values(), {'a': 1}.items()]",
        "[list(v) for v in x] == [['a'], [1], [('a', 1)]]",
    ),
    ("mapping proxy", "types.MappingProxyType({'a': 1})", "x['a'] == 1 and type(x) is types.MappingProxyType"),
    ("namespace", "types.SimpleNamespace(a=1, b=[2])", "x.b == [2]"),
    ("iterators", "[iter([1, 2]), iter(range(3)), reversed([1, 2])]", "[list(i) for i in x] == [[1, 2], [0, 1, 2], [2, 1]]"),
    # classes of __main__ and what they make
    ("dataclass", "Plain(3, ['a'])", "x.tags == ['a'] and x == type(x)(3, ['a']) and repr(x) == \"Plain(x=3, tags=['a'])\""),
    ("dataclass with slots", "Slots(3, Slots(4))", "x.y.x == 4 and not hasattr(x, '__dict__')"),
    ("frozen dataclass", "{Frozen(3): 'a'}", "list(x.values()) == ['a'] and x[type(next(iter(x)))(3)] == 'a'"),
    ("frozen with slots", "FrozenSlots(4)", "x.double() == 8"),
    ("dataclass, replaced", "Plain(1)", "dataclasses.replace(x, x=5).x == 5 and dataclasses.asdict(x) == {'x': 1, 'tags': []}"),
    ("enum", "[Color.RED, Color.GREEN, Level.LOW]", "x[0] is type(x[0])(1) and x[1].value == 'g' and x[2] == 1"),
    ("flag", "Perm.R | Perm.W", "x == type(x)(3) and len(list(x)) == 2"),
    ("named tuples", "[Pair(1, 2), Typed(3)]", "x[0].b == 2 and x[1].b == 'b' and x[1]._replace(a=9).a == 9"),
    ("class", "Full", "x.kind == 'full' and x.static() == 'static' and x.named() == 'Full' and x().twice == 4"),
    ("instance", "Full()", "x.thrice == 6 and x.method(5) == 10"),
    ("its own state", "State()", "x.a == 1 and x.restored and not hasattr(x, 'cache')"),
    (
        "bound methods",
        "[Full().method, Full.named, [].append, 'a'.upper]",
        "x[0](4) == 8 and x[1]() == 'Full' and x[3]() == 'A'",
    ),
    ("generic", "[Box(1), Box[int]]", "x[0].value == 1 and x[1].__origin__ is type(x[0])"),
    ("protocol", "Dog()", "x.speak() == 'wuff'"),
    ("abc", "Impl()", "x.get() == 7"),
    ("metaclass", "Made()", "x.by == 'meta' and type(type(x)).__name__ == 'Meta'"),
    ("local class", "[local(), local()(5)]", "x[0](3).get() == 3 and x[1].get() == 5"),
    ("bound method of a local class", "local()(5).get", "x() == 5"),
    # functions
    ("lambdas", "{'f': lambda a: a + 1, 'g': [lambda: 2]}", "x['f'](1) == 2 and x['g'][0]() == 2"),
    ("nested function", "nested(3)", "x(4) == 7"),
    (
        "partial",
        "[functools.partial(lambda a, b: a - b, 5), functools.partial(int, base=2)]",
        "x[0](2) == 3 and x[1]('11') == 3",
    ),
    ("partial of a partial", "functools.partial(functools.partial(nested(1)), 5)", "x() == 6"),
    ("cache", "cached", "x(4) == 8 and x.cache_info().misses == 1"),
    ("wraps", "add", "x(1, 2) == ('logged', 3) and x.__doc__ == 'adds' and x.__wrapped__(1, 2) == 3"),
    ("singledispatch", "kind", "x(1) == 'int' and x('') == 'other'"),
    (
        "operators",
        "[operator.itemgetter(1, 0), operator.attrgetter('real'), operator.methodcaller('upper')]",
        "x[0]('ab') == ('b', 'a')",
    ),
    (
        "descriptors",
        "[staticmethod(lambda: 1), classmethod(lambda c: c), property(lambda s: 3)]",
        "x[0]() == 1 and x[2].fget(0) == 3",
    ),
    ("partial method", "functools.partialmethod(lambda s, a: a, 4)", "x.args == (4,)"),
    (
        "builtins",
        "[len, str.upper, dict.fromkeys, np.sin]",
        "x[0]('ab') == 2 and x[1]('a') == 'A' and x[2]('a') == {'a': None}",
    ),
    ("coroutine function", "(lambda: 0, add)[1]", "x(1, 1)[1] == 2"),
    ("vectorized", "np.vectorize(lambda a: a + 1)", "x([1, 2]).tolist() == [2, 3]"),
    # types, patterns, loggers, modules
    (
        "hints",
        "[list[int], dict[str, 'Full'], typing.Optional[int], int | None, typing.Literal['a'], typing.Callable[[int], str]]",
        "x[0] == list[int] and x[2] == typing.Optional[int] == x[3] and x[4].__args__ == ('a',)",
    ),
    (
        "type variables",
        "[T, P, Ts, UserId, typing.Any]",
        "[v.__name__ for v in x[:4]] == ['T', 'P', 'Ts', 'UserId'] and x[4] is typing.Any",
    ),
    ("pattern", "re.compile('a+', re.I)", "x.match('AA') and x.flags & re.I == re.I and True"),
    ("logger", "logging.getLogger('some.name')", "x is logging.getLogger('some.name')"),
    ("modules", "{'m': json, 'n': np}", "x['n'] is np and x['m'].loads('1') == 1"),
    (
        "singletons",
        "[..., NotImplemented, type(None), int]",
        "x[0] is ... and x[1] is NotImplemented",
    ),
    ("asyncio objects that nobody waits for", "[asyncio.Event(), asyncio.Queue()]", "not x[0].is_set() and x[1].empty()"),
    # data libraries
    ("array", "np.arange(100_000)", "x.sum() == 4999950000 and x.flags.writeable"),
    ("array of instances", "np.array([Plain(1), Plain(2)], dtype=object)", "[v.x for v in x] == [1, 2]"),
    (
        "frame",
        "pd.DataFrame({'a': [1, 2], 't': pd.to_datetime(['2020', '2021'], utc=True), 'c': pd.Categorical(['x', 'y'])})",
        "str(x.dtypes['a']) == 'int64' and x.loc[1, 't'].year == 2021 and list(x['c'].cat.categories) == ['x', 'y']",
    ),
    ("frame of instances", "pd.DataFrame({'o': [Plain(1), None]})", "x.loc[0, 'o'].x == 1"),
    (
        "generator of random numbers",
        "np.random.default_rng(5)",
        "x.integers(1000) == np.random.default_rng(5).integers(1000) and True",
    ),
    (
        "exceptions",
        "[ValueError('a', 1), KeyError('k'), OSError(2, 'no', 'file')]",
        "x[0].args == ('a', 1) and x[2].filename == 'file'",
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Each check of VALUES, evaluated by an interpreter on what another one packed in its `__main__`."""
    home, away = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("away")
    (home / "sender.py").write_text(SENDER)
    (away / "receiver.py").write_text(RECEIVER)
    rows = json.dumps(VALUES).encode() + b"\n"
    packed = run(home / "sender.py", rows)
    found: dict[str, object] = json.loads(run(away / "receiver.py", rows + packed))
    return found


def run(script: Path, given: bytes) -> bytes:
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, script.name], cwd=script.parent, env=environment, input=given, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("name", [name for name, _, _ in VALUES])
def test_a_value_arrives_in_another_interpreter(name: str, results: dict[str, object]) -> None:
    assert results[name] is True


# ---- to a worker and back -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        yield site


def marks(*objects: Any) -> Any:
    """What a computation sees of its arguments, which it changes where it can."""
    yield
    seen = []
    for obj in objects:
        try:
            obj[0] = obj[1]
            seen.append((type(obj).__name__, True, obj[0]))
        except (TypeError, ValueError) as error:
            seen.append((type(obj).__name__, "read-only" in str(error) or "assignment" in str(error), obj[0]))
    return seen, objects


def gives_back(coro: Any = None) -> Any:
    """Sends every message back to where it came from, until None."""
    while (message := (yield coro.receive())) is not None:
        sender, obj = message
        sender.send(obj)


SIZES = [10, 100_000]  # bytes: in the pickle, and beside it in several chunks


@pytest.mark.parametrize("size", SIZES)
def test_arguments_and_results_of_a_worker(site: Site, size: int) -> None:
    locked = np.arange(size, dtype="i1")
    locked.setflags(write=False)
    objects = [
        np.arange(size, dtype="i1"),
        locked,
        locked[::2],
        bytearray(b"ab" * size),
        bytes(size),
        memoryview(bytearray(size)),
    ]
    can_write = [True, False, False, True, False, True]

    async def client(server: CoroRef) -> None:
        computation = Computation(marks)
        await computation.setup(server)
        seen, back = await (await computation.run(server, *objects)).result()
        assert [kind for kind, _, _ in seen] == [type(obj).__name__ for obj in objects]
        for (_, plausible, first), original, returned, writable in zip(seen, objects, back, can_write, strict=True):
            assert plausible and first == (original[1] if writable else original[0])
            assert type(returned) is type(original) and bytes(returned)[1:] == bytes(original)[1:]
        assert [back[0].flags.writeable, back[1].flags.writeable, back[5].readonly] == [True, False, False]
        await computation.close(server)

    site.run("node", client)


@pytest.mark.parametrize("size", SIZES)
def test_messages_to_a_worker_and_back(site: Site, size: int) -> None:
    frame = FRAME.head(size)
    data = {"frame": frame, "bytes": bytes(size * 8), "same": [(shared := bytearray(size * 8)), shared]}

    async def client(server: CoroRef) -> None:
        computation = Computation(gives_back)
        await computation.setup(server)
        remote = await computation.run(server)
        me = current_coro()
        remote.send((me.ref, data))
        data["same"][0][0] = 1  # after it was sent
        back = await me.receive(timeout=20)
        pd.testing.assert_frame_equal(back["frame"], frame)
        back["frame"].loc[0, "real"] = 5.0
        assert back["bytes"] == data["bytes"] and back["same"][0] is back["same"][1] and back["same"][0][0] == 0
        data["same"][0][0] = 0
        remote.send(None)
        await remote.result()
        await computation.close(server)

    site.run("node", client)
