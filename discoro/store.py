"""The blobs in one directory: received piece by piece, kept while somebody refers to them, and for a while after.

A blob is written aside and renamed once its digest holds: whole or absent. `hold` and `release` count who refers to it; what
nobody refers to stays, up to a limit, so that a second run sends nothing again. Other processes of the machine may read the
same directory (a node's workers do); only the one that receives removes. It knows no links and no coroutines; `write` may be
called in any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from discoro.blobs import EMPTY, PIECE, Blob, Receiving, blob_of, piece_digest
from discoro.errors import ProtocolError, TooLarge, TransferFailed
from discoro.files import Source, private_directory
from discoro.messages import GIB, Part

UNUSED_BYTES = 1 * GIB  # of blobs that nobody refers to: what one tries again an hour later need not travel again
_WRITE = os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
SLOW = 64 << 20  # bytes from which on removing a file takes milliseconds, in which a node would answer nobody
BROKEN = 16  # transfers that broke, and may go on: each is as large as what came of it


class Store:
    """The blobs in one directory, and those on their way there. `max_file_size` in bytes, 0: no limit.

    Without `removes` the directory is another process's: what this one puts there is that one's to remove.
    """

    def __init__(self, directory: Path, max_file_size: int = 0, removes: bool = True) -> None:
        self._directory = private_directory(directory)
        self._limit = max_file_size
        self._removes = removes
        self._here: OrderedDict[Blob, int] = OrderedDict()  # of this process, the last used last: when written
        self._holders: dict[Hashable, set[Blob]] = {}
        self._broken: OrderedDict[Blob, Receiving] = OrderedDict()  # the latest last
        self._is_full = False  # the disk, as far as is known: then nothing is kept for later

    def __repr__(self) -> str:
        return f"<Store {self._directory} blobs={len(self._here)} holders={len(self._holders)} broken={len(self._broken)}>"

    @property
    def directory(self) -> Path:
        """Where the blobs lie; another Store there, even of another process, has the same ones."""
        return self._directory

    def path(self, blob: Blob) -> Path:
        """Where the blob lies, or will."""
        return self._directory / blob.digest

    def has(self, blob: Blob) -> bool:
        """Whether the blob is here, whole; one that somebody has written to since it came is not, and goes."""
        if blob == EMPTY and not self.path(blob).exists():
            self.path(blob).touch(0o400)
        try:
            found = self.path(blob).stat()
        except OSError:
            self._here.pop(blob, None)
            return False
        is_as_it_came = self._here.get(blob, found.st_mtime_ns) == found.st_mtime_ns
        if found.st_size != blob.size or not is_as_it_came:
            if blob in self._here:  # and not a digest that somebody named with another size
                self._forget(blob)
            return False
        if self._removes:  # one that another process put here as well
            self._here[blob] = found.st_mtime_ns
            self._here.move_to_end(blob)
        return True

    def source(self, blob: Blob) -> Source:
        """Where to read a blob that is here."""
        found = self.path(blob).stat()
        return Source(self.path(blob), blob, found.st_mtime_ns, found.st_ino)

    # -------------------------------------------------------------- who refers to it

    def hold(self, holder: Hashable, blobs: Iterable[Blob]) -> None:
        """That one refers to these blobs, from before they are here: they stay until it has released them."""
        self._holders.setdefault(holder, set()).update(blobs)

    def hold_only(self, holder: Hashable, blobs: Iterable[Blob]) -> None:
        """It refers to these blobs from now on, and to no others."""
        self._holders[holder] = set(blobs)
        self._make_room(0 if self._is_full else UNUSED_BYTES)

    def release(self, holder: Hashable, blobs: Iterable[Blob] | None = None) -> None:
        """It refers to these no more; None: to nothing."""
        left = self._holders.pop(holder, set())
        if blobs is not None and left.difference(blobs):
            self._holders[holder] = left.difference(blobs)
        if left:
            self._make_room(0 if self._is_full else UNUSED_BYTES)

    def is_held(self, blob: Blob) -> bool:
        """Whether somebody refers to it."""
        return any(blob in held for held in self._holders.values())

    def give(self, blob: Blob, holder: Hashable) -> Path | None:
        """The content of a blob, which is not in the store any more; None where not only that holder may use it."""
        others = any(blob in held for each, held in self._holders.items() if each != holder)
        path = self.path(blob)
        given = path.with_name(f"{blob.digest}-{os.urandom(8).hex()}.part")
        try:
            if others or path.stat().st_nlink > 1:  # which stands in its place already somewhere
                return None
            path.rename(given)
        except OSError:
            return None
        self._here.pop(blob, None)
        return given

    def _make_room(self, kept: int) -> None:
        """Remove what nobody refers to, beyond so many bytes for later; with 0, also what is there of transfers that broke."""
        if not kept:
            self._give_up_broken(0)
        held = set().union(*self._holders.values())
        unused = [blob for blob in self._here if blob not in held]
        size = sum(blob.size for blob in unused)
        for blob in unused:
            if size <= kept:
                return
            size -= blob.size
            self._forget(blob)

    def _forget(self, blob: Blob) -> None:
        self._here.pop(blob, None)
        if not self._removes:
            return
        with contextlib.suppress(OSError):
            if blob.size < SLOW:
                self.path(blob).unlink()
            else:
                gone = self.path(blob).with_suffix(f".{os.urandom(8).hex()}.gone")
                self.path(blob).rename(gone)
                threading.Thread(target=_remove, args=(gone,), name="discoro removes a blob").start()

    # -------------------------------------------------------------- what comes in

    def check(self, blob: Blob) -> None:
        """TooLarge for one past the limit."""
        if self._limit and blob.size > self._limit:
            raise TooLarge(f"{blob.size} bytes; at most {self._limit} of a file are taken here (--max_file_size)")

    def begin(self, blob: Blob) -> Receiving:
        """How far it has come, in a transfer that broke before, or not at all. Raises TooLarge, TransferFailed."""
        self.check(blob)
        broken = self._broken.pop(blob, None)
        if broken is not None and self._aside(blob).is_file():
            return broken
        try:
            if self._lacks_room(blob):
                self._make_room(0)
            self._is_full = self._lacks_room(blob)
            with contextlib.suppress(FileNotFoundError):
                self._aside(blob).unlink()
            os.close(os.open(self._aside(blob), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise self._failed(blob, error) from error
        return Receiving(blob)

    def _lacks_room(self, blob: Blob) -> bool:
        return shutil.disk_usage(self._directory).free < blob.size

    def take_room(self, blob: Blob) -> None:
        """Have the disk keep room for one that was begun, in whatever thread. TransferFailed where it has not got it."""
        if blob.size < PIECE:
            return
        try:
            descriptor = os.open(self._aside(blob), _WRITE)
            try:
                _take_room(descriptor, blob.size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failed(blob, error) from error

    def write(self, blob: Blob, index: int, data: Sequence[Part]) -> bytes:
        """Write one piece, given in parts, in whatever thread; its digest. TransferFailed where the disk is full, or fails."""
        try:
            descriptor = os.open(self._aside(blob), _WRITE)
            try:
                _write_all(descriptor, [memoryview(part).cast("B") for part in data], index * PIECE)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failed(blob, error) from error
        return piece_digest(*data)

    def finish(self, receiving: Receiving) -> None:
        """All of it came. ProtocolError, and nothing of it stays, where that is not what was named; TransferFailed."""
        blob = receiving.blob
        if not receiving.verified:
            self._drop(blob)
            raise ProtocolError(f"file {blob.digest:.12} of {blob.size} bytes: what came has another digest")
        self._settle(blob, self._aside(blob))

    def pause(self, receiving: Receiving) -> None:
        """The transfer broke, and may go on later; of many such, the oldest is given up."""
        if not receiving.received:
            self._drop(receiving.blob)
        elif self._aside(receiving.blob).exists():
            with contextlib.suppress(OSError):  # the room that was taken for the rest is for others meanwhile
                os.truncate(self._aside(receiving.blob), receiving.end)
            self._broken[receiving.blob] = receiving
        self._give_up_broken(0 if self._is_full else BROKEN)

    def _give_up_broken(self, kept: int) -> None:
        while len(self._broken) > kept:
            blob, _ = self._broken.popitem(last=False)
            self._drop(blob)

    def put(self, parts: Sequence[Part]) -> Blob:
        """The blob of these bytes, which are written here in a row. In whatever thread; `keep` it then. TransferFailed."""
        aside = self._directory / f"new-{id(parts):x}-{os.urandom(8).hex()}.part"
        digests, size = [], 0
        try:
            with open(aside, "xb") as file:
                _take_room(file.fileno(), sum(memoryview(part).nbytes for part in parts))
                for piece in _pieces(parts):
                    file.write(piece)
                    digests.append(piece_digest(piece))
                    size += memoryview(piece).nbytes
            blob = blob_of(size, digests)
            os.replace(aside, self._put(blob))
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise TransferFailed(f"{size} bytes could not be written in {self._directory}: {error.strerror}") from error
        return blob

    def keep(self, blob: Blob) -> None:
        """What `put` has written is here. TransferFailed."""
        if self.has(blob):
            self._put(blob).unlink(missing_ok=True)  # others have links to the one that was here first
        else:
            self._settle(blob, self._put(blob))

    # -------------------------------------------------------------- parts

    def _aside(self, blob: Blob) -> Path:
        return self._directory / f"{blob.digest}.part"

    def _put(self, blob: Blob) -> Path:
        return self._directory / f"{blob.digest}.put"  # beside one that comes from elsewhere meanwhile

    def _settle(self, blob: Blob, written: Path) -> None:
        try:
            os.chmod(written, 0o400)  # it will be linked to other places: nobody writes to it there
            os.replace(written, self.path(blob))
            if self._removes:
                self._here[blob] = self.path(blob).stat().st_mtime_ns
        except OSError as error:
            raise self._failed(blob, error) from error
        if not self.is_held(blob):  # who holds it makes room later: a look at everything for each of many files takes long
            self._make_room(UNUSED_BYTES)

    def _failed(self, blob: Blob, error: OSError) -> TransferFailed:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._is_full = True  # what else came with it goes when it is released
        self._drop(blob)
        return TransferFailed(f"{blob.size} bytes could not be written in {self._directory}: {error.strerror}")

    def _drop(self, blob: Blob) -> None:
        with contextlib.suppress(OSError):
            self._aside(blob).unlink()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _take_room(descriptor: int, size: int) -> None:
    """A full disk is known before the first byte comes, and a mapped file never has a hole that cannot be filled."""
    if size < PIECE:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


def _write_all(descriptor: int, views: list[memoryview], at: int) -> None:
    for view in views:
        while view.nbytes:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written


def _pieces(parts: Sequence[Part]) -> Iterable[Part]:
    """The bytes of all parts in a row, in pieces; copied only where a piece has several parts in it."""
    begun = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        while view.nbytes:
            if not begun and view.nbytes >= PIECE:
                yield view[:PIECE]
                view = view[PIECE:]
                continue
            take = PIECE - len(begun)
            begun += view[:take]
            view = view[take:]
            if len(begun) == PIECE:
                yield bytes(begun)
                begun.clear()
    if begun:
        yield bytes(begun)
