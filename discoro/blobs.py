"""One file on its way: both halves of a transfer, as values.

A blob is bytes named by their digest. `Sending` says which chunk goes next, with a bounded number on the way; `Receiving` says
whether a chunk fits, where it goes, and at the end whether the whole has the digest it claims. Either side may begin in the
middle, so that a transfer resumes where it broke. No disk and no link here: `files.py` writes, `computation.py` sends.
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


def checked_blob(digest: object, size: object) -> Blob:
    """The blob that a peer named; ProtocolError where it names none."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ProtocolError("a file whose digest is not 64 hex digits")
    if type(size) is not int or size < 0:
        raise ProtocolError("a file whose size is not a number of bytes")
    return Blob(digest, size)


class Chunk(NamedTuple):
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
        self._on_the_way -= 1


class Receiving:
    """The receiving half: `take` every chunk in order; `done` once all bytes are there and have the digest."""

    def __init__(self, blob: Blob, received: int = 0, digest: hashlib.blake2b | None = None) -> None:
        self.blob = blob
        self.received = received
        self._digest = digest or new_digest()

    def take(self, offset: int, data: Part) -> None:
        """Account for a chunk; ProtocolError for one that does not fit, or where the whole has another digest."""
        length = memoryview(data).nbytes
        if offset != self.received or length == 0 or offset + length > self.blob.size:
            where = f"bytes {offset} to {offset + length}"
            raise ProtocolError(f"file {self.blob.digest[:12]} of {self.blob.size} bytes: got {where} after {self.received}")
        self._digest.update(data)
        self.received += length
        if self.received == self.blob.size and self._digest.hexdigest() != self.blob.digest:
            raise ProtocolError(f"file {self.blob.digest[:12]}: what came has another digest")

    @property
    def done(self) -> bool:
        return self.received == self.blob.size
