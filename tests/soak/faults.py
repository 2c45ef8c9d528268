"""Rounds of `tests/support/killing.py`, several at a time; a line for each that broke a promise, and the figures of all."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.support.event_log import SLOWEST, Verdict
from tests.support.killing import Arena, Fault

AT_A_TIME = 3  # arenas: most of a round is waiting
LONG = 0.3  # of those stopped, in the soak: each takes some 20 s more


class Played(NamedTuple):
    arena: int
    number: int
    fault: Fault
    verdict: Verdict


def arena(directory: Path, seed: int, which: int, rounds: int, long: float) -> Iterator[Played]:
    """All rounds of one arena; the same seed draws the same faults."""
    own = directory / f"arena-{which}"
    own.mkdir()
    with Arena(own, f"{seed}/{which}", long) as ring:
        for number in range(rounds):
            yield Played(which, number, *ring.round(number))


def play(directory: Path, seed: int, rounds: int, at_a_time: int = AT_A_TIME, long: float = 0.0) -> list[Played]:
    """So many rounds, spread over the arenas. Prints a line for each. `long`: the part of stops that last past peer_timeout."""

    def one(which: int) -> list[Played]:
        done = []
        for played in arena(directory, seed, which, len(range(which, rounds, at_a_time)), long):
            done.append(played)
            print(f"{which}.{played.number}: {played.fault}: {'BROKEN' if played.verdict.broken else 'kept'}", flush=True)
            for text in played.verdict.broken:
                print(f"    {text}", flush=True)
        return done

    with ThreadPoolExecutor(at_a_time) as pool:
        return [played for several in pool.map(one, range(min(at_a_time, rounds))) for played in several]


def figures(played: list[Played]) -> dict[str, int]:
    """The sums over all rounds."""
    total: Counter[str] = Counter({"rounds": len(played)})
    for each in played:
        total[f"{each.fault.who} {'stopped' if each.fault.stopped else 'killed'}"] += 1
        slowest = max(total[SLOWEST], each.verdict.figures[SLOWEST])
        total.update(each.verdict.figures)
        total[SLOWEST] = slowest
    return dict(total)


def run(rounds: int, seed: int, output: Path | None) -> int:
    """The command: 0 where every promise held in every round."""
    print(f"seed {seed}; {rounds} rounds, {AT_A_TIME} at a time", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="discoro-faults-") as scratch:
        played = play(Path(scratch), seed, rounds, long=LONG)
    sums = figures(played)
    print(", ".join(f"{what} {count:,}" for what, count in sums.items()) + f"; {time.monotonic() - begun:.0f} s")
    if output is not None:
        output.write_text(json.dumps({"seed": seed, "figures": sums}, indent=1))
    return 1 if any(each.verdict.broken for each in played) else 0
