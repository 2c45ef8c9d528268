"""Code by value: functions and classes to bytes, and back over the globals of one computation.

It never decides when code must go by value in place of plain pickle (payload.py does) and never runs the code
it ships; rebuilding one imports the modules it names.

How its parts play together. `CodePickler` is C's pickler with a reduction of our own for what pickle takes by
name only: a function becomes an empty shell over the globals of its module, filled in afterwards, so that
recursion, shared closure cells and cycles between functions and classes come out as they were; the globals
follow in pickles of their own.
`MessagePickler` does the same for what lies in a message, where a class travels as its name and, for who does
not know that name, as bytes. Code objects and the rarer types are dill's: it is asked for its reduction, type
by type. On the other side `CodeUnpickler` gives each `make_*` and `set_*` below the `Builder` of that one
load, which knows the `Namespace` to build in.
"""

from __future__ import annotations

import abc
import builtins
import dis
import enum
import functools
import hashlib
import importlib
import io
import os
import pickle
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

MARK = __name__.encode()  # stands in every pickle that needs a CodeUnpickler
CLASSES_KEPT = 1000  # built from messages, by digest; a program defines far fewer, a loop may not
_STDLIB = os.path.dirname(os.__file__) + os.sep
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, so it can be made again
_NOT_SHIPPED = frozenset(
    ("__name__", "__builtins__", "__file__", "__spec__", "__loader__", "__package__", "__cached__", "__doc__")
)


class Namespace:
    """Where the code of one computation lives on the receiving side: one dict of globals per module name.

    All functions of a module that were shipped for the computation, by whichever call, share that dict, as
    they did in the module they came from. It is not in `sys.modules`, and has no `__file__`.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.built: dict[bytes, type] = {}  # by digest: classes that came with a message
        self._modules: dict[str, dict[str, Any]] = {}
        self._marks: tuple[bytes, ...] = ()

    def globals_of(self, module: str) -> dict[str, Any]:
        """The one dict that all functions of that module name share; made when asked for first."""
        if module not in self._modules:
            self._modules[module] = {"__name__": module, "__builtins__": builtins}
            self._marks += (module.encode(),)
        return self._modules[module]

    def lookup(self, module: str, qualname: str) -> object | None:
        """What that name stands for in that module here, or None; a name inside a function is never found."""
        return _walk(self._modules.get(module), qualname)

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
        """Set global variables of a module; with `keep`, only those that it has not got."""
        target = self.globals_of(module)
        target.update({name: value for name, value in values.items() if not (keep and name in target)})

    def __repr__(self) -> str:
        names = {module: len(values) - 2 for module, values in self._modules.items()}
        return f"<Namespace {self.label!r}: names {names}>"


def _walk(values: Mapping[str, object] | None, qualname: str) -> object | None:
    first, *rest = qualname.split(".")
    found = (values or {}).get(first)
    for name in rest:
        found = getattr(found, name, None)
    return found


def _find_here(module: str, qualname: str) -> object | None:
    found = sys.modules.get(module)
    return _walk(vars(found), qualname) if found is not None else None


def is_installed(module: str | None) -> bool:
    """Whether a bare worker can import it: the standard library, installed packages, and discoro itself."""
    top = (module or "").partition(".")[0]
    if module is None or top == "__main__":
        return False
    if top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return top in sys.stdlib_module_names
    return file.startswith(_STDLIB) or not {"site-packages", "dist-packages"}.isdisjoint(file.split(os.sep))


def _is_found(obj: Any) -> bool:
    """Whether the name of a function or class leads to it in this process."""
    return _find_here(_module_of(obj) or "", getattr(obj, "__qualname__", "")) is obj


def _module_of(obj: Any) -> str | None:
    return getattr(obj, "__module__", None)


class _Shipped:
    """The modules of which this process ever shipped code: others know their classes by shipping only."""

    modules: frozenset[str] = frozenset()
    marks: tuple[bytes, ...] = (b"__main__",)

    @classmethod
    def add(cls, module: str | None) -> None:
        # A nested function of an installed module goes by value too, but others can import that module.
        if module and module != "__main__" and module not in cls.modules and not is_installed(module):
            cls.modules |= {module}
            cls.marks += (module.encode(),)


def mentions_code(body: bytes) -> bool:
    """Whether a pickle made by plain pickle may name something that its receiver cannot import."""
    for mark in _Shipped.marks:  # on every message's way: a generator for `any` would cost 0.3 µs
        if mark in body:
            return True
    return False


# ---- packing -------------------------------------------------------------------------------------


Reducer = Callable[["CodePickler", Any], Any]
Seeds = dict[str, Any]  # what takes effect only while a class is made: its module, qualified name, slots


class _Globals(typing.NamedTuple):
    """Global variables of a module, as they stand in a pickle: to be set when they arrive."""

    home: str
    values: dict[str, Any]


class CodePickler(pickle.Pickler):
    """Packs functions and classes by value, unless every worker has the module they are from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last: object = None  # met last, and so the one at fault when pickling fails
        self._reducers: dict[type, Reducer | None] = {}
        self._code: list[_Globals] = []
        self._data: list[_Globals] = []
        self._in_data = False

    def dump(self, obj: Any) -> None:
        """Pack an object as a pickle, and as further ones the globals of the functions in it.

        Inside the functions they would make a tree as deep as the longest chain of calls. What is code among
        them comes first, since data may need it while it is rebuilt: an instance in a set its `__hash__`.
        """
        super().dump(obj)
        while self._code or self._data:
            batch, self._code = self._code, []
            self._in_data = not batch
            super().dump(batch or self._data.pop())

    def now_or_later(self, home: str, values: dict[str, Any]) -> object:
        """What a function has to hold of its globals: none, as they follow; but all in the midst of data."""
        if self._in_data:
            return _Globals(home, values)
        code = {name: value for name, value in values.items() if isinstance(value, _CODE_TYPES)}
        data = {name: value for name, value in values.items() if name not in code}
        self._code += [_Globals(home, code)] if code else []
        self._data += [_Globals(home, data)] if data else []
        return None

    def reducer_override(self, obj: Any) -> Any:
        """What C's pickler asks for each object that is no plain value, so it has to be quick to say no."""
        self.last = obj
        kind = type(obj)
        if kind not in self._reducers:
            self._reducers[kind] = self.reducer_for(kind)
        reducer = self._reducers[kind]
        return NotImplemented if reducer is None else reducer(self, obj)

    def reducer_for(self, kind: type) -> Reducer | None:
        """What takes objects of this type apart, None for pickle itself; code gets new locks on arrival."""
        return _LOCKS.get(kind) or _reducer_for(kind)

    def goes_by_value(self, obj: Any) -> bool:
        """Whether this function, class or type variable has to be taken apart here."""
        return not is_installed(_module_of(obj)) or not _is_found(obj)

    def reduce_own_class(self, cls: type) -> Any:
        """The class itself, taken apart."""
        _Shipped.add(cls.__module__)
        return _reduce_enum(cls) if isinstance(cls, enum.EnumType) else _reduce_plain_class(cls)


