"""Files below one directory, under names that other processes say: found, compared, written, removed, and nothing outside it.

A name is checked before it touches the disk. What is written or removed has no link on the way to it; what is read may, but
not one that leads out. Discoro's own files below the directory have no names here. Everything may block, and is called in
threads; what a directory holds elsewhere is no secret to programs of this machine, which are not what it guards against.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from discoro.errors import ConfigError, TransferFailed
from discoro.files import MAX_FILES, How, Shipped, Source, checked_name, measure, place, remove_empty
from discoro.trees import tree

Found = list[tuple[Shipped, Source]]

# What discoro itself keeps below the directory for files (directory.py), by the role of the process. A node removes what nodes
# that were killed have left: whoever could write such names could have it remove more.
_OWN = {
    "node": re.compile(r"node-.*|new-.*|\.discoro-.*", re.IGNORECASE),
    "client": re.compile(r"(node|new)-[0-9a-f]{12}|\.discoro-.*", re.IGNORECASE),
    "worker": re.compile(r"\.kept", re.IGNORECASE),
}
_NONE = re.compile(r"(?!)")


def contents(path: Path, check: Callable[[Path], object] = lambda path: None) -> Found:
    """The file, or all files of the directory that travel (trees.py), under the base name of `path`, and where to read each.

    `check` is called with the path of each before it is opened. Raises ConfigError for what cannot be read, has a name that is
    none everywhere, is neither file nor directory, holds no file, or too many.
    """
    is_directory = path.is_dir()
    found: Found = []
    for name, each in tree(path, path.name) if is_directory else [(path.name, path)]:
        if len(found) == MAX_FILES:
            raise ConfigError(f"the directory {path} has more than {MAX_FILES} files: send it in parts, or as an archive")
        check(each)
        found.append(measure(each, name))
    if not found:
        raise ConfigError(f"the directory {path} has no files in it that would travel")
    return found


class Inside:
    """The directory; `role` is that of the process whose directory for files it is, None for one that a user chose."""

    def __init__(self, directory: Path, role: str | None = None) -> None:
        self.directory = directory
        self._own = _OWN[role] if role else _NONE

    def __repr__(self) -> str:
        return f"<Inside {self.directory}>"

    # -------------------------------------------------------------- reading

    def contents(self, name: str) -> Found:
        """The file or directory of that name; see `contents`. TransferFailed where there is none, or it leads out."""
        path = self._path(name)
        if not os.path.lexists(path):
            raise TransferFailed(f"there is no {name} in {self.directory}")
        root = os.path.realpath(self.directory)

        def check(each: Path) -> None:
            real = os.path.realpath(each)
            if not real.startswith(os.path.join(root, "")):
                raise TransferFailed(f"{name}: {each} is a link that leads out of {self.directory}, which nobody may follow")
            self._not_own(os.path.relpath(real, root).replace(os.sep, "/"))

        try:
            check(path)
            return contents(path, check)
        except ConfigError as error:
            raise TransferFailed(str(error)) from error

    # -------------------------------------------------------------- writing

    def missing(self, files: Iterable[Shipped], overwrite: bool) -> list[Shipped]:
        """Those that are not here with just that content.

        TransferFailed where something else has the name: another content unless it is to be overwritten; a directory, or a
        link on the way, in any case.
        """
        free: set[Path] = set()  # directories that can be written through
        return [file for file in files if not self._has(file, overwrite, free)]

    def _has(self, file: Shipped, overwrite: bool, free: set[Path]) -> bool:
        target = self._target(file.name, free)
        try:
            found = os.lstat(target)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise TransferFailed(f"{file.name} cannot be written in {self.directory}: {error.strerror}") from error
        if stat.S_ISDIR(found.st_mode):
            raise TransferFailed(f"{file.name} cannot be written in {self.directory}: there is a directory of that name")
        if stat.S_ISREG(found.st_mode):
            there = self._there(target, file)
            if there is not None and there.blob == file.blob:
                return there.executable == file.executable
        if not overwrite:
            raise TransferFailed(f"{target} is another file, of {found.st_size} bytes; overwrite=True replaces it")
        return False

    def _there(self, target: Path, file: Shipped) -> Shipped | None:
        """What is there; None where that is certainly another content, or cannot be read."""
        try:
            return measure(target, file.name)[0] if target.stat().st_size == file.blob.size else None
        except (ConfigError, OSError):
            return None

    def _target(self, name: str, free: set[Path]) -> Path:
        """Where that name is written; TransferFailed where a link is on the way, or something that is no directory."""
        target = self._path(name)
        todo, above = [], target.parent
        while above != self.directory and above not in free:
            todo.append(above)
            above = above.parent
        for each in reversed(todo):
            with contextlib.suppress(FileNotFoundError):
                mode = os.lstat(each).st_mode
                if not stat.S_ISDIR(mode):
                    what = "a link, which nobody may follow" if stat.S_ISLNK(mode) else "no directory"
                    raise TransferFailed(f"{name} is not to be found in {self.directory}: {each} is {what}")
            free.add(each)
        return target

    def place(self, files: Sequence[tuple[Shipped, Path, How]], overwrite: bool, stopped: threading.Event) -> None:
        """Put each of these contents under its name; all, or nothing new where it fails. TransferFailed.

        Once `stopped` is set it takes back what is new, and gives up.
        """
        free: set[Path] = set()
        new: list[Path] = []
        try:
            for file, content, how in files:
                target = self._target(file.name, free)
                is_new = not os.path.lexists(target)
                if not is_new and not overwrite and self._has(file, overwrite, free):  # it came meanwhile
                    continue
                if is_new:
                    new.append(target)
                place(content, file, self.directory, how)
                if stopped.is_set():
                    raise TransferFailed(f"{file.name} was given up")
        except BaseException:  # whatever it was: all of the files or none
            for target in new:
                with contextlib.suppress(OSError):
                    target.unlink()
                remove_empty(target.parent, self.directory)
            raise

    # -------------------------------------------------------------- removing

    def remove(self, name: str) -> None:
        """Remove the file, the link or the directory of that name, and the directories above it that this leaves empty.

        TransferFailed where there is none, or it cannot be removed; a directory may then have lost some of its files.
        """
        target = self._target(name, set())
        try:
            if stat.S_ISDIR(os.lstat(target).st_mode):
                shutil.rmtree(target)  # which follows no links
            else:
                target.unlink()
        except FileNotFoundError:
            raise TransferFailed(f"there is no {name} in {self.directory}") from None
        except OSError as error:
            raise TransferFailed(f"{name} could not be removed from {self.directory}: {error.strerror}") from error
        remove_empty(target.parent, self.directory)

    # -------------------------------------------------------------- names

    def _path(self, name: str) -> Path:
        name = checked_name(name)
        self._not_own(name)
        return self.directory.joinpath(*PurePosixPath(name).parts)

    def _not_own(self, name: str) -> None:
        first = name.partition("/")[0]
        if self._own.fullmatch(first):
            raise TransferFailed(f"{first} in {self.directory} is discoro's own: no file of others has such a name")
