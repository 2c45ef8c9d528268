"""What of a directory travels: everything but what others make from it, what `.discoroignore` names, and circles of links.

It only looks, and opens no file but `.discoroignore`. What it cannot take along and was not told to leave out is an error, so
that nothing is missing at the other side without a word.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from discoro.errors import ConfigError

IGNORE_FILE = ".discoroignore"
LEFT_OUT = frozenset(
    "__pycache__ .git .hg .svn node_modules .venv venv "
    ".tox .nox .mypy_cache .pytest_cache .ruff_cache .ipynb_checkpoints".split()
)
_ENDINGS = (".pyc", ".egg-info")
_LOCK = ".#"  # Emacs marks a file that is edited by such a link, which leads nowhere
_MARKS = {"pyvenv.cfg", "CACHEDIR.TAG"}  # in a virtual environment of any name (PEP 405), in a cache (bford.info/cachedir)

Ignored = Callable[[str, bool], bool]  # the path below the tree's top, with /; whether it is a directory


def tree(directory: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The files below a directory, as (name at the worker, which begins with `name/`, where it is here), in order.

    Links are followed, but not into a directory that the path is in already. Raises ConfigError for what is neither file nor
    directory, a link that leads nowhere, a directory that cannot be read, and a `.discoroignore` that cannot be used.
    """
    ignored = ignored_by(directory / IGNORE_FILE)
    todo = [(os.fspath(directory), "", frozenset[str]())]
    while todo:
        where, below, above = todo.pop()
        inside = above | {os.path.realpath(where)}
        entries = _entries(where)
        if below and not _MARKS.isdisjoint(entry.name for entry in entries):
            continue
        directories = []
        for entry in entries:
            path = below + entry.name
            is_directory = _is_directory(entry)
            if _left_out(entry.name) or ignored(path, is_directory):
                continue
            if is_directory:
                if not entry.is_symlink() or os.path.realpath(entry.path) not in inside:
                    directories.append((entry.path, f"{path}/", inside))
            else:
                yield f"{name}/{path}", _checked(entry)
        todo += reversed(directories)


def _entries(where: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(where) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"the directory {where} (to be sent) cannot be read: {error.strerror}") from error


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself, or to where we may not look
        raise ConfigError(f"{entry.path} cannot be read: {error.strerror}") from error


def _left_out(name: str) -> bool:
    return name in LEFT_OUT or name.endswith(_ENDINGS) or name.startswith(_LOCK)


def _checked(entry: os.DirEntry[str]) -> Path:
    if entry.is_file():
        return Path(entry.path)
    cure = f"remove it, or name it in {IGNORE_FILE}"
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise ConfigError(f"the link {entry.path} leads to {os.readlink(entry.path)}, where nothing is: {cure}")
    raise ConfigError(f"{entry.path} is neither a file nor a directory, and cannot be sent: {cure}")


# ------------------------------------------------------------------ .discoroignore


def ignored_by(file: Path) -> Ignored:
    """What the lines of a `.discoroignore` leave out; nothing where there is no such file.

    A line is a pattern of fnmatch (`*`, `?`, `[…]`; `*` matches `/` too). With a `/` in it, or at its beginning, it is held
    against the path from the directory of the `.discoroignore`, otherwise against the name at any depth. One that ends with `/`
    is about directories only. What is below a directory left out is left out. Lines that are empty or begin with `#` mean
    nothing. Raises ConfigError for a line with `!`, which would take something in again, and for a file that is no text.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return lambda path, is_directory: False
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    patterns = [line for line in lines if line and not line.startswith("#")]
    for pattern in patterns:
        if pattern.startswith("!"):
            raise ConfigError(f"{file}: {pattern!r:.80} would take something in again: lines only leave out")
    return lambda path, is_directory: any(_matches(path, is_directory, pattern) for pattern in patterns)


def _matches(path: str, is_directory: bool, pattern: str) -> bool:
    if pattern.endswith("/"):
        if not is_directory:
            return False
        pattern = pattern[:-1]
    if "/" in pattern:
        return fnmatchcase(path, pattern.removeprefix("/"))
    return fnmatchcase(path.rpartition("/")[2], pattern)
