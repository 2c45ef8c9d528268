"""The real commands as child processes: nodes, and programs such as a user writes, on this machine or on a Lan.

    with Machines(tmp_path, ["a", "b"]) as machines:
        node = machines.node("a", "-c", "2")
        program = machines.program("b", "import discoro ...")
        assert program.next("result", 10) == 49

A program tells what it sees with `say(kind, value)`, and gets lines by `told()`; both are put before its source. Everything
lives in `tmp_path` under one cluster key. At the end of the block nodes are stopped in order, and whoever left a traceback in
its output fails the test. Without hosts all run on this machine, on loopback, at free ports, without mDNS.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.netns import Lan

ROOT = Path(__file__).resolve().parents[2]
BASE_PORT = 27_400  # of nodes on a Lan, where nobody else is
IN_MODIFY = 0x2  # inotify(7)
NOISE = ("Traceback", "never retrieved", "never awaited", "Exception ignored", "a bug in discoro", "Task was destroyed")
PRELUDE = """
import json, sys, time
import discoro

def say(kind, value=None):
    print(json.dumps([kind, value]), flush=True)

def told():
    return json.loads(sys.stdin.readline())
"""


class Command:
    """One child process. What it says on standard output are events, lines of JSON [kind, value]."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """What it wrote on standard error."""
        return self._log.read_text(errors="replace")

    def forget(self) -> None:
        """Remove what it wrote."""
        self._log.unlink()

    def until_output(self, holds: Callable[[str], bool], timeout: float) -> None:
        """Until that holds of what it wrote on standard error; fails after `timeout` seconds, with it."""
        end = time.monotonic() + timeout
        libc = ctypes.CDLL(None)
        watcher = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            libc.inotify_add_watch(watcher, os.fsencode(self._log), IN_MODIFY)
            while not holds(self.output):
                left = max(0.0, end - time.monotonic())
                assert select.select([watcher], [], [], left)[0], f"did not come in {timeout} s\n{self.output}"
                os.read(watcher, 65536)
        finally:
            os.close(watcher)

    def tell(self, value: Any) -> None:
        """One line for its `told()`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def next(self, kind: str, timeout: float) -> Any:
        """The value of its next event, which must be of that kind. Fails after `timeout` seconds, with its output."""
        got, value = self.event(timeout)
        assert got == kind, f"said {got!r} ({value!r}) instead of {kind!r}\n{self.output}"
        return value

    def event(self, timeout: float) -> tuple[str, Any]:
        """Its next event, whatever it is."""
        kind, value = json.loads(self.line(timeout))
        return kind, value

    def line(self, timeout: float) -> bytes:
        """Its next line on standard output."""
        assert self.process.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = max(0.0, end - time.monotonic())
            assert select.select([self.process.stdout], [], [], left)[0], f"said nothing for {timeout} s\n{self.output}"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            assert chunk, f"ended with {self.process.wait()}\n{self.output}"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def end(self, timeout: float) -> int:
        """Wait for its end; the exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still ran after {timeout} s\n{self.output}") from None

    def succeed(self, timeout: float) -> None:
        """Wait for its end, which must be a good one."""
        status = self.end(timeout)
        assert status == 0, f"ended with {status}\n{self.output}"

    def kill(self) -> float:
        """SIGKILL; when, on the monotonic clock that all processes of a machine share."""
        at = time.monotonic()
        self.process.send_signal(signal.SIGKILL)
        return at


class NodeCommand(Command):
    """A discoro-node that is ready."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        super().__init__(process, log)
        self.ready: dict[str, Any] = json.loads(self.line(60))

    @property
    def address(self) -> str:
        """Where others reach it."""
        address: str = self.ready["addresses"][0]
        return address


class Machines:
    """The machines of one test; see the first lines of this module."""

    def __init__(self, directory: Path, hosts: Sequence[str] = ()) -> None:
        self.key_file = directory / "cluster.key"
        self.lan = Lan(hosts) if hosts else None
        self._directory = directory
        self._commands: list[Command] = []
        self._numbers = itertools.count()  # of files
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Machines:
        if self.lan is not None:
            self._resources.enter_context(self.lan)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._resources:
            try:
                if error is None:
                    self._stop_nodes()
            finally:
                self._kill_all()
        if error is None:
            self._refuse_noise(self._commands)
        else:
            self._print_outputs()

    def node(
        self, host: str, *options: str, key_file: Path | None = None, within: Sequence[str] = (), **environment: str
    ) -> NodeCommand:
        """A node of that name, ready when this returns; started by the command `within`, which executes what follows it."""
        where = ("-p", str(BASE_PORT)) if self.lan else ("-p", "0", "-i", "127.0.0.1", "--no-mdns")
        files = ("--dest-path", str(self._directory / f"files-{host}"))
        command = [*within, sys.executable, "-m", "discoro", "-n", host, *where, *files, "--json-ready", *options]
        return NodeCommand(*self._start(host, command, key_file, **environment))

    def program(self, host: str, source: str, *, key_file: Path | None = None, **environment: str) -> Command:
        """A program with this source."""
        path = self._directory / f"program-{next(self._numbers)}.py"
        path.write_text(PRELUDE + textwrap.dedent(source))
        return Command(*self._start(host, [sys.executable, str(path)], key_file, **environment))

    def forget(self, command: Command) -> None:
        """One that has ended, and whose output says nothing more: where many come and go, they are not kept."""
        assert command.process.poll() is not None
        with command.process:  # closes its pipes
            self._commands = [each for each in self._commands if each.process is not command.process]
        self._refuse_noise([command])
        command.forget()

    def _start(
        self, host: str, command: list[str], key_file: Path | None, **environment: str
    ) -> tuple[subprocess.Popen[bytes], Path]:
        log = self._directory / f"log-{next(self._numbers)}-{host}.txt"
        own = {"PYTHONPATH": str(ROOT), "DISCORO_KEY_FILE": str(key_file or self.key_file), **environment}
        pipe = subprocess.PIPE
        with open(log, "wb") as errors:
            options: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": errors, "bufsize": 0}
            options |= {"env": {**os.environ, **own}, "cwd": self._directory}
            process = self.lan.popen(host, command, **options) if self.lan else subprocess.Popen(command, **options)
        self._commands.append(Command(process, log))
        return process, log

    def _stop_nodes(self) -> None:
        running = [command for command in self._commands if command.process.poll() is None]
        for command in running:
            command.process.terminate()
        for command in running:
            command.end(10)

    def _kill_all(self) -> None:
        for command in self._commands:
            if command.process.poll() is None:
                command.process.kill()
            with command.process:  # closes its pipes and waits
                pass

    def _print_outputs(self) -> None:
        """A test has failed: what is wrong with one process stands, more often than not, in the output of another."""
        for command in self._commands:
            print(f"--- {command.process.args!r} ended with {command.process.returncode}, and wrote:\n{command.output}")

    def _refuse_noise(self, commands: Sequence[Command]) -> None:
        for command in commands:
            noisy = [word for word in NOISE if word in command.output]
            assert not noisy, f"{command.process.args!r} left {noisy} in its output:\n{command.output}"
