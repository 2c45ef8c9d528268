"""What crosses the wire: frames and operations, to bytes and back, with every limit checked on the way in.

Pure values: no socket, no clock, no pickle. A frame is a list of parts, the first of which is a msgpack header; the grammar is
docs/reference/protocol.md. `encode_*` and `decode` are each other's mirror. Whatever is wrong with bytes from outside becomes
ProtocolError here, so that nobody above needs to distrust a frame again. Bodies stay opaque: opening them is payload.py's job.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from discoro.errors import ProtocolError, TooLarge
from discoro.memory import Unkept, room
from discoro.packing import INLINE_BODY, MAX_HEADER, MAX_KEYS, MAX_TEXT, nbytes, pack, unpack

PROTOCOL_VERSION = 1
MAGIC = "discoro"

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MAX_FRAME = 1 * MIB  # libzmq buffers an announced frame before anybody is authenticated (ZMQ_MAXMSGSIZE)
PIECE_SIZE = 256 * KIB  # ZMTP heartbeats pass only between complete frames: at 16 Mbit/s a piece takes 0.13 s
BATCH_BYTES = MAX_HEADER - 1 * KIB  # small operations that share a frame, for the same reason
BATCH_OPERATIONS = 512  # past this, sharing gains nothing measurable
MESSAGE_WEIGHT = 32  # bytes that a small message counts besides its own: its objects, here and there
RUN_BYTES = 64 * KIB  # small messages to one coroutine that become one operation, with what they weigh
MAX_RUN = RUN_BYTES // MESSAGE_WEIGHT
PART_WEIGHT = 64  # bytes that libzmq keeps for a part, however small: with it, 1 MiB also bounds how many parts a frame has
MAX_FIELDS = 128 * KIB  # an operation without its body: with an inline body, or MAX_PARTS empty parts, it still fits a batch
MAX_MESSAGE = 1 * GIB  # what one operation may cost the receiver's memory
MAX_STREAMS = 16  # operations under assembly per link; a sender alternates between 8
MAX_PARTS = 1024  # parts of one operation: out-of-band buffers of one object
MAX_NAME = 255  # names, verbs, reasons: they are printed
MAX_ADDRESSES = 16  # usable interfaces of one machine
MAX_DEPTH = 8  # arrays and maps in each other, in arguments and values; references in lists are 5 deep
MAX_GREETING = 16 * KIB  # three times what the longest names and 16 addresses take
MAX_MAC = 64  # the longest that BLAKE2b gives
MAX_REFUSAL = 4 * KIB  # the text of `refused`, from somebody unknown: it holds four names
MAX_FIRST = 20 * KIB  # a frame of somebody unknown: the largest greeting with its mac
MAX_U64 = (1 << 64) - 1

Part = bytes | bytearray | memoryview


class Torn(ProtocolError):
    """A frame that came in part: nobody's word, and sent again over the next connection."""


class Greeting(NamedTuple):
    """Who a process is and where its side of the link stands; see the grammar for each field.

    `session` is the sender's own number for the link, `resume` the receiver's, as far as the sender knows it.
    """

    node: str
    pid: int
    birth: int
    name: str
    role: str
    cluster: str
    python: str
    software: str
    addresses: tuple[str, ...]
    session: int = 0
    received: int = 0
    resume: int = 0
    wanted: int = 0


class Hello(NamedTuple):
    version: int
    mac: bytes
    greeting: bytes


class Welcome(NamedTuple):
    mac: bytes
    greeting: bytes


class RefusedFrame(NamedTuple):
    version: int
    code: str
    text: str


class Data(NamedTuple):
    session: int
    number: int
    received: int
    operations: list[Any]  # decoded operations, in order


class Ack(NamedTuple):
    session: int
    received: int


class Bye(NamedTuple):
    session: int
    reason: str


class Gone(NamedTuple):
    session: int


class Message(NamedTuple):
    """To the mailbox of coroutine `coro`."""

    coro: int
    body: Sequence[Part]


