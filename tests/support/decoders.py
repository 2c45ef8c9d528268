"""Every decoder of discoro: what reads bytes or text from outside, valid inputs for it, and the errors that it may raise.

An input is a list of parts (mutations.py). `Decoder.decode` reads one; whatever it raises beside `errors` is a bug. Where there
is an encoder as well, the round trip holds too. What reads values of a header gets them as discoro does: through
`packing.unpack`.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

from discoro import (
    adverts,
    blobs,
    broadcasting,
    exchange,
    finding,
    introducing,
    messages,
    names,
    outcomes,
    packing,
    payload,
    requests,
    server,
    services,
    spreading,
    transfers,
)
from discoro import files as shipped_files
from discoro.answers import ref_in
from discoro.blobs import Blob
from discoro.errors import ConfigError, DiscoroError, ProtocolError, RemoteError, TransferFailed, UnpackError, Unreachable
from discoro.files import Shipped
from discoro.messages import Ack, Data, Exit, Greeting, Hold, Message, Messages, Notice, Piece, Reply, Request
from discoro.references import CoroRef
from discoro.requests import Answer, Incoming
from discoro.security import Security
from tests.support import asking, conversations

Parts = list[bytes]
ADA = Greeting("0123456789abcdef", 4711, 7, "ada", "node", "lab", "3.11", "0.1", ("10.0.0.1:24200", "[::1]:24200"), 5, 3, 9, 8)
REF = CoroRef("0123456789abcdef", 4711, 7, 12, "ada", ("10.0.0.1:24200",))
BLOB = Blob("ab" * 32, 5)
FILES = [Shipped("a.py", BLOB, False), Shipped("package/b.py", blobs.EMPTY, True)]


@dataclass(frozen=True)
class Decoder:
    """Something that decodes; `seeds` are inputs that it takes, `holds` looks at what came of one."""

    name: str
    decode: Callable[[Parts], Any] = field(repr=False)
    seeds: list[Parts] = field(repr=False)
    errors: tuple[type[Exception], ...] = (ProtocolError,)
    holds: Callable[[Any], None] = field(default=lambda value: None, repr=False)


def plain(value: Any) -> Parts:
    return [packing.pack(value)]


def bytes_of(parts: Any) -> Parts:
    return [bytes(part) for part in parts]


# ------------------------------------------------------------------ frames

OPERATIONS: list[Any] = [
    Message(1, (b"small",)),
    Message(1, (b"", b"two parts")),
    Request(1, 0, "meet", {"nodes": [[7, ["10.0.0.1:1"]], [8, []]]}, ()),
    Request(2, 3, "take", {"number": 1, "dir": "", "overwrite": True}, (b"body", b"body")),
    Reply(1, True, [[REF.to_plain(), 0]], ()),
    Reply(2, False, ["NotSetUp", "why"], (b"cause",)),
    Exit(1, "returned", "text", (b"value",)),
    Hold(1, True),
    Notice(1, 2, False),
    Messages(3, [b"one", b"two"]),
]
WIRES = [messages.to_wire(each) for each in OPERATIONS]


def frame_again(frame: Any) -> None:
    """What was decoded stands on the wire as it did."""
    if isinstance(frame, Data):
        whole = [each for each in frame.operations if not isinstance(each, Piece)]
        wires = [messages.to_wire(each) for each in whole]
        there = messages.decode(bytes_of(messages.encode_data(frame.session, frame.number, frame.received, wires)))
        assert isinstance(there, Data)
        one, other = (repr(list(map(_bare, each))) for each in (there.operations, whole))  # nan is not equal to itself
        assert one == other
    elif isinstance(frame, Ack):
        assert messages.decode(bytes_of(messages.encode_ack(*frame))) == frame


def _bare(operation: Any) -> list[Any]:
    """Its fields; a small part stands in the header or beside it, which makes no difference."""
    fields = [type(operation).__name__, *operation]
    return [*fields[:-1], [bytes(part) for part in operation.body]] if hasattr(operation, "body") else fields


def of_first(parts: Parts) -> Any:
    frame = messages.decode_first(parts)
    return messages.decode_greeting(frame.greeting) if isinstance(frame, messages.Hello | messages.Welcome) else frame


def greeting_again(greeting: Any) -> None:
    if isinstance(greeting, Greeting):
        assert messages.decode_greeting(messages.encode_greeting(greeting)) == greeting


def of_pieces(parts: Parts) -> Any:
    """Each part is one data frame of one piece, as a list of bins: header, piece, seal."""
    assembler, whole = messages.Assembler(), []
    for part in parts[:64]:
        frame = packing.unpack(part)
        if not isinstance(frame, list) or len(frame) > 3 or not all(isinstance(each, bytes) for each in frame):
            raise ProtocolError("no frame with one part")
        decoded = messages.decode(frame)
        for each in decoded.operations if isinstance(decoded, Data) else ():
            done = assembler.add(each) if isinstance(each, Piece) else None
            if done is not None:
                whole.append(done)
    return whole


def pieces(operation: Any, cuts: int, stream: int = 1) -> Parts:
    """A valid input of `of_pieces`, in pieces far smaller than those of discoro."""
    wire = messages.to_wire(operation)
    body = [bytes(part) for part in wire.parts]
    slices = [part[at : at + cuts] for part in body for at in range(0, len(part), cuts)]
    found = []
    for index, each in enumerate(slices):
        first = index == 0
        sizes = [len(part) for part in body]
        piece = [5, stream, index == len(slices) - 1, wire.header if first else None, sizes if first else None]
        frame = messages.sealed(index + 1, [packing.pack([4, 1, index + 1, 0, [piece]]), each])
        found.append(packing.pack([bytes(part) for part in frame]))
    return found


# ------------------------------------------------------------------ values in headers, and lists


def the_operation(header: Any) -> Any:
    """The operation of that header, as it comes out of a frame."""
    frame = messages.decode([packing.pack([4, 1, 1, 0, [header]])])
    assert isinstance(frame, Data)
    return frame.operations[0]


def incoming(parts: Parts) -> Incoming:
    """A request whose arguments are in the first part; the others are its body."""
    if not parts:
        raise ProtocolError("nothing")
    operation = the_operation([2, 1, 0, "verb", packing.unpack(parts[0]), 0])
    return Incoming(ADA, 0, "verb", operation.arguments, parts[1:], lambda *answer: None)


def argument(read: Callable[[Incoming], Any]) -> Callable[[Parts], Any]:
    return lambda parts: read(incoming(parts))


class Told(SimpleNamespace):
    """What takes the place of the mesh for `Finding`: nobody is dialled."""

    def heard_of(self, birth: int, addresses: Any) -> None:
        assert type(birth) is int and 0 < birth <= messages.MAX_U64 and len(addresses) <= messages.MAX_ADDRESSES


FINDING = finding.Finding(Told(me=ADA), None, mdns=False)  # type: ignore[arg-type]


def of_registration(request: Incoming) -> Any:
    known = names.Names.__new__(names.Names)
    known._foreign = {}
    known._news = SimpleNamespace(set=lambda: None)  # type: ignore[assignment]
    known._say_news = lambda: None  # type: ignore[method-assign]
    return known.on_register(request.peer, request.arguments), known.on_unregister(request.peer, request.arguments)


def of_introduction(request: Incoming) -> Any:
    get = request.arguments.get
    assert type(introducing._birth(get("birth"))) is int
    return introducing._within(get("within")), introducing.Introducing._asker(request)


ARGUMENTS: dict[str, tuple[Callable[[Incoming], Any], Parts]] = {
    "meet": (lambda request: FINDING.told(request.arguments.get("nodes")), plain({"nodes": [[7, ["10.0.0.1:1"]]]})),
    "register": (of_registration, plain({"name": "ada", "ref": REF.to_plain()})),
    "introduce": (of_introduction, plain({"birth": 7, "within": 0.5, "asker": [8, ["10.0.0.1:1"]]})),
    "reach": (lambda request: introducing._addresses(request.arguments.get("addresses")), plain({"addresses": ["10.0.0.1:1"]})),
    "trail": (spreading.trail_in, plain({"trail": [[1, 2], [3, 4]]})),
    "number": (lambda request: services.number_in(request, "id"), plain({"id": 5})),
    "text": (lambda request: server.text_of(request.arguments, "id"), plain({"id": "a"})),
    "timeout": (lambda request: server.timeout_of(request.arguments), plain({"timeout": 2.5})),
    "lacks": (lambda request: server.lacking(request.arguments.get("names")), plain({"names": ["os", "json"]})),
    "ref": (lambda request: ref_in(request, "ref"), plain({"ref": REF.to_plain()})),
    "blob": (transfers._blob_in, plain({"digest": "ab" * 32, "size": 5})),
    "key": (exchange._key, plain({"number": 1})),
    "release": (transfers._blobs_in, [*plain({}), packing.pack([list(BLOB), list(blobs.EMPTY)])]),
    "take": (exchange._files_in, [*plain({"dir": "below"}), shipped_files.packed_files(FILES)]),
    "setup": (server.bodies, [*plain({"files": 1, "code": 1}), shipped_files.packed_files(FILES), b"code", b"func"]),
    "name": (lambda request: services.registered_name("queue", request.arguments.get("name")), plain({"name": "ada"})),
}


def of_files(parts: Parts) -> Any:
    return shipped_files.unpacked_files(parts[0] if parts else b"")


def files_again(found: Any) -> None:
    assert shipped_files.unpacked_files(shipped_files.packed_files(found)) == found


def of_plain_reference(parts: Parts) -> Any:
    ref = CoroRef.from_plain(packing.unpack(parts[0] if parts else b""))
    assert CoroRef.from_plain(ref.to_plain()) == ref
    return ref


def of_reference_text(parts: Parts) -> Any:
    ref = CoroRef.parse(b"".join(parts).decode("utf-8", "replace"))
    assert CoroRef.from_plain(ref.to_plain()) == ref
    assert CoroRef.parse(repr(ref)) == ref
    return ref


def of_broadcast(parts: Parts) -> Any:
    match packing.unpack(parts[0] if parts else b""):
        case [ref, digest, size, what]:
            return broadcasting._rebuilt(CoroRef.from_plain(ref), digest, size, what)
    raise ProtocolError("not four values")


def of_blob(parts: Parts) -> Any:
    found = broadcasting.parts_of(memoryview(b"".join(parts)))
    assert broadcasting.parts_of(memoryview(b"".join(broadcasting.laid_out(found)))) == found
    return found


def of_advert(parts: Parts) -> Any:
    """Instance, port, hosts, and the TXT record, as values."""
    match packing.unpack(parts[0] if parts else b""):
        case [str(instance), int(port), list(hosts), dict(txt)] if type(port) is int and all(
            isinstance(host, str) for host in hosts
        ):
            record = {
                key.encode(): value if isinstance(value, bytes) else None for key, value in txt.items() if isinstance(key, str)
            }
        case _:
            raise ProtocolError("no service")
    advert = adverts.advert_from(instance, record, hosts, port, [ip_network("10.0.0.0/8")])
    again = {key.encode(): value.encode() for key, value in adverts.to_txt(advert).items()}
    hosts, port = adverts.hosts_of(advert), int(advert.addresses[0].rpartition(":")[2])
    back = adverts.advert_from(adverts.instance_of(advert), again, hosts, port)
    assert replace(back, name="", addresses=()) == replace(advert, name="", addresses=())
    assert set(back.addresses) == set(advert.addresses) and str(advert).isprintable()
    return advert


ADVERT = adverts.Advert("0123456789abcdef", "ada", "lab", "3.11", "0.1", 1, "curve", 4, ("10.0.0.1:24200",))
TXT = {key: value.encode() for key, value in adverts.to_txt(ADVERT).items()}


# ------------------------------------------------------------------ answers


def answer(parts: Parts) -> Answer:
    """An answer whose value is in the first part; the others are its body."""
    operation = the_operation([3, 1, True, packing.unpack(parts[0] if parts else b""), 0])
    return Answer(operation.value, parts[1:])


def of_error_answer(parts: Parts) -> Any:
    error = requests.Requests()._error(packing.unpack(parts[0] if parts else b""), parts[1:])
    assert isinstance(error, DiscoroError)
    return error


ANSWERS: dict[str, tuple[Callable[[Answer], Any], Parts]] = {
    "locate": (lambda found: names._found(found.value), plain([[REF.to_plain(), 0], [REF.to_plain(), 3]])),
    "number": (lambda found: found.number, plain(5)),
    "offered": (lambda found: exchange._offered(found, "a.py"), [*plain(0), shipped_files.packed_files(FILES[:1])]),
    "whereabouts": (
        lambda found: introducing.Introducing._whereabouts(_around(), 7, found.value),
        plain(["linked", "ada", ["10.0.0.1:1"]]),
    ),
}


def _around() -> Any:
    return SimpleNamespace(_around=SimpleNamespace(me=ADA, ended=lambda *a: None, bury=lambda *a: None))


# ------------------------------------------------------------------ what is read after trust

MODULES_ALLOWED = re.compile(
    r"discoro\.(arrays|raised|building|errors|references)|builtins|_codecs|copyreg|numpy.*|collections"
)


_GUARDED = "discoro guard"  # in vars(sys): whether a mutated pickle is being read; None until the hook is there


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """In this block a pickle finds only what is harmless: mutated ones could name anything.

    An audit hook stays for as long as the process lives, so that it has to know whether it is wanted: other tests follow.
    """
    if _GUARDED not in vars(sys):
        sys.addaudithook(_hook)
    setattr(sys, _GUARDED, True)
    try:
        yield
    finally:
        setattr(sys, _GUARDED, False)


_HARMFUL = set("eval exec open compile __import__ getattr setattr delattr input breakpoint exit quit help".split())


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" and getattr(sys, _GUARDED):
        module, name = str(args[0]), str(args[1])
        if not MODULES_ALLOWED.fullmatch(module) or name.partition(".")[0] in _HARMFUL or "import" in name or "." in name:
            raise ValueError(f"a mutated pickle names {module}.{name}")


FAR = 1 << 16  # numbers in a pickle's memo; it makes room for as many as the highest number says


def no_far_memo(*pickles: bytes) -> None:
    """UnpackError for a pickle that would take gigabytes for its memo: the one thing that pickle itself does not bound."""
    for each in pickles:
        file = io.BytesIO(each)
        with contextlib.suppress(Exception):  # from here on it is none
            while file.tell() < len(each):
                for opcode, value, _ in pickletools.genops(file):
                    if opcode.name in ("LONG_BINPUT", "PUT") and value > FAR:
                        raise Far
                    if isinstance(value, bytes):
                        no_far_memo(value)


class Far(BaseException):
    """Not an Exception: it passes what is suppressed above."""


def harmless(read: Callable[[Parts], Any]) -> Callable[[Parts], Any]:
    """The same, but for inputs that would only measure pickle's own memo."""

    def decode(parts: Parts) -> Any:
        try:
            no_far_memo(*parts, b"".join(parts[1::2]), b"".join(parts[1:]))
        except Far:
            return None  # left out
        return read(parts)

    return decode


