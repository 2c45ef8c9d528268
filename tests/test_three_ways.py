"""The harness that runs one row three ways: each way is what it says, failures are told in full, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discoro import PeerLost
from tests.support.nodes import until_ended
from tests.support.three_ways import TWO_PROCESSES, WAYS, Near, in_both_styles, marked, near_side, open_way, three_ways


def whereabouts_generator(coro: Any = None) -> Any:
    yield
    return os.getpid(), os.readlink("/proc/self/ns/net"), coro.ref.addresses


async def whereabouts(coro: Any = None) -> Any:
    return os.getpid(), os.readlink("/proc/self/ns/net"), coro.ref.addresses


# ------------------------------------------------------------------ each way is what it says


async def here_and_there(far: Any, coro: Any, function: Any) -> dict[str, bool]:
    there = await far.create(function)
    pid, net, addresses = await there.result(5)
    assert there.pid == pid
    return {
        "same process": pid == os.getpid(),
        "same network": net == os.readlink("/proc/self/ns/net"),
        "loopback": addresses[0].startswith("127.0.0.1:") and coro.ref.addresses[0].startswith("127.0.0.1:"),
    }


@in_both_styles("function", whereabouts_generator, whereabouts)
@three_ways(ways=["same process"])
async def test_same_process(far: Any, coro: Any, function: Any) -> None:
    assert await here_and_there(far, coro, function) == {"same process": True, "same network": True, "loopback": True}


@in_both_styles("function", whereabouts_generator, whereabouts)
@three_ways(ways=["two processes"])
async def test_two_processes(far: Any, coro: Any, function: Any) -> None:
    assert await here_and_there(far, coro, function) == {"same process": False, "same network": True, "loopback": True}


@three_ways(ways=["two namespaces"])
@in_both_styles("function", whereabouts_generator, whereabouts)
async def test_two_namespaces(far: Any, coro: Any, function: Any) -> None:
    assert await here_and_there(far, coro, function) == {"same process": False, "same network": False, "loopback": False}


@three_ways
def test_a_row_may_be_a_generator(far: Any) -> Any:
    there = yield far.create(whereabouts)
    pid, *_ = yield there.result(5)
    assert pid == there.pid


@three_ways(ways=TWO_PROCESSES)
async def test_a_far_side_that_was_killed_or_left_is_replaced(far: Any) -> None:
    pids = [(await far.create(whereabouts)).pid]
    for end in far.kill, far.leave:
        await end()
        assert not Path(f"/proc/{pids[-1]}").exists()
        await far.start()
        pids.append((await far.create(whereabouts)).pid)
    await far.restart()
    assert (await far.create(whereabouts)).pid not in pids
    await far.kill()


@three_ways
async def test_only_functions_that_both_sides_can_import_are_created(far: Any) -> None:
    async def inner() -> None: ...

    with pytest.raises(AssertionError, match="not at the top of a module"):
        await far.create(inner)


# ------------------------------------------------------------------ what goes wrong is told


async def waits() -> None:
    await asyncio.get_running_loop().create_future()


async def says_on_standard_error(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


async def refuses_to_end(coro: Any = None) -> None:
    """Three times: to be terminated after the row, by a killed process or the closing mesh, and by the loop's end."""
    for _ in range(2):
        try:
            await coro.receive()
        except asyncio.CancelledError:
            pass


async def fails(far: Any) -> None:
    await (await far.create(says_on_standard_error, "far, far away")).result(5)
    seven = 7
    assert seven == 8, "as it should"


async def raises_nothing(far: Any) -> None:
    with pytest.raises(ValueError):
        await far.create(waits)


async def never_ends(far: Any) -> None:
    await (await far.create(waits)).result()


def never_ends_generator(far: Any) -> Any:
    yield (yield far.create(waits)).result()


async def leaves_something(far: Any) -> None:
    await far.create(refuses_to_end)


async def ends_the_far_side(far: Any) -> None:
    there = await far.create(waits)
    os.kill(there.pid, signal.SIGKILL)
    with pytest.raises(PeerLost):
        await there.result(5)


async def ends_the_near_side(far: Any) -> None:
    await far.create(waits)
    os.kill(os.getpid(), signal.SIGKILL)


async def makes_noise(far: Any) -> None:
    await (await far.create(says_on_standard_error, "it was never awaited")).result(5)


async def passes(far: Any, pids: Path | None = None) -> None:
    there = await far.create(waits)
    if pids:
        pids.write_text(f"{os.getpid()} {there.pid}")


@pytest.fixture
def near(request: pytest.FixtureRequest, way: str) -> Iterator[Near]:
    """The near side that rows have too; it must be as good as new after whatever a row did to it."""
    near = near_side(request, way)
    yield near
    near.run(passes, {})


def failure(near: Near, row: Any, limit: float = 10.0) -> str:
    """What a failing row says, its notes too."""
    with pytest.raises((AssertionError, pytest.fail.Exception)) as caught:
        near.run(row, {}, limit)
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


@pytest.mark.parametrize("way", marked(WAYS))
def test_a_failure_says_what_and_where_and_what_the_far_side_wrote(near: Near, way: str, capfd: Any) -> None:
    said = failure(near, fails)
    assert "as it should" in said and re.search("7 == 8|seven = 7", said)
    assert "far, far away" in (capfd.readouterr().err if way == "same process" else said)


@pytest.mark.parametrize("way", marked(WAYS))
def test_a_failure_of_pytests_own_is_one_too(near: Near) -> None:
    assert "DID NOT RAISE ValueError" in failure(near, raises_nothing)


@pytest.mark.parametrize("row", [never_ends, never_ends_generator], ids=["async def", "generator"])
@pytest.mark.parametrize("way", marked(WAYS))
def test_a_row_that_takes_too_long_says_where_it_stood(near: Near, row: Any) -> None:
    said = failure(near, row, limit=0.3)
    assert "took over 0.3 s" in said
    assert "far.create(waits)).result()" in said


@pytest.mark.parametrize("way", marked(["same process", "two processes"]))
def test_a_coroutine_that_outlives_its_row_fails_it(near: Near) -> None:
    said = failure(near, leaves_something)
    assert "did not end when terminated" in said and "refuses_to_end" in said


@pytest.mark.parametrize("way", marked(TWO_PROCESSES))
def test_a_far_process_that_ends_by_itself_fails_the_row(near: Near) -> None:
    assert "the far side ended by itself with -9" in failure(near, ends_the_far_side)


@pytest.mark.parametrize("way", marked(["two namespaces"]))
def test_a_near_process_that_ends_fails_the_row(near: Near) -> None:
    assert "a side ended with -9" in failure(near, ends_the_near_side)


@pytest.mark.parametrize("way", marked(WAYS))
def test_no_process_stays_when_a_near_side_is_closed(way: str, tmp_path: Path) -> None:
    near = open_way(way, tmp_path)
    near.run(passes, {"pids": tmp_path / "pids"})
    near.close()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until_ended([pid for pid in pids if pid != os.getpid()], 0)


@pytest.mark.parametrize("way", marked(["two processes"]))
def test_noise_of_a_far_process_is_told_when_it_is_closed(way: str, tmp_path: Path) -> None:
    near = open_way(way, tmp_path)
    near.run(makes_noise, {})
    with pytest.raises(AssertionError, match="it was never awaited"):
        near.close()
