"""Memory that large bytes are put together in, and handed over as `bytes` without a copy.

A copy of 64 MiB only to have `bytes` costs as much as their way through the network library, and the memory once more. Keeps
no memory, and looks at none. How it plays together: `room` is what the Assembler of messages.py fills with pieces as they come;
arrays and bytearrays are built upon it as it is, and payload.py opens a message of bytes with `as_bytes`.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

HALVED = 16 << 20  # bytes from which on two threads make a copy
LARGE = 1 << 20  # bytes; below, a copy into memory that was used before is cheap

# Documented of CPython: without a string, the first makes bytes for its caller to fill before anybody else sees them.
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes, _new_bytes.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.argtypes, _address_of.restype = (ctypes.py_object,), ctypes.c_void_p


class Unkept(tuple[Any, ...]):
    """Stands for the parts of an operation that found no memory: none; `size`: how many bytes they had."""

    size: int

    def __new__(cls, size: int) -> Unkept:
        unkept = super().__new__(cls)
        unkept.size = size
        return unkept

    def __str__(self) -> str:
        return f"{self.size} bytes, for which no memory is left: send less at a time, or see --max-memory of the node"


def room(size: int) -> bytearray | memoryview:
    """Writable memory of `size` bytes, to be filled as a whole before anybody reads it: whatever was there still is.

    From LARGE on it takes none from the system until it is written to. Raises MemoryError.
    """
    if size < LARGE:
        return bytearray(size)
    whole: bytes = _new_bytes(None, size)
    array = (ctypes.c_ubyte * size).from_address(_address_of(whole))
    array.whole = whole  # type: ignore[attr-defined]  # which then lives as long as any view of it
    return memoryview(array).cast("B")


def copied(view: memoryview) -> bytes | memoryview:
    """A copy of these bytes, to be read only.

    Most of the time for a large one goes to fresh memory, page by page: two threads do it in half of that (200 MB: 36 ms, not
    68; four are no faster).
    """
    if view.nbytes < HALVED or view.readonly or not view.contiguous:
        return bytes(view)
    copy, half = room(view.nbytes), view.nbytes // 2
    to, source = _address(copy), _address(view.cast("B"))
    other = threading.Thread(target=ctypes.memmove, args=(to, source, half))
    other.start()
    ctypes.memmove(to + half, source + half, view.nbytes - half)  # which lets go of Python's lock
    other.join()
    return memoryview(copy).toreadonly()


def _address(memory: bytearray | memoryview) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))


def as_bytes(part: bytes | bytearray | memoryview) -> bytes:
    """The same bytes. What `room` made is not copied: nobody may write to it any more."""
    if isinstance(part, memoryview) and isinstance(part.obj, ctypes.Array):
        whole: bytes = getattr(part.obj, "whole", b"")
        if len(whole) == part.nbytes:
            return whole
    return bytes(part)
