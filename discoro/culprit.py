"""Which object inside a message it was that could not be packed: its place, why, and what to do.

It only looks: it packs nothing anew but a class, and changes nothing. Somebody's properties or methods that fail while it looks
never hide the error that it describes.

How its parts play together. The pickler knows the object that it met last (`_culprit`); `_way_to` searches the message for
it, breadth first, over what `_inside` says that an object consists of; `described` makes one sentence of both.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from itertools import islice
from reprlib import repr as short
from types import CoroutineType, FunctionType, GeneratorType
from typing import Any

from discoro.raised import reason
from discoro.shipping import CodePickler, MessagePickler, used_globals

SEARCH_STEPS = 100_000  # objects looked at in search of a culprit: about a second

Step = tuple[str, str, object]  # what it adds to the path; its place in a module, if it has one; the object


def described(obj: object, pickler: CodePickler, what: str, error: Exception) -> str:
    """The text of a PackError: the place of the object that failed, why it did, and what to do."""
    if isinstance(error, RecursionError | BufferError):  # whatever was met last is not at fault
        return f"{what}: {reason(error)}; send it in another form, flatter and contiguous"
    advice = _IN_GENERAL
    try:
        culprit = _culprit(pickler)
        advice = _advice(culprit)
        path, origin = _way_to(culprit, obj, what)
    except Exception:  # somebody's properties or items() failed; the error itself must still be told
        path, origin = what, ""
    place = f" (from {origin})" if origin else ""
    return f"{path}: {reason(error)}{place}; {advice}"


_IN_GENERAL = "send what it is made from, and make it where it is used"
_BY_TYPE = {
    "builtins.memoryview": "send bytes(view), or a view without gaps of one of the formats that memoryview.cast knows",
    "mmap.mmap": "send the path of the mapped file, or the bytes of it that are wanted",
    "weakref.ReferenceType": "send the object that it refers to",
    "weakref.WeakMethod": "send the object that it refers to",
    "_thread.lock": "a lock guards the process that it is in: make one where it is used",
    "_thread.RLock": "a lock guards the process that it is in: make one where it is used",
    "_contextvars.ContextVar": "send its value, and define it in a module that both sides import",
    "_asyncio.Future": "await it, and send its result",
    "_asyncio.Task": "await it, and send its result",
}


def _advice(culprit: object) -> str:
    kind = type(culprit)
    if isinstance(culprit, CoroutineType | GeneratorType):
        return f"{culprit.__qualname__}(...) gives one until it is awaited: did you forget yield or await?"
    if isinstance(culprit, io.IOBase):
        return "send the path of the file, or what was read from it"
    return _BY_TYPE.get(f"{kind.__module__}.{kind.__qualname__}", _IN_GENERAL)


def _culprit(pickler: CodePickler) -> object:
    """The object that the pickler met last, which is the one it failed at."""
    if not isinstance(pickler.last, type) or not isinstance(pickler, MessagePickler):
        return pickler.last
    inner = CodePickler(io.BytesIO(), 5)  # a class in a message is packed on its own: what was it there?
    try:
        inner.dump(pickler.last)
    except Exception:  # whatever the object's own reduction raises: only where it happened is looked for
        return inner.last
    return pickler.last


def _way_to(culprit: object, root: object, what: str) -> tuple[str, str]:
    """The shortest path from the root to that object, and its origin; the root's name where none is found."""
    seen: dict[int, object] = {}  # keeps them alive, as ids of what is gone come again
    queue = deque([(what, "", root)])
    while queue and len(seen) < SEARCH_STEPS:
        path, origin, obj = queue.popleft()
        if obj is culprit:
            return path, origin
        if id(obj) in seen:
            continue
        seen[id(obj)] = obj
        inside = (step for step in _inside(obj) if not isinstance(step[2], _PLAIN))
        for step, source, child in islice(inside, SEARCH_STEPS - len(queue)):
            into_code = source or origin  # from there on, the place is told by names in the code
            queue.append((path, source or origin + step, child) if into_code else (path + step, "", child))
    return what, ""


_PLAIN = (str, bytes, int, float, type(None))  # never at fault, and many


def _inside(obj: Any) -> Iterator[Step]:
    """What an object consists of, as pickle sees it."""
    if isinstance(obj, dict):
        yield from ((f"[{short(key)}]", "", value) for key, value in obj.items())
        yield from ((f" key {short(key)}", "", key) for key in obj)
    elif isinstance(obj, list | tuple):
        yield from ((f"[{index}]", "", item) for index, item in enumerate(obj))
    elif isinstance(obj, set | frozenset):
        yield from ((f" item {short(item)}", "", item) for item in obj)
    elif isinstance(obj, FunctionType):
        yield from _inside_function(obj)
    elif isinstance(obj, BaseException):
        yield from ((f".{name}", "", getattr(obj, name)) for name in ("args", *vars(obj), "__cause__"))
    elif hasattr(type(obj), "__dataclass_fields__"):
        yield from ((f".{name}", "", getattr(obj, name, None)) for name in type(obj).__dataclass_fields__)
    elif isinstance(obj, type):
        place = f"{obj.__module__}.{obj.__qualname__}"
        yield from (("", f"{place}.{name}", value) for name, value in vars(obj).items())
    if type(obj) not in _BUILT_IN and not isinstance(obj, type):
        yield from _inside_reduced(obj)


_BUILT_IN = (dict, list, tuple, set, frozenset, FunctionType)


def _inside_function(function: FunctionType) -> Iterator[Step]:
    name = f"{function.__module__}.{function.__qualname__}"
    yield from (("", f"{function.__module__}.{key}", value) for key, value in used_globals(function).items())
    yield from (("", f"a default of {name}", value) for value in function.__defaults__ or ())
    yield from (("", f"a default of {name}", value) for value in (function.__kwdefaults__ or {}).values())
    yield from (("", f"{name}.{key}", value) for key, value in vars(function).items())
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield from (("", f"{variable!r} in {name}", value) for _, _, value in _inside(cell))


def _inside_reduced(obj: Any) -> Iterator[Step]:
    try:
        reduced = CodePickler(io.BytesIO(), 5).reducer_override(obj)
        reduced = obj.__reduce_ex__(5) if reduced is NotImplemented else reduced
    except Exception:  # it cannot be taken apart, so nothing inside it is at fault
        return
    if not isinstance(reduced, tuple):
        return
    _, args, state, items, pairs = (*reduced, None, None, None)[:5]
    yield from (("", "", arg) for arg in args)
    for part in state if isinstance(state, tuple) else (state,):  # (attributes, slots) where it has slots
        named = part.items() if isinstance(part, dict) else ()
        yield from ((f".{name}", "", value) for name, value in named)
        yield ("", "", part)
    yield from ((f"[{index}]", "", item) for index, item in enumerate(items or ()))
    yield from ((f"[{short(key)}]", "", value) for key, value in pairs or ())
