"""What a computation depends on: what its `depends` names, and what its code needs without being named.

It looks for files, and neither reads nor sends them. Its errors are for whoever wrote `depends`, and name what stands there.

How its parts play together. `taken` goes through `depends` once, when a computation is made, so that a mistake is told at once.
`gathered` adds what packed code refers to (modules.py), when the code is packed, and says which files the worker gets under
which names, and which packages it has to have.
"""

from __future__ import annotations

import inspect
import os
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

from discoro.errors import ConfigError
from discoro.files import MAX_FILES
from discoro.modules import EVERYWHERE, Referred, closure, files_of
from discoro.trees import tree


class Depends(NamedTuple):
    """What `depends` names: files by their names at the worker, functions and classes, and the modules whose imports count."""

    files: dict[str, Path]
    code: list[Any]
    modules: frozenset[str]


class Gathered(NamedTuple):
    """What goes along with a computation: files by their names at the worker; what must be installed there."""

    files: dict[str, Path]
    required: frozenset[str]


def taken(depends: Sequence[Any]) -> Depends:
    """Look at all that `depends` names: functions, classes, modules, and paths of files and directories.

    Files and directories get their base names; a module gets the name that it is imported by, and one in a package brings the
    whole package. Modules of the standard library are everywhere and bring nothing; installed ones are sent, as somebody wants
    them. Raises ConfigError for anything else, for a path that leads nowhere, for a module that has no file, for two files of
    one name, and for more than MAX_FILES files.
    """
    if isinstance(depends, str | os.PathLike):
        raise ConfigError(
            f"depends is a list of functions, classes, modules and paths; this is {depends!r:.60}, write [{depends!r:.60}]"
        )
    files: dict[str, Path] = {}
    for each in depends:
        if isinstance(each, str | os.PathLike):
            merge(files, _of_path(Path(each).absolute()))
        elif isinstance(each, types.ModuleType):
            merge(files, _of_module(each))
        elif not _is_code(each):
            raise ConfigError(f"depends takes functions, classes, modules and paths; this is {each!r:.80}")
    modules = frozenset(each.__name__ for each in depends if isinstance(each, types.ModuleType))
    return Depends(files, [each for each in depends if _is_code(each)], modules)


def gathered(depends: Depends, referred: Referred) -> Gathered:
    """All that goes along: what `depends` names, and the local modules that packed code and those modules need.

    It reads the sources of these, in a thread best. Raises ConfigError and TooLarge as `taken` and `modules.closure` do.
    """
    files = dict(depends.files)
    found = closure(Referred(names=referred.names | depends.modules, codes=referred.codes), named=importable(files))
    for each in found.files.values():
        merge(files, each.items())
    return Gathered(files, found.required - importable(files))


def importable(names: Iterable[str]) -> frozenset[str]:
    """The top-level names that can be imported where files of these names lie."""
    endings = (".py", *EXTENSION_SUFFIXES)
    return frozenset(top_of(name) for name in names if name.endswith(endings))


def top_of(name: str) -> str:
    """The top-level name that the file of that name is part of: helper for helper.py, and for helper/data/table.csv."""
    return name.partition("/")[0].partition(".")[0]


def merge(files: dict[str, Path], more: Iterable[tuple[str, Path]]) -> None:
    """Add files by name; ConfigError where a name would stand for two of them, or there are too many."""
    for name, path in more:
        there = files.setdefault(name, path)
        if there != path and not _is_same(there, path):
            raise ConfigError(f"{there} and {path} would both be {name}: files lie side by side, under their base names")
        if len(files) > MAX_FILES:
            raise ConfigError(f"depends has more than {MAX_FILES} files (the last was {path}): send an archive, or fewer")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one is gone, which whoever reads it will tell
        return False


def _is_code(each: Any) -> bool:
    return inspect.isroutine(each) or inspect.isclass(each)


def _of_path(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_dir():
        yield from tree(path, path.resolve().name)
    elif path.is_file():
        yield path.name, path
    elif path.exists():
        raise ConfigError(f"{path} (in depends) is neither a file nor a directory")
    else:
        raise ConfigError(f"no file {path} (in depends; the current directory is {os.getcwd()})")


def _of_module(module: types.ModuleType) -> Iterable[tuple[str, Path]]:
    """A module as the file that the worker imports; one in a package as its whole top-level package."""
    top = module.__name__.partition(".")[0]
    if top in sys.stdlib_module_names | EVERYWHERE:
        return ()
    files = files_of(top, vars(module if module.__name__ == top else sys.modules.get(top, module)))
    if not files:
        raise ConfigError(f"the module {module.__name__} has no file that could be sent: name its path, or what is in it")
    return files.items()
