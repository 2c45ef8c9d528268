"""Frames and operations to bytes and back; every limit; and whatever bytes come, a frame or ProtocolError."""

from __future__ import annotations

import random
import reprlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from discoro import memory, messages, packing
from discoro.errors import ProtocolError, TooLarge
from discoro.messages import (
    MAX_U64,
    Ack,
    Assembler,
    Bye,
    Data,
    Exit,
    Gone,
    Greeting,
    Hello,
    Hold,
    Message,
    Messages,
    Operation,
    Part,
    Piece,
    RefusedFrame,
    Reply,
    Request,
    Welcome,
)

ADA = Greeting("0123456789abcdef", 4711, 7, "ada", "node", "lab", "3.11", "0.1", ("10.0.0.1:24200", "[::1]:24200"), 5, 3, 9, 8)


def raw(*header: Any) -> bytes:
    packed: bytes = msgpack.packb(list(header), use_bin_type=True)
    return packed


def data(*operations: Any, parts: Sequence[Part] = (), number: int = 1) -> list[Part]:
    """A data frame of operations as they stand on the wire."""
    seal = [raw(8, number, 1 + len(parts))] if parts else []
    return [raw(4, 1, number, 0, list(operations)), *parts, *seal]


def largest() -> int:
    """Bytes of each piece."""
    return messages.PIECE_SIZE


def there_and_back(operation: Operation) -> Operation:
    """Through frames, in pieces where it is large; every frame is held against its limit."""
    wire = messages.to_wire(operation)
    assembler, whole = Assembler(), None
    for sent in messages.split(wire, 1, largest) if wire.size > messages.PIECE_SIZE else [wire]:
        assert whole is None, "more after the last piece"
        frame = messages.encode_data(1, 1, 0, [sent])
        assert sum(memoryview(part).nbytes for part in frame) <= sent.size + 32, "weighed too light"
        decoded = messages.decode([bytes(part) for part in frame])
        assert isinstance(decoded, Data)
        (got,) = decoded.operations
        whole = assembler.add(got) if isinstance(got, Piece) else got
    assert whole is not None
    return whole


def same(one: Operation, other: Operation) -> bool:
    """Equal, whatever kind of buffers the bodies are."""

    def plain(operation: Operation) -> list[Any]:
        return [[bytes(part) for part in field] if index == len(operation) - 1 and not isinstance(operation, Hold) else field
                for index, field in enumerate(operation)]  # fmt: skip

    return type(one) is type(other) and plain(one) == plain(other)


# ------------------------------------------------------------------ frames

FRAMES: list[tuple[list[Part], Any, list[Any]]] = [
    (messages.encode_hello(b"m", b"g"), Hello(1, b"m", b"g"), [1, "discoro", 1, b"m", b"g"]),
    (messages.encode_welcome(b"m", b"g"), Welcome(b"m", b"g"), [2, b"m", b"g"]),
    (messages.encode_refused("key", "why"), RefusedFrame(1, "key", "why"), [3, 1, "key", "why"]),
    (messages.encode_data(5, 6, 7, []), Data(5, 6, 7, []), [4, 5, 6, 7, []]),
    (messages.encode_ack(5, 7), Ack(5, 7), [5, 5, 7]),
    (messages.encode_bye(5, "done"), Bye(5, "done"), [6, 5, "done"]),
    (messages.encode_gone(MAX_U64), Gone(MAX_U64), [7, MAX_U64]),
]


@pytest.mark.parametrize(("encoded", "decoded", "header"), FRAMES, ids=lambda value: type(value).__name__)
def test_every_frame_stands_on_the_wire_as_the_grammar_says(encoded: list[Part], decoded: Any, header: list[Any]) -> None:
    assert encoded == [raw(*header)]
    assert messages.decode(encoded) == decoded


