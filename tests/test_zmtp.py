"""How others begin, and what follows for us: every prefix of every greeting, and bytes at random."""

from __future__ import annotations

import random

import pytest

from discoro.connections import ANOTHER_KEY, Ended
from discoro.zmtp import GREETING_BYTES, OPEN_HERE, OPEN_THERE, OPENING, UNCLEAR, Heard, heard, judged


def greeting(mechanism: bytes, version: bytes = b"\x03\x01") -> bytes:
    return b"\xff" + bytes(8) + b"\x7f" + version + mechanism.ljust(20, b"\0") + bytes(32)


CURVE, NULL = greeting(b"CURVE"), greeting(b"NULL")


def test_the_opening_is_how_a_greeting_begins() -> None:
    assert CURVE.startswith(OPENING) and len(CURVE) == GREETING_BYTES


@pytest.mark.parametrize(
    ("begin", "what"),
    [
        (b"", Heard.NOTHING),
        (CURVE, Heard.CURVE),
        (NULL, Heard.NULL),
        (greeting(b"CURVE", b"\x03\x00"), Heard.CURVE),
        (greeting(b"NULL", b"\x04\x00"), Heard.NULL),
        (CURVE + b"more", Heard.CURVE),
        (greeting(b"PLAIN"), Heard.OTHER),
        (greeting(b""), Heard.OTHER),
        (greeting(b"CURVEBALL"), Heard.OTHER),
        (greeting(b"", b"\x01\x05")[:12], Heard.OTHER),
        (b"HTTP/1.1 400 Bad Request\r\n", Heard.FOREIGN),
        (b"\x16\x03\x01", Heard.FOREIGN),
        (b"\xff" + bytes(9), Heard.FOREIGN),
    ],
)
def test_who_begins_so(begin: bytes, what: Heard) -> None:
    assert heard(begin) is what


@pytest.mark.parametrize("whole", [CURVE, NULL, greeting(b"PLAIN")])
def test_a_part_of_a_greeting_tells_nothing_yet(whole: bytes) -> None:
    assert {heard(whole[:length]) for length in range(1, GREETING_BYTES)} == {Heard.PART}


@pytest.mark.parametrize(
    ("begin", "is_open", "denied", "verdict"),
    [
        (CURVE, False, True, (Ended.DENIED, f"it has {ANOTHER_KEY}")),
        (CURVE, False, False, None),
        (CURVE, True, True, (Ended.DENIED, OPEN_HERE)),
        (CURVE, True, False, (Ended.DENIED, OPEN_HERE)),
        (NULL, False, True, (Ended.DENIED, OPEN_THERE)),
        (NULL, False, False, (Ended.DENIED, OPEN_THERE)),
        (NULL, True, True, (Ended.DENIED, UNCLEAR)),
        (NULL, True, False, None),
        (CURVE[:20], False, True, (Ended.DENIED, UNCLEAR)),
        (CURVE[:20], False, False, None),
    ],
)
def test_what_follows_for_a_side_with_a_key_and_for_one_without(
    begin: bytes, is_open: bool, denied: bool, verdict: tuple[Ended, str] | None
) -> None:
    assert judged(begin, is_open, denied) == verdict


@pytest.mark.parametrize(
    ("begin", "shown"),
    [
        (b"SSH-2.0-x\r\nmore", ": 'SSH-2.0-x'"),
        (b"A" * 64, f": '{'A' * 40}'"),
        (b"\x1b[31mred\n", ""),
        (b"caf\xe9\n", ""),
        (b"\0", ""),
        (b"\n", ""),
    ],
)
def test_of_something_else_only_plain_text_is_shown(begin: bytes, shown: str) -> None:
    assert judged(begin, False, True) == (Ended.SILENT, f"something else than discoro answers there{shown}")


def test_any_bytes_give_a_verdict_that_can_be_printed() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(5000):
        begin = bytearray(draw.choice([CURVE, NULL, draw.randbytes(GREETING_BYTES)])[: draw.randrange(1, GREETING_BYTES + 1)])
        for _ in range(draw.randrange(3)):
            begin[draw.randrange(len(begin))] = draw.randrange(256)
        verdict = judged(bytes(begin), draw.random() < 0.5, True)
        assert verdict is not None and verdict[1].isprintable()
