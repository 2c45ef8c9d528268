"""Parent and child: what a child process is given, how its end is seen, and how it ends with its parent.

Used for workers (children of a node) and for a node that a program starts for itself. No process outlives its parent, however
that ended, and none needs the other's cooperation for it. `Child` is the parent's side, `Parent` the child's; between them is
one pipe, the child's standard input: the parent tells a line of JSON through it, perhaps more of them later, and closes it to
have the child end.
What a child starts goes down with it: its process group, and on Linux whatever else has its mark (`sweeping.py`). Nothing here
knows what a child does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from discoro.sweeping import MARK, SWEEP_TIMEOUT, kill_left

PR_SET_PDEATHSIG = 1  # prctl(2): the signal that this process gets when the thread that forked it ends
CHUNK = 64 * 1024  # bytes of output taken at once; what a pipe holds
DESCRIPTORS = 16_384  # one process with all the links and connections that it may have needs fewer
TOLD_LIMIT = 64 * 1024  # bytes of the line that a child is told at its start: it fits into an empty pipe
DEATH_FIRST = 0.1  # seconds that the kernel has to end us with a parent that died, before we end as if it had asked us to
TELL_AGAIN = 0.5  # seconds until a child that takes nothing in is told what waits for it


class Child:
    """A child process in a process group of its own, with the pipes to it.

    Made inside a running event loop; the thread that makes it must live as long as the child may (see `Parent.end_with`).
    `told` reaches it through its standard input, so that no list of processes shows it. `on_output` is called with what it
    writes on standard output, and `with_errors` on standard error; `on_answer` with what it writes into a pipe apart from
    these, whose descriptor it is told as `answers`. `ended` is set to its status, as subprocess has it; wait for it with
    `asyncio.wait`, which leaves it alone; `peak` is then the most memory that it had resident, in bytes; 0 where that was less
    than its parent ever had, which the kernel counts as the child's too. Raises OSError where it cannot be started.

    It is no asyncio.subprocess: the `wait` of that also waits until nobody holds the pipes any more (Python 3.11.7 to 3.13), so
    that a process started by the child would hide the child's end.
    """

    def __init__(
        self,
        command: Sequence[str],
        told: dict[str, Any],
        on_output: Callable[[bytes], None],
        *,
        cwd: Path | None = None,
        with_errors: bool = False,
        on_answer: Callable[[bytes], None] | None = None,
    ) -> None:
        self._answers = _Answers(on_answer) if on_answer is not None else None
        given = (self._answers.theirs,) if self._answers is not None else ()
        pipe, errors = subprocess.PIPE, subprocess.STDOUT if with_errors else None
        self._mark = secrets.token_hex(8)
        env = child_environment()
        env[MARK] = f"{env[MARK]}:{self._mark}" if MARK in env else self._mark
        try:
            self._process = subprocess.Popen(
                command, bufsize=0, stdin=pipe, stdout=pipe, stderr=errors, cwd=cwd, env=env, process_group=0,
                pass_fds=given,
            )  # fmt: skip
        except OSError:
            if self._answers is not None:
                self._answers.close()
            raise
        finally:
            for descriptor in given:
                os.close(descriptor)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._loop = asyncio.get_running_loop()
        self._on_output = on_output
        self._silent: asyncio.Future[None] = self._loop.create_future()  # its output has ended
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self.peak = 0
        self._not_its_own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._reaping = threading.Lock()  # so that no signal goes to another process that has its number by then
        os.set_blocking(self._output.fileno(), False)
        self._loop.add_reader(self._output.fileno(), self._read)
        threading.Thread(target=self._wait, name=f"child {self.pid}", daemon=True).start()
        os.set_blocking(self._input.fileno(), False)
        self._telling = b""  # a line that is partly written
        self._untold: dict[str, bytes] = {}  # and those after it, the last of each kind
        self._again: asyncio.TimerHandle | None = None
        self.tell({**told, "parent": os.getpid(), **({"answers": given[0]} if given else {})})

    def tell(self, what: dict[str, Any]) -> None:
        """One more line through its standard input; what is told after the first goes to its `on_told`.

        It never waits: to a child that takes nothing, one that is stopped, say, the last of each kind is told when it goes on.
        """
        self._untold["first" if "parent" in what else next(iter(what))] = json.dumps(what).encode() + b"\n"
        self._tell_on()

    def _tell_on(self) -> None:
        """Write what there is room for; the rest soon."""
        try:
            while self._telling or self._untold:
                self._telling = self._telling or self._untold.pop(next(iter(self._untold)))
                self._telling = self._telling[os.write(self._input.fileno(), self._telling) :]
        except BlockingIOError:
            if self._again is None:
                self._again = self._loop.call_later(TELL_AGAIN, self._tell_later)
        except (OSError, ValueError):  # it has ended, which `ended` tells; or was asked to
            self._telling = b""
            self._untold.clear()

    def _tell_later(self) -> None:
        self._again = None
        self._tell_on()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __repr__(self) -> str:
        return f"<Child {self.pid} {f'status {self.ended.result()}' if self.ended.done() else 'running'}>"

    @property
    def has_ended(self) -> bool:
        """Whether it has, also where the loop was not told yet, if the system says so."""
        try:
            return self.ended.done() or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:  # it is reaped
            return True
        except AttributeError:  # macOS, before Python 3.13
            return False

    def ask_to_end(self) -> None:
        """Close its standard input, which it takes as the request to end in order."""
        self._input.close()

    def signal(self, number: int) -> None:
        """A signal to the child alone; none where it has ended."""
        with self._reaping, contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """A signal to the child and to what it started, but for what moved to another process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none left; on macOS: only zombies left
            os.killpg(self.pid, number)

    async def finish(self, timeout: float) -> int:
        """Wait for its end, kill what it started, take the rest of its output for at most `timeout` seconds; its status."""
        await asyncio.wait([self.ended])
        await asyncio.wait([self._swept()], timeout=SWEEP_TIMEOUT)
        await asyncio.wait([self._silent], timeout=timeout)
        self._close_output()
        self._input.close()
        if self._answers is not None:
            self._answers.close()
        return self.ended.result()

    def _swept(self) -> asyncio.Future[None]:
        """Have killed what it left; done once that is.

        In a thread that keeps nobody: a look at a process that hangs may take for ever, and at the end of the interpreter no
        pool of threads takes anything any more.
        """
        swept: asyncio.Future[None] = self._loop.create_future()

        def sweep() -> None:
            kill_left(self._mark)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(swept.set_result, None)

        try:
            threading.Thread(target=sweep, name=f"what child {self.pid} left", daemon=True).start()
        except RuntimeError:  # the interpreter ends, or there are no more threads
            swept.set_result(None)
        return swept

    def _wait(self) -> None:
        """In a thread of its own, which does nothing but wait."""
        if hasattr(os, "waitid"):  # not on macOS, before Python 3.13
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self.signal_group(signal.SIGKILL)  # before it is reaped: until then nobody else can have its number
            with self._reaping:
                status = self._reap()
        else:
            status = self._reap()
            self.signal_group(signal.SIGKILL)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.ended.set_result, status)

    def _reap(self) -> int:
        """Its status, as subprocess has it; 0 where this process has the kernel reap its children (SIGCHLD ignored)."""
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:
            self._process.returncode = 0
            return 0
        if usage.ru_maxrss > self._not_its_own:
            self.peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode

    def _read(self) -> None:
        try:
            data = os.read(self._output.fileno(), CHUNK)
        except BlockingIOError:
            return
        if data:
            self._on_output(data)
        else:
            self._close_output()

    def _close_output(self) -> None:
        if not self._silent.done():
            self._silent.set_result(None)
            self._loop.remove_reader(self._output.fileno())
            self._output.close()


