"""Plain values to bytes and back: msgpack, every length and count held against a limit before anything is made of it.

Never: knows a frame or a verb; what the values mean is for `messages` and those above it. `pack` and `unpack` are each other's
mirror; `unpack_rows` reads long lists item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import msgpack

from discoro.errors import ProtocolError

KIB = 1 << 10
MAX_HEADER = 257 * KIB  # a batch whose bodies are all in the header, and what stands around it
INLINE_BODY = 32 * KIB  # below, copying into the header is cheaper than a ZeroMQ part of its own
MAX_TEXT = 64 * KIB  # error texts: a long traceback fits
MAX_ITEMS = 8192  # of one array in a header; the longest are 1024 sizes, 1000 nodes, 2000 references in MAX_FIELDS
MAX_KEYS = 32  # of one map in a header: arguments have names
MAX_NESTED = 32 * KIB  # arrays and maps in one header: each costs more than its byte; a batch full of nodes has 19,000


def nbytes(part: bytes | bytearray | memoryview) -> int:
    """The bytes of a part."""
    return len(part) if isinstance(part, bytes) else memoryview(part).nbytes


def pack(value: Any) -> bytes:
    """msgpack bytes of plain values; TypeError where a value is not plain."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes | bytearray | memoryview, limit: int = MAX_HEADER) -> Any:
    """Plain values from at most `limit` bytes of msgpack; ProtocolError for anything else, however nested or announced.

    What is announced is held against the limits before it is made: a few bytes can announce gigabytes.
    """
    if nbytes(data) > limit:
        raise ProtocolError(f"a header of {nbytes(data)} bytes; at most {limit}")
    counting = {} if nbytes(data) <= MAX_NESTED else _counting()
    try:
        return msgpack.unpackb(data, **_LIMITS, **counting)
    except (ValueError, msgpack.UnpackException) as error:
        raise _not_msgpack(error) from None


def unpack_rows(data: bytes | bytearray | memoryview, limit: int, rows: int, fields: int) -> Iterator[list[Any]]:
    """The items of a long list, one by one, each a list of that many texts, numbers and the like; else ProtocolError.

    One by one, since a list of 32 MiB could else make a hundred times as much of itself before anybody looks at it.
    """
    if nbytes(data) > limit:
        raise ProtocolError(f"a list of {nbytes(data)} bytes; at most {limit}")
    unpacker = msgpack.Unpacker(max_buffer_size=limit, **{**_LIMITS, "max_array_len": 0, "max_map_len": 0})
    try:
        unpacker.feed(data)
        count = unpacker.read_array_header()
        if count > rows:
            raise ProtocolError(f"not a list of at most {rows} items, but of {count}")
        for _ in range(count):
            if unpacker.read_array_header() != fields:
                raise ProtocolError(f"not a list of items that have {fields} fields each")
            yield [unpacker.unpack() for _ in range(fields)]
    except (ValueError, msgpack.UnpackException) as error:
        raise _not_msgpack(error) from None
    if unpacker.tell() != nbytes(data):
        raise ProtocolError("a list with something behind it")


def _not_msgpack(error: Exception) -> ProtocolError:
    return ProtocolError(f"not a discoro header: {type(error).__name__} {error}"[:200])


def _counting() -> dict[str, Callable[[Any], Any]]:
    """What ends the unpacking of a header after MAX_NESTED arrays and maps."""
    left = iter(range(MAX_NESTED))

    def count(nested: Any) -> Any:
        if next(left, None) is None:
            raise ValueError(f"more than {MAX_NESTED} arrays and maps")
        return nested

    return {"list_hook": count, "object_hook": count}


def _no_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension {code}")


_LIMITS = {
    "raw": False,  # texts are UTF-8
    "strict_map_key": True,
    "ext_hook": _no_extension,
    "max_ext_len": 0,  # timestamps do not come to the hook
    **{"max_str_len": MAX_TEXT, "max_bin_len": INLINE_BODY, "max_array_len": MAX_ITEMS, "max_map_len": MAX_KEYS},
}
