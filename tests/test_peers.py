"""The links of one process, with a wire that only records: whom it believes, what it answers, whom it cuts off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from discoro import messages, outbox, packing
from discoro import peers as rooms
from discoro.connections import Ended
from discoro.errors import PeerLost, Refused, Unreachable
from discoro.link import Link, State
from discoro.messages import (
    Ack,
    Bye,
    Data,
    Gone,
    Greeting,
    Hello,
    Hold,
    Message,
    Messages,
    RefusedFrame,
    Reply,
    Request,
    Welcome,
)
from discoro.peers import Peers
from discoro.security import Security
from tests.support import moved_clock

SECURITY = Security.from_options(secret="a long enough passphrase for tests")
OTHER = Security.from_options(secret="another passphrase of another cluster")
ME = Greeting("00000000000000aa", 1, 0xAA, "ada", "node", "default", "3.11", "0", ("127.0.0.1:1",))
THEM = Greeting("00000000000000bb", 2, 0xBB, "bob", "client", "default", "3.11", "0", ("127.0.0.1:2",))


class Recorder:
    """A wire and an owner in one: frames sent, connections dropped, what was handed up."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.dropped: list[int] = []
        self.kept: list[int] = []
        self.dialled: list[str] = []
        self.told: list[Any] = []
        self.broken = False
        self.bug = False

    def dial(self, address: str) -> int:
        self.dialled.append(address)
        return 100 + len(self.dialled)

    def send(self, conn: int, parts: Sequence[messages.Part]) -> bool:
        self.sent.append((conn, messages.decode([bytes(part) for part in parts])))
        return not self.broken

    def drop(self, conn: int, flush: bool = False) -> None:
        self.dropped.append(conn)

    def keep(self, conn: int) -> None:
        self.kept.append(conn)

    def opened(self, link: Link) -> None:
        self.told.append("opened")

    def operation(self, link: Link, operation: messages.Operation) -> None:
        if self.bug:
            raise ZeroDivisionError("a bug")
        self.told.append(operation)

    def lost(self, link: Link) -> None:
        self.told.append(link.lost_because)


def with_peers(test: Callable[[Peers, Recorder], Any]) -> None:
    async def body() -> None:
        recorder = Recorder()
        peers = Peers(ME, SECURITY, recorder)
        peers.wire = recorder
        result = test(peers, recorder)
        if result is not None:
            await result
        peers.close("the test is over")

    moved_clock.run(body)


def hello(greeting: Greeting | None = None, security: Security = SECURITY) -> list[bytes]:
    body = messages.encode_greeting(greeting or THEM._replace(session=7))
    return [bytes(part) for part in messages.encode_hello(security.mac(body), body)]


def welcome(greeting: Greeting, security: Security = SECURITY) -> list[bytes]:
    body = messages.encode_greeting(greeting)
    return [bytes(part) for part in messages.encode_welcome(security.mac(body), body)]


def data(peers: Peers, *operations: Any, number: int = 1, birth: int = THEM.birth) -> list[messages.Part]:
    """A numbered frame as that peer sends it: with our number for the link."""
    link = peers.get(birth)
    session = link.session if link else 7
    return messages.encode_data(session, number, 0, [messages.to_wire(each) for each in operations])


def test_a_greeting_opens_a_link_and_operations_come_up_in_order() -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.connected(1)
        peers.received(1, hello())
        assert isinstance(recorder.sent[0][1], Welcome)
        peers.received(1, data(peers, Message(1, (b"a",)), Hold(2, True)))
        assert recorder.told == ["opened", Message(1, (b"a",)), Hold(2, True)]

    with_peers(test)


@pytest.mark.parametrize(
    ("theirs", "code"),
    [
        (hello(security=OTHER), "key"),
        (hello(THEM._replace(session=7, cluster="other")), "cluster"),
        (hello(THEM._replace(session=7, python="3.12")), "python"),
        (hello(THEM._replace(session=7, wanted=0xCC)), "stale"),
        (hello(ME._replace(session=7)), "stale"),
        ([packing.pack([1, "discoro", 99, b"whatever", {"a": "newer"}])], "protocol"),
    ],
)
def test_who_does_not_belong_is_refused_with_the_first_reason(theirs: Any, code: str) -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, theirs)
        [(connection, refused)] = recorder.sent
        assert isinstance(refused, RefusedFrame)
        assert (connection, refused.code) == (1, code)
        assert recorder.dropped == [1]
        assert recorder.told == []
        peers.received(1, data(peers, Message(1, (b"a",))))
        assert recorder.told == []

    with_peers(test)