def test_a_hello_of_another_version_is_read_as_far_as_its_version() -> None:
    assert messages.decode([raw(1, "discoro", 2, "whatever", [1, 2], 3)]) == Hello(2, b"", b"")
    assert messages.decode([raw(1, "discoro", 0)]) == Hello(0, b"", b"")


@given(
    st.lists(st.lists(st.binary(max_size=2), max_size=3), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_of_frames_of_which_somebody_leaves_parts_out_each_is_whole_or_none(
    bodies: list[list[bytes]], leaves: random.Random
) -> None:
    """As libzmq hands up what is left of frames on their way: in order, each ending with a part that said so."""
    frames = [data([1, 5, len(body)], parts=body, number=number) for number, body in enumerate(bodies, 1)]
    left = [(part, part is frame[-1]) for frame in frames for part in frame if leaves.random() < 0.7]
    known, came = [messages.decode(frame) for frame in frames], []
    for part, last in left:
        came.append(part)
        if last:
            try:
                assert messages.decode(came) in known
            except messages.Torn:
                assert came not in frames
            came = []


BAD_FRAMES: dict[str, list[bytes]] = {
    "no part": [],
    "an empty part": [b""],
    "not msgpack": [b"\xc1"],
    "more behind it": [raw(7, 1) + b"\0"],
    "announced but absent": [b"\xdd\xff\xff\xff\xff"],
    "half a string": [b"\xdb\x7f\xff\xff\xff" + b"x" * 100],
    "text that is not UTF-8": [b"\x93\x06\x01\xa1\xff"],
    "nested without end": [b"\x91" * 100_000],
    "nested as deep as msgpack goes": [b"\x93\x05" + b"\x91" * 1020 + b"\x01\x01"],
    "a list as a key": [b"\x92\x07\x81\x90\x01"],
    "an extension": [b"\x92\x07\xd4\x05a"],
    "a broken timestamp": [b"\x92\x07\xd7\xff" + b"\xff" * 8],
    "not an array": [raw()[:0] + msgpack.packb({"kind": 1})],
    "an empty array": [raw()],
    "a kind that is no number": [raw("hello")],
    "a kind that is true": [raw(True, "discoro", 1, b"", b"")],
    "kind 0": [raw(0)],
    "an unknown kind": [raw(8, 1)],
    "a huge kind": [raw(MAX_U64)],
    "hello of another program": [raw(1, "telnet", 1, b"", b"")],
    "hello without a version": [raw(1, "discoro")],
    "hello of a negative version": [raw(1, "discoro", -1)],
    "hello with text for a mac": [raw(1, "discoro", 1, "m", b"g")],
    "hello with a huge greeting": [raw(1, "discoro", 1, b"m", bytes(16 * 1024 + 1))],
    "hello in two parts": [raw(1, "discoro", 1, b"", b""), b""],
    "welcome of one field": [raw(2, b"m")],
    "welcome with a huge mac": [raw(2, bytes(16 * 1024 + 1), b"")],
    "refused with a long code": [raw(3, 1, "x" * 256, "")],
    "refused with a huge text": [raw(3, 1, "key", "x" * (64 * 1024 + 1))],
    "refused with a text huge in bytes": [raw(3, 1, "key", "€" * 22_000)],
    "data of three fields": [raw(4, 1, 1, [])],
    "data numbered 0": [raw(4, 1, 0, 0, [])],
    "data of too many operations": data(*[[6, 1, True]] * 513),  # type: ignore[dict-item]
    "ack of a negative number": [raw(5, 1, -1)],
    "ack of a fraction": [raw(5, 1, 1.0)],
    "ack of true": [raw(5, 1, True)],
    "bye with a long reason": [raw(6, 1, "x" * 256)],
    "bye with a reason long in bytes": [raw(6, 1, "€" * 86)],
    "bye with bytes for a reason": [raw(6, 1, b"x")],
    "gone of two fields": [raw(7, 1, 1)],
    "a frame past its limit": [raw(4, 1, 1, 0, [[1, 1, 1]]), bytes(messages.MAX_FRAME)],
    "a header past its limit": [raw(2, bytes(messages.MAX_FRAME), b"")],
    "too many parts, however small": [raw(4, 1, 1, 0, [[1, 1, 1000]] * 20), *[b""] * 20_000],
}


@pytest.mark.parametrize("parts", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_frame_that_is_not_in_the_grammar_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(ProtocolError) as caught:
        messages.decode(parts)
    assert len(str(caught.value)) <= 200


def test_what_people_wrote_is_cut_to_its_limit_in_bytes() -> None:
    (bye,) = messages.encode_bye(1, "€" * 1000)
    assert messages.decode([bye]) == Bye(1, "€" * 85)
    (refused,) = messages.encode_refused("key", "€" * 100_000)
    assert messages.decode([refused]) == RefusedFrame(1, "key", "€" * 1365)
    assert messages.clip("a file named \udcff", 100) == "a file named \\udcff"


# ------------------------------------------------------------------ greetings


def test_a_greeting_comes_back_as_it_was() -> None:
    assert messages.decode_greeting(messages.encode_greeting(ADA)) == ADA
    fullest = ADA._replace(name="x" * 255, cluster="x" * 255, addresses=("x" * 255,) * 16, birth=MAX_U64, session=MAX_U64)
    assert messages.decode_greeting(messages.encode_greeting(fullest)) == fullest


BAD_FIELDS = [
    *[(field, value) for field in ("node", "name", "cluster", "python", "software") for value in ("x" * 256, 1, b"x", None)],
    *[(field, value) for field in ("pid", "birth", "session", "received") for value in (-1, 1 << 64, "1", True)],
    *[(field, value) for field in ("resume", "wanted") for value in (-1, 1 << 64, "1", True)],
    *[("role", value) for value in ("", "master", 1)],
    *[("addresses", value) for value in (("a:1",) * 17, ("x" * 256,), (1,), "a:1", None)],
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_greeting_with_a_field_that_is_not_allowed_is_neither_made_nor_read(field: str, value: Any) -> None:
    bad = ADA._replace(**{field: value})
    with pytest.raises(ProtocolError, match="greeting: field"):
        messages.encode_greeting(bad)
    if value != 1 << 64:
        with pytest.raises(ProtocolError, match="greeting: field"):
            messages.decode_greeting(raw(*bad))


@pytest.mark.parametrize("greeting", [b"", b"\xc1", raw(), raw(*ADA, 1), raw(*ADA[:-1]), raw(bytes(17 * 1024))])
def test_bytes_that_are_no_greeting_are_refused(greeting: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.decode_greeting(greeting)


# ------------------------------------------------------------------ operations

OPERATIONS: list[tuple[Operation, list[Any], list[bytes]]] = [
    (Message(1, (b"body",)), [1, 1, b"body"], []),
    (Message(MAX_U64, ()), [1, MAX_U64, 0], []),
    (Message(1, (b"one", b"two")), [1, 1, 2], [b"one", b"two"]),
    (Request(2, 0, "locate", {"name": "x"}), [2, 2, 0, "locate", {"name": "x"}, 0], []),
    (Request(2, 3, "run", {"a": [1, None, 2.5, b"x"], "b": {"c": True}}, (b"b",)),
     [2, 2, 3, "run", {"a": [1, None, 2.5, b"x"], "b": {"c": True}}, b"b"], []),
    (Reply(2, True, {"port": 1}), [3, 2, True, {"port": 1}, 0], []),
    (Reply(2, False, ["Timeout", "too late"]), [3, 2, False, ["Timeout", "too late"], 0], []),
    (Exit(4, "returned", "", (b"value",)), [4, 4, "returned", "", b"value"], []),
    (Hold(5, True), [6, 5, True], []),
    (Messages(7, [b"one", b"", b"three"]), [8, 7, [b"one", b"", b"three"]], []),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "header", "parts"), OPERATIONS, ids=lambda value: type(value).__name__)
def test_every_operation_stands_on_the_wire_as_the_grammar_says(
    operation: Operation, header: list[Any], parts: list[bytes]
) -> None:
    assert messages.encode_data(1, 1, 0, [messages.to_wire(operation)]) == data(header, parts=parts)
    assert same(there_and_back(operation), operation)


def test_operations_that_share_a_frame_find_their_own_parts() -> None:
    operations = [operation for operation, _, _ in OPERATIONS]
    frame = messages.decode(messages.encode_data(1, 1, 0, [messages.to_wire(operation) for operation in operations]))
    assert isinstance(frame, Data)
    assert all(map(same, frame.operations, operations)) and len(frame.operations) == len(operations)


def test_a_small_body_travels_in_the_header_and_a_larger_one_uncopied_beside_it() -> None:
    small, larger = bytes(packing.INLINE_BODY), bytes(packing.INLINE_BODY + 1)
    assert messages.to_wire(Message(1, (small,))).parts == ()
    assert messages.to_wire(Message(1, (larger,))).parts[0] is larger


BAD_OPERATIONS: dict[str, list[Part]] = {
    "not an array": data("message"),
    "an empty array": data([]),
    "a kind that is no number": data(["message", 1, b""]),
    "a kind that is true": data([True, 1, b""]),
    "a kind that is an array": data([[1], 1, b""]),
    "an unknown kind": data([9, 1, b""]),
    "message of two fields": data([1, 1]),
    "message to a negative coroutine": data([1, -1, b""]),
    "message with text for a body": data([1, 1, "text"]),
    "message with a negative number of parts": data([1, 1, -1]),
    "message with true parts": data([1, 1, True], parts=[b""]),
    "message with too many parts": data([1, 1, 1025], parts=[b""] * 1025),
    "message with a part missing": data([1, 1, 2], parts=[b""]),
    "a part that belongs to nothing": data([1, 1, 0], parts=[b""]),
    "request with a long verb": data([2, 1, 0, "x" * 256, {}, 0]),
    "request with arguments in a list": data([2, 1, 0, "run", [], 0]),
    "request with a number for a name": data([2, 1, 0, "run", {1: 2}, 0]),
    "request with too many arguments": data([2, 1, 0, "run", {str(n): n for n in range(33)}, 0]),
    "reply that is neither": data([3, 1, None, None, 0]),
    "reply with an error that is no pair": data([3, 1, False, "Timeout", 0]),
    "reply with an error of numbers": data([3, 1, False, [1, 2], 0]),
    "exit with a long reason": data([4, 1, "x" * 256, "", 0]),
    "exit with a huge text": data([4, 1, "", "x" * (64 * 1024 + 1), 0]),
    "hold of a number": data([6, 1, 1]),
    "messages to a text": data([8, "x", [b"m"]]),
    "messages without any": data([8, 1, []]),
    "messages in a map": data([8, 1, {"m": b"m"}]),
    "messages of parts": data([8, 1, [b"m", 1]], parts=[b"m"]),
    "messages of text": data([8, 1, [b"m", "m"]]),
    "too many messages": data([8, 1, [b""] * (messages.MAX_RUN + 1)]),
    "piece without its part": data([5, 1, True, [1, 1, 1], [1]]),
    "piece with text for sizes": data([5, 1, True, [1, 1, 1], "x"], parts=[b""]),
    "piece of no part": data([5, 1, True, [1, 1, 0], []], parts=[b""]),
    "piece of a negative size": data([5, 1, True, [1, 1, 1], [-1]], parts=[b""]),
    "piece of too many parts": data([5, 1, True, [1, 1, 1025], [1] * 1025], parts=[b""]),
    "piece of text": data([5, 1, True, "message", [1]], parts=[b""]),
    "piece of a long operation": data([5, 1, True, [1] * 9, [1]], parts=[b""]),
}


@pytest.mark.parametrize("parts", BAD_OPERATIONS.values(), ids=BAD_OPERATIONS)
def test_an_operation_that_is_not_in_the_grammar_is_refused(parts: list[Part]) -> None:
    with pytest.raises(ProtocolError):
        messages.decode(parts)


@pytest.mark.parametrize(
    ("operation", "text"),
    [
        (Message(1, (memoryview(bytes(messages.MIB)),) * 1025), "1074790400 bytes; at most 1073741824"),
        (Message(1, (b"",) * 1025), "1025 separate buffers; at most 1024"),
        (Request(1, 0, "x", {"a": "x" * messages.MAX_FIELDS}), "at most 131072"),
        (Reply(1, True, "x" * messages.MAX_FIELDS), "at most 131072"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_sent(operation: Operation, text: str) -> None:
    with pytest.raises(TooLarge, match=text):
        messages.to_wire(operation)


def depth_of(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "operation",
    [
        Message(-1, (b"",)),
        Message(1 << 64, (b"",)),
        Message(1 << 64, (b"", b"")),
        Hold(-1, True),
        Request(1, 0, "x" * 256, {}),
        Request(1, 0, "x", {str(number): number for number in range(33)}),
        Request(1, 0, "x", {"a": object()}),
        Request(1, 0, "x", {"a": 1 << 64}),
        Request(1, 0, "x", {"a": "\udcff"}),
        Request(1, 0, "x", {"a": nested(1100)}),
        Reply(1, 1, None),  # type: ignore[arg-type]
    ],
)
def test_what_the_receiver_would_refuse_is_refused_before_it_is_sent(operation: Operation) -> None:
    with pytest.raises((ProtocolError, TypeError, ValueError, OverflowError)):
        messages.to_wire(operation)


def test_nesting_that_passes_here_passes_in_a_frame_and_in_a_piece() -> None:
    request = Request(1, 0, "x", {"a": nested(messages.MAX_DEPTH - 1)}, (bytes(messages.PIECE_SIZE),))
    there_and_back(request)
    there_and_back(request._replace(body=()))
    there_and_back(Reply(1, True, nested(messages.MAX_DEPTH)))


@pytest.mark.parametrize(
    "value",
    [nested(messages.MAX_DEPTH), {"b": nested(messages.MAX_DEPTH - 1)}, nested(400)]
    + ["x" * (packing.MAX_TEXT + 1), bytes(packing.INLINE_BODY + 1), [0] * (packing.MAX_ITEMS + 1)]
    + [dict.fromkeys(map(str, range(packing.MAX_KEYS + 1))), {1: 2}],
    ids=reprlib.repr,
)
def test_what_the_receiver_would_not_take_is_refused_before_it_is_sent(value: Any) -> None:
    for operation in (Request(1, 0, "x", {"a": value}), Reply(1, True, [value])):
        with pytest.raises(ProtocolError):
            messages.to_wire(operation)
    for wrong in ([2, 1, 0, "x", {"a": value}, b""], [3, 1, True, [value], b""]):
        with pytest.raises(ProtocolError):
            messages.decode(data(wrong))


def test_texts_of_any_length_travel_cut_to_their_limit() -> None:
    exit_ = there_and_back(Exit(1, "€" * 300, "\udcff" + "€" * 100_000))
    assert isinstance(exit_, Exit)
    assert (exit_.reason, len(exit_.text.encode())) == ("€" * 85, 64 * 1024 - 1)
    reply = there_and_back(Reply(1, False, ["E" * 300, "x" * 100_000]))
    assert isinstance(reply, Reply)
    assert [len(text) for text in reply.value] == [255, 64 * 1024]


# ------------------------------------------------------------------ pieces

ARGUMENTS = {"a": "x" * 65_000, "b": "x" * 65_000}
LARGE: dict[str, Operation] = {
    "one byte more than a piece": Message(1, (bytes(messages.PIECE_SIZE + 1),)),
    "exactly two pieces": Message(1, (bytes(2 * messages.PIECE_SIZE),)),
    "several parts, some of them empty": Message(1, (b"", b"one", b"", bytes(300_000), b"two", bytes(600_000), b"")),
    "as many parts as there can be": Message(1, tuple(bytes([n % 256]) * 300 for n in range(1024))),
    "large arguments and an inline body": Request(1, 0, "x", ARGUMENTS, (bytes(32 * 1024),)),
    "large arguments and a body just too large": Request(1, 0, "x", ARGUMENTS, (bytes(messages.PIECE_SIZE - 1000),)),
    "large arguments and empty parts": Request(1, 0, "x", ARGUMENTS, (b"",) * 1024),
    "an exit": Exit(1, "returned", "text", (bytes(300_000), b"")),
    "a reply": Reply(1, True, {"a": 1}, (bytes(300_000),)),
    "parts of more than a megabyte": Message(1, (b"", bytes(3_000_000), b"", b"", bytes(1_048_576), b"")),
    "buffers of other kinds": Message(1, (bytearray(300_000), memoryview(bytes(300_000)).cast("i"))),
}


@pytest.mark.parametrize("operation", LARGE.values(), ids=LARGE)
def test_a_large_operation_comes_back_as_it_was(operation: Operation) -> None:
    assert same(there_and_back(operation), operation)


def test_what_was_assembled_is_writable() -> None:
    for size in (300_000, 3_000_000):
        operation = there_and_back(Message(1, (bytes(size),)))
        assert isinstance(operation, Message) and not memoryview(operation.body[0]).readonly


def test_the_pieces_of_several_operations_may_alternate() -> None:
    operations = [Message(coro, (bytes([coro]) * (300_000 * coro),)) for coro in range(1, 4)]
    streams = [messages.split(messages.to_wire(operation), operation.coro, largest) for operation in operations]
    assembler, whole = Assembler(), []
    while streams:
        stream = streams.pop(0)
        wire = next(stream, None)
        if wire is None:
            continue
        streams.append(stream)
        frame = messages.decode(messages.encode_data(1, 1, 0, [wire]))
        assert isinstance(frame, Data)
        operation = assembler.add(frame.operations[0])
        whole += [operation] if operation is not None else []
    assert all(map(same, whole, operations)) and len(whole) == 3


def first(*, stream: int = 1, last: bool = False, header: Any = (1, 1, 1), sizes: Any = (4,), part: bytes = b"ab") -> Piece:
    return Piece(stream, last, list(header), list(sizes), part)


def later(*, last: bool = False, part: bytes = b"cd", header: Any = None, sizes: Any = None) -> Piece:
    return Piece(1, last, header, sizes, part)


BAD_PIECES: dict[str, list[Piece]] = {
    "never begun": [later()],
    "begun without sizes": [Piece(1, False, [1, 1, 1], None, b"")],
    "begun without an operation": [Piece(1, False, None, [4], b"")],
    "begun twice": [first(), first()],
    "begun again in part": [first(), later(sizes=[4])],
    "begun and over": [first(), later(last=True), later()],
    "longer than announced": [first(), later(part=b"cde")],
    "longer than the first of its parts": [first(header=(1, 1, 2), sizes=(1, 3))],
    "more after everything came": [first(), later(), later()],
    "shorter than announced": [first(), later(part=b"c", last=True)],
    "larger than a message can be": [first(sizes=(messages.MAX_MESSAGE, 1), header=(1, 1, 2))],
    "of an operation without a body": [first(header=(6, 1, True))],
    "of a piece": [first(header=(5, 1, True, None, None))],
    "of no operation": [first(header=())],
    "of an unknown operation": [first(header=(9, 1, 1))],
    "of an operation that is not allowed": [first(header=(1, -1, 1))],
    "of an operation with its body inside": [first(header=(1, 1, b"x"))],
    "of an operation of other parts": [first(header=(1, 1, 2))],
    "of an operation of true parts": [first(header=(1, 1, True))],
    "of too many operations": [first(stream=number) for number in range(messages.MAX_STREAMS + 1)],
}


@pytest.mark.parametrize("pieces", BAD_PIECES.values(), ids=BAD_PIECES)
def test_pieces_that_do_not_belong_together_are_refused_with_the_first_wrong_one(pieces: list[Piece]) -> None:
    assembler = Assembler()
    for piece in pieces[:-1]:
        assembler.add(piece)
    with pytest.raises(ProtocolError):
        assembler.add(pieces[-1])


def test_a_stream_number_may_be_used_again_and_a_finished_one_makes_room() -> None:
    assembler = Assembler()
    for _ in range(2 * messages.MAX_STREAMS):
        assert assembler.add(first()) is None
        assert assembler.add(later(last=True)) == Message(1, [bytearray(b"abcd")])


def test_an_announced_size_costs_no_memory_until_it_comes() -> None:
    for sizes in ((messages.MAX_MESSAGE,), (messages.MAX_MESSAGE // 1024 - 1,) * 1024):
        assembler = Assembler()
        before = time.process_time()
        for stream in range(messages.MAX_STREAMS):
            assembler.add(first(stream=stream, header=(1, 1, len(sizes)), sizes=sizes))
        assert time.process_time() - before < 0.5, "16 GiB were written"


def no_room(size: int) -> bytearray:
    raise MemoryError


def test_an_operation_that_finds_no_memory_is_read_to_its_end_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "room", no_room)
    assembler, sizes = Assembler(), (3, 5_000_000, 0, 2)
    assert assembler.add(first(part=b"abc", header=(1, 7, len(sizes)), sizes=sizes)) is None
    assert assembler.add(later(part=bytes(4_000_000))) is None
    beside = assembler.add(first(stream=2, part=b"whole", sizes=(5,), last=True))
    assert isinstance(beside, Message) and list(beside.body) == [b"whole"]
    assert assembler.add(later(part=bytes(1_000_000))) is None
    unkept = assembler.add(later(part=b"xy", last=True))
    assert isinstance(unkept, Message) and isinstance(unkept.body, memory.Unkept)
    assert unkept.coro == 7 and unkept.body.size == 5_000_005 and not unkept.body
    with pytest.raises(ProtocolError, match="never began"):
        assembler.add(later(last=True))


@pytest.mark.parametrize(("size", "wrong"), [(5, "a piece longer than its operation announced"), (3, "1 bytes shorter")])
def test_what_finds_no_memory_is_as_long_as_announced(monkeypatch: pytest.MonkeyPatch, size: int, wrong: str) -> None:
    monkeypatch.setattr(messages, "room", no_room)
    assembler = Assembler()
    assembler.add(first(part=b"a", sizes=(5,)))
    with pytest.raises(ProtocolError, match=wrong):
        assembler.add(later(part=bytes(size), last=True))


# ------------------------------------------------------------------ anything at all

numbers = st.integers(0, MAX_U64)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), MAX_U64) | st.floats(allow_nan=False) | names | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
).filter(lambda value: depth_of(value) < messages.MAX_DEPTH)
lengths = st.integers(0, 80) | st.sampled_from([32 * 1024, 32 * 1024 + 1, 256 * 1024 - 33, 256 * 1024, 256 * 1024 + 1, 700_000])
parts_ = st.builds(lambda length, byte: bytes([byte]) * length, lengths, st.integers(0, 255))
bodies = st.lists(parts_, max_size=4).map(tuple)
operations = st.one_of(
    st.builds(Message, numbers, bodies),
    st.builds(Request, numbers, numbers, names, st.dictionaries(names, values, max_size=4), bodies),
    st.builds(Reply, numbers, st.just(True), values, bodies),
    st.builds(Reply, numbers, st.just(False), st.tuples(names, names).map(list), bodies),
    st.builds(Exit, numbers, names, names, bodies),
    st.builds(Hold, numbers, st.booleans()),
    st.builds(Messages, numbers, st.lists(st.binary(max_size=20), min_size=1, max_size=20)),
)
headers = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10) | numbers | names | st.binary(max_size=20) | st.just("discoro"),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(names, inner, max_size=3),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(operations)
def test_any_operation_comes_back_as_it_was(operation: Operation) -> None:
    assert same(there_and_back(operation), operation)


@settings(max_examples=100, deadline=None)
@given(st.lists(operations, max_size=8))
def test_any_operations_share_a_frame(several: list[Operation]) -> None:
    wires = [wire for wire in map(messages.to_wire, several) if wire.size <= messages.PIECE_SIZE]
    whole = [operation for operation in several if messages.to_wire(operation).size <= messages.PIECE_SIZE]
    frame = messages.encode_data(1, 1, 0, wires)
    if sum(wire.size for wire in wires) <= messages.BATCH_BYTES:
        decoded = messages.decode([bytes(part) for part in frame])
        assert isinstance(decoded, Data) and all(map(same, decoded.operations, whole))


def attempt(parts: list[bytes]) -> None:
    """A frame, or ProtocolError and nothing else, at once; whatever pieces there are go to an assembler."""
    began = time.process_time()  # whatever else the machine does
    try:
        frame = messages.decode(parts)
        if isinstance(frame, Data):
            assembler = Assembler()
            for operation in frame.operations:
                if isinstance(operation, Piece):
                    assembler.add(operation)
        if isinstance(frame, Hello | Welcome):
            messages.decode_greeting(frame.greeting)
    except ProtocolError:
        pass
    assert time.process_time() - began < 2


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=3))
@example([b"\x91" * messages.MAX_FRAME])
@example([b"\x80" * messages.MAX_FRAME])
@example([b"\xdd\x00\x0f\xff\xf0" + b"\x90" * (messages.MAX_FRAME - 16)])
@example([b"\xdf\x00\x05\x00\x00" + b"\xce\x00\x00\x00\x00\x90" * 170_000])
def test_any_bytes_are_a_frame_or_an_error(parts: list[bytes]) -> None:
    attempt(parts)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 8), st.lists(headers, max_size=6), st.lists(st.binary(max_size=20), max_size=3))