def unpickled(parts: Parts) -> Any:
    return payload.unpack(parts, shared=bool(parts and len(parts[-1]) % 2))


def of_payload_error(parts: Parts) -> Any:
    error = payload.unpack_error(parts)
    assert isinstance(error, BaseException)
    return error


def of_outcome(parts: Parts) -> Any:
    operation = the_operation(packing.unpack(parts[0] if parts else b""))
    if not isinstance(operation, Exit):
        raise ProtocolError("no exit")
    return outcomes.Outcome(operation.reason, text=operation.text, body=parts[1:]).unpacked(None, "there")


def _large() -> list[Any]:
    found: list[Any] = [memoryview(bytes(70_000)), bytearray(70_000), [bytes(300_000), 1], {"a": (1, "b", None)}, b"x" * 70_000]
    try:
        import numpy
    except ImportError:
        return found
    return [*found, numpy.zeros((100, 100)), numpy.zeros(3, "M8[s]"), memoryview(numpy.zeros((2, 3)))]


def of_handed_down(parts: Parts) -> Any:
    return Security.from_handed_down(b"".join(parts).decode("utf-8", "surrogateescape"))


def with_errors(*errors: Exception) -> list[Parts]:
    return [bytes_of(payload.pack_error(each)) for each in errors]


def _caused() -> Exception:
    error = ValueError("one", 2)
    error.__cause__ = RemoteError("two")
    return error


