"""Code from bytes: functions and classes built over the globals of one computation, or of the module that they are from.

It takes nothing apart (shipping.py does), and never decides what to trust: building imports modules, and runs what these run.

How its parts play together. `CodeUnpickler` gives each `make_*` and `set_*` below the `Builder` of that one load, which knows
the `Namespace` to build in. A function begins as an empty shell over its globals and is filled in afterwards, a class without
its attributes, so that recursion, shared closure cells and cycles between both come out as they were.
"""

from __future__ import annotations

import abc
import builtins
import enum
import functools
import importlib
import io
import os
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from discoro.modules import travels_as_file

MARK = __name__.encode()  # stands in every pickle that needs a CodeUnpickler
CLASSES_KEPT = 1000  # by identity; a program defines far fewer, a loop may not
HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, so it can be made again
_GIVEN = ("__name__", "__builtins__")

# What code is built over: the module it is from, which can be imported; values that came with it; or, in a message that may go
# to anybody, the former where that module came as a file, and else the latter.
MODULE, VALUES, EITHER = "module", "values", "either"

Seeds = dict[str, Any]  # what takes effect only while a class is made: its module, qualified name, slots


class Namespace:
    """Where the code of one computation lives on the receiving side: one dict of globals per module name.

    All functions of a module that were shipped for the computation, by whichever call, share that dict, as
    they did in the module they came from. It is not in `sys.modules`. It has a `__file__` where its code uses one and there is
    a `directory` for files: the name that the file had, in there. `files` are the top-level names of the modules that came as
    files, and can be imported.
    """

    def __init__(self, label: str, directory: Path | None = None, files: Iterable[str] = ()) -> None:
        self.label = label
        self.directory = directory
        self.files = frozenset(files)
        self.known: dict[bytes, type] = {}  # by identity: classes that came by value
        self._modules: dict[str, dict[str, Any]] = {}
        self._marks: tuple[bytes, ...] = ()

    def globals_of(self, module: str) -> dict[str, Any]:
        """The one dict that all functions of that module name share; made when asked for first."""
        if module not in self._modules:
            self._modules[module] = dict(zip(_GIVEN, (module, builtins), strict=True))
            self._marks += (module.encode(),)
        return self._modules[module]

    def lookup(self, module: str, qualname: str) -> object | None:
        """What that name stands for in that module here, or None; a name inside a function is never found."""
        return walk(self._modules.get(module), qualname)

    def is_named_in(self, body: bytes | bytearray) -> bool:
        """Whether a pickle may name something of a module that has code here."""
        for mark in self._marks:
            if mark in body:
                return True
        return False

    def bind(self, obj: object, keep: bool) -> None:
        """Give a function or class built here its name in its module; with `keep`, only a name still free."""
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", "")
        if module in self._modules and name.isidentifier():
            self.fill(module, {name: obj}, keep)

    def fill(self, module: str, values: Mapping[str, object], keep: bool) -> None:
        """Set global variables of a module; with `keep`, only those that it has not got. `__file__` is a base name."""
        target = self.globals_of(module)
        if "__file__" in values:
            values = self._with_file(values)
        target.update({name: value for name, value in values.items() if not (keep and name in target)})

    def _with_file(self, values: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in values.items() if name != "__file__"}
        return rest if self.directory is None else {**rest, "__file__": str(self.directory / values["__file__"])}

    def __repr__(self) -> str:
        names = {module: len(values) - len(_GIVEN) for module, values in self._modules.items()}
        return f"<Namespace {self.label!r}: names {names}>"


def walk(values: Mapping[str, object] | None, qualname: str) -> object | None:
    """What a qualified name stands for among these values, or None."""
    first, *rest = qualname.split(".")
    found = (values or {}).get(first)
    for name in rest:
        found = getattr(found, name, None)
    return found


def find_here(module: str, qualname: str) -> object | None:
    """What that name stands for in that module of this process, or None."""
    found = sys.modules.get(module)
    return walk(vars(found), qualname) if found is not None else None


# ---- which class is which ------------------------------------------------------------------------

_identities: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()
_known_here: dict[bytes, type] = {}  # by identity: classes from here, or of no namespace
bytes_of_class: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()  # by value, as it travelled first


def identity_of(cls: type) -> bytes:
    """What a class shares with its copies elsewhere and with no other; drawn when it first travels.

    A name leads to none that was made in a function, or in a namespace that is no module: by its identity an instance that
    comes back is one of the same class all the same.
    """
    identity = _identities.get(cls)
    if identity is None:
        identity = os.urandom(16)
        _remember(_known_here, cls, identity)
    return identity


def _remember(known: dict[bytes, type], cls: type, identity: bytes) -> None:
    if len(known) >= CLASSES_KEPT:
        del known[next(iter(known))]
    known[identity] = cls
    _identities[cls] = identity


# ---- one load ------------------------------------------------------------------------------------


class Builder:
    """One load: where code is built, and whether what stands there already stays.

    `here` is for a process that has no namespace for the sender: it builds in a fresh one, after looking
    whether the process itself has a class of that name.
    """

    def __init__(self, namespace: Namespace | None, keep: bool) -> None:
        self.here = namespace is None
        self.namespace = namespace or Namespace("a message")
        self.known = _known_here if self.here else self.namespace.known
        self.keep = keep
        self.made: dict[int, type] = {}
        self.hooks: list[tuple[type, object]] = []

    def find_class(self, module: str, qualname: str) -> type | None:
        """The class that goes by that name here already."""
        find = find_here if self.here else self.namespace.lookup
        found = find(module, qualname)
        return found if isinstance(found, type) else None

    def is_over_module(self, home: str, over: str) -> bool:
        """Whether code of that module is built over the module itself."""
        if over != EITHER:
            return over == MODULE
        return travels_as_file(home) if self.here else home.partition(".")[0] in self.namespace.files

    def finish(self) -> None:
        """Set the hooks for subclasses last: they have run for these classes, where they were first made."""
        for cls, hook in self.hooks:
            type.__setattr__(cls, "__init_subclass__", hook)


