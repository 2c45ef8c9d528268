"""Files on disk: the blobs a process has received, and where they are put for computations.

The one module that writes received bytes. A blob is written aside and renamed once its digest holds: whole or absent. `place`
puts one under a name inside a directory and nowhere else: names that would leave it are refused, links are replaced, never
followed. It knows nothing of links or coroutines.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from discoro.blobs import Blob, Chunk, Receiving, checked_blob, new_digest
from discoro.errors import ConfigError, DestPathError, ProtocolError, SetupFailed, TooLarge
from discoro.messages import MAX_NAME, Part

MAX_FILES = 1000  # of one computation: their names and digests travel in one header (messages.MAX_FIELDS)
MAX_OPEN = 64  # blobs under way whose digest is kept in memory; one beyond it is read again from the disk
_READ = 1 << 20


class Shipped(NamedTuple):
    """A file of a computation: the name it gets (relative, with /), its content, and whether it is executable."""

    name: str
    blob: Blob
    executable: bool

    def to_plain(self) -> list[Any]:
        """The file as plain values, for the header of a frame; `checked_files` reads a list of them."""
        return [self.name, self.blob.digest, self.blob.size, self.executable]


def checked_files(values: Any) -> list[Shipped]:
    """The files that a peer lists; ProtocolError for a list that is none, or a name that leaves its directory."""
    if not isinstance(values, list) or len(values) > MAX_FILES:
        raise ProtocolError(f"not a list of at most {MAX_FILES} files")
    files = []
    for each in values:
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
        raise ProtocolError(
            f"the file name {name!r:.80} could leave the directory of its computation, or is no name everywhere"
        )
    if len(name.encode()) > 4 * MAX_NAME:
        raise ProtocolError(f"the file name {name!r:.80} has more than {4 * MAX_NAME} bytes")
    return name


def measure(path: Path, name: str) -> Shipped:
    """The file at `path` as it will travel under `name`; ConfigError where it cannot be read, or cannot have that name."""
    digest = new_digest()
    try:
        with open(path, "rb") as file:
            while data := file.read(_READ):
                digest.update(data)
            return Shipped(checked_name(name), Blob(digest.hexdigest(), file.tell()), os.access(path, os.X_OK))
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror}. Check the path in depends") from error
    except ProtocolError as error:
        raise ConfigError(f"{error}. Rename {path}") from None


def read_chunk(path: Path, chunk: Chunk) -> bytes:
    """That part of the file; ConfigError where it has changed since it was measured, so that the part is not there."""
    try:
        with open(path, "rb") as file:
            file.seek(chunk.offset)
            data = file.read(chunk.length)
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read any more: {error.strerror}") from error
    if len(data) != chunk.length:
        raise ConfigError(f"the file {path} became shorter while it was sent: call setup again")
    return data


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


class Store:
    """The blobs in one directory, and those on their way there. `max_file_size` in bytes, 0: no limit."""

    def __init__(self, directory: Path, max_file_size: int = 0) -> None:
        self._directory = private_directory(directory)
        self._limit = max_file_size
        self._open: OrderedDict[str, Receiving] = OrderedDict()  # the latest used last

    @property
    def directory(self) -> Path:
        """Where the blobs lie; another Store there, even of another process, has the same ones."""
        return self._directory

    def path(self, blob: Blob) -> Path:
        """Where the blob lies, or will."""
        return self._directory / blob.digest

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here, whole."""
        path = self.path(blob)
        return path.is_file() and path.stat().st_size == blob.size

    def missing(self, files: Iterable[Shipped]) -> list[str]:
        """The names of the files whose blob is not here."""
        return [file.name for file in files if not self.has(file.blob)]

    def offer(self, blobs: Iterable[Blob]) -> list[list[Any]]:
        """Which of these blobs are wanted, as [digest, from which byte]; TooLarge where one is past the limit."""
        wanted = []
        for blob in dict.fromkeys(blobs):
            self._check_size(blob)
            if blob.size == 0:
                self.path(blob).touch(0o600)
            elif not self.has(blob):
                wanted.append([blob.digest, self._receiving(blob).received])
        return wanted

    def _check_size(self, blob: Blob) -> None:
        if self._limit and blob.size > self._limit:
            raise TooLarge(f"at most {self._limit} bytes of a file are taken here (--max_file_size)")

    def take(self, blob: Blob, offset: int, data: Part) -> bool:
        """Write one chunk; whether the blob is now whole. ProtocolError for bytes that do not fit, or lie about the digest."""
        if self.has(blob):  # another sender was faster
            return True
        self._check_size(blob)
        receiving = self._receiving(blob)
        at = receiving.received
        self._write(receiving, at, receiving.take(offset, data))
        if not receiving.complete:
            return False
        if not receiving.verified:
            self._drop(blob)
            raise ProtocolError(f"file {blob.digest:.12} of {blob.size} bytes: what came has another digest")
        os.replace(self._aside(blob), self.path(blob))
        del self._open[blob.digest]
        return True

    def place(self, shipped: Shipped, directory: Path) -> Path:
        """A copy of a blob under its name in `directory`, replacing what is there. SetupFailed where it cannot be written."""
        target = directory.joinpath(*PurePosixPath(shipped.name).parts)
        aside = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            _make_parents(directory, target)
            shutil.copyfile(self.path(shipped.blob), aside)
            os.chmod(aside, 0o700 if shipped.executable else 0o600)
            os.replace(aside, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise SetupFailed(f"{shipped.name} could not be written in {directory}: {error.strerror}") from error
        return target

    # -------------------------------------------------------------- under way

    def _aside(self, blob: Blob) -> Path:
        return self._directory / f"{blob.digest}.part"

    def _receiving(self, blob: Blob) -> Receiving:
        """How far this blob has come, in this transfer or one that broke before."""
        receiving = self._open.get(blob.digest)
        if receiving is None or receiving.blob != blob:
            receiving = self._open[blob.digest] = self._resumed(blob)
        self._open.move_to_end(blob.digest)
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return receiving

    def _resumed(self, blob: Blob) -> Receiving:
        aside, digest, received = self._aside(blob), new_digest(), 0
        if aside.is_file() and not aside.is_symlink():
            with open(aside, "rb") as file:
                while data := file.read(_READ):
                    digest.update(data)
                received = file.tell()
        if received < blob.size:
            return Receiving(blob, received, digest)
        aside.unlink(missing_ok=True)  # a whole one would have been renamed: these are other bytes
        return Receiving(blob)

    def _write(self, receiving: Receiving, at: int, data: memoryview) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        try:
            descriptor = os.open(self._aside(receiving.blob), flags, 0o600)
            with open(descriptor, "wb") as file:
                file.seek(at)
                file.write(data)
        except OSError as error:
            self._drop(receiving.blob)
            raise SetupFailed(f"a file could not be written in {self._directory}: {error.strerror}") from error

    def _drop(self, blob: Blob) -> None:
        del self._open[blob.digest]
        with contextlib.suppress(OSError):
            self._aside(blob).unlink()


def remove_files(files: Iterable[Path], directory: Path) -> None:
    """Remove these files, what Python compiled of them, and the directories below `directory` that this leaves empty."""
    for path in files:
        for each in (path, *compiled(path)):
            with contextlib.suppress(OSError):  # gone already, which is fine
                each.unlink()
            _remove_empty(each.parent, directory)


def compiled(path: Path) -> Iterator[Path]:
    """What importing a source file leaves beside it."""
    if path.suffix == ".py":
        yield Path(importlib.util.cache_from_source(str(path)))


def _remove_empty(below: Path, directory: Path) -> None:
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
