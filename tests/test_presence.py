"""Peers: listed, told of as they come and go, met by address, parted from, left alone."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

import discoro
from discoro import PeerStatus, mailbox, presence
from discoro.connections import Ended
from discoro.coro import Coro
from discoro.errors import ConfigError, NoMesh, NoSuchCoro, PeerLost, Refused, Timeout, Unreachable
from discoro.finding import Finding
from discoro.mesh import Mesh
from discoro.presence import Peer
from tests.support.meshes import World, simulate, start, until

PAIRS = pytest.mark.parametrize(
    ("role", "other"),
    [("client", "client"), ("client", "node"), ("node", "client"), ("node", "node"), ("client", "worker"), ("worker", "node")],
)


async def waits() -> None:
    await asyncio.get_running_loop().create_future()


def names(mesh: Mesh) -> list[str]:
    return [peer.name for peer in mesh.peers()]


def received(coro: Coro) -> list[tuple[str, bool]]:
    """What a coroutine that watches has in its mailbox, taken out."""
    taken = [coro.mailbox.take(None) for _ in range(len(coro.mailbox))]
    assert all(isinstance(status, PeerStatus) for status in taken)
    return [(status.peer.name, status.online) for status in taken]


async def watching(mesh: Mesh) -> Coro:
    coro = start(mesh, waits)
    assert await mesh.peer_status(coro) == 0
    return coro


async def a_while() -> None:
    """Longer than anything here takes by itself: a loss, redials."""
    await asyncio.sleep(100)


# ------------------------------------------------------------------ what is no peer


@pytest.mark.parametrize("address", ["", ":1", "host:port", "host:0", "host:99999", 7, None, ["127.0.0.1"]])
def test_what_is_no_address_is_refused(address: Any) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            with pytest.raises(ConfigError, match="is not an address: write host, or host:port"):
                await a.peer(address)

    simulate(test)


def test_what_is_no_coroutine_of_this_process_cannot_watch() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            elsewhere, ended = start(b, waits), start(a, waits)
            ended.stop("terminated")
            await ended.stopped()
            with pytest.raises(TypeError, match="peer_status takes a coroutine"):
                await a.peer_status(print)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="is of another process"):
                await a.peer_status(elsewhere)
            with pytest.raises(NoSuchCoro, match="has ended"):
                await a.peer_status(ended)
            assert await a.peer_status(ended, False) == 0
            assert len(elsewhere.mailbox) == len(ended.mailbox) == 0

    simulate(test)


def test_only_a_peer_can_be_closed_and_not_this_process() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            with pytest.raises(TypeError, match="takes a Peer"):
                await a.close_peer(a.addresses[0])  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="leave the mesh instead"):
                await a.close_peer(Peer.of(a.me))

    simulate(test)


# ------------------------------------------------------------------ the list


@PAIRS
def test_each_lists_the_other(role: str, other: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b", role=other) as b, world.mesh("a", role=role) as a:
            peer = await a.peer(b.addresses[0])
            assert a.peers() == [peer] and names(b) == ["a"]
            assert (peer.role, peer.node, peer.pid, peer.birth) == (other, b.me.node, b.me.pid, b.me.birth)
            assert (peer.python, peer.software, peer.addresses) == (b.me.python, discoro.__version__, tuple(b.addresses))
            assert str(peer) == f"b/{b.me.pid} ({other})" and peer.location == b.me.node

    simulate(test)


def test_a_peer_is_one_process_whatever_else_is_said_of_it() -> None:
    peer = Peer("ada", "node", "00aa", 4711, 5, ("10.0.0.1:24200",), "3.11", "0.1.0")
    later = Peer("ada", "node", "00aa", 4711, 5, (), "3.11", "0.1.0")
    assert peer == later and hash(peer) == hash(later) and len({peer, later}) == 1
    assert peer != Peer("ada", "node", "00aa", 4711, 6, ("10.0.0.1:24200",), "3.11", "0.1.0"), "another birth"
    status = PeerStatus(peer, True)
    again = pickle.loads(pickle.dumps(status))
    assert again == status and again.peer.addresses == peer.addresses and repr(again) == repr(status)
    with pytest.raises(AttributeError):
        peer.name = "eve"  # type: ignore[misc]


def test_a_peer_out_of_reach_for_a_moment_is_still_listed() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            watcher = await watching(a)
            with world.network.partition("a", "b"):
                await asyncio.sleep(10)
                assert names(a) == ["b"]
            await a_while()
            assert received(watcher) == [("b", True)]

    simulate(test)


# ------------------------------------------------------------------ watching


def test_who_watches_is_told_of_those_known_and_then_of_each_that_comes_and_goes() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            first = await watching(a)
            async with world.mesh("c", a):
                second = await watching(a)
                assert await a.peer_status(first.ref) == 0, "again, by its reference: nothing is told twice"
            await until(lambda: names(a) == ["b"])
            for each in (first, second):
                assert received(each) == [("b", True), ("c", True), ("c", False)]

    simulate(test)


def test_leaving_is_told_with_its_reason() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            watcher = await watching(a)
            async with world.mesh("b", a) as b:
                pass
            await until(lambda: len(watcher.mailbox) == 2)
            came, went = watcher.mailbox.take(None), watcher.mailbox.take(None)
            assert came == PeerStatus(Peer.of(b.me), True, "")
            assert went == PeerStatus(Peer.of(b.me), False, f"b/{b.me.pid} left the mesh")

    simulate(test)


def test_a_peer_that_is_lost_is_told_once_with_the_reason_and_again_when_it_is_back() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            watcher = await watching(a)
            with world.network.partition("a", "b"):
                await a_while()
                assert a.peers() == []
                assert received(watcher)[0] == ("b", True)
            await until(lambda: names(a) == ["b"])
            await a_while()
            assert received(watcher) == [("b", True)]

    simulate(test)


def test_the_reason_of_a_loss_says_what_was_seen() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            watcher = await watching(a)
            with world.network.partition("a", "b"):
                await until(lambda: len(watcher.mailbox) == 2)
            watcher.mailbox.take(None)
            assert "unreachable for 15 s" in watcher.mailbox.take(None).reason

    simulate(test)


def test_the_end_of_a_worker_is_told_in_the_words_of_its_node() -> None:
    async def test(world: World) -> None:
        async with world.mesh("w", role="worker") as w, world.mesh("a") as a:
            watcher = await watching(a)
            await a.peer(w.addresses[0])
            a.bury(w.me.birth, "w/1 was killed by signal 9")
            await until(lambda: len(watcher.mailbox) >= 2)
            watcher.mailbox.take(None)
            assert watcher.mailbox.take(None) == PeerStatus(Peer.of(w.me), False, "w/1 was killed by signal 9")

    simulate(test)


def test_watching_ends_with_false_with_none_and_with_the_coroutine() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            watchers = [await watching(a) for _ in range(3)]
            await a.peer_status(watchers[0], False)
            watchers[1].stop("terminated")
            await watchers[1].stopped()
            async with world.mesh("b", a):
                assert [len(each.mailbox) for each in watchers] == [0, 0, 1]
                await a.peer_status(None)
            await until(lambda: not a.peers())
            assert [len(each.mailbox) for each in watchers] == [0, 0, 1]
            assert not a._presence._watchers

    simulate(test)


def test_a_full_mailbox_is_told_all_the_same_but_not_without_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mailbox, "MAILBOX_MESSAGES", 1)
    monkeypatch.setattr(presence, "MAX_WAITING", 3)

    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            watcher = await watching(a)
            watcher.accept("full")
            async with world.mesh("b", a), world.mesh("c", a):
                assert len(watcher.mailbox) == 3
            await until(lambda: not a.peers())
            assert len(watcher.mailbox) == 3

    simulate(test)
    assert caplog.text.count("is told of peers no more: 3 messages wait in its mailbox") == 1


# ------------------------------------------------------------------ met by address


@PAIRS
def test_a_lost_peer_that_was_named_is_dialled_again(role: str, other: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b", role=other) as b, world.mesh("a", role=role) as a:
            await a.peer(b.addresses[0])
            assert await a.peer(b.addresses[0]) == Peer.of(b.me), "again: the same link"
            with world.network.partition("a", "b"):
                await until(lambda: not a.peers())
            await until(lambda: names(a) == ["b"])

    simulate(test)


def test_nobody_there() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            with pytest.raises(Unreachable, match="127.0.0.1:9: .*nothing listens there"):
                await a.peer("127.0.0.1:9", timeout=60)
            with pytest.raises(Refused, match="that address is this process's own"):
                await a.peer(a.addresses[0])
            await a_while()
            assert a.peers() == [] and not a._presence._kept and not a._presence._awaited

    simulate(test)


def test_no_answer() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a") as a:
            with world.network.partition("a", "b"):
                with pytest.raises(Timeout, match=f"no link with {b.addresses[0]} in 1 s"):
                    await a.peer(b.addresses[0], timeout=1)
                with pytest.raises(Unreachable, match=f"{b.addresses[0]}: "):
                    await a.peer(b.addresses[0])
            await a_while()
            assert a.peers() == [], "what failed is not kept"

    simulate(test)


def test_another_cluster_refuses() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b", cluster="other") as b, world.mesh("a") as a:
            with pytest.raises(Refused, match=f"{b.addresses[0]}: b belongs to cluster 'other'"):
                await a.peer(b.addresses[0])

    simulate(test)


def test_a_name_without_a_port_means_the_default_one() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            with pytest.raises(Unreachable, match="127.0.0.1:24200: "):
                await a.peer("127.0.0.1")

    simulate(test)


def test_one_of_the_addresses_of_a_name_is_enough_and_errors_name_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a") as a:
            hosts = ["127.0.0.1:8", b.addresses[0], "127.0.0.1:9"]

            async def resolved(address: str) -> list[str]:
                return hosts

            monkeypatch.setattr("discoro.finding.resolved", resolved)
            assert await a.peer("several") == Peer.of(b.me)
            hosts.remove(b.addresses[0])
            with pytest.raises(Unreachable, match=r"several:24200: 127.0.0.1:8 \(.*\), 127.0.0.1:9 \(.*\)"):
                await a.peer("several")

    simulate(test)


def test_one_reachable_node_tells_of_the_others() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("m", n, role="node"), world.mesh("a") as a:
            await a.peer(n.addresses[0])
            await until(lambda: sorted(names(a)) == ["m", "n"])

    simulate(test)


# ------------------------------------------------------------------ parting


@PAIRS
def test_closing_ends_the_link_on_both_sides_and_references_fail(role: str, other: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b", role=other) as b, world.mesh("a", role=role) as a:
            peer = await a.peer(b.addresses[0])
            here, there, target = await watching(a), await watching(b), start(b, waits)
            reason = f"closed by a/{a.me.pid}"

            async def uses() -> None:
                waiting = asyncio.ensure_future(target.ref.result())
                target.ref.send("the last")
                assert await a.close_peer(peer) == 0
                assert a.peers() == []
                with pytest.raises(PeerLost, match=reason):
                    await waiting
                with pytest.raises(PeerLost, match=reason + r"; mesh.peer\(address\) links with it again"):
                    target.ref.send("m")
                assert await a.close_peer(peer) == 0, "there is none any more"

            await a.run(uses)
            await until(lambda: not b.peers())
            await a_while()
            assert target.mailbox.take(None) == "the last"
            assert received(here) == [("b", True), ("b", False)]
            [*_, last] = [there.mailbox.take(None) for _ in range(len(there.mailbox))]
            assert last == PeerStatus(Peer.of(a.me), False, reason)
            assert a.peers() == b.peers() == [], "nobody dials"

    simulate(test)


def test_closing_waits_until_what_was_sent_has_arrived() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            target, size = start(b, waits), 200_000

            async def uses() -> None:
                for _ in range(200):  # more than leaves at once
                    target.ref.send(bytes(size))
                await a.close_peer(a.peers()[0])

            await a.run(uses)
            assert len(target.mailbox) == 200
            assert a.lost_operations == 0

    simulate(test)


def test_closing_one_that_does_not_answer_does_not_wait_for_long() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            loop = asyncio.get_running_loop()
            with world.network.partition("a", "b"):
                began = loop.time()

                async def uses() -> None:
                    b.ref_of(9).send("m")
                    await a.close_peer(a.peers()[0])

                await a.run(uses)
                assert loop.time() - began < 1 and a.peers() == []

    simulate(test)


def test_a_closed_peer_is_met_again_when_asked_for() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            target = start(b, waits)
            peer = a.peers()[0]
            await a.close_peer(peer)
            await a_while()
            assert a.peers() == [], "the option peers= does not bring it back"
            assert await a.peer(b.addresses[0]) == peer
            await a.close_peer(peer)
            await a_while()
            assert a.peers() == []
            a.discover_peers()
            await until(lambda: a.peers() == [peer])

            async def uses() -> int:
                return await target.ref.deliver("m", timeout=5)

            assert await a.run(uses) == 1, "references are valid over the new link"

    simulate(test)


def test_news_of_a_closed_peer_do_not_bring_it_back_but_it_may_come_itself() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b", role="node") as b, world.mesh("a") as a:
            peer = await a.peer(b.addresses[0])
            await a.close_peer(peer)
            assert isinstance(a.finding, Finding)
            a.finding.told([[b.me.birth, list(b.addresses)]])
            await a_while()
            assert a.peers() == []
            await b.peer(a.addresses[0])
            assert a.peers() == [peer]
            target = start(b, waits)

            async def uses() -> int:
                return await target.ref.deliver("m", timeout=5)

            assert await a.run(uses) == 1, "and is as if it had never been closed"
            with world.network.partition("a", "b"):
                await until(lambda: not a.peers())
            await until(lambda: a.peers() == [peer])

    simulate(test)


def test_a_closed_peer_that_was_only_heard_of_is_met_again_when_all_are_looked_for() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b", role="node") as b, world.mesh("a") as a:
            a.heard_of(b.me.birth, b.addresses)
            await until(lambda: names(a) == ["b"])
            await a.close_peer(a.peers()[0])
            await a_while()
            assert a.peers() == []
            a.discover_peers()
            await until(lambda: names(a) == ["b"])

    simulate(test)


def test_an_address_given_by_hand_is_kept_again_though_nobody_is_there_yet() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            await a.close_peer(a.peers()[0])
            await a_while()
            with world.network.partition("a", "b"):
                a.discover_peers()
                await a_while()
                assert a.peers() == []
            await until(lambda: names(a) == ["b"])

    simulate(test)


def test_an_address_named_twice_is_kept_once() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a") as a:
            before = len(a._tasks)
            for _ in range(3):
                await a.peer(b.addresses[0])
            await until(lambda: len(a._tasks) == before + 1)

    simulate(test)


def test_another_process_at_the_address_of_a_closed_one_is_kept_when_asked_for() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            async with world.mesh("b") as b:
                where = b.addresses[0]
                await a.close_peer(await a.peer(where))
            async with world.mesh("c") as c:
                world.network.listening[where] = world.network.listening[c.addresses[0]]
                assert (await a.peer(where)).name == "c"
                with world.network.partition("a", "c"):
                    await until(lambda: not a.peers())
                await until(lambda: names(a) == ["c"])

    simulate(test)


# ------------------------------------------------------------------ found by name


def test_a_peer_is_found_by_its_name_now_or_when_it_comes() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b", role="worker") as b, world.mesh("a") as a:
            await a.peer(b.addresses[0])
            assert (await a.locate_peer("b")).role == "worker"
            waiting = asyncio.ensure_future(a.locate_peer("c", timeout=50))
            await asyncio.sleep(20)
            async with world.mesh("c", a) as c:
                assert await waiting == Peer.of(c.me)
            async with world.mesh("b", a, role="node"):
                assert (await a.locate_peer("b", 1)).role == "node", "a node before others"

    simulate(test)


def test_a_name_that_nobody_has_and_ones_own_time_out() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            for name in ("eve", "a"):
                with pytest.raises(Timeout, match=rf"no peer of the name '{name}' in 3 s; linked with b/\d+ \(client\)"):
                    await a.locate_peer(name, timeout=3)

    simulate(test)


# ------------------------------------------------------------------ left alone


def test_who_ignores_peers_refuses_greetings_and_keeps_its_links() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a, world.mesh("c") as c:
            assert a.ignore_peers is False
            a.ignore_peers = True
            with pytest.raises(Refused, match=rf"a/{a.me.pid} meets nobody new: its ignore_peers is on"):
                await c.peer(a.addresses[0])
            watcher = await watching(a)
            with world.network.firewalled("b"):  # so that b has to dial
                with world.network.partition("a", "b"):
                    await asyncio.sleep(10)
                await a_while()
            assert received(watcher) == [("b", True)]
            a.ignore_peers = False
            assert (await c.peer(a.addresses[0])).name == "a"

    simulate(test)


def test_a_link_is_refused_as_well_where_nobody_asked_first() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a, world.mesh("c") as c:
            target = start(a, waits)
            a.ignore_peers = True

            async def uses() -> None:
                with pytest.raises(Unreachable, match="meets nobody new"):
                    await target.ref.deliver("m")

            await c.run(uses)

    simulate(test)


def test_who_is_ignored_is_met_once_that_is_over() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a:
            a.ignore_peers = True
            async with world.mesh("m", n, role="node"):
                await a_while()
                assert names(a) == ["n"]
                a.discover_peers()
                await a_while()
                assert names(a) == ["n"]
                a.ignore_peers = False
                await until(lambda: names(a) == ["n", "m"])

    simulate(test)


def test_what_is_named_is_met_all_the_same() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("c") as c, world.mesh("a") as a:
            a.ignore_peers = True
            assert (await a.peer(b.addresses[0])).name == "b"
            target = start(c, waits)

            async def uses() -> int:
                return await target.ref.deliver("m")

            assert await a.run(uses) == 1

    simulate(test)


def test_nobody_has_one_that_ignores_peers_dial_back() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a, world.mesh("c", n) as c:
            a.ignore_peers = True
            target = start(a, waits)

            async def uses() -> None:
                with pytest.raises(Unreachable, match="meets nobody new"):
                    await target.ref.deliver("m")

            with world.network.firewalled("a", Ended.REFUSED):
                await c.run(uses)
            assert names(a) == ["n"]

    simulate(test)


def test_what_is_kept_of_those_not_met_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "KEPT_CLOSED", 3)

    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            a.ignore_peers = True
            for birth in range(1, 10):
                a.heard_of(birth, ["127.0.0.1:9"])
            assert list(a._presence._passed_over) == [7, 8, 9]

    simulate(test)


# ------------------------------------------------------------------ the mesh around


def test_the_mesh_around_is_found_inside_it_only() -> None:
    with pytest.raises(NoMesh):
        discoro.current_mesh()

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:

            async def uses() -> list[str]:
                assert discoro.current_mesh() is a
                return names(discoro.current_mesh())

            assert await a.run(uses) == ["b"]

    simulate(test)