class Messages(NamedTuple):
    """Small messages to the mailbox of coroutine `coro`, in order; the body of each is one part."""

    coro: int
    bodies: list[bytes]


class Request(NamedTuple):
    """A question that gets exactly one Reply, or fails with its link. `coro` 0 asks the process itself."""

    id: int
    coro: int
    verb: str
    arguments: dict[str, Any]
    body: Sequence[Part] = ()


class Reply(NamedTuple):
    id: int
    ok: bool
    value: Any
    body: Sequence[Part] = ()


class Exit(NamedTuple):
    """Coroutine `coro` of the sender ended; body is its packed value or error."""

    coro: int
    reason: str
    text: str
    body: Sequence[Part] = ()


class Hold(NamedTuple):
    """The mailbox of `coro` is full (held), or has room again."""

    coro: int
    held: bool


class Notice(NamedTuple):
    """The exit notice of the sender's `coro` for the mailbox of `to` is to wait, for messages of it are held; or may go now."""

    coro: int
    to: int
    now: bool


class Piece(NamedTuple):
    """One slice of an operation too large for a frame; the first of a stream carries operation and sizes."""

    stream: int
    last: bool
    operation: list[Any] | None
    sizes: list[int] | None
    part: Part


Operation = Message | Messages | Request | Reply | Exit | Hold | Notice
Frame = Hello | Welcome | RefusedFrame | Data | Ack | Bye | Gone

_MESSAGE, _REQUEST, REPLY, _EXIT, _PIECE, _HOLD, _NOTICE, _MESSAGES = 1, 2, 3, 4, 5, 6, 7, 8
_HELLO, _WELCOME, _REFUSED, _DATA, _ACK, _BYE, _GONE, _SEAL = 1, 2, 3, 4, 5, 6, 7, 8
_OPERATIONS: dict[int, type[Any]] = {
    **{_MESSAGE: Message, _REQUEST: Request, REPLY: Reply},
    **{_EXIT: Exit, _HOLD: Hold, _NOTICE: Notice, _MESSAGES: Messages},
}
_KIND = {kind: number for number, kind in _OPERATIONS.items()}
_WITH_BODY = {_MESSAGE, _REQUEST, REPLY, _EXIT}
_FIRST = {_HELLO, _WELCOME, _REFUSED, _GONE}  # what may come over a connection before anybody was greeted


# ------------------------------------------------------------------ out


def encode_hello(mac: bytes, greeting: bytes) -> list[Part]:
    return [pack([_HELLO, MAGIC, PROTOCOL_VERSION, mac, greeting])]


def encode_welcome(mac: bytes, greeting: bytes) -> list[Part]:
    return [pack([_WELCOME, mac, greeting])]


def encode_refused(code: str, text: str) -> list[Part]:
    return [pack([_REFUSED, PROTOCOL_VERSION, code, clip(text, MAX_REFUSAL)])]


def encode_ack(session: int, received: int) -> list[Part]:
    return [pack([_ACK, session, received])]


def encode_bye(session: int, reason: str) -> list[Part]:
    return [pack([_BYE, session, clip(reason, MAX_NAME)])]


def encode_gone(session: int) -> list[Part]:
    return [pack([_GONE, session])]


def encode_greeting(greeting: Greeting) -> bytes:
    """The bytes that the mac is made over. ProtocolError names a field that no peer would accept (a name too long, say)."""
    fields = [list(field) if isinstance(field, tuple) else field for field in greeting]
    return pack(_checked(fields, _GREETING, "greeting"))


def clip(text: str, limit: int) -> str:
    """The beginning of a text, in at most `limit` bytes of UTF-8; what UTF-8 cannot take (odd file names) is escaped."""
    return text.encode("utf-8", "backslashreplace")[:limit].decode("utf-8", "ignore")


@dataclass(slots=True)
class Wire:
    """An operation ready to travel: its header (msgpack values), its parts, and what both weigh in bytes.

    `count`: how many operations whoever sends them would count; none for a piece with more to come, each message of a run.
    """

    header: list[Any]
    parts: Sequence[Part]
    size: int
    count: int = 1


