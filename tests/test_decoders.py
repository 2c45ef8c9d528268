"""Whatever bytes come to a decoder, it gives a value or the one error that it names, and takes little for it.

Any bytes, and near-valid ones (mutations.py), which find more. PROPERTY_EXAMPLES=N in the environment tries that many for each
decoder, at random; without it the same ones are tried each time. tests/fuzz has the same decoders, and goes on for hours.
"""

from __future__ import annotations

import logging
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discoro import messages, packing
from discoro.errors import ProtocolError
from discoro.files import unpacked_files
from tests.support import asking
from tests.support.decoders import ALL, Decoder, Parts, guard
from tests.support.mutations import apart, joined, mutated

MORE = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
MUTATIONS, BYTES = MORE or 20, MORE or 20
CHAINS = 10  # mutations of mutations that one example tries: drawing an example takes longer than reading it
LIMIT = 2.0  # seconds for what takes milliseconds: whoever is slow in earnest takes minutes

every_decoder = pytest.mark.parametrize("decoder", ALL, ids=[each.name for each in ALL])
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


def some(count: int) -> settings:
    return settings(max_examples=count, derandomize=not MORE, deadline=None, print_blob=True, suppress_health_check=CHECKS)


def read(decoder: Decoder, parts: Parts) -> None:
    """The decoder takes it, or raises its own error; anything else fails the test."""
    began = time.process_time()
    try:
        value = decoder.decode(list(parts))
    except decoder.errors as error:
        assert str(error), "an error that says nothing"
    else:
        decoder.holds(value)
    assert time.process_time() - began < LIMIT, f"{decoder.name} took {time.process_time() - began:.1f} s"


@pytest.fixture(autouse=True, scope="module")
def guarded() -> Iterator[None]:
    logging.disable()  # whoever breaks the protocol is named in the log
    with guard():
        yield
    logging.disable(logging.NOTSET)
    asking.close()


@every_decoder
def test_what_is_valid_is_taken(decoder: Decoder) -> None:
    for seed in decoder.seeds:
        decoder.holds(decoder.decode(list(seed)))
        assert apart(joined(seed)) == seed


@every_decoder
@some(BYTES)
@given(parts=st.lists(st.binary(max_size=100), min_size=0, max_size=4))
def test_any_bytes_are_a_value_or_the_named_error(decoder: Decoder, parts: Parts) -> None:
    read(decoder, parts)


@every_decoder
@some(MUTATIONS)
@given(seed=st.integers(0, 1 << 64))
def test_what_is_nearly_valid_is_a_value_or_the_named_error(decoder: Decoder, seed: int) -> None:
    random = Random(seed)
    for _ in range(CHAINS):
        parts = random.choice(decoder.seeds)
        for _ in range(random.choice((1, 1, 2, 4))):
            parts = mutated(parts, random)
            read(decoder, parts)


# ------------------------------------------------------------------ few bytes that ask for much

KIB, MIB = 1 << 10, 1 << 20
GREED = 40 * MIB  # bytes at most: twice the longest input here; without limits some of them took more than 1 GiB
EMPTY_LISTS = b"\xdc\x1f\xff" + b"\x90" * 8191  # 8 KiB, which would be half a MiB
NESTED = b"\xdc\x00\x1e" + EMPTY_LISTS * 30
HEADER = b"\x95\x04\x01\x01\x00\x91\x96\x02\x01\x00\xa1v\x81\xa1a" + NESTED + b"\x00"  # of a frame with one request
GREEDY: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "lists in a header": (messages.decode, [HEADER]),
    "a list that is only announced": (packing.unpack, b"\xdd\x0f\xff\xff\xff"),
    "a map that is only announced": (packing.unpack, b"\xdf\x0f\xff\xff\xff"),
    "a bin that is only announced": (packing.unpack, b"\xc6\x7f\xff\xff\xff" + b"x" * 1000),
    "nested in itself": (packing.unpack, b"\x91" * 200 * KIB),
    "a frame of somebody unknown": (messages.decode_first, [NESTED]),
    "parts without bytes": (messages.decode, [packing.pack([4, 1, 1, 0, []]), *[b""] * 16_000]),
    "files that are lists of lists": (unpacked_files, b"\xdd\x00\x01\x00\x00" + EMPTY_LISTS * 2000),
    "more files than there may be": (unpacked_files, b"\xdd\x7f\xff\xff\xff" + b"\x94" * MIB),
}


@pytest.mark.parametrize(("read", "data"), GREEDY.values(), ids=GREEDY.keys())
def test_what_asks_for_much_gets_little(read: Callable[[Any], Any], data: Any) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            read(data)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < GREED, f"{taken / MIB:.0f} MiB"
