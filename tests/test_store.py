"""store.py: bytes that lie and disks that fail first, then what is kept, for whom, and for how long."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from discoro import store as store_module
from discoro.blobs import EMPTY, PIECE, Blob, Receiving
from discoro.errors import ProtocolError, TooLarge, TransferFailed
from discoro.store import BROKEN, Store
from tests.support.sites import files_below
from tests.test_blobs import blob_with


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs")


def receive(store: Store, blob: Blob, data: bytes) -> Receiving:
    """All pieces of it that these bytes have, written."""
    receiving = store.begin(blob)
    while (index := receiving.next_piece()) is not None:
        receiving.came(index, store.write(blob, index, [data[index * PIECE : (index + 1) * PIECE]]))
    return receiving


def received(store: Store, data: bytes) -> Blob:
    blob = blob_with(data)
    store.finish(receive(store, blob, data))
    return blob


# ------------------------------------------------------------------ from a sender that lies


def test_bytes_with_another_digest_leave_nothing(store: Store) -> None:
    receiving = receive(store, blob_with(b"hello"), b"hellp")
    with pytest.raises(ProtocolError, match="what came has another digest"):
        store.finish(receiving)
    assert files_below(store.directory) == []
    assert store.has(received(store, b"hello")), "an honest sender pays for a liar"


def test_a_size_that_lies_about_a_digest_makes_no_file(store: Store) -> None:
    lie = Blob(blob_with(b"hello").digest, 3)
    with pytest.raises(ProtocolError, match="another digest"):
        store.finish(receive(store, lie, b"hel"))
    assert files_below(store.directory) == []


def test_a_file_past_the_limit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path, max_file_size=4)
    with pytest.raises(TooLarge, match=r"5 bytes; at most 4 of a file are taken here \(--max_file_size\)"):
        store.begin(blob_with(b"hello"))
    assert files_below(tmp_path) == []
    assert store.has(received(store, b"hell")), "the limit itself is allowed"


def test_a_link_in_the_place_of_a_part_is_not_followed(store: Store, tmp_path: Path) -> None:
    outside, blob = tmp_path / "outside", blob_with(b"hello")
    outside.write_bytes(b"mine")
    receiving = store.begin(blob)
    (store.directory / f"{blob.digest}.part").unlink()
    (store.directory / f"{blob.digest}.part").symlink_to(outside)
    with pytest.raises(TransferFailed, match="could not be written"):
        store.write(blob, receiving.next_piece() or 0, [b"hello"])
    assert outside.read_bytes() == b"mine"


# ------------------------------------------------------------------ disks that fail


def test_a_full_disk_is_told_before_the_first_byte_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TransferFailed, match=f"{2 * PIECE} bytes could not be written in .*: No space left on device"):
        blob = blob_with(bytes(2 * PIECE))
        store.begin(blob)
        store.take_room(blob)
    with pytest.raises(TransferFailed, match="No space left on device"):
        store.put([bytes(2 * PIECE)])
    assert files_below(store.directory) == []


def test_a_disk_that_fails_in_the_middle_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = blob_with(bytes(2 * PIECE))
    store.begin(blob)

    def fail(*_: object) -> int:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(TransferFailed, match="Input/output error"):
        store.write(blob, 0, [bytes(PIECE)])
    assert files_below(store.directory) == []


def test_bytes_that_are_taken_a_few_at_a_time_are_all_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: write(descriptor, data[:1000], at))
    assert store.path(received(store, bytes(range(256)) * 100)).read_bytes() == bytes(range(256)) * 100


# ------------------------------------------------------------------ whole or absent


def test_a_blob_is_whole_or_absent(store: Store) -> None:
    data = os.urandom(PIECE + 5)
    blob = blob_with(data)
    receiving = store.begin(blob)
    receiving.came(1, store.write(blob, 1, [data[PIECE:]]))
    assert not store.has(blob)
    assert not store.path(blob).exists()
    receiving.came(0, store.write(blob, 0, [data[:PIECE]]))
    store.finish(receiving)
    assert store.has(blob)
    assert store.path(blob).read_bytes() == data
    assert files_below(store.directory) == [str(store.path(blob))]
    assert stat.S_IMODE(store.path(blob).stat().st_mode) == 0o400


def test_a_file_without_bytes_needs_no_transfer(store: Store) -> None:
    assert store.has(EMPTY)
    assert store.path(EMPTY).read_bytes() == b""


@pytest.mark.parametrize("sizes", [[], [0], [5], [PIECE], [PIECE - 1, 2], [3, 2 * PIECE, 0, PIECE, 7]])
def test_bytes_of_ones_own_become_the_same_blob_however_they_are_divided(store: Store, sizes: list[int]) -> None:
    parts = [os.urandom(size) for size in sizes]
    blob = store.put([memoryview(part) for part in parts])
    store.keep(blob)
    assert blob == blob_with(b"".join(parts))
    assert store.has(blob)
    assert store.path(blob).read_bytes() == b"".join(parts)


def test_another_store_in_the_same_directory_has_the_same_blobs(store: Store) -> None:
    blob = received(store, b"hello")
    assert Store(store.directory).has(blob)
    assert Store(store.directory).source(blob).read_piece(0) == b"hello"


def test_a_blob_that_somebody_wrote_to_is_here_no_more(store: Store) -> None:
    blob = received(store, b"hello")
    os.chmod(store.path(blob), 0o600)
    store.path(blob).write_bytes(b"hellp")
    os.utime(store.path(blob), ns=(1, 1))
    assert not store.has(blob)
    assert store.has(received(store, b"hello")), "and comes anew"


def test_a_digest_that_is_named_with_another_size_removes_nothing(store: Store) -> None:
    blob = received(store, b"hello")
    assert not store.has(Blob(blob.digest, 4))
    assert not Store(store.directory).has(Blob(blob.digest, 4))
    assert store.has(blob)


def test_a_large_blob_is_gone_at_once_though_its_bytes_take_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SLOW", 0)
    monkeypatch.setattr(store_module, "UNUSED_BYTES", 0)
    blob = received(store, b"hello")
    store.hold("a", [blob])
    store.release("a")
    assert not store.has(blob)
    for thread in threading.enumerate():
        if thread.name == "discoro removes a blob":
            thread.join()
    assert files_below(store.directory) == []


def test_a_blob_that_somebody_removed_is_here_no_more(store: Store) -> None:
    blob = received(store, b"hello")
    store.path(blob).unlink()
    assert not store.has(blob)


# ------------------------------------------------------------------ transfers that broke


def test_a_transfer_that_broke_goes_on_with_what_is_missing(store: Store) -> None:
    data = os.urandom(3 * PIECE)
    blob = blob_with(data)
    receiving = store.begin(blob)
    receiving.came(2, store.write(blob, 2, [data[2 * PIECE :]]))
    store.pause(receiving)
    again = store.begin(blob)
    assert [again.next_piece() for _ in range(3)] == [0, 1, None]
    assert again.received == PIECE


def test_a_part_that_is_gone_is_begun_anew(store: Store) -> None:
    blob = blob_with(bytes(2 * PIECE))
    receiving = store.begin(blob)
    receiving.came(0, store.write(blob, 0, [bytes(PIECE)]))
    store.pause(receiving)
    (store.directory / f"{blob.digest}.part").unlink()
    assert store.begin(blob).received == 0


def test_transfers_that_broke_do_not_add_up(store: Store) -> None:
    for number in range(3 * BROKEN):
        data = bytes([number]) * (PIECE + 1)
        blob = blob_with(data)
        receiving = store.begin(blob)
        if number % 2:
            receiving.came(0, store.write(blob, 0, [data[:PIECE]]))
        store.pause(receiving)
    assert len(files_below(store.directory)) == BROKEN, "and of what never began nothing is kept"


def test_a_transfer_that_broke_keeps_no_room_for_what_did_not_come(store: Store) -> None:
    data = os.urandom(5 * PIECE)
    blob = blob_with(data)
    receiving = store.begin(blob)
    store.take_room(blob)
    receiving.came(1, store.write(blob, 1, [data[PIECE : 2 * PIECE]]))
    store.pause(receiving)
    (aside,) = files_below(store.directory)
    assert os.stat(aside).st_size == 2 * PIECE
    store.finish(receive(store, blob, data))
    assert store.path(blob).read_bytes() == data


# ------------------------------------------------------------------ who refers to what


def test_what_nobody_refers_to_goes_when_there_is_too_much_of_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, held, late, last = (received(store, bytes([number]) * 10) for number in range(4))
    monkeypatch.setattr(store_module, "UNUSED_BYTES", 25)
    store.hold("a", [held, last])
    assert store.has(old), "used again"
    store.hold("b", [late])
    store.release("b")
    assert [store.has(blob) for blob in (old, held, late, last)] == [True] * 4, "20 bytes are unused, which is not too much"
    store.release("a")
    assert [store.has(blob) for blob in (old, held, late, last)] == [False, False, True, True]


def test_who_refers_to_other_blobs_refers_to_no_earlier_ones(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "UNUSED_BYTES", 0)
    blobs = [blob_with(bytes([number])) for number in range(3)]
    store.hold("a", blobs[:2])
    for number in range(3):
        store.hold("b", [blobs[number]])
        received(store, bytes([number]))
    store.release("b")
    store.hold_only("a", blobs[1:])
    assert [store.has(blob) for blob in blobs] == [False, True, False]


def test_what_two_refer_to_stays_until_both_have_released_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "UNUSED_BYTES", 0)
    blob = blob_with(b"hello")
    store.hold("a", [blob])
    store.hold("b", [blob])
    received(store, b"hello")
    store.release("a")
    assert store.has(blob)
    store.release("nobody")
    assert store.has(blob)
    store.release("b")
    assert not store.has(blob)
    assert files_below(store.directory) == []


# ------------------------------------------------------------------ what is given away


def test_what_only_one_may_use_is_given_to_it(store: Store) -> None:
    blob = received(store, b"hello")
    store.hold("a", [blob])
    given = store.give(blob, "a")
    assert given is not None and given.read_bytes() == b"hello" and given.parent == store.directory
    assert not store.has(blob) and store.give(blob, "a") is None


def test_what_another_needs_too_is_not_given_away(store: Store) -> None:
    blob = received(store, b"hello")
    store.hold("a", [blob])
    store.hold("b", [blob])
    assert store.give(blob, "a") is None and store.has(blob)
    store.release("b")
    assert store.give(blob, "a") is not None


def test_what_stands_in_a_place_already_is_not_given_to_another(store: Store, tmp_path: Path) -> None:
    blob = received(store, b"hello")
    (tmp_path / "place").hardlink_to(store.path(blob))
    assert store.give(blob, "a") is None and store.has(blob)


def test_some_of_what_is_held_can_be_released(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "UNUSED_BYTES", 0)
    one, other = received(store, b"one"), received(store, b"other")
    assert not store.has(one), "nobody held it"
    store.hold("a", [one, other])
    one, other = received(store, b"one"), received(store, b"other")
    store.release("a", [one])
    assert [store.is_held(one), store.is_held(other)] == [False, True] == [store.has(one), store.has(other)]
    store.release("a", [other])
    assert not store.has(other)


def test_nothing_is_kept_for_later_on_a_disk_that_turned_out_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    one, two = received(store, b"one"), blob_with(b"two")
    store.hold("a", [one, two])
    store.begin(two)
    with monkeypatch.context() as patch, pytest.raises(TransferFailed, match="No space left on device"):
        patch.setattr(store_module, "_write_all", full)
        store.write(two, 0, [b"two"])
    store.release("a")
    assert not store.has(one) and files_below(store.directory) == []
    received(store, b"one")
    assert store.has(one), "there is room again"


def test_what_is_put_and_what_comes_from_elsewhere_meanwhile_do_not_meet(tmp_path: Path) -> None:
    store, data = Store(tmp_path), os.urandom(2 * PIECE)
    blob = store.put([data])
    store.begin(blob)
    store.take_room(blob)
    store.keep(blob)
    assert store.path(blob).read_bytes() == data
