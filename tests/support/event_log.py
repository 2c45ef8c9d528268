"""What real processes say happened, as lines of JSON in files; and what they were promised, proved from these files afterwards.

    log = EventLog(path)                      # in each process
    log.add("received", who, sender, number)
    verdict = judge(read(directory))          # when all is over
    assert not verdict.broken, verdict

Each line is a list: what it is, the seconds of the monotonic clock, which all processes of a machine share, and what stands
below at `SHAPES`. It is written at once, by one system call: what a process wrote is there although it was killed. A coroutine
is [birth of its process, its id]. Of messages and their order it is `promises.py` that judges; here stands what only the faults
of a real machine bring: who was stopped or killed, by whom it had to be known, and when.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.simulation import promises
from tests.simulation.promises import Counted, History, Home, Lives, Lost, Received, Sent, Tag, Who

Line = Sequence[Any]

SHAPES = {
    "sent": "by to number",  # before `send`: what came without having been sent would be seen
    "received": "by sender number",
    "lives": "who",  # it has read its mailbox to the end, after all faults
    "lost": "birth other",  # a process sees the end of its link with another
    "counted": "birth messages",  # it says so many messages and operations were lost
    "monitors": "by of",  # `monitor` has returned
    "noticed": "by of reason",
    "waits": "by of verb",
    "answered": "by of verb what",
    "died": "birth how",  # by whoever killed it, before the signal; how: "killed", "left"
    "ended": "who how",  # a coroutine returned, or its process is about to leave
    "apart": "births until",  # a fault kept these processes apart since this line, until then
    "stopped": "birth until",
    "born": "birth pid client sleeper",  # a worker of that client, and a process that it started
    "left": "pid what",  # a process, a file, ... that should be gone
    "over": "",  # the end of the scenario
}


SLOWEST = "slowest notice of a kill, ms"  # the one figure that is no count


class EventLog:
    """The file of one process."""

    def __init__(self, path: Path | str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def add(self, kind: str, *what: Any) -> None:
        assert len(what) == len(SHAPES[kind].split()), (kind, what)
        os.write(self._file, json.dumps([kind, time.monotonic(), *what]).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(directory: Path) -> list[Line]:
    """All lines of all files of a directory, in the order in which they were written."""
    lines = [json.loads(line) for path in sorted(directory.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    return sorted(lines, key=lambda line: float(line[1]))


class Limits(NamedTuple):
    """Seconds within which who waits has to be told."""

    crash: float = 5.0  # a killed process on a live machine: promised within 1 s, or 4 s from afar; machines may be busy
    loss: float = 15.0 + 4.0 + 5.0  # peer_timeout, the heartbeat that notices the break, and the news


class Verdict(NamedTuple):
    figures: dict[str, int]
    broken: list[str]

    def __str__(self) -> str:
        said = ", ".join(f"{what} {count:,}" for what, count in self.figures.items())
        return "\n  ".join([said, *self.broken[:20]])


def judge(lines: Iterable[Line], limits: Limits | None = None) -> Verdict:
    """The figures, and every promise that does not hold, in words."""
    whole = list(lines)
    history, limits = to_history(whole), limits or Limits()
    doubts: dict[str, list[str]] = {
        "duplicated": list(promises.once(history)),
        "out of order": [*promises.order(history), *promises.notice_comes_last(history)],
        "lost while both lived": [*promises.everything_comes(history), *promises.no_gap(history)],
        "lost and not counted": list(promises.loss_is_counted(history)),
        "strays": [*promises.its_own(history), *unsent(history)],
        "notices missing": list(notices_missing(whole, limits)),
        "notices doubled or false": [*notices_doubled(whole), *notices_false(whole)],
        "left waiting": list(left_waiting(whole, limits)),
        "left over": [f"{what}: {pid}" for _, _, pid, what in of(whole, "left")],
    }
    figures = {"sent": len(history.of(Sent)), "received": len(history.of(Received)), "monitors": len(of(whole, "monitors"))}
    figures |= {SLOWEST: round(1000 * max(kills_told(whole), default=0.0)), "links lost": len(of(whole, "lost"))}
    figures["counted as lost"] = sum(messages for *_, messages in of(whole, "counted"))
    figures |= {what: len(said) for what, said in doubts.items()}
    return Verdict(figures, [f"{what}: {text}" for what, said in doubts.items() for text in said])


def of(lines: Iterable[Line], kind: str) -> list[Line]:
    return [line for line in lines if line[0] == kind]


def to_history(lines: Sequence[Line]) -> History:
    """The lines as `promises.py` reads them; a process is known by its birth, and never lives twice."""
    events: list[Any] = []
    losses: Counter[tuple[int, int]] = Counter()
    for kind, at, *what in lines:
        match kind:
            case "sent":
                by, to, number = what
                events.append(Sent(at, Tag(_who(by), _who(to), number), losses[by[0], to[0]]))
            case "received":
                by, sender, number = what
                events.append(Received(at, _who(by), Tag(_who(sender), _who(by), number)))
            case "lives":
                events.append(Lives(at, _who(what[0]), True))
            case "lost":
                losses[what[0], what[1]] += 1
                events.append(Lost(at, Home(what[0], 0), Home(what[1], 0)))
            case "counted":
                events.append(Counted(at, Home(what[0], 0), what[1]))
            case "died":
                events.append(promises.Died(at, Home(what[0], 0), what[1]))
            case "noticed":
                events.append(promises.Noticed(at, _who(what[0]), _who(what[1]), what[2]))
    return History(events)


def _who(told: Sequence[int]) -> Who:
    return Who(told[0], 0, told[1])


def unsent(history: History) -> Iterator[str]:
    """What came was sent."""
    known = {each.tag for each in history.of(Sent)}
    for each in history.of(Received):
        if each.tag not in known:
            yield f"{each.tag} came, and nobody sent it"


def notices_missing(lines: Sequence[Line], limits: Limits) -> Iterator[str]:
    """Who monitors something that ended gets its notice in time, unless it ends itself before."""
    heard = {(tuple(by), tuple(whom)): at for _, at, by, whom, _ in reversed(of(lines, "noticed"))}
    for _, at, by, whom in of(lines, "monitors"):
        due = _due(lines, by, whom, at, limits)
        got = heard.get((tuple(by), tuple(whom)))
        if due is not None and (got is None or got > due):
            yield f"{by} monitors {whom}, and was told {'never' if got is None else f'only at {got:.2f}'}, due at {due:.2f}"


def left_waiting(lines: Sequence[Line], limits: Limits) -> Iterator[str]:
    """Whoever waits for something that ended is answered in time."""
    answers: dict[Any, list[float]] = {}
    for _, at, by, whom, verb, _ in of(lines, "answered"):
        answers.setdefault((tuple(by), tuple(whom), verb), []).append(at)
    for _, at, by, whom, verb in of(lines, "waits"):
        due = _due(lines, by, whom, at, limits)
        later = [each for each in answers.get((tuple(by), tuple(whom), verb), []) if each >= at]
        if due is not None and not any(each <= due for each in later):
            told = f"only at {min(later):.2f}" if later else "never"
            yield f"{by} waits since {at:.2f} for {verb} of {whom}, and was answered {told}, due at {due:.2f}"


def _due(lines: Sequence[Line], by: Sequence[int], whom: Sequence[int], since: float, limits: Limits) -> float | None:
    """When one has to know of the other's end; None: the other lives, or who waits does not live so long itself."""
    ends = [at for _, at, birth, _ in of(lines, "died") if birth == whom[0]]
    ends += [at for _, at, who, _ in of(lines, "ended") if list(who) == list(whom)]
    if not ends:
        return None
    begin = max(min(ends), since)
    hindered = [until for _, at, births, until in of(lines, "apart") if at <= begin + limits.crash and by[0] in births]
    stopped = [until for _, at, birth, until in of(lines, "stopped") if birth == by[0] and at <= begin + limits.crash]
    due = max([begin + limits.crash, *(min(until, begin + limits.loss) + limits.crash for until in hindered)])
    due = max([due, *(until + limits.crash for until in stopped)])
    mine = [at for _, at, birth, _ in of(lines, "died") if birth == by[0]]
    mine += [at for _, at, who, _ in of(lines, "ended") if list(who) == list(by)]
    return None if min(mine, default=due) < due else due


