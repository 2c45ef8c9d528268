"""Code by value: functions and classes to bytes, with the globals that they use.

It never decides when code must go by value in place of plain pickle (payload.py does), and builds nothing (building.py does).

How its parts play together. `CodePickler` is C's pickler with a reduction of our own for what pickle takes by name only: a
function becomes an empty shell over the globals of its module, filled in afterwards; the globals follow in pickles of their
own. What is in a module that is installed, or travels as a file, stays a name; `Referred` hears of each module that is named.
`MessagePickler` does the same for what lies in a message, where a class travels as its name and, for who does not know that
name, as bytes. Code objects and the rarer types are dill's: it is asked for its reduction, type by type.
"""

from __future__ import annotations

import dis
import enum
import functools
import importlib
import io
import os
import pickle
import pickletools
import re
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from discoro import arrays, raised
from discoro.building import (
    EITHER,
    HEAP_TYPE,
    MODULE,
    VALUES,
    Seeds,
    bytes_of_class,
    find_here,
    identity_of,
    make_class,
    make_enum,
    make_function,
    make_known_class,
    set_cell,
    set_class,
    set_function,
    set_globals,
)
from discoro.modules import Kind, Referred, is_installed, kind_of, local_tops, travels_as_file

_NOT_SHIPPED = frozenset(
    ("__name__", "__builtins__", "__file__", "__spec__", "__loader__", "__package__", "__cached__", "__doc__")
)
STACK_GLOBAL = b"\x93"  # the opcode in every pickle of protocol 5 that names a class or function
_LOOKED_INTO = 1 << 20  # bytes of a pickle that is read by opcodes, 1 µs each; a larger one is believed to name what it holds


def _is_found(obj: Any) -> bool:
    """Whether the name of a function or class leads to it in this process."""
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None) or ""  # type variables have the latter only
    return find_here(_module_of(obj) or "", name) is obj


def _module_of(obj: Any) -> str | None:
    return getattr(obj, "__module__", None)


class _Shipped:
    """The modules of which this process ever shipped code: others know their classes by shipping only."""

    modules: frozenset[str] = frozenset()
    marks: tuple[bytes, ...] = (b"__main__",)

    @classmethod
    def add(cls, module: str | None) -> None:
        # A nested function of another module goes by value too, but others can import that module.
        if module and module != "__main__" and module not in cls.modules and kind_of(module) is Kind.VALUE:
            cls.modules |= {module}
            cls.marks += (module.encode(),)


def mentions_code(body: bytes) -> bool:
    """Whether a pickle made by plain pickle may name something that its receiver cannot import."""
    for mark in _Shipped.marks:  # on every message's way: a generator for `any` would cost 0.3 µs
        if mark in body:
            return True
    return False


@functools.lru_cache(maxsize=100)  # one for each computation that is run, until further modules are loaded
def _named(tops: frozenset[str]) -> re.Pattern[bytes]:
    """A short text (opcode, length) that is one of these names, or that of a module below, as the module of a name is."""
    names = b"|".join(re.escape(top.encode()) for top in sorted(tops))
    return re.compile(b"\x8c.(" + names + rb")(?:[.][^\x94]*)?\x94", re.DOTALL)


def note_files(body: bytes, referred: Referred) -> None:
    """Note the modules that travel as files and that a plain pickle names; it is on the way of every run, and takes 1 µs."""
    tops = local_tops() - (referred.known.tops if referred.known else frozenset())
    if not tops or STACK_GLOBAL not in body:
        return
    there = {top.decode() for top in _named(tops).findall(body)}
    modules = _modules_in(body) if there and len(body) <= _LOOKED_INTO else there
    for module in modules:
        if module.partition(".")[0] in there:
            referred.note(module)


def _modules_in(body: bytes) -> set[str]:
    """The modules that a pickle takes names from: before each such opcode, both were pushed, or had from the memo."""
    texts: list[str] = []
    memo: list[str] = []
    found = set()
    last = ""
    for opcode, argument, _ in pickletools.genops(body):
        if "UNICODE" in opcode.name:
            texts.append(last := str(argument))
        elif opcode.name == "MEMOIZE":
            memo.append(last)
        elif "BINGET" in opcode.name:
            texts.append(memo[int(str(argument))])
        elif opcode.name == "STACK_GLOBAL":
            found.add(texts[-2])
    return found