class Run:
    """Small messages to one coroutine being put together, to travel as one operation; each body has INLINE_BODY at most.

    Whoever adds one appends it to `bodies`, and what it weighs to `size`: a call for each would take as long as all the rest.
    """

    __slots__ = ("bodies", "coro", "size")

    def __init__(self, coro: int, body: bytes) -> None:
        self.coro = coro
        self.bodies = [body]
        self.size = MESSAGE_WEIGHT + len(body)

    def wire(self) -> Wire:
        if len(self.bodies) == 1:
            return Wire([_MESSAGE, self.coro, self.bodies[0]], (), self.size)
        return Wire([_MESSAGES, self.coro, self.bodies], (), self.size, len(self.bodies))


def to_wire(operation: Operation) -> Wire:
    """The operation as it stands in a frame; what cannot travel is refused here, before anything is sent.

    Raises TooLarge past MAX_MESSAGE, MAX_PARTS or MAX_FIELDS; TypeError or ValueError for arguments that are not msgpack
    values; ProtocolError for a field that the receiver would not accept.
    """
    kind = _KIND[type(operation)]
    if kind not in _WITH_BODY:
        header = [kind, *_checked([*operation], _CHECKS[kind], type(operation).__name__)]
        bodies = operation.bodies if isinstance(operation, Messages) else ()
        size = sum(map(len, bodies)) + MESSAGE_WEIGHT * len(bodies) + 16
        return Wire(header, (), size, len(bodies) or 1)
    fields: list[Any] = list(_clipped(operation))
    body = fields.pop()
    size = body_size(body)
    as_usual = kind != REPLY or fields[1] is True
    header_size = (_plain_size(fields) if as_usual else 0) or _header_size(kind, fields)
    if len(body) == 1 and size <= INLINE_BODY:
        return Wire([kind, *fields, bytes(body[0])], (), size + header_size)
    return Wire([kind, *fields, len(body)], body, size + header_size + PART_WEIGHT * len(body))


def _clipped(operation: Operation) -> Operation:
    """The operation with texts for people, which can have any length, cut to what the receiver accepts."""
    if isinstance(operation, Exit) and (operation.text or not operation.reason.isascii()):
        return operation._replace(reason=clip(operation.reason, MAX_NAME), text=clip(operation.text, MAX_TEXT))
    if isinstance(operation, Reply) and not operation.ok:
        name, text = operation.value
        return operation._replace(value=[clip(name, MAX_NAME), clip(text, MAX_TEXT)])
    return operation


def body_size(body: Sequence[Part]) -> int:
    """Its bytes; TooLarge past MAX_MESSAGE or MAX_PARTS."""
    size = sum(map(nbytes, body))
    if size > MAX_MESSAGE:
        raise TooLarge(f"a message of {size} bytes; at most {MAX_MESSAGE} travel in one. Send it in parts, or as a file")
    if len(body) > MAX_PARTS:
        raise TooLarge(f"a message of {len(body)} separate buffers; at most {MAX_PARTS} travel in one")
    return size


def _plain_size(fields: Sequence[Any]) -> int:
    """At least what the fields take in the header of a frame, where all are short and in no others, as mostly; else 0.

    What `_header_size` finds out takes ten times as long.
    """
    size = 8
    for field in fields:
        kind = type(field)
        if kind is int and 0 <= field <= MAX_U64:
            size += 9
        elif kind is str and len(field) <= MAX_NAME and field.isascii():
            size += 2 + len(field)
        elif kind is bool or field is None:
            size += 1
        elif kind is dict and _arguments(field) and _FLAT.issuperset(map(type, field.values())):
            inside = _plain_size([*field, *field.values()])
            if not inside:
                return 0
            size += inside
        else:
            return 0
    return size


def _header_size(kind: int, fields: list[Any]) -> int:
    """At least what the fields take in the header of a frame."""
    _checked(fields, _CHECKS[kind][:-1], _OPERATIONS[kind].__name__)
    if kind == _MESSAGE:
        return MESSAGE_WEIGHT
    packed = pack(fields)
    if len(packed) + 8 > MAX_FIELDS:
        raise TooLarge(f"a request or reply of {len(packed) + 8} bytes without its body; at most {MAX_FIELDS}")
    unpack(packed)  # what the receiver would not take must not leave: it would end the link
    return len(packed) + 8


