"""Broadcast: one object for everybody, packed once, on each machine once, in the memory of its workers once.

`broadcast` writes the object as one blob into the store of this process, and asks every node to bring it; nodes pull it from
each other (transfers.py, copies.py). `Broadcast` is the small value that stands for it: whoever has one maps the file that its
machine has, and unpacks over that mapping. The origin is a coroutine that only ends (services.py), and with it the broadcast.
Objects are never sent to anybody who does not ask, and never kept by who made them.

    blob = magic (8 bytes) | number of parts (uint64) | their sizes (uint64 each) | parts, each from the next multiple of 64 on
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from discoro import packing, payload
from discoro.blobs import Blob, checked_blob
from discoro.coro import sender
from discoro.errors import BroadcastFailed, DiscoroError, NoSuchCoro, NotHere, PeerLost, ProtocolError, Timeout, Unreachable
from discoro.mesh import Mesh, current_mesh
from discoro.messages import MAX_NAME, MAX_PARTS, Greeting, Part
from discoro.progress import Count, watching
from discoro.references import CoroRef
from discoro.services import Home, mesh_here
from discoro.transfers import process_of

log = logging.getLogger("discoro.broadcasting")

MAGIC = b"discoro\x01"
ALIGNED = 64  # bytes: a cache line, and as much as any instruction on arrays asks for
SHOWN = 5  # nodes that an error names, each with its reason
_NUMBER = struct.Struct("<Q")
_NOTHING: Any = object()


async def broadcast(obj: object, timeout: float | None = None, progress: Count | bool | None = None) -> Broadcast:
    """Pack an object once, and bring it to every node that this process is linked with; used with yield or await.

    Returns a `Broadcast` once all of them have it, at most `timeout` seconds later. Send that to coroutines, or give it to
    `Computation.run` as an argument, in place of the object. It travels as a file, not as a message: no limit but a node's
    --max_file_size. However many nodes there are, this process uploads it about three times, and they serve each other. A node
    that comes later gets it when one of its workers asks. Do not change the object before this returns.

    `progress(done, total)` is called with the bytes that have come to all nodes together, about ten times a second for each of
    them; True draws a bar on a terminal.

    Raises Timeout, and then nothing is kept of it anywhere; PackError; TransferFailed where this process has no room on its
    disk; BroadcastFailed, which names the nodes that could not take it, and has as its `broadcast` what the others have. A node
    that is lost meanwhile is no failure: its workers are lost with it.
    """
    mesh = mesh_here()
    parts = laid_out(payload.pack(obj))
    origin = _Origin(type(obj).__name__[:MAX_NAME])
    try:
        async with asyncio.timeout(timeout) as limit:
            await asyncio.shield(origin.write(parts))  # a thread cannot be given up
            parts.clear()
            await origin.spread([node for node in mesh.nodes() if node.role == "node"], progress)
    except TimeoutError as error:
        origin.end()
        if not limit.expired():
            raise
        raise Timeout(f"{origin}: {origin.had} of {origin.asked} nodes had it after {timeout:g} s; it was given up") from error
    except BaseException:  # a cancellation as well: nobody is left who could end it
        origin.end()
        raise
    origin.check()
    return origin.shared


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Stands for an object that was broadcast, anywhere: small, frozen, to be sent, compared, printed, used as a key.

    `size` is what was packed, in bytes; `ref` the coroutine that it ends with, for `monitor`. It ends by `close`, at the end of
    a `with` block, or with the process or the computation that made it. Two broadcasts of the same content are two values, and
    one file on each machine.
    """

    ref: CoroRef
    blob: Blob = field(compare=False)
    what: str = field(compare=False)

    @property
    def size(self) -> int:
        return self.blob.size

    def __str__(self) -> str:
        return f"broadcast of {self.what}, {self.size} bytes ({self.ref})"

    def __repr__(self) -> str:
        return f"<Broadcast {self.what} {self.size} bytes {self.ref}>"

    def __reduce__(self) -> Any:
        return _rebuilt, (self.ref, *self.blob, self.what)

    async def get(self, timeout: float | None = None) -> Any:
        """The object; used with yield or await, in any process. It is shared: do not change it.

        Arrays and memoryviews of 64 KiB or more are read-only and lie in a file that this machine has once; all its workers
        share that memory. The rest (bytes, texts, containers, instances, small arrays) is made once for each process and
        computation, whose coroutines all get the very same object; broadcast `memoryview(data)` to have bytes shared, too.
        What a coroutine holds stays valid, whatever ends.

        Where the machine has it, which is so at every node that `broadcast` has reached, this waits for nothing. Else it is
        brought here first: to a worker by its node, to any other process from the origin itself. That raises Timeout after
        `timeout` seconds; NoSuchCoro where the broadcast has ended; PeerLost, WorkerLost, Unreachable where its process is
        gone; TransferFailed, TooLarge. Raises UnpackError where the object cannot be built here.
        """
        mesh = mesh_here()
        found = _here(mesh).find(mesh, self)
        if found is not _NOTHING:
            return found
        try:
            async with asyncio.timeout(timeout) as limit:
                return await self._fetched(mesh)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Timeout(f"the {self} was not here after {timeout:g} s") from error

    @property
    def value(self) -> Any:
        """The object, where this machine has it: not used with yield, and in threads of a worker too. See `get`.

        Raises NotHere where the machine has not got it, UnpackError.
        """
        mesh = current_mesh()
        found = _here(mesh).find(mesh, self)
        if found is _NOTHING:
            raise NotHere(f"the {self} is not on this machine: yield (or await) its get() first, which brings it")
        return found

    async def close(self) -> int:
        """End it: no node keeps it any more. Returns 0, also where it had ended. Raises PeerLost, WorkerLost, Unreachable.

        Who has the object keeps it. Others get NoSuchCoro, at the latest when their machine needs the room.
        """
        with contextlib.suppress(NoSuchCoro):
            await mesh_here().request(self.ref, "close", {})
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """As `close`, without waiting."""
        mesh_here().ask_later(self.ref, "close", {})

    async def _fetched(self, mesh: Mesh) -> Any:
        """The object, after its blob was brought to this machine."""
        ref = self.ref
        try:
            if not (await mesh.request(ref, "alive", {})).value:
                raise NoSuchCoro(f"the {self} is not on this machine, and has ended: it was closed, or its computation was")
            with mesh.transfers.holding([self.blob]):
                await mesh.transfers.get(self.blob, CoroRef(ref.node, ref.pid, ref.birth, 0, ref.name, ref.addresses))
                return self.value
        except (PeerLost, Unreachable) as error:
            raise type(error)(f"the {self} is not on this machine, and cannot be brought: {error}") from error