class CodeUnpickler(pickle.Unpickler):
    """Unpacks what the picklers above made; the code in it is built with the builder given."""

    def __init__(self, file: typing.BinaryIO, builder: Builder, buffers: Iterable[Any] = ()) -> None:
        super().__init__(file, buffers=buffers)
        self._builder = builder

    def find_class(self, module: str, name: str) -> Any:
        """A name in the pickle: ours, of the namespace, or to be imported."""
        if module == __name__:
            return functools.partial(_MAKERS[name], self._builder)
        found = None if self._builder.here else self._builder.namespace.lookup(module, name)
        return found if found is not None else super().find_class(module, name)


def load(body: bytes | bytearray | io.RawIOBase, builder: Builder, buffers: Iterable[Any] = ()) -> Any:
    """What a pickle stands for, with its code built; raises whatever pickle and the classes in it raise."""
    file: Any = io.BytesIO(body) if isinstance(body, bytes | bytearray) else body
    size = len(body)  # type: ignore[arg-type]
    unpickler = CodeUnpickler(file, builder, buffers)
    loaded = unpickler.load()
    while file.tell() < size:
        unpickler.load()  # of the same memo: the globals of functions loaded before
    builder.finish()
    return loaded


def make_function(builder: Builder, home: str, over: str, code: types.CodeType, closure: Any) -> Any:
    """A function of the module `home` that has its code and nothing else yet."""
    real = builder.is_over_module(home, over)
    variables = vars(importlib.import_module(home)) if real else builder.namespace.globals_of(home)
    return types.FunctionType(code, variables, None, None, closure)


def set_function(builder: Builder, function: types.FunctionType, state: dict[str, Any]) -> None:
    """The rest of a function; its globals set themselves."""
    for name, value in state["attributes"].items():
        setattr(function, name, value)
    function.__annotations__ = state["annotations"]
    function.__dict__.update(state["dict"])
    for name in state["imports"]:
        importlib.import_module(name)


def set_globals(builder: Builder, home: str, over: str, values: dict[str, object]) -> None:
    """Global variables of a module, which all functions of it share; the module itself has its own."""
    if not builder.is_over_module(home, over):
        builder.namespace.fill(home, values, builder.keep)


def set_cell(builder: Builder, cell: types.CellType, contents: tuple[Any]) -> None:
    """The value of a closure variable, which several functions may share."""
    (cell.cell_contents,) = contents


def make_class(builder: Builder, over: str, kind: type, name: str, bases: tuple[type, ...], seeds: Seeds) -> type:
    """A class without its attributes, or the one already here where that stays.

    A metaclass written in Python has done its work on the class that was packed, and does not do it again.
    """
    known = _kept_class(builder, seeds)
    if known is not None:
        return known
    maker: Any = next(m for m in kind.__mro__ if m is abc.ABCMeta or not m.__flags__ & HEAP_TYPE)
    return _made(builder, over, maker.__new__(kind, name, bases, dict(seeds)))


def make_enum(
    builder: Builder,
    over: str,
    kind: type[enum.EnumType],
    name: str,
    bases: tuple[type, ...],
    seeds: Seeds,
    members: dict[str, Any],
) -> type:
    """An enum with its members, but without its methods; or the one already here where that stays."""
    known = _kept_class(builder, seeds)
    if known is not None:
        return known
    body = kind.__prepare__(name, bases)
    for key, value in {**seeds, **members}.items():
        body[key] = value
    return _made(builder, over, enum.EnumType.__new__(kind, name, bases, body))


def _kept_class(builder: Builder, seeds: Seeds) -> type | None:
    return builder.find_class(seeds["__module__"], seeds["__qualname__"]) if builder.keep else None


def _made(builder: Builder, over: str, cls: type) -> type:
    builder.made[id(cls)] = cls
    if not builder.is_over_module(cls.__module__, over):
        builder.namespace.globals_of(cls.__module__)
        builder.namespace.bind(cls, builder.keep)
    return cls


def set_class(builder: Builder, cls: type, state: dict[str, Any]) -> None:
    """The attributes of a class that this load made; one that was here already has its own."""
    if id(cls) not in builder.made:
        return
    _remember(builder.known, cls, state["identity"])
    for name, value in state["attributes"].items():
        if name == "__init_subclass__":
            builder.hooks.append((cls, value))
        else:
            type.__setattr__(cls, name, value)
    for name, carried in state.get("members", {}).items():
        getattr(cls, name).__dict__.update(carried)


def make_known_class(builder: Builder, module: str, qualname: str, identity: bytes, code: Any) -> type:
    """The class of that name here, or of that identity; where there is none, built from its bytes."""
    found = builder.find_class(module, qualname) or builder.known.get(identity) or _known_here.get(identity)
    if found is None:
        code = bytes(code)
        found = load(code, Builder(None if builder.here else builder.namespace, keep=True))
        bytes_of_class[found] = code
    return found


_MAKERS: dict[str, Callable[..., Any]] = {
    maker.__name__: maker
    for maker in (make_function, make_class, make_enum, make_known_class) + (set_function, set_globals, set_cell, set_class)
}