def encode_data(session: int, number: int, received: int, wires: Sequence[Wire]) -> list[Part]:
    """One numbered frame of several operations, parts in the order of their operations."""
    frame: list[Part] = [pack([_DATA, session, number, received, [wire.header for wire in wires]])]
    for wire in wires:
        frame.extend(wire.parts)
    return sealed(number, frame)


def sealed(number: int, frame: list[Part]) -> list[Part]:
    """A frame of several parts gets a last one, which shows at the other side that all of them came.

    CURVE proves each part and their order, but libzmq takes what is left where somebody in between leaves parts out: the header
    of one frame would get the body of the next.
    """
    return [*frame, pack([_SEAL, number, len(frame)])] if len(frame) > 1 else frame


def split(wire: Wire, stream: int, most: Callable[[], int]) -> Iterator[Wire]:
    """The pieces of an operation larger than PIECE_SIZE, each of as many bytes as `most` says when its turn has come.

    They share the memory of the parts. There is at least one: without the bytes of its parts, an operation weighs less than
    that (MAX_FIELDS).
    """
    views = [memoryview(part).cast("B") for part in wire.parts if nbytes(part)]
    sizes = [nbytes(part) for part in wire.parts]
    first = True
    for number, view in enumerate(views, 1):
        at = 0
        while at < len(view):
            part = view[at : at + min(PIECE_SIZE, most())]
            at += len(part)
            last = number == len(views) and at == len(view)
            header = [_PIECE, stream, last, wire.header if first else None, sizes if first else None]
            size = len(part) + PART_WEIGHT + (len(pack(header)) if first else 24)
            yield Wire(header, (part,), size, 1 if last else 0)
            first = False


# ------------------------------------------------------------------ in


def decode(parts: Sequence[Part]) -> Frame:
    """The frame in these parts; ProtocolError if they are none, Torn if they may once have been more."""
    if not parts:
        raise ProtocolError("a frame without a header")
    if len(parts) > 1:
        weight = sum(map(nbytes, parts)) + PART_WEIGHT * (len(parts) - 1)
        if weight > MAX_FRAME:
            raise ProtocolError(f"a frame of {weight} bytes in {len(parts)} parts; at most {MAX_FRAME}")
        return _decode_data(_whole(parts), parts[1:-1])
    kind, fields = _header(parts[0], MAX_HEADER)
    return _decode_data(fields, _NO_PARTS) if kind == _DATA else _decode_small(kind, fields)


def decode_first(parts: Sequence[Part]) -> Frame:
    """The same for a connection over which nobody was greeted yet, where only a greeting and its answers may come."""
    if len(parts) != 1 or nbytes(parts[0]) > MAX_FIRST:
        size = sum(map(nbytes, parts))
        raise ProtocolError(f"{len(parts)} parts of {size} bytes before a greeting; one of at most {MAX_FIRST}")
    kind, fields = _header(parts[0], MAX_FIRST)
    if kind not in _FIRST:
        raise ProtocolError(f"a frame of kind {kind} before a greeting")
    return _decode_small(kind, fields)


def _header(part: Part, limit: int) -> tuple[int, list[Any]]:
    """The kind of a frame, and its fields."""
    header = unpack(part, limit)
    if not isinstance(header, list) or not header or type(header[0]) is not int:
        raise ProtocolError("the header is not an array that begins with a kind")
    return header[0], header[1:]


def _decode_small(kind: int, fields: list[Any]) -> Frame:
    """A frame that is all in its header."""
    if kind == _HELLO:
        return _decode_hello(fields)
    if kind == _SEAL:
        raise Torn("the last part of a frame without the others")
    shape = _SHAPES.get(kind)
    if shape is None:
        raise ProtocolError(f"unknown kind of frame {kind}")
    make, checks = shape
    frame: Frame = make(*_checked(fields, checks, make.__name__))
    return frame


