"""blobs.py: bytes that lie first, then how far a blob has come, in whatever order its pieces come."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discoro.blobs import EMPTY, PIECE, WINDOW, Blob, Receiving, blob_of, checked_blob, piece_digest
from discoro.errors import ProtocolError


def blob_with(data: bytes) -> Blob:
    return blob_of(len(data), [piece_digest(data[at : at + PIECE]) for at in range(0, len(data), PIECE)])


HELLO = blob_with(b"hello")


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
    assert checked_blob(*EMPTY) == blob_with(b"")


def test_a_blob_is_named_by_its_bytes() -> None:
    assert checked_blob(*HELLO) == HELLO
    assert blob_with(b"hellp").digest != HELLO.digest


def test_the_digests_of_pieces_are_no_blob_themselves() -> None:
    data = bytes(2 * PIECE)
    listed = b"".join(piece_digest(data[:PIECE]) for _ in range(2))
    assert blob_with(listed).digest != blob_with(data).digest


@pytest.mark.parametrize(("size", "lengths"), [(0, []), (1, [1]), (PIECE, [PIECE]), (PIECE + 1, [PIECE, 1])])
def test_only_the_last_piece_is_shorter(size: int, lengths: list[int]) -> None:
    blob = Blob("a" * 64, size)
    assert [blob.length(index) for index in range(blob.pieces)] == lengths


# ------------------------------------------------------------------ receiving


def test_no_bytes_are_here_at_once() -> None:
    receiving = Receiving(EMPTY)
    assert receiving.next_piece() is None
    assert receiving.verified


def test_a_window_of_pieces_is_on_the_way_and_no_more() -> None:
    receiving = Receiving(Blob("a" * 64, 100 * PIECE))
    assert [receiving.next_piece() for _ in range(WINDOW + 1)] == [*range(WINDOW), None]
    receiving.came(3, b"digest")
    assert [receiving.next_piece() for _ in range(2)] == [WINDOW, None]


def test_a_piece_that_did_not_come_is_asked_for_next() -> None:
    receiving = Receiving(Blob("a" * 64, 100 * PIECE))
    for _ in range(WINDOW):
        receiving.next_piece()
    receiving.came(0, b"digest")
    receiving.failed(2)
    receiving.failed(1)
    assert [receiving.next_piece() for _ in range(3)] == [1, 2, WINDOW]


@pytest.mark.parametrize(("index", "data"), [(0, b""), (0, b"x"), (1, b""), (1, b"xx"), (1, bytes(PIECE))])
def test_a_piece_of_another_length_is_refused(index: int, data: bytes) -> None:
    receiving = Receiving(Blob("a" * 64, PIECE + 1))
    with pytest.raises(ProtocolError, match=f"{len(data)} bytes came for piece {index}"):
        receiving.check(index, [data])


def test_bytes_that_have_another_digest_are_never_verified() -> None:
    receiving = Receiving(HELLO)
    receiving.next_piece()
    receiving.came(0, piece_digest(b"hellp"))
    assert receiving.complete
    assert not receiving.verified


def test_what_is_not_complete_is_not_verified() -> None:
    receiving = Receiving(blob_with(bytes(PIECE + 1)))
    receiving.came(0, piece_digest(bytes(PIECE)))
    assert not receiving.complete
    assert not receiving.verified
    assert receiving.received == PIECE


@given(pieces=st.integers(1, 30), seed=st.integers(0, 999))
def test_pieces_may_come_in_any_order_and_fail_at_any_time(pieces: int, seed: int) -> None:
    chance, digests = random.Random(seed), [bytes([index]) for index in range(pieces)]
    receiving = Receiving(blob_of((pieces - 1) * PIECE + 1, digests))
    asked: list[int] = []
    while not receiving.complete:
        while chance.random() < 0.7 and (index := receiving.next_piece()) is not None:
            assert index not in asked, "asked for twice at a time"
            asked.append(index)
        assert len(asked) <= WINDOW
        if asked:
            index = asked.pop(chance.randrange(len(asked)))
            if chance.random() < 0.3:
                receiving.failed(index)
            else:
                receiving.came(index, digests[index])
    assert receiving.verified
    assert receiving.received == receiving.blob.size
