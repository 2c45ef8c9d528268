"""Channels, queues and offered functions that a computation makes: opened with its classes, and ended with it or its worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from discoro import RCI, Channel, Computation, CoroRef, NoSuchCoro, Queue, QueueClosed, WorkerLost, current_coro
from tests.support.sites import Site, both_kinds, running_site

SOON = 10.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@dataclass
class Sample:
    """Comes with the computation, whose worker cannot import this module."""

    number: int


def serves(to: CoroRef) -> Any:
    """Hand out one of each kind, and end: they stay."""

    def doubles(name: str, message: Any) -> Any:
        return Sample(2 * message.number) if isinstance(message, Sample) else None

    async def adds(sample: Any, coro: Any = None) -> Any:
        assert isinstance(sample, Sample)
        return Sample(sample.number + 1)

    yield to.deliver((Channel("news", doubles), Queue(2), RCI(adds), os.getpid()))


async def served(server: CoroRef) -> Any:
    """An open computation, and what it handed out."""
    coro, computation = current_coro(), Computation(serves, depends=[Sample])
    await computation.setup(server)
    await (await computation.run(server, coro.ref)).result(SOON)
    return computation, *await coro.receive(SOON)


@both_kinds
def test_what_a_computation_makes_knows_its_classes_and_ends_when_it_is_closed(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        coro = current_coro()
        computation, channel, queue, rci, _ = await served(server)
        await channel.subscribe(coro)
        assert await channel.deliver(Sample(4), SOON) == 1
        assert await coro.receive(SOON) == Sample(8)
        await queue.put(Sample(5), SOON)
        assert await queue.get(SOON) == Sample(5)
        assert await (await rci(Sample(6))).result(SOON) == Sample(7)

        await computation.close(server)
        notice = await coro.receive(SOON)
        assert (notice.ref, notice.reason) == (channel.ref, "computation closed")
        with pytest.raises(NoSuchCoro):
            await channel.deliver("m", SOON)
        with pytest.raises(QueueClosed):
            await queue.get(SOON)
        with pytest.raises(NoSuchCoro):
            await rci(Sample(6))

    site.run(kind, client)


def test_the_loss_of_their_worker_is_told_with_its_reason(site: Site) -> None:
    async def client(server: CoroRef) -> None:
        coro = current_coro()
        _, channel, queue, rci, pid = await served(server)
        await channel.subscribe(coro)
        os.kill(pid, signal.SIGKILL)
        notice = await coro.receive(SOON)
        assert (notice.ref, notice.reason) == (channel.ref, "worker lost")
        assert "SIGKILL" in str(notice.error)
        for use in (lambda: channel.deliver("m"), queue.get, lambda: rci(Sample(1))):
            with pytest.raises(WorkerLost):
                await use()
        with pytest.raises(WorkerLost):
            channel.send("m")

    site.run("node", client)
