"""One simulation: a seed goes in, what was broken comes out.

The shipped mesh, coroutines, servers and links of 2 to 50 processes run in this one, on a loop whose clock is moved by hand;
only the transport, the search for others and the clock are replaced. The same seed gives the same trace.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NamedTuple

from tests.simulation.drawing import program_of
from tests.simulation.programs import Program
from tests.simulation.promises import Event, broken
from tests.simulation.stage import play
from tests.support.moved_clock import Deadlock


class Report(NamedTuple):
    """What came of one program. `figures` counts events by their kind; `trace_digest` stands for all of them."""

    seed: int
    program: Program
    events: list[Event]
    violations: list[str]

    @property
    def figures(self) -> Counter[str]:
        return Counter(type(event).__name__ for event in self.events)

    @property
    def trace_digest(self) -> str:
        return hashlib.sha256("\n".join(map(repr, self.events)).encode()).hexdigest()


def simulate(seed: int, processes: int | None = None) -> Report:
    """Play the program of that seed, with so many processes where that is given, and judge what happened."""
    program = program_of(seed, processes)
    try:
        history = play(program)
    except (Deadlock, TimeoutError) as error:  # not even the stage came to its end
        return Report(seed, program, [], [f"nobody_waits_for_ever: the program did not end: {error!r}"])
    return Report(seed, program, history.events, broken(history))