class _Answers:
    """A pipe from a child, beside its output."""

    def __init__(self, on_answer: Callable[[bytes], None]) -> None:
        self._ours, self.theirs = os.pipe()
        self._loop = asyncio.get_running_loop()
        self._on_answer = on_answer
        os.set_blocking(self._ours, False)
        self._loop.add_reader(self._ours, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._ours, CHUNK)
        except BlockingIOError:
            return
        if data:
            self._on_answer(data)
        else:
            self.close()

    def close(self) -> None:
        if self._ours >= 0:
            self._loop.remove_reader(self._ours)
            os.close(self._ours)
            self._ours = -1


class Parent(NamedTuple):
    """The process that started this one, its end of the pipe to us, and what it told."""

    pid: int
    pipe: int
    told: dict[str, Any]
    rest: bytes = b""  # that came with the first line: the beginning of what is told later

    @classmethod
    def meet(cls) -> Parent | None:
        """Take over standard input, which is empty from now on, and read what the parent tells; None where none does."""
        if os.isatty(0):
            return None
        pipe = _take_standard_input()
        try:
            line, _, rest = _first_line(pipe).partition(b"\n")
            told = json.loads(line)
        except ValueError:
            return None
        return cls(told.pop("parent"), pipe, told, rest) if isinstance(told, dict) and "parent" in told else None

    def end_with(
        self,
        ask_to_end: Callable[[], object],
        *,
        grace: float,
        kernel: int = signal.SIGKILL,
        on_told: Callable[[dict[str, Any]], object] = lambda told: None,
    ) -> None:
        """From now on, end when the parent does, or when it closes the pipe; what it tells until then goes to `on_told`.

        The end calls `ask_to_end`, in another thread as `on_told`, and ends this process hard after `grace` seconds. On Linux
        the kernel sends the signal `kernel` besides when the thread that forked us ends: so neither a call that holds the
        interpreter's lock keeps us, nor somebody who inherited the parent's end of the pipe (PR_SET_PDEATHSIG). It is set after
        the fork, and the parent may be gone by then: that is looked at afterwards.
        """
        if sys.platform == "linux":
            import ctypes  # only here, since no other process needs it

            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, kernel)
            if os.getppid() != self.pid:
                os._exit(1)
        threading.Thread(target=self._watch, args=(ask_to_end, grace, on_told), name="parent", daemon=True).start()

    def _watch(self, ask_to_end: Callable[[], object], grace: float, on_told: Callable[[dict[str, Any]], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are ending already
            for line in _lines(self.pipe, self.rest):
                on_told(json.loads(line))
            threading.Event().wait(DEATH_FIRST)
            ask_to_end()
        threading.Event().wait(grace)
        os._exit(1)


class Later:
    """What a parent tells its child later (`Parent.end_with`) under one name, each time in place of what it told before.

    It is put to use at once, before anything that came over a connection is looked at, as soon as the child can.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self._last: list[Any] = []  # nothing, or what was told last
        self._use: Callable[[Any], object] | None = None

    def on_told(self, told: dict[str, Any]) -> None:
        """From the thread that reads what the parent tells."""
        if self._name in told:
            self._loop.call_soon_threadsafe(self._take, told[self._name])

    def begin(self, use: Callable[[Any], object]) -> None:
        """The child can use it now."""
        self._use = use
        for what in self._last:
            use(what)

    def _take(self, what: Any) -> None:
        self._last = [what]
        if self._use is not None:
            self._use(what)


def signal_name(number: int) -> str:
    """SIGKILL for 9; "signal 40" for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def set_limits() -> None:
    """As a node or a worker, at its start: as many descriptors as it may need, and no core file, which would hold the key."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS: some hard limits are more than can be had
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptors() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def child_environment() -> dict[str, str]:
    """Ours, for a child, without the cluster's secret: it is told that, and code that runs there must not find it. Where this
    discoro was not installed but imported from a checkout, with that on its path.
    """
    ours = {name: value for name, value in os.environ.items() if name != "DISCORO_SECRET"}
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.environ.get("PYTHONPATH")
    if os.path.basename(here) in ("site-packages", "dist-packages") or here in (path or "").split(os.pathsep):
        return ours
    return {**ours, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here}


def _take_standard_input() -> int:
    """The descriptor of our standard input, moved away: code that reads from standard input finds it empty."""
    taken = os.dup(0)  # which no child inherits
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return taken


def _first_line(descriptor: int) -> bytes:
    """What comes through a pipe up to the end of its first line, perhaps with the beginning of more; or up to its end."""
    line = b""
    while b"\n" not in line and len(line) < TOLD_LIMIT and (data := os.read(descriptor, CHUNK)):
        line += data
    return line


def _lines(descriptor: int, rest: bytes) -> Iterator[bytes]:
    """The whole lines in `rest` and in what comes through the pipe, until that ends."""
    while True:
        *whole, rest = rest.split(b"\n")
        yield from whole
        data = os.read(descriptor, CHUNK)
        if not data:
            return
        rest += data
