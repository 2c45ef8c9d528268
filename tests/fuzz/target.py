"""One target in a process of its own: libFuzzer makes inputs, guided by which lines of discoro they reach.

Called by `__main__`. It writes what it has seen as JSON to the file named in the plan, and keeps inputs that are a finding: an
exception that the decoder does not name, or a time over the limit. Around each input of libFuzzer's it tries some neighbours, a
byte or two apart, which are cheap. Times are those of the processor: a machine with other work makes anything slow. What
waits instead is ended by libFuzzer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import atheris

with atheris.instrument_imports(include=["discoro"]):
    from tests.support import decoders
from tests.support.mutations import apart, bloated, joined, mutated

SLOW = 0.050  # seconds of the processor: no input takes longer
AGAIN = 5  # times a slow one is tried again; the fastest counts, for caches and the garbage of others have their share
NEIGHBOURS = 15  # of one input
MEMORY = 4 << 30  # bytes of address space: what would take more raises MemoryError, here as on a small machine
LARGEST = 24_000  # bytes of one input of libFuzzer's, which keeps those that reach something new, and large ones are slow
BLOAT = 0.02  # of them are tried once more, with something large in them
LOOK_EVERY = 1024  # inputs between looks at the clock and the memory
AS_BYTES = 0.15  # of the mutations are libFuzzer's own
MOST_FINDINGS = 20  # each place once; then it ends
GROUPS = {
    "frames": ("frames",),
    "first": ("first",),
    "pieces": ("pieces",),
    "links": ("links",),
    "requests": ("requests",),
    "lists": ("files", "argument-release", "argument-take", "argument-setup", "answer-offered"),
    "payloads": ("payloads", "raised", "outcomes", "errors"),
}
_TAKEN = {name for names in GROUPS.values() for name in names}
GROUPS["values"] = tuple(each.name for each in decoders.ALL if each.name not in _TAKEN)


class Target:
    """The decoders of one group; the first byte of an input says which of them reads the rest."""

    def __init__(self, plan: dict[str, Any]) -> None:
        by_name = {each.name: each for each in decoders.ALL}
        self.decoders = [by_name[name] for name in GROUPS[plan["target"]]]
        self._inputs, self._seconds = plan["inputs"], plan["seconds"]
        self._report, self._directory = Path(plan["report"]), Path(plan["directory"])
        self._count = 0
        self._slowest = 0.0
        self._random = Random(plan["seed"]).random
        self._places: dict[str, str] = {}  # where something went wrong, and the input that showed it
        self._began = time.perf_counter()
        self._half_memory = 0

    def seeds(self, directory: Path) -> None:
        for index, decoder in enumerate(self.decoders):
            for number, seed in enumerate(decoder.seeds):
                (directory / f"{decoder.name}-{number}").write_bytes(bytes([index]) + joined(seed))

    def mutate(self, data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if not data or random.random() < AS_BYTES:
            return bytes(atheris.Mutate(data, most))
        index = random.randrange(len(self.decoders)) if random.random() < 0.02 else data[0] % len(self.decoders)
        parts = apart(data[1:]) if random.random() < 0.9 else random.choice(self.decoders[index].seeds)
        changed = bytes([index]) + joined(mutated(parts, random))
        return changed if len(changed) <= most else bytes(atheris.Mutate(data, most))

    def __call__(self, data: bytes) -> None:
        index = data[0] % len(self.decoders) if data else 0
        parts = apart(data[1:])
        self._read(index, parts, self.decoders[index].holds)
        if self._random() < BLOAT:
            self._read(index, bloated(parts, Random(self._random())))
        for _ in range(NEIGHBOURS):
            at = int(self._random() * len(parts))
            if parts[at]:
                self._read(index, [*parts[:at], self._neighbour(parts[at]), *parts[at + 1 :]])

    def _neighbour(self, part: bytes) -> bytes:
        changed, random = bytearray(part), self._random
        changed[int(random() * len(part))] = int(random() * 256)
        if random() < 0.5:
            changed[int(random() * len(part))] ^= 1 << int(random() * 8)
        return bytes(changed)

    def _read(self, index: int, parts: list[bytes], holds: Callable[[Any], None] | None = None) -> None:
        self._count += 1
        decoder = self.decoders[index]
        took, began = 0.0, time.thread_time()
        try:
            value = decoder.decode(parts)
            took = time.thread_time() - began
            if holds is not None:
                holds(value)
        except decoder.errors:
            pass
        except BaseException as error:
            self._found(_place(error), index, parts, "".join(traceback.format_exception(error)))
        took = took or time.thread_time() - began
        if took > self._slowest:
            self._look_at_slow(index, parts, took)
        if self._count % LOOK_EVERY == 0 or self._count >= self._inputs:
            self._look()

    def _look_at_slow(self, index: int, parts: list[bytes], took: float) -> None:
        """Again, alone."""
        decoder = self.decoders[index]
        for _ in range(AGAIN):
            began = time.thread_time()
            with contextlib.suppress(BaseException):  # what it raises was looked at
                decoder.decode(parts)
            took = min(took, time.thread_time() - began)
        self._slowest = max(self._slowest, took)
        if took > SLOW:
            self._found(f"slow {decoder.name}", index, parts, f"{1000 * took:.0f} ms, the fastest of {AGAIN + 1}")

    def _found(self, place: str, index: int, parts: list[bytes], text: str) -> None:
        if place in self._places:
            return
        data = bytes([index]) + joined(parts)
        path = self._directory / f"finding-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{place}\n{text}")
        self._places[place] = str(path)
        if len(self._places) >= MOST_FINDINGS:
            self._end()

    def _look(self) -> None:
        seconds = time.perf_counter() - self._began
        if not self._half_memory and (2 * self._count >= self._inputs or 2 * seconds >= self._seconds):
            self._half_memory = _memory()
        if self._count >= self._inputs or seconds >= self._seconds:
            self._end()

    def _end(self) -> None:
        memory = _memory()
        told = {
            "inputs": self._count,
            "seconds": time.perf_counter() - self._began,
            "slowest": self._slowest,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "growth": memory - (self._half_memory or memory),
            "findings": self._places,
        }
        self._report.write_text(json.dumps(told))
        os._exit(0)  # libFuzzer knows no other end


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"


def _memory() -> int:
    """Bytes that are really in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(plan: dict[str, Any]) -> None:
    logging.disable()  # whoever breaks the protocol is named in the log
    target = Target(plan)
    corpus = Path(plan["corpus"])
    target.seeds(corpus)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    arguments = [f"-seed={plan['seed']}", f"-max_len={LARGEST}", "-len_control=0", "-timeout=30", "-rss_limit_mb=0"]
    arguments += [f"-artifact_prefix={plan['directory']}/", "-verbosity=0", "-detect_leaks=0", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], target, custom_mutator=target.mutate)
    with decoders.guard():
        atheris.Fuzz()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
