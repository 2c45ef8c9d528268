"""Many coroutines in one go: portions and answers as values, then `Computation.gather` against a node of this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro import gathering, payload
from discoro.gathering import PORTION, calls, packed, portions, unpacked
from discoro.outcomes import CLOSED, EXCEPTION, NORMAL, Outcome

# ------------------------------------------------------------------ values


def test_portions_have_all_arguments_in_order() -> None:
    arguments = [(number,) for number in range(2 * PORTION + 3)]
    found = list(portions(iter(arguments)))
    assert [len(portion) for portion in found] == [PORTION, PORTION, 3]
    assert [each for portion in found for each in portion] == arguments
    assert list(portions([])) == []


def test_arguments_that_are_no_tuple_are_an_error_that_says_what_is_meant() -> None:
    with pytest.raises(TypeError, match=r"as in \[\(1,\), \(2,\)\]; this is 7"):
        list(portions([(1,), 7]))  # type: ignore[list-item]


def again(outcomes: list[Outcome], count: int | None = None) -> list[Outcome]:
    value, body = packed(outcomes)
    return unpacked(value, body, len(outcomes) if count is None else count, None, "there")


def test_outcomes_come_as_they_went() -> None:
    failed = Outcome(EXCEPTION, error=ValueError("wrong"), text="ValueError: wrong")
    outcomes = [Outcome(NORMAL, 1), failed, Outcome(NORMAL, None)]
    outcomes += [Outcome(CLOSED, text="its computation was closed"), Outcome(NORMAL, bytes(100_000))]
    found = again(outcomes)
    assert [each.reason for each in found] == [NORMAL, EXCEPTION, NORMAL, CLOSED, NORMAL]
    assert (found[0].get(), found[2].get(), found[4].get()) == (1, None, bytes(100_000))
    with pytest.raises(ValueError, match="wrong") as raised:
        found[1].get()
    assert "raised in the coroutine there" in raised.value.__notes__
    with pytest.raises(discoro.CoroEnded, match="was closed"):
        found[3].get()


def test_a_value_that_cannot_travel_is_the_error_of_its_own() -> None:
    found = again([Outcome(NORMAL, 1), Outcome(NORMAL, threading.Lock()), Outcome(NORMAL, [3])])
    assert (found[0].get(), found[2].get()) == (1, [3])
    with pytest.raises(discoro.PackError, match="lock"):
        found[1].get()


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (None, []),
        ([0, []], payload.pack([1])),
        ([2, []], payload.pack([1])),
        ([1, []], payload.pack([1, 2])),
        ([1, []], payload.pack(1)),
        ([1, [[0, 1, NORMAL, ""], [0, 1, NORMAL, ""]]], payload.pack([1])),
        ([1, [[0, 1, NORMAL, ""]]], payload.pack([1])),
        ([1, [[1, 0, NORMAL, ""]]], payload.pack([1])),
        ([1, [[0, -1, NORMAL, ""]]], payload.pack([1])),
        ([1, ["row"]], payload.pack([1])),
    ],
)
def test_an_answer_that_is_none_is_refused(value: Any, body: Any) -> None:
    with pytest.raises(discoro.ProtocolError):
        unpacked(value, body, 1, None, "")


@pytest.mark.parametrize("obj", [[], [1], (), {}, [()] * (PORTION + 1)])
def test_a_request_that_is_no_portion_is_refused(obj: Any) -> None:
    with pytest.raises(discoro.ProtocolError, match="tuples of arguments"):
        calls(payload.pack(obj), payload.Namespace("test"))


# ------------------------------------------------------------------ for real


async def compute(number: int, what: str = "double") -> Any:
    """What is gathered."""
    match what:
        case "fail":
            raise ValueError(f"of {number}")
        case "wait":
            await discoro.current_coro().receive()
        case "hidden":
            return threading.Lock()
        case "large":
            return bytes(number)
    return 2 * number


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[..., Any]], Any]:
    """Runs a coroutine function with the computation and its server."""

    def run(test: Callable[..., Any]) -> Any:
        async def main() -> Any:
            server = (await discoro.servers())[0]
            computation = discoro.Computation(compute)
            await computation.setup(server)
            return await test(computation, server)

        return discoro.run(main, local=True, local_options=["-c", "1", "--dest-path", str(tmp_path)], open=True)

    return run


def test_results_of_many_come_in_order(run: Callable[..., Any]) -> None:
    async def test(computation: discoro.Computation, server: discoro.CoroRef) -> None:
        assert await computation.gather(server, [(number,) for number in range(1000)]) == [2 * number for number in range(1000)]
        assert await computation.gather(server, []) == []
        found = await computation.coroutines(server)
        assert found.running == [] and len(found.ended) == 1000

    run(test)


def test_it_can_be_yielded(run: Callable[..., Any]) -> None:
    def twice(computation: discoro.Computation, server: discoro.CoroRef) -> Iterator[Any]:
        return (yield computation.gather(server, ((number, "double") for number in range(3))))

    async def test(computation: discoro.Computation, server: discoro.CoroRef) -> None:
        assert await discoro.Coro(twice, computation, server).result() == [0, 2, 4]

    run(test)


def test_exceptions_are_raised_or_stand_in_their_places(run: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async def test(computation: discoro.Computation, server: discoro.CoroRef) -> None:
        arguments = [(1,), (2, "fail"), (3,), (4, "hidden"), (5, "fail")]
        with pytest.raises(ValueError, match="of 2"):
            await computation.gather(server, arguments)
        first, failed, third, hidden, last = await computation.gather(server, arguments, return_exceptions=True)
        assert (first, third) == (2, 6)
        assert isinstance(failed, ValueError) and isinstance(hidden, discoro.PackError) and str(last) == "of 5"
        wrong = await computation.gather(server, [(), (1, "double", 3)], return_exceptions=True)
        assert [type(each) for each in wrong] == [TypeError, TypeError]

    run(test)


def test_arguments_and_results_may_be_large(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[int] = []

    def body_size(body: Any) -> int:
        size = sum(map(len, body))
        parts.append(size)
        if size > 4 << 20:
            raise discoro.TooLarge("as if")
        return size

    monkeypatch.setattr("discoro.computation.body_size", body_size)

    async def test(computation: discoro.Computation, server: discoro.CoroRef) -> None:
        results = await computation.gather(server, [(3 << 20, "large"), (1, "double"), (2 << 20, "large")])
        assert [each if isinstance(each, int) else len(each) for each in results] == [3 << 20, 2, 2 << 20]
        with pytest.raises(TypeError):
            await computation.gather(server, [(bytes(3 << 20), "x", "y"), (bytes(3 << 20), "x", "y")])

    run(test)
    assert max(parts) > 4 << 20 >= parts[-1], "the second were sent apart"


def test_what_is_given_up_is_ended_there(run: Callable[..., Any]) -> None:
    async def test(computation: discoro.Computation, server: discoro.CoroRef) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await computation.gather(server, [(number, "wait") for number in range(300)])
        async with asyncio.timeout(10):
            while (await computation.coroutines(server)).running:
                await asyncio.sleep(0.01)

    run(test)


def test_closing_ends_what_is_gathered_and_whoever_waits_is_told(run: Callable[..., Any]) -> None:
    async def test(computation: discoro.Computation, server: discoro.CoroRef) -> None:
        waiting = asyncio.ensure_future(computation.gather(server, [(1, "wait"), (2, "wait")], return_exceptions=True))
        async with asyncio.timeout(10):
            while not (await computation.coroutines(server)).running:
                await asyncio.sleep(0.01)
        await computation.close(server)
        try:
            results = await waiting
        except discoro.PeerLost:  # the worker may be gone before its answer has left
            return
        assert [type(each) for each in results] == [discoro.CoroEnded, discoro.CoroEnded]
        with pytest.raises(discoro.NotSetUp):
            await computation.gather(server, [(1,)])

    run(test)


def test_whoever_waits_is_told_how_the_worker_died(run: Callable[..., Any]) -> None:
    async def test(computation: discoro.Computation, server: discoro.CoroRef) -> None:
        pid = (await computation.run(server, 1)).pid
        waiting = asyncio.ensure_future(computation.gather(server, [(number, "wait") for number in range(3 * PORTION)]))
        async with asyncio.timeout(10):
            while len((await computation.coroutines(server)).running) < 3 * PORTION:
                await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(discoro.WorkerLost, match="killed by SIGKILL"):
            await waiting

    run(test)


def test_ordinary_code_gathers_too(tmp_path: Path) -> None:
    with discoro.BlockingMesh(local=True, local_options=["-c", "1", "--dest-path", str(tmp_path)], open=True) as mesh:
        server = mesh.servers()[0]
        computation = mesh.computation(compute)
        computation.setup(server)
        assert computation.gather(server, [(1,), (2,)]) == [2, 4]


def test_the_portions_are_what_a_header_takes() -> None:
    """256 rows with the longest texts, as `packed` cuts them."""
    outcomes = [Outcome(CLOSED, text="x" * 10_000) for _ in range(gathering.PORTION)]
    value, _ = packed(outcomes)
    assert len(discoro.packing.pack(value)) < discoro.messages.MAX_FIELDS
