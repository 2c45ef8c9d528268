"""What is shipped, as rows of a table: each is code as a user writes it, run by a client process of its kind at a real worker.

    ROWS = (Row("closure", '''
        def adder(n): ...
        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            return adder(1)(n)

        def check(worker):
            assert worker.run(computation, 2) == 3
    '''),)

    with Clients(tmp_path, ROWS) as clients:
        clients.check(ROWS[0], "script", "async")

`DEF`, `WAIT` and `FROM` become `def`, `yield`, `yield from` for the style "generators", `async def`, `await`, `await` for
"async". The sources say where the code stands: in the script that is run, in a module beside it, in a notebook's cell (the dict
of a `__main__` without a file), in a dict that `exec` fills and that nobody finds by name. All rows of one source and style are
checked one after the other by one fresh client, and reported one by one; those that must come first in a script have a client
of their own. Clients run side by side. `check` runs in the client, where the code stands too. In the style "async" all rows of
a client run in one worker, as the computations of one client do; in the other each has a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import linecache
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import discoro
from discoro.blocking import BlockingCoro
from tests.support.commands import Command, Machines

SOURCES = ("script", "module", "notebook", "exec")
STYLES = {
    "generators": {"DEF": "def", "WAIT": "yield", "FROM": "yield from"},
    "async": {"DEF": "async def", "WAIT": "await", "FROM": "await"},
}
TIMEOUT = 20.0  # seconds for each step of a row; they take milliseconds
MOST_WAIT = 60.0  # seconds for the next outcome, while all clients start at once on a machine that does much else
ALONE = "from __future__"


@dataclass(frozen=True)
class Row:
    """One thing that is shipped. `files` lie beside the script; `not_in` says in which sources it cannot work, and why."""

    name: str
    code: str
    files: Mapping[str, str] = field(default_factory=dict)
    not_in: Mapping[str, str] = field(default_factory=dict)

    @property
    def identifier(self) -> str:
        return "row_" + re.sub(r"\W+", "_", self.name)

    @property
    def alone(self) -> bool:
        return ALONE in self.code

    def text(self, style: str) -> str:
        """Its code in that style."""
        return in_style(self.code, style).strip() + "\n"


def in_style(text: str, style: str) -> str:
    """The text of a file in that style."""
    return re.sub(r"\b(DEF|WAIT|FROM)\b", lambda found: STYLES[style][found[0]], textwrap.dedent(text))


# ------------------------------------------------------------------ in the client


class Worker:
    """What a row's `check` gets: this client's mesh, and a server. Reports each row as a line of JSON.

    With `kept` all rows run in one worker process, each with what those before it left there; else each gets a fresh one.
    """

    def __init__(self, kept: bool) -> None:
        self.mesh = discoro.BlockingMesh(mdns=False, ip_addr=["127.0.0.1"])
        self.server = self.mesh.locate("discoro_server", timeout=TIMEOUT)
        if kept:  # a worker lives as long as a computation of its client is open there
            self.mesh.computation(asyncio.sleep).setup(self.server, TIMEOUT)

    def run(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        """The result of one run of the function; `options` are those of `opened`."""
        with self.opened(function, **options) as start:
            return start(*args).result(TIMEOUT)

    @contextlib.contextmanager
    def opened(
        self, function: Callable[..., Any], depends: Sequence[Any] = (), func: Callable[..., Any] | None = None, args: Any = ()
    ) -> Iterator[Callable[..., BlockingCoro]]:
        """The computation, set up: call what it gives for each run."""
        computation = self.mesh.computation(function, depends)
        computation.setup(self.server, TIMEOUT, func, args)
        try:
            yield lambda *args, **kwargs: computation.run(self.server, *args, **kwargs)
        finally:
            computation.close(self.server, close_timeout=TIMEOUT)

    def report(self, name: str, check: Callable[[Worker], object]) -> None:
        """Check one row, and print its outcome."""
        outcome = None
        try:
            check(self)
        except BaseException:  # SystemExit too: the rows after this one are to run
            outcome = traceback.format_exc()
        print(json.dumps([name, outcome]), flush=True)

    def report_module(self, name: str, module: str) -> None:
        """The row in a module beside the script."""
        self.report(name, lambda worker: import_module(module).check(worker))

    def report_cell(self, name: str, code: str, found: bool) -> None:
        """The row in a namespace without a file, as `__main__`; `found` says whether it can be imported under that name."""
        cell = types.ModuleType("__main__")
        file = f"<cell {name}>"
        linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
        main = sys.modules["__main__"]
        if found:
            sys.modules["__main__"] = cell
        try:
            exec(compile(code, file, "exec", dont_inherit=True), cell.__dict__)
            self.report(name, cell.check)
        finally:
            sys.modules["__main__"] = main


# ------------------------------------------------------------------ in the test


class Scripts(Machines):
    """The real commands, and scripts of one directory, which is their current one: nothing is put before their source."""

    def __init__(self, directory: Path, of: Machines | None = None) -> None:
        directory.mkdir(exist_ok=True)
        super().__init__(directory)
        if of is not None:
            self.key_file = of.key_file

    def __enter__(self) -> Scripts:
        super().__enter__()
        return self

    def script(self, path: Path, **environment: str) -> Command:
        """The script, run in its own process."""
        return Command(*self._start(path.stem, [sys.executable, str(path)], None, **environment))


class Client:
    """One client process, and the outcomes of its rows as they come."""

    def __init__(self, command: Command, rows: Sequence[Row]) -> None:
        self._command = command
        self._awaited = {row.name for row in rows}
        self._outcomes: dict[str, str | None] = {}
        self._broken: AssertionError | None = None

    def check(self, name: str) -> None:
        """Wait for the outcome of that row; fails with what failed there."""
        while name not in self._outcomes:
            got, outcome = self._next()
            self._outcomes[got] = outcome
        outcome = self._outcomes[name]
        assert outcome is None, f"in the client:\n{outcome}\n{self._command.output}"

    def _next(self) -> tuple[str, str | None]:
        """The next outcome. One that hangs, or ended before its time, is waited for once, and not again for each row."""
        if self._broken is not None:
            raise self._broken
        try:
            return self._command.event(MOST_WAIT)
        except AssertionError as error:
            self._broken = error
            raise

    def end(self) -> None:
        """Once all its rows were checked it ends by itself, in order."""
        if self._awaited == self._outcomes.keys():
            self._command.succeed(TIMEOUT)


class Clients:
    """A node, and all clients of one table, each of its source and style, which begin at once."""

    def __init__(self, directory: Path, rows: Sequence[Row]) -> None:
        self._directory = directory
        self._rows = rows
        self._resources = contextlib.ExitStack()
        self._clients: dict[tuple[str, str, str], Client] = {}

    def __enter__(self) -> Clients:
        with self._resources as resources:
            machines = resources.enter_context(Machines(self._directory))
            node = machines.node("node", "-c", str(len(SOURCES) * len(STYLES)))  # a slot for each client
            for source, style in itertools.product(SOURCES, STYLES):
                for rows in _batches(source, [row for row in self._rows if source not in row.not_in]):
                    directory = self._directory / f"{source}-{style}-{rows[0].identifier}"
                    scripts = resources.enter_context(Scripts(directory, of=machines))
                    script = _laid_out(directory, source, style, rows)
                    client = Client(scripts.script(script, DISCORO_PEERS=node.address), rows)
                    self._clients |= {(source, style, row.name): client for row in rows}
            self._resources = resources.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._resources:
            for client in set(self._clients.values()):
                client.end()

    def check(self, row: Row, source: str, style: str) -> None:
        """Wait for the outcome of that row there, which must be good."""
        self._clients[source, style, row.name].check(row.name)


def _batches(source: str, rows: Sequence[Row]) -> list[list[Row]]:
    """What each client checks: all rows, but for those that must come first in a script."""
    alone = [[row] for row in rows if source == "script" and row.alone]
    return [[row for row in rows if [row] not in alone], *alone]


def _laid_out(directory: Path, source: str, style: str, rows: Sequence[Row]) -> Path:
    """The script of one client, with everything beside it."""
    for row in rows:
        for name, text in row.files.items():
            write(directory / name, in_style(text, style))
        if source == "module":
            write(directory / f"{row.identifier}.py", row.text(style))
    return write(directory / "script.py", _script(source, style, rows))


def write(path: Path, text: str) -> Path:
    """A file with this text, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _script(source: str, style: str, rows: Sequence[Row]) -> str:
    """The program of one client."""
    lines = ["from tests.support.shipped import Worker", f"_worker = Worker(kept={style == 'async'})"]
    for row in rows:
        text = row.text(style)
        if source == "script":
            lines += [text, f"_worker.report({row.name!r}, check)"]
        elif source == "module":
            lines.append(f"_worker.report_module({row.name!r}, {row.identifier!r})")
        else:
            lines.append(f"_worker.report_cell({row.name!r}, {text!r}, found={source == 'notebook'})")
    if source == "script" and rows[0].alone:
        first, rest = rows[0].text(style).split("\n", 1)
        lines = [first, *lines[:2], rest, *lines[3:]]
    return "\n".join([*lines, "_worker.mesh.close()", ""])