def _whole(parts: Sequence[Part]) -> list[Any]:
    """The fields of a data frame of several parts, of which none is missing; else Torn, whatever stands in their places."""
    try:
        kind, fields = _header(parts[0], MAX_HEADER)
    except ProtocolError:
        raise Torn(f"{len(parts)} parts without their header") from None
    if kind != _DATA or len(fields) != 4 or not _u64(fields[1]) or parts[-1] != pack([_SEAL, fields[1], len(parts) - 1]):
        raise Torn(f"{len(parts)} parts that are no whole frame")
    return fields


def decode_greeting(data: bytes) -> Greeting:
    """The greeting in these bytes; only to be called once its mac was verified."""
    fields = unpack(data, MAX_GREETING)
    checked = _checked(fields, _GREETING, "greeting")
    checked[8] = tuple(checked[8])
    return Greeting(*checked)


def _decode_hello(fields: list[Any]) -> Hello:
    if len(fields) < 2 or fields[0] != MAGIC or not _u64(fields[1]):
        raise ProtocolError("a hello that is not discoro's")
    if fields[1] != PROTOCOL_VERSION:  # whatever follows is that version's own business
        return Hello(fields[1], b"", b"")
    return Hello(*_checked(fields[1:], (_u64, _mac, _greeting), "hello"))


_NO_PARTS: Sequence[Part] = ()
_NONE_LEFT: Iterator[Part] = iter(_NO_PARTS)


def _decode_data(fields: list[Any], parts: Sequence[Part]) -> Data:
    """`parts`: those of the operations."""
    session, number, received, headers = _checked(fields, (_u64, _number, _u64, _list), "data")
    if not parts:  # most frames: every body stands in the header
        return Data(session, number, received, [_decode_operation(header, _NONE_LEFT) for header in headers])
    rest = iter(parts)
    operations = [_decode_operation(header, rest) for header in headers]
    if next(rest, None) is not None:
        raise ProtocolError("a frame with parts that belong to no operation")
    return Data(session, number, received, operations)


def _decode_operation(header: Any, parts: Iterator[Part]) -> Operation | Piece:
    if not isinstance(header, list) or not header or type(header[0]) is not int:
        raise ProtocolError("an operation that is not an array that begins with a kind")
    kind = header[0]
    if kind == _MESSAGE and len(header) == 3 and type(header[2]) is bytes and _u64(header[1]):  # the hot path
        return Message(header[1], (header[2],))
    if kind == REPLY and len(header) == 5 and header[2] is True and type(header[3]) in _FLAT and _u64(header[1]):
        return Reply(header[1], True, header[3], _body(header[4], parts))
    if kind == _PIECE:
        stream, last, operation, sizes = _checked(header[1:], (_u64, _bool, _list_or_none, _sizes), "piece")
        return Piece(stream, last, operation, sizes, _take(parts))
    return _operation(kind, header[1:], lambda field: _body(field, parts))


def _operation(kind: int, fields: list[Any], body: Callable[[Any], Sequence[Part]]) -> Operation:
    checks = _CHECKS.get(kind)
    if checks is None:
        raise ProtocolError(f"unknown kind of operation {kind}")
    checked = _checked(fields, checks, _OPERATIONS[kind].__name__)
    if kind in _WITH_BODY:
        checked[-1] = body(checked[-1])
    operation: Operation = _OPERATIONS[kind](*checked)
    if isinstance(operation, Reply) and not operation.ok and not _error(operation.value):
        raise ProtocolError("a reply with an error that is not a class and a text")
    return operation


def _body(field: Any, parts: Iterator[Part]) -> Sequence[Part]:
    if type(field) is bytes:
        return (field,)
    if type(field) is int and 0 <= field <= MAX_PARTS:
        return [_take(parts) for _ in range(field)]
    raise ProtocolError("a body that is neither bytes nor a number of parts")


def _take(parts: Iterator[Part]) -> Part:
    part = next(parts, None)
    if part is None:
        raise ProtocolError("a frame with fewer parts than its operations announce")
    return part


