"""Where a message goes, whether it waits, and who is told where it finds nobody: on a mesh of a few lines."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from discoro import payload
from discoro.coro import Coro
from discoro.errors import NoSuchCoro, Overloaded, ProtocolError
from discoro.messages import MESSAGE_WEIGHT, RUN_BYTES, Exit, Hold, Message, Run
from discoro.references import CoroRef
from discoro.sending import Sending

HERE, THERE = 1, 2


class Line:
    """A link, as far as it is looked at."""

    birth, who, ended, outbox = THERE, "ada/1", False, SimpleNamespace(waiting=7)
    room = True

    def has_room(self) -> bool:
        return self.room


class Around:
    """What Sending asks of the mesh: coroutines by id, one link, and what was posted."""

    def __init__(self) -> None:
        self.me = SimpleNamespace(birth=HERE)
        self.coros: dict[int, Any] = {}
        self.link = Line()
        self.links: dict[int, Any] = {}
        self.posted: list[Any] = []
        self.is_open = False  # so that small messages take the short way

    def coro(self, coro_id: int) -> Any:
        return self.coros.get(coro_id)

    def here(self, who: CoroRef) -> Any:
        if who.id not in self.coros:
            raise NoSuchCoro(f"{who} has ended")
        return self.coros[who.id]

    def ref_of(self, coro_id: int) -> CoroRef:
        return ref(HERE, coro_id)

    def link_to(self, to: CoroRef) -> Any:
        return self.link

    def post(self, link: Any, operation: Any, lane: int | None = None) -> None:
        self.posted.append(operation)

    def post_message(self, birth: int, coro_id: int, body: bytes) -> bool:
        if self.is_open:
            self.posted.append((birth, coro_id, body))
            self.links[birth] = SimpleNamespace(outbox=SimpleNamespace(run=Run(coro_id, body)))
        return self.is_open

    def in_loop(self, function: Callable[..., Any], *args: Any) -> None:
        function(*args)


class Ends:
    """What Sending asks of exits."""

    def __init__(self) -> None:
        self.ended = ""
        self.told: set[Any] = set()

    def knows_ended(self, to: CoroRef) -> str:
        return self.ended

    def has_ended(self, birth: int, coro_id: int) -> bool:
        return bool(self.ended)

    def tell_nobody(self, key: Any) -> bool:
        new = key not in self.told
        self.told.add(key)
        return new


def ref(birth: int, coro_id: int = 5) -> CoroRef:
    return CoroRef("node", 1, birth, coro_id, "ada")


def coro(service: Any = None, full: bool = False) -> Any:
    """As much of a coroutine as this touches; `got` is what came into its mailbox."""
    got: list[Any] = []
    made = SimpleNamespace(service=service, got=got, held=False, name="name", id=5, mailbox=SimpleNamespace(full=full))
    made.accept = lambda message, packed=False, question=None: got.append(message)
    made.check_room = lambda: Coro.check_room(made)
    return made


def sending() -> tuple[Sending, Around, Ends]:
    around, ends = Around(), Ends()
    return Sending(around, ends), around, ends  # type: ignore[arg-type]


def test_a_message_to_nobody_is_counted_each_time_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    out, around, _ = sending()
    for _ in range(3):
        out.came(around.link, 9, [b"packed"])  # type: ignore[arg-type]
    assert out.lost_messages == 3
    assert around.posted == [Exit(9, "unknown", "")]
    assert caplog.text.count("which has ended") == 1


def test_who_is_known_to_have_ended_is_sent_nothing() -> None:
    out, around, ends = sending()
    ends.ended = "terminated"
    with pytest.raises(NoSuchCoro, match=r"has ended \(terminated\)"):
        out.send(ref(THERE), "m")
    assert around.posted == []


def test_a_link_without_room_is_told_to_the_sender() -> None:
    out, around, _ = sending()
    around.link.room = False
    with pytest.raises(Overloaded, match="7 wait to be sent"):
        out.send(ref(THERE), "m")
    assert around.posted == []


def test_a_message_goes_to_the_mailbox_here_as_it_is_and_packed_to_another_process() -> None:
    out, around, _ = sending()
    around.coros[5] = here = coro()
    message = object()
    out.send(ref(HERE), message)
    assert here.got == [message]
    out.send(ref(THERE), "m")
    (posted,) = around.posted
    assert (type(posted), posted.coro, payload.unpack(posted.body)) == (Message, 5, "m")


def test_small_messages_to_one_coroutine_join_each_other() -> None:
    out, around, _ = sending()
    around.is_open = True
    for number in range(3):
        out.send(ref(THERE), number)
    run = around.links[THERE].outbox.run
    assert around.posted == [(THERE, 5, payload.pack(0)[0])]
    assert [payload.unpack([body]) for body in run.bodies] == [0, 1, 2]
    assert run.size == sum(MESSAGE_WEIGHT + len(body) for body in run.bodies)


@pytest.mark.parametrize(
    ("to", "message", "size"),
    [(6, "another coroutine", 0), (5, "after a full one", RUN_BYTES), (5, bytes(100_000), 0), (5, "x" * 40_000, 0)],
)
def test_what_does_not_fit_to_them_goes_its_own_way(to: int, message: Any, size: int) -> None:
    out, around, _ = sending()
    around.is_open = True
    out.send(ref(THERE), "first")
    first = around.links[THERE].outbox.run
    first.size += size
    out.send(ref(THERE, to), message)
    assert len(first.bodies) == 1
    last = around.posted[-1]
    assert len(around.posted) == 2
    assert payload.unpack(last.body if isinstance(last, Message) else [last[2]]) == message


def test_a_mailbox_that_is_full_is_looked_at_before_the_short_way() -> None:
    out, around, _ = sending()
    around.is_open = True
    out.hold(around.link, (THERE, 5), True)  # type: ignore[arg-type]
    out.send(ref(THERE), "waits")
    assert around.posted == []


def test_messages_that_came_together_are_put_together_or_one_by_one() -> None:
    out, around, _ = sending()
    runs: list[Any] = []
    around.coros[5] = here = coro()
    here.mailbox.put_run = runs.append
    out.came_together(around.link, 5, [b"a", b"b"])  # type: ignore[arg-type]
    assert (runs, here.got) == ([[b"a", b"b"]], [])
    here.held = True
    out.came_together(around.link, 5, [b"c", b"d"])  # type: ignore[arg-type]
    assert (len(runs), here.got) == (1, [(b"c",), (b"d",)])
    out.came_together(around.link, 9, [b"e", b"f"])  # type: ignore[arg-type]
    assert out.lost_messages == 2


def test_while_a_mailbox_elsewhere_is_full_messages_wait_and_then_go_in_order() -> None:
    out, around, _ = sending()
    out.hold(around.link, (THERE, 5), True)  # type: ignore[arg-type]
    for number in range(3):
        out.send(ref(THERE), number)
    out.send(ref(THERE, 6), "of another")
    assert [payload.unpack(each.body) for each in around.posted] == ["of another"]
    out.hold(around.link, (THERE, 5), False)  # type: ignore[arg-type]
    assert [payload.unpack(each.body) for each in around.posted[1:]] == [0, 1, 2]


def test_a_full_mailbox_is_told_to_a_link_once_and_its_room_too() -> None:
    out, around, _ = sending()
    around.coros[5] = here = coro(full=True)
    for _ in range(3):
        out.came(around.link, 5, [b"packed"])  # type: ignore[arg-type]
    assert here.held and around.posted == [Hold(5, True)]
    out.drained(here)
    assert not here.held and around.posted == [Hold(5, True), Hold(5, False)]


def test_a_service_decides_about_its_messages_and_what_it_refuses_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(body: Any) -> None:
        raise ProtocolError("takes none")

    out, around, _ = sending()
    around.coros[5] = server = coro(service=SimpleNamespace(on_message=refuses))
    out.came(around.link, 5, [b"packed"])  # type: ignore[arg-type]
    assert (out.lost_messages, server.got) == (1, [])
    assert "is lost: takes none" in caplog.text