class MessagePickler(CodePickler):
    """Packs a message: data, the functions in it by value, and classes by name with their bytes at hand."""

    def reducer_for(self, kind: type) -> Reducer | None:
        """As for code, but without locks: the copy of a lock guards nothing."""
        return _reducer_for(kind)

    def goes_by_value(self, obj: Any) -> bool:
        """As for code, but a module that was never shipped is taken to be importable for the receiver."""
        return _module_of(obj) in (None, "__main__", *_Shipped.modules) or not _is_found(obj)

    def reduce_own_class(self, cls: type) -> Any:
        """The class as its name, and as bytes for who does not know the name."""
        digest, code = _class_as_bytes(cls)
        return make_known_class, (cls.__module__, cls.__qualname__, digest, pickle.PickleBuffer(code))


def _reducer_for(kind: type) -> Reducer | None:
    if kind in _REDUCERS:
        return _REDUCERS[kind]
    if issubclass(kind, type):
        return _reduce_class
    # dill knows the singletons that dataclasses keep in their methods.
    return _ask_dill if kind in _BY_DILL or kind.__module__ == "dataclasses" else None


_class_bytes: weakref.WeakKeyDictionary[type, tuple[bytes, bytes]] = weakref.WeakKeyDictionary()
_built_here: dict[bytes, type] = {}  # by digest: classes from here, or of no namespace


def _class_as_bytes(cls: type) -> tuple[bytes, bytes]:
    """(digest, the class by value), made once: a class changed afterwards travels as it first was."""
    known = _class_bytes.get(cls)
    if known is None:
        file = io.BytesIO()
        CodePickler(file, 5).dump(cls)
        code = file.getvalue()
        known = hashlib.blake2b(code, digest_size=16).digest(), code
        _remember(_built_here, cls, *known)
    return known


