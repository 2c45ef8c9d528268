"""A transport whose machine's addresses change: it listens at those that came, and stays ready at those that went."""

from __future__ import annotations

import socket

import pytest

from discoro.connections import Ended
from discoro.transport import GONE_KEPT
from tests.test_transport import LOOPBACK, MemoryWorld, SocketWorld, World, changing, play, trust

SECOND, THIRD, NOT_HERE = "127.0.0.2", "127.0.0.3", "192.0.2.77"


async def reached(world: World, address: str, key: str = "one") -> bool:
    """Whether a newcomer with that key is let in at that address."""
    here, dialling = world.transport(key)
    conn = here.dial(address)
    await dialling.until(lambda: conn in dialling.up or conn in dialling.ends)
    return conn in dialling.up


@pytest.mark.parametrize("kind", [SocketWorld, MemoryWorld])
def test_an_address_that_came_is_listened_on_at_the_same_port(kind: type[World]) -> None:
    async def scenario(world: World) -> None:
        there, _ = world.transport()
        (first,) = there.listen([LOOPBACK], None)
        port = first.rpartition(":")[2]
        assert not await reached(world, f"{SECOND}:{port}")
        assert there.move([LOOPBACK, SECOND]) == [first, f"{SECOND}:{port}"] and there.all_open
        assert await reached(world, f"{SECOND}:{port}")
        assert there.move([SECOND, LOOPBACK]) == [f"{SECOND}:{port}", first], "the best first, as it was given"
        assert there.move([SECOND]) == [f"{SECOND}:{port}"]
        assert await reached(world, first), "an address that went may come back, and nobody is refused there meanwhile"

    play(kind, scenario)


def test_connections_at_an_address_that_went_live_on() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport()
        there.listen([LOOPBACK, SECOND], None)
        here, dialling = world.transport()
        conn = here.dial(there.move([SECOND, LOOPBACK])[0])
        await dialling.until_up(conn)
        there.move([LOOPBACK])
        assert here.send(conn, [b"still"])
        await listening.until(lambda: listening.frames)
        assert not dialling.ends and not listening.ends

    play(SocketWorld, scenario)


def test_of_many_that_went_the_oldest_is_let_go_with_who_came_in_there() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport()
        first, *_ = there.listen([SECOND, LOOPBACK], None)
        here, dialling = world.transport()
        conn = here.dial(first)
        await dialling.until_up(conn)
        assert here.send(conn, [b"here"])
        await listening.until(lambda: listening.frames)
        for number in range(GONE_KEPT + 1):
            assert first not in there.move([LOOPBACK, f"127.0.1.{number}"])
            assert not listening.ends
        there.move([LOOPBACK])
        assert await listening.end_of(listening.up[0]) is Ended.BROKEN
        assert await dialling.end_of(conn) is Ended.BROKEN
        assert not await reached(world, first)
        last = first.replace(SECOND, f"127.0.1.{GONE_KEPT}")
        assert await reached(world, last)
        assert there.move([SECOND])[0] == first
        assert await reached(world, first), "it came back after all"

    play(SocketWorld, scenario)


def test_what_cannot_be_listened_on_yet_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport()
        (first,) = there.listen([LOOPBACK], None)
        port = int(first.rpartition(":")[2])
        with socket.create_server((SECOND, port)):
            for _ in range(3):
                assert there.move([NOT_HERE, SECOND, THIRD]) == [f"{THIRD}:{port}"] and not there.all_open
            assert caplog.text.count(f"others cannot come in at {NOT_HERE} yet") == 1
            assert caplog.text.count(f"port {port} is taken on {SECOND}: nobody comes in there until it is free") == 1
        assert there.move([SECOND, THIRD]) == [f"{SECOND}:{port}", f"{THIRD}:{port}"] and there.all_open
        assert await reached(world, f"{SECOND}:{port}")

    play(SocketWorld, scenario)


def test_both_doors_move_and_a_second_one_opens_where_the_first_one_is() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport("old")
        there.listen([LOOPBACK], None)
        there.move([LOOPBACK, NOT_HERE])
        (second,) = there.use(changing("old", "new"))
        moved = there.move([LOOPBACK, SECOND])
        assert len(moved) == 4 and moved[2] == second
        for address, key in zip(moved, ["old", "old", "new", "new"], strict=True):
            assert await reached(world, address, key)
            assert not await reached(world, address, "new" if key == "old" else "old")
        there.move([SECOND])
        there.use(trust("new"))
        for address in moved:
            assert await reached(world, address, "new"), "those that went have the new key as well"

    play(SocketWorld, scenario)