class Assembler:
    """Puts the pieces of one link's large operations together again.

    `add` gives the operation with its last piece, None before. What the first piece announces is checked with it, and what
    really comes with each; memory is taken as bytes come, not as they are announced. A part that came in one piece is that
    piece; any other is put together in memory that is writable. Where none is left, the rest of that operation is read and
    dropped, and its body is an `Unkept`: whom it was for has to be told, and nobody else who shares the link is concerned.
    """

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def add(self, piece: Piece) -> Operation | None:
        stream = self._streams.get(piece.stream)
        if stream is None:
            stream = self._streams[piece.stream] = self._begin(piece)
        elif piece.operation is not None or piece.sizes is not None:
            raise ProtocolError(f"stream {piece.stream} begun twice")
        stream.fill(piece.part)
        if not piece.last:
            return None
        if stream.missing:
            raise ProtocolError(f"an operation {stream.missing} bytes shorter than it announced")
        del self._streams[piece.stream]
        return stream.whole()

    def _begin(self, piece: Piece) -> _Stream:
        if piece.operation is None or piece.sizes is None:
            raise ProtocolError(f"a piece of stream {piece.stream}, which never began")
        if len(self._streams) >= MAX_STREAMS:
            raise ProtocolError(f"more than {MAX_STREAMS} operations under assembly")
        if sum(piece.sizes) > MAX_MESSAGE:
            raise ProtocolError(f"an operation of {sum(piece.sizes)} bytes; at most {MAX_MESSAGE}")
        return _Stream(piece.operation, piece.sizes)


class _Stream:
    """One operation under assembly: its header is checked at once, its parts fill in order."""

    def __init__(self, header: list[Any], sizes: list[int]) -> None:
        if not header or type(header[0]) is not int or header[0] not in _WITH_BODY:
            raise ProtocolError("pieces of an operation that has no body")
        self.sizes = sizes
        self.parts: list[Part] = []  # those that are whole
        self.missing = sum(sizes)
        self._unkept = False  # it found no memory
        self._room: bytearray | memoryview | None = None  # of the part that is being filled
        self._filled = 0
        self._take_empty()
        self.operation = _operation(header[0], header[1:], self._claim)

    def fill(self, piece: Part) -> None:
        count = nbytes(piece)
        if not count:
            return
        if count > self.missing:
            raise ProtocolError("a piece longer than its operation announced")
        if not self._unkept:
            try:
                self._keep(piece, count, self.sizes[len(self.parts)])
            except MemoryError:
                self._unkept, self._room = True, None
                self.parts.clear()
        self.missing -= count

    def whole(self) -> Operation:
        """The operation, once nothing is missing."""
        if not self._unkept:
            return self.operation
        return self.operation._replace(body=Unkept(sum(self.sizes)))  # type: ignore[call-arg]  # all that come in pieces have one

    def _keep(self, piece: Part, count: int, size: int) -> None:
        if self._room is None and count == size:  # a part in one piece is taken as it came
            self._add(piece)
        else:
            self._copy(piece, count, size)

    def _copy(self, piece: Part, count: int, size: int) -> None:
        if self._filled + count > size:
            raise ProtocolError("a piece longer than its operation announced")
        if self._room is None:
            self._room = room(size)
        self._room[self._filled : self._filled + count] = piece
        self._filled += count
        if self._filled == size:
            self._add(self._room)

    def _add(self, part: Part) -> None:
        self.parts.append(part)
        self._room, self._filled = None, 0
        self._take_empty()

    def _take_empty(self) -> None:
        """Parts without bytes, which no piece brings."""
        while len(self.parts) < len(self.sizes) and not self.sizes[len(self.parts)]:
            self.parts.append(bytearray())

    def _claim(self, field: Any) -> Sequence[Part]:
        if type(field) is not int or field != len(self.sizes):
            raise ProtocolError("an operation whose number of parts is not what it announced")
        return self.parts


# ------------------------------------------------------------------ checks: one function per kind of field