def test_nothing_of_a_greeting_is_read_before_its_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(data: bytes) -> Greeting:
        raise AssertionError("read before it was verified")

    monkeypatch.setattr(messages, "decode_greeting", never)

    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello(security=OTHER))
        peers.received(2, [packing.pack([1, "discoro", 1, b"", b"junk"])])
        assert [frame.code for _, frame in recorder.sent] == ["key", "key"]

    with_peers(test)


@pytest.mark.parametrize("junk", [[b"junk"], [b""], [packing.pack([4, 7, 1, 0, []])], [packing.pack([99])]])
def test_frames_of_strangers_do_nothing(junk: list[bytes]) -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, junk)
        assert (recorder.sent, recorder.told) == ([], [])

    with_peers(test)


@pytest.mark.parametrize("junk", [[b"junk"], [b""], [packing.pack([4, 7, 1, 0, [[99]]])]])
def test_a_peer_that_breaks_the_protocol_is_told_and_cut_off_and_others_live_on(junk: Any) -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        peers.received(2, hello(THEM._replace(session=8, birth=0xCC)))
        peers.received(1, junk)
        told = [frame for connection, frame in recorder.sent if connection == 1 and isinstance(frame, Bye)]
        assert len(told) == 1
        assert "you broke the protocol" in told[0].reason
        assert 1 in recorder.dropped
        assert any("broke the protocol" in str(each) for each in recorder.told)
        peers.received(2, data(peers, Message(5, (b"x",)), birth=0xCC))
        assert recorder.told[-1] == Message(5, (b"x",))

    with_peers(test)


def test_who_breaks_the_protocol_with_its_greeting_is_cut_off_too() -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello(THEM._replace(session=7, received=5)))  # of a link that is new here
        assert recorder.dropped == [1]
        assert list(peers._by_connection) == [], "the link that is over is kept"

    with_peers(test)


STRANGE = {
    "numbered frames": [packing.pack([4, 7, 1, 0, []])],
    "an acknowledgement": [packing.pack([5, 7, 1])],
    "a goodbye": [packing.pack([6, 7, "done"])],
    "several parts": [*hello(), b"x"],
    "a greeting past the limit": [packing.pack([1, "discoro", 99, bytes(messages.MAX_FIRST)])],
    "many small parts": [b"\x90"] * 1000,
}


@pytest.mark.parametrize("frame", STRANGE.values(), ids=STRANGE.keys())
def test_before_a_greeting_nothing_else_may_come(frame: list[bytes]) -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, frame)
        assert (recorder.dropped, recorder.sent, recorder.told) == ([1], [], [])

    with_peers(test)


def test_who_answers_a_dial_with_something_else_ends_that_dial_only() -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        link = peers.link(THEM.birth, ["10.0.0.1:2", "10.0.0.2:2"])
        peers.connected(101)
        peers.connected(102)
        peers.received(101, [b"junk"])
        assert (recorder.dropped, link.ended) == ([101], False)
        peers.received(102, welcome(THEM._replace(session=7, resume=link.session)))
        assert link.state is State.OPEN

    with_peers(test)


def test_who_inquires_is_told_at_once_of_an_answer_that_is_none() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        asking = asyncio.ensure_future(peers.inquire("127.0.0.1:2", 3))
        await asyncio.sleep(0)
        peers.connected(101)
        peers.received(101, [b"junk"])
        with pytest.raises(Unreachable, match="what answers there breaks the protocol"):
            await asyncio.wait_for(asking, 1)

    with_peers(test)


def test_what_is_no_greeting_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*junk: Any) -> Any:
        raise AssertionError("operations of somebody unknown were read")

    monkeypatch.setattr(messages, "_decode_data", never)

    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, messages.encode_data(7, 1, 0, [messages.to_wire(Message(1, (b"a",)))]))
        assert recorder.dropped == [1]

    with_peers(test)


def test_over_a_connection_that_a_link_has_left_only_a_greeting_may_come() -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        link = peers.get(THEM.birth)
        assert link is not None
        peers.received(2, hello(THEM._replace(session=7, resume=link.session)))
        before = len(recorder.told)
        peers.received(1, data(peers, Message(1, (b"late",))))
        assert (len(recorder.told), link.state) == (before, State.OPEN)
        peers.received(2, data(peers, Message(1, (b"now",))))
        assert recorder.told[-1] == Message(1, (b"now",))

    with_peers(test)


