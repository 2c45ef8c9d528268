"""Files on disk: the blobs a process has received, and where they are put for computations.

The one module that writes received bytes. A blob is written aside and renamed once its digest holds: whole or absent. `place`
puts one under a name inside a directory and nowhere else: names that would leave it are refused, links are replaced, never
followed. It knows nothing of links or coroutines.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from discoro.blobs import Blob, Receiving, checked_blob, new_digest
from discoro.errors import ConfigError, DestPathError, ProtocolError, SetupFailed, TooLarge
from discoro.messages import MAX_NAME, Part

MAX_FILES = 4000  # of one computation: they are listed in the header of one frame
MAX_OPEN = 64  # blobs being received at once
_READ = 1 << 20


class Shipped(NamedTuple):
    """A file of a computation: the name it gets (relative, with /), its content, and whether it is executable."""

    name: str
    blob: Blob
    executable: bool

    def to_plain(self) -> list[Any]:
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
    bad = any(part in ("", ".", "..") for part in parts) or any(c in '\\:*?"<>|' or ord(c) < 32 for c in name)
    if bad or len(name.encode("utf-8", "surrogatepass")) > 4 * MAX_NAME or any(part.endswith((" ", ".")) for part in parts):
        raise ProtocolError(f"file name {name!r:.80} could leave the directory of its computation, or is no name everywhere")
    return name


def measure(path: Path, name: str, limit: int) -> Shipped:
    """The file at `path` as it will travel; ConfigError where it cannot be read, TooLarge past `limit` bytes (0: no limit)."""
    try:
        size = path.stat().st_size
        if limit and size > limit:
            raise TooLarge(f"{path} has {size} bytes; at most {limit} are allowed (--max_file_size)")
        digest = new_digest()
        with open(path, "rb") as file:
            while data := file.read(_READ):
                digest.update(data)
            return Shipped(checked_name(name), Blob(digest.hexdigest(), file.tell()), os.access(path, os.X_OK))
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror}. Check the path in depends") from error


def private_directory(path: Path) -> Path:
    """The directory, made (mode 0700) where it is missing; DestPathError where files cannot be written there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".writable-{secrets.token_hex(8)}"
        probe.touch(0o600)
        probe.unlink()
    except OSError as error:
        raise DestPathError(f"the directory {path} cannot be written: {error.strerror}. Choose another with --dest_path") from error
    return path


class Store:
    """The blobs in one directory. `max_file_size` in bytes, 0: no limit."""

    def __init__(self, directory: Path, max_file_size: int = 0) -> None:
        self._directory = private_directory(directory)
        self._limit = max_file_size
        self._open: dict[str, Receiving] = {}

    def path(self, blob: Blob) -> Path:
        return self._directory / blob.digest

    def _aside(self, blob: Blob) -> Path:
        return self._directory / f"{blob.digest}.part"

    def has(self, blob: Blob) -> bool:
        path = self.path(blob)
        return path.is_file() and path.stat().st_size == blob.size

    def offer(self, blobs: Iterable[Blob]) -> list[list[Any]]:
        """Which of these are wanted, as [digest, from which byte]; TooLarge for one past the limit."""
        wanted: list[list[Any]] = []
        for blob in dict.fromkeys(blobs):
            if self._limit and blob.size > self._limit:
                raise TooLarge(f"a file of {blob.size} bytes; this node takes at most {self._limit} (--max_file_size)")
            if not self.has(blob):
                wanted.append([blob.digest, self._begin(blob)])
        return wanted

    def _begin(self, blob: Blob) -> int:
        """Open a blob for receiving, after what an earlier transfer left of it."""
        if blob.size == 0:
            self.path(blob).touch(0o600)
            return 0
        if blob.digest not in self._open:
            if len(self._open) >= MAX_OPEN * 64:
                raise TooLarge(f"{len(self._open)} files are being received here, and no more are taken")
            self._open[blob.digest] = self._resumed(blob)
        return self._open[blob.digest].received

    def _resumed(self, blob: Blob) -> Receiving:
        aside, digest, received = self._aside(blob), new_digest(), 0
        if aside.is_file() and not aside.is_symlink():
            with open(aside, "rb") as file:
                while data := file.read(_READ):
                    digest.update(data)
                received = file.tell()
        if received >= blob.size:
            aside.unlink()
            return Receiving(blob)
        return Receiving(blob, received, digest)

    def take(self, digest: str, offset: int, data: Part) -> bool:
        """Write one chunk; whether the blob is now whole. ProtocolError for bytes that do not fit or lie about the digest."""
        receiving = self._open.get(digest)
        if receiving is None:
            raise ProtocolError(f"a chunk of file {digest:.12}, which was not offered")
        aside = self._aside(receiving.blob)
        try:
            receiving.take(offset, data)
            self._write(aside, offset, data)
        except (ProtocolError, OSError) as error:
            self._drop(digest, aside)
            if isinstance(error, OSError):
                raise SetupFailed(f"a file could not be written in {self._directory}: {error.strerror}") from None
            raise
        if receiving.done:
            os.replace(aside, self.path(receiving.blob))
            del self._open[digest]
        return receiving.done

    @staticmethod
    def _write(aside: Path, offset: int, data: Part) -> None:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.seek(offset)
            file.write(data)

    def _drop(self, digest: str, aside: Path) -> None:
        self._open.pop(digest, None)
        with contextlib.suppress(OSError):
            aside.unlink()

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


def remove_files(files: Iterable[Path], directory: Path) -> None:
    """Remove these files and the directories below `directory` that they leave empty; what is gone already is fine."""
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink()
        for parent in path.parents:
            if parent == directory or directory not in parent.parents:
                break
            with contextlib.suppress(OSError):
                parent.rmdir()


def _make_parents(directory: Path, target: Path) -> None:
    """The directories between both, none of them through a link."""
    current = directory
    for part in target.relative_to(directory).parts[:-1]:
        current = current / part
        if current.is_symlink():
            raise OSError(0, f"{current} is a link")
        current.mkdir(mode=0o700, exist_ok=True)
