"""What waits on a link and what was sent: windows, queues, pieces, lanes. By itself, and through a link."""

from __future__ import annotations

import random

import pytest

from discoro import messages
from discoro import outbox as rules
from discoro.link import Send
from discoro.messages import Exit, Hold, Message, Messages, Operation, Reply, Request
from discoro.outbox import Outbox
from tests.support.link_pair import two
from tests.test_link import NOW, OURS, frames, from_peer, large, message, new_link, opened, texts


def taken(outbox: Outbox) -> list[tuple[int, list[messages.Wire]]]:
    return list(outbox.frames(NOW))


def fast(outbox: Outbox) -> Outbox:
    """As where much has gone fast: the window of pieces is as large as it may be, and so are they."""
    outbox._pace.window, outbox._pace.piece = rules.PIECES_BYTES, messages.PIECE_SIZE
    return outbox


def test_no_more_than_the_window_is_unacknowledged() -> None:
    link = opened()
    for _ in range(2 * rules.WINDOW_FRAMES):
        link.send(message("x"))
        link.actions(NOW)
    assert link.outbox.unacknowledged == 2 * rules.WINDOW_FRAMES
    link.acknowledged(1, OURS, rules.WINDOW_FRAMES - 1, NOW)
    assert [frame.number for frame in frames(link.actions(NOW))] == [rules.WINDOW_FRAMES + 1], "the rest shares one"


@pytest.mark.parametrize(
    ("operations", "window"),
    [
        ([large(messages.PIECE_SIZE - 200)] * 60, rules.WINDOW_BYTES),
        ([large(64 * messages.MIB)], rules.PIECES_BYTES),
        ([large(messages.MIB)] * 60, rules.PIECES_BYTES),
        ([Request(1, 0, "x", {"a": "x" * 65_500, "b": "x" * 65_500}, (bytes(300_000),))] * 60, rules.PIECES_BYTES),
        ([large(64 * messages.MIB)] + [large(messages.PIECE_SIZE - 200)] * 60, rules.WINDOW_BYTES),
    ],
    ids=["small", "one large", "many large", "large with large arguments", "both"],
)
def test_the_windows_in_bytes_are_never_exceeded(operations: list[Operation], window: int) -> None:
    link = opened()
    fast(link.outbox)
    for operation in operations:
        link.send(operation)
    in_flight: list[int] = []
    acknowledged = 0
    for turn in range(5):
        in_flight += [sum(map(len, action.parts)) for action in link.actions(NOW) if isinstance(action, Send)]
        assert sum(in_flight) <= window
        assert turn or sum(in_flight) > window - 2 * rules.LARGEST_FRAME, "nor is it left unused"
        arrived = len(in_flight) // 2
        acknowledged += arrived
        del in_flight[:arrived]
        link.acknowledged(1, OURS, acknowledged, NOW)


def test_a_piece_behind_a_small_operation_waits_where_the_window_has_room_for_one_frame() -> None:
    link = opened()
    for _ in range(rules.WINDOW_FRAMES - 1):
        link.send(message("x"))
        link.actions(NOW)
    link.send(large(300_000))
    link.send(message("last"))
    assert [frame.number for frame in frames(link.actions(NOW))] == [rules.WINDOW_FRAMES]


def test_pieces_leave_room_in_the_window_for_small_operations() -> None:
    link = opened()
    link.send(large(64 * messages.MIB))
    link.actions(NOW)
    link.send(message("x"))
    assert [texts(frame.operations) for frame in frames(link.actions(NOW))] == [["x"]]


def test_small_operations_pass_between_pieces_and_large_ones_alternate() -> None:
    outbox = fast(Outbox())
    for coro in (1, 2):
        outbox.add(messages.to_wire(large(3 * messages.PIECE_SIZE, coro)), None)
    order = []
    frame = outbox.frames(NOW)
    for _ in range(3):
        order.append(next(frame)[1])
    outbox.add(messages.to_wire(message("small")), None)
    order += [wires for _, wires in frame]
    streams = [wires[0].header[1] if wires[0].header[0] == 5 else "small" for wires in order]
    assert streams == [1, 2, 1, "small", 2, 1, 2]


