"""Objects to bytes and back: pickle 5 for data, and code by value where pickle knows a name only.

It never unpickles before it is asked to, and whoever asks must trust the sender: what is unpacked can run any
code. It sends and receives nothing, and keeps no message.

How its parts play together. `pack` tries plain pickle; where that fails, or its bytes name something that the
other side may not be able to import, it packs again with shipping.py's `MessagePickler`. Large buffers stay
out of the pickle, as parts of their own. `pack_code` is for computations: everything by value. What cannot be
packed is searched for its culprit, so that the error names the place inside the message.
"""

from __future__ import annotations

import io
import pickle
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from reprlib import repr as short
from types import CoroutineType, FunctionType, GeneratorType
from typing import Any

from discoro.errors import PackError, RemoteError, UnpackError
from discoro.messages import MAX_PARTS, MAX_TEXT, Part
from discoro.shipping import (
    MARK,
    Builder,
    CodePickler,
    MessagePickler,
    Namespace,
    load,
    mentions_code,
    used_globals,
)

__all__ = (
    "Namespace",
    "Part",
    "error_text",
    "pack",
    "pack_code",
    "pack_error",
    "unpack",
    "unpack_code",
    "unpack_error",
)

OUT_OF_BAND = 64 * 1024  # bytes; below it a part of its own costs more than the copy (zmq.COPY_THRESHOLD)
BUFFERS = MAX_PARTS - 2  # besides the pickle and the texts of an error; further ones go into the pickle
ERROR_OBJECT = 1024 * 1024  # bytes; who waits for a result must hear of its error, whatever it carries
SEARCH_STEPS = 100_000  # objects looked at in search of a culprit: about a second

# What stands in place of a pickle, which would begin with 0x80, before bytes too large to be copied into one.
_FLAT: dict[type, bytes] = {bytes: b"bytes", bytearray: b"bytearray"}
_BYTES = (bytes, bytearray)


def pack(obj: object) -> list[Part]:
    """A message as parts: the pickle, then its buffers of 64 KiB or more, read-only ones uncopied.

    Functions in it go by value; classes of `__main__`, and of modules of which this process has shipped code,
    go as their name and, for a receiver without a class of that name, as bytes. Raises PackError, which names
    the place of what cannot be packed.
    """
    if isinstance(obj, _BYTES) and type(obj) in _FLAT and len(obj) >= OUT_OF_BAND:
        return [_FLAT[type(obj)], bytes(obj)]  # which of bytes is no copy
    buffers: list[memoryview] = []
    try:
        body = pickle.dumps(obj, 5, buffer_callback=partial(_set_aside, buffers))
    except Exception:  # pickle and the classes it meets raise anything; the second attempt says what is wrong
        return _pack(obj, MessagePickler, "message")
    if mentions_code(body):
        return _pack(obj, MessagePickler, "message")
    return _parts(body, buffers) if buffers else [body]


def pack_code(objects: Sequence[object]) -> list[Part]:
    """Functions and classes by value, as one graph, with the globals, helpers and classes that they use.

    What every worker can import (the standard library, installed packages, discoro) stays a name, and so do
    modules. Names that code reaches only through `globals()` or `eval` are not found. Raises PackError.
    """
    return _pack(list(objects), CodePickler, "code")


def unpack(parts: Sequence[Part], namespace: Namespace | None = None) -> Any:
    """The message that `pack` made; code in it is built in the namespace, and nothing there is replaced.

    Without a namespace, classes are this process's own of the same name, where there are any. Arrays and
    bytearrays come back writable, and take over a writable part. Raises UnpackError, also for whatever a
    class raises while its instance is rebuilt.
    """
    if not parts:
        raise UnpackError("cannot unpack a message without parts: what sent it is broken")
    if len(parts) == 2 and parts[0] in _FLAT.values():
        return bytes(parts[1]) if parts[0] == _FLAT[bytes] else _writable_bytearray(parts[1])
    return _unpack(parts, "a message", namespace, keep=True)


def unpack_code(parts: Sequence[Part], namespace: Namespace, keep: bool = False) -> list[Any]:
    """The objects that `pack_code` was given, built over the namespace, where each finds the others by name.

    Global variables that come with the code replace those of the same name, as a new computation wants it;
    with `keep`, what stands in the namespace stays: what `setup(func)` set is still there for `close(func)`.
    Raises UnpackError.
    """
    objects = _unpack(parts, "code", namespace, keep)
    if not isinstance(objects, list):
        raise UnpackError(f"cannot unpack code: a list was expected, not {short(objects)}")
    for obj in objects:
        namespace.bind(obj, keep)
    return objects


def _pack(obj: object, kind: type[CodePickler], what: str) -> list[Part]:
    buffers: list[memoryview] = []
    file = io.BytesIO()
    pickler = kind(file, 5, buffer_callback=partial(_set_aside, buffers))
    try:
        pickler.dump(obj)
    except Exception as error:
        raise PackError(_describe(obj, pickler, what, error)) from error
    return _parts(file.getvalue(), buffers)


