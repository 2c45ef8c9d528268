"""Broadcasts: heads that lie, what a machine has once, what its workers share, and what is left when one ends."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import discoro
from discoro import (
    Broadcast,
    BroadcastFailed,
    Computation,
    CoroRef,
    Mesh,
    NoMesh,
    NoSuchCoro,
    NotHere,
    PeerLost,
    ProtocolError,
    TooLarge,
    TransferFailed,
    Unreachable,
    broadcast,
    store,
)
from discoro import Timeout as DiscoroTimeout
from discoro.blobs import EMPTY, Blob
from discoro.broadcasting import ALIGNED, MAGIC, _rebuilt, laid_out, mapped, parts_of
from discoro.messages import MAX_NAME, MAX_PARTS
from discoro.node import Node
from tests.support.meshes import World, simulate, start, until
from tests.support.nodes import a_node, client_of, environment, node_here

REF = CoroRef("node", 4711, 1, 5, "ada")
BLOB = Blob("0" * 64, 100)
SOON = 20.0
SIZE = 200_000_000  # bytes of the array that is measured


# ------------------------------------------------------------------ heads that lie


def numbers(*values: int) -> bytes:
    return b"".join(struct.pack("<Q", value) for value in values)


def padded(head: bytes, size: int = 0) -> bytes:
    return head + bytes(-len(head) % ALIGNED) + bytes(size)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        MAGIC,
        MAGIC + b"\1\0",
        b"discoro\x02" + padded(numbers(1, 0)),
        padded(MAGIC + numbers(0)),
        padded(MAGIC + numbers(MAX_PARTS + 1)) + bytes(9000),
        padded(MAGIC + numbers(2**64 - 1)),
        padded(MAGIC + numbers(2**61)),
        MAGIC + numbers(2, 0),
        padded(MAGIC + numbers(1, 64)),
        padded(MAGIC + numbers(1, 64), 128),
        padded(MAGIC + numbers(1, 2**64 - 1), 64),
        padded(MAGIC + numbers(2, 2**64 - 64, 128), 64),
        padded(MAGIC + numbers(1, 60), 60),
        padded(MAGIC + numbers(1, 1), 0),
    ],
)
def test_a_head_that_lies_is_refused(blob: bytes) -> None:
    with pytest.raises(ProtocolError, match="a broadcast"):
        parts_of(memoryview(blob))


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=20))
def test_parts_come_back_aligned_and_uncopied(parts: list[bytes]) -> None:
    blob = memoryview(b"".join(map(bytes, laid_out(parts))))
    back = parts_of(blob)
    assert list(map(bytes, back)) == parts
    begin = np.frombuffer(blob, np.uint8).ctypes.data
    assert all((np.frombuffer(part, np.uint8).ctypes.data - begin) % ALIGNED == 0 for part in back if part.nbytes)


@pytest.mark.parametrize(
    "values",
    [
        ("ref", *BLOB, "list"),
        (REF, "0" * 63, 100, "list"),
        (REF, "0" * 64, -1, "list"),
        (REF, EMPTY.digest, 1, "list"),
        (REF, *BLOB, 7),
        (REF, *BLOB, "x" * (MAX_NAME + 1)),
    ],
)
def test_a_broadcast_that_is_none_does_not_arrive(values: Any) -> None:
    with pytest.raises(ProtocolError):
        _rebuilt(*values)


def test_one_is_a_small_value() -> None:
    shared = Broadcast(REF, BLOB, "ndarray")
    assert (str(shared), shared.size) == ("broadcast of ndarray, 100 bytes (ada/4711/5)", 100)
    assert repr(shared) == "<Broadcast ndarray 100 bytes ada/4711/5>"
    assert shared == Broadcast(REF, EMPTY, "what it is of is not compared")
    with pytest.raises(AttributeError):
        shared.what = "list"  # type: ignore[misc]


def test_an_empty_file_is_no_broadcast(tmp_path: Path) -> None:
    (tmp_path / "blob").touch()
    with pytest.raises(ProtocolError, match="does not begin as one"):
        parts_of(mapped(tmp_path / "blob"))


def test_a_file_in_memory_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"bytes")
    memory = mapped(tmp_path / "blob")
    assert memory.readonly and memory == b"bytes"
    (tmp_path / "blob").unlink()
    assert memory == b"bytes", "as long as somebody looks into it"


# ------------------------------------------------------------------ nodes, in a network in memory


async def gets(shared: Broadcast) -> Any:
    return await shared.get()


def holds(mesh: Mesh, shared: Broadcast) -> tuple[bool, bool]:
    """Whether the blob is there, and whether somebody there refers to it."""
    return mesh.transfers.path(shared.blob) is not None, mesh.transfers.store.is_held(shared.blob)


DATA = bytes(range(256)) * 12_000  # 3 pieces


def in_a_world(tmp_path: Path, work: Callable[[World, Mesh, list[Mesh]], Awaitable[None]], **options: Any) -> None:
    """Run this with a client and two nodes, whose files lie in tmp_path."""

    async def test(world: World) -> None:
        nodes = [{"role": "node", "dest_path": tmp_path / name} for name in ("one", "two")]
        async with (
            world.mesh("one", **{**nodes[0], **options}) as one,
            world.mesh("two", one, **nodes[1]) as two,
            world.mesh("client", one, two, dest_path=tmp_path / "client") as client,
        ):
            await work(world, client, [one, two])

    simulate(test)


def test_without_a_node_it_is_here(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        async with world.mesh("client", dest_path=tmp_path) as client:
            shared = await client.run(broadcast, {"list": [1, 2]})
            assert await client.run(gets, shared) == {"list": [1, 2]}

    simulate(test)
    assert list(tmp_path.iterdir()) == [], "it leaves nothing"


def test_nodes_keep_it_until_it_is_closed(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        first, second = [await client.run(broadcast, DATA) for _ in range(2)]
        assert first.blob == second.blob
        assert [holds(node, first) for node in nodes] == [(True, True)] * 2
        assert [await start(node, gets, first).result_here() for node in nodes] == [DATA] * 2
        await client.run(first.close)
        await client.run(second.get)
        assert [holds(node, first) for node in nodes] == [(True, True)] * 2, "it is the content of the other one too"
        await client.run(second.close)
        await until(lambda: [holds(node, first) for node in nodes] == [(True, False)] * 2)

    in_a_world(tmp_path, work)


def test_nodes_keep_it_until_its_process_is_gone(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        async with world.mesh("other", *nodes, dest_path=tmp_path / "other") as other:
            shared = await other.run(broadcast, DATA)
            assert await start(nodes[0], gets, shared).result_here() == DATA
            assert holds(nodes[0], shared) == (True, True)
        await until(lambda: [holds(node, shared) for node in nodes] == [(True, False)] * 2)
        with pytest.raises((PeerLost, Unreachable), match="not on this machine, and cannot be brought: other"):
            await client.run(gets, shared)

    in_a_world(tmp_path, work)


def test_where_nothing_is_kept_for_later_it_is_kept_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "UNUSED_BYTES", 0)

    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        async with world.mesh("other", client, *nodes, dest_path=tmp_path / "other") as other:
            everywhere = [client, other, *nodes]
            shared = await client.run(broadcast, DATA)
            assert [await start(mesh, gets, shared).result_here() for mesh in everywhere] == [DATA] * 4
            assert [holds(mesh, shared) for mesh in everywhere] == [(True, True)] * 4
            await other.run(shared.close)
            await until(lambda: [holds(mesh, shared) for mesh in everywhere] == [(False, False)] * 4)
            with pytest.raises(NoSuchCoro, match="is not on this machine, and has ended"):
                await other.run(gets, shared)

    in_a_world(tmp_path, work)


async def refers_to(shared: Broadcast) -> Any:
    return weakref.ref(await shared.get())


def test_what_is_unpacked_is_kept_while_it_lasts_and_no_longer(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        shared = await client.run(broadcast, {1, 2})
        first, again, other = [await start(mesh, refers_to, shared).result_here() for mesh in (*nodes[:1] * 2, nodes[1])]
        assert first() is again() is not None
        assert first() is not other()
        await client.run(shared.close)
        await until(lambda: first() is other() is None)

    in_a_world(tmp_path, work)


def test_a_node_that_comes_later_brings_it_when_it_is_asked(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        shared = await client.run(broadcast, DATA)
        async with world.mesh("late", *nodes, role="node", dest_path=tmp_path / "late") as late:
            assert late.transfers.path(shared.blob) is None
            with pytest.raises(NotHere, match="the broadcast of bytes, .* is not on this machine: yield .* get"):
                await start(late, value_of, shared).result_here()
            copies = client.transfers.copies(shared.blob)
            assert await start(late, gets, shared).result_here() == DATA
            assert await start(late, value_of, shared).result_here() == DATA
            assert client.transfers.copies(shared.blob) == copies, "another node served it"
            assert holds(late, shared) == (True, True)
            await client.run(shared.close)
            await until(lambda: holds(late, shared) == (True, False))

    in_a_world(tmp_path, work)


async def value_of(shared: Broadcast) -> Any:
    return shared.value


def test_one_that_is_not_everywhere_in_time_is_given_up_everywhere(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        client.handlers["read"] = lambda incoming: None  # and no answer ever
        with pytest.raises(DiscoroTimeout, match="0 of 2 nodes had it after 3 s; it was given up"):
            await client.run(broadcast, DATA, 3)
        await until(lambda: not any("Receiving" in repr(node.transfers) for node in nodes))
        assert not any("holders=1" in repr(mesh.transfers) for mesh in (client, *nodes))
        assert client.coros() == []

    in_a_world(tmp_path, work)


def test_who_gives_up_leaves_nothing(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        client.handlers["read"] = lambda incoming: None
        coro = start(client, broadcast, DATA)
        await until(lambda: any("Receiving" in repr(node.transfers) for node in nodes))
        coro.stop("terminated")
        await until(lambda: not any("Receiving" in repr(node.transfers) for node in nodes))
        assert not any("holders=1" in repr(mesh.transfers) for mesh in (client, *nodes))

    in_a_world(tmp_path, work)


def test_a_get_that_takes_too_long(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        shared = await client.run(broadcast, DATA)
        async with world.mesh("other", client, dest_path=tmp_path / "other") as other:
            read = client.handlers["read"]
            client.handlers["read"] = lambda incoming: None
            with pytest.raises(DiscoroTimeout, match="the broadcast of bytes, .* was not here after 3 s"):
                await other.run(shared.get, 3)
            client.handlers["read"] = read
            assert await other.run(shared.get, 3) == DATA

    in_a_world(tmp_path, work)


def test_nodes_that_cannot_take_it_are_named_and_the_others_have_it(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        named = "1 of 2 nodes could not take the broadcast of bytes, .*: one: .*max_file_size.*The others have it"
        with pytest.raises(BroadcastFailed, match=named) as caught:
            await client.run(broadcast, DATA)
        assert isinstance(caught.value.__cause__, TooLarge)
        shared = caught.value.broadcast
        assert await start(nodes[1], gets, shared).result_here() == DATA
        with pytest.raises(TooLarge):
            await start(nodes[0], gets, shared).result_here()
        await client.run(shared.close)
        await until(lambda: holds(nodes[1], shared) == (True, False))

    in_a_world(tmp_path, work, max_file_size=1_000_000)


def test_a_node_that_is_lost_meanwhile_is_no_failure(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        with world.network.partition("client", "one"), world.network.partition("one", "two"):
            shared = await client.run(broadcast, DATA)
        assert [holds(node, shared) for node in nodes] == [(False, False), (True, True)]

    in_a_world(tmp_path, work)


def test_progress_counts_what_all_nodes_have(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        counts: list[tuple[int, int]] = []
        shared = await client.run(broadcast, DATA, None, lambda *count: counts.append(count))
        assert counts == sorted(counts)
        assert counts[-1] == (2 * shared.size, 2 * shared.size)

    in_a_world(tmp_path, work)


def test_a_disk_that_is_full_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(TransferFailed, match="No space left on device"):
            await client.run(broadcast, DATA)
        assert client.coros() == []

    in_a_world(tmp_path, work)


def test_what_comes_is_checked_before_anything_is_unpickled(tmp_path: Path) -> None:
    async def work(world: World, client: Mesh, nodes: list[Mesh]) -> None:
        shared = await client.run(broadcast, b"")
        store = client.transfers.store
        store.keep(blob := store.put([b"cos\nsystem\n(S'false'\ntR."]))
        with pytest.raises(ProtocolError, match="a broadcast that does not begin as one"):
            await start(nodes[0], gets, dataclasses.replace(shared, blob=blob)).result_here()

    in_a_world(tmp_path, work)


# ------------------------------------------------------------------ workers


def with_node(tmp_path: Path, work: Callable[[Node, Mesh], Awaitable[None]], slots: int = 1) -> None:
    """Run this with a node and a client of it."""

    async def main() -> None:
        async with node_here(tmp_path, slots) as node, client_of(node) as mesh:
            await work(node, mesh)

    asyncio.run(asyncio.wait_for(main(), 60))


async def opened(function: Callable[..., Any], **options: Any) -> tuple[Computation, list[CoroRef]]:
    """A computation that is set up at every server, and the servers."""
    computation, servers = Computation(function, **options), await discoro.servers()
    for server in servers:
        await computation.setup(server)
    return computation, servers


def blobs_below(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("files/node-*/blobs/*")]


def memory_of(name: str) -> dict[str, int]:
    """KiB by kind, as the kernel counts what is mapped of files with this in their names."""
    found: dict[str, int] = {}
    counts = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            counts = name in line
        elif counts and rest[-1] == "kB":
            found[first] = found.get(first, 0) + int(rest[0])
    return found


def own_memory() -> int:
    """KiB that only this process has, and has written to."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty:", "Swap:")))


