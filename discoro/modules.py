"""Which modules are the user's own, and which of them code needs: found from what it names and imports.

It reads files, and never imports a module: what was not imported here is looked for as an import would, and left there. It
sends nothing. Its errors name the module, the file and the cure.

How its parts play together. Each module of this process is of one `Kind`. *Installed* ones every worker has, or can be given.
Those that travel *as files* were made from an ordinary file by Python's ordinary loader; the worker imports the same files. The
rest (`__main__`, notebooks, tests under pytest, zips) has no file that would make the same module, and its code goes by value.
`Referred` collects what packed code names, while it is packed. `closure` follows that through the files of local modules, whole
packages at a time, and says which files go along and which installed packages must be there.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import sys
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, NamespaceLoader, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from discoro.errors import ConfigError, TooLarge
from discoro.files import MAX_FILES
from discoro.imports import Import, imports_of, imports_of_file
from discoro.trees import IGNORE_FILE, tree

# Bytes of files that nobody named: far more than code ever has, and one second on a wire of 1 Gbit/s. What is larger is data
# that happens to lie in a package, and to send that is for its owner to decide.
MAX_FOUND = 100 << 20
TOLD = 5  # of the largest paths
_SMALL = 1 << 20  # bytes; files below it are told together, as their directory
EVERYWHERE = frozenset(("discoro", "zmq", "msgpack", "dill", "zeroconf", "ifaddr"))  # what an installation of discoro brings
_STDLIB = os.path.dirname(os.__file__) + os.sep
_PACKAGES = {"site-packages", "dist-packages"}


class Kind(enum.Enum):
    """How a module gets to a worker."""

    INSTALLED = "it is there, or is to be installed there"
    FILE = "as its file"
    VALUE = "not at all: its functions and classes go by value"


def is_installed(module: str | None) -> bool:
    """Whether a worker has it, or can install it: the standard library, site-packages, and discoro with what it brings."""
    return module is not None and kind_of(module) is Kind.INSTALLED


def travels_as_file(module: str | None) -> bool:
    """Whether it is local, and its file makes the same module elsewhere: Python's ordinary loader made this one from it.

    Local is what lies outside the standard library, site-packages and discoro. A directory without `__init__.py` counts too.
    """
    return module is not None and kind_of(module) is Kind.FILE


_kinds: dict[str, tuple[weakref.ref[ModuleType], Kind]] = {}  # asked for each class and function that is packed


def kind_of(name: str) -> Kind:
    """How the module of that name in this process gets to a worker; told by its top-level name where it was not imported."""
    module = sys.modules.get(name)
    known = _kinds.get(name)
    if known is not None and known[0]() is module:
        return known[1]
    if not isinstance(module, ModuleType):  # not loaded, or an object that somebody put in a module's place
        return _kind_of(name, {"__file__": getattr(module, "__file__", None)})
    kind = _kind_of(name, _variables(module))
    _kinds[name] = weakref.ref(module), kind
    return kind


def _variables(module: object) -> dict[str, Any]:
    """The variables of a module; one that is loaded only when it is used (importlib.util.LazyLoader) stays as it is."""
    if isinstance(module, ModuleType):
        found: dict[str, Any] = ModuleType.__getattribute__(module, "__dict__")
        return found
    return getattr(module, "__dict__", {})


def _kind_of(name: str, values: dict[str, Any]) -> Kind:
    top, file = name.partition(".")[0], values.get("__file__")
    if top in EVERYWHERE:
        return Kind.INSTALLED
    if top == "__main__":
        return Kind.VALUE
    if isinstance(file, str):
        return Kind.INSTALLED if _is_installed_path(file) else _kind_of_file(name, file, values.get("__spec__"))
    if values.get("__path__"):
        return _kind_of_namespace(values)
    if top in sys.stdlib_module_names or name != top and kind_of(top) is Kind.INSTALLED:  # made while its package was imported
        return Kind.INSTALLED
    return Kind.VALUE


def _is_installed_path(path: str) -> bool:
    return path.startswith(_STDLIB) or not _PACKAGES.isdisjoint(path.split(os.sep))


def _kind_of_file(name: str, file: str, spec: Any) -> Kind:
    by_hand = type(getattr(spec, "loader", None)) not in (SourceFileLoader, ExtensionFileLoader) or spec.name != name
    return Kind.FILE if not by_hand and os.path.isfile(file) and _is_in_place(name, file) else Kind.VALUE


def _is_in_place(name: str, file: str) -> bool:
    """Whether a module of a package lies below the package's own directory, under its name: as the worker will look for it."""
    package, _, last = name.rpartition(".")
    if not package:
        return True
    directory, base = os.path.split(file)
    if base == "__init__.py":
        directory, base = os.path.split(directory)
    there = _directories_of(package)
    beside = directory in there or os.path.realpath(directory) in map(os.path.realpath, there)  # a package may resolve its path
    return base.partition(".")[0] == last and beside


