"""Files on disk: what they are called, what they hold, and how one gets its place in a directory.

`place` puts a blob under a name inside a directory and nowhere else: names that would leave it are refused, links are
replaced, never followed. What is received lies in a `Store` (store.py) first. Nothing here knows links or coroutines.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from discoro import packing
from discoro.blobs import PIECE, Blob, blob_of, checked_blob, piece_digest
from discoro.errors import ConfigError, DestPathError, ProtocolError, TransferFailed
from discoro.messages import MAX_NAME, MIB, Part

MAX_FILES = 100_000  # of one computation, or one directory that is sent
MAX_LIST = 32 * MIB  # bytes of a list of files: so many, with long names
LINKED = 1 * MIB  # bytes from which on a file is not copied to its place, but linked there
RACY = 2.0  # seconds after a change in which another one may leave no trace in the time of the file
How = Literal["linked", "copied", "moved"]  # what becomes of a content that is put in its place
HASHERS = min(4, os.cpu_count() or 1)  # threads that take the digest of one file: more than a disk can read


class Shipped(NamedTuple):
    """A file of a computation: the name it gets (relative, with /), its content, and whether it is executable."""

    name: str
    blob: Blob
    executable: bool

    def to_plain(self) -> list[Any]:
        """The file as plain values; `unpacked_files` reads a list of them."""
        return [self.name, self.blob.digest, self.blob.size, self.executable]


Contents = frozenset[tuple[str, str]]  # names and digests


def units(files: Iterable[Shipped]) -> dict[str, Contents]:
    """What stands for one thing, and cannot be mixed with another of its name: a file, a module, a whole package."""
    found: dict[str, set[tuple[str, str]]] = {}
    for file in files:
        found.setdefault(file.name.partition("/")[0], set()).add((file.name, file.blob.digest))
    return {name: frozenset(content) for name, content in found.items()}


def packed_files(files: Iterable[Shipped]) -> bytes:
    """A list of files as one part of a body."""
    return packing.pack([file.to_plain() for file in files])


def unpacked_files(part: Part) -> list[Shipped]:
    """The list that `packed_files` made; ProtocolError for what is none, or has a name that leaves its directory."""
    files = []
    for each in packing.unpack_rows(part, MAX_LIST, MAX_FILES, 4):
        match each:
            case [str(name), digest, size, bool(executable)]:
                files.append(Shipped(checked_name(name), checked_blob(digest, size), executable))
            case _:
                raise ProtocolError("a file without name, digest, size and mode")
    return files


def checked_name(name: str) -> str:
    """A relative name with / that stays below its directory on every system; ProtocolError otherwise."""
    parts = name.split("/")
    odd = any(c in '\\:*?"<>|' or ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name)
    if odd or any(part in ("", ".", "..") or part.endswith((" ", ".")) for part in parts):
        raise ProtocolError(f"the file name {name!r:.80} could leave its directory, or is no name everywhere")
    if len(name.encode()) > 4 * MAX_NAME:
        raise ProtocolError(f"the file name {name!r:.80} has more than {4 * MAX_NAME} bytes")
    return name


# ------------------------------------------------------------------ what a file holds


class Source(NamedTuple):
    """A file as it was when its digest was taken; `read_piece` sees whether it still is."""

    path: Path
    blob: Blob
    changed: int  # nanoseconds, as the file system has it
    inode: int

    def read_piece(self, index: int) -> bytes:
        """The bytes of that piece; ConfigError where the file has changed, or cannot be read any more."""
        try:
            with open(self.path, "rb") as file:
                is_same = _signature(os.fstat(file.fileno())) == (self.blob.size, self.changed, self.inode)
                data = os.pread(file.fileno(), self.blob.length(index), index * PIECE)
        except OSError as error:
            raise ConfigError(f"the file {self.path} cannot be read any more: {error.strerror}") from error
        if not is_same or len(data) != self.blob.length(index):
            raise ConfigError(f"the file {self.path} was changed while it was sent: send it again")
        return data


def _signature(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ino


def measure(path: Path, name: str) -> tuple[Shipped, Source]:
    """The file at `path` as it will travel under `name`, and where to read it.

    Raises ConfigError where it cannot be read, is no ordinary file, or cannot have that name.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path} is neither a file nor a directory: a device, a pipe or a socket cannot be sent")
        blob = _blob(path, found)
        return Shipped(checked_name(name), blob, os.access(path, os.X_OK)), Source(path, blob, *_signature(found)[1:])
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror}. Check the path") from error
    except ProtocolError as error:
        raise ConfigError(f"{error}. Rename {path}") from None