def _rebuilt(ref: CoroRef, digest: object, size: object, what: str) -> Broadcast:
    if not isinstance(ref, CoroRef) or not isinstance(what, str) or len(what) > MAX_NAME:
        raise ProtocolError("a broadcast without a reference and a name")
    return Broadcast(ref, checked_blob(digest, size), what)


# ------------------------------------------------------------------ where it was made


class _Origin(Home):
    """A broadcast in the process that made it: has nodes bring its blob, and lets them drop it at the end."""

    def __init__(self, what: str) -> None:
        super().__init__("broadcast", "")
        self.verbs = {"close": self._close}
        self._what = what
        self._ended = False
        self.asked, self.had = 0, 0  # nodes
        self._refused: list[tuple[Greeting, DiscoroError]] = []

    async def write(self, parts: Sequence[Part]) -> None:
        """Put the blob into the store of this process. TransferFailed."""
        store = self.mesh.transfers.store
        blob = await asyncio.to_thread(store.put, parts)
        store.hold(self, [blob])  # before: what nobody refers to may go at once
        store.keep(blob)
        self.shared = Broadcast(self.coro.ref, blob, self._what)
        if self._ended:  # meanwhile
            self._let_go()

    async def spread(self, nodes: Sequence[Greeting], progress: Count | bool | None) -> None:
        """Until each of these nodes has it, or cannot."""
        self.asked = len(nodes)
        came = {node.birth: 0 for node in nodes}
        with watching(progress, str(self.shared)) as count:
            await asyncio.gather(*(self._bring(node, came, count) for node in nodes))

    async def _bring(self, node: Greeting, came: dict[int, int], count: Count | None) -> None:
        blob, mesh = self.shared.blob, self.mesh

        def counted(done: int, total: int) -> None:
            came[node.birth] = done
            assert count is not None
            count(sum(came.values()), blob.size * len(came))

        try:
            with mesh.transfers.offering((), None if count is None else counted, node.birth) as more:
                arguments = {**blob._asdict(), "origin": process_of(mesh.me).to_plain(), **more}
                await mesh.request(process_of(node), "bring", arguments)
            self.had += 1
        except DiscoroError as error:
            if mesh.linked(node.birth):
                self._refused.append((node, error))
            else:
                log.info("! %s did not get the %s: %s", node.name, self.shared, error)

    def check(self) -> None:
        """BroadcastFailed where a node could not take it."""
        if not self._refused:
            return
        each = "; ".join(f"{node.name}: {error}" for node, error in self._refused[:SHOWN])
        more = f"; and {len(self._refused) - SHOWN} others" if len(self._refused) > SHOWN else ""
        text = f"{len(self._refused)} of {self.asked} nodes could not take the {self.shared}: {each}{more}. The others have it"
        failed = BroadcastFailed(text)
        failed.broadcast = self.shared
        raise failed from self._refused[0][1]

    def on_end(self, why: str) -> None:
        self._ended = True
        if hasattr(self, "shared"):
            self._let_go()

    def _let_go(self) -> None:
        """Nobody need keep it, unless it is the content of another broadcast, too."""
        blob, mesh = self.shared.blob, self.mesh
        mesh.transfers.store.release(self)
        if mesh.transfers.store.is_held(blob):
            return
        for node in mesh.nodes():
            if node.role == "node":
                with contextlib.suppress(DiscoroError):
                    mesh.tell(process_of(node), "release", {}, [packing.pack([list(blob)])])


