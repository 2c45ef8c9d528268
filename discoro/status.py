"""What a node says of itself and its workers: values, to plain ones and back.

A node fills them in (workers.py), `discoro.status` gives them to whoever asks, computation.py puts them into its errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from discoro import packing
from discoro.busy import BUSY, STOPPED, told
from discoro.errors import ProtocolError
from discoro.messages import Part

MAX_NAMES = 10  # computations of one worker that are named: the text is for people
MAX_WORKERS = 16_384  # twice what all slots of a node may have
MAX_BYTES = 16 << 20  # of all that in bytes: a kilobyte for each


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker, as its node sees it.

    `slot` is its number, or None where it is warm and waits for a client; `client` whose it is, "name/pid" or "".
    `computations` are the names of those that are open or about to be, ten at most. `busy` is for how many seconds its loop has
    not turned (0.0: it turns), `line` the user's line that it stands in, as "`crunch` at model.py:31", or ""; `stopped` says
    that it is stopped, as by SIGSTOP. `memory` is what it had resident at the last look, in bytes; 0 where that is not known.
    """

    name: str
    pid: int
    slot: int | None
    client: str
    computations: tuple[str, ...]
    busy: float
    line: str
    stopped: bool
    memory: int

    def __str__(self) -> str:
        who = f"worker {self.name}/{self.pid}"
        if self.busy:
            return told(who, self.busy, STOPPED if self.stopped else BUSY, self.line)
        return f"{who} serves {self.client}" if self.client else f"{who} is warm"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node: its name, the number of its slots, and its workers."""

    name: str
    slots: int
    workers: tuple[WorkerStatus, ...]


def packed_status(workers: Iterable[WorkerStatus]) -> bytes:
    """The workers of one node as one part of a body."""
    return packing.pack([_row(each) for each in workers])


def unpacked_status(name: str, value: Any, part: Part) -> NodeStatus:
    """What the node of that name answered; ProtocolError for what is no status."""
    match value:
        case {"slots": int(slots)}:
            rows = packing.unpack_rows(part, MAX_BYTES, MAX_WORKERS, 8)
            return NodeStatus(name, slots, tuple(_worker(name, row) for row in rows))
    raise ProtocolError(f"a status without the number of slots: {value!r:.80}")


def _row(it: WorkerStatus) -> list[Any]:
    return [it.pid, it.slot, it.client, "\n".join(it.computations[:MAX_NAMES]), it.busy, it.line, it.stopped, it.memory]


def _worker(name: str, row: list[Any]) -> WorkerStatus:
    match row:
        case [int(pid), int() | None as slot, str(client), str(names), float(busy), str(line), bool(stopped), int(memory)]:
            return WorkerStatus(name, pid, slot, client, tuple(names.splitlines()), busy, line, stopped, memory)
    raise ProtocolError(f"a worker without pid, slot, client and the like: {row!r:.80}")
