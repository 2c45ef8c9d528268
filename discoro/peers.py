"""The links of this process: who is greeted, over which connection, and when to look again.

Sits between the transport, which knows connections and frames, and the mesh, which knows coroutines. It performs what each
Link decides (dial, send, drop), checks every greeting before anything else of a peer is believed, keeps one timer per link, and
hands operations up in order. It never opens a body and never decides who should be dialled: the mesh asks.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from discoro import messages
from discoro.connections import ANOTHER_KEY, Ended
from discoro.errors import Overloaded, PeerLost, ProtocolError, Refused, Unreachable, to_wire
from discoro.link import PEER_ENDED, Action, Dial, Drop, Introduce, Link, Send, SendGreeting, State, refusal, worth_dialling
from discoro.messages import Greeting, Operation, Part, Reply
from discoro.throttle import Throttle

if TYPE_CHECKING:
    from discoro.security import Security

log = logging.getLogger("discoro.peers")
_ADDRESS = re.compile(r"^\S+:\d+: ")

TOGETHER = 50e-6  # seconds after something left, in which what follows waits for the end of the turn, to leave together
MAX_LINKS = 4096  # far above what one process uses; bounds what authenticated peers can make us keep


class Wire(Protocol):
    """What this needs of a transport."""

    def dial(self, address: str) -> int: ...
    def send(self, conn: int, parts: Sequence[Part]) -> bool: ...
    def drop(self, conn: int, flush: bool = False) -> None: ...
    def keep(self, conn: int) -> None: ...


class Owner(Protocol):
    """Who is told what comes of the links."""

    def opened(self, link: Link) -> None: ...
    def introduce(self, link: Link, seconds: float) -> None: ...
    def operation(self, link: Link, operation: Operation) -> None: ...
    def lost(self, link: Link) -> None: ...


class Peers:
    """All links of one process. `me` is what it says of itself; `addresses` in it are known once it listens."""

    def __init__(
        self, me: Greeting, security: Security, owner: Owner, *, connect_timeout: float = 5.0, peer_timeout: float = 15.0
    ) -> None:
        self.me = me
        self.ignore_new = False  # greetings of processes without a link are refused
        self.wire: Wire
        self._security = security
        self._owner = owner
        self._timeouts = {"connect_timeout": connect_timeout, "peer_timeout": peer_timeout}
        self._loop = asyncio.get_running_loop()
        self.links: dict[int, Link] = {}  # the live ones, by birth
        self._by_connection: dict[int, Link] = {}
        self._inquiries: dict[int, asyncio.Future[Greeting]] = {}
        self._timers: dict[Link, asyncio.TimerHandle] = {}
        self._announced: set[Link] = set()  # opened() was called
        self.on_ended: list[Callable[[Link], None]] = []
        self._rooms: dict[Link, asyncio.Event] = {}  # who waits for room for pieces
        self._refused = Throttle(log, "refused a greeting")
        self._not_ours = Throttle(log, "refused a greeting", logging.INFO)  # as other clusters may share the network
        self._cut_offs = Throttle(log, "cut off")
        self._torn_frames = Throttle(log, "dropped the connection")
        self._dirty: dict[Link, None] = {}  # have something to send at the end of this turn
        self._crowded: set[Link] = set()  # had several operations to send at the end of the last turn

    def __repr__(self) -> str:
        return f"<Peers {list(self.links.values())!r}>"

    def __iter__(self) -> Iterator[Link]:
        return iter([link for link in self.links.values() if link.state is State.OPEN or link.opened])

    # -------------------------------------------------------------- what the mesh asks

    def get(self, birth: int) -> Link | None:
        """The live link to that birth, whatever its state."""
        return self.links.get(birth)

    def link(self, birth: int, addresses: Sequence[str], introducible: bool = False) -> Link:
        """The live link to that birth, or a new one that dials these addresses. Unreachable where there is neither.

        `introducible`: the owner knows others who may bring the two together; then a link may begin without addresses.
        """
        link = self.links.get(birth) or self._begun(birth, addresses, introducible)
        if introducible and link.want_introduction(self._loop.time()):
            self._settle(link)
        return link

    def _begun(self, birth: int, addresses: Sequence[str], introducible: bool) -> Link:
        if len(self.links) >= MAX_LINKS:
            raise Unreachable(f"{self.me.name} has {MAX_LINKS} links and makes no more")
        if not addresses and not introducible:
            raise Unreachable(f"no link to birth {birth:016x}, and no address of it is known")
        link = self._new_link(birth, worth_dialling(self.me.addresses, addresses))
        self._settle(link)
        return link

    def learn(self, link: Link, addresses: Sequence[str]) -> None:
        """Somebody told where that peer listens."""
        link.learn(worth_dialling(self.me.addresses, addresses), self._loop.time())
        self._settle(link)

    def not_introduced(self, link: Link) -> None:
        """Nobody brought the two together."""
        link.not_introduced()
        self._settle(link)

    def post(self, link: Link, operation: Operation, lane: Hashable = None) -> None:
        """Queue an operation. It leaves at once, unless another one just left, or many did at the end of the last turn: then
        those of one turn leave together when it ends, or enough for a frame have come together.

        PeerLost where the link has ended.
        """
        if link.ended:
            raise PeerLost(f"{link!r} has ended: {link.lost_because}")
        if type(operation) is Reply:
            if not link.outbox.takes_replies():
                self._loop.call_soon(self._answers_wait, link)
                return
            operation = self._sized(link, operation)
        link.send(operation, lane)
        self._sends(link)

    def post_message(self, birth: int, coro: int, body: bytes) -> bool:
        """The same for a small message to a coroutine of that process. False where there is more to it.

        Those to the same coroutine may then join it in `run` of the outbox, until the turn ends.
        """
        link = self.links.get(birth)
        if link is None or link.state is not State.OPEN:
            return False
        full = link.outbox.run is not None and link.outbox.run.size >= messages.RUN_BYTES
        if not link.outbox.begin_run(coro, body):
            return False
        if full:
            self._settle(link)
        else:
            self._sends(link)
        return True

    def _sends(self, link: Link) -> None:
        """Something was queued for it: it leaves now, or with what follows when the turn ends."""
        if link in self._dirty:
            return
        now = self._loop.time()
        alone = now >= link.left_at + TOGETHER and link not in self._crowded
        if alone:
            for action in link.actions(now):
                self._perform(link, action)
            self._settle_if_needed(link, now)
        if not (alone and link.outbox.stands_still) and not link.ended:
            if not self._dirty:
                self._loop.call_soon(self._flush)
            self._dirty[link] = None

    @staticmethod
    def _sized(link: Link, reply: Reply) -> Reply:
        """The reply; or, where too much waits already for the peer, the error that says so in its place."""
        if link.outbox.takes_reply(messages.body_size(reply.body)):
            return reply
        error = Overloaded(f"{link.outbox.owed} wait for you already: ask for less at a time")
        return Reply(reply.id, False, list(to_wire(error)))

    async def room(self, birth: int) -> None:
        """Until pieces of blobs may be queued for that process; at once where it is not linked."""
        link = self.links.get(birth)
        while link is not None and not link.ended and not link.outbox.takes_pieces():
            self._rooms.setdefault(link, asyncio.Event())
            await self._rooms[link].wait()

    async def inquire(self, address: str, timeout: float) -> Greeting:
        """Who listens at that address. Raises Unreachable, Refused (another key, cluster, version), TimeoutError."""
        answer: asyncio.Future[Greeting] = self._loop.create_future()
        connection = self.wire.dial(address)
        self._inquiries[connection] = answer
        try:
            async with asyncio.timeout(timeout):  # wait_for of 3.11 swallows a cancellation that comes with the answer
                return await answer
        finally:
            self._inquiries.pop(connection, None)
            self.wire.drop(connection)

    def listen_at(self, addresses: Sequence[str]) -> None:
        """This process listens there from now on: what it says in greetings."""
        self.me = self.me._replace(addresses=tuple(addresses[: messages.MAX_ADDRESSES]))
        for link in self.links.values():
            link.listen_at(self.me)

    def moved(self, birth: int, addresses: Sequence[str]) -> None:
        """A linked peer says where it listens from now on."""
        link = self.links.get(birth)
        if link is not None:
            link.moved(addresses)

    def hint(self, birth: int, addresses: Sequence[str]) -> None:
        """Somebody who cannot be believed says where that process listens; of use only while it is out of reach."""
        link = self.links.get(birth)
        if link is not None:
            link.hint(worth_dialling(self.me.addresses, addresses), self._loop.time())
            self._settle(link)

    def dial_again(self) -> None:
        """The network has changed: whoever is out of reach is dialled at once."""
        for link in list(self.links.values()):
            link.dial_again(self._loop.time())
            self._settle(link)

    def use_key(self, security: Security) -> None:
        """Greetings are signed and checked with this from now on."""
        self._security = security

    def lose(self, birth: int, reason: str) -> None:
        """That process is certainly gone: end its link."""
        link = self.links.get(birth)
        if link is not None:
            link.lose(reason)
            self._settle(link)

    def close(self, reason: str) -> None:
        """End every link in order."""
        for birth in list(self.links):
            self.part(birth, reason)
        for throttle in (self._refused, self._not_ours, self._cut_offs, self._torn_frames):
            throttle.close()

    def part(self, birth: int, reason: str) -> None:
        """End the link with that process in order, where there is one."""
        link = self.links.get(birth)
        if link is not None:
            link.close(reason)
            self._settle(link)

    def idle(self) -> bool:
        """Whether nothing waits to be sent or acknowledged on any open link."""
        return all(link.outbox.is_empty() for link in self.links.values() if link.state is State.OPEN)

    # -------------------------------------------------------------- what the transport tells

    def connected(self, connection: int) -> None:
        if connection in self._inquiries:
            self._greet(connection, self.me, welcome=False)
            return
        link = self._by_connection.get(connection)
        if link is not None:
            link.connected(connection, self._loop.time())
            self._settle(link)

    def received(self, connection: int, parts: Sequence[Part]) -> None:
        link = self._by_connection.get(connection)
        greeted = link is not None and link.connection == connection
        try:
            frame = messages.decode(parts) if greeted else messages.decode_first(parts)
        except ProtocolError as error:
            if greeted and not isinstance(error, messages.Torn):
                self._cut(connection, error)
            else:  # no more than its connection ends: it was torn, or is what nobody sends before a greeting
                self._torn(connection, error)
            return
        try:
            if type(frame) is messages.Data:
                assert link is not None  # no such frame comes before a greeting
                self._data(link, connection, frame, parts)
            else:
                self._frame(connection, frame)
                link = self._by_connection.get(connection)
        except ProtocolError as error:
            self._cut(connection, error)
            return
        if link is not None:
            self._settle_if_needed(link, self._loop.time())

    def ended(self, connection: int, how: Ended, detail: str) -> None:
        detail = _ADDRESS.sub("", detail)  # it stands beside it wherever this is printed
        inquiry = self._inquiries.pop(connection, None)
        if inquiry is not None and not inquiry.done():
            inquiry.set_exception((Refused if how is Ended.DENIED else Unreachable)(detail))
        link = self._by_connection.pop(connection, None)
        if link is not None:
            now = self._loop.time()
            # Who had our key once has it still: then a handshake that broke off is a broken connection like any other.
            if how is Ended.DENIED and not link.opened:
                link.refused_greeting(connection, "key", detail, now)
            else:
                link.ended_connection(connection, now, detail, refused=how is Ended.REFUSED)
            self._settle(link)

    # -------------------------------------------------------------- frames

    def _frame(self, connection: int, frame: messages.Frame) -> None:
        if isinstance(frame, messages.Hello):
            self._hello(connection, frame)
            return
        if isinstance(frame, messages.Welcome) and connection in self._inquiries:
            self._answered(self._inquiries[connection], self._verified(frame.mac, frame.greeting))
            return
        if isinstance(frame, messages.RefusedFrame) and connection in self._inquiries:
            inquiry = self._inquiries[connection]
            if not inquiry.done():
                inquiry.set_exception(Refused(frame.text))
            return
        link = self._by_connection.get(connection)
        if link is not None:  # else: the rest of a conversation that is over
            self._link_frame(link, connection, frame)

    def _data(self, link: Link, connection: int, frame: messages.Data, parts: Sequence[Part]) -> None:
        for operation in link.data(connection, frame, sum(map(len, parts)), self._loop.time()):
            try:
                self._owner.operation(link, operation)
            except ProtocolError:
                raise
            except Exception as error:  # a bug that one operation meets must neither hide nor take the rest of its frame along
                where = {"message": f"discoro: a bug at {type(operation).__name__} from {link!r}", "exception": error}
                self._loop.call_exception_handler(where)

    def _link_frame(self, link: Link, connection: int, frame: messages.Frame) -> None:
        now = self._loop.time()
        match frame:
            case messages.Ack(session, received):
                link.acknowledged(connection, session, received, now)
            case messages.Welcome(mac, greeting):
                link.welcome(connection, self._verified(mac, greeting), now)
            case messages.RefusedFrame(_, code, text):
                link.refused_greeting(connection, code, text, now)
            case messages.Gone(session) if session == link.session:
                link.gone(connection)
            case messages.Bye(session, reason) if session == link.session:
                link.bye(connection, reason)

    def _hello(self, connection: int, hello: messages.Hello) -> None:
        """Somebody greets us: checked in the order that the protocol says, before anything of it is believed."""
        if hello.version != messages.PROTOCOL_VERSION:
            mine = messages.PROTOCOL_VERSION
            text = f"{self.me.name} speaks protocol {mine}, the other side {hello.version}: use the same discoro on both"
            return self._refuse(connection, "protocol", text)
        if not self._security.verify(hello.greeting, hello.mac):
            return self._refuse(connection, "key", f"{self.me.name} has {ANOTHER_KEY}")
        theirs = messages.decode_greeting(hello.greeting)
        no = refusal(self.me, theirs)
        if theirs.birth == self.me.birth:
            no = "stale", "that address is this process's own"
        elif self.ignore_new and theirs.birth not in self.links:
            no = no or ("ignored", f"{self.me.name}/{self.me.pid} meets nobody new: its ignore_peers is on")
        if no:
            return self._refuse(connection, *no)
        if theirs.session == 0:
            self._greet(connection, self.me, welcome=True)
        else:
            self._greeted(connection, theirs)

    def _greeted(self, connection: int, theirs: Greeting) -> None:
        before = self._by_connection.get(connection)
        if before is not None and before.birth != theirs.birth:  # whoever dials anew does so over a new connection
            raise ProtocolError(f"{theirs.name}/{theirs.pid} greeted over the connection of {before.who}")
        link = self.links.get(theirs.birth)
        known = link is not None and theirs.resume in (0, link.session)
        if link is not None and known and link.begun_anew(theirs):
            link.lose(PEER_ENDED)
            self._settle(link)
            link = None
        if theirs.resume and (link is None or not known):
            self._dismiss(connection, messages.encode_gone(theirs.session))
            return
        if link is None:
            if len(self.links) >= MAX_LINKS and not self._made_room():
                return self._refuse(connection, "full", f"{self.me.name} has {MAX_LINKS} links and takes no more")
            link = self._new_link(theirs.birth, theirs.addresses)
        self._by_connection[connection] = link
        self.wire.keep(connection)
        link.hello(connection, theirs, self._loop.time())
        self._settle(link)

    def _made_room(self) -> bool:
        """End the oldest link that nothing ever came over and whose connection is gone: who greets and goes keeps no place."""
        for link in self.links.values():
            if link.opened and link.unused and link.state is not State.OPEN:
                link.lose("it was out of reach, never used, and its place was needed")
                self._settle(link)
                return True
        return False

    def _verified(self, mac: bytes, greeting: bytes) -> Greeting:
        if not self._security.verify(greeting, mac):
            raise ProtocolError("a welcome without the cluster's key")
        return messages.decode_greeting(greeting)

    @staticmethod
    def _answered(inquiry: asyncio.Future[Greeting], greeting: Greeting) -> None:
        if not inquiry.done():
            inquiry.set_result(greeting)

    def _refuse(self, connection: int, code: str, text: str) -> None:
        """Told to whoever greets; in our own log it is a warning only where somebody means to belong to us."""
        (self._not_ours if code in ("cluster", "stale", "ignored") else self._refused).note(text)
        self._dismiss(connection, messages.encode_refused(code, text))

    def _dismiss(self, connection: int, answer: list[Part]) -> None:
        """The last word over a connection. A peer that greets twice may have a link on it, which must hear of its end."""
        self.wire.send(connection, answer)
        self.wire.drop(connection, flush=True)
        link = self._by_connection.pop(connection, None)
        if link is not None:
            link.ended_connection(connection, self._loop.time(), "a second greeting over it was refused")
            self._settle(link)

    def _cut(self, connection: int, error: ProtocolError) -> None:
        """A peer broke the protocol: it is told and cut off; a link with it is over, since what it meant is unknown."""
        link = self._by_connection.pop(connection, None)
        if link is None:
            self._drop_stranger(connection, error)
            return
        self.wire.send(connection, messages.encode_bye(link.peer_session, f"you broke the protocol: {error}"))
        self.wire.drop(connection, flush=True)  # of which the link may not know: where its first greeting was at fault
        self._cut_off(link, f"it broke the protocol: {error}")

    def _torn(self, connection: int, error: ProtocolError) -> None:
        """Somebody in between left out what a peer said, or somebody else answers: the connection ends, a link goes on."""
        link = self._by_connection.get(connection)
        if link is None:
            self._drop_stranger(connection, error)
            return
        self._torn_frames.note(link.who, str(error))
        link.torn(connection, str(error), self._loop.time())
        self._settle(link)

    def _drop_stranger(self, connection: int, error: ProtocolError) -> None:
        """Nobody that we know: whoever asked who is there is told at once, else the log, now and then."""
        inquiry = self._inquiries.pop(connection, None)
        if inquiry is None:
            self._cut_offs.note("who has not greeted", f"it broke the protocol: {error}")
        elif not inquiry.done():
            inquiry.set_exception(Unreachable(f"what answers there breaks the protocol: {error}"))
        self.wire.drop(connection)

    def _answers_wait(self, link: Link) -> None:
        """It asks, and does not take its answers."""
        if not link.ended:
            owed = f"{link.outbox.owed} wait for you, which you do not take"
            if link.connection is not None:
                self.wire.send(link.connection, messages.encode_bye(link.peer_session, owed))
            self._cut_off(link, f"it does not take its answers: {link.outbox.owed} waited for it")

    def _cut_off(self, link: Link, why: str) -> None:
        self._cut_offs.note(link.who, why)
        link.lose(why)
        self._settle(link)

    # -------------------------------------------------------------- doing what links decide

    def _new_link(self, birth: int, addresses: Sequence[str]) -> Link:
        link = Link(self.me, secrets.randbits(63) + 1, self._loop.time(), birth=birth, addresses=addresses, **self._timeouts)
        self.links[birth] = link
        return link

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, {}
        now = self._loop.time()
        for link in dirty:
            (self._crowded.add if link.outbox.crowded else self._crowded.discard)(link)
            self._settle_if_needed(link, now)

    def _settle_if_needed(self, link: Link, now: float) -> None:
        """The same as `_settle`, in a tenth of the time where nothing is to be done, as mostly after a frame."""
        if link in self._announced and not self._rooms and link.stands_still(now):
            self._set_timer(link)
        else:
            self._settle(link)

    def _settle(self, link: Link) -> None:
        """Do everything the link wants now, tell the owner what became of it, and set its timer."""
        while actions := link.actions(self._loop.time()):
            for action in actions:
                self._perform(link, action)
        if self._rooms and link in self._rooms and (link.ended or link.outbox.takes_pieces()):
            self._rooms.pop(link).set()
        if link.ended:
            self._forget(link)
            return
        if link.state is State.OPEN and link not in self._announced:
            self._announced.add(link)
            self._owner.opened(link)
        self._set_timer(link)

    def _perform(self, link: Link, action: Action) -> None:
        match action:
            case Send(connection, parts):
                sent = self.wire.send(connection, parts)
            case SendGreeting(connection, greeting, welcome):
                sent = self._greet(connection, greeting, welcome)
            case Drop(connection, flush):
                self._by_connection.pop(connection, None)
                self.wire.drop(connection, flush)
                return
            case Introduce(seconds):
                self._owner.introduce(link, seconds)
                return
            case Dial(address):
                connection = self.wire.dial(address)
                self._by_connection[connection] = link
                link.dialled(connection, address)
                return
        if not sent and connection not in self._by_connection:  # dropped before, so nobody tells of its end
            link.ended_connection(connection, self._loop.time(), "the connection broke")
        # Else its end is told soon, after what came before it: acknowledgements, and a goodbye, that would be missed otherwise.

    def _greet(self, connection: int, greeting: Greeting, welcome: bool) -> bool:
        body = messages.encode_greeting(greeting)
        encode = messages.encode_welcome if welcome else messages.encode_hello
        return self.wire.send(connection, encode(self._security.mac(body), body))

    def _set_timer(self, link: Link) -> None:
        """One that comes early only looks again: an acknowledgement is due after each frame, and travels with the next."""
        deadline = link.next_deadline()
        timer = self._timers.get(link)
        if deadline is None or (timer is not None and timer.when() <= deadline):
            return
        if timer is not None:
            timer.cancel()
        self._timers[link] = self._loop.call_at(deadline, self._on_timer, link)

    def _on_timer(self, link: Link) -> None:
        self._timers.pop(link, None)
        link.handle_timer(self._loop.time())
        self._settle(link)

    def _forget(self, link: Link) -> None:
        if self.links.get(link.birth) is not link:
            return  # forgotten already
        del self.links[link.birth]
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()
        self._announced.discard(link)
        self._dirty.pop(link, None)
        self._crowded.discard(link)
        self._owner.lost(link)
        for tell in list(self.on_ended):
            tell(link)
