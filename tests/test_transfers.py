"""transfers.py: who asks for what he must not first, then blobs on their way between meshes, broken off, shared and spread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from discoro import ConfigError, PeerLost, ProtocolError, TooLarge, TransferFailed
from discoro.blobs import PIECE, WINDOW, Blob
from discoro.copies import Copies
from discoro.files import Shipped, Source, measure
from discoro.mesh import Mesh
from discoro.references import CoroRef
from discoro.transfers import IN_THREAD, READS, _done, process_of
from tests.support.meshes import World, simulate, until
from tests.test_blobs import blob_with

BYTES = os.urandom(20 * PIECE + 7)  # more than one window


class Pair:
    """A mesh that has files, and one that wants them. `answers`: how many reads are answered until `go` is set."""

    def __init__(self, has: Mesh, wants: Mesh, directory: Path) -> None:
        self.has, self.wants, self.directory = has, wants, directory
        self.reads: list[tuple[Any, Any]] = []  # what was asked for
        self.answers, self.go = 1_000_000, asyncio.Event()
        read = has.handlers["read"]

        async def counted(incoming: Any) -> None:
            arguments = incoming.arguments
            self.reads.append((arguments.get("digest"), arguments.get("piece")))
            if len(self.reads) > self.answers:
                await self.go.wait()
            work = read(incoming)
            assert work is not None
            await work

        has.handlers["read"] = counted

    @property
    def origin(self) -> CoroRef:
        return process_of(self.has.me)

    def file(self, data: bytes, name: str = "data") -> tuple[Shipped, Source]:
        (self.directory / name).write_bytes(data)
        return measure(self.directory / name, name)

    def content(self, blob: Blob) -> bytes:
        return self.wants.transfers.store.path(blob).read_bytes()

    async def ask(self, verb: str, **arguments: Any) -> Any:
        return (await self.wants.request(self.origin, verb, arguments)).value


@contextlib.asynccontextmanager
async def two(world: World, directory: Path, **options: Any) -> AsyncIterator[Pair]:
    async with (
        world.mesh("has", dest_path=directory / "of-has") as has,
        world.mesh("wants", has, dest_path=directory / "of-wants", **options) as wants,
    ):
        yield Pair(has, wants, directory)


def with_two(directory: Path, test: Callable[[Pair], Awaitable[Any]], **options: Any) -> None:
    async def main(world: World) -> None:
        async with two(world, directory, **options) as pair:
            await test(pair)

    simulate(main)


# ------------------------------------------------------------------ what is refused


def test_only_what_is_offered_can_be_read_and_only_while_it_is(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        shipped, source = pair.file(b"secret")
        named = {"digest": shipped.blob.digest, "size": shipped.blob.size, "piece": 0}
        with pytest.raises(TransferFailed, match="has does not offer the file"):
            await pair.ask("read", **named)
        with pair.has.transfers.offering([source]):
            assert await pair.ask("read", **named) == 0
        with pytest.raises(TransferFailed, match="has does not offer the file"):
            await pair.ask("read", **named)

    with_two(tmp_path, test)


def test_what_two_offer_is_offered_until_both_are_done(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        (shipped, source), transfers = pair.file(b"data"), pair.has.transfers
        with transfers.offering([source]):
            with transfers.offering([source, source]):
                pass
            assert await pair.ask("read", digest=shipped.blob.digest, size=4, piece=0) == 0

    with_two(tmp_path, test)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("read", {}),
        ("read", {"digest": "../x", "size": 4, "piece": 0}),
        ("read", {"digest": blob_with(b"data").digest, "size": 4, "piece": 1}),
        ("read", {"digest": blob_with(b"data").digest, "size": 4, "piece": -1}),
        ("read", {"digest": blob_with(b"data").digest, "size": 4, "piece": True}),
        ("read", {"digest": blob_with(b"data").digest, "size": 4, "piece": None}),
        ("bring", {"digest": blob_with(b"data").digest, "size": 4, "origin": ["nobody"]}),
        ("source", {"digest": "x", "size": 4}),
        ("pulled", {"size": 4}),
        ("progress", {"number": 1}),
        ("progress", {"number": "1", "done": 0, "total": 0}),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, verb: str, arguments: dict[str, Any]) -> None:
    async def test(pair: Pair) -> None:
        with pair.has.transfers.offering([pair.file(b"data")[1]]):
            with pytest.raises(ProtocolError):
                await pair.ask(verb, **arguments)

    with_two(tmp_path, test)


def test_bytes_with_another_digest_or_length_never_get_their_name(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        wanted = blob_with(b"x" * len(BYTES))
        for lie in (BYTES, BYTES[:-1], BYTES + b"x"):
            _, source = pair.file(lie)
            with pair.has.transfers.offering([source._replace(blob=Blob(wanted.digest, source.blob.size))]):
                with pytest.raises(ProtocolError, match="another digest"):
                    await pair.wants.transfers.get(Blob(wanted.digest, source.blob.size), pair.origin)
        pair.has.handlers["read"] = lambda incoming: incoming.reply(0, [b"short"])
        with pytest.raises(ProtocolError, match=r"5 bytes came for piece \d+, which has"):
            await pair.wants.transfers.get(wanted, pair.origin)
        assert not pair.wants.transfers.store.has(wanted)

    with_two(tmp_path, test)


def test_a_file_past_the_limit_is_named_among_the_largest_and_nothing_travels(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        files = [pair.file(bytes(size), f"of {size}")[0] for size in (1, 5, 6, 7, 8, 9)]
        with pytest.raises(TooLarge, match=r"8 bytes; at most 7 .*of 9 \(9 bytes\), of 8 \(8 bytes\), .*of 5 \(5 bytes\)$"):
            await pair.wants.transfers.get_all(sorted(files), pair.origin)
        assert not pair.reads

    with_two(tmp_path, test, max_file_size=7)


def test_a_file_that_changes_while_it_is_read_is_told_by_whoever_has_it(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        shipped, source = pair.file(BYTES)
        os.utime(source.path, ns=(1, 1))
        with pair.has.transfers.offering([source]), pytest.raises(ConfigError, match="data was changed while it was sent"):
            await pair.wants.transfers.get(shipped.blob, pair.origin)

    with_two(tmp_path, test)


# ------------------------------------------------------------------ what comes


def test_files_come_whole_and_each_content_once(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        datas = {"a": BYTES, "b": b"", "c": b"small", "d": BYTES, "e": bytes(PIECE)}
        files = [pair.file(data, name) for name, data in datas.items()]
        with pair.has.transfers.offering(source for _, source in files):
            for _ in range(2):
                await pair.wants.transfers.get_all([shipped for shipped, _ in files], pair.origin)
        for shipped, _ in files:
            assert pair.content(shipped.blob) == datas[shipped.name]
        assert len(pair.reads) == len(set(pair.reads)) == 21 + 1 + 1

    with_two(tmp_path, test)


def test_who_watches_is_told_how_far_it_is_and_at_the_end_that_all_is_there(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        told: list[tuple[int, int]] = []
        (one, first), (other, second) = pair.file(BYTES), pair.file(b"small", "small")
        asked = pair.wants.me.birth
        with pair.has.transfers.offering([first, second], lambda *news: told.append(news), asked) as offered:
            await pair.wants.transfers.get_all([one, other], pair.origin, offered["progress"])
            total = len(BYTES) + 5
            await until(lambda: (total, total) in told)
        assert told[0] == (0, total)
        assert told == sorted(told)

    with_two(tmp_path, test)


def test_only_the_process_that_was_asked_tells_how_far_it_is(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        told: list[tuple[int, int]] = []
        for asked in (pair.wants.me.birth + 1, pair.wants.me.birth):
            with pair.has.transfers.offering([], lambda *news: told.append(news), asked) as offered:
                await pair.ask("progress", number=offered["progress"], done=asked, total=asked)
        assert told == [(pair.wants.me.birth, pair.wants.me.birth)]

    with_two(tmp_path, test)


def test_many_that_want_one_blob_share_one_transfer_and_the_last_to_give_up_ends_it(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        (shipped, source), transfers = pair.file(BYTES), pair.wants.transfers
        with pair.has.transfers.offering([source]):
            waiting = [asyncio.ensure_future(transfers.get(shipped.blob, pair.origin)) for _ in range(3)]
            await until(lambda: bool(pair.reads))
            waiting[0].cancel()
            await asyncio.gather(*waiting[1:])
        assert pair.content(shipped.blob) == BYTES
        assert len(pair.reads) == 21

    with_two(tmp_path, test)


def test_at_no_time_more_is_asked_for_than_fits_the_memory(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        files = [pair.file(os.urandom(9 * PIECE), f"file {number}") for number in range(6)]
        most = under_way = 0
        read = pair.has.handlers["read"]

        async def counted(incoming: Any) -> None:
            nonlocal most, under_way
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            work = read(incoming)
            assert work is not None
            await work
            under_way -= 1

        pair.has.handlers["read"] = counted
        with pair.has.transfers.offering(source for _, source in files):
            await pair.wants.transfers.get_all([shipped for shipped, _ in files], pair.origin)
        assert most == READS

    with_two(tmp_path, test)


# ------------------------------------------------------------------ what breaks


def test_a_transfer_that_is_given_up_goes_on_later_with_what_is_missing(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        (shipped, source), transfers = pair.file(BYTES), pair.wants.transfers
        with pair.has.transfers.offering([source]):
            pair.answers = 10
            first = asyncio.ensure_future(transfers.get(shipped.blob, pair.origin))
            await until(lambda: len(pair.reads) == 10 + WINDOW)
            first.cancel()
            await asyncio.wait([first])
            pair.go.set()
            await transfers.get(shipped.blob, pair.origin)
        assert pair.content(shipped.blob) == BYTES
        assert len(pair.reads) == 21 + WINDOW, "it began anew"

    with_two(tmp_path, test)


def test_what_is_given_up_has_ended_once_its_threads_have() -> None:
    async def main() -> None:
        begun, go, ended = threading.Event(), threading.Event(), False

        def write() -> None:
            nonlocal ended
            begun.set()
            ended = go.wait(10)

        work = asyncio.ensure_future(_done(IN_THREAD, write))
        await asyncio.to_thread(begun.wait, 10)
        work.cancel()
        asyncio.get_running_loop().call_soon(go.set)
        await asyncio.wait([work])
        assert ended
        assert work.cancelled()

    asyncio.run(main())


def test_a_cable_that_is_pulled_for_a_while_loses_no_piece(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async with two(world, tmp_path) as pair:
            shipped, source = pair.file(BYTES)
            with pair.has.transfers.offering([source]):
                pair.answers = 5
                getting = asyncio.ensure_future(pair.wants.transfers.get(shipped.blob, pair.origin))
                await until(lambda: len(pair.reads) > 5)
                pair.go.set()
                with world.network.partition("has", "wants"):
                    await asyncio.sleep(5)
                await getting
            assert pair.content(shipped.blob) == BYTES

    simulate(main)


def test_who_waits_is_told_when_the_process_with_the_blob_is_lost_and_another_one_goes_on(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async with two(world, tmp_path) as pair:
            shipped, source = pair.file(BYTES)
            async with world.mesh("other", pair.wants, dest_path=tmp_path / "of-other") as other:
                transfers, get = pair.wants.transfers, pair.wants.transfers.get
                with pair.has.transfers.offering([source]), other.transfers.offering([source]):
                    pair.answers = 5
                    getting = asyncio.ensure_future(get(shipped.blob, pair.origin))
                    await until(lambda: len(pair.reads) > 5)
                    too = asyncio.ensure_future(get(shipped.blob, process_of(other.me)))
                    await asyncio.sleep(0)
                    with world.network.partition("has", "wants"), pytest.raises(PeerLost):
                        await getting
                    await too
                assert transfers.store.has(shipped.blob)

    simulate(main)


def test_a_source_that_answers_nothing_holds_up_no_other(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async with two(world, tmp_path) as pair, world.mesh("other", pair.wants, dest_path=tmp_path / "of-other") as other:
            silent = [pair.file(os.urandom(9 * PIECE), f"file {number}") for number in range(3)]
            wanted, source = pair.file(BYTES)
            pair.answers = 0
            with pair.has.transfers.offering(each for _, each in silent), other.transfers.offering([source]):
                getting = asyncio.ensure_future(pair.wants.transfers.get_all([file for file, _ in silent], pair.origin))
                await until(lambda: len(pair.reads) == READS)
                async with asyncio.timeout(60):
                    await pair.wants.transfers.get(wanted.blob, process_of(other.me))
                getting.cancel()
                await asyncio.wait([getting])

    simulate(main)


# ------------------------------------------------------------------ nodes serve each other


def test_nodes_take_large_blobs_from_each_other_and_small_ones_from_their_origin(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async with contextlib.AsyncExitStack() as stack:
            origin = await stack.enter_async_context(world.mesh("origin", dest_path=tmp_path / "origin"))
            nodes = []
            for number in range(8):
                new = world.mesh(f"n{number}", origin, role="node", dest_path=tmp_path / f"n{number}")
                nodes.append(await stack.enter_async_context(new))
            large, small = tmp_path / "large", tmp_path / "small"
            large.write_bytes(BYTES)
            small.write_bytes(b"small")
            files = [measure(path, path.name) for path in (large, small)]
            wanted = [shipped for shipped, _ in files]
            with origin.transfers.offering(source for _, source in files):
                await asyncio.gather(*(node.transfers.get_all(wanted, process_of(origin.me)) for node in nodes))
            for node in nodes:
                assert all(node.transfers.store.has(shipped.blob) for shipped in wanted)
            assert [origin.transfers.copies(shipped.blob) for shipped in wanted] == [3, 0]

    simulate(main)


def test_a_node_whose_source_dies_gets_the_blob_from_somebody_else(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        def node(name: str, *peers: Mesh) -> Any:
            return world.mesh(name, *peers, role="node", dest_path=tmp_path / name)

        async with world.mesh("origin", dest_path=tmp_path / "origin") as origin, node("first", origin) as first:
            (tmp_path / "large").write_bytes(BYTES)
            shipped, source = measure(tmp_path / "large", "large")
            with origin.transfers.offering([source]):
                await first.transfers.get(shipped.blob, process_of(origin.me))
                async with node("second", origin, first) as second:
                    first.transfers.store.path(shipped.blob).unlink()  # it was forgotten there, say
                    await second.transfers.get(shipped.blob, process_of(origin.me))
                    assert second.transfers.store.has(shipped.blob)
            assert origin.transfers.copies(shipped.blob) == 2

    simulate(main)


@contextlib.asynccontextmanager
async def asking(world: World, directory: Path) -> AsyncIterator[tuple[Mesh, Mesh, list[Blob], Callable[..., Awaitable[Any]]]]:
    """An origin that offers two large blobs, a node, and what has the node ask whom to pull one from."""
    async with (
        world.mesh("origin", dest_path=directory / "origin") as origin,
        world.mesh("node", origin, role="node", dest_path=directory / "node") as node,
    ):
        paths = directory / "one", directory / "other"
        for number, path in enumerate(paths):
            path.write_bytes(BYTES[number:])
        files = [measure(path, path.name) for path in paths]

        async def ask(blob: Blob, again: bool = False) -> Any:
            arguments = {"digest": blob.digest, "size": blob.size, "again": again}
            return (await node.request(process_of(origin.me), "source", arguments, timeout=60)).value

        with origin.transfers.offering(source for _, source in files):
            yield origin, node, [shipped.blob for shipped, _ in files], ask


def test_who_waits_in_a_plan_that_is_dropped_reads_from_the_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discoro.transfers.PLANS", 1)

    async def main(world: World) -> None:
        async with asking(world, tmp_path) as (origin, _, (one, other), ask):
            origin.transfers._plans[one] = plan = Copies()
            plan.want(1)  # another node, which the origin serves
            waiting = asyncio.ensure_future(ask(one))
            await until(lambda: bool(origin.transfers._asking))
            assert await ask(other) is None
            assert await waiting is None

    simulate(main)


def test_a_node_whose_plan_was_dropped_can_ask_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discoro.transfers.PLANS", 1)

    async def main(world: World) -> None:
        async with asking(world, tmp_path) as (_, _, (one, other), ask):
            assert [await ask(one), await ask(other), await ask(one, again=True)] == [None] * 3

    simulate(main)


def test_who_gives_up_before_its_turn_is_forgotten(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        async with asking(world, tmp_path) as (origin, node, (one, _), _):
            origin.transfers._plans[one] = plan = Copies()
            plan.want(1)
            getting = asyncio.ensure_future(node.transfers.get(one, process_of(origin.me)))
            await until(lambda: bool(origin.transfers._asking))
            getting.cancel()
            await until(lambda: not origin.transfers._asking)

    simulate(main)


def test_a_thread_that_fails_after_it_was_given_up_is_nobodys_surprise() -> None:
    """Several writes are under way when a disk gets full; only the first is reported."""
    surprises: list[dict[str, Any]] = []
    go = threading.Event()

    def fail() -> None:
        go.wait(10)
        raise OSError("the disk is full")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: surprises.append(context))
        work = asyncio.ensure_future(_done(IN_THREAD, fail))
        await asyncio.sleep(0)
        work.cancel()
        go.set()
        await asyncio.wait([work])
        assert work.cancelled()
        del work
        gc.collect()

    asyncio.run(main())
    assert not surprises