def _directories_of(package: str) -> list[str]:
    values = _variables(sys.modules.get(package))
    if kind_of(package) is not Kind.FILE:
        return []
    return [os.path.dirname(values["__file__"])] if values.get("__file__") else _portions(values)


def _kind_of_namespace(values: dict[str, Any]) -> Kind:
    if all(_is_installed_path(path) for path in values["__path__"]):
        return Kind.INSTALLED
    ordinary = isinstance(getattr(values.get("__spec__"), "loader", None), NamespaceLoader)
    return Kind.FILE if ordinary and _portions(values) else Kind.VALUE


def _portions(values: dict[str, Any]) -> list[str]:
    """The directories of a namespace package that are local."""
    return [path for path in values.get("__path__") or () if not _is_installed_path(path) and os.path.isdir(path)]


# ------------------------------------------------------------------ what packed code names


@dataclass
class Referred:
    """What packed code names: modules that the other side will import, and code objects of which the imports count.

    Left out is what every worker has, and what `known` has: what was packed for the same place before. It is true once it has
    something. `tops` are the top-level names of the local modules whose files are there, which need no second look.
    """

    known: Referred | None = None
    names: set[str] = field(default_factory=set)
    codes: dict[int, tuple[CodeType, str]] = field(default_factory=dict)  # by id; with the package for relative imports
    tops: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.names or self.codes)

    def note(self, name: str) -> None:
        """A module that the other side will import."""
        kind, top = kind_of(name), name.partition(".")[0]
        if kind is Kind.VALUE or kind is Kind.INSTALLED and (top in sys.stdlib_module_names or top in EVERYWHERE):
            return
        if self.known is None or name not in self.known.names and top not in self.known.tops:
            self.names.add(name)

    def note_code(self, code: CodeType, package: str) -> None:
        """Code that the other side may run; relative imports in it start from `package`."""
        if self.known is None or id(code) not in self.known.codes:
            self.codes[id(code)] = code, package

    def add(self, other: Referred) -> None:
        """Take over what another one has."""
        for name in other.names:
            self.note(name)
        for code, package in other.codes.values():
            self.note_code(code, package)
        self.tops |= other.tops


_tops: tuple[tuple[int, str], frozenset[str]] = (0, ""), frozenset()


def local_tops() -> frozenset[str]:
    """The top-level names of the modules here that travel as files; looked for again when a module was loaded."""
    global _tops
    state = len(sys.modules), next(reversed(sys.modules))
    if _tops[0] != state:
        names = {name.partition(".")[0] for name in list(sys.modules)}
        _tops = state, frozenset(name for name in names if travels_as_file(name))
    return _tops[1]


# ------------------------------------------------------------------ what goes along


class Closure(NamedTuple):
    """What code needs: of each local top-level name its files, by their names at the worker; installed top-level names."""

    files: dict[str, dict[str, Path]]
    required: frozenset[str]


def closure(referred: Referred, named: Collection[str] = ()) -> Closure:
    """What goes along with packed code, found through the imports of local modules, and theirs in turn.

    A package goes whole, with its data files; a single module as its one file. Required is what code imports for certain.
    Modules that are installed, or go by value, are followed no further. It reads many files: best called in a thread.

    Raises ConfigError for a local module that does not compile, cannot be read, or has the name of one of Python's own.
    Raises TooLarge past 100 MiB of files; the top-level names in `named` are not counted, as somebody wants them.
    """
    search = _Search()
    search.todo += [(name, True) for name in sorted(referred.names)]
    for code, package in referred.codes.values():
        search.follow(imports_of(code, package), certain=True)
    search.run()
    _check_size({path for top, files in search.files.items() if top not in named for path in files.values()})
    return Closure(search.files, frozenset(search.required))


