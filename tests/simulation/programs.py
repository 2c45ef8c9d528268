"""Programs for several processes, as plain values: what coroutines do to each other, and what befalls their processes.

A program is drawn by hypothesis, played by `stage.py`, judged by `promises.py`. Coroutines and processes are named by their
index; a step for a coroutine that has ended, or a process that is down, does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st

PACKED, VIEW, PIECES = 0, 70_000, 600_000  # bytes: in the header of a frame, as a part of its own, as three pieces
PEER_TIMEOUT = 15.0  # seconds, the default


class Send(NamedTuple):
    by: int
    to: int
    count: int = 1
    size: int = PACKED
    old: bool = False  # to the first coroutine that carried the index, not to the latest


class Deliver(NamedTuple):
    by: int
    to: int
    timeout: float | None = None
    size: int = PACKED
    old: bool = False


class Ask(NamedTuple):
    """Whoever receives it replies with its tag."""

    by: int
    to: int
    timeout: float | None = None
    size: int = PACKED
    old: bool = False


class Receive(NamedTuple):
    by: int
    count: int = 1
    timeout: float | None = None


class Monitor(NamedTuple):
    by: int
    of: int
    old: bool = False


class Result(NamedTuple):
    by: int
    of: int
    timeout: float | None = None
    aside: bool = False  # in a task of its own: the coroutine goes on
    old: bool = False


class Alive(NamedTuple):
    by: int
    of: int
    old: bool = False


class Terminate(NamedTuple):
    by: int
    who: int
    old: bool = False


class Finish(NamedTuple):
    by: int
    raises: bool = False


class Stall(NamedTuple):
    by: int
    seconds: float


class Start(NamedTuple):
    """Another coroutine carries the index from now on; the one before goes on."""

    index: int


class Restart(NamedTuple):
    """A process ends ("closed", "killed", "unplugged"), and another begins in its place some seconds later."""

    process: int
    how: str
    pause: float = 0.0


class Cut(NamedTuple):
    a: int
    b: int


class Part(NamedTuple):
    """Nothing passes between the two for so long."""

    a: int
    b: int
    seconds: float


class Wait(NamedTuple):
    seconds: float = 0.0


class Link(NamedTuple):
    """The two die together."""

    by: int
    other: int
    old: bool = False


class OneWay(NamedTuple):
    """Nothing passes from `a` to `b` for so long, while what b says still reaches a."""

    a: int
    b: int
    seconds: float


class Double(NamedTuple):
    """Numbered frames between the two arrive twice for so long: TCP does not do that, and numbers are there for what does."""

    a: int
    b: int
    seconds: float


class Omit(NamedTuple):
    """Numbered frames between the two are left out for so long, as TCP does not, and a man in the middle may."""

    a: int
    b: int
    seconds: float


class Freeze(NamedTuple):
    """The loop of a process stands still for so long; its connections stand, and others can connect."""

    process: int
    seconds: float


class Firewall(NamedTuple):
    """Nobody can dial the process for so long: dials are dropped, or rejected."""

    process: int
    seconds: float
    rejects: bool = False


class SetClock(NamedTuple):
    """The clock on the wall is set by so many seconds, forward or back."""

    seconds: float


class Setup(NamedTuple):
    """Set a computation up at the server of a process; each coroutine has one computation."""

    by: int
    process: int
    timeout: float | None = None


class Run(NamedTuple):
    """Create a coroutine of it there: a visitor, which stays until it is ended."""

    by: int
    process: int


class Close(NamedTuple):
    by: int
    process: int


class Put(NamedTuple):
    """Into the queue of a process."""

    by: int
    process: int
    timeout: float | None = None


class Get(NamedTuple):
    by: int
    process: int
    timeout: float | None = None


class Subscribe(NamedTuple):
    """To the channel of a process, or no longer."""

    by: int
    process: int
    holds: bool = True


class Publish(NamedTuple):
    """Over the channel of a process, and wait until every subscriber has it."""

    by: int
    process: int
    timeout: float | None = None


class Register(NamedTuple):
    by: int
    name: int


class Locate(NamedTuple):
    by: int
    name: int
    timeout: float


class File(NamedTuple):
    """Send a file of so many bytes to a process."""

    by: int
    process: int
    size: int
    timeout: float | None = None


Talk = Send | Deliver | Ask | Receive
Shared = Put | Get | Subscribe | Publish | Register | Locate | File
Other = Monitor | Link | Result | Alive | Terminate | Finish | Stall | Start | Setup | Run | Close | Shared
Step = Talk | Other | Restart | Cut | Part | OneWay | Double | Omit | Freeze | Firewall | SetClock | Wait


class Program(NamedTuple):
    """`latency` is of every second direction, in seconds; `apart`: each process is on a machine of its own; `slow_dials`: each
    connection takes up to so many seconds until it stands.

    Births and sessions are random numbers; `seed` decides them, for some things depend on whose is greater.
    """

    processes: int
    coroutines: int
    steps: tuple[Step, ...]
    latency: float = 0.0
    apart: bool = False
    seed: int = 0
    slow_dials: float = 0.0

    def __repr__(self) -> str:
        steps = "".join(f"\n        {step!r}," for step in self.steps)
        size = f"processes={self.processes}, coroutines={self.coroutines}"
        kind = f"{size}, latency={self.latency}, apart={self.apart}, slow_dials={self.slow_dials}"
        return f"Program({kind}, seed={self.seed}, steps=(" + steps + "\n    ))"


@st.composite
def programs(draw: Callable[..., Any], scenes: int = 8) -> Program:
    """Programs of at most so many scenes: some steps at once, and then some time."""
    processes, coroutines = draw(st.integers(2, 4)), draw(st.integers(2, 6))
    latency = draw(st.sampled_from([0.0, 0.02, 0.3]))
    wait = st.builds(Wait, st.sampled_from([0.0, 0.01, 0.5, 4.0, 20.0]))
    scene = st.tuples(st.lists(step(processes, coroutines), min_size=1, max_size=8), wait)
    some = st.one_of(scene, scene.map(_same), _flood(coroutines), _haul(coroutines))
    drawn = draw(st.lists(some, min_size=1, max_size=scenes))
    steps = tuple(each for steps, pause in drawn for each in (*steps, pause))
    return Program(processes, coroutines, steps, latency, draw(st.booleans()), draw(st.integers(0, 9)))


def step(processes: int, coroutines: int) -> st.SearchStrategy[Step]:
    """One step; what keeps things going is drawn more often than what ends them."""
    talk, wait = st.one_of(_talk(coroutines)), st.one_of(_waiting(coroutines))
    return st.one_of(talk, talk.map(_same), wait, st.one_of(_ends(coroutines)), _faults(processes))


def _same(drawn: Any) -> Any:
    """one_of takes the same strategy only once, but not one that is mapped."""
    return drawn


def _flood(coroutines: int) -> st.SearchStrategy[Any]:
    """More than a mailbox takes, and then, when its senders know, some more: these wait at them."""
    who = st.integers(0, coroutines - 1)
    return st.builds(
        lambda by, to, first, more, ends: ([Send(by, to, first), Wait(1.0), Send(by, to, more), *ends], Wait(0.5)),
        *(who, who, st.integers(4, 7), st.integers(1, 5)),
        st.sampled_from([[], [Finish(0)], [Finish(1)], [Finish(1, True)]]),
    )


def _haul(coroutines: int) -> st.SearchStrategy[Any]:
    """More large messages than a window holds, and what must not overtake them."""
    who = st.integers(0, coroutines - 1)
    return st.builds(
        lambda by, to, count, watched, ends: (
            [*watched, Send(by, to, count, PIECES), Send(by, to), *([Finish(by)] if ends else [])],
            Wait(0.5),
        ),
        *(who, who, st.integers(2, 4), st.lists(st.builds(Monitor, who, who), max_size=1), st.booleans()),
    )


def _talk(coroutines: int) -> list[st.SearchStrategy[Any]]:
    who, old = st.integers(0, coroutines - 1), st.sampled_from([False, False, False, True])
    size, timeout = st.sampled_from([PACKED, PACKED, PACKED, VIEW, PIECES]), st.sampled_from([None, 0.01, 2.0])
    return [
        st.builds(Send, who, who, st.integers(1, 6), size, old),
        st.builds(Deliver, who, who, timeout, size, old),
        st.builds(Ask, who, who, timeout, size, old),
        st.builds(Receive, who, st.integers(1, 8), st.sampled_from([0.0, 1.0, None])),
    ]


def _waiting(coroutines: int) -> list[st.SearchStrategy[Any]]:
    who, old = st.integers(0, coroutines - 1), st.sampled_from([False, False, False, True])
    return [
        st.builds(Monitor, who, who, old),
        st.builds(Link, who, who, old),
        st.builds(Result, who, who, st.sampled_from([None, 2.0, 30.0]), st.booleans(), old),
        st.builds(Alive, who, who, old),
    ]


def _ends(coroutines: int) -> list[st.SearchStrategy[Any]]:
    who, old = st.integers(0, coroutines - 1), st.sampled_from([False, False, False, True])
    return [
        st.builds(Terminate, who, who, old),
        st.builds(Finish, who, st.booleans()),
        st.builds(Stall, who, st.sampled_from([0.5, 10.0, 1000.0])),
        st.builds(Start, who),
    ]


def _faults(processes: int) -> st.SearchStrategy[Any]:
    pair = st.lists(st.integers(0, processes - 1), min_size=2, max_size=2, unique=True)
    seconds = st.sampled_from([0.5, 4.0, 12.0, 25.0])
    ends = st.sampled_from(["closed", "killed", "unplugged"])
    return st.one_of(
        pair.map(lambda two: Cut(*two)),
        st.builds(lambda two, seconds: Part(*two, seconds), pair, seconds),
        st.builds(Restart, st.integers(0, processes - 1), ends, st.sampled_from([0.0, 1.0, 25.0])),
    )
