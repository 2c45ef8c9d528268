"""Blobs: bytes named by their digest, and how far one has come on its way here.

A blob is cut into pieces of 1 MiB; its digest is taken over the digests of its pieces, so that several threads can work on it
at once, on both sides. Whoever wants a blob asks for its pieces (`Receiving`), with a bounded number of them on the way, and
knows at the end whether what came is what was named. A transfer that broke goes on with the pieces that are missing, from
whoever has them. No disk, no link here: `files.py` writes, `transfers.py` asks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from discoro.errors import ProtocolError
from discoro.messages import MIB, Part

PIECE = 1 * MIB  # small enough to be sent again, large enough that a thread and a request for each cost little
WINDOW = 8  # pieces on the way: 8 MiB, more than a 10 Gbit/s network holds in flight
DIGEST_BYTES = 32
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WHOLE, _PIECE = b"discoro blob", b"discoro piece"  # so that no piece can pass for a list of pieces


class Blob(NamedTuple):
    """What is transferred: a digest (64 hex digits, see `blob_of`) and a size in bytes."""

    digest: str
    size: int

    @property
    def pieces(self) -> int:
        """How many pieces it has; the last one may be shorter."""
        return -(-self.size // PIECE)

    def length(self, index: int) -> int:
        """The bytes of that piece."""
        return min(PIECE, self.size - index * PIECE)


def piece_digest(*data: Part) -> bytes:
    """The BLAKE2b digest (RFC 7693) of one piece, in parts. Threads can do this side by side: it holds no lock of Python's."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=_PIECE)
    for part in data:
        digest.update(part)
    return digest.digest()


def blob_of(size: int, digests: Iterable[bytes]) -> Blob:
    """The blob of that size, from the digests of its pieces: the BLAKE2b digest over all of them."""
    return Blob(hashlib.blake2b(b"".join(digests), digest_size=DIGEST_BYTES, person=_WHOLE).hexdigest(), size)


EMPTY = blob_of(0, ())  # the one blob that is whole without a piece


def checked_blob(digest: object, size: object) -> Blob:
    """The blob that a peer named; ProtocolError where it names none."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ProtocolError("a file whose digest is not 64 hex digits")
    if type(size) is not int or size < 0:
        raise ProtocolError("a file whose size is not a number of bytes")
    blob = Blob(digest, size)
    if (blob.size == 0) != (blob.digest == EMPTY.digest):
        raise ProtocolError(f"file {digest:.12} of {size} bytes: no bytes have one digest, and nothing else has it")
    return blob


class Receiving:
    """How far a blob has come: `next_piece` says what to ask for, `came` and `failed` what became of it, until `complete`."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self._digests: dict[int, bytes] = {}  # of the pieces that are here
        self._asked: set[int] = set()
        self.received = 0  # bytes that are here
        self._next = 0  # every piece before it is here, or was asked for

    def __repr__(self) -> str:
        here, asked = len(self._digests), len(self._asked)
        return f"<Receiving {self.blob.digest:.12} {here} of {self.blob.pieces} pieces, {asked} on the way>"

    def next_piece(self) -> int | None:
        """The number of the piece to ask for now; None while the window is full, or when all are here or asked for."""
        while self._next in self._digests or self._next in self._asked:
            self._next += 1
        if len(self._asked) >= WINDOW or self._next >= self.blob.pieces:
            return None
        self._asked.add(self._next)
        return self._next

    def check(self, index: int, data: Sequence[Part]) -> None:
        """ProtocolError where these bytes, in parts, have not the length of that piece."""
        wanted, came = self.blob.length(index), sum(memoryview(part).nbytes for part in data)
        if came != wanted:
            raise ProtocolError(f"file {self.blob.digest:.12}: {came} bytes came for piece {index}, which has {wanted}")

    def came(self, index: int, digest: bytes) -> None:
        """That piece is here, with that digest."""
        self._asked.discard(index)
        if index not in self._digests:
            self.received += self.blob.length(index)
        self._digests[index] = digest

    def failed(self, index: int) -> None:
        """That piece did not come: it is asked for again."""
        self._asked.discard(index)
        self._next = min(self._next, index)

    @property
    def end(self) -> int:
        """Where the last of the pieces that are here ends, in bytes."""
        return min((max(self._digests, default=-1) + 1) * PIECE, self.blob.size)

    @property
    def complete(self) -> bool:
        return len(self._digests) == self.blob.pieces

    @property
    def verified(self) -> bool:
        """Whether what is here is the blob that was named."""
        digests = [self._digests[index] for index in range(self.blob.pieces)] if self.complete else None
        return digests is not None and blob_of(self.blob.size, digests) == self.blob
