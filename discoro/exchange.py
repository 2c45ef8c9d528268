"""Files between two peers: sent, fetched, removed, for whoever asks in this process.

Two verbs bring files: `take` has a peer fetch what is offered to it here, and `fetch` asks it to offer. Either way the side
that receives compares first, brings only the contents that it lacks (transfers.py), and puts them in their places (inside.py).
It alone knows its directory; the other side knows names. What is given up is withdrawn, so that nothing comes of it later.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from discoro.answers import Handler
from discoro.directory import ClientDirectory
from discoro.errors import (
    ConfigError,
    DiscoroError,
    Overloaded,
    PeerLost,
    ProtocolError,
    Timeout,
    TooLarge,
    TransferFailed,
    Unreachable,
)
from discoro.files import MAX_FILES, MAX_LIST, How, Shipped, checked_name, in_thread, packed_files, unpacked_files
from discoro.inside import Found, Inside, contents
from discoro.messages import Greeting, Part
from discoro.presence import Peer
from discoro.progress import Count, watching
from discoro.references import CoroRef, Handle
from discoro.requests import Answer, Incoming
from discoro.store import Store
from discoro.transfers import Transfers, process_of

OFFERED = 2 * MAX_FILES  # files that one peer is offered at a time: one of the largest directories, and another

Key = tuple[int, int]  # a birth, and the number that it gave what it asked


class Around(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    @property
    def dest_path(self) -> Path: ...
    async def request(
        self, to: CoroRef, verb: str, arguments: dict[str, Any], body: Sequence[Part] = (), timeout: float | None = None
    ) -> Answer: ...
    def tell(self, to: CoroRef, verb: str, arguments: dict[str, Any], body: Sequence[Part] = ()) -> None: ...
    def process(self, birth: int) -> CoroRef | None: ...
    async def room(self, birth: int) -> None: ...


class Exchange:
    """What one process sends, fetches and removes elsewhere, and what others send, fetch and remove here."""

    def __init__(self, around: Around, transfers: Transfers, max_file_size: int) -> None:
        self._around = around
        self._transfers = transfers
        self._max_file_size = max_file_size
        self._numbers = itertools.count(1)
        self._under_way: dict[Key, asyncio.Task[None]] = {}  # what others asked of us
        self._offers: dict[Key, tuple[int, contextlib.ExitStack]] = {}  # how many files, and what ends the offer
        self._elsewhere: dict[int, tuple[Transfers, ClientDirectory]] = {}  # by file system
        self._placing = asyncio.Lock()  # so that one name has one content after the other
        self.handlers: dict[str, Handler] = {
            "take": lambda incoming: self._begin(incoming, self._on_take),
            "fetch": lambda incoming: self._begin(incoming, self._on_fetch),
            "withdraw": self._on_end,
            "fetched": self._on_end,
            "remove": self._on_remove,
        }

    def __repr__(self) -> str:
        return f"<Exchange under way={len(self._under_way)} offers={len(self._offers)}>"

    # -------------------------------------------------------------- asking

    async def send(
        self,
        to: CoroRef,
        path: str | os.PathLike[str],
        below: str,
        overwrite: bool,
        timeout: float | None,
        progress: Count | bool | None,
    ) -> None:
        """See Mesh.send_file."""
        source = Path(os.path.abspath(path))
        async with _limited(f"{source} was not sent to {_name(to)}", timeout):
            found = await in_thread(contents, source)
            body = [_packed(found, source)]
            sources = (each for _, each in found)
            with watching(progress, source.name) as watch, self._transfers.offering(sources, watch, to.birth) as told:
                number = next(self._numbers)
                arguments = {"number": number, "dir": below, "overwrite": bool(overwrite), **told}
                with self._ended_by("withdraw", to, number, also_done=False):
                    await self._around.request(to, "take", arguments, body)

    async def fetch(
        self,
        of: CoroRef,
        name: str,
        directory: str | os.PathLike[str] | None,
        overwrite: bool,
        timeout: float | None,
        progress: Count | bool | None,
    ) -> Path:
        """See Mesh.fetch_file."""
        base, number = PurePosixPath(name).name, next(self._numbers)
        async with _limited(f"{name} was not fetched from {_name(of)}", timeout):
            inside = self._here() if directory is None else await asyncio.to_thread(_chosen, directory)
            with self._ended_by("fetched", of, number, also_done=True), watching(progress, base) as watch:
                answer = await self._around.request(of, "fetch", {"name": name, "number": number})
                await self._bring(inside, _offered(answer, base), of, overwrite, watch=watch)
        return inside.directory / base

    async def remove(self, at: CoroRef, name: str, timeout: float | None) -> None:
        """See Mesh.del_file."""
        async with _limited(f"{name} was not removed at {_name(at)}", timeout):
            await self._around.request(at, "remove", {"name": name})

    @contextlib.contextmanager
    def _ended_by(self, verb: str, to: CoroRef, number: int, also_done: bool) -> Iterator[None]:
        """That process is told when what it was asked in this block is given up, or also when it is done."""
        try:
            yield
        except (PeerLost, Unreachable):  # and with it what it did for us
            raise
        except BaseException as error:
            if also_done or isinstance(error, asyncio.CancelledError):
                self._tell_end(verb, to, number)
            raise
        if also_done:
            self._tell_end(verb, to, number)

    def _tell_end(self, verb: str, to: CoroRef, number: int) -> None:
        with contextlib.suppress(PeerLost, Unreachable):
            self._around.tell(to, verb, {"number": number})

    # -------------------------------------------------------------- receiving

    def _here(self) -> Inside:
        return Inside(self._around.dest_path, self._around.me.role)

    async def _bring(
        self,
        inside: Inside,
        files: Sequence[Shipped],
        origin: CoroRef,
        overwrite: bool,
        number: object = None,
        watch: Count | None = None,
    ) -> None:
        """Until these files are in their places; `number` and `watch` as for Transfers.get_all."""
        missing = await asyncio.to_thread(inside.missing, files, overwrite)
        transfers = self._transfers_for(inside.directory)
        with transfers.holding({file.blob for file in missing}) as holder:
            await transfers.get_all(missing, origin, number, watch)
            async with self._placing:
                await self._place(inside, transfers.store, missing, holder, overwrite)

    def _transfers_for(self, directory: Path) -> Transfers:
        """What brings contents to the file system of that directory, so that they need not be copied to their places."""
        if self._around.me.role != "client":
            return self._transfers
        device = directory.stat().st_dev
        if device == self._transfers.store.directory.stat().st_dev:
            return self._transfers
        if device not in self._elsewhere or not self._elsewhere[device][1].files.is_dir():  # it was removed since
            there = ClientDirectory(directory)
            transfers = Transfers(self._around, lambda: Store(there.blobs, self._max_file_size))
            self._elsewhere[device] = transfers, there
        return self._elsewhere[device][0]

    async def _place(self, inside: Inside, store: Store, files: Sequence[Shipped], holder: object, overwrite: bool) -> None:
        plan, stopped = self._planned(store, files, holder), threading.Event()
        work = asyncio.ensure_future(asyncio.to_thread(inside.place, plan, overwrite, stopped))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stopped.set()
            await asyncio.wait([work])
            raise
        finally:
            for _, content, how in plan:
                if how == "moved":  # which was not, then
                    content.unlink(missing_ok=True)

    def _planned(self, store: Store, files: Sequence[Shipped], holder: object) -> list[tuple[Shipped, Path, How]]:
        """Where each content is, and what becomes of it: what a client gets is its own; elsewhere the store is shared."""
        left = Counter(file.blob for file in files)
        if self._around.me.role != "client":
            return [(file, store.path(file.blob), "linked") for file in files]
        given = {blob: store.give(blob, holder) for blob in left}
        plan: list[tuple[Shipped, Path, How]] = []
        for file in files:
            left[file.blob] -= 1
            own = given.get(file.blob)
            how: How = "copied" if own is None or left[file.blob] else "moved"  # the last one that needs it
            plan.append((file, own or store.path(file.blob), how))
        return plan

    # -------------------------------------------------------------- asked by others

    def _begin(self, incoming: Incoming, answer: Callable[[Incoming, Key], Any]) -> Awaitable[None]:
        """Have it answered, until that is given up."""
        key = _key(incoming)
        if key in self._under_way or key in self._offers:
            raise ProtocolError(f"{incoming.verb} with the number of another one")
        task = self._under_way[key] = asyncio.ensure_future(answer(incoming, key))
        task.add_done_callback(lambda _: self._under_way.pop(key))
        # Retrieved here: where the answer was given up in the same moment, nobody else asks any more how this ended.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    async def _on_take(self, incoming: Incoming, key: Key) -> None:
        """A peer offers files: they are fetched from it."""
        files, arguments = _files_in(incoming), incoming.arguments
        overwrite, number = arguments.get("overwrite") is True, arguments.get("progress")
        await self._bring(self._here(), files, process_of(incoming.peer), overwrite, number)
        incoming.reply(0)

    async def _on_fetch(self, incoming: Incoming, key: Key) -> None:
        """A peer wants files: they are offered to it until it says that it has fetched them, or is lost."""
        name = _text(incoming, "name")
        found = await asyncio.to_thread(self._here().contents, name)
        body = [_packed(found, name)]
        offered = sum(max(count, 1) for (birth, _), (count, _) in self._offers.items() if birth == incoming.peer.birth)
        if offered + len(found) > OFFERED:
            raise Overloaded(f"{self._around.me.name} offers you {offered} files already: fetch fewer at a time")
        offer = contextlib.ExitStack()
        offer.enter_context(self._transfers.offering(source for _, source in found))
        self._offers[key] = len(found), offer
        incoming.reply(0, body)

    def _on_end(self, incoming: Incoming) -> None:
        self._end(_key(incoming))
        incoming.reply(0)

    def _end(self, key: Key) -> None:
        if key in self._under_way:
            self._under_way[key].cancel()
        if key in self._offers:
            _, offer = self._offers.pop(key)
            offer.close()

    async def _on_remove(self, incoming: Incoming) -> None:
        await asyncio.to_thread(self._here().remove, _text(incoming, "name"))
        incoming.reply(0)

    # -------------------------------------------------------------- ends

    def peer_lost(self, birth: int) -> None:
        """That process is gone, and waits for nothing."""
        for key in [key for key in (*self._under_way, *self._offers) if key[0] == birth]:
            self._end(key)

    def close(self) -> None:
        """Nothing is received any more."""
        for _, directory in self._elsewhere.values():
            directory.remove()


# ------------------------------------------------------------------ what users give


def process_meant(peer: Peer | Handle) -> CoroRef:
    """The process that a Peer or a reference stands for, to be asked. TypeError for anything else."""
    if isinstance(peer, Peer):
        return CoroRef(peer.node, peer.pid, peer.birth, 0, peer.name, peer.addresses)
    if isinstance(peer, Handle):
        ref = peer.ref
        return CoroRef(ref.node, ref.pid, ref.birth, 0, ref.name, ref.addresses)
    raise TypeError(f"a Peer or a reference is wanted, whose process is meant; this is {peer!r:.80}")


def name_at_peer(name: str | os.PathLike[str], directory: str | os.PathLike[str] | None = None) -> str:
    """The name of a file below the peer's directory for files, with /. ConfigError where it is none, or leads out."""
    parts = [os.fspath(each) for each in (directory, name) if each is not None]
    for part in parts:
        if not isinstance(part, str):
            raise ConfigError(f"{part!r:.80} is no name of a file: names are text")
        if os.path.isabs(part):
            raise ConfigError(f"{part!r:.80} is absolute: names at a peer are relative to its directory for files")
    try:
        return checked_name(PurePosixPath(*parts).as_posix())
    except ProtocolError as error:
        raise ConfigError(str(error)) from None