def _set_aside(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    """Pickle's callback: keep a large buffer out of the pickle; a true result has pickle put it in."""
    view = buffer.raw()
    if view.nbytes < OUT_OF_BAND or len(buffers) >= BUFFERS:
        return True
    buffers.append(view)
    return False


def _parts(body: bytes, buffers: list[memoryview]) -> list[Part]:
    # Writable ones are copied: a write between `send` and the last byte leaving would tear the message.
    return [body, *(view if view.readonly else bytes(view) for view in buffers)]


def _unpack(parts: Sequence[Part], what: str, namespace: Namespace | None, keep: bool) -> Any:
    try:
        body = parts[0] if isinstance(parts[0], _BYTES) else bytes(parts[0])
        buffers = [_writable(part) for part in parts[1:]] if len(parts) > 1 else ()
        if MARK not in body and (namespace is None or not namespace.is_named_in(body)):
            return pickle.loads(body, buffers=buffers)
        return load(body, Builder(namespace, keep), buffers)
    except (Exception, SystemExit) as error:  # a module that exits when imported must not take us along
        raise UnpackError(f"cannot unpack {what}: {_reason(error)}{_remedy(error)}") from error


def _writable(part: Part) -> bytearray | memoryview:
    """The buffer for an object that may be written to; pickle makes it read-only where the original was."""
    view = memoryview(part)
    return bytearray(part) if view.readonly else view


def _writable_bytearray(part: Part) -> bytearray:
    return part if isinstance(part, bytearray) else bytearray(part)


def _reason(error: BaseException) -> str:
    text = error_text(error)
    plain = text and isinstance(error, TypeError | pickle.PickleError)
    return text if plain else f"{type(error).__name__}: {text}"


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"; install {error.name} on this machine, or send it along in `depends`"
    return ""


# ---- errors --------------------------------------------------------------------------------------


def pack_error(error: BaseException) -> list[Part]:
    """An exception as parts: its type, text and traceback as strings always, itself where it can be packed.

    Never raises, so that who waits for a result hears of its failure. Texts are cut to 64 Ki characters, and
    an exception of more than 1 MiB goes as text only.
    """
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    texts = (kind, _cut(error_text(error)), _cut("".join(traceback.format_exception(error))))
    try:
        itself = pack(_as_pieces(error))
    except PackError:
        itself = []
    if sum(memoryview(part).nbytes for part in itself) > ERROR_OBJECT:
        itself = []
    return [pickle.dumps(texts, 5), *itself]


def unpack_error(parts: Sequence[Part], namespace: Namespace | None = None) -> BaseException:
    """The exception that `pack_error` was given, caused by a RemoteError with the text of its traceback.

    Where it did not travel, or cannot be rebuilt here, a RemoteError with type, text and traceback. Raises
    UnpackError when the parts are no error at all.
    """
    texts = _unpack(parts[:1], "an error", None, keep=True) if parts else None
    if not (isinstance(texts, tuple) and len(texts) == 3 and all(isinstance(text, str) for text in texts)):
        raise UnpackError("cannot unpack an error: its parts hold none")
    kind, text, trace = texts
    without = RemoteError(f"{kind}: {text}\n\n{trace}")
    if len(parts) == 1:
        return without
    try:
        error = _from_pieces(unpack(parts[1:], namespace))
    except UnpackError as failure:
        without.add_note(f"The exception itself did not arrive: {failure}")
        return without
    error.__cause__ = RemoteError(f"the traceback where it was raised:\n\n{trace}")
    return error


def _as_pieces(error: BaseException) -> object:
    """What rebuilds an exception without its `__init__`, which often wants more than is in `args`."""
    kind = type(error)
    if kind.__reduce__ is BaseException.__reduce__ and kind.__reduce_ex__ is BaseException.__reduce_ex__:
        return kind, error.args, vars(error)
    return error


def _from_pieces(found: Any) -> BaseException:
    try:
        if isinstance(found, BaseException):
            return found
        kind, args, attributes = found
        # The built-in class below sets what only it can: args, SystemExit's code, StopIteration's value.
        base = next(cls for cls in kind.__mro__ if cls.__module__ == "builtins")
        error: BaseException = base.__new__(kind, *args)
        base.__init__(error, *args)
        error.__dict__.update(attributes)
        return error.with_traceback(None)  # which also shows that it is an exception
    except Exception as failure:
        raise UnpackError(f"cannot rebuild {short(found)}: {_reason(failure)}") from failure


def error_text(error: BaseException) -> str:
    """The text of an exception of whatever class."""
    try:
        return str(error)
    except Exception:  # somebody's __str__ is at fault, and must not hide the error that it describes
        return "<its str() failed>"


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


# ---- which object it was -------------------------------------------------------------------------

Step = tuple[str, str, object]  # what it adds to the path; its place in a module, if it has one; the object


def _describe(obj: object, pickler: CodePickler, what: str, error: Exception) -> str:
    """The text of a PackError: the place of the object that failed, why it did, and what to do."""
    reason = _reason(error)
    if isinstance(error, RecursionError | BufferError):  # whatever was met last is not at fault
        return f"{what}: {reason}; send it in another form, flatter and contiguous"
    advice = "send what it is made from, and make it where it is used"
    try:
        culprit = _culprit(pickler)
        if isinstance(culprit, CoroutineType | GeneratorType):
            advice = f"{culprit.__qualname__}(...) gives one until it is awaited: did you forget yield or await?"
        path, origin = _way_to(culprit, obj, what)
    except Exception:  # somebody's properties or items() failed; the error itself must still be told
        path, origin = what, ""
    place = f" (from {origin})" if origin else ""
    return f"{path}: {reason}{place}; {advice}"


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


def warm_up() -> None:
    """Load what the first function would load (dill, some milliseconds), so that no client waits for it."""
    pack_code([lambda: None])  # not one that has a name: that would travel as the name
