"""How a ZeroMQ connection begins, and what follows for us: the greeting of ZMTP 3 (ZeroMQ RFC 23 and 37).

libzmq says of a handshake that failed only that it did. But both sides begin with 64 bytes in plain text that name what
follows, CURVE or NULL, before either has shown that it has a key. So a few bytes, read over a connection of their own, tell
a side with another key from one that is open, and from what is no ZeroMQ. They prove nothing, and decide nothing but words.
"""

from __future__ import annotations

from enum import Enum

from discoro.connections import ANOTHER_KEY, Ended

GREETING_BYTES = 64  # signature 10, version 2, mechanism 20, as-server 1, filler 31
_SIGNATURE_BYTES, _MAJOR, _MECHANISM = 10, 10, slice(12, 32)
OPENING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01"  # signature and version: libzmq says the rest only to who says as much

OPEN_THERE = "it is open, this side has a key: start both with the same key, or both with --open"
OPEN_HERE = "it has a key, this side is open: start both with the same key, or both with --open"
UNCLEAR = f"the handshake failed: it has {ANOTHER_KEY}, or only one of both sides is open"
SHOWN_BYTES = 40  # of what something else says of itself: "HTTP/1.1 400 Bad Request", "SSH-2.0-OpenSSH_9.2p1"


class Heard(Enum):
    """Who begins like this."""

    NOTHING = "nothing"
    PART = "part"  # ZeroMQ so far
    CURVE = "CURVE"
    NULL = "NULL"
    OTHER = "other"  # ZeroMQ, and nothing that discoro speaks
    FOREIGN = "foreign"  # no ZeroMQ


def heard(begin: bytes) -> Heard:
    """What the first bytes of a connection are, as far as they came."""
    if not begin:
        return Heard.NOTHING
    if begin[0] != 0xFF or (len(begin) >= _SIGNATURE_BYTES and not begin[_SIGNATURE_BYTES - 1] & 1):
        return Heard.FOREIGN
    if len(begin) > _MAJOR and begin[_MAJOR] < 3:  # ZMTP 1 and 2 name no mechanism, and their greetings are shorter
        return Heard.OTHER
    if len(begin) < GREETING_BYTES:
        return Heard.PART
    mechanism = begin[_MECHANISM].rstrip(b"\0")
    return {b"CURVE": Heard.CURVE, b"NULL": Heard.NULL}.get(mechanism, Heard.OTHER)


def judged(begin: bytes, is_open: bool, denied: bool) -> tuple[Ended, str] | None:
    """Why no connection comes of it with somebody who begins like this; None where it still may.

    `is_open`: this side has no key. `denied`: the handshake has failed.
    """
    match heard(begin):
        case Heard.FOREIGN:
            return Ended.SILENT, f"something else than discoro answers there{_shown(begin)}"
        case Heard.OTHER:
            return Ended.SILENT, "a ZeroMQ program answers there, and it is not discoro"
        case Heard.CURVE if is_open:
            return Ended.DENIED, OPEN_HERE
        case Heard.NULL if not is_open:
            return Ended.DENIED, OPEN_THERE
        case Heard.CURVE if denied:
            return Ended.DENIED, f"it has {ANOTHER_KEY}"
    return (Ended.DENIED, UNCLEAR) if denied else None


def _shown(begin: bytes) -> str:
    """The first line of a text, safe to print; "" for anything else."""
    line = begin.partition(b"\n")[0].rstrip(b"\r")[:SHOWN_BYTES]
    text = line.decode("ascii", "replace")
    return f": {text!r}" if text and text.isascii() and text.isprintable() else ""