def _remember(built: dict[bytes, type], cls: type, digest: bytes, code: bytes) -> None:
    """Keep a class by its digest, and its bytes: an instance that comes back is one of the same class."""
    if len(built) >= CLASSES_KEPT:
        del built[next(iter(built))]
    built[digest] = cls
    _class_bytes[cls] = digest, code


def _reduce_function(pickler: CodePickler, function: types.FunctionType) -> Any:
    if not pickler.goes_by_value(function):
        return NotImplemented
    _Shipped.add(function.__module__)
    # A decorator from elsewhere gives its wrapper our module's name; its globals are still its own.
    home = function.__globals__.get("__name__") or function.__module__ or "__main__"
    shipped = not is_installed(home)
    args = (home, shipped, function.__code__, function.__closure__)
    state = {
        "attributes": {name: getattr(function, name) for name in _FUNCTION_ATTRIBUTES},
        "annotations": _annotations(function),
        "dict": function.__dict__,
        "globals": pickler.now_or_later(home, used_globals(function)) if shipped else None,
        "imports": _used_submodules(function),
    }
    return make_function, args, state, None, None, set_function


_FUNCTION_ATTRIBUTES = ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__")


def _annotations(function: types.FunctionType) -> dict[str, Any]:
    try:
        return function.__annotations__
    except NameError:  # CPython 3.14 works them out when asked; names for type checkers only do not exist
        return {}


def used_globals(function: types.FunctionType) -> dict[str, Any]:
    """The global variables that a function uses, or a function or class body inside it, by name."""
    used = {name for code in _codes(function.__code__) for name in _global_names(code)}
    names = sorted(used - _NOT_SHIPPED)  # in order, so that the same code is the same bytes
    return {name: function.__globals__[name] for name in names if name in function.__globals__}


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _global_names(code: types.CodeType) -> Iterator[str]:
    # dill's own search swaps sys.stdout to read what `dis` prints, and misses class bodies (LOAD_NAME).
    for instruction in dis.get_instructions(code):
        if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME":
            yield instruction.argval


def _used_submodules(function: types.FunctionType) -> list[str]:
    """What `import a.b` made reachable as an attribute: the name `a` alone does not import it elsewhere."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    used = (function.__globals__.get(name) for name in names)
    prefixes = tuple(f"{value.__name__}." for value in used if isinstance(value, types.ModuleType))
    loaded = [name for name in list(sys.modules) if name.startswith(prefixes)] if prefixes else []
    return sorted(name for name in loaded if names.issuperset(name.split(".")[1:]))


def _reduce_class(pickler: CodePickler, cls: type) -> Any:
    if not cls.__flags__ & _HEAP_TYPE:
        known = cls in _NAMED_TYPES and not _is_found(cls)  # FunctionType says `builtins.function`: not there
        return (getattr, (types, _NAMED_TYPES[cls])) if known else NotImplemented
    return pickler.reduce_own_class(cls) if pickler.goes_by_value(cls) else NotImplemented


_NAMED_TYPES = {value: name for name, value in vars(types).items() if isinstance(value, type)}


def _reduce_plain_class(cls: type) -> Any:
    own = _own_attributes(cls)
    seeds: Seeds = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    for name in own.keys() & {"__slots__", "__orig_bases__"}:
        seeds[name] = own.pop(name)
    args = (type(cls), cls.__name__, cls.__bases__, seeds)
    return make_class, args, {"attributes": own}, None, None, set_class


def _own_attributes(cls: type) -> dict[str, Any]:
    """What a class holds, without what it has by being made: slots, `__dict__`, an ABC's own record."""
    return {
        name: value
        for name, value in vars(cls).items()
        if name not in ("__module__", "_abc_impl")
        and not (isinstance(value, _SLOT_TYPES) and value.__objclass__ is cls)
    }


_SLOT_TYPES = (types.MemberDescriptorType, types.GetSetDescriptorType)


def _reduce_enum(cls: enum.EnumType) -> Any:
    """An enum by its members' values, which a class takes only while it is made; what they carry is later."""
    members: dict[str, Any] = dict(cls.__members__)
    own = {name: value for name, value in _own_attributes(cls).items() if name not in members}
    for name in [name for name in own if _is_made_by_enum(name)]:
        del own[name]
    carried = {name: dict(_carried_by(member)) for name, member in members.items()}
    seeds = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    values = {name: member.value for name, member in members.items()}
    args = (type(cls), cls.__name__, cls.__bases__, seeds, values)
    return make_enum, args, {"attributes": own, "members": carried}, None, None, set_class


