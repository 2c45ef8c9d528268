"""What waits to be sent on one link, and what was sent and waits for its acknowledgement.

Numbers the frames, keeps the windows, and decides what shares a frame: small operations travel together, large ones as pieces
that alternate, and neither overtakes what it must not. Pure values; `link.py` says when frames may leave and what was
acknowledged.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from discoro import messages
from discoro.errors import ProtocolError
from discoro.messages import Run, Wire
from discoro.pacing import WINDOW_MOST, Pace

WINDOW_FRAMES = 256  # unacknowledged frames: what a resumption sends again
WINDOW_BYTES = 8 * messages.MIB  # and what they may hold in memory
PIECES_BYTES = WINDOW_MOST  # pieces in flight, however fast the path: the rest of the window stays for small operations
STREAMS = 8  # large operations whose pieces alternate
QUEUE_OPERATIONS = 100_000  # waiting to be sent, past which `has_room` is false: 64-byte messages, some 30 MB
QUEUE_BYTES = 64 * messages.MIB
# Answers that wait for a peer, beside a window of them on the way: who does not read asks for no more. Where they hold as much
# as one message, errors take the place of further large ones: a link may be slow, and a few asks bring much. Past the last
# limit nobody honest is left. Notices of ends do not count: each frees a coroutine, which took more.
OWED_REPLIES = WINDOW_FRAMES * messages.BATCH_OPERATIONS
OWED_BYTES = messages.MAX_MESSAGE
OWED_BYTES_MOST = 3 * messages.MAX_MESSAGE  # with the one that was let in last, and a full count of small ones
SMALL_REPLY = 4 * messages.KIB
PIECES_OWED = 32 * messages.MIB  # answers beside which no piece of a blob is read from the disk: twice what one peer asks for
LARGEST_FRAME = messages.PIECE_SIZE + messages.MAX_FIELDS + 16 * messages.KIB  # a first piece, its fields and sizes


class _Sent(NamedTuple):
    number: int
    wires: list[Wire]
    size: int
    pieces: bool
    at: float  # when it left


class Outbox:
    """What waits to be sent on one link, and what was sent and waits for its acknowledgement.

    Small operations stand in one queue. A large one becomes a stream of pieces; streams take turns. A lane with a stream under
    way keeps its later operations behind it.
    """

    def __init__(self) -> None:
        self._small: deque[Wire] = deque()
        self.run: Run | None = None  # behind them, and not counted before it ends: small messages that more may join
        self._streams: deque[_Stream] = deque()
        self._lanes: dict[Hashable, deque[Wire]] = {}
        self._next_stream = 0
        self._small_added, self._small_left = 0, 0  # so that a stream waits for what was queued before it
        self._waiting, self._waiting_bytes = 0, 0
        self._owed, self._owed_bytes = 0, 0  # of those, replies
        self._sent: deque[_Sent] = deque()
        self._sent_bytes, self._sent_pieces = 0, 0
        self._resend: deque[_Sent] = deque()
        self._number = 0
        self.silent_since: float | None = None  # when something was acknowledged, or the first sent; None: nothing is awaited
        self._pace = Pace()

    def __repr__(self) -> str:
        joined = f"+{len(self.run.bodies)}" if self.run is not None else ""
        return f"waiting={self._waiting}{joined} unacknowledged={len(self._sent)}"

    @property
    def waiting(self) -> str:
        """How much waits to be sent, in words."""
        count, size = (len(self.run.bodies), self.run.size) if self.run is not None else (0, 0)
        return f"{self._waiting + count} operations of {self._waiting_bytes + size} bytes"

    @property
    def unacknowledged(self) -> int:
        """Operations that were handed over and are not known to have arrived; pieces count with their last."""
        joined = len(self.run.bodies) if self.run is not None else 0
        return sum(wire.count for sent in self._sent for wire in sent.wires) + self._waiting + joined

    def is_empty(self) -> bool:
        return not (self._sent or self._waiting or self.run)

    def has_room(self) -> bool:
        """Whether more should be queued. The largest that is in pieces does not count: others pass between them."""
        if self._waiting_bytes < QUEUE_BYTES:
            return self._waiting < QUEUE_OPERATIONS
        beside = self._waiting_bytes - max((stream.size for stream in self._streams), default=0)
        return beside < QUEUE_BYTES and self._waiting < QUEUE_OPERATIONS

    @property
    def owed(self) -> str:
        """How many replies wait to be sent, in words."""
        return f"{self._owed} answers of {self._owed_bytes} bytes"

    def takes_replies(self) -> bool:
        """Whether a reply may be queued: else the peer asks, and does not read what it gets."""
        return self._owed < OWED_REPLIES and self._owed_bytes < OWED_BYTES_MOST

    def takes_reply(self, size: int) -> bool:
        """Whether a reply with so many bytes of body may be queued beside those that wait; a small one always."""
        return size <= SMALL_REPLY or self._owed_bytes < OWED_BYTES

    def takes_pieces(self) -> bool:
        """Whether pieces of blobs should be queued, which are read for one reply each."""
        return self._owed_bytes < PIECES_OWED

    @property
    def crowded(self) -> bool:
        """Whether several operations wait."""
        return self._waiting > 1 or (self.run is not None and len(self.run.bodies) > 1)

    @property
    def stands_still(self) -> bool:
        """Whether nothing waits to be sent, again or for the first time."""
        return not (self._waiting or self._resend or self.run)

    def begin_run(self, coro: int, body: bytes) -> bool:
        """Queue a small message; those that follow to the same coroutine may join it in `run`, in this turn.

        False where there is no room, or where larger ones are under way, behind which it may have to wait: then `add` it.
        """
        self.end_run()
        if self._lanes or not self.has_room():
            return False
        self.run = Run(coro, body)
        return True

    def end_run(self) -> None:
        """What is queued from now on does not join the run that is open."""
        if self.run is not None:
            wire, self.run = self.run.wire(), None
            self._waiting += wire.count
            self._waiting_bytes += wire.size
            self._add_small(wire)

    def add(self, wire: Wire, lane: Hashable) -> None:
        self.end_run()
        self._waiting += 1
        self._waiting_bytes += wire.size
        if wire.header[0] == messages.REPLY:
            self._owe(1, wire.size)
        if lane is not None and lane in self._lanes:
            self._lanes[lane].append(wire)
        elif wire.size > messages.PIECE_SIZE:
            self._begin_stream(wire, lane)
        else:
            self._add_small(wire)

    def frames(self, now: float) -> Iterator[tuple[int, list[Wire]]]:
        """Numbered frames that may leave now: first what must be sent again, then new ones as the window allows."""
        self.end_run()
        while self._resend:
            again = self._resend.popleft()
            yield again.number, again.wires
        while self._window_open():
            stream = self._ready_stream()
            if self._small:
                yield self._send(self._batch(), False, now)
            elif stream is None:
                return
            if stream is not None and self._window_open():
                yield self._send([self._piece(stream)], True, now)

    def acknowledge(self, received: int, now: float) -> None:
        if received > self._number:
            raise ProtocolError(f"frame {received} acknowledged; {self._number} were sent")
        if not self._sent or self._sent[0].number > received:
            return
        pieces, trip = 0, math.inf
        while self._sent and self._sent[0].number <= received:
            sent = self._sent.popleft()
            self._sent_bytes -= sent.size
            if sent.pieces:
                pieces, trip = pieces + sent.size, now - sent.at
        self.silent_since = now if self._sent else None
        if pieces:
            self._sent_pieces -= pieces
            self._pace.acknowledged(pieces, trip, self._sent_pieces, now)

    def resume(self, received: int, now: float) -> None:
        """A new connection stands, and the peer has everything up to `received`: the rest goes again."""
        self.acknowledge(received, now)
        self._pace = Pace()  # another path, perhaps
        self._sent = deque(sent._replace(at=now) for sent in self._sent)
        self.silent_since = now if self._sent else None
        self._resend = deque(self._sent)

    def question(self, now: float) -> tuple[int, list[Wire]]:
        """A frame without operations behind all that was sent: the last one again, where it is such a one."""
        last = self._sent[-1]
        return self._send([], False, now) if last.wires else (last.number, [])

    def _window_open(self) -> bool:
        return len(self._sent) < WINDOW_FRAMES and self._sent_bytes + LARGEST_FRAME <= WINDOW_BYTES

    def _batch(self) -> list[Wire]:
        batch: list[Wire] = []
        size = 0
        while self._small and len(batch) < messages.BATCH_OPERATIONS:
            if batch and size + self._small[0].size > messages.BATCH_BYTES:
                break
            wire = self._small.popleft()
            self._small_left += 1
            size += wire.size
            batch.append(wire)
            self._waiting -= wire.count
            self._waiting_bytes -= wire.size
            if self._owed and wire.header[0] == messages.REPLY:
                self._owe(-1, -wire.size)
        return batch

    def _owe(self, replies: int, size: int) -> None:
        self._owed += replies
        self._owed_bytes += size

    def _add_small(self, wire: Wire) -> None:
        self._small.append(wire)
        self._small_added += 1

    def _begin_stream(self, wire: Wire, lane: Hashable) -> None:
        self._next_stream += 1
        pieces = messages.split(wire, self._next_stream, lambda: self._pace.piece)
        if lane is not None:
            self._lanes.setdefault(lane, deque())
        self._streams.append(_Stream(pieces, wire.size, lane, self._small_added, wire.header[0] == messages.REPLY))

    def _ready_stream(self) -> _Stream | None:
        """The stream whose turn it is, if pieces may leave: none overtakes a small operation queued before it."""
        if not self._streams:
            return None
        if self._sent_pieces + LARGEST_FRAME > PIECES_BYTES or self._sent_pieces >= self._pace.window:
            return None
        turns = itertools.islice(self._streams, STREAMS)
        return next((stream for stream in turns if stream.after <= self._small_left), None)

    def _piece(self, stream: _Stream) -> Wire:
        self._streams.remove(stream)
        piece = next(stream.pieces)
        if piece.count:
            self._end_stream(stream)
        else:  # only the first few take turns: more would exceed what the receiver assembles at once
            self._streams.insert(min(STREAMS - 1, len(self._streams)), stream)
        return piece

    def _end_stream(self, stream: _Stream) -> None:
        self._waiting -= 1
        self._waiting_bytes -= stream.size
        if stream.reply:
            self._owe(-1, -stream.size)
        behind = self._lanes.pop(stream.lane, None) if stream.lane is not None else None
        while behind:
            wire = behind.popleft()
            if wire.size > messages.PIECE_SIZE:
                self._lanes[stream.lane] = behind
                self._begin_stream(wire, stream.lane)
                return
            self._add_small(wire)

    def _send(self, wires: list[Wire], pieces: bool, now: float) -> tuple[int, list[Wire]]:
        self._number += 1
        sent = _Sent(self._number, wires, sum(wire.size for wire in wires), pieces, now)
        if not self._sent:
            self.silent_since = now
        self._sent.append(sent)
        self._sent_bytes += sent.size
        self._sent_pieces += sent.size if pieces else 0
        return sent.number, wires


class _Stream(NamedTuple):
    pieces: Iterator[Wire]
    size: int
    lane: Hashable
    after: int  # how many small operations had been queued when it began
    reply: bool
