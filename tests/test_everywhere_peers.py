"""Peers between two processes and between two machines: listed on both sides, seen to come and go, however they go.

To add a row, see the first lines of test_everywhere_messages.py. There is no peer within one process, so all rows have
`ways=TWO_PROCESSES`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from discoro import Coro, CoroRef, Peer, PeerLost, PeerStatus, Refused, Unreachable, current_mesh
from tests.support.three_ways import TWO_PROCESSES, in_both_styles, three_ways

SOON = 5.0  # seconds for what must come
A_MOMENT = 0.1  # seconds for what must not


def tells_of_peers_generator(to: CoroRef, coro: Any = None) -> Any:
    """Send on what its own process says of peers."""
    yield current_mesh().peer_status(coro)
    while True:
        to.send((yield coro.receive()))


async def tells_of_peers(to: CoroRef, coro: Any = None) -> None:
    await current_mesh().peer_status(coro)
    while True:
        to.send(await coro.receive())


async def lists() -> list[Peer]:
    return current_mesh().peers()


async def idles(coro: Any = None) -> None:
    await coro.receive()


@in_both_styles("tells", tells_of_peers_generator, tells_of_peers)
@three_ways(ways=TWO_PROCESSES)
async def test_each_lists_the_other_and_is_told_of_it(far: Any, coro: Coro, tells: Any) -> None:
    [peer] = current_mesh().peers()
    assert (peer.name, peer.role) == ("far", "client") and peer.pid != os.getpid()
    assert await current_mesh().locate_peer("far", SOON) == peer
    there = await far.create(lists)
    [seen] = await there.result(SOON)
    assert (seen.name, seen.pid, seen.birth) == ("near", os.getpid(), coro.ref.birth), "as a value that travels"
    await far.create(tells, coro.ref)
    assert await coro.receive(SOON) == PeerStatus(seen, True)
    await current_mesh().peer_status(coro)
    assert await coro.receive(SOON) == PeerStatus(peer, True)
    await current_mesh().peer_status(coro, False)


@pytest.mark.parametrize("how", ["kill", "leave"])
@three_ways(ways=TWO_PROCESSES)
async def test_the_end_of_a_process_is_told_once_with_its_reason(far: Any, coro: Coro, how: str) -> None:
    await current_mesh().peer_status(coro)
    came = await coro.receive(SOON)
    await getattr(far, how)()
    went = await coro.receive(SOON)
    assert (went.peer, went.online, current_mesh().peers()) == (came.peer, False, [])
    assert went.reason.startswith("ended: ") if how == "kill" else went.reason == f"far/{came.peer.pid} left the mesh", went
    assert await coro.receive(A_MOMENT) is None
    await far.start()
    back = await coro.receive(SOON)
    assert back.online and back.peer.name == "far" and back.peer != came.peer, "another process: another peer"


@three_ways(ways=TWO_PROCESSES)
async def test_a_closed_peer_is_gone_until_it_is_asked_for(far: Any, coro: Coro) -> None:
    mesh = current_mesh()
    there = await far.create(idles)
    [peer] = mesh.peers()
    mesh.ignore_peers = True  # the far side links again by itself, as its peers= says
    try:
        await mesh.peer_status(coro)
        assert await coro.receive(SOON) == PeerStatus(peer, True)
        assert await mesh.close_peer(peer) == 0
        went = await coro.receive(SOON)
        assert (went.online, went.reason) == (False, f"closed by near/{os.getpid()}")
        with pytest.raises(PeerLost, match=went.reason):
            there.send("m")
        assert await coro.receive(A_MOMENT) is None
        assert await mesh.peer(peer.addresses[0], SOON) == peer
        assert await coro.receive(SOON) == PeerStatus(peer, True)
        assert await there.is_alive()
        with pytest.raises(Refused, match="that address is this process's own"):
            await mesh.peer(mesh.addresses[0])
        with pytest.raises(Unreachable):
            await mesh.peer(mesh.addresses[0].rpartition(":")[0] + ":1")
    finally:
        mesh.ignore_peers = False
