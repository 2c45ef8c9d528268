"""One conversation with one peer: greeting, numbered frames, acknowledgement, resumption, loss.

Takes frames and the time; gives actions (dial, send, drop), operations in order, and the next deadline. It never touches a
socket, reads a clock or logs. The grammar and rules are docs/reference/protocol.md; the same class plays both sides.

How the parts play together: `peers.py` tells a Link what happened (`dialled`, `connected`, `hello`, `welcome`, `data`,
`ended_connection`, `refused_greeting`, `bye`, `handle_timer`), then performs everything in `actions()` and sleeps until
`next_deadline()`. `_move` is the one place that changes the state. `Outbox` holds what waits to be sent and what waits to be
acknowledged. Where dialling alone leads nowhere, the link says so (`Introduce`), and the caller has others help
(`introducing.py`): they tell of more addresses (`learn`), or have the peer dial us.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from discoro import messages
from discoro.errors import ProtocolError
from discoro.messages import Data, Greeting, Operation, Part, Piece
from discoro.outbox import WINDOW_FRAMES, Outbox

ACK_DELAY = 0.02  # seconds an acknowledgement may wait for a frame to travel with
ACK_FRAMES = WINDOW_FRAMES // 4  # received frames after which it does not wait
ACK_BYTES = 1 * messages.MIB  # and received bytes
QUESTION_AFTER = 5.0  # seconds without an acknowledgement until a frame with nothing in it asks for one; then ever longer
QUESTION_MOST = 60.0  # as some coroutine may compute for an hour, and its loop reads nothing meanwhile
GREETING_TIMEOUT = 3.0  # seconds for a welcome; as long as libzmq's own handshake may take
REDIAL_FIRST, REDIAL_MOST = 0.05, 2.0  # seconds between dials; doubled each time; at once after a connection of use
REFUSED_GRACE = 3.0  # seconds until an address that refuses, where the peer was never met, counts as its end
INTRODUCE_AFTER = 0.25  # seconds that dialling has by itself; on a LAN it takes milliseconds
MAX_DIALLED = 2 * messages.MAX_ADDRESSES  # addresses of one peer: those first known, and as many told later
PEER_ENDED = "the peer ended the link"  # as it says itself, or shows by a new one
WORD_GRACE = 0.5  # seconds that the node of a worker that is gone has to say how it ended


class State(enum.Enum):
    IDLE = "idle"
    DIALLING = "dialling"
    GREETING = "greeting"
    OPEN = "open"
    LOST = "lost"
    CLOSED = "closed"


_END = {State.LOST, State.CLOSED}
TRANSITIONS: dict[State, set[State]] = {
    State.IDLE: {State.DIALLING, State.OPEN} | _END,
    State.DIALLING: {State.GREETING, State.OPEN, State.IDLE} | _END,
    State.GREETING: {State.OPEN, State.IDLE} | _END,
    State.OPEN: {State.OPEN, State.IDLE} | _END,
    State.LOST: set(),
    State.CLOSED: set(),
}


class Dial(NamedTuple):
    """Make a connection to this address; answer with `dialled`."""

    address: str


class Send(NamedTuple):
    """Send this frame over this connection."""

    connection: int
    parts: list[Part]


class SendGreeting(NamedTuple):
    """Send a hello or a welcome with this greeting; its mac is the caller's to add."""

    connection: int
    greeting: Greeting
    welcome: bool


class Drop(NamedTuple):
    """Close this connection; nothing of it counts any more."""

    connection: int
    flush: bool


class Introduce(NamedTuple):
    """Ask others to bring this process and the peer together; answer with `not_introduced` where that comes to nothing."""

    seconds: float  # until the link gives up


Action = Dial | Send | SendGreeting | Drop | Introduce


