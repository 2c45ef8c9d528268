"""One file on its way: both halves of a transfer, as values.

A blob is bytes named by their digest. `Sending` says which chunk goes next, with a bounded number on the way; `Receiving` says
which bytes of a chunk are new, and at the end whether the whole has the digest it claims. Either side may begin in the middle,
so that a transfer resumes where it broke, and several senders may bring the same blob at once. No disk and no link here:
`files.py` writes, `computation.py` sends.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from discoro.errors import ProtocolError
from discoro.messages import KIB, Part

CHUNK = 240 * KIB  # with its header within one piece of the link: small messages pass between two
WINDOW = 8  # chunks on the way: 2 MiB, more than a 1 Gbit/s network holds in flight
DIGEST_BYTES = 32
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blob(NamedTuple):
    """What is transferred: a digest (64 hex digits of BLAKE2b) and a size in bytes."""

    digest: str
    size: int


def new_digest() -> hashlib.blake2b:
    """An empty digest; `hexdigest()` of it, once fed, is the name of a blob."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


EMPTY = Blob(new_digest().hexdigest(), 0)  # the one blob that is whole without a chunk


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


class Chunk(NamedTuple):
    """Which bytes of a blob to send."""

    offset: int
    length: int


class Sending:
    """The sending half: `next_chunk` until None, `acknowledged` for each that arrived, until `done`."""

    def __init__(self, blob: Blob, offset: int) -> None:
        if not 0 <= offset <= blob.size:
            raise ProtocolError(f"a file of {blob.size} bytes is wanted from byte {offset}")
        self.blob = blob
        self._next = offset
        self._on_the_way = 0

    def __repr__(self) -> str:
        return f"<Sending {self.blob.digest:.12} {self._next} of {self.blob.size} bytes, {self._on_the_way} chunks on the way>"

    @property
    def done(self) -> bool:
        return self._next == self.blob.size and not self._on_the_way

    def next_chunk(self) -> Chunk | None:
        """The chunk to send now; None while the window is full, or when everything was sent."""
        if self._on_the_way == WINDOW or self._next == self.blob.size:
            return None
        chunk = Chunk(self._next, min(CHUNK, self.blob.size - self._next))
        self._next += chunk.length
        self._on_the_way += 1
        return chunk

    def acknowledged(self) -> None:
        """A chunk arrived, whichever."""
        self._on_the_way -= 1


class Receiving:
    """The receiving half: `take` every chunk, until `complete`; then `verified` says whether it is what was announced."""

    def __init__(self, blob: Blob, received: int = 0, digest: hashlib.blake2b | None = None) -> None:
        self.blob = blob
        self.received = received
        self._digest = digest or new_digest()

    def __repr__(self) -> str:
        return f"<Receiving {self.blob.digest:.12} {self.received} of {self.blob.size} bytes>"

    def take(self, offset: int, data: Part) -> memoryview:
        """The bytes of this chunk that are new, and stand next: none where another sender brought them already.

        ProtocolError for a chunk that leaves a gap, or goes past the end.
        """
        view = memoryview(data).cast("B")
        end = offset + view.nbytes
        if not 0 <= offset <= self.received or view.nbytes == 0 or end > self.blob.size:
            where = f"bytes {offset} to {end}"
            raise ProtocolError(f"file {self.blob.digest:.12} of {self.blob.size} bytes: got {where} after {self.received}")
        new = view[min(self.received - offset, view.nbytes) :]
        self._digest.update(new)
        self.received += new.nbytes
        return new

    @property
    def complete(self) -> bool:
        return self.received == self.blob.size

    @property
    def verified(self) -> bool:
        return self.complete and self._digest.hexdigest() == self.blob.digest
