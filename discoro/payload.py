"""Objects to bytes and back: pickle 5 for data, and code by value where pickle knows a name only.

It never unpickles before it is asked to, and whoever asks must trust the sender: what is unpacked can run any
code. It sends and receives nothing, and keeps no message.

How its parts play together. `pack` tries plain pickle; where that fails, or where it would copy what can travel as it lies, or
its bytes name what wants another care, it packs with shipping.py's `MessagePickler`, which takes apart code by
itself, memory by arrays.py and exceptions by raised.py. Large buffers stay out of the pickle, as parts of their own, and so do
large bytes: they are cut out of it (`_Outgoing`), and read past the cuts at the other side (`_Pieces`). `pack_code` is for
computations: what no worker can import goes by value. culprit.py says which object it was that cannot be packed.
"""

from __future__ import annotations

import io
import pickle
import traceback
from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from reprlib import repr as short
from typing import Any

from discoro import raised
from discoro.arrays import is_large, may_change
from discoro.building import MARK, Builder, Namespace, load
from discoro.culprit import described
from discoro.errors import PackError, RemoteError, UnpackError
from discoro.memory import Unkept, as_bytes, copied
from discoro.messages import MAX_PARTS, Part
from discoro.modules import Referred
from discoro.packing import MAX_TEXT
from discoro.raised import error_text, reason
from discoro.shipping import CodePickler, MessagePickler, mentions_code, note_files

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
    "unpack_small",
)

OUT_OF_BAND = 64 * 1024  # bytes; below it a part of its own costs more than the copy (zmq.COPY_THRESHOLD)
BULK = 256 * 1024  # bytes inside other objects; pickle writes what is smaller together, in frames of 64 to 128 KiB
BUFFERS = MAX_PARTS - 3  # besides the pickle, its head and the texts of an error; further ones go into the pickle
LOOKED_AT = 8  # items of a container in search of large ones: that costs every message, and finding none only a copy
DEEP = 3  # containers in each other: `((frame,), {})` are the arguments of a call, with a list of them
ERROR_OBJECT = 1024 * 1024  # bytes; who waits for a result must hear of its error, whatever it carries
LOST_TEXT = 500  # characters of an exception that does not travel: its traceback says the rest

# What stands in place of a pickle, which would begin with 0x80, before bytes too large to be copied into one.
_FLAT: dict[type, bytes] = {bytes: b"bytes", bytearray: b"bytearray"}
_PLAIN = b"="  # before small bytes, in one part with them: pickle takes 0.35 µs for there and back, this a tenth
_CUT = b"cut "  # and before the pieces of a pickle, with their number
_BYTES = (bytes, bytearray)
_NAMES = b"\x93"  # STACK_GLOBAL: stands in every pickle of protocol 5 that names a class or function
_NEW_NAME = b"\x94\x93"  # behind a name that is in the pickle for the first time; numbers seldom look like it


def pack(obj: object, referred: Referred | None = None) -> list[Part]:
    """A message as parts: the pickle, then its buffers of 64 KiB or more, read-only ones uncopied.

    Functions in it go by value; classes of `__main__`, and of modules of which this process has shipped code,
    go as their name and, for a receiver without a class of that name, as bytes. `referred` hears of the local
    modules that the receiver will import. Raises PackError, which names the place of what cannot be packed.
    """
    if type(obj) is bytes and len(obj) < OUT_OF_BAND:
        return [_PLAIN + obj]
    if _is_simple(obj):
        return [pickle.dumps(obj, 5)]
    if type(obj) in _CONTAINERS:
        if _holds_bulk(obj):
            return _pack(obj, MessagePickler, "message", referred)
    elif isinstance(obj, _BYTES) and type(obj) in _FLAT and len(obj) >= OUT_OF_BAND:
        return [_FLAT[type(obj)], bytes(obj)]  # which of bytes is no copy
    elif _is_bulk(obj):
        return _pack(obj, MessagePickler, "message", referred)
    buffers: list[memoryview] = []
    try:
        body = pickle.dumps(obj, 5, buffer_callback=partial(_set_aside, buffers))
    except Exception:  # pickle and the classes it meets raise anything; the second attempt says what is wrong
        return _pack(obj, MessagePickler, "message", referred)
    if _NAMES in body and (mentions_code(body) or (_NEW_NAME in body and (_COPIED in body or _holds_error(obj)))):
        return _pack(obj, MessagePickler, "message", referred)
    if referred is not None:
        note_files(body, referred)
    return [body, *map(_fixed, buffers)] if buffers else [body]