# ---- packing -------------------------------------------------------------------------------------


Reducer = Callable[["CodePickler", Any], Any]


class _Globals(typing.NamedTuple):
    """Global variables of a module, as they stand in a pickle: to be set when they arrive."""

    home: str
    over: str
    values: dict[str, Any]


class CodePickler(pickle.Pickler):
    """Packs functions and classes by value, unless the module they are from is installed or travels as a file.

    `with_files` says that such files are where the pickle goes. `referred` hears of the modules that it names.
    """

    with_files = True

    def __init__(self, *args: Any, referred: Referred | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.referred = referred
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

    def now_or_later(self, home: str, over: str, values: dict[str, Any]) -> object:
        """What a function has to hold of its globals: none, as they follow; but all in the midst of data."""
        if self._in_data:
            return _Globals(home, over, values)
        code = {name: value for name, value in values.items() if isinstance(value, _CODE_TYPES)}
        data = {name: value for name, value in values.items() if name not in code}
        self._code += [_Globals(home, over, code)] if code else []
        self._data += [_Globals(home, over, data)] if data else []
        return None

    def reducer_override(self, obj: Any) -> Any:
        """What C's pickler asks for each object that is no plain value, so it has to be quick to say no."""
        self.last = obj
        kind = type(obj)
        if kind not in self._reducers:
            self._reducers[kind] = self.reducer_for(kind)
            self.note(kind.__module__)  # what reduces to a name is looked for there
        reducer = self._reducers[kind]
        return NotImplemented if reducer is None else reducer(self, obj)

    def reducer_for(self, kind: type) -> Reducer | None:
        """What takes objects of this type apart, None for pickle itself; code gets new locks on arrival."""
        return _LOCKS.get(kind) or _reducer_for(kind)

    def goes_by_value(self, obj: Any) -> bool:
        """Whether this function or class has to be taken apart here; its module is noted where it stays a name."""
        module = _module_of(obj)
        by_value = self.is_unknown_there(module) or not _is_found(obj)
        if not by_value:
            self.note(module)
        return by_value

    def is_unknown_there(self, module: str | None) -> bool:
        """Whether the other side cannot import it."""
        return module is None or kind_of(module) is Kind.VALUE

    def over(self, module: str | None, variables: dict[str, Any] | None = None) -> str:
        """What code of that module is built over; `variables` are its globals, which need not be the module's."""
        if is_installed(module):
            return MODULE
        if not travels_as_file(module) or variables is not None and variables is not vars(sys.modules[module or ""]):
            return VALUES
        self.note(module)
        return MODULE if self.with_files else EITHER

    def note(self, module: str | None) -> None:
        """The other side will import this module."""
        if self.referred is not None and isinstance(module, str):
            self.referred.note(module)

    def note_code(self, function: types.FunctionType) -> None:
        """The other side may run this function: what it imports counts, unless it is of an installed module."""
        if self.referred is not None and not is_installed(function.__globals__.get("__name__")):
            self.referred.note_code(function.__code__, _package_of(function.__globals__))

    def reduce_own_class(self, cls: type) -> Any:
        """The class itself, taken apart."""
        _Shipped.add(cls.__module__)
        over = self.over(cls.__module__)
        return _reduce_enum(cls, over) if isinstance(cls, enum.EnumType) else _reduce_plain_class(cls, over)


class MessagePickler(CodePickler):
    """Packs a message: data, the functions in it by value, and classes by name with their bytes at hand."""

    with_files = False

    def reducer_for(self, kind: type) -> Reducer | None:
        """As for code, but without locks: the copy of a lock guards nothing."""
        return _reducer_for(kind)

    def is_unknown_there(self, module: str | None) -> bool:
        """As for code, but a module of which no code was ever shipped is taken to be importable for the receiver."""
        return module in (None, "__main__", *_Shipped.modules)

    def reduce_own_class(self, cls: type) -> Any:
        """The class as its name, and as bytes for who does not know the name."""
        code = _class_as_bytes(cls)
        if self.referred is not None and cls in _class_refers:
            self.referred.add(_class_refers[cls])
        return make_known_class, (cls.__module__, cls.__qualname__, identity_of(cls), pickle.PickleBuffer(code))


def _reducer_for(kind: type) -> Reducer | None:
    if kind in _REDUCERS:
        return _REDUCERS[kind]
    if issubclass(kind, type):
        return _reduce_class
    if not isinstance(vars(kind).get("__module__", ""), str):  # functions of C and Cython: each has a module of its own
        return _reduce_named
    # dill knows the singletons that dataclasses keep in their methods.
    return _ask_dill if kind in _BY_DILL or kind.__module__ == "dataclasses" else _reducer_of_data(kind)


def _reducer_of_data(kind: type) -> Reducer | None:
    reduce = raised.reduce_error if issubclass(kind, BaseException) else arrays.reducer_for(kind)
    return reduce and (lambda pickler, obj: reduce(obj))


_class_refers: weakref.WeakKeyDictionary[type, Referred] = weakref.WeakKeyDictionary()


def _class_as_bytes(cls: type) -> bytes:
    """The class by value, packed once: a class changed afterwards travels as it first was."""
    known = bytes_of_class.get(cls)
    if known is None:
        file, referred = io.BytesIO(), Referred()
        pickler = CodePickler(file, 5, referred=referred)
        pickler.with_files = False
        pickler.dump(cls)
        known = bytes_of_class[cls] = file.getvalue()
        _class_refers[cls] = referred
    return known


def _reduce_function(pickler: CodePickler, function: types.FunctionType) -> Any:
    pickler.note_code(function)
    if not pickler.goes_by_value(function):
        return NotImplemented
    _Shipped.add(function.__module__)
    # A decorator from elsewhere gives its wrapper our module's name; its globals are still its own.
    home = function.__globals__.get("__name__") or function.__module__ or "__main__"
    over = pickler.over(home, function.__globals__)
    submodules = _used_submodules(function)
    for name in submodules:
        pickler.note(name)
    state = {
        "attributes": {name: getattr(function, name) for name in _FUNCTION_ATTRIBUTES},
        "annotations": _annotations(function),
        "dict": function.__dict__,
        "globals": None if over == MODULE else pickler.now_or_later(home, over, used_globals(function)),
        "imports": submodules,
    }
    return make_function, (home, over, function.__code__, function.__closure__), state, None, None, set_function


_FUNCTION_ATTRIBUTES = ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__")


def _annotations(function: types.FunctionType) -> dict[str, Any]:
    try:
        return function.__annotations__
    except NameError:  # CPython 3.14 works them out when asked; names for type checkers only do not exist
        return {}


def used_globals(function: types.FunctionType) -> dict[str, Any]:
    """The global variables that a function uses, or a function or class body inside it, by name.

    `__file__` only as the base name, which is what can hold elsewhere; `__package__` where relative imports may need it.
    """
    used, variables = {name for code in _codes(function.__code__) for name in _global_names(code)}, function.__globals__
    names = sorted(used - _NOT_SHIPPED)  # in order, so that the same code is the same bytes
    found = {name: variables[name] for name in names if name in variables}
    if "__file__" in used and isinstance(variables.get("__file__"), str):
        found["__file__"] = os.path.basename(variables["__file__"])
    if "__package__" in used and variables.get("__package__"):
        found["__package__"] = variables["__package__"]
    return found


def _package_of(variables: dict[str, Any]) -> str:
    """Where relative imports in a module start from (PEP 366)."""
    name, spec = variables.get("__name__") or "", variables.get("__spec__")
    package = variables.get("__package__")
    if package is None and spec is not None:
        package = spec.parent
    return str(package if package is not None else name if "__path__" in variables else name.rpartition(".")[0])


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
        elif instruction.opname == "IMPORT_NAME":
            yield "__package__"


def _used_submodules(function: types.FunctionType) -> list[str]:
    """What `import a.b` made reachable as an attribute: the name `a` alone does not import it elsewhere."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    used = (function.__globals__.get(name) for name in names)
    prefixes = tuple(f"{value.__name__}." for value in used if isinstance(value, types.ModuleType))
    loaded = [name for name in list(sys.modules) if name.startswith(prefixes)] if prefixes else []
    return sorted(name for name in loaded if names.issuperset(name.split(".")[1:]))


def _reduce_class(pickler: CodePickler, cls: type) -> Any:
    if not cls.__flags__ & HEAP_TYPE:
        pickler.note(cls.__module__)
        known = cls in _NAMED_TYPES and not _is_found(cls)  # FunctionType says `builtins.function`: not there
        return (getattr, (types, _NAMED_TYPES[cls])) if known else NotImplemented
    return pickler.reduce_own_class(cls) if pickler.goes_by_value(cls) else NotImplemented


_NAMED_TYPES = {value: name for name, value in vars(types).items() if isinstance(value, type)}


def _reduce_plain_class(cls: type, over: str) -> Any:
    own = _own_attributes(cls)
    seeds: Seeds = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    for name in own.keys() & {"__slots__", "__orig_bases__"}:
        seeds[name] = own.pop(name)
    args = (over, type(cls), cls.__name__, cls.__bases__, seeds)
    return make_class, args, {"attributes": own, "identity": identity_of(cls)}, None, None, set_class


def _own_attributes(cls: type) -> dict[str, Any]:
    """What a class holds, without what it has by being made: slots, `__dict__`, an ABC's own record."""
    return {
        name: value
        for name, value in vars(cls).items()
        if name not in ("__module__", "_abc_impl") and not (isinstance(value, _SLOT_TYPES) and value.__objclass__ is cls)
    }


_SLOT_TYPES = (types.MemberDescriptorType, types.GetSetDescriptorType)


def _reduce_enum(cls: enum.EnumType, over: str) -> Any:
    """An enum by its members' values, which a class takes only while it is made; what they carry is later."""
    members: dict[str, Any] = dict(cls.__members__)
    own = {name: value for name, value in _own_attributes(cls).items() if name not in members}
    for name in [name for name in own if _is_made_by_enum(name)]:
        del own[name]
    carried = {name: dict(_carried_by(member)) for name, member in members.items()}
    seeds = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    values = {name: member.value for name, member in members.items()}
    args = (over, type(cls), cls.__name__, cls.__bases__, seeds, values)
    state = {"attributes": own, "members": carried, "identity": identity_of(cls)}
    return make_enum, args, state, None, None, set_class


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
    if sys.modules.get(module.__name__) is not module:
        raise TypeError(f"cannot pickle the module {module.__name__!r}, which nobody can import by that name")
    pickler.note(module.__name__)
    return importlib.import_module, (module.__name__,)


def _reduce_named(pickler: CodePickler, obj: Any) -> Any:
    pickler.note(_module_of(obj))
    return NotImplemented


def _reduce_cached(pickler: CodePickler, function: Any) -> Any:
    return _ask_dill(pickler, function) if pickler.goes_by_value(function) else NotImplemented


def _reduce_type_variable(pickler: CodePickler, variable: Any) -> Any:
    if not pickler.goes_by_value(variable):
        return NotImplemented
    kind = {"covariant": variable.__covariant__, "contravariant": variable.__contravariant__}
    args = (variable.__name__, *variable.__constraints__)
    made = functools.partial(typing.TypeVar, *args, bound=variable.__bound__, **kind)
    return made, (), (None, {"__module__": variable.__module__})


def _reduce_named_variable(pickler: CodePickler, variable: Any) -> Any:
    return NotImplemented if is_installed(variable.__module__) else (type(variable), (variable.__name__,))


def _reduce_new_type(pickler: CodePickler, new_type: Any) -> Any:
    if not pickler.goes_by_value(new_type):
        return NotImplemented
    args = (new_type.__qualname__, new_type.__supertype__)
    return typing.NewType, args, {"__module__": new_type.__module__}


def _reduce_weak_dict(pickler: CodePickler, items: Any) -> Any:
    return type(items), (dict(items),)  # singledispatch keeps its cache in one


def _reduce_globals(pickler: CodePickler, variables: _Globals) -> Any:
    return set_globals, tuple(variables)


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
    typing.ParamSpec: _reduce_named_variable,
    typing.TypeVarTuple: _reduce_named_variable,
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