def reads_all(shared: Broadcast, to: CoroRef, coro: Any = None) -> Iterator[Any]:
    """Get it and read all of it; when all have done so, what the kernel says."""
    np.zeros(1).sum()
    before, start = own_memory(), time.perf_counter()
    array = yield shared.get()
    took = time.perf_counter() - start
    total = float(array.sum())
    to.send("read")
    yield coro.receive()
    return os.getpid(), took, total, array.flags.writeable, own_memory() - before, memory_of(shared.blob.digest)


async def told_by_all(shared: Broadcast, coro: Any = None) -> list[Any]:
    computation, servers = await opened(reads_all)
    running = [await computation.run(server, shared, coro.ref) for server in servers]
    assert [await coro.receive(SOON) for _ in running] == ["read"] * len(running)
    for each in running:
        each.send("all have")
    return [await each.result(SOON) for each in running]


def test_an_array_comes_to_a_machine_once_and_its_workers_share_the_memory(tmp_path: Path) -> None:
    array = np.arange(SIZE // 8, dtype=np.float64)

    async def work(node: Node, mesh: Mesh) -> None:
        pieces = counted(mesh, "read")
        shared = await discoro.broadcast(array)
        told = await mesh.run(told_by_all, shared)
        assert len(pieces) == shared.blob.pieces, "once over the wire, and no worker had it sent"
        assert blobs_below(tmp_path) == [shared.blob.digest]
        assert len({pid for pid, *_ in told}) == 3
        for _, took, total, writeable, grown, memory in told:
            assert took < 0.05
            assert (total, writeable) == (array.sum(), False)
            assert grown < SIZE // 1024 // 20, "what it has of its own is not the array"
            assert memory["Rss:"] > SIZE // 1024, "it has read all of it"
            assert memory["Pss:"] < SIZE // 1024 // 2, "a third of it is on its account"
            assert memory["Private_Dirty:"] == 0

    with_node(tmp_path, work, slots=3)


def counted(mesh: Mesh, verb: str) -> list[Any]:
    """What this process is asked with that verb, from now on."""
    asked: list[Any] = []
    handler = mesh.handlers[verb]

    def count(incoming: Any) -> Any:
        asked.append(incoming.arguments)
        return handler(incoming)

    mesh.handlers[verb] = count
    return asked


@dataclasses.dataclass
class Table:
    """A class that goes along with the code of a computation."""

    rows: Any
    names: dict[str, int]


async def looks_at(shared: Broadcast, coro: Any = None) -> Any:
    found = await shared.get()
    again = await asyncio.to_thread(lambda: shared.value)
    rows = found.rows if isinstance(found, Table) else found
    return type(found) is Table, again is found, id(found), np.shares_memory(rows, again.rows), rows.flags.writeable


def test_what_is_of_a_class_of_the_computation_is_made_once_for_each(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        table = Table(np.ones((100, 1000)), {"a": 1})
        shared = await discoro.broadcast(table)
        ids = []
        for _ in range(2):
            computation, [server] = await opened(looks_at)
            told = [await (await computation.run(server, shared)).result(SOON) for _ in range(2)]
            assert told[0] == told[1], "the very same object"
            assert told[0][:2] == (True, True) and told[0][3:] == (True, False)
            ids.append(told[0][2])
        assert ids[0] != ids[1]
        assert type(await shared.get()) is Table

    with_node(tmp_path, work)


async def makes(to: CoroRef, size: int, coro: Any = None) -> None:
    to.send(await discoro.broadcast(np.ones(size, np.uint8)))
    await coro.receive()


async def adds(shared: Broadcast, coro: Any = None) -> int:
    array = await shared.get()
    return int(array.sum())


async def from_a_worker(first: Any, second: Any, size: int, coro: Any = None) -> tuple[Broadcast, list[int]]:
    """What coroutines at two servers make of a broadcast that one at the first has made; then that is closed."""
    making, adding = Computation(makes), Computation(adds)
    await making.setup(first)
    for server in (first, second):
        await adding.setup(server)
    await making.run(first, coro.ref, size)
    shared = await coro.receive(SOON)
    await coro.monitor(shared.ref)
    sums = [await (await adding.run(server, shared)).result(SOON) for server in (first, second)]
    await making.close(first)
    assert (await coro.receive(SOON)).reason == "computation closed"
    return shared, sums


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_a_worker_broadcasts_for_its_own_machine_and_for_others(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        async with (
            node_here(tmp_path / "one") as one,
            node_here(tmp_path / "two") as two,
            client_of(one) as mesh,
        ):
            await mesh.peer(two.mesh.addresses[0])
            servers = {server.node: server for server in await discoro.servers()}
            first, second = servers[one.mesh.me.node], servers[two.mesh.me.node]
            shared, sums = await mesh.run(from_a_worker, first, second, size)
            assert sums == [size, size]
            assert blobs_below(tmp_path / "one") == blobs_below(tmp_path / "two") == [shared.blob.digest]
            for node in (one, two):  # which removes it, when it needs the room: nobody refers to it
                async with asyncio.timeout(SOON):
                    while node.mesh.transfers.store.is_held(shared.blob):
                        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 60))


SCRIPT = """
import dataclasses
import numpy as np
import pandas as pd
import discoro

@dataclasses.dataclass
class Model:
    frame: pd.DataFrame
    weights: dict

    def total(self):
        return float(self.frame["x"].sum() + self.weights["w"].sum())

async def work(shared, coro=None):
    model = await shared.get()
    frame = model.frame["x"].to_numpy()
    return isinstance(model, Model), model.total(), frame.flags.writeable, shared

async def main():
    servers = await discoro.servers()
    computation = discoro.Computation(work)
    model = Model(pd.DataFrame({"x": np.ones(20_000)}), {"w": np.ones((200, 100))})
    async def at(server):
        await computation.setup(server)
        return await (await computation.run(server, shared)).result()
    shared = await discoro.broadcast(model)
    for server in servers:
        is_model, total, writeable, back = await at(server)
        print(is_model, total, writeable, back == shared)
    print(type(await shared.get()) is Model)

discoro.run(main, local=True, local_options=["-c", "2"], key_file="cluster.key")
"""


def test_a_class_of_a_script_with_a_frame_in_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True 40000.0 False True\n" * 2 + "True\n", "")


def test_from_ordinary_code(tmp_path: Path) -> None:
    with a_node(tmp_path, "-c", "1") as node:
        options = {"peers": [node.address], "ip_addr": ["127.0.0.1"], "mdns": False, "key_file": tmp_path / "cluster.key"}
        with discoro.BlockingMesh(**options) as mesh:
            [server] = mesh.servers()
            computation = mesh.computation(adds)
            computation.setup(server)
            shared = mesh.broadcast(np.ones(1000))
            assert computation.run(server, shared).result() == 1000
            assert mesh.wait(shared.close()) == 0
            with pytest.raises(NoMesh):
                shared.value  # noqa: B018 - what it raises
