"""Broadcasts: the same within one process, between two, and between two machines.

To add a row, see the first lines of test_everywhere_messages.py.
"""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest

from discoro import Broadcast, CoroRef, ExitNotice, NoSuchCoro, NotHere, PackError, PeerLost, Unreachable, broadcast
from tests.support.three_ways import TWO_PROCESSES, in_both_styles, three_ways

SOON = 5.0  # seconds for what must come; the end of a killed process too

OBJECTS: dict[str, Any] = {
    "an array": np.arange(1_000_000),
    "arrays by name": {"small": np.arange(10), "large": np.ones((300, 400)), "none": np.zeros(0)},
    "bytes": bytes(range(256)) * 4000,
    "no bytes": b"",
    "nothing": None,
    "a frame": pd.DataFrame({"x": np.arange(50_000.0), "name": ["a", "b"] * 25_000}),
    "a frozen set": frozenset({1, 2}),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, pd.DataFrame):
        return bool(one.equals(other))
    return type(one) is type(other) and bool(np.array_equal(one, other))


def gets_generator(shared: Broadcast, coro: Any = None) -> Any:
    found = yield shared.get(SOON)
    return found, shared.value is found, shared


async def gets(shared: Broadcast, coro: Any = None) -> Any:
    found = await shared.get(SOON)
    return found, shared.value is found, shared


@in_both_styles("getting", gets_generator, gets)
@pytest.mark.parametrize("what", OBJECTS)
@three_ways
async def test_everybody_gets_it(far: Any, coro: Any, getting: Any, what: str) -> None:
    shared = await broadcast(OBJECTS[what])
    found, is_value, back = await (await far.create(getting, shared)).result(SOON)
    assert same(found, OBJECTS[what]) and is_value
    assert back == shared and hash(back) == hash(shared) and str(back) == str(shared)
    assert same(await shared.get(), OBJECTS[what])
    assert await shared.close() == 0
    assert await shared.close() == 0, "it had ended"


async def flags_of(shared: Broadcast) -> Any:
    array = await shared.get(SOON)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    return array.flags.writeable, array.ctypes.data % 64, bytes(memoryview(array)[:4]), await shared.get(SOON) is array


@three_ways
async def test_an_array_lies_in_the_file_and_cannot_be_changed(far: Any, coro: Any) -> None:
    with await broadcast(np.arange(100_000, dtype=np.uint8)) as shared:
        assert await (await far.create(flags_of, shared)).result(SOON) == (False, 0, bytes(range(4)), True)


async def makes(to: CoroRef, number: int, coro: Any = None) -> None:
    """Broadcast something here, hand it out, and keep it until asked to close it. Each row has another number: stores last."""
    shared = await broadcast([number, np.arange(100_000)])
    to.send(shared)
    await coro.receive()
    await shared.close()
    to.send("closed")
    await coro.suspend()


@three_ways(ways=TWO_PROCESSES)
async def test_a_value_that_is_not_here_is_brought_by_get(far: Any, coro: Any) -> None:
    await far.create(makes, coro.ref, 1)
    shared = await coro.receive(SOON)
    with pytest.raises(NotHere, match=r"broadcast of list, \d+ bytes .* is not on this machine: yield .*get"):
        shared.value  # noqa: B018 - what it raises
    number, array = await shared.get(SOON)
    assert (number, array[-1]) == (1, 99_999)
    assert await asyncio.to_thread(lambda: shared.value[1]) is array


@three_ways(ways=TWO_PROCESSES)
async def test_one_that_was_closed_is_not_brought(far: Any, coro: Any) -> None:
    maker = await far.create(makes, coro.ref, 2)
    shared = await coro.receive(SOON)
    await coro.monitor(shared.ref)
    maker.send("close")
    ended, closed = await coro.receive(SOON), await coro.receive(SOON)
    assert {type(ended), type(closed)} == {ExitNotice, str}
    with pytest.raises(NoSuchCoro, match="is not on this machine, and has ended: it was closed"):
        await shared.get(SOON)
    with pytest.raises(NotHere):
        shared.value  # noqa: B018 - what it raises


@three_ways(ways=TWO_PROCESSES)
async def test_it_ends_with_the_process_that_made_it(far: Any, coro: Any) -> None:
    await far.create(makes, coro.ref, 3)
    known = await coro.receive(SOON)
    await far.create(makes, coro.ref, 4)
    unknown = await coro.receive(SOON)
    _, array = await known.get(SOON)
    await coro.monitor(known.ref)
    await far.kill()
    assert isinstance(await coro.receive(SOON), ExitNotice)
    assert math.isclose(array.sum(), 99_999 * 50_000), "what is mapped stays"
    with pytest.raises((PeerLost, Unreachable), match="is not on this machine, and cannot be brought"):
        await unknown.get(SOON)


async def closes(shared: Broadcast) -> int:
    return await shared.close()


@three_ways
async def test_anybody_may_close_it(far: Any, coro: Any) -> None:
    shared = await broadcast("text")
    await coro.monitor(shared.ref)
    assert await (await far.create(closes, shared)).result(SOON) == 0
    notice = await coro.receive(SOON)
    assert (notice.ref, notice.reason) == (shared.ref, "normal")


@three_ways
async def test_the_end_of_a_with_block_ends_it_and_two_of_one_content_are_two(far: Any, coro: Any) -> None:
    array = np.arange(50_000)
    other = await broadcast(array)
    with await broadcast(array) as shared:
        assert shared != other and shared.blob == other.blob
        await coro.monitor(shared.ref)
    assert isinstance(await coro.receive(SOON), ExitNotice)
    found, _, _ = await (await far.create(gets, other)).result(SOON)
    assert same(found, array), "the other one is still there"


@three_ways
async def test_what_cannot_be_packed_is_refused_where_it_is_broadcast(far: Any, coro: Any) -> None:
    with pytest.raises(PackError, match=r"message\['lock'\]"):
        await broadcast({"number": 1, "lock": threading.Lock()})