GREETING = messages.encode_greeting(ADA)
FIRST = [
    messages.encode_hello(b"m", GREETING),
    messages.encode_welcome(b"m", GREETING),
    messages.encode_refused("key", "why"),
    messages.encode_gone(5),
]
FRAMES = [
    *FIRST,
    *(messages.encode_data(1, 2, 3, [wire]) for wire in WIRES),
    messages.encode_data(1, 2, 3, WIRES),
    messages.encode_ack(1, 2),
    messages.encode_bye(1, "done"),
]
LARGE_OPERATIONS = [
    Message(1, (b"", b"abcdefgh" * 3, b"", b"ijk")),
    Request(1, 0, "take", {"number": 1}, (b"x" * 40, b"")),
    Reply(1, True, 5, (b"x" * 20, b"y" * 7)),
    Exit(1, "returned", "text", (b"x" * 33, b"y")),
]
PIECES = [pieces(each, 8) for each in LARGE_OPERATIONS]
PIECES.append([part for pair in zip(PIECES[0], pieces(LARGE_OPERATIONS[0], 8, 2), strict=True) for part in pair])

ALL = [
    Decoder("frames", messages.decode, [bytes_of(each) for each in FRAMES], holds=frame_again),
    Decoder("first", of_first, [bytes_of(each) for each in FIRST], holds=greeting_again),
    Decoder("pieces", of_pieces, PIECES),
    Decoder("links", conversations.play, conversations.PLAYS, ()),
    Decoder("requests", harmless(asking.ask), asking.QUESTIONS),
    Decoder("files", of_files, [[shipped_files.packed_files(FILES)], [shipped_files.packed_files([])]], holds=files_again),
    Decoder("references", of_plain_reference, [plain(REF.to_plain()), plain(["", 0, 7, 0, "", []])]),
    Decoder(
        "reference-texts",
        of_reference_text,
        [[repr(REF).encode()], [b"ada/1/2@0123456789abcdef.0000000000000007"]],
        (ValueError,),
    ),
    Decoder("broadcasts", of_broadcast, [plain([REF.to_plain(), *BLOB, "list"]), plain([REF.to_plain(), *blobs.EMPTY, "x"])]),
    Decoder(
        "blobs", of_blob, [bytes_of(broadcasting.laid_out([b"x" * 70, b"", b"y"])), bytes_of(broadcasting.laid_out([b""]))]
    ),
    Decoder("adverts", of_advert, [plain([adverts.instance_of(ADVERT), 24200, ["10.0.0.1", "fe80::1", "::1"], TXT])]),
    Decoder(
        "errors",
        harmless(of_error_answer),
        [[*plain(["NotSetUp", "why"])], [*plain(["X", "why"]), *bytes_of(payload.pack_error(_caused()))]],
    ),
    Decoder("payloads", harmless(unpickled), [bytes_of(payload.pack(each)) for each in _large()], (UnpackError,)),
    Decoder(
        "raised",
        harmless(of_payload_error),
        with_errors(ValueError("x"), _caused(), ExceptionGroup("g", [KeyError(1)])),
        (UnpackError,),
    ),
    Decoder(
        "outcomes",
        harmless(of_outcome),
        [
            [*plain([4, 1, "normal", "", 0]), *bytes_of(payload.pack(5))],
            [*plain([4, 1, "exception", "x", 0]), *with_errors(_caused())[0]],
        ],
        (ProtocolError, UnpackError),
    ),
    Decoder("keys", of_handed_down, [[b"ab" * 64], [b"open"], [b"open\n"]], (ConfigError,)),
    *(
        Decoder(f"argument-{name}", argument(read), [seed], (ProtocolError, ConfigError))
        for name, (read, seed) in ARGUMENTS.items()
    ),
    *(
        Decoder(
            f"answer-{name}", lambda parts, read=read: read(answer(parts)), [seed], (ProtocolError, TransferFailed, Unreachable)
        )
        for name, (read, seed) in ANSWERS.items()
    ),
]
