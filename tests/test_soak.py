"""What the soak commands say of what they measured."""

from __future__ import annotations

import os
import random

import pytest

from tests.soak.faults import Played, figures
from tests.soak.load import GROWTH_KIB, Sample, flatness, tell
from tests.support.event_log import SLOWEST, judge
from tests.support.killing import LONG, STOPPED, Fault, draw

STEADY = [Sample(40_000 + number % 3, 20 + number % 2) for number in range(30)]
GROWING = [Sample(40_000 + 500 * number, 20) for number in range(30)]
LEAKING = [Sample(40_000, 20 + number) for number in range(30)]
COUNTS = {"runs": {"done": {"runs": 10}, "errors": {"WorkerLost": 2}}}


def test_a_process_that_fills_its_caches_first_is_flat() -> None:
    filling = [Sample(min(40_000, 4_000 * number), 20) for number in range(30)]
    assert flatness(filling) == (0, 0)
    assert tell({"ada": STEADY, "bob": filling}, COUNTS, {"cut": 3})


def test_growth_of_memory_or_descriptors_and_who_was_left_waiting_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert flatness(GROWING)[0] > GROWTH_KIB
    assert not tell({"ada": STEADY, "bob": GROWING}, COUNTS, {})
    assert "bob        GREW" in capsys.readouterr().out
    assert not tell({"ada": LEAKING}, COUNTS, {})
    assert not tell({"ada": STEADY}, {"runs": {"done": {}, "errors": {"LeftWaiting": 1}}}, {})


def test_a_sample_is_of_the_process() -> None:
    sample = Sample.of(os.getpid())
    assert sample.kib > 5_000 and sample.files >= 3


def test_a_seed_draws_the_same_faults_and_all_kinds_of_them() -> None:
    first, again = ([draw(randoms, 0.3) for _ in range(100)] for randoms in (random.Random("1/0"), random.Random("1/0")))
    assert first == again
    longest = max(fault.stopped for fault in first)
    assert LONG[0] <= longest <= LONG[1] and any(STOPPED[0] <= fault.stopped <= STOPPED[1] for fault in first)
    assert all(draw(random.Random(seed), 0.0).stopped <= STOPPED[1] for seed in range(100)), "none is long unless asked for"
    assert {(fault.who, bool(fault.stopped), fault.streaming) for fault in first} == {
        (who, stopped, streaming)
        for who in ("node", "worker", "right")
        for stopped in (True, False)
        for streaming in (True, False)
    }


def test_figures_are_sums_but_the_slowest_notice() -> None:
    fault = Fault("node", 0.5, 0.0, streaming=True)
    slow = judge([["monitors", 0.0, [1, 7], [2, 9]], ["died", 1.0, 2, "killed"], ["noticed", 1.5, [1, 7], [2, 9], "peer lost"]])
    sums = figures([Played(0, 0, fault, slow), Played(0, 1, fault, slow)])
    assert sums["rounds"] == sums["node killed"] == sums["monitors"] == 2
    assert sums[SLOWEST] == 500 and sums["notices missing"] == 0
