"""Survey the source of Python's standard library with every processor of this machine.

Each slot gets the coroutine `survey` and what it depends on: a function, a class and a data file. Source files then go to
these coroutines as messages, the next one to whoever is done with another, and what was found comes back as messages.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import discoro

NESTING = Path(__file__).with_name("nesting.txt")  # the kinds of statement that count as a level of nesting
TOP = 10  # functions in the table
AHEAD = 3  # files on their way to each coroutine, or waiting there, so that it never waits for the next


# ---- what runs in the workers


@dataclass
class Findings:
    """What one file contains, or many together."""

    files: int = 0
    unparsable: int = 0
    lines: int = 0
    functions: int = 0
    longest: list[tuple[int, str, str]] = field(default_factory=list)  # functions: lines, name, place
    deepest: tuple[int, str] = (0, "nowhere")  # statement: level, place
    seconds: float = 0.0

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.files + other.files,
            self.unparsable + other.unparsable,
            self.lines + other.lines,
            self.functions + other.functions,
            sorted(self.longest + other.longest, reverse=True)[:TOP],
            max(self.deepest, other.deepest),
            self.seconds + other.seconds,
        )

    def walk(self, node: ast.AST, file: str, nesting: Collection[str], level: int = 0, column: int = -1) -> None:
        """Look at every statement in `node`, which is itself at this level of nesting."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions += 1
                self.longest.append(((child.end_lineno or 0) - child.lineno + 1, child.name, f"{file}:{child.lineno}"))
            # An `elif` is an If inside an If, at the same column: no deeper.
            if isinstance(child, ast.stmt) and type(child).__name__ in nesting and child.col_offset > column:
                self.deepest = max(self.deepest, (level + 1, f"{file}:{child.lineno}"))
                self.walk(child, file, nesting, level + 1, child.col_offset)
            elif not isinstance(child, ast.expr):
                self.walk(child, file, nesting, level, column)


def look_at(file: str, source: bytes, nesting: Collection[str]) -> Findings:
    """What is in one file; one that cannot be parsed is counted as that."""
    began, found = time.perf_counter(), Findings(files=1, lines=source.count(b"\n"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.walk(ast.parse(source), file, nesting)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # wrong on purpose: the library's tests have such files
        found.unparsable = 1
    found.seconds = time.perf_counter() - began
    return found


async def survey(client: discoro.CoroRef, coro: discoro.Coro) -> None:
    """Answer each file with its Findings, until the computation is closed."""
    nesting = Path("nesting.txt").read_text().split()  # it came along, into the worker's own directory
    while True:
        file, source = await coro.receive()
        client.send((coro.ref, look_at(file, source, nesting)))


# ---- what runs here


async def main(coro: discoro.Coro) -> None:
    """Set up every slot, have all files looked at, close, print."""
    began, files = time.perf_counter(), dict(sources(Path(sysconfig.get_path("stdlib"))))
    servers = await discoro.servers()
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"{len(files)} source files of Python {version} for {len(servers)} slots", flush=True)

    computation = discoro.Computation(survey, depends=[look_at, Findings, NESTING])
    for server in servers:
        await computation.setup(server)
    workers = [await computation.run(server, coro.ref) for server in servers]
    shares = await hand_out(files, workers, coro)
    for server in servers:
        await computation.close(server)

    print(report(shares, time.perf_counter() - began))


def sources(library: Path) -> Iterator[tuple[str, Path]]:
    """The library's own files by name; installed packages may lie below it, and are none of them."""
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".py")):
            yield path.relative_to(library).as_posix(), path


async def hand_out(
    files: dict[str, Path], workers: list[discoro.CoroRef], coro: discoro.Coro
) -> dict[discoro.CoroRef, Findings]:
    """Send every file to a worker and take in what it found: each worker's share."""
    shares = {worker: Findings() for worker in workers}
    waiting = ((name, path.read_bytes()) for name, path in files.items())
    progress = Progress(len(files))

    def send_next(worker: discoro.CoroRef) -> None:
        file = next(waiting, None)
        if file is not None:
            worker.send(file)

    for worker in workers:
        await coro.monitor(worker)  # should it end early, we are told, and wait for nothing
    for worker in workers * AHEAD:
        send_next(worker)
    for done in range(1, len(files) + 1):
        message = await coro.receive()
        if isinstance(message, discoro.ExitNotice):
            raise message.error or discoro.CoroEnded(f"{message.ref} ended early")
        worker, found = message
        send_next(worker)
        shares[worker] += found
        progress.show(done)
    return shares


class Progress:
    """A bar that is redrawn on one line of a terminal; elsewhere, a plain line for each quarter."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.redraws = sys.stdout.isatty()
        self.steps = min(shutil.get_terminal_size().columns, 80) - 20 if self.redraws else 4
        self.shown = 0

    def show(self, done: int) -> None:
        step = self.steps * done // self.total
        if step == self.shown:
            return
        self.shown = step
        percent = f"{100 * done // self.total:3}%"
        if self.redraws:
            print(f"\r[{'#' * step:{self.steps}}] {percent}", end="\n" if done == self.total else "", flush=True)
        else:
            print(f"{percent}, {done} files", flush=True)


def report(shares: dict[discoro.CoroRef, Findings], seconds: float) -> str:
    """The tables."""
    total = sum(shares.values(), Findings())
    level, place = total.deepest
    rule = "-" * 79
    rows = ["", f"{'lines':>8}  {'longest functions':30}  where", rule]
    rows += [f"{lines:>8,}  {name:<30.30}  {where[-37:]}" for lines, name, where in total.longest]
    rows += ["", f"{'files':>8}{'lines':>12}{'seconds':>12}  worker", rule]
    rows += [f"{each.files:>8,}{each.lines:>12,}{each.seconds:>12.2f}  {worker}" for worker, each in shares.items()]
    rows += [rule, f"{total.files:>8,}{total.lines:>12,}{total.seconds:>12.2f}  all, in {seconds:.2f} seconds"]
    rows += ["", f"{total.functions:,} functions; deepest nesting {level} levels, at {place}"]
    rows += [f"files that could not be parsed: {total.unparsable}"]
    return "\n".join(rows)


if __name__ == "__main__":
    try:
        discoro.run(main, local=True)  # without `local`: with every node on the network
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(130)
    except (discoro.DiscoroError, OSError) as error:
        sys.exit(f"\n{Path(__file__).name}: {error}")