def directory_at_peer(directory: str | os.PathLike[str] | None) -> str:
    """The same for a directory; "" for the peer's directory for files itself."""
    return name_at_peer(directory) if directory is not None and PurePosixPath(directory).parts else ""


def _chosen(directory: str | os.PathLike[str]) -> Inside:
    """A directory of this machine, made where it is missing."""
    path = Path(os.path.abspath(directory))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the directory {path} cannot be made: {error.strerror}. Choose another one") from error
    return Inside(path)


@contextlib.asynccontextmanager
async def _limited(failed: str, timeout: float | None) -> AsyncIterator[None]:
    """Timeout once the time is over, and errors that say what did not come about."""
    try:
        async with asyncio.timeout(timeout) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Timeout(f"{failed} in {timeout:g} s, and was given up") from error
    except DiscoroError as error:
        raise type(error)(f"{failed}: {error}") from error.__cause__


def _name(process: CoroRef) -> str:
    return f"{process.name}/{process.pid}"


# ------------------------------------------------------------------ what travels


def _packed(found: Found, what: object) -> bytes:
    """The list of what was found; TooLarge where it is longer than any that is read."""
    packed = packed_files(file for file, _ in found)
    if len(packed) > MAX_LIST:
        raise TooLarge(f"{what}: the names of its {len(found)} files have {len(packed)} bytes; at most {MAX_LIST}. Pack them")
    return packed