def test_resuming_what_is_not_known_is_answered_by_gone() -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello(THEM._replace(session=7, resume=5)))
        assert recorder.sent == [(1, Gone(7))]
        assert recorder.told == []

    with_peers(test)


def test_a_new_session_of_a_known_birth_ends_the_old_link() -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        peers.received(2, hello(THEM._replace(session=9)))
        assert recorder.told == ["opened", "the peer ended the link", "opened"]

    with_peers(test)


def test_the_number_of_links_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_LINKS", 1)

    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        peers.received(2, hello(THEM._replace(session=8, birth=0xCC)))
        assert recorder.sent[-1][1].code == "full"
        with pytest.raises(Unreachable, match="1 links and makes no more"):
            peers.link(0xDD, ["127.0.0.1:3"])
        assert recorder.dialled == []

    with_peers(test)


def test_who_greeted_and_went_gives_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless something came over its link."""
    monkeypatch.setattr(rooms, "MAX_LINKS", 2)

    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        peers.received(1, data(peers, Message(1, (b"a",))))
        peers.received(2, hello(THEM._replace(session=8, birth=0xCC)))
        peers.ended(1, Ended.BROKEN, "")
        peers.ended(2, Ended.BROKEN, "")
        peers.received(3, hello(THEM._replace(session=9, birth=0xDD)))
        assert isinstance(recorder.sent[-1][1], Welcome)
        assert peers.get(0xCC) is None and peers.get(THEM.birth) is not None
        assert recorder.kept == [1, 2, 3]

    with_peers(test)


def test_who_does_not_take_its_answers_is_told_and_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OWED_REPLIES", 5)

    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        peers.received(2, hello(THEM._replace(session=8, birth=0xCC)))
        for birth in (THEM.birth, 0xCC):
            link = peers.get(birth)
            assert link is not None
            for number in range(outbox.WINDOW_FRAMES + 10 if birth == THEM.birth else 10):
                peers.post(link, Reply(number, True, 0))
                peers.received(link.connection or 0, data(peers, birth=birth, number=number + 1))  # each leaves at once
        await asyncio.sleep(1)
        told = [frame for conn, frame in recorder.sent if conn == 1 and isinstance(frame, Bye)]
        assert len(told) == 1 and "answers" in told[0].reason and "which you do not take" in told[0].reason
        assert peers.get(THEM.birth) is None and peers.get(0xCC) is not None

    with_peers(test)


def test_frames_that_somebody_in_between_tears_are_told_of_once_and_the_link_stays(caplog: pytest.LogCaptureFixture) -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        for conn in range(1, 50):
            link = peers.get(THEM.birth)
            peers.received(conn, hello(THEM._replace(session=7, resume=link.session if link is not None else 0)))
            peers.received(conn, [*data(peers, Message(1, (b"a" * packing.INLINE_BODY, b"b")))[:-1]])
        assert peers.get(THEM.birth) is not None and recorder.told == ["opened"]
        assert len(caplog.records) == 1 and "dropped the connection: bob/2" in caplog.text

    with_peers(test)


def test_large_answers_past_the_limit_become_errors_and_the_link_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OWED_BYTES", messages.MIB)

    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        link = peers.get(THEM.birth)
        assert link is not None
        large = outbox.PIECES_BYTES + 2 * messages.MIB  # more than leaves at once
        for number, size in enumerate((large, large, 100)):
            peers.post(link, Reply(number, True, 0, [bytes(size)]))
        await asyncio.sleep(1)
        replies = [each for _, frame in recorder.sent if isinstance(frame, Data) for each in frame.operations]
        told = {reply.id: (reply.ok, reply.value) for reply in replies if isinstance(reply, Reply)}
        assert told[2] == (True, 0) and not told[1][0]
        assert told[1][1][0] == "Overloaded" and "wait for you already: ask for less at a time" in told[1][1][1]
        assert peers.get(THEM.birth) is link and link.state is State.OPEN

    with_peers(test)


def test_who_reads_blobs_waits_until_it_has_taken_some_or_is_gone() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        link = peers.get(THEM.birth)
        assert link is not None
        await peers.room(THEM.birth)
        await peers.room(0xCC)  # nobody
        for number in range(60):
            peers.post(link, Reply(number, True, 0, [bytes(messages.MIB)]))
        waits = asyncio.ensure_future(peers.room(THEM.birth))
        await asyncio.sleep(1)
        assert not waits.done()
        peers.received(1, [bytes(part) for part in messages.encode_ack(link.session, 10)])
        await asyncio.sleep(1)
        assert not waits.done(), "that is little"
        peers.lose(THEM.birth, "gone")
        await waits

    with_peers(test)


# ------------------------------------------------------------------ inquiries


def test_an_inquiry_tells_who_listens_and_makes_no_link() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello(THEM._replace(session=0)))
        assert isinstance(recorder.sent[0][1], Welcome)
        assert recorder.told == []
        asking = asyncio.ensure_future(peers.inquire("127.0.0.1:2", 3))
        await asyncio.sleep(0)
        peers.connected(101)
        assert isinstance(recorder.sent[-1][1], Hello)
        peers.received(101, welcome(THEM))
        assert (await asking).birth == THEM.birth
        assert list(peers) == []
        assert 101 in recorder.dropped

    with_peers(test)


@pytest.mark.parametrize(
    ("event", "error", "text"),
    [
        (lambda peers: peers.received(101, messages.encode_refused("cluster", "other cluster")), Refused, "other cluster"),
        (lambda peers: peers.ended(101, Ended.DENIED, "another key"), Refused, "another key"),
        (lambda peers: peers.ended(101, Ended.REFUSED, "nobody"), Unreachable, "nobody"),
        (lambda peers: None, TimeoutError, "^$"),
    ],
)
def test_an_inquiry_that_fails_says_why(event: Any, error: type[Exception], text: str) -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        asking = asyncio.ensure_future(peers.inquire("127.0.0.1:2", 3))
        await asyncio.sleep(0)
        peers.connected(101)
        event(peers)
        with pytest.raises(error, match=text):
            await asking

    with_peers(test)


def test_a_welcome_without_the_key_is_not_believed() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        link = peers.link(THEM.birth, ["127.0.0.1:2"])
        peers.connected(101)
        peers.received(101, welcome(THEM._replace(session=link.session), OTHER))
        assert link.state is State.LOST
        assert recorder.told == ["it broke the protocol: a welcome without the cluster's key"]

    with_peers(test)


# ------------------------------------------------------------------ sending


def test_the_first_operation_of_a_turn_leaves_at_once_and_the_rest_together() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        link = peers.get(THEM.birth)
        assert link is not None
        del recorder.sent[:]
        await asyncio.sleep(0)
        for number in range(5):
            peers.post(link, Message(number, (b"m",)))
        assert [len(frame.operations) for _, frame in recorder.sent if isinstance(frame, Data)] == [1]
        await asyncio.sleep(0)
        assert [len(frame.operations) for _, frame in recorder.sent if isinstance(frame, Data)] == [1, 4]

    with_peers(test)


def test_small_messages_leave_like_operations_and_a_full_run_before_the_turn_ends() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        link = peers.get(THEM.birth)
        assert link is not None
        del recorder.sent[:]
        assert peers.post_message(THEM.birth, 1, b"alone")
        assert not link.outbox.run
        assert peers.post_message(THEM.birth, 1, b"one")
        run = link.outbox.run
        assert run is not None
        run.bodies.append(b"two")
        run.size += messages.RUN_BYTES
        assert peers.post_message(THEM.birth, 1, b"three")
        operations = [operation for _, frame in recorder.sent for operation in frame.operations]
        assert operations == [Message(1, (b"alone",)), Messages(1, [b"one", b"two"]), Message(1, (b"three",))]
        assert not peers.post_message(99, 1, b"nobody is linked")

    with_peers(test)


def test_after_a_turn_that_sent_many_the_first_of_the_next_waits_for_the_others() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        for turn in ([1, 4], [5], [5], [1], [1, 1]):
            await asyncio.sleep(0.001)
            del recorder.sent[:]
            for number in range(sum(turn)):
                peers.post_message(THEM.birth, number, b"m")
            await asyncio.sleep(0)
            assert [len(frame.operations) for _, frame in recorder.sent if isinstance(frame, Data)] == turn

    with_peers(test)


def test_a_lone_acknowledgement_follows_soon() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        peers.received(1, data(peers, Message(1, (b"a",))))
        assert not [frame for _, frame in recorder.sent if isinstance(frame, Ack)]
        await asyncio.sleep(0.05)
        assert [frame for _, frame in recorder.sent if isinstance(frame, Ack)] == [Ack(7, 1)]

    with_peers(test)


def test_a_connection_that_breaks_under_a_send_is_dialled_again() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        link = peers.get(THEM.birth)
        assert link is not None
        recorder.broken = True
        peers.post(link, Message(1, (b"m",)))
        peers.ended(1, Ended.BROKEN, "the connection broke")
        await asyncio.sleep(1)
        assert recorder.dialled == list(THEM.addresses)
        assert link.state is State.DIALLING

    with_peers(test)


def test_posting_to_a_link_that_ended_is_an_error() -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        link = peers.get(THEM.birth)
        assert link is not None
        peers.lose(THEM.birth, "its node said so")
        with pytest.raises(PeerLost, match="its node said so"):
            peers.post(link, Message(1, (b"m",)))
        with pytest.raises(Unreachable, match="no address"):
            peers.link(THEM.birth, [])

    with_peers(test)


def test_a_bug_above_neither_hides_nor_takes_the_rest_of_a_frame_along() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        bugs: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: bugs.append(context["exception"]))
        peers.received(1, hello())
        recorder.bug = True
        peers.received(1, data(peers, Message(1, (b"a",)), Message(2, (b"b",))))
        assert [type(bug) for bug in bugs] == [ZeroDivisionError, ZeroDivisionError]
        link = peers.get(THEM.birth)
        assert link is not None
        assert link.state is State.OPEN

    with_peers(test)


def test_a_second_birth_over_one_connection_breaks_the_protocol() -> None:
    """The first link goes, and its connection with it: a link of the second would have none."""

    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        peers.received(1, hello(THEM._replace(session=8, birth=0xCC)))
        assert recorder.dropped[0] == 1
        assert list(peers) == []
        assert peers.get(0xCC) is None
        assert "greeted over the connection of bob/2" in recorder.told[-1]
        assert list(peers._by_connection) == []

    with_peers(test)


def test_what_came_before_a_connection_broke_counts_though_nothing_can_be_sent_over_it_any_more() -> None:
    """A peer leaves in order: its last acknowledgement and its goodbye are still to be read when a send over there fails."""

    def test(peers: Peers, recorder: Recorder) -> None:
        peers.received(1, hello())
        link = peers.get(THEM.birth)
        assert link is not None
        peers.post(link, Message(1, (b"m",)))
        recorder.broken = True
        peers.received(1, data(peers, Request(1, 1, "ping", {}, ())))
        peers.post(link, Reply(1, True, 0, ()))
        peers.received(1, messages.encode_ack(link.session, 1))
        assert link.state is State.OPEN and link.outbox.unacknowledged == 1, "the message arrived, the reply did not"
        peers.received(1, messages.encode_bye(link.session, "it has ended"))
        assert link.state is State.CLOSED and link.lost_because == "it has ended"
        assert recorder.dropped == [1] and recorder.dialled == []

    with_peers(test)


def test_who_is_gone_before_it_is_welcomed_is_dialled() -> None:
    def test(peers: Peers, recorder: Recorder) -> None:
        recorder.broken = True
        peers.received(1, hello())
        peers.ended(1, Ended.BROKEN, "the connection broke")
        link = peers.get(THEM.birth)
        assert link is not None and link.state is State.IDLE
        assert list(peers._by_connection) == []

    with_peers(test)


def test_a_handshake_that_breaks_off_ends_no_link_that_was_open() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        link = peers.link(THEM.birth, ["127.0.0.1:2"])
        peers.connected(101)
        peers.received(101, welcome(THEM._replace(session=9, resume=link.session)))
        assert link.state is State.OPEN
        peers.ended(101, Ended.BROKEN, "cut")
        await asyncio.sleep(0.5)
        peers.ended(102, Ended.DENIED, "it cut off the handshake")
        assert not link.ended
        await asyncio.sleep(3)
        assert len(recorder.dialled) >= 3
        peers.ended(100 + len(recorder.dialled), Ended.REFUSED, "nobody")
        assert link.ended

    with_peers(test)


def test_an_inquiry_that_is_cancelled_as_it_fails_is_cancelled() -> None:
    async def test(peers: Peers, recorder: Recorder) -> None:
        asking = asyncio.ensure_future(peers.inquire("127.0.0.1:2", 3))
        await asyncio.sleep(0)
        peers.ended(101, Ended.REFUSED, "nobody")
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()

    with_peers(test)