def kills_told(lines: Sequence[Line]) -> Iterator[float]:
    """After how many seconds who monitored somebody that was killed was told of it."""
    killed = {birth: at for _, at, birth, _ in of(lines, "died")}
    monitored = {(tuple(by), tuple(whom)): at for _, at, by, whom in of(lines, "monitors")}
    for _, at, by, whom, _ in of(lines, "noticed"):
        if killed.get(whom[0], at) < at:
            yield at - max(killed[whom[0]], monitored.get((tuple(by), tuple(whom)), 0.0))


def notices_doubled(lines: Sequence[Line]) -> Iterator[str]:
    """One call to monitor, one notice."""
    calls = Counter((tuple(by), tuple(whom)) for _, _, by, whom in of(lines, "monitors"))
    notices = Counter((tuple(by), tuple(whom)) for _, _, by, whom, _ in of(lines, "noticed"))
    for (by, whom), count in notices.items():
        if count > max(1, calls[by, whom]):  # 1: the notice may come while `monitor` is on its way back
            yield f"{by} was told {count} times of {whom}, and asked {calls[by, whom]} times"


def notices_false(lines: Sequence[Line]) -> Iterator[str]:
    """Nobody is said to be gone who lives within reach."""
    for _, at, by, whom, reason in of(lines, "noticed"):
        dead = any(birth == whom[0] and died <= at for _, died, birth, _ in of(lines, "died"))
        ended = any(list(who) == list(whom) and end <= at for _, end, who, _ in of(lines, "ended"))
        apart = any(whom[0] in births and began <= at for _, began, births, _ in of(lines, "apart"))
        still = any(birth in (by[0], whom[0]) and began <= at for _, began, birth, _ in of(lines, "stopped"))
        explained = dead or ended or ((apart or still) and reason == "peer lost")
        if not explained:
            yield f"{by} was told that {whom} ended ({reason}), which it had not"