def _files_in(incoming: Incoming) -> list[Shipped]:
    """The files that are to be taken, under the names that they get here."""
    if len(incoming.body) != 1:
        raise ProtocolError(f"{incoming.verb} without a list of files")
    files, below = unpacked_files(incoming.body[0]), _text(incoming, "dir")
    return [file._replace(name=checked_name(f"{below}/{file.name}")) for file in files] if below else files


def _offered(answer: Answer, base: str) -> list[Shipped]:
    """The files that a peer offers; ProtocolError where they are not what it was asked for."""
    if len(answer.body) != 1:
        raise ProtocolError("fetch was answered without a list of files")
    files = unpacked_files(answer.body[0])
    for file in files:
        if file.name != base and not file.name.startswith(f"{base}/"):
            raise ProtocolError(f"{base} was to be fetched, and {file.name} is offered")
    if not files:
        raise TransferFailed(f"{base} has no files in it")
    return files


def _key(incoming: Incoming) -> Key:
    number = incoming.arguments.get("number")
    if type(number) is not int:
        raise ProtocolError(f"{incoming.verb} without a number")
    return incoming.peer.birth, number


def _text(incoming: Incoming, key: str) -> str:
    text = incoming.arguments.get(key)
    if not isinstance(text, str):
        raise ProtocolError(f"{incoming.verb} without {key}")
    return text
