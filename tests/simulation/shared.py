"""What coroutines of several processes share on the stage: a queue and a channel of every process, names, and files.

An `Actor` takes a step of these by `perform`; what came of it is written down as of any other call. The items of queues and
what channels carry are numbers of their own, so that each is known wherever it turns up.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import discoro
from discoro.coro import Coro
from discoro.mesh import Mesh
from discoro.references import current_host
from tests.simulation import programs
from tests.simulation.promises import Event, Home, InQueue, Published, Spoilt, Who

QUEUE = 2  # items: as few as make most of those who put wait
Step = programs.Put | programs.Get | programs.Subscribe | programs.Publish | programs.Register | programs.Locate | programs.File


class News(NamedTuple):
    """What a channel carries."""

    channel: Home
    by: Who
    number: int


class Shop:
    """The queue and the channel of one life of a process, and its directory for files. To be made in its context."""

    def __init__(self, mesh: Mesh, home: Home, directory: Path) -> None:
        self.home = home
        self.directory = directory
        token = current_host.set(mesh)
        try:
            self.queue = discoro.Queue(QUEUE, f"queue-{home}")
            self.channel = discoro.Channel(f"channel-{home}")
        finally:
            current_host.reset(token)
        self.services = mesh.coros()

    def look(self, now: float) -> list[Event]:
        """What is in the queue and in the directory at the end."""
        line = next(coro.service for coro in self.services if coro.ref == self.queue.ref)
        left: list[Event] = [InQueue(now, self.home, item) for item in map(_opened, line._items)]  # type: ignore[union-attr]
        return left + [Spoilt(now, self.home, path.name) for path in files_in(self.directory) if not is_whole(path)]

    def close(self) -> None:
        """The coroutines of queue and channel are terminated."""
        for coro in self.services:
            coro.stop("terminated")


def _opened(item: Any) -> int:
    number: int = item.content if item.size < 0 else discoro.payload.unpack(item.content)
    return number


# ------------------------------------------------------------------ files: what is in one follows from its name


class Disk:
    """Directories in memory for all processes of a stage, and the files that are sent."""

    def __init__(self) -> None:
        self._root: Path | None = None

    @property
    def root(self) -> Path:
        """Made when it is first wanted: most programs send no file."""
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="discoro-simulation-"))
        return self._root

    def file(self, number: int, size: int) -> Path:
        """A file of so many bytes to send."""
        path = self.root / "sent" / f"{number}-{size}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(number, size))
        return path

    def remove(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root)


def content(number: int, size: int) -> bytes:
    """Different in every file, and at every place of it."""
    return b"".join(b"%d %d\n".ljust(4096) % (number, place) for place in range(0, size + 1, 4096))[:size]


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_file()] if directory.is_dir() else []


def is_whole(path: Path) -> bool:
    number, size = map(int, path.name.split("-"))
    return path.read_bytes() == content(number, size)


# ------------------------------------------------------------------ steps


class Taker(Protocol):
    """What this needs of an actor."""

    who: Who
    coro: Coro
    stage: Any
    life: Any

    @property
    def now(self) -> float: ...
    def write(self, event: Event) -> None: ...
    async def call(
        self, verb: str, to: Who, timeout: float | None, work: Callable[[], Awaitable[Any]], tag: None = None, number: int = 0
    ) -> None: ...


async def perform(actor: Taker, step: Step) -> None:
    """Take one of the steps above."""
    stage, number = actor.stage, next(actor.stage.goods)
    if isinstance(step, programs.Register):
        await actor.call("register", actor.who, None, lambda: actor.coro.register(f"name-{step.name}"), number=step.name)
        return
    if isinstance(step, programs.Locate):
        await actor.call("locate", actor.who, step.timeout, lambda: _located(stage, step), number=step.name)
        return
    life = stage.life(step.process)
    there, shop = Who(*life.home, 0), life.shop
    match step:
        case programs.Put(_, _, timeout):
            await actor.call("put", there, timeout, lambda: shop.queue.put(number, timeout), number=number)
        case programs.Get(_, _, timeout):
            await actor.call("get", there, timeout, lambda: shop.queue.get(timeout))
        case programs.Subscribe(_, _, holds):
            verb = shop.channel.subscribe if holds else shop.channel.unsubscribe
            await actor.call("subscribe" if holds else "unsubscribe", there, None, lambda: verb(actor.coro))
        case programs.Publish(_, _, timeout):
            actor.write(Published(actor.now, actor.who, life.home, number))
            news = News(life.home, actor.who, number)
            await actor.call("publish", there, timeout, lambda: shop.channel.deliver(news, timeout), number=number)
        case programs.File(_, _, size, timeout):
            path = stage.disk.file(number, size)
            mesh, to = actor.life.mesh, life.server.ref
            await actor.call("file", there, timeout, lambda: mesh.send_file(to, path, timeout=timeout), number=number)
            if life.up and (shop.directory / path.name).exists() and not is_whole(shop.directory / path.name):
                actor.write(Spoilt(actor.now, life.home, path.name))


async def _located(stage: Any, step: programs.Locate) -> Who:
    who: Who = stage.whose(await Coro.locate(f"name-{step.name}", timeout=step.timeout))
    return who