def test_any_header_is_a_frame_or_an_error(kind: int, fields: list[Any], parts: list[bytes]) -> None:
    attempt([raw(kind, *fields), *parts])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.lists(headers, max_size=6), max_size=3), st.lists(st.binary(max_size=20), max_size=3))
def test_any_operations_are_a_frame_or_an_error(several: list[Any], parts: list[bytes]) -> None:
    attempt([raw(4, 1, 1, 0, several), *parts])


def mutations(frame: bytes) -> Iterator[bytes]:
    """The frame cut short anywhere, and with each byte changed."""
    for at in range(len(frame)):
        yield frame[:at]
        for byte in (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC3, 0xC4, 0xDD, 0xDF, 0xFF):
            yield frame[:at] + bytes([byte]) + frame[at + 1 :]


def test_any_valid_frame_with_one_byte_wrong_is_a_frame_or_an_error() -> None:
    greeting = messages.encode_greeting(ADA)
    frames = [encoded for encoded, _, _ in FRAMES] + [messages.encode_welcome(b"mac", greeting)]
    frames += [data(header, parts=parts) for _, header, parts in OPERATIONS]
    frames += [data([5, 1, False, [1, 1, 1], [4]], parts=[b"ab"])]
    for header, *parts in frames:
        for mutated in mutations(bytes(header)):
            attempt([mutated, *map(bytes, parts)])