def pack_code(objects: Sequence[object], referred: Referred | None = None) -> list[Part]:
    """Functions and classes as one graph: by value, with the globals, helpers and classes that they use.

    What a worker imports stays a name: modules, and what is in those that are installed, or local and travel as
    files. `referred` hears of these, and of all code whose imports count. Names that code reaches only through
    `globals()` or `eval` are not found. Raises PackError.
    """
    return _pack(list(objects), CodePickler, "code", referred)


def unpack(parts: Sequence[Part], namespace: Namespace | None = None, *, shared: bool = False) -> Any:
    """The message that `pack` made; code in it is built in the namespace, and nothing there is replaced.

    Without a namespace, classes are this process's own of the same name, where there are any. Arrays,
    memoryviews and bytearrays come back writable where the originals were, and take over a writable part. With `shared` no
    buffer is copied, and none is written to: arrays and memoryviews lie in the parts as they are, and are
    read-only; bytes and bytearrays own their memory, and are copies. Raises UnpackError, also for whatever a
    class raises while its instance is rebuilt.
    """
    _must_have_parts(parts, "a message")
    if len(parts) == 1:
        return unpack_small(parts[0] if isinstance(parts[0], _BYTES) else bytes(parts[0]), namespace)
    if len(parts) == 2 and parts[0] in _FLAT.values():
        return as_bytes(parts[1]) if parts[0] == _FLAT[bytes] else _writable_bytearray(parts[1], shared)
    return _unpack(parts, "a message", namespace, True, shared)


def unpack_small(body: bytes | bytearray, namespace: Namespace | None) -> Any:
    """The same for a message of one part, as most are."""
    if body[:1] == _PLAIN:
        return bytes(body[1:])
    if _NAMES in body:
        return _unpack((body,), "a message", namespace, True)
    try:
        return pickle.loads(body)
    except (Exception, SystemExit) as error:
        raise _cannot_unpack("a message", error) from error


def unpack_code(parts: Sequence[Part], namespace: Namespace, keep: bool = False) -> list[Any]:
    """The objects that `pack_code` was given, built over the namespace, where each finds the others by name.

    Global variables that come with the code replace those of the same name, as a new computation wants it;
    with `keep`, what stands in the namespace stays: what `setup(func)` set is still there for `close(func)`.
    Raises UnpackError.
    """
    _must_have_parts(parts, "code")
    objects = _unpack(parts, "code", namespace, keep)
    if not isinstance(objects, list):
        raise UnpackError(f"cannot unpack code: a list was expected, not {short(objects)}")
    for obj in objects:
        namespace.bind(obj, keep)
    return objects


# ---- in search of the right way ------------------------------------------------------------------

_LEAVES = frozenset((int, float, bool, type(None), complex, str))
_CONTAINERS = (dict, list, tuple)


def _is_simple(obj: Any, deep: int = 1) -> bool:
    """Whether it is a value that plain pickle takes and that is of nobody's class, or a short tuple, list or dict of such ones.

    `deep`: containers in each other, besides; arguments of a call are a dict in a tuple.
    """
    kind = type(obj)
    if kind in _LEAVES:
        return True
    if kind not in _CONTAINERS or len(obj) > LOOKED_AT:
        return False
    items = (*obj, *obj.values()) if kind is dict else obj
    if _LEAVES.issuperset(map(type, items)):
        return True
    if not deep:
        return False
    for item in items:
        if not _is_simple(item, deep - 1):
            return False
    return True