class _Search:
    """One search: the modules still to look at, and those reached, each with whether it is imported for certain."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Path]] = {}
        self.required: set[str] = set()
        self.todo: list[tuple[str, bool]] = []
        self._kinds: dict[str, Kind | None] = {}
        self._reached: dict[str, bool] = {}

    def run(self) -> None:
        """Look at each module, at the packages that it is in, and at all that they import."""
        while self.todo:
            name, certain = self.todo.pop()
            parts = name.split(".")
            for each in (".".join(parts[: end + 1]) for end in range(len(parts))):
                if self._reached.get(each, -1) < certain:
                    self._reached[each] = certain
                    self._enter(each, parts[0], certain)

    def follow(self, imports: Iterable[Import], certain: bool) -> None:
        """Imports made in code that is run for certain, or not; a name taken out of a module may be a module below it."""
        for found in imports:
            names = (found.module, *(f"{found.module}.{name}" for name in found.names))
            self.todo += [(name, found.certain and certain) for name in names]

    def _enter(self, name: str, top: str, certain: bool) -> None:
        if top not in self._kinds:
            self._kinds[top] = self._look(top)
        kind = self._kinds[top]
        if kind is Kind.FILE:
            source = self._file(name)
            if source is not None and source.suffix == ".py":
                self.follow(imports_of_file(source, name), certain)
        elif kind is not Kind.VALUE and certain and top not in sys.stdlib_module_names | EVERYWHERE:
            self.required.add(top)

    def _look(self, top: str) -> Kind | None:
        """What kind it is of, None where there is none; the files of one that travels so are taken in."""
        values = _values_of(top)
        if values is None:
            return None
        kind = _kind_of(top, values)
        if kind is Kind.FILE:
            if top in sys.stdlib_module_names:
                where = values.get("__file__") or ", ".join(values["__path__"])
                raise ConfigError(f"{where} has the name of a module of Python's own, which workers load: rename yours")
            self.files[top] = files_of(top, values)
        return kind

    def _file(self, name: str) -> Path | None:
        """The file that makes this module, among those that go along."""
        top, _, below = name.partition(".")
        files, base = self.files.get(top, {}), name.replace(".", "/")
        endings = ("/__init__.py", ".py", *EXTENSION_SUFFIXES)
        return next((files[base + ending] for ending in endings if base + ending in files), None)


def _values_of(top: str) -> dict[str, Any] | None:
    """The variables that tell where a top-level module is from, as it has them or would have them; None where there is none."""
    module = sys.modules.get(top)
    if module is not None:
        return _variables(module)
    try:
        spec = importlib.util.find_spec(top)  # of a top-level name: imports nothing
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    file = spec.origin if spec.has_location else None
    return {"__spec__": spec, "__file__": file, "__path__": spec.submodule_search_locations}


def files_of(top: str, values: dict[str, Any]) -> dict[str, Path]:
    """The files of a top-level module with these variables, by their names at the worker: its own, or all of its package.

    Nothing for a module without files, of a zip say. Raises ConfigError as `tree` does, and for more than MAX_FILES files.
    """
    file = values.get("__file__")
    if file and os.path.basename(file) != "__init__.py":
        ending = next((each for each in EXTENSION_SUFFIXES if file.endswith(each)), ".py")
        return {top + ending: Path(file)} if os.path.isfile(file) else {}
    found: dict[str, Path] = {}
    directories = [os.path.dirname(file)] if file else _portions(values)
    for directory in filter(os.path.isdir, directories):
        for name, path in tree(Path(directory), top):
            found.setdefault(name, path)
            if len(found) > MAX_FILES:
                raise ConfigError(f"the package {top} in {directory} has more than {MAX_FILES} files: {_CURE}")
    return found


# ------------------------------------------------------------------ too much

_CURE = f"leave out what is not needed in a {IGNORE_FILE} there, or name the package in `depends` to send all of it"


def _check_size(paths: Collection[Path]) -> None:
    sizes = {path: _size(path) for path in paths}
    total = sum(sizes.values())
    if total <= MAX_FOUND:
        return
    largest = "; ".join(f"{path}: {_mebibytes(size)}" for path, size in _largest(sizes))
    raise TooLarge(
        f"the local modules that the code imports have {_mebibytes(total)} in {len(paths)} files, more than the "
        f"{_mebibytes(MAX_FOUND)} that travel unasked: {_CURE}. The largest are {largest}"
    )


def _largest(sizes: dict[Path, int]) -> list[tuple[Path, int]]:
    """Files, and directories with the small ones that lie in them directly: ten thousand of those are much, too."""
    sums: dict[Path, int] = {}
    for path, size in sizes.items():
        where = path if size >= _SMALL else path.parent
        sums[where] = sums.get(where, 0) + size
    return sorted(sums.items(), key=lambda item: -item[1])[:TOLD]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


# ------------------------------------------------------------------ what to install


def requirement_of(top: str) -> str:
    """What to install for that top-level name, as pip takes it with the version here; the name itself where that is unknown."""
    import importlib.metadata  # here, as it takes 20 ms, and few ever need it

    names = importlib.metadata.packages_distributions().get(top)
    return f"{names[0]}=={importlib.metadata.version(names[0])}" if names else top
