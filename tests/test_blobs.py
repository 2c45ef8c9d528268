"""blobs.py: bytes that lie first, then both halves of a transfer, against each other."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discoro.blobs import CHUNK, EMPTY, WINDOW, Blob, Receiving, Sending, checked_blob, new_digest
from discoro.errors import ProtocolError


def blob_of(data: bytes) -> Blob:
    digest = new_digest()
    digest.update(data)
    return Blob(digest.hexdigest(), len(data))


HELLO = blob_of(b"hello")


@pytest.mark.parametrize(
    ("digest", "size"),
    [
        (None, 5),
        (b"a" * 64, 5),
        ("", 5),
        ("a" * 63, 5),
        ("a" * 65, 5),
        ("A" * 64, 5),
        ("g" * 64, 5),
        ("../" + "a" * 61, 5),
        ("a" * 64 + "\n", 5),
        ("a" * 64, None),
        ("a" * 64, "5"),
        ("a" * 64, 5.0),
        ("a" * 64, True),
        ("a" * 64, -1),
    ],
)
def test_what_names_no_blob_is_refused(digest: Any, size: Any) -> None:
    with pytest.raises(ProtocolError):
        checked_blob(digest, size)


def test_only_the_digest_of_no_bytes_has_no_bytes() -> None:
    with pytest.raises(ProtocolError, match="no bytes have one digest"):
        checked_blob(HELLO.digest, 0)
    with pytest.raises(ProtocolError, match="no bytes have one digest"):
        checked_blob(EMPTY.digest, 5)
    assert checked_blob(*EMPTY) == blob_of(b"")


def test_a_blob_is_named_by_its_bytes() -> None:
    assert checked_blob(*HELLO) == HELLO
    assert blob_of(b"hellp").digest != HELLO.digest


# ------------------------------------------------------------------ sending


@pytest.mark.parametrize("offset", [-1, 6])
def test_sending_from_outside_of_the_blob_is_refused(offset: int) -> None:
    with pytest.raises(ProtocolError, match=f"of 5 bytes is wanted from byte {offset}"):
        Sending(HELLO, offset)


def test_no_bytes_and_all_bytes_are_sent_at_once() -> None:
    for sending in (Sending(EMPTY, 0), Sending(HELLO, 5)):
        assert sending.done
        assert sending.next_chunk() is None


def test_a_window_of_chunks_is_on_the_way_and_no_more() -> None:
    sending = Sending(Blob("a" * 64, 100 * CHUNK), 0)
    assert [sending.next_chunk() is None for _ in range(WINDOW + 1)] == [False] * WINDOW + [True]
    sending.acknowledged()
    chunk = sending.next_chunk()
    assert chunk is not None
    assert chunk.offset == WINDOW * CHUNK
    assert sending.next_chunk() is None


def test_a_blob_is_done_when_its_last_chunk_is_acknowledged_not_when_it_is_sent() -> None:
    sending = Sending(HELLO, 2)
    assert sending.next_chunk() == (2, 3)
    assert not sending.done
    sending.acknowledged()
    assert sending.done


def test_the_last_chunk_has_what_is_left() -> None:
    sending = Sending(Blob("a" * 64, CHUNK + 1), 0)
    assert [sending.next_chunk() for _ in range(3)] == [(0, CHUNK), (CHUNK, 1), None]


# ------------------------------------------------------------------ receiving


@pytest.mark.parametrize(("offset", "data"), [(1, b"e"), (-1, b"h"), (0, b""), (0, b"hello!"), (5, b""), (6, b"x")])
def test_a_chunk_that_leaves_a_gap_or_passes_the_end_is_refused(offset: int, data: bytes) -> None:
    receiving = Receiving(HELLO)
    with pytest.raises(ProtocolError, match=f"of 5 bytes: got bytes {offset} to {offset + len(data)} after 0"):
        receiving.take(offset, data)
    assert receiving.received == 0
    receiving.take(0, b"hello")
    assert receiving.verified, "a refused chunk counted"


def test_bytes_that_have_another_digest_are_never_verified() -> None:
    receiving = Receiving(HELLO)
    receiving.take(0, b"hellp")
    assert receiving.complete
    assert not receiving.verified


def test_what_is_not_complete_is_not_verified() -> None:
    receiving = Receiving(HELLO)
    assert not receiving.verified
    receiving.take(0, b"hell")
    assert not receiving.complete
    assert not receiving.verified


def test_bytes_that_came_before_are_not_taken_again() -> None:
    receiving = Receiving(HELLO)
    assert receiving.take(0, b"hel").tobytes() == b"hel"
    assert receiving.take(0, b"hel").tobytes() == b""
    assert receiving.take(1, b"e").tobytes() == b""
    assert receiving.take(1, b"ello").tobytes() == b"lo"
    assert receiving.verified


def test_any_kind_of_buffer_is_taken_by_its_bytes() -> None:
    receiving = Receiving(HELLO)
    receiving.take(0, bytearray(b"he"))
    receiving.take(2, memoryview(b"llo"))
    assert receiving.verified


def test_receiving_goes_on_after_what_an_earlier_transfer_left() -> None:
    digest = new_digest()
    digest.update(b"he")
    receiving = Receiving(HELLO, 2, digest)
    with pytest.raises(ProtocolError):
        receiving.take(3, b"lo")
    receiving.take(2, b"llo")
    assert receiving.verified


@given(data=st.binary(min_size=1, max_size=40), senders=st.integers(1, 4), seed=st.integers(0, 999))
def test_several_senders_of_one_blob_never_spoil_it(data: bytes, senders: int, seed: int) -> None:
    """Each begins where the receiver stands when it asks, sends in order, and may overtake the others at any time."""
    chance = random.Random(seed)
    receiving, written = Receiving(blob_of(data)), bytearray()
    positions = [0]
    while any(position < len(data) for position in positions):
        if len(positions) < senders and chance.random() < 0.3:
            positions.append(receiving.received)
        index = chance.randrange(len(positions))
        length = min(chance.randint(1, 9), len(data) - positions[index])
        if length:
            written += receiving.take(positions[index], data[positions[index] : positions[index] + length])
            positions[index] += length
    assert receiving.verified
    assert written == data