_COPIED = b"reconstruct\x94"  # numpy's way for arrays whose memory it copies, and whose read-only mark it then forgets


def _holds_bulk(container: Any, deep: int = DEEP) -> bool:
    """Whether it holds, not far inside, what plain pickle would copy although it can travel as it lies."""
    items = container.values() if type(container) is dict else container
    for item in items if len(container) <= LOOKED_AT else islice(items, LOOKED_AT):
        kind = type(item)
        if kind in _LEAVES:
            continue
        if kind in _CONTAINERS:
            if deep and _holds_bulk(item, deep - 1):
                return True
        elif _is_bulk(item):
            return True
    return False


def _is_bulk(obj: Any) -> bool:
    return len(obj) >= BULK if type(obj) in _BYTES else is_large(obj, BULK)


def _holds_error(obj: Any, deep: int = DEEP) -> bool:
    """Whether it is or holds, not far inside, an exception: plain pickle forgets causes, and calls `__init__`."""
    if type(obj) not in _CONTAINERS:
        return issubclass(type(obj), BaseException)
    items = obj.values() if type(obj) is dict else obj
    kinds = set(map(type, items))  # a list of 1000 is looked through in 10 µs
    for kind in kinds:
        if issubclass(kind, BaseException):
            return True
    if not deep or kinds.isdisjoint(_CONTAINERS):
        return False
    return any(_holds_error(item, deep - 1) for item in items if type(item) in _CONTAINERS)


# ---- parts ---------------------------------------------------------------------------------------


class _Outgoing:
    """The parts of one message in the making: what a pickler writes, cut around large bytes, and the buffers it sets aside."""

    def __init__(self) -> None:
        self._pieces: list[Part] = []  # in turns: what pickle wrote, and large bytes
        self._small: list[bytes] = []
        self._buffers: list[memoryview] = []

    def write(self, data: Any) -> None:
        """Pickle's file: gets frames, and by themselves large bytes, bytearrays and buffers."""
        if memoryview(data).nbytes < BULK or len(self._pieces) + len(self._buffers) + 2 > BUFFERS:
            self._small.append(bytes(data))
        else:
            self._pieces += [b"".join(self._small), bytes(data)]
            self._small.clear()

    def set_aside(self, buffer: pickle.PickleBuffer) -> bool:
        """Pickle's callback: a true result has pickle put the buffer into the pickle."""
        return _set_aside(self._buffers, buffer, len(self._pieces))

    def parts(self) -> list[Part]:
        """All of them; the pickle alone where nothing was cut out of it."""
        pieces = [*self._pieces, b"".join(self._small)]
        head = [_CUT + b"%d" % len(pieces)] if len(pieces) > 1 else []
        return [*head, *pieces, *map(_fixed, self._buffers)]


def _set_aside(buffers: list[memoryview], buffer: pickle.PickleBuffer, others: int = 0) -> bool:
    """Keep a large buffer out of the pickle; a true result has pickle put it in."""
    view = buffer.raw()
    if view.nbytes < OUT_OF_BAND or len(buffers) + others >= BUFFERS:
        return True
    buffers.append(view)
    return False


def _fixed(view: memoryview) -> Part:
    # A write between `send` and the last byte leaving would tear the message.
    return copied(view) if may_change(view) else view


class _Pieces(io.RawIOBase):
    """A pickle that was cut, as the file that pickle reads: large bytes go from their piece to their place at once."""

    def __init__(self, pieces: Sequence[Part]) -> None:
        self.written = b"".join(pieces[::2])  # without the large bytes: every name is in here
        self._left: deque[memoryview] = deque(memoryview(piece) for piece in pieces)
        self._size = sum(view.nbytes for view in self._left)
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        """Fill all of the target, unless the end comes before."""
        wanted = memoryview(target).cast("B")
        done = 0
        while done < wanted.nbytes and self._left:
            piece = self._left.popleft()
            some = min(piece.nbytes, wanted.nbytes - done)
            wanted[done : done + some] = piece[:some]
            done += some
            if some < piece.nbytes:
                self._left.appendleft(piece[some:])
        self._at += done
        return done