def _is_made_by_enum(name: str) -> bool:
    if name in ("__new__", "__new_member__"):
        return True
    hooks = ("_missing_", "_boundary_", "_ignore_")
    return name.startswith("_") and name.endswith("_") and not name.startswith("__") and name not in hooks


def _carried_by(member: enum.Enum) -> Iterator[tuple[str, Any]]:
    made_by_enum = ("_value_", "_name_", "__objclass__", "_sort_order_")
    return ((name, value) for name, value in vars(member).items() if name not in made_by_enum)


def _reduce_cell(pickler: CodePickler, cell: types.CellType) -> Any:
    try:
        contents = (cell.cell_contents,)
    except ValueError:  # a closure variable with no value yet
        return types.CellType, ()
    return types.CellType, (), contents, None, None, set_cell


def _reduce_module(pickler: CodePickler, module: types.ModuleType) -> Any:
    return importlib.import_module, (module.__name__,)


def _reduce_cached(pickler: CodePickler, function: Any) -> Any:
    return _ask_dill(pickler, function) if pickler.goes_by_value(function) else NotImplemented


def _reduce_type_variable(pickler: CodePickler, variable: Any) -> Any:
    if is_installed(variable.__module__):
        return NotImplemented
    kind = {"covariant": variable.__covariant__, "contravariant": variable.__contravariant__}
    args = (variable.__name__, *variable.__constraints__)
    return functools.partial(typing.TypeVar, *args, bound=variable.__bound__, **kind), ()


def _reduce_new_type(pickler: CodePickler, new_type: Any) -> Any:
    if is_installed(new_type.__module__):
        return NotImplemented
    args = (new_type.__qualname__, new_type.__supertype__)
    return typing.NewType, args, {"__module__": new_type.__module__}


def _reduce_weak_dict(pickler: CodePickler, items: Any) -> Any:
    return type(items), (dict(items),)  # singledispatch keeps its cache in one


def _reduce_globals(pickler: CodePickler, variables: _Globals) -> Any:
    return set_globals, (variables.home, variables.values)


_CACHED_TYPE = type(functools.lru_cache(len))
_PLAIN_TYPES = (type(None), int, float, complex, str, bytes)
# Rebuilding these runs no code of the user's.
_CODE_TYPES = (types.FunctionType, type, types.ModuleType, _CACHED_TYPE, *_PLAIN_TYPES)
_REDUCERS: dict[type, Reducer] = {
    types.FunctionType: _reduce_function,
    _Globals: _reduce_globals,
    types.CellType: _reduce_cell,
    types.ModuleType: _reduce_module,
    _CACHED_TYPE: _reduce_cached,
    weakref.WeakKeyDictionary: _reduce_weak_dict,
    weakref.WeakValueDictionary: _reduce_weak_dict,
    typing.TypeVar: _reduce_type_variable,
    typing.NewType: _reduce_new_type,
}
_LOCKS: dict[type, Reducer] = {  # code gets a lock of its own where it arrives, free
    type(threading.Lock()): lambda pickler, lock: (threading.Lock, ()),
    type(threading.RLock()): lambda pickler, lock: (threading.RLock, ()),
}


# ---- dill ----------------------------------------------------------------------------------------

# What dill can take apart and pickle cannot. It also offers to copy files, weak references and memory
# addresses; a copy of those elsewhere is not what anybody meant, so they stay errors.
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_BY_DILL = frozenset((types.CodeType, property, classmethod, staticmethod, types.MappingProxyType, *_VIEWS))


class _Answer:
    """Stands where dill expects its pickler, and keeps the one reduction that dill hands it."""

    def __init__(self) -> None:
        self.reduction: Any = NotImplemented

    def save_reduce(self, *reduction: Any, obj: object = None) -> None:
        self.reduction = reduction

    def write(self, data: bytes) -> None:
        # dill writes a singleton as the opcode GLOBAL: b"c<module>\n<name>\n"; pickle takes the bare name.
        self.reduction = data.split(b"\n")[1].decode()


def _ask_dill(pickler: CodePickler, obj: Any) -> Any:
    import dill  # here, since most processes only ever send data: 5 ms more, 30 ms on its own

    answer = _Answer()
    if type(obj) in dill.Pickler.dispatch:
        dill.Pickler.dispatch[type(obj)](answer, obj)
    return answer.reduction


# ---- unpacking -----------------------------------------------------------------------------------


