"""Memory for large bytes: as large as asked for, taken when written to, and bytes without a copy."""

from __future__ import annotations

import array
import gc
import os
import re
import weakref
from pathlib import Path

import pytest

from discoro.memory import HALVED, LARGE, as_bytes, copied, room

SIZES = [0, 1, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE + 7]


def resident() -> int:
    """KiB of memory that this process has from the system."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def test_no_room_is_an_error() -> None:
    for size in (1 << 62, -1):
        with pytest.raises((MemoryError, SystemError, ValueError)):
            room(size)


@pytest.mark.parametrize("size", SIZES)
def test_a_room_can_be_filled_to_its_last_byte(size: int) -> None:
    made = room(size)
    assert len(made) == size
    made[:] = b"x" * size
    assert bytes(made) == b"x" * size
    with pytest.raises((ValueError, IndexError)):
        memoryview(made)[size] = 1


def test_a_room_costs_no_memory_until_it_is_written_to() -> None:
    before = resident()
    made = memoryview(room(1 << 30))
    assert resident() - before < 16 * 1024
    made[: 64 << 20] = bytes(64 << 20)
    assert 64 * 1024 <= resident() - before < 128 * 1024 + 16 * 1024  # with the zeros


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_a_room(size: int) -> None:
    made = room(size)
    made[:] = bytes([7]) * size
    for part in (made, memoryview(made), memoryview(made).toreadonly()):
        assert type(as_bytes(part)) is bytes and as_bytes(part) == bytes([7]) * size
    assert size < LARGE or as_bytes(made) is as_bytes(memoryview(made).toreadonly()), "copied"


def test_bytes_of_a_slice_are_no_more_than_the_slice() -> None:
    made = room(LARGE)
    made[:] = bytes(range(256)) * (LARGE // 256)
    assert as_bytes(memoryview(made)[1:4]) == b"\1\2\3"
    assert as_bytes(memoryview(made)[:0]) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_anything_else_are_a_copy_unless_bytes_already(kind: type) -> None:
    whole = bytes(2 * LARGE)
    assert as_bytes(kind(whole)) == whole
    assert as_bytes(whole) is whole


def test_bytes_outlive_the_views_and_views_outlive_the_room() -> None:
    made = room(LARGE)
    made[:] = bytes([9]) * LARGE
    view, whole = memoryview(made)[LARGE // 2 :], as_bytes(made)
    del made
    gc.collect()
    assert view[-1] == 9
    del view
    gc.collect()
    assert whole == bytes([9]) * LARGE


def test_a_room_goes_with_its_last_view() -> None:
    made = memoryview(room(LARGE))
    gone = weakref.ref(made.obj)
    view = made[1:]
    del made
    assert gone() is not None
    del view
    assert gone() is None


@pytest.mark.parametrize("size", [0, 1, HALVED - 1, HALVED, HALVED + 1, 2 * HALVED + 7])
def test_a_copy_is_whole_and_its_own(size: int) -> None:
    original = bytearray(os.urandom(size))
    copy, before = copied(memoryview(original)), bytes(original)
    original[:] = bytes(size)
    assert copy == before
    assert memoryview(copy).readonly


def test_a_copy_of_what_is_no_bytes_or_has_gaps() -> None:
    numbers = array.array("d", range(HALVED // 8))
    assert copied(memoryview(numbers)) == numbers.tobytes()
    assert copied(memoryview(bytes(HALVED))) == bytes(HALVED)
    assert copied(memoryview(bytearray(range(256)) * (HALVED // 64))[::2]) == (bytearray(range(256)) * (HALVED // 64))[::2]