# ---- both directions -----------------------------------------------------------------------------


def _pack(obj: object, kind: type[CodePickler], what: str, referred: Referred | None = None) -> list[Part]:
    outgoing = _Outgoing()
    pickler = kind(outgoing, 5, buffer_callback=outgoing.set_aside, referred=referred)
    try:
        pickler.dump(obj)
    except Exception as error:
        raise PackError(described(obj, pickler, what, error)) from error
    return outgoing.parts()


def _must_have_parts(parts: Sequence[Part], what: str) -> None:
    if isinstance(parts, Unkept):
        raise UnpackError(f"cannot unpack {what} of {parts}")
    if not parts:
        raise UnpackError(f"cannot unpack {what} without parts: what sent it is broken")


def _unpack(parts: Sequence[Part], what: str, namespace: Namespace | None, keep: bool, shared: bool = False) -> Any:
    try:
        buffers: Sequence[Part] = ()
        if len(parts) > 1:
            body, written, buffers = _apart(parts, shared)
        else:
            body = written = parts[0] if isinstance(parts[0], _BYTES) else bytes(parts[0])
        if _NAMES in written and (MARK in written or (namespace is not None and namespace.is_named_in(written))):
            return load(body, Builder(namespace, keep), buffers)
        if written is not body:
            return pickle.Unpickler(body, buffers=buffers).load()
        try:
            return pickle.loads(written, buffers=buffers)
        except TypeError as error:
            return _patiently(written, buffers, error)
    except (Exception, SystemExit) as error:  # a module that exits when imported must not take us along
        raise _cannot_unpack(what, error) from error


def _cannot_unpack(what: str, error: BaseException) -> UnpackError:
    return UnpackError(f"cannot unpack {what}: {reason(error)}{_remedy(error)}")


