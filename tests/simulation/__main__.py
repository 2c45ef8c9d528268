"""Runs any number of seeds on all processors, and prints what broke:

    python -m tests.simulation --seeds 100000
    python -m tests.simulation --seed 4711 --trace

The exit status is 1 where a seed found something. Each such seed is printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tests.simulation.world import simulate

BATCH = 25  # seeds that one process takes at a time
PROGRESS = 10.0  # seconds between two lines
TEXTS = 3  # violations printed of one seed, and as many characters of each as below
TEXT = 400


class Found(NamedTuple):
    """What came of one batch."""

    seeds: int
    figures: Counter[str]
    failures: list[tuple[int, list[str]]]


def batch(first: int, count: int, processes: int | None) -> Found:
    """Some seeds, one after another; in a process of the pool."""
    logging.disable(logging.CRITICAL)
    figures: Counter[str] = Counter()
    failures = []
    for seed in range(first, first + count):
        report = simulate(seed, processes)
        figures += report.figures
        if report.violations:
            failures.append((seed, report.violations))
    return Found(count, figures, failures)


def run(first: int, seeds: int, jobs: int, processes: int | None) -> int:
    """All of them; the number of those that found something."""
    begun = told = time.monotonic()
    done, failed, figures = 0, 0, Counter[str]()
    with ProcessPoolExecutor(jobs) as pool:
        batches = [(start, min(BATCH, first + seeds - start), processes) for start in range(first, first + seeds, BATCH)]
        for found in pool.map(batch, *zip(*batches, strict=True)):
            done, figures = done + found.seeds, figures + found.figures
            for seed, violations in found.failures:
                failed += 1
                show(seed, violations)
            if time.monotonic() - told > PROGRESS:
                told = time.monotonic()
                print(f"{done} of {seeds} seeds, {failed} failed, {done / (told - begun):.0f} a second", flush=True)
    seconds = time.monotonic() - begun
    print(f"{done} seeds from {first} in {seconds:.0f} s: {failed} failed")
    print("  " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(figures.items())))
    return failed


def show(seed: int, violations: list[str]) -> None:
    """One seed that found something."""
    print(f"seed {seed}: python -m tests.simulation --seed {seed} --trace")
    for each in violations[:TEXTS]:
        print(f"    {each[:TEXT]}")
    if len(violations) > TEXTS:
        print(f"    and {len(violations) - TEXTS} more", flush=True)


def trace(seed: int, processes: int | None, events: bool) -> int:
    """One seed, with its program and, where asked for, all that happened."""
    report = simulate(seed, processes)
    print(report.program)
    for event in report.events if events else ():
        print(f"{event.at:10.4f}  {event}")
    print(f"trace {report.trace_digest[:16]}, {len(report.events)} events, {len(report.violations)} violations")
    for each in report.violations:
        print(f"    {each}")
    return len(report.violations)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that run them (one a processor)")
    parser.add_argument("--processes", type=int, help="simulate so many processes, 2 to 50, in place of what the seed draws")
    parser.add_argument("--seed", type=int, help="run this one alone, and print its program")
    parser.add_argument("--trace", action="store_true", help="with --seed: print all that happened")
    options = parser.parse_args()
    if options.seed is not None:
        return min(1, trace(options.seed, options.processes, options.trace))
    return min(1, run(options.first, options.seeds, options.jobs, options.processes))


if __name__ == "__main__":
    sys.exit(main())
