"""Programs drawn by a seed: the same number gives the same program, on any machine.

Most are small, for those are fast and their failures are read easily; some have many processes. Faults are drawn less often
than what coroutines do, and in bursts: what breaks things is two at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tests.simulation import programs as step
from tests.simulation.programs import PACKED, PIECES, VIEW, Program, Step

WAITS = (0.0, 0.0, 0.01, 0.5, 0.5, 4.0, 20.0)  # seconds between scenes
OUTAGES = (0.5, 2.0, 4.0, 12.0, 25.0)
SIZES = (PACKED,) * 6 + (VIEW, PIECES)
FEW, SOME, MANY = (2, 5), (6, 12), (20, 50)  # processes


def program_of(seed: int, processes: int | None = None) -> Program:
    """The program with that number; `processes`: with so many."""
    chance = Random(seed)
    least, most = chance.choices((FEW, SOME, MANY), (920, 75, 5))[0]
    count = processes or chance.randint(least, most)
    draw = _Draw(chance, count, coroutines=chance.randint(count, max(count, min(2 * count, 60))))
    scenes = [[*draw.scene(), step.Wait(chance.choice(WAITS))] for _ in range(chance.randint(2, 8))]
    for at, scene in _shared(Random(f"shared {seed}"), count, draw.coroutines, len(scenes)):
        scenes.insert(at, scene)
    return Program(
        processes=count,
        coroutines=draw.coroutines,
        steps=tuple(each for scene in scenes for each in scene),
        latency=chance.choice((0.0, 0.0, 0.02, 0.3)),
        apart=chance.random() < 0.5,
        seed=seed,
        slow_dials=chance.choice((0.0, 0.0, 0.05, 0.8)),
    )


def _shared(chance: Random, processes: int, coroutines: int, scenes: int) -> Iterator[tuple[int, list[Step]]]:
    """In four programs of ten, scenes around a queue, a channel, names or files, and where to put them."""
    if chance.random() < 0.6:
        return
    draw = _Draw(chance, processes, coroutines)
    for _ in range(chance.randint(1, 4)):
        yield chance.randint(0, scenes), [*draw.shared(), step.Wait(chance.choice(WAITS))]


class _Draw:
    def __init__(self, chance: Random, processes: int, coroutines: int) -> None:
        self.coroutines = coroutines
        self._chance = chance
        self._processes = processes

    def scene(self) -> list[Step]:
        """Some steps at once."""
        chance, some = self._chance, 2 + self._processes // 2
        kind = chance.random()
        if kind < 0.15:
            return self._flood()
        if kind < 0.25:
            return self._haul()
        if kind < 0.37:
            return self._visit()
        if kind < 0.42:
            return self._garbled()
        if kind < 0.46:
            return self._unplugged()
        if kind < 0.58:
            return [self._fault() for _ in range(chance.randint(1, min(some, 8)))]
        return [self._step() for _ in range(chance.randint(1, 3 * some))]

    def _step(self) -> Step:
        kinds: list[tuple[int, Callable[[], Step]]] = [
            (40, self._talk),
            (18, self._wait_for),
            (16, self._compute),
            (12, self._end),
            (14, self._fault),
        ]
        weights = [weight for weight, _ in kinds]
        return self._chance.choices([make for _, make in kinds], weights)[0]()

    def _who(self) -> int:
        return self._chance.randrange(self.coroutines)

    def _where(self) -> int:
        return self._chance.randrange(self._processes)

    def _old(self) -> bool:
        return self._chance.random() < 0.2

    def _talk(self) -> Step:
        chance, by, to = self._chance, self._who(), self._who()
        size, timeout = chance.choice(SIZES), chance.choice((None, 0.01, 2.0))
        match chance.randrange(4):
            case 0:
                return step.Send(by, to, chance.randint(1, 6), size, self._old())
            case 1:
                return step.Deliver(by, to, timeout, size, self._old())
            case 2:
                return step.Ask(by, to, timeout, size, self._old())
        return step.Receive(by, chance.randint(1, 8), chance.choice((0.0, 1.0, None)))

    def _wait_for(self) -> Step:
        chance, by, of, old = self._chance, self._who(), self._who(), self._old()
        match chance.randrange(5):
            case 0:
                return step.Link(by, of, old)
            case 1:
                return step.Result(by, of, chance.choice((None, 2.0, 30.0)), chance.random() < 0.5, old)
            case 2:
                return step.Alive(by, of, old)
        return step.Monitor(by, of, old)

    def _compute(self) -> Step:
        by, there = self._who(), self._where()
        match self._chance.randrange(6):
            case 0 | 1:
                return step.Setup(by, there, self._chance.choice((None, None, 2.0)))
            case 2:
                return step.Close(by, there)
        return step.Run(by, there)

    def _end(self) -> Step:
        chance, by = self._chance, self._who()
        match chance.randrange(4):
            case 0:
                return step.Terminate(by, self._who(), self._old())
            case 1:
                return step.Finish(by, chance.random() < 0.5)
            case 2:
                return step.Stall(by, chance.choice((0.5, 10.0, 1000.0)))
        return step.Start(by)

    def _fault(self) -> Step:
        chance = self._chance
        a, b = chance.sample(range(self._processes), 2)
        seconds = chance.choice(OUTAGES)
        match chance.randrange(13):
            case 0 | 1 | 2:
                return step.Cut(a, b)
            case 3 | 4:
                return step.Part(a, b, seconds)
            case 5:
                return step.OneWay(a, b, seconds)
            case 6 | 7:
                return step.Freeze(a, chance.choice((0.5, 3.0, 12.0, 30.0)))
            case 8:
                return step.Firewall(a, seconds)
            case 9:
                return step.SetClock(chance.choice((-86_400.0, -10.0, 10.0, 86_400.0)))
            case 10:
                return chance.choice((step.Double, step.Omit))(a, b, seconds)
        how = chance.choice(("closed", "killed", "unplugged"))
        return step.Restart(a, how, chance.choice((0.0, 1.0, 25.0, 70.0)))

    def _visit(self) -> list[Step]:
        """A computation with some visitors, and perhaps a fault in the middle."""
        chance, by, there = self._chance, self._who(), self._where()
        steps: list[Step] = [step.Setup(by, there, chance.choice((None, 2.0)))]
        steps += [step.Run(by, there) for _ in range(chance.randint(1, 3))]
        if chance.random() < 0.5:
            steps.insert(chance.randrange(len(steps) + 1), self._fault())
        if chance.random() < 0.5:
            steps.append(step.Wait(chance.choice(WAITS)))
        match chance.randrange(4):
            case 0 | 1:
                steps.append(step.Close(by, there))
            case 2:
                steps.append(self._fault())
        return steps

    def shared(self) -> list[Step]:
        """Several at one queue, at one channel, after one name, or files for one process; and perhaps a fault."""
        chance, there, count = self._chance, self._where(), self._chance.randint(2, 8)
        timeout = chance.choice((None, None, 0.5, 5.0))
        kinds: list[Callable[[], Step]] = [
            lambda: chance.choice((step.Put, step.Get))(self._who(), there, timeout),
            lambda: (
                step.Subscribe(self._who(), there, chance.random() < 0.8)
                if chance.random() < 0.4
                else step.Publish(self._who(), there, timeout)
            ),
            lambda: step.Register(self._who(), there) if chance.random() < 0.3 else step.Locate(self._who(), there, 5.0),
            lambda: step.File(self._who(), there, chance.choice((0, 100, 300_000, 3_000_000)), timeout),
        ]
        make = chance.choice(kinds)
        steps = [make() for _ in range(count)]
        if chance.random() < 0.5:
            steps.insert(chance.randrange(count), self._fault())
        return steps

    def _flood(self) -> list[Step]:
        """More than a mailbox takes, and then, when its senders know, some more."""
        chance, by, to = self._chance, self._who(), self._who()
        a, b = by % self._processes, to % self._processes
        ends: list[list[Step]] = [[], [step.Finish(by)], [step.Finish(by, True)], [step.Finish(to)], [step.Receive(to, 2, 1.0)]]
        ends += [[step.Part(a, b, 25.0)]] if a != b else []
        watched: list[Step] = [step.Monitor(to, by)] if chance.random() < 0.5 else []
        first, more = step.Send(by, to, chance.randint(4, 7)), step.Send(by, to, chance.randint(1, 5))
        return [*watched, first, step.Wait(1.0), more, *chance.choice(ends)]

    def _garbled(self) -> list[Step]:
        """Messages between two processes whose frames arrive twice, or not at all."""
        chance, by, to = self._chance, self._who(), self._who()
        a, b = by % self._processes, to % self._processes
        garbles = chance.choice((step.Double, step.Omit))
        garbled: list[Step] = [garbles(a, b, chance.choice(OUTAGES))] if a != b else []
        return [*garbled, step.Send(by, to, chance.randint(1, 4), chance.choice(SIZES)), step.Deliver(to, by, 2.0)]

    def _unplugged(self) -> list[Step]:
        """Somebody waits for a coroutine of a process whose machine is gone for long, and which nobody tells of."""
        by, of = self._who(), self._who()
        waits: list[Step] = [step.Result(by, of, None, True), step.Wait(0.5)]
        return [*waits, step.Restart(of % self._processes, "unplugged", 70.0)]

    def _haul(self) -> list[Step]:
        """More large messages than a window holds, and what must not overtake them."""
        chance, by, to = self._chance, self._who(), self._who()
        watched: list[Step] = [step.Monitor(self._who(), self._who())] if chance.random() < 0.5 else []
        ends: list[Step] = [step.Finish(by)] if chance.random() < 0.5 else []
        return [*watched, step.Send(by, to, chance.randint(2, 4), PIECES), step.Send(by, to), *ends]
