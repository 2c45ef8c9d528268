"""Near-valid inputs: what somebody sends who knows the grammar and breaks it. Deterministic for a given `Random`.

An input is a list of parts, as a frame has them. `mutated` changes a part as the msgpack values that it holds, also those that
lie in a bin of it (a greeting in a hello), or as bytes, or changes which parts there are. `joined` and `apart` turn an input
into one string of bytes and back, for what knows only those.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack

MAX_U64 = (1 << 64) - 1
LEAVES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 32, 33, 127, 128, 255, 256, 511, 512, 513, 1023, 1024, 1025),
    *(-1, -(1 << 63), (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, MAX_U64, 1 << 20, 1 << 30, (1 << 30) + 1),
    *(0.0, -0.5, 1e308, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        "a",
        "discoro",
        "node",
        "é",
        "\0",
        "\x1b[31m",
        "../a",
        "a/b",
        "a" * 255,
        "a" * 256,
        "f" * 16,
        "f" * 64,
        "127.0.0.1:1",
    ),
    *(b"", b"a", b"\x90", b"\xff" * 16, b"x" * 64, b"x" * 65, [], {}, [[]], [0, []], {"a": 1}, {1: 2}),
]
LARGE: list[Any] = [
    *("x" * 65536, "x" * 65537, "é" * 32769, bytes(32768), bytes(32769), [0] * 1025, [0] * 8192, [0] * 8193, [[]] * 8000),
    *([[[]] * 8000] * 8, {str(i): i for i in range(33)}, [[1, []]] * 1001, [["a", "f" * 64, 1, False]] * 500),
]
ODD = (b"\xdd\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\x90", b"\xc1", b"\xff")  # announced, and not there; none at all
RARELY = 500  # one in so many new values is a large one: they take long


def joined(parts: list[bytes]) -> bytes:
    """An input as bytes."""
    packed: bytes = msgpack.packb(parts, use_bin_type=True)
    return packed


def apart(data: bytes) -> list[bytes]:
    """The input that these bytes stand for: any bytes are one."""
    try:
        found = msgpack.unpackb(data, raw=False, max_ext_len=0)
    except Exception:  # whatever it is: then the bytes are a part themselves
        return [data]
    if isinstance(found, list) and found and all(isinstance(each, bytes) for each in found):
        return found
    return [data]


def mutated(parts: list[bytes], random: Random) -> list[bytes]:
    """One to four changes."""
    parts = list(parts)
    for _ in range(random.choice((1, 1, 2, 4))):
        kind = random.randrange(16)
        if kind == 0 or not parts:
            _change_parts(parts, random)
            continue
        at = 0 if random.random() < 0.6 else random.randrange(len(parts))
        parts[at] = _bytes(parts[at], random) if kind < 4 else values(parts[at], random)
    return parts


def bloated(parts: list[bytes], random: Random) -> list[bytes]:
    """One value replaced by a large one."""
    at = random.randrange(len(parts))
    try:
        value = msgpack.unpackb(parts[at], raw=False, strict_map_key=False)
        changed: bytes = msgpack.packb(_with_large(value, random), use_bin_type=True)
    except Exception:  # it holds none, or none that can be packed again
        changed = parts[at] * random.choice((2, 100))
    return [*parts[:at], changed[: 1 << 20], *parts[at + 1 :]]


def _with_large(value: Any, random: Random) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(list(value))
        return {**value, key: _with_large(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        return [*value[:at], _with_large(value[at], random), *value[at + 1 :]]
    return random.choice(LARGE)


def _change_parts(parts: list[bytes], random: Random) -> None:
    at = random.randrange(len(parts) + 1)
    match random.randrange(4):
        case 0:
            parts.insert(at, random.choice((b"", b"\x90", b"x" * 64, *parts)))
        case 1 if len(parts) > 1:
            del parts[min(at, len(parts) - 1)]
        case 2 if len(parts) > 1:
            random.shuffle(parts)
        case _:
            parts += [b""] * random.choice((1, 2, 3, 1023, 1024))


def _bytes(part: bytes, random: Random) -> bytes:
    """The part with bytes changed, cut out, put in or doubled."""
    at = random.randrange(len(part) + 1)
    until = min(len(part), at + random.choice((1, 1, 2, 4, 8, 100)))
    match random.randrange(5):
        case 0:
            return part[:at] + random.randbytes(until - at) + part[until:]
        case 1:
            return part[:at] + part[until:]
        case 2:
            return part[:at] + random.choice(ODD) + part[at:]
        case 3:
            return part[:at] + part[at:until] * 2 + part[until:]
    return part[:at]


def values(part: bytes, random: Random) -> bytes:
    """The part as the msgpack values in it, one of them changed; as bytes where it holds none."""
    try:
        value = msgpack.unpackb(part, raw=False, strict_map_key=False)
        packed: bytes = msgpack.packb(changed(value, random), use_bin_type=True)
    except Exception:  # it holds none, or none that can be packed again
        return _bytes(part, random)
    return packed


def changed(value: Any, random: Random) -> Any:
    """The value with one of the values in it replaced, left out, doubled, put elsewhere, or put deeper."""
    if isinstance(value, list | dict) and value and random.random() < 0.85:
        return _inside(value, random)
    if isinstance(value, bytes) and len(value) > 4 and random.random() < 0.7:
        return values(value, random)
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.4:
        return value + random.choice((-1, 1, 256, -256, 1 << 32))
    if isinstance(value, str | bytes) and value and random.random() < 0.4:
        at = random.randrange(len(value))
        return value[:at] + value[at + 1 :] if random.random() < 0.5 else value * random.choice((2, 3, 40))
    if random.random() < 0.1:
        for _ in range(random.choice((1, 2, 7, 8, 9, 100))):
            value = [value]
        return value
    return random.choice(LARGE if random.randrange(RARELY) == 0 else LEAVES)


def _inside(value: Any, random: Random) -> Any:
    if isinstance(value, dict):
        key = random.choice(list(value))
        kind = random.randrange(6)
        rest = {k: v for k, v in value.items() if k != key}
        if kind == 0:
            return rest
        if kind == 1:
            return {**rest, random.choice(("", "a", "id", "x" * 256, 1)): value[key]}
        return {**value, key: changed(value[key], random)}
    value = list(value)
    at = random.randrange(len(value))
    match random.randrange(10):
        case 0:
            del value[at]
        case 1:
            value.insert(at, value[at] if random.random() < 0.5 else random.choice(LEAVES))
        case 2:
            value[at] = value[random.randrange(len(value))]
        case _:
            value[at] = changed(value[at], random)
    return value