def _checked(fields: Any, checks: Sequence[Any], what: str) -> list[Any]:
    if not isinstance(fields, list) or len(fields) != len(checks):
        raise ProtocolError(f"{what}: {len(checks)} fields expected")
    for field, check in zip(fields, checks, strict=True):
        if not check(field):
            index = next(index for index, (field, check) in enumerate(zip(fields, checks, strict=True)) if not check(field))
            raise ProtocolError(f"{what}: field {index} is not allowed: {reprlib.repr(fields[index])}"[:200])
    return fields


def _u64(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_U64


def _number(value: Any) -> bool:
    return _u64(value) and value > 0


def _bool(value: Any) -> bool:
    return type(value) is bool


def _name(value: Any) -> bool:
    return type(value) is str and (len(value) <= MAX_NAME // 4 or len(value.encode("utf-8", "replace")) <= MAX_NAME)


def _text(value: Any) -> bool:
    return type(value) is str and (len(value) <= MAX_TEXT // 4 or len(value.encode("utf-8", "replace")) <= MAX_TEXT)


def _error(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and _name(value[0]) and _text(value[1])


def _mac(value: Any) -> bool:
    return type(value) is bytes and len(value) <= MAX_MAC


def _greeting(value: Any) -> bool:
    return type(value) is bytes and len(value) <= MAX_GREETING


def _refusal(value: Any) -> bool:
    return type(value) is str and len(value.encode("utf-8", "replace")) <= MAX_REFUSAL


def _list(value: Any) -> bool:
    return type(value) is list and len(value) <= BATCH_OPERATIONS


def _list_or_none(value: Any) -> bool:
    return value is None or (type(value) is list and len(value) <= 8)


def _run(value: Any) -> bool:
    return type(value) is list and 0 < len(value) <= MAX_RUN and set(map(type, value)) == {bytes}


def _sizes(value: Any) -> bool:
    return value is None or (type(value) is list and 0 < len(value) <= MAX_PARTS and all(map(_u64, value)))


def _arguments(value: Any) -> bool:
    return type(value) is dict and len(value) <= MAX_KEYS and _TEXT.issuperset(map(type, value)) and _shallow(value)


def _shallow(value: Any) -> bool:
    """Whether arrays and maps in it are at most MAX_DEPTH deep; level by level, as recursion into so many takes long."""
    if type(value) is dict and _FLAT.issuperset(map(type, value.values())):
        return True
    level = [value] if type(value) in _NESTED else []
    for _ in range(MAX_DEPTH):
        if not level:
            return True
        inside = (each.values() if type(each) is dict else each for each in level)
        level = [each for items in inside for each in items if type(each) in _NESTED]
    return not level


def _addresses(value: Any) -> bool:
    return type(value) is list and len(value) <= MAX_ADDRESSES and all(map(_name, value))


def _role(value: Any) -> bool:
    return value in ("node", "worker", "client")


def _anything(value: Any) -> bool:
    return True


_NESTED = (list, tuple, dict)
_FLAT = frozenset((int, float, str, bytes, bool, type(None)))
_TEXT = frozenset((str,))
_GREETING = (
    *(_name, _u64, _u64, _name, _role, _name, _name, _name),  # who
    *(_addresses, _u64, _u64, _u64, _u64),  # where, and how far
)
_SHAPES: dict[int, tuple[type[Any], Sequence[Any]]] = {
    _WELCOME: (Welcome, (_mac, _greeting)),
    _REFUSED: (RefusedFrame, (_u64, _name, _refusal)),
    _ACK: (Ack, (_u64, _u64)),
    _BYE: (Bye, (_u64, _name)),
    _GONE: (Gone, (_u64,)),
}
_CHECKS: dict[int, Sequence[Any]] = {
    _MESSAGE: (_u64, _anything),
    _REQUEST: (_u64, _u64, _name, _arguments, _anything),
    REPLY: (_u64, _bool, _shallow, _anything),
    _EXIT: (_u64, _name, _text, _anything),
    _HOLD: (_u64, _bool),
    _MESSAGES: (_u64, _run),
    _NOTICE: (_u64, _u64, _bool),
}
