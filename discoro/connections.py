"""What a transport and the layer above it agree on: connections, frames, how a connection ended, how addresses are written.

A connection is one TCP connection, known by a number that is never used again; what outlives it is up to the layer
above. A frame is a sequence of parts, bytes all of them, that arrives whole or not at all. No ZeroMQ in here: the
network in memory that the tests use keeps the same promises.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from discoro.messages import KIB, MAX_FRAME, Part

FRAME_BYTES = MAX_FRAME + 4 * KIB  # in all parts; libzmq buffers that much for a stranger, so no more
FRAME_PARTS = 4096  # reading them takes about 3 ms of the loop's time
ANOTHER_KEY = "another cluster key"  # in whatever words tell of one: what helps then is known
VIEW_FROM = 64 * KIB  # bytes; a smaller part is copied out: it may pin a buffer that it shares with others


class Ended(enum.Enum):
    """How a connection ended, or why a dial came to nothing."""

    REFUSED = "refused"  # nothing listens at that port
    BROKEN = "broken"  # it stood, and does no more
    DENIED = "denied"  # somebody answered, and the handshake failed: another key, or one side is open; the words say which
    SILENT = "silent"  # somebody answered, and no handshake followed: hung, stopped, or not discoro
    UNREACHABLE = "unreachable"  # no way there, or no answer from there


class Receiver(Protocol):
    """Who gets the news of a transport. What these raise goes to the loop's exception handler."""

    def connected(self, conn: int) -> None:
        """A dial succeeded; or somebody connected to us, told with his first frame."""

    def received(self, conn: int, parts: list[Part]) -> None:
        """A frame: at least one part, the first not empty. From 64 KiB on a part is a view of libzmq's memory."""

    def ended(self, conn: int, how: Ended, detail: str) -> None:
        """The last news of that connection, told once; not told for those that `drop` or `close` ended."""


def size_of(part: Part) -> int:
    """Its bytes."""
    return part.nbytes if isinstance(part, memoryview) else len(part)


def allowed(parts: Sequence[Part]) -> bool:
    """Whether these parts may travel as one frame."""
    if len(parts) == 1:  # as most have
        return 0 < size_of(parts[0]) <= FRAME_BYTES
    return 0 < len(parts) <= FRAME_PARTS and 0 < size_of(parts[0]) and sum(map(size_of, parts)) <= FRAME_BYTES


def address_of(host: str, port: int) -> str:
    """As host:port, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