class Builder:
    """One load: where code is built, and whether what stands there already stays.

    `here` is for a process that has no namespace for the sender: it builds in a fresh one, after looking
    whether the process itself has a class of that name.
    """

    def __init__(self, namespace: Namespace | None, keep: bool) -> None:
        self.here = namespace is None
        self.namespace = namespace or Namespace("a message")
        self.keep = keep
        self.made: dict[int, type] = {}
        self.hooks: list[tuple[type, object]] = []

    def find_class(self, module: str, qualname: str) -> type | None:
        """The class that goes by that name here already."""
        find = _find_here if self.here else self.namespace.lookup
        found = find(module, qualname)
        return found if isinstance(found, type) else None

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


def load(body: bytes | bytearray, builder: Builder, buffers: Iterable[Any] = ()) -> Any:
    """What a pickle stands for, with its code built; raises whatever pickle and the classes in it raise."""
    file = io.BytesIO(body)
    unpickler = CodeUnpickler(file, builder, buffers)
    loaded = unpickler.load()
    while file.tell() < len(body):
        unpickler.load()  # of the same memo: the globals of functions loaded before
    builder.finish()
    return loaded


def make_function(builder: Builder, home: str, shipped: bool, code: types.CodeType, closure: Any) -> Any:
    """A function of the module `home` that has its code and nothing else yet."""
    variables = builder.namespace.globals_of(home) if shipped else vars(importlib.import_module(home))
    return types.FunctionType(code, variables, None, None, closure)


def set_function(builder: Builder, function: types.FunctionType, state: dict[str, Any]) -> None:
    """The rest of a function; its globals set themselves."""
    for name, value in state["attributes"].items():
        setattr(function, name, value)
    function.__annotations__ = state["annotations"]
    function.__dict__.update(state["dict"])
    for name in state["imports"]:
        importlib.import_module(name)


def set_globals(builder: Builder, home: str, values: dict[str, object]) -> None:
    """Global variables of a module, which all functions of it share."""
    builder.namespace.fill(home, values, builder.keep)


def set_cell(builder: Builder, cell: types.CellType, contents: tuple[Any]) -> None:
    """The value of a closure variable, which several functions may share."""
    (cell.cell_contents,) = contents


def make_class(builder: Builder, kind: type, name: str, bases: tuple[type, ...], seeds: Seeds) -> type:
    """A class without its attributes, or the one already here where that stays.

    A metaclass written in Python has done its work on the class that was packed, and does not do it again.
    """
    known = _kept_class(builder, seeds)
    if known is not None:
        return known
    maker: Any = next(m for m in kind.__mro__ if m is abc.ABCMeta or not m.__flags__ & _HEAP_TYPE)
    return _made(builder, maker.__new__(kind, name, bases, dict(seeds)))


def make_enum(
    builder: Builder,
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
    return _made(builder, enum.EnumType.__new__(kind, name, bases, body))


def _kept_class(builder: Builder, seeds: Seeds) -> type | None:
    return builder.find_class(seeds["__module__"], seeds["__qualname__"]) if builder.keep else None


def _made(builder: Builder, cls: type) -> type:
    builder.made[id(cls)] = cls
    builder.namespace.globals_of(cls.__module__)
    builder.namespace.bind(cls, builder.keep)
    return cls


def set_class(builder: Builder, cls: type, state: dict[str, Any]) -> None:
    """The attributes of a class that this load made; one that was here already has its own."""
    if id(cls) not in builder.made:
        return
    for name, value in state["attributes"].items():
        if name == "__init_subclass__":
            builder.hooks.append((cls, value))
        else:
            type.__setattr__(cls, name, value)
    for name, carried in state.get("members", {}).items():
        getattr(cls, name).__dict__.update(carried)


def make_known_class(builder: Builder, module: str, qualname: str, digest: bytes, code: Any) -> type:
    """The class of that name here; where there is none, the one built from its bytes, once per digest."""
    known = builder.find_class(module, qualname) or _built_here.get(digest)
    if known is not None:
        return known
    built = _built_here if builder.here else builder.namespace.built
    if digest not in built:
        code = bytes(code)
        cls = load(code, Builder(None if builder.here else builder.namespace, keep=True))
        _remember(built, cls, digest, code)
    return built[digest]


_MAKERS: dict[str, Callable[..., Any]] = {
    maker.__name__: maker
    for maker in (make_function, make_class, make_enum, make_known_class)
    + (set_function, set_globals, set_cell, set_class)
}
