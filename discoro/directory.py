"""Directories that belong to one process, and are gone with it: a node's below its `dest_path`, and a client's.

    dest_path/node-3f2a…/lock       held for as long as the node lives, however it ends; on a network file system too
    dest_path/node-3f2a…/blobs/     what was received
    dest_path/node-3f2a…/worker-…/  the current directory of one worker, where the files of its computations lie

Files of computations that asked to keep theirs (`cleanup=False`) stay where they are. Nothing here knows what is in the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from discoro.errors import DestPathError
from discoro.files import private_directory

log = logging.getLogger("discoro.directory")

LOCK = "lock"
KEPT = ".kept"  # marks the directory of a worker whose files stay


class NodeDirectory:
    """A directory of this node alone, made at once; what nodes that were killed left below `dest_path` goes.

    Raises DestPathError where `dest_path` cannot be made, written or locked.
    """

    def __init__(self, dest_path: Path) -> None:
        dest_path = private_directory(dest_path.absolute())
        for left in dest_path.glob("node-*"):
            _remove_left(left)
        name = secrets.token_hex(6)
        new = dest_path / f"new-{name}"  # it gets its name once it is locked: until then nobody takes it for left over
        self.path = dest_path / f"node-{name}"
        self.blobs = self.path / "blobs"
        try:
            new.mkdir(mode=0o700)
            self._lock = _locked(new / LOCK)
            new.rename(self.path)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise DestPathError(f"no directory could be made and locked in {dest_path}: {error.strerror}. {_OTHER}") from error

    def __repr__(self) -> str:
        return f"<NodeDirectory {self.path}>"

    def for_worker(self) -> Path:
        """A new directory for a worker; OSError."""
        directory = self.path / f"worker-{secrets.token_hex(6)}"
        directory.mkdir(mode=0o700)
        return directory

    def remove(self) -> None:
        """Remove it, but for what is to be kept."""
        _empty(self.path)
        os.close(self._lock)


class ClientDirectory:
    """Where files that are sent to a client go, and beside them, while it lives, what comes in.

    Without a `dest_path` a new directory among the temporary ones, which stays if files are in it. DestPathError.
    """

    def __init__(self, dest_path: str | Path | None) -> None:
        self._is_temporary = dest_path is None
        if dest_path is None:
            self.files = Path(tempfile.mkdtemp(prefix="discoro-"))
        else:
            self.files = private_directory(Path(dest_path).absolute())
        self.blobs = self.files / f".discoro-{secrets.token_hex(6)}"

    def __repr__(self) -> str:
        return f"<ClientDirectory {self.files}>"

    def remove(self) -> None:
        """Remove what is still on its way, and the directory if it is temporary and empty."""
        shutil.rmtree(self.blobs, ignore_errors=True)
        if self._is_temporary:
            with contextlib.suppress(OSError):  # files are in it, which are the user's now
                self.files.rmdir()


def keep(directory: Path) -> None:
    """The files in this directory of a worker stay, if there are any. DestPathError where that cannot be noted down."""
    try:
        (directory / KEPT).touch(0o600)
    except OSError as error:
        raise DestPathError(f"no file can be kept in {directory}: {error.strerror}. {_OTHER}") from error


def remove_unless_kept(directory: Path) -> None:
    """Remove the directory of a worker that ended, whatever it left there."""
    if (directory / KEPT).exists() and len(os.listdir(directory)) > 1:  # else a setup that was to keep its files failed
        return
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():  # a directory without permissions in it, say
        log.warning("! %s could not be removed whole", directory)


_OTHER = "Choose another directory with --dest_path"


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of that file; BlockingIOError where another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_left(directory: Path) -> None:
    """Remove the directory of a node that was killed. One whose node lives is locked; one without a lock is kept files."""
    if not (directory / LOCK).exists():
        return
    with contextlib.suppress(OSError):  # it lives; or somebody else's, or another node was quicker
        lock = _locked(directory / LOCK)
        _empty(directory)
        os.close(lock)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory / "blobs", ignore_errors=True)
    for worker in directory.glob("worker-*"):
        remove_unless_kept(worker)
    with contextlib.suppress(OSError):
        (directory / LOCK).unlink()
        directory.rmdir()  # not where something is kept
