"""Blobs from process to process: asked for by who wants one, piece by piece, from who has it.

One `Transfers` for each process. What it offers (the files of a computation while `setup` runs, a file that is being sent)
and what lies in its store can be read by every peer that knows the digest. `get` brings a blob into the store, once for however
many wait for it. A worker asks its node, so that a blob goes over the wire once for each machine; a node that wants a large one
asks the process it comes from whom to pull it from (copies.py decides), so that many nodes serve each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from discoro import packing
from discoro.answers import Handler
from discoro.blobs import PIECE, Blob, Receiving, checked_blob
from discoro.copies import Assignment, Copies
from discoro.errors import DiscoroError, ProtocolError, TooLarge, TransferFailed
from discoro.files import MAX_FILES, MAX_LIST, Shipped, Source
from discoro.messages import KIB, PIECE_SIZE, Greeting, Part
from discoro.progress import Count
from discoro.references import CoroRef
from discoro.requests import Answer, Incoming
from discoro.store import Store

log = logging.getLogger("discoro.transfers")

SHARED = PIECE  # bytes from which on nodes serve a blob to each other; below, asking whom costs more than it saves
READS = 16  # pieces asked of one process at a time: they wait in both memories, and one that is silent holds up only its own
AT_DISK = 3  # pieces that are read at a time, and as many written: further threads stand in each other's way (twice the time)
BLOBS = 8  # blobs of one computation that are on the way at a time: many small ones share the round trips
IN_THREAD = 64 * KIB  # bytes from which on a piece is read and written in a thread; below, the hand-over costs more
TOLD_EVERY = 0.1  # seconds between two words about the progress of a transfer
LARGEST = 5  # files that an error names
PLANS = 1000  # blobs for which it is remembered which nodes have them


class Around(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    async def request(
        self, to: CoroRef, verb: str, arguments: dict[str, Any], body: Sequence[Part] = (), timeout: float | None = None
    ) -> Answer: ...
    def tell(self, to: CoroRef, verb: str, arguments: dict[str, Any], body: Sequence[Part] = ()) -> None: ...
    def process(self, birth: int) -> CoroRef | None: ...
    async def room(self, birth: int) -> None: ...


@dataclass(eq=False)
class _Flight:
    """A blob on its way here, and how many wait for it."""

    origin: int  # the birth it comes from
    task: asyncio.Task[None] = field(init=False)
    receiving: Receiving | None = None
    told: int = 0  # bytes that have come to our node, for us
    waiting: int = 0

    @property
    def received(self) -> int:
        """Bytes that have come."""
        return self.receiving.received if self.receiving is not None else self.told

    def count(self, done: int, total: int) -> None:
        """Our node says how far it is."""
        self.told = done


class Transfers:
    """The blobs that one process offers and fetches. `node`: for a worker, its node, which fetches for it."""

    def __init__(self, around: Around, store: Callable[[], Store], node: CoroRef | None = None) -> None:
        self._around = around
        self._make_store = store
        self._made: Store | None = None
        self._node = node
        self._offered: dict[Blob, list[Source]] = {}
        self._flights: dict[Blob, _Flight] = {}
        self._plans: OrderedDict[Blob, Copies] = OrderedDict()
        self._asking: dict[tuple[Blob, int], Incoming] = {}  # nodes that wait to be told whom to pull from
        self._watching: dict[int, tuple[int, Count]] = {}  # and the birth that was asked
        self._numbers = itertools.count(1)
        self._bringing: dict[tuple[int, Blob], set[asyncio.Task[Any]]] = {}  # what is being brought, by the birth that asked
        self._reads = weakref.WeakValueDictionary[int, asyncio.Semaphore]()  # by the birth that is asked
        self._served = weakref.WeakValueDictionary[int, asyncio.Semaphore]()  # by the birth that asks
        self._at_disk = asyncio.Semaphore(AT_DISK), asyncio.Semaphore(AT_DISK)  # to read, and to write
        self.handlers: dict[str, Handler] = {
            "read": self._on_read,
            "bring": self._on_bring,
            "release": self._on_release,
            "source": self._on_source,
            "pulled": self._on_pulled,
            "progress": self._on_progress,
        }

    def __repr__(self) -> str:
        return f"<Transfers {self._made!r} offered={len(self._offered)} on the way={list(self._flights.values())}>"

    @property
    def store(self) -> Store:
        """Where blobs lie here; a client makes it with its first one."""
        if self._made is None:
            self._made = self._make_store()
        return self._made

    def path(self, blob: Blob) -> Path | None:
        """Where a blob lies that is here; None for any other. In any thread."""
        if self._made is None and self._node is None:
            return None  # a process without a store has no blobs; a worker has its node's
        path = self.store.path(blob)
        try:
            return path if path.stat().st_size == blob.size else None
        except OSError:
            return None

    # -------------------------------------------------------------- offering

    @contextlib.contextmanager
    def offering(self, sources: Iterable[Source], watch: Count | None = None, asked: int = 0) -> Iterator[dict[str, int]]:
        """These files can be read by others in this block; what it gives goes into the arguments of the request that says so.

        `watch` is called with the bytes that have come there and the bytes in all, as the process of the birth `asked` says.
        """
        offered, number = list(sources), next(self._numbers)
        for source in offered:
            self._offered.setdefault(source.blob, []).append(source)
        if watch is not None:
            self._watching[number] = asked, watch
        try:
            yield {"progress": number} if watch is not None else {}
        finally:
            self._watching.pop(number, None)
            for source in offered:
                self._offered[source.blob].remove(source)
                if not self._offered[source.blob]:
                    del self._offered[source.blob]

    def _source(self, blob: Blob) -> Source:
        """Where the bytes of a blob are read; TransferFailed for one that is not here."""
        if blob in self._offered:
            return self._offered[blob][-1]
        if self._made is not None and self._made.has(blob):
            return self._made.source(blob)
        raise TransferFailed(f"{self._around.me.name} does not offer the file {blob.digest:.12}, or no longer")

    async def _on_read(self, incoming: Incoming) -> None:
        blob, index = _blob_in(incoming), incoming.arguments.get("piece")
        if type(index) is not int or not 0 <= index < blob.pieces:
            raise ProtocolError(f"file {blob.digest:.12} has no piece {index!r:.20}")
        async with self._of(self._served, incoming.peer.birth, AT_DISK):  # who takes nothing has only its own reads wait
            await self._around.room(incoming.peer.birth)
            source = self._source(blob)
            async with self._at_disk[0]:
                data = await _done(blob.length(index), source.read_piece, index)
            view = memoryview(data)  # in parts that travel as they are: whole, they would be put together over there
            incoming.reply(0, [view[at : at + PIECE_SIZE] for at in range(0, len(view), PIECE_SIZE)])

    @staticmethod
    def _of(each: weakref.WeakValueDictionary[int, asyncio.Semaphore], birth: int, places: int) -> asyncio.Semaphore:
        """The places that one process has there."""
        semaphore = each.get(birth)
        if semaphore is None:
            semaphore = each[birth] = asyncio.Semaphore(places)
        return semaphore

    # -------------------------------------------------------------- fetching

    @contextlib.contextmanager
    def holding(self, blobs: Collection[Blob]) -> Iterator[object]:
        """In this block these blobs stay in the store once they are there; gives what holds them."""
        holder = object()
        self.store.hold(holder, blobs)
        try:
            yield holder
        finally:
            self.store.release(holder)
            free = [list(blob) for blob in blobs if not self.store.is_held(blob)]
            if self._node is not None and free:  # which holds them for us
                with contextlib.suppress(DiscoroError):
                    self._around.tell(self._node, "release", {}, [packing.pack(free)])

    async def get_all(
        self, files: Sequence[Shipped], origin: CoroRef, number: object = None, watch: Count | None = None
    ) -> None:
        """Until the contents of all these files are in the store.

        `number` is what the request had as progress, for who watches at the origin; `watch` is called here. Raises TooLarge,
        TransferFailed, ProtocolError for what has another digest, PeerLost, Unreachable.
        """
        self._check_sizes(files)
        missing = [blob for blob in dict.fromkeys(file.blob for file in files) if not self.store.has(blob)]
        todo, here = iter(missing), 0
        under_way: set[Blob] = set()

        async def get() -> None:
            nonlocal here
            for blob in todo:
                under_way.add(blob)
                await self.get(blob, origin)
                under_way.remove(blob)
                here += blob.size

        def done() -> int:
            return here + sum(self._flights[blob].received for blob in under_way if blob in self._flights)

        try:
            with self._saying(done, sum(blob.size for blob in missing), watch or self._teller(origin, number)):
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(BLOBS, len(missing))):
                        group.create_task(get())
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None  # each says the same: the first is enough

    def _check_sizes(self, files: Sequence[Shipped]) -> None:
        try:
            for file in files:
                self.store.check(file.blob)
        except TooLarge as error:
            largest = sorted(files, key=lambda file: -file.blob.size)[:LARGEST]
            names = ", ".join(f"{file.name} ({file.blob.size} bytes)" for file in largest)
            raise TooLarge(f"{error}; the largest are {names}") from None

    async def get(self, blob: Blob, origin: CoroRef) -> None:
        """Until the blob is in the store, brought by whoever began to; see `get_all`."""
        while not self.store.has(blob):
            flight = self._flights.get(blob) or self._begin(blob, origin)
            flight.waiting += 1
            try:
                await asyncio.wait([flight.task])
            finally:
                flight.waiting -= 1
                if not flight.waiting:
                    flight.task.cancel()
            if flight.origin == origin.birth and not flight.task.cancelled():  # by who waited for it before
                return flight.task.result()

    def _begin(self, blob: Blob, origin: CoroRef) -> _Flight:
        flight = self._flights[blob] = _Flight(origin.birth)
        flight.task = asyncio.ensure_future(self._bring(flight, blob, origin))
        flight.task.add_done_callback(lambda task: self._flights.pop(blob))
        return flight

    async def _bring(self, flight: _Flight, blob: Blob, origin: CoroRef) -> None:
        if self._node is not None:
            with self.offering((), flight.count if blob.pieces > 1 else None, self._node.birth) as told:
                await self._around.request(self._node, "bring", {**_named(blob), "origin": origin.to_plain(), **told})
        elif self._around.me.role == "node" and blob.size >= SHARED:
            await self._bring_shared(flight, blob, origin)
        else:
            await self._pull(flight, blob, origin)

    async def _bring_shared(self, flight: _Flight, blob: Blob, origin: CoroRef) -> None:
        """From whomever the origin names; from another one where that comes to nothing."""
        how, again = "given up", False
        try:
            while how != "done":
                answer = await self._around.request(origin, "source", {**_named(blob), "again": again})
                source = origin if answer.value is None else _ref(answer.value)
                try:
                    await self._pull(flight, blob, source)
                    how = "done"
                except DiscoroError as error:
                    if source is origin:
                        raise
                    log.info("! file %.12s did not come from %s: %s", blob.digest, source.name, error)
                    again = True
        finally:
            with contextlib.suppress(DiscoroError):
                self._around.tell(origin, "pulled", {**_named(blob), "how": how})

    async def _pull(self, flight: _Flight, blob: Blob, source: CoroRef) -> None:
        """Piece by piece, with a window of them on the way; one that broke before goes on."""
        receiving = flight.receiving = self.store.begin(blob)
        reads: set[asyncio.Task[None]] = set()
        try:
            await _done(blob.size, self.store.take_room, blob)
            while not receiving.complete:
                while (index := receiving.next_piece()) is not None:
                    reads.add(asyncio.ensure_future(self._read(receiving, index, source)))
                finished, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    task.result()
                    reads.discard(task)
        except BaseException:  # a cancellation as well
            await _ended(reads)  # before anybody begins where this one broke
            self.store.pause(receiving)
            raise
        self.store.finish(receiving)

    async def _read(self, receiving: Receiving, index: int, source: CoroRef) -> None:
        blob, came = receiving.blob, False
        try:
            async with self._of(self._reads, source.birth, READS):
                answer = await self._around.request(source, "read", {**_named(blob), "piece": index})
                receiving.check(index, answer.body)
                async with self._at_disk[1]:
                    digest = await _done(blob.length(index), self.store.write, blob, index, answer.body)
            receiving.came(index, digest)
            came = True
        finally:
            if not came:
                receiving.failed(index)

    # -------------------------------------------------------------- progress

    @contextlib.contextmanager
    def _saying(self, done: Callable[[], int], total: int, count: Count | None) -> Iterator[None]:
        """Who watches is told how far it is, now and then in this block, and at its good end."""
        if count is None:
            yield
            return

        async def say() -> None:
            while True:
                count(done(), total)
                await asyncio.sleep(TOLD_EVERY)

        saying = asyncio.ensure_future(say())
        try:
            yield
        finally:
            saying.cancel()
        count(total, total)

    def _teller(self, to: CoroRef, number: object) -> Count | None:
        """What tells that process, if it watches."""
        return partial(self._tell_progress, to, number) if type(number) is int else None

    def _tell_progress(self, to: CoroRef, number: int, done: int, total: int) -> None:
        with contextlib.suppress(DiscoroError):
            self._around.tell(to, "progress", {"number": number, "done": done, "total": total})

    def _on_progress(self, incoming: Incoming) -> None:
        match incoming.arguments:
            case {"number": int(number), "done": int(done), "total": int(total)} if done >= 0 and total >= 0:
                asked, watch = self._watching.get(number, (0, None))
            case _:
                raise ProtocolError("progress without number, done and total")
        incoming.reply(0)
        if watch is not None and asked == incoming.peer.birth:
            watch(done, total)

    # -------------------------------------------------------------- a node, for its workers

    async def _on_bring(self, incoming: Incoming) -> None:
        """A worker, or whoever broadcasts, wants a blob to be here; it stays until the asker has released it, or is lost."""
        blob, origin = _blob_in(incoming), _ref(incoming.arguments.get("origin"))
        self.store.hold(incoming.peer.birth, [blob])
        count = self._teller(process_of(incoming.peer), incoming.arguments.get("progress"))
        with (
            self._until_released(incoming.peer.birth, blob),
            self._saying(lambda: self._flights[blob].received if blob in self._flights else 0, blob.size, count),
        ):
            await self.get(blob, origin)
        incoming.reply(0)

    @contextlib.contextmanager
    def _until_released(self, birth: int, blob: Blob) -> Iterator[None]:
        """This block is given up when the process that wanted the blob wants it no more."""
        task, tasks = asyncio.current_task(), self._bringing.setdefault((birth, blob), set())
        assert task is not None
        tasks.add(task)
        try:
            yield
        finally:
            tasks.remove(task)
            if not tasks:
                del self._bringing[birth, blob]
                if not self.store.has(blob):  # which nobody keeps then: names of blobs cost nothing
                    self.store.release(birth, [blob])

    def _on_release(self, incoming: Incoming) -> None:
        """All that was brought for the asker is not needed by it any more, or what its body lists."""
        self._release(incoming.peer.birth, _blobs_in(incoming) if incoming.body else None)
        incoming.reply(0)

    def _release(self, birth: int, blobs: Collection[Blob] | None = None) -> None:
        """Nothing is kept for that process any more, or these blobs are not; nor brought, if they are on the way."""
        for (asker, blob), tasks in self._bringing.items():
            if asker == birth and (blobs is None or blob in blobs):
                for task in tasks:
                    task.cancel()
        if self._made is not None:
            self._made.release(birth, blobs)

    # -------------------------------------------------------------- the origin, for nodes

    def copies(self, blob: Blob) -> int:
        """How many times this process has handed out that blob to nodes, as its origin."""
        return self._plans[blob].own if blob in self._plans else 0

    def _on_source(self, incoming: Incoming) -> None:
        """A node asks whom to pull a blob from; it is told when its turn has come."""
        blob = _blob_in(incoming)
        self._source(blob)
        plan = self._plans.setdefault(blob, Copies())
        self._plans.move_to_end(blob)
        self._asking[blob, incoming.peer.birth] = incoming
        failed = plan.failed(incoming.peer.birth) if incoming.arguments.get("again") is True else []
        self._assign(blob, [*failed, *plan.want(incoming.peer.birth)])  # which a plan made anew does not know of
        if len(self._plans) > PLANS:
            self._drop_plan(next(iter(self._plans)))

    def _drop_plan(self, blob: Blob) -> None:
        """Who waits for its turn in the plan reads from here."""
        del self._plans[blob]
        for key in [key for key in self._asking if key[0] == blob]:
            self._asking.pop(key).reply(None)

    def _on_pulled(self, incoming: Incoming) -> None:
        blob, node = _blob_in(incoming), incoming.peer.birth
        self._asking.pop((blob, node), None)  # it was given up before its turn came
        plan = self._plans.get(blob)
        match incoming.arguments.get("how"):
            case _ if plan is None:
                pass
            case "done":
                self._assign(blob, plan.done(node))
            case _:
                self._assign(blob, plan.lost(node))
        incoming.reply(0)

    def _assign(self, blob: Blob, assignments: Sequence[Assignment]) -> None:
        for node, source in assignments:
            incoming, ref = self._asking.pop((blob, node), None), self._around.process(source) if source else None
            if incoming is None:  # it has given up meanwhile
                self._assign(blob, self._plans[blob].lost(node))
            elif source is not None and ref is None:  # the link with that one is lost, which is told in a moment
                self._asking[blob, node] = incoming
                self._assign(blob, self._plans[blob].failed(node))
            else:
                incoming.reply(None if ref is None else ref.to_plain())

    def peer_lost(self, birth: int) -> None:
        """That process is gone: it neither wants nor serves anything, and what was brought for it is not held any more."""
        self._release(birth)
        for blob, node in [key for key in self._asking if key[1] == birth]:
            del self._asking[blob, node]
        for blob, plan in list(self._plans.items()):
            self._assign(blob, plan.lost(birth))


async def _done(size: int, function: Callable[..., Any], *args: Any) -> Any:
    """What it gives: called at once for few bytes, in a thread for many, which has ended even where this is given up."""
    if size < IN_THREAD:
        return function(*args)
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:  # nobody stops the thread: what it writes later would spoil what others began there
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # a disk that is full fails all that was under way: the first to say so was told
        raise


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _named(blob: Blob) -> dict[str, Any]:
    return {"digest": blob.digest, "size": blob.size}


def _blob_in(incoming: Incoming) -> Blob:
    return checked_blob(incoming.arguments.get("digest"), incoming.arguments.get("size"))


def _blobs_in(incoming: Incoming) -> list[Blob]:
    """The blobs that the body lists."""
    if len(incoming.body) != 1:
        raise ProtocolError(f"{incoming.verb} without a list of files")
    return [checked_blob(*each) for each in packing.unpack_rows(incoming.body[0], MAX_LIST, MAX_FILES, 2)]


def _ref(values: Any) -> CoroRef:
    try:
        return CoroRef.from_plain(values)
    except ProtocolError:
        raise ProtocolError("a file from nobody") from None


def process_of(peer: Greeting) -> CoroRef:
    """That process itself, to be asked."""
    return CoroRef(peer.node, peer.pid, peer.birth, 0, peer.name, peer.addresses)