def test_no_more_large_operations_are_begun_than_the_receiver_assembles() -> None:
    outbox, assembler, whole = Outbox(), messages.Assembler(), []
    for coro in range(3 * rules.STREAMS):
        outbox.add(messages.to_wire(large((1 + coro % 5) * 300_000, coro)), None)
    begun: set[int] = set()
    while not outbox.is_empty():
        for number, wires in taken(outbox):
            (piece,) = messages.decode(messages.encode_data(1, number, 0, wires)).operations  # type: ignore[union-attr]
            begun.add(piece.stream)
            operation = assembler.add(piece)
            if operation is not None:
                whole.append(operation)
                begun.remove(piece.stream)
            assert len(begun) <= rules.STREAMS
            outbox.acknowledge(number, NOW)
    assert sorted(operation.coro for operation in whole if isinstance(operation, Message)) == list(range(3 * rules.STREAMS))


def test_a_large_operation_overtakes_nothing_that_was_queued_before_it() -> None:
    outbox = fast(Outbox())
    for number in range(3 * messages.BATCH_OPERATIONS):
        outbox.add(messages.to_wire(message(str(number))), "a")
    outbox.add(messages.to_wire(large(300_000)), "a")
    kinds = [wires[0].header[0] for _, wires in taken(outbox)]
    assert kinds == [1, 1, 1, 5, 5]


@pytest.mark.parametrize("seed", range(20))
def test_lanes_keep_their_order_past_large_operations(seed: int) -> None:
    chance = random.Random(seed)
    network, low, high = two(seed)
    link = low.link(high)
    sent: dict[int, list[int]] = {}
    for number in range(200):
        lane = chance.randrange(4)
        size = chance.choice([10, 10, 10, 10, 10, 40_000, 300_000, 800_000])
        low.post(link, Message(lane, (number.to_bytes(4, "big") + bytes(size),)), lane)
        sent.setdefault(lane, []).append(number)
        if chance.random() < 0.1:
            network.run(0.002)
    network.run(5)
    arrived: dict[int, list[int]] = {}
    for operation in high.arrived[high.link(low)]:
        assert isinstance(operation, Message)
        arrived.setdefault(operation.coro, []).append(int.from_bytes(operation.body[0][:4], "big"))
    assert arrived == sent


def run_of(outbox: Outbox, coro: int, *bodies: bytes) -> None:
    """What the mesh does for small messages to one coroutine."""
    for body in bodies:
        run = outbox.run
        if run is None or run.coro != coro:
            assert outbox.begin_run(coro, body)
        else:
            run.bodies.append(body)
            run.size += messages.MESSAGE_WEIGHT + len(body)


def test_small_messages_to_one_coroutine_travel_as_one_operation() -> None:
    outbox = fast(Outbox())
    run_of(outbox, 1, b"a", b"b", b"c")
    run_of(outbox, 2, b"d")
    run_of(outbox, 1, b"e", b"f")
    assert outbox.crowded and not outbox.is_empty() and not outbox.stands_still
    assert (outbox.unacknowledged, outbox.waiting) == (6, "6 operations of 198 bytes")
    assert outbox.run is not None, "to look changes nothing"
    ((number, wires),) = taken(outbox)
    frame = messages.decode(messages.encode_data(1, number, 0, wires))
    assert frame.operations == [Messages(1, [b"a", b"b", b"c"]), Message(2, (b"d",)), Messages(1, [b"e", b"f"])]  # type: ignore[union-attr]
    assert outbox.unacknowledged == 6
    outbox.acknowledge(1, NOW)
    assert outbox.is_empty() and outbox.unacknowledged == 0


def test_no_message_joins_those_before_another_operation() -> None:
    outbox = fast(Outbox())
    run_of(outbox, 1, b"a", b"b")
    outbox.add(messages.to_wire(Hold(1, True)), None)
    assert outbox.run is None
    run_of(outbox, 1, b"c")
    ((_, wires),) = taken(outbox)
    assert [wire.header[0] for wire in wires] == [8, 6, 1]


