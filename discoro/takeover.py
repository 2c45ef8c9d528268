"""Detached computations, found again by name: what the nodes of the mesh keep, and taking one over.

The client's half; keeping.py is the node's. Every node is asked for what it keeps, and that is all there is to know: nobody
remembers it for them.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from discoro.computation import Computation
from discoro.errors import ConfigError, DiscoroError, NameTaken, NotSetUp, ProtocolError, Timeout
from discoro.mesh import Mesh, current_mesh
from discoro.messages import Greeting
from discoro.references import CoroRef
from discoro.transfers import process_of

log = logging.getLogger("discoro.takeover")

ANSWER_TIMEOUT = 5.0  # seconds; a node answers in milliseconds however busy its workers are


@dataclass(frozen=True)
class Detached:
    """One detached computation at one server. Times are seconds, on the clock of its node."""

    name: str
    node: str
    server: CoroRef
    worker: str  # the process that runs it
    owner: str  # the process that set it up, or took it over
    age: float  # since it was set up there
    alone: float | None  # since its owner was gone; None: it is there
    lasts: float | None  # how long it stays without an owner; None: until it is closed
    id: str = field(repr=False)


async def detached(name: str | None = None, timeout: float | None = None) -> list[Detached]:
    """The detached computations of that name, or all, one for each server that has it; used with yield or await.

    Looks until no further node turns up, at most `timeout` seconds (default: `discover_timeout` of the mesh). Those of clients
    that are still there are among them. A node that does not answer, as one that is stopped, is named in a warning in the log;
    what it keeps is missing. Raises NoNodes where no node turns up, Timeout where none answers, ConfigError.
    """
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"the name of a detached computation is a text; this is {name!r:.80}")
    mesh = current_mesh()
    await mesh.servers(timeout=timeout)  # for the time it takes until every node is linked
    nodes = [node for node in mesh.nodes() if node.role == "node"]
    answers = await asyncio.gather(*(_kept_at(mesh, node) for node in nodes), return_exceptions=True)
    found: list[Detached] = []
    silent: list[Timeout] = []
    for answer in answers:
        if isinstance(answer, Timeout):
            silent.append(answer)
        elif isinstance(answer, BaseException) and not isinstance(answer, DiscoroError):
            raise answer
        elif not isinstance(answer, BaseException):  # a node that has gone keeps nothing
            found += [each for each in answer if name in (None, each.name)]
    if silent and len(silent) == len(answers):
        raise silent[0]
    for error in silent:
        log.warning("what this node keeps is missing: %s", error)
    return sorted(found, key=lambda each: (each.name, each.node, each.server.id))


async def take_over(which: str | Detached, timeout: float | None = None) -> Computation:
    """Become the owner of a detached computation, everywhere it is open; used with yield or await. Returns it.

    `which` is its name, or one of what `detached` gave. It is found within `timeout` seconds, as `detached` finds it. The
    computation given has `run`, `ping`, `coroutines` and `close`, and `servers`, where it is open; it is detached as before,
    and its owner is this process until another one takes it over. Who owned it may go on using it.

    Raises NotSetUp where no node keeps one of the name, NameTaken where different computations have it on different nodes,
    NoNodes, Timeout, PeerLost, WorkerLost, ConfigError.
    """
    if not isinstance(which, str | Detached):
        raise ConfigError(f"take_over takes a name, or what discoro.detached gave; this is {which!r:.80}")
    name = which if isinstance(which, str) else which.name
    there = await detached(name, timeout)
    if isinstance(which, Detached):
        there = [each for each in there if each.id == which.id]
    if not there:
        asked = ", ".join(node.name for node in current_mesh().nodes() if node.role == "node")
        raise NotSetUp(f"no node keeps a detached computation named {name!r}; nodes asked: {asked}")
    if len({each.id for each in there}) > 1:
        nodes = ", ".join(f"{each.node} of {each.owner}" for each in there)
        raise NameTaken(f"different detached computations are named {name!r}, at {nodes}: pass one that discoro.detached gave")
    return await Computation.taken_over(name, there[0].id, [each.server for each in there])


async def _kept_at(mesh: Mesh, node: Greeting) -> list[Detached]:
    answer = (await mesh.request(process_of(node), "detached", {}, timeout=ANSWER_TIMEOUT)).value
    if not isinstance(answer, list):
        raise ProtocolError(f"{node.name} answered detached with no list")
    return [_read(node, each) for each in answer]


def _read(node: Greeting, told: Any) -> Detached:
    match told:
        case {
            "name": str(name),
            "id": str(number),
            "owner": str(owner),
            "age": float(age),
            "alone": float(_) | None as alone,
            "lasts": float(_) | None as lasts,
            "server": server,
            "pid": int(pid),
        }:
            ref, worker = CoroRef.from_plain(server), f"{node.name}/{pid}"
            return Detached(name, node.name, ref, worker, owner, age, alone, lasts, number)
    raise ProtocolError(f"{node.name} tells of a detached computation in words that are none: {told!r:.80}")