# ------------------------------------------------------------------ where it is used


class _Here:
    """What one process has of broadcasts: the objects, by computation; what belongs to none is this one's own."""

    def __init__(self) -> None:
        self._objects: weakref.WeakKeyDictionary[Any, dict[Broadcast, Any]] = weakref.WeakKeyDictionary()
        self._watched: set[Broadcast] = set()  # those of whose end this process will hear
        self._lock = threading.RLock()  # of `_objects`, against threads

    def find(self, mesh: Mesh, shared: Broadcast) -> Any:
        """The object, unpacked before or now; _NOTHING where the machine has not got its blob. In any thread. UnpackError."""
        coro = sender()
        namespace = coro.namespace if coro is not None else None
        with self._lock:
            objects = self._objects.setdefault(self if namespace is None else namespace, {})
        found = objects.get(shared, _NOTHING)
        path = mesh.transfers.path(shared.blob) if found is _NOTHING else None
        if path is None:
            return found
        try:
            parts = parts_of(mapped(path))
        except FileNotFoundError:  # it ended in this moment, and nobody kept it
            return _NOTHING
        mesh.in_loop(self._watch, mesh, shared)
        return objects.setdefault(shared, payload.unpack(parts, namespace, shared=True))

    def _watch(self, mesh: Mesh, shared: Broadcast) -> None:
        """Until the broadcast ends, its objects are kept here, and its blob on this machine."""
        if shared in self._watched:
            return
        self._watched.add(shared)
        held = contextlib.ExitStack()
        if shared.ref.birth != mesh.me.birth:  # where the origin does not hold it itself
            held.enter_context(mesh.transfers.holding([shared.blob]))
        contextvars.Context().run(mesh.spawn, self._until_ended(mesh, shared, held))  # in nobody's name: it outlives who asked

    async def _until_ended(self, mesh: Mesh, shared: Broadcast, held: contextlib.ExitStack) -> None:
        with held, contextlib.suppress(DiscoroError):
            await mesh.result(shared.ref, None)
        self._watched.discard(shared)
        with self._lock:
            everywhere = list(self._objects.values())
        for objects in everywhere:
            objects.pop(shared, None)


_processes: weakref.WeakKeyDictionary[Mesh, _Here] = weakref.WeakKeyDictionary()


def _here(mesh: Mesh) -> _Here:
    return _processes.setdefault(mesh, _Here())


# ------------------------------------------------------------------ the blob


def laid_out(parts: Sequence[Part]) -> list[Part]:
    """The parts of an object as they stand in its blob, head first, with what fills up to the next multiple of 64."""
    sizes = [memoryview(part).nbytes for part in parts]
    head = MAGIC + b"".join(map(_NUMBER.pack, (len(parts), *sizes)))
    found: list[Part] = []
    for part, size in zip((head, *parts), (len(head), *sizes), strict=True):
        found += [part, bytes(-size % ALIGNED)]
    return found


def parts_of(blob: memoryview) -> list[memoryview]:
    """The parts of an object in its blob, uncopied; ProtocolError where the head, which came from elsewhere, lies."""
    if blob[: len(MAGIC)] != MAGIC or blob.nbytes < len(MAGIC) + _NUMBER.size:
        raise ProtocolError("a broadcast that does not begin as one")
    count = _NUMBER.unpack_from(blob, len(MAGIC))[0]
    numbers = blob[len(MAGIC) + _NUMBER.size :][: count * _NUMBER.size]
    if not 0 < count <= MAX_PARTS or numbers.nbytes != count * _NUMBER.size:
        raise ProtocolError(f"a broadcast of {count} parts in {blob.nbytes} bytes; it has 1 to {MAX_PARTS}")
    parts, at = [], len(MAGIC) + _NUMBER.size + numbers.nbytes
    for (size,) in _NUMBER.iter_unpack(numbers):
        at += -at % ALIGNED
        parts.append(blob[at : at + size])
        at += size
    if at + -at % ALIGNED != blob.nbytes:
        raise ProtocolError(f"a broadcast whose parts end at byte {at} of {blob.nbytes}")
    return parts


def mapped(path: Path) -> memoryview:
    """The file as memory that nobody can write to; it lasts as long as what looks into it. OSError."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")  # which cannot be mapped
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
