"""The measuring of a mesh: every way has its figures, and what is odd about them is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro import measuring
from discoro.measuring import HERE, Way, Ways, remarks
from discoro.status import NodeStatus, WorkerStatus


def way(**more: Any) -> Way:
    return Way(**{"source": HERE, "target": "ada", "round_trip": 1e-3, "slow": 2e-3, "messages": 1e5, "bulk": 1e8, **more})


def worker(**more: Any) -> WorkerStatus:
    told = {"name": "ada", "pid": 7, "slot": 0, "client": "", "computations": (), "busy": 0.0, "line": "", "stopped": False}
    return WorkerStatus(**{**told, "memory": 0, **more})


def test_nothing_is_said_of_what_is_as_it_should_be() -> None:
    assert remarks([way(), way(target="bob")], [NodeStatus("ada", 2, (worker(),))]) == []
    assert remarks([], []) == []


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"bulk": 1.1e7}, "slow link: this process to ada carries 11.0 MB/s, less than 100 Mbit/s"),
        ({"bulk": 3e7}, "slow link: this process to ada carries 30 MB/s, where others carry 100"),
        ({"slow": 0.1}, "shaky link: one of a hundred round trips of this process to ada takes 100 times as long"),
    ],
)
def test_a_way_that_is_worse_than_others_is_named(odd: dict[str, float], words: str) -> None:
    (said,) = remarks([way(target="bob"), way(**odd), way(target="eve")], [])
    assert said.startswith(words)


def test_who_is_at_work_meanwhile_is_named() -> None:
    busy = NodeStatus("ada", 2, (worker(busy=4.0, client="eve/1"), worker(busy=3.0)))
    shared = NodeStatus("bob", 2, (worker(client="eve/1"),))
    first, second = remarks([], [busy, shared])
    assert first.startswith("busy workers: ada has 2 that compute")
    assert second.startswith("bob serves eve/1 too")


def test_the_way_to_a_node_is_measured_and_nothing_stays_there(tmp_path: Path) -> None:
    told: list[str] = []
    ways = Ways(0.02, told.append)

    async def measure() -> int:
        await ways.measure(None, between=True)
        return len((await discoro.status((await discoro.servers())[0])).workers[0].computations)

    left = discoro.run(measure, local=True, local_options=["-c", "1", "--dest-path", str(tmp_path)], open=True)
    (found,) = ways.ways
    assert told == [f"{HERE} to {found.target}"]
    assert (ways.failures, left) == ([], 0)
    assert found.source == HERE and 0 < found.round_trip <= found.slow
    assert found.messages > 0 and found.bulk > 0 and found.coros is not None and found.coros > 0


def test_a_way_that_fails_is_told_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def fails(to: Any, seconds: float) -> list[float]:
        raise discoro.PeerLost("its cable was pulled")

    monkeypatch.setattr(measuring, "measures", fails)
    ways = Ways(0.02, lambda _: None)

    async def measure() -> None:
        await ways.measure(None, between=True)

    discoro.run(measure, local=True, local_options=["-c", "1", "--dest-path", str(tmp_path)], open=True)
    assert ways.ways == []
    (failure,) = ways.failures
    assert failure.startswith(f"{HERE} to ") and failure.endswith("its cable was pulled")