def _blob(path: Path, found: os.stat_result) -> Blob:
    """Its blob; of a large file that has not changed for a while the digest is taken once, however often it is sent."""
    is_settled = time.time() - found.st_mtime > RACY
    take = _kept_digest if found.st_size >= PIECE and is_settled else _digest
    return take(path, *_signature(found))


_given_up: ContextVar[threading.Event | None] = ContextVar("_given_up", default=None)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives that measures files, called in a thread.

    Whoever gives that up has the thread end at the next piece: a program waits for its threads, and must not wait, after
    Ctrl-C, for the digest of gigabytes.
    """
    stopped = threading.Event()
    token = _given_up.set(stopped)
    try:
        return await asyncio.to_thread(function, *args)
    finally:
        stopped.set()
        _given_up.reset(token)


def _digest(path: Path, size: int, changed: int, inode: int) -> Blob:
    stopped = _given_up.get()

    def piece(index: int) -> bytes:
        if stopped is not None and stopped.is_set():
            raise CancelledError  # for nobody: who waited has gone
        return piece_digest(os.pread(descriptor, min(PIECE, size - index * PIECE), index * PIECE))

    indices = range(-(-size // PIECE))
    with open(path, "rb") as file:
        descriptor = file.fileno()
        if len(indices) <= HASHERS:
            return blob_of(size, [piece(index) for index in indices])
        with ThreadPoolExecutor(HASHERS) as threads:
            return blob_of(size, list(threads.map(piece, indices)))


_kept_digest = functools.lru_cache(maxsize=1000)(_digest)


# ------------------------------------------------------------------ directories, and what is placed there


def private_directory(path: Path) -> Path:
    """The directory, made (mode 0700) where it is missing; DestPathError where files cannot be written there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".writable-{secrets.token_hex(8)}"
        probe.touch(0o600)
        probe.unlink()
    except OSError as error:
        raise DestPathError(
            f"the directory {path} cannot be written: {error.strerror}. Choose another with --dest_path"
        ) from error
    return path


def place(content: Path, shipped: Shipped, directory: Path, how: How = "linked") -> Path:
    """Put that content under its name in `directory`, replacing what is there. TransferFailed where it cannot be written.

    A large file that is "linked" is the content itself under a second name, read-only: all who have it share the disk, and
    none may spoil it. "moved" is for a content that nobody else needs.
    """
    target = directory.joinpath(*PurePosixPath(shipped.name).parts)
    aside = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        _make_parents(directory, target)
        may_link = how == "linked" and shipped.blob.size >= LINKED and not shipped.executable
        if not (may_link and _linked(content, aside)):
            (shutil.move if how == "moved" else shutil.copyfile)(content, aside)
            os.chmod(aside, 0o700 if shipped.executable else 0o600)
        os.replace(aside, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise TransferFailed(f"{shipped.name} could not be written in {directory}: {error.strerror}") from error
    return target


def _linked(content: Path, aside: Path) -> bool:
    try:
        os.link(content, aside)
    except OSError:  # another file system, or one without links
        return False
    return True


def remove_files(files: Iterable[Path], directory: Path) -> None:
    """Remove these files, what Python compiled of them, and the directories below `directory` that this leaves empty."""
    for path in files:
        for each in (path, *compiled(path)):
            with contextlib.suppress(OSError):  # gone already, which is fine
                each.unlink()
            remove_empty(each.parent, directory)


def compiled(path: Path) -> Iterator[Path]:
    """What importing a source file leaves beside it."""
    if path.suffix == ".py":
        yield Path(importlib.util.cache_from_source(str(path)))


def remove_empty(below: Path, directory: Path) -> None:
    """Remove that directory and those above it, up to `directory`, as long as they are empty."""
    while directory in below.parents:
        with contextlib.suppress(OSError):
            below.rmdir()
        below = below.parent


def _make_parents(directory: Path, target: Path) -> None:
    """The directories between both, none of them through a link."""
    current = directory
    for part in target.relative_to(directory).parts[:-1]:
        current = current / part
        if current.is_symlink():
            raise OSError(0, f"{current} is a link")
        current.mkdir(mode=0o700, exist_ok=True)