class _Patient(pickle.Unpickler):
    """Makes exceptions without their `__init__`: what pickle calls it with is `args`, and many want something else."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return partial(raised.made_of, found) if isinstance(found, type) and issubclass(found, BaseException) else found


def _patiently(body: bytes | bytearray, buffers: Sequence[Part], error: TypeError) -> Any:
    """A pickle that could not be loaded, perhaps for an exception deep inside of it; that error where it is another one."""
    try:
        return _Patient(io.BytesIO(body), buffers=buffers).load()
    except Exception:  # whatever it is: what went wrong first has to be told
        raise error from None


def _apart(parts: Sequence[Part], shared: bool) -> tuple[Any, bytes | bytearray, Sequence[Part]]:
    """The pickle as pickle reads it, its bytes in which names stand, and its buffers."""
    pieces = int(bytes(parts[0][len(_CUT) :])) if parts[0][: len(_CUT)] == _CUT else 0
    buffers = [_lent(part) if shared else _writable(part) for part in parts[pieces + 1 :]]
    if pieces:
        body = _Pieces(parts[1 : pieces + 1])
        return body, body.written, buffers
    written = parts[0] if isinstance(parts[0], _BYTES) else bytes(parts[0])
    return written, written, buffers


def _writable(part: Part) -> Part:
    """The buffer for an object that may be written to; pickle makes it read-only where the original was."""
    view = memoryview(part)
    return bytearray(part) if view.readonly else view


def _lent(part: Part) -> memoryview:
    return memoryview(part).toreadonly()


def _writable_bytearray(part: Part, shared: bool) -> bytearray:
    return part if isinstance(part, bytearray) and not shared else bytearray(part)


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"; install {error.name} on this machine, or send it along in `depends`"
    return ""


# ---- errors --------------------------------------------------------------------------------------

# One exception in the table of an error: what `pack` made of its pieces, None where that failed; the text of
# what stands in its place; the number of its cause, whether its context is suppressed, the numbers of a group's members.
_Row = tuple[list[bytes] | None, str, int | None, bool, list[int] | None]


def pack_error(error: BaseException) -> list[Part]:
    """An exception as parts: its type, text and traceback as strings always, itself and its causes where they can be packed.

    With it travel the causes that its author gave (`raise X from Y`), up to 16, and the members of a group; one
    that cannot be packed is replaced by a RemoteError which says what it was. A context that is no cause stands
    in the traceback only. Never raises, so that who waits for a result hears of its failure. Texts are cut to
    64 Ki characters, and exceptions that together are more than 1 MiB go as texts.
    """
    texts = (_kind_of(error), _cut(error_text(error), MAX_TEXT), _cut(_traceback(error), MAX_TEXT))
    table: list[_Row] = []
    room = ERROR_OBJECT
    for node in raised.lay_out(error):
        packed, lost = _packed_alone(node, room)
        room -= sum(map(len, packed or ()))
        table.append((packed, lost, node.cause, node.suppressed, node.members))
    return [pickle.dumps(texts, 5), *([pickle.dumps(table, 5)] if table[0][0] is not None else ())]


def _packed_alone(node: raised.Node, room: int) -> tuple[list[bytes] | None, str]:
    """One exception of a table, and the text of what stands in its place."""
    told = f"{_kind_of(node.error)}: {_cut(error_text(node.error), LOST_TEXT)}"
    try:
        packed = [bytes(part) for part in _pack(raised.alone(node), MessagePickler, "exception")]
    except Exception as failure:  # PackError, and what the exception's own reduction raises
        return None, f"{told}\n(it did not travel: {_cut(reason(failure), LOST_TEXT)})"
    if sum(map(len, packed)) > room:
        return None, f"{told}\n(it did not travel: with it the error would have more than {ERROR_OBJECT} bytes)"
    return packed, told


def unpack_error(parts: Sequence[Part], namespace: Namespace | None = None) -> BaseException:
    """The exception that `pack_error` was given, with its causes; a RemoteError with its traceback is the last of them.

    Where it did not travel, or cannot be rebuilt here, a RemoteError with type, text and traceback; so for each
    of its causes and members. Raises UnpackError when the parts are no error at all.
    """
    _must_have_parts(parts, "an error")
    texts = _unpack(parts[:1], "an error", None, keep=True)
    if not (isinstance(texts, tuple) and len(texts) == 3 and all(isinstance(text, str) for text in texts)):
        raise UnpackError("cannot unpack an error: its parts hold none")
    kind, text, trace = texts
    without = RemoteError(f"{kind}: {text}\n\n{trace}")
    if len(parts) == 1:
        return without
    try:
        table = _unpack(parts[1:], "an error", None, keep=True)
        built: dict[int, BaseException] = {}
        for number in range(len(table)):
            _build(number, table, built, namespace)
        return raised.linked([built[number] for number in range(len(table))], [row[2:4] for row in table], trace)
    except Exception as failure:  # a table that is none, or what the class of the exception raises
        without.add_note(f"The exception itself did not arrive: {error_text(failure)}")
        return without


def _build(number: int, table: list[_Row], built: dict[int, BaseException], namespace: Namespace | None) -> None:
    """One exception of a table, after the members of its group; a RemoteError in its place, unless it is the first."""
    if number in built:
        return
    packed, lost, _, _, members = table[number]
    for member in members or ():
        _build(member, table, built, namespace)
    try:
        if packed is None:
            raise UnpackError(lost)
        pieces = unpack(packed, namespace)
        try:
            built[number] = raised.put_together(pieces, [built[member] for member in members or ()])
        except Exception as failure:
            raise UnpackError(f"cannot rebuild {short(pieces)}: {reason(failure)}") from failure
    except UnpackError as failure:
        if number == 0:
            raise
        built[number] = RemoteError(lost if packed is None else f"{lost}\n(it did not arrive: {failure})")


def _kind_of(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as failure:  # somebody's attributes, of a SyntaxError say, are not what the traceback module expects
        return f"(no traceback: {reason(failure)})"


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def warm_up() -> None:
    """Load what the first function would load (dill, some milliseconds), so that no client waits for it."""
    pack_code([lambda: None])  # not one that has a name: that would travel as the name