def test_behind_large_ones_and_in_a_full_queue_no_run_begins() -> None:
    outbox = Outbox()
    outbox.add(messages.to_wire(large(300_000)), "a")
    assert not outbox.begin_run(1, b"behind")
    outbox = Outbox()
    for _ in range(rules.QUEUE_OPERATIONS):
        assert outbox.begin_run(1, b"x")
    assert not outbox.begin_run(1, b"x")
    assert outbox.unacknowledged == rules.QUEUE_OPERATIONS


def test_has_room_until_the_queue_is_full_and_again_when_it_drains() -> None:
    link = new_link()
    for _ in range(64):
        link.send(large(messages.MIB))
    assert link.has_room(), "one does not count"
    link.send(large(messages.MIB))
    assert not link.has_room()
    link.hello(1, from_peer(resume=0), NOW)
    fast(link.outbox)
    link.actions(NOW)
    assert not link.has_room(), "an operation waits until its last piece has left"
    link.acknowledged(1, OURS, 10, NOW)
    link.actions(NOW)
    assert link.has_room()
    outbox, small = Outbox(), messages.to_wire(message("x"))
    for _ in range(rules.QUEUE_OPERATIONS):
        assert outbox.has_room()
        outbox.add(small, None)
    assert not outbox.has_room()


def test_one_large_operation_leaves_room_for_others() -> None:
    outbox = Outbox()
    outbox.add(messages.to_wire(large(200 * messages.MIB)), None)
    for _ in range(rules.QUEUE_BYTES // messages.MIB):
        assert outbox.has_room()
        outbox.add(messages.to_wire(large(messages.MIB)), None)
    assert not outbox.has_room()


def test_a_second_large_operation_fills_the_queue() -> None:
    outbox = Outbox()
    for room in (True, False):
        outbox.add(messages.to_wire(large(200 * messages.MIB)), None)
        assert outbox.has_room() is room


def test_every_kind_of_operation_arrives_as_it_was_sent() -> None:
    network, low, high = two()
    link = low.link(high)
    sent: list[Operation] = [
        Message(1, (b"a",)),
        Request(2, 0, "locate", {"name": "x"}, (b"b",)),
        Reply(2, True, {"port": 1}, (b"c",)),
        Reply(3, False, ["Timeout", "too late"], (b"",)),
        Exit(4, "returned", "", (b"d",)),
        Hold(5, True),
    ]
    for operation in sent:
        low.post(link, operation)
    network.run(1)
    assert high.arrived[high.link(low)] == sent


def test_answers_are_counted_while_they_wait_small_and_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other operations are not; what was sent is not any more, whether it was acknowledged or not."""
    monkeypatch.setattr(rules, "OWED_REPLIES", 3)
    outbox = fast(Outbox())
    operations = [Reply(1, True, 0), Message(1, [b"m"]), Reply(2, True, 0, [bytes(messages.MIB)]), Exit(1, "normal", "", ())]
    for operation in operations:
        outbox.add(messages.to_wire(operation), None)
    assert outbox.owed.startswith("2 answers of 10") and outbox.takes_replies()
    outbox.add(messages.to_wire(Reply(3, True, 0)), None)
    assert not outbox.takes_replies()
    taken(outbox)
    assert outbox.owed == "0 answers of 0 bytes" and outbox.takes_replies()


def test_pieces_of_blobs_wait_where_a_peer_takes_none() -> None:
    outbox = fast(Outbox())
    for number in range(40):
        if not outbox.takes_pieces():
            break
        outbox.add(messages.to_wire(Reply(number, True, 0, [bytes(messages.MIB)])), None)
    assert number == rules.PIECES_OWED // messages.MIB
    taken(outbox)
    assert not outbox.takes_pieces(), "what has left in part still waits"
    for _ in range(10):
        outbox.acknowledge(outbox._number, NOW)
        taken(outbox)
    assert outbox.takes_pieces()