def refusal(mine: Greeting, theirs: Greeting) -> tuple[str, str] | None:
    """Why a greeting whose mac holds is refused all the same, as (code, text); None where it is welcome."""
    if theirs.cluster != mine.cluster:
        text = f"{mine.name} belongs to cluster {mine.cluster!r}, not to {theirs.cluster!r}"
        return "cluster", f"{text}: name the same cluster on both"
    if theirs.python != mine.python:
        text = f"{mine.name} runs Python {mine.python}, {theirs.name} runs {theirs.python}"
        return "python", f"{text}: code packed under one crashes the other. Use the same minor version on both"
    if theirs.wanted not in (0, mine.birth):
        return "stale", f"{mine.name} (pid {mine.pid}) listens here now, not the process that was wanted"
    return None


class Link:
    """The conversation with one peer.

    `birth` is the peer's, `peer` what its last greeting said (None before the first), `lost_because` why the link ended, in
    words. `session` is our number for the link, `peer_session` the peer's (0 before it greeted us): two processes that accept
    each other's greetings at once mean the same link, whichever connection stays. Times are seconds of the caller's monotonic
    clock.
    """

    def __init__(
        self,
        me: Greeting,
        session: int,
        now: float,
        *,
        birth: int,
        addresses: Sequence[str] = (),
        connect_timeout: float = 5.0,
        peer_timeout: float = 15.0,
    ) -> None:
        self.me = me
        self.session = session
        self.state = State.IDLE
        self.birth = birth
        self.addresses = tuple(addresses)
        self.peer: Greeting | None = None
        self.peer_session = 0
        self.connection: int | None = None  # the one whose frames count
        self.lost_because = ""
        self.certain = False  # the peer is known to be gone, not only out of reach
        self.may_be_back = False  # it was lost because one of the two was out of reach, or asleep
        self.awaits_word = False  # its node, whom we know, will say how it ended: set by who knows both
        self.refused_code = self.refused_at = ""  # what the peer says that refuses us, and its address
        self.outbox = Outbox()
        self.left_at = -math.inf  # when a frame last did
        self._peer_timeout = peer_timeout
        self._give_up: float | None = now + connect_timeout
        self._redial_at: float | None = now
        self._redial_delay = REDIAL_FIRST
        self._greeting_until: float | None = None
        self._greeter: int | None = None  # the connection that our hello went over
        self._dials: dict[int, str] = {}  # connections being made, and their addresses
        self._spare: deque[int] = deque()  # made, waiting their turn to greet
        self._is_here = False  # it is on this machine
        self._hinted: tuple[str, ...] = ()  # addresses that were told by somebody who cannot be believed
        self._lived_at = ""  # the address over which we opened, if we dialled
        self._held: tuple[int, Greeting] | None = None  # the hello of a peer whose dial gives way to ours
        self._tried: dict[str, tuple[str, bool]] = {}  # address -> what came of the last dial; whether nobody is there
        self._refusal = ""  # what the peer said that refuses us for good
        self._introduce_at: float | None = None  # when others are asked, if dialling has not led there
        self._introducing = False  # they are being asked
        self.asked = ""  # who was asked for an introduction and what came of it, for the text of an error
        self._broken_at, self._broken_because = now, ""
        self._received = 0
        self._ack_at: float | None = None
        self._question_at: float | None = None  # to be looked at again then: something may have been acknowledged meanwhile
        self._question_delay = QUESTION_AFTER
        self._unacknowledged = 0  # received frames not yet acknowledged
        self._unacknowledged_bytes = 0
        self._assembler = messages.Assembler()
        self._actions: list[Action] = []

    def __repr__(self) -> str:
        who = self.peer.name + "/" + str(self.peer.pid) if self.peer else f"birth {self.birth:x}"
        return f"<Link {who} {self.state.value} received={self._received} {self.outbox!r}>"

    @property
    def who(self) -> str:
        """The peer, for people."""
        return f"{self.peer.name}/{self.peer.pid}" if self.peer else f"birth {self.birth:016x}"

    @property
    def ended(self) -> bool:
        return self.state in _END

    @property
    def opened(self) -> bool:
        """Whether the link was open once: its next greeting resumes it."""
        return self.peer_session != 0

    @property
    def unused(self) -> bool:
        """Whether nothing but greetings ever came over it."""
        return self._received == 0

    # -------------------------------------------------------------- what the caller wants

    def send(self, operation: Operation, lane: Hashable = None) -> None:
        """Queue an operation. Operations of one lane arrive in order even past large ones; None: no order is needed."""
        self.outbox.add(messages.to_wire(operation), lane)

    def has_room(self) -> bool:
        """Whether more user messages should be queued."""
        return self.outbox.has_room()

    def close(self, reason: str) -> None:
        """End the link in order: what the window lets through still goes, then goodbye."""
        if self.state is State.OPEN:
            self._send_data(math.nan)  # when they left matters to nobody: their acknowledgements are not awaited
            self._send_ack()
            assert self.connection is not None
            self._actions.append(Send(self.connection, messages.encode_bye(self.peer_session, reason)))
        self._end(State.CLOSED, reason, flush=True)

    def lose(self, reason: str) -> None:
        """End the link because the caller knows the peer is gone (its node told so, say)."""
        self._end(State.LOST, reason)

    def stands_still(self, now: float) -> bool:
        """Whether it is open, and `actions` would be empty."""
        is_due = self._ack_at is not None and self._ack_at <= now
        return self.state is State.OPEN and not (self._actions or is_due) and self.outbox.stands_still

    def actions(self, now: float) -> list[Action]:
        """Everything to be done now, in order; each is given once."""
        if self.state is State.IDLE and self._redial_at is not None and self._redial_at <= now:
            self._dial(now)
        if self._introduce_at is not None and self._introduce_at <= now and self._give_up is not None:
            self._introduce_at, self._introducing = None, True
            self._actions.append(Introduce(self._give_up - now))
        if self.state is State.OPEN:
            self._send_data(now)
            if self._ack_at is not None and self._ack_at <= now:
                self._send_ack()
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called, if nothing happens before."""
        if self.state is State.OPEN:  # the other three are of links that are not
            ack, question = self._ack_at, self._question_at
            return question if ack is None else ack if question is None or ack < question else question
        deadlines = [self._greeting_until, self._ack_at, self._give_up, self._redial_at, self._introduce_at, self._question_at]
        return min((d for d in deadlines if d is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """What time decides: a greeting without an answer, silence after what was sent, a peer out of reach for too long."""
        if self._greeting_until is not None and self._greeting_until <= now and self._greeter is not None:
            self._cut(self._greeter, now, f"no answer to the greeting in {GREETING_TIMEOUT:g} s")
        if self._question_at is not None and self._question_at <= now:
            self._question(now)
        if self._give_up is not None and self._give_up <= now:
            waited = f"unreachable for {now - self._broken_at:.3g} s"
            because = f" ({self._broken_because})" if self._broken_because else ""
            self.may_be_back = True
            self._end(State.LOST, f"{waited}{because}{self._what_was_tried()}")

    # -------------------------------------------------------------- introductions

    def want_introduction(self, now: float) -> bool:
        """There are others who can be asked to introduce us, unless dialling leads there soon. Whether that is news."""
        if self.opened or self.ended or self._introducing or self._introduce_at is not None or self.asked:
            return False
        at_once = self._tried or not self.addresses
        self._introduce_at = now if at_once else now + INTRODUCE_AFTER
        return True

    def learn(self, addresses: Sequence[str], now: float) -> None:
        """Somebody tells where the peer listens: what is new is dialled along with the rest."""
        fresh = [address for address in dict.fromkeys(addresses) if address not in self.addresses]
        fresh = fresh[: max(0, MAX_DIALLED - len(self.addresses))]
        if self.state is State.OPEN or self.ended or not fresh:
            return
        self.addresses += tuple(fresh)
        if self.state is State.IDLE:
            self._redial_at = now
        else:
            self._actions += [Dial(address) for address in fresh]

    def moved(self, addresses: Sequence[str]) -> None:
        """The peer says that it listens at these addresses now: where to look for it when the connection breaks."""
        if self.peer is not None:
            self._left(addresses)
            self.peer = self.peer._replace(addresses=tuple(addresses))
            self.addresses = _first(self._lived_at, self._worth_dialling(addresses))[:MAX_DIALLED]

    def _worth_dialling(self, theirs: Sequence[str]) -> list[str]:
        """Once on this machine, always so: two that move together do not learn of it at the same moment."""
        mine = self.me.addresses
        tells = not all(map(is_loopback, theirs)) or all(map(is_loopback, mine))  # else it may be anywhere
        self._is_here = self._is_here or (tells and on_this_machine(mine, theirs))
        return list(theirs) if self._is_here else worth_dialling(mine, theirs)

    def _left(self, addresses: Sequence[str]) -> None:
        """It listens at these now: where it lived, and said so, and does so no more, somebody else may refuse us by now."""
        if self.peer is not None and self._lived_at in self.peer.addresses and self._lived_at not in addresses:
            self._lived_at = ""

    def listen_at(self, me: Greeting) -> None:
        """This process listens elsewhere now, which it says in its greetings."""
        if self.peer is not None:
            self._worth_dialling(self.peer.addresses)  # before it moves: whether the two are on one machine
        self.me = me
        if self.peer is not None:
            elsewhere = [address for address in self.addresses if not is_loopback(address)]
            theirs = dict.fromkeys((*self._worth_dialling(self.peer.addresses), *elsewhere))
            self.addresses = _first(self._lived_at, list(theirs))[:MAX_DIALLED]

    def hint(self, addresses: Sequence[str], now: float) -> None:
        """Somebody who cannot be believed says that the peer listens there: dialled too while it is out of reach.

        Only the last hint counts, and whatever is found there never counts as the end of the peer.
        """
        if self.state is State.OPEN or self.ended:
            return
        known = (*self.addresses, *self._hinted)
        self._hinted = tuple(dict.fromkeys(addresses))[: messages.MAX_ADDRESSES]
        fresh = [address for address in self._hinted if address not in known]
        if fresh and self.state is State.IDLE:
            self._redial_at = now
        else:
            self._actions += [Dial(address) for address in fresh]

    def dial_again(self, now: float) -> None:
        """The network has changed: what failed before may work now, and is not waited for."""
        self._redial_delay = REDIAL_FIRST
        if self._redial_at is not None:
            self._redial_at = now

    def not_introduced(self) -> None:
        """Those who were asked could not help: `asked` says why. What dialling says counts again."""
        self._introducing = False
        if self.state is State.IDLE and (hopeless := self._hopeless()):
            self._end(State.LOST, hopeless)

    def _hopeless(self) -> str:
        """Why neither waiting nor dialling again will bring us there; "" while it may."""
        if self._introducing or self._introduce_at is not None:
            return ""
        if self._refusal:
            return self._refusal + (f"; {self.asked}" if self.asked else "")
        if self.opened or not all(nobody for _, nobody in self._tried.values()):
            return ""
        return f"not to be reached at any address{self._what_was_tried()}" if self.addresses else self.what_was_tried

    # -------------------------------------------------------------- what happened to connections

    def dialled(self, connection: int, address: str) -> None:
        """A Dial was performed: the connection is being made."""
        self._dials[connection] = address

    def connected(self, connection: int, now: float) -> None:
        """A dialled connection stands. The first one greets; others wait in case it comes to nothing."""
        if connection not in self._dials:
            return
        if self.state is State.DIALLING:
            self._greet(connection, now)
        else:
            self._spare.append(connection)

    def ended_connection(self, connection: int, now: float, why: str, refused: bool = False) -> None:
        """A connection ended, or could not be made; `refused`: this peer does not listen at that address."""
        if self._held and self._held[0] == connection:
            self._held = None
        if connection == self.connection:
            self._broken(why, now)
        address = self._dials.pop(connection, None)
        if address is None:
            return
        self._tried[address] = why, refused
        if connection in self._spare:
            self._spare.remove(connection)
        elif connection == self._greeter:
            self._next_dial(now)
        if refused and self.opened and address in self.addresses:
            self._refused_at(address, why, now)
        if self.state is State.DIALLING and not self._dials:
            self._dial_failed(now)

    def refused_greeting(self, connection: int, code: str, text: str, now: float) -> None:
        """Whoever answers at that address refuses us; final unless another address of the peer accepts in the same round.

        One of several addresses can lead to somebody else: many machines have a 172.17.0.1.
        """
        if connection not in self._dials:
            return
        if code != "stale":
            self.refused_code, self._refusal, self.refused_at = code, text, self._dials[connection]
        self._cut(connection, now, text, refused=True)

    def _cut(self, connection: int, now: float, why: str, refused: bool = False) -> None:
        self._actions.append(Drop(connection, False))
        self.ended_connection(connection, now, why, refused)

    def gone(self, connection: int) -> None:
        """The peer does not know our session any more."""
        if connection in (self.connection, self._greeter):
            self.may_be_back = True
            self._end(State.LOST, PEER_ENDED)

    def bye(self, connection: int, reason: str) -> None:
        """The peer leaves in order."""
        if connection == self.connection:
            self._end(State.CLOSED, reason)

    # -------------------------------------------------------------- greeting

    def hello(self, connection: int, theirs: Greeting, now: float) -> None:
        """The peer dialled us. Not to be called for another session once ours was open: that peer began anew (`begun_anew`)."""
        self.outbox.acknowledge(theirs.received, now)
        mine_first = self.state is State.GREETING and self.me.birth > theirs.birth
        if mine_first:
            self._hold(connection, theirs)
            return
        self._open(connection, theirs, now)
        self._actions.append(SendGreeting(connection, self._greeting(), True))

    def begun_anew(self, theirs: Greeting) -> bool:
        """Whether this hello opens another link than the one that was open: then this one is over."""
        return self.opened and theirs.session != self.peer_session

    def welcome(self, connection: int, theirs: Greeting, now: float) -> None:
        """The peer accepted our greeting on this connection. ProtocolError if it says so of another process or link."""
        if connection != self._greeter:
            return
        ours = theirs.birth == self.birth and theirs.resume == self.session
        if not ours or theirs.session == 0 or self.begun_anew(theirs):
            raise ProtocolError("a welcome to somebody else's greeting")
        self._lived_at = self._dials[connection]
        self._open(connection, theirs, now)

    def _greet(self, connection: int, now: float) -> None:
        self._move(State.GREETING)
        self._greeting_until = now + GREETING_TIMEOUT
        self._greeter = connection
        self._actions.append(SendGreeting(connection, self._greeting(), False))

    def _greeting(self) -> Greeting:
        received, resume = self._received, self.peer_session
        return self.me._replace(session=self.session, received=received, resume=resume, wanted=self.birth)

    def _hold(self, connection: int, theirs: Greeting) -> None:
        if self._held:
            self._actions.append(Drop(self._held[0], False))
        self._held = (connection, theirs)

    def _open(self, connection: int, theirs: Greeting, now: float) -> None:
        self._drop_but(connection)
        self._tried.clear()
        self._hinted = ()
        self.asked = ""
        if theirs.addresses:
            self._left(theirs.addresses)
        self.connection, self.peer, self.peer_session = connection, theirs, theirs.session
        if theirs.addresses:
            self.addresses = _first(self._lived_at, self._worth_dialling(theirs.addresses))
        self.refused_code = self._refusal = self.refused_at = ""
        self._redial_delay = REDIAL_FIRST
        self.outbox.resume(theirs.received, now)
        self._move(State.OPEN)

    # -------------------------------------------------------------- dialling

    def _dial(self, now: float) -> None:
        self._redial_at = None
        addresses = dict.fromkeys((*self.addresses, *self._hinted))
        if not addresses:
            return
        self._move(State.DIALLING)
        self._actions += [Dial(address) for address in addresses]

    def _next_dial(self, now: float) -> None:
        """The connection that greeted came to nothing: a spare one greets, or the dials go on."""
        self._greeter = self._greeting_until = None
        self._move(State.IDLE)
        self._move(State.DIALLING)
        if self._spare:
            self._greet(self._spare.popleft(), now)

    def _dial_failed(self, now: float) -> None:
        """Nothing came of any address of this round."""
        self._move(State.IDLE)
        if self._introduce_at is not None:
            self._introduce_at = now
        if self._held:
            connection, theirs = self._held
            self._held = None
            self.hello(connection, theirs, now)
        elif hopeless := self._hopeless():
            self._end(State.LOST, hopeless)
        else:
            self._redial_later(now)

    def _refused_at(self, address: str, why: str, now: float) -> None:
        """An address of a peer that we had met refuses: certain where it lived and on this machine, a hint elsewhere."""
        if self._held:
            return  # it greets us at this very moment
        # on this machine no firewall lies between; but an address that was of this machine may be of another by now
        lived_here = address == self._lived_at or (self._is_here and on_this_machine(self.me.addresses, [address]))
        if lived_here and not self.awaits_word:
            self.certain = True
            self._end(State.LOST, f"ended: {address}: {why}")
        elif self._give_up is not None:
            self._give_up = min(self._give_up, now + (WORD_GRACE if lived_here else REFUSED_GRACE))

    def _broken(self, why: str, now: float) -> None:
        self.connection = None
        self._broken_at, self._broken_because = now, why
        self._give_up = now + self._peer_timeout
        self._ack_done()
        self._question_at, self._question_delay = None, QUESTION_AFTER
        self._redial_later(now)
        self._move(State.IDLE)

    def _redial_later(self, now: float) -> None:
        self._redial_at = now + self._redial_delay
        self._redial_delay = min(max(2 * self._redial_delay, REDIAL_FIRST), REDIAL_MOST)

    @property
    def what_was_tried(self) -> str:
        """Each address with what came of it, and who was asked, for people; "" where nothing was tried yet."""
        dialled = "tried " + ", ".join(f"{address} ({why})" for address, (why, _) in self._tried.items()) if self._tried else ""
        if not self.addresses:
            dialled = "no address of it is known"
        return "; ".join(part for part in (dialled, self.asked) if part)

    def _what_was_tried(self) -> str:
        return f": {self.what_was_tried}" if self.what_was_tried else ""

    # -------------------------------------------------------------- numbered frames

    def data(self, connection: int, frame: Data, size: int, now: float) -> list[Operation]:
        """The operations of a frame, once each and in order; a frame out of order ends its connection.

        ProtocolError for what no resumption can heal: the caller must lose the link.
        """
        if connection != self.connection or frame.session != self.session:
            return []
        self._acknowledge(frame.received, now)
        if frame.number > self._received + 1:
            self._cut(connection, now, f"frame {frame.number} came after frame {self._received}")
            return []
        has_pieces = Piece in map(type, frame.operations)
        self._ack_later(now, size, has_pieces)
        if frame.number <= self._received:
            return []
        self._received = frame.number
        self._redial_delay = 0.0  # this connection is of use
        if not has_pieces:
            return frame.operations
        return [operation for operation in map(self._assemble, frame.operations) if operation is not None]

    def torn(self, connection: int, why: str, now: float) -> None:
        """Of a frame on this connection, parts are missing: the resumption sends it again."""
        self._cut(connection, now, why)

    def acknowledged(self, connection: int, session: int, received: int, now: float) -> None:
        if connection == self.connection and session == self.session:
            self._acknowledge(received, now)

    def _acknowledge(self, received: int, now: float) -> None:
        self.outbox.acknowledge(received, now)
        if self._question_delay > QUESTION_AFTER and self.outbox.silent_since in (None, now):  # it was asked, and reads again
            self._question_at, self._question_delay = now + QUESTION_AFTER, QUESTION_AFTER

    def _assemble(self, operation: Operation | Piece) -> Operation | None:
        return self._assembler.add(operation) if isinstance(operation, Piece) else operation

    def _ack_later(self, now: float, size: int, at_once: bool) -> None:
        """`at_once`: of a piece, the acknowledgement tells the peer how fast the path is."""
        self._unacknowledged += 1
        self._unacknowledged_bytes += size
        if at_once or self._unacknowledged >= ACK_FRAMES or self._unacknowledged_bytes >= ACK_BYTES:
            self._ack_at = now
        elif self._ack_at is None:
            self._ack_at = now + ACK_DELAY

    def _send_data(self, now: float) -> None:
        assert self.connection is not None
        for number, wires in self.outbox.frames(now):
            parts = messages.encode_data(self.peer_session, number, self._received, wires)
            self._actions.append(Send(self.connection, parts))
            self._ack_done()
            self.left_at = now
            if self._question_at is None:
                self._question_at = now + QUESTION_AFTER

    def _question(self, now: float) -> None:
        """Where nothing is acknowledged, the last frame may be missing over there: what follows it shows that."""
        since = self.outbox.silent_since
        if since is None or since + QUESTION_AFTER > now:
            self._question_at = None if since is None else since + QUESTION_AFTER
            return
        assert self.connection is not None
        number, wires = self.outbox.question(now)
        self._actions.append(Send(self.connection, messages.encode_data(self.peer_session, number, self._received, wires)))
        self._ack_done()
        self._question_delay = min(2 * self._question_delay, QUESTION_MOST)
        self._question_at = now + self._question_delay

    def _send_ack(self) -> None:
        if self._unacknowledged:
            assert self.connection is not None
            self._actions.append(Send(self.connection, messages.encode_ack(self.peer_session, self._received)))
            self._ack_done()

    def _ack_done(self) -> None:
        self._ack_at, self._unacknowledged, self._unacknowledged_bytes = None, 0, 0

    # -------------------------------------------------------------- states

    def _drop_but(self, kept: int | None) -> None:
        """Close every connection of this link but one, and wait for nothing any more."""
        held = [self._held[0]] if self._held else []
        current = [self.connection] if self.connection is not None else []
        self._actions += [Drop(each, False) for each in (*self._dials, *held, *current) if each != kept]
        self._dials, self._held, self._greeter = {}, None, None
        self._spare.clear()
        self._give_up = self._redial_at = self._greeting_until = self._introduce_at = None
        self._introducing = False

    def _end(self, state: State, reason: str, flush: bool = False) -> None:
        if self.ended:
            return
        if self.connection is not None:
            self._actions.append(Drop(self.connection, flush))
        self._drop_but(self.connection)
        self.connection = self._question_at = None
        self._ack_done()
        self.lost_because = reason
        self._move(state)

    def _move(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"a link cannot go from {self.state.value} to {state.value}")
        self.state = state


def worth_dialling(mine: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """A peer's addresses without its loopback ones, unless it is on this machine: here they would lead to somebody else."""
    return [address for address in theirs if not is_loopback(address) or on_this_machine(mine, theirs)]


def on_this_machine(mine: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether a peer is where we are: every address it has beyond loopback is on a host address of ours."""
    hosts = {address.rpartition(":")[0] for address in mine}
    return all(address.rpartition(":")[0] in hosts for address in theirs if not is_loopback(address))


def is_loopback(address: str) -> bool:
    """Whether that address, host:port, is on loopback."""
    return address.startswith(("127.", "[::1]", "localhost:"))


def _first(address: str, addresses: Sequence[str]) -> tuple[str, ...]:
    """The addresses, beginning with the one that worked."""
    return (address, *(a for a in addresses if a != address)) if address else tuple(addresses)
