"""However a program ends: out within 3 seconds, with the right status, without noise, and no process of it is left.

First every way to end by itself, then signals at random moments, each program from its import to its last close: Ctrl-C once
and twice, SIGTERM, SIGHUP. `python -m tests.system.test_ends 200` runs any number of rounds, and a seed behind it repeats them.
A round prints its seed, so that a failing one can be run alone. Programs bring their own node (`local=True`), and run in a
session of their own, in which nobody may be left.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.nodes import environment, until_ended

ROUNDS = int(os.environ.get("DISCORO_ROUNDS", "6"))
LIMIT = 3.0  # seconds, promised
SLACK = 12.0  # seconds on top, for a machine with ten times more to do than processors
MOMENT = 0.4  # seconds within which a signal comes after the beginning of a stage: longer than most of them take
FILE_BYTES = 200 << 20  # long enough under way for a signal to come in the middle; sparse, so that no disk is filled
NOISE = ("never retrieved", "never awaited", "Exception ignored", "a bug in discoro", "Task was destroyed", "Fatal Python")
NOISE += ("During handling", "BrokenPipe", "RuntimeError", "Event loop is closed")

BEGIN = """
import sys
def stage(name):
    print(name, flush=True)
stage("import")
import discoro, os, threading, atexit
def work(size, coro=None):
    yield coro.sleep(0)
    return size
def waits(coro=None):
    yield coro.receive()
def spins(coro=None):
    yield
    while True: pass
options = dict(local=True, local_options=["-c", "1"], discover_timeout=30)
"""

RUN = """
async def main(coro):
    stage("nodes")
    server = await discoro.Coro.locate("discoro_server", timeout=60)
    stage("setup")
    job = discoro.Computation(work, depends=[sys.argv[1]])
    await job.setup(server)
    stage("result")
    assert await (await job.run(server, 5)).result() == 5
    stage("wait")
    remote = await job.run(server, 6)
    await coro.monitor(remote)
    await coro.receive(timeout=0.3)
    stage("send")
    await discoro.send_file(server, sys.argv[1])
    stage("close")
    await job.close(server)
    stage("leave")
stage("start")
discoro.run(main, **options)
stage("end")
"""

BLOCKING = """
stage("start")
mesh = discoro.BlockingMesh(**options)
stage("nodes")
server = mesh.locate("discoro_server", timeout=60)
stage("setup")
job = mesh.computation(work, depends=[sys.argv[1]])
job.setup(server)
stage("result")
assert job.run(server, 5).result() == 5
stage("wait")
mesh.receive(timeout=0.3)
stage("send")
mesh.send_file(server, sys.argv[1])
stage("close")
job.close(server)
stage("leave")
mesh.close()
stage("end")
"""

PROGRAMS = {"run": RUN, "blocking": BLOCKING}
STAGES = ("import", "start", "nodes", "setup", "result", "wait", "send", "close", "leave")


@dataclass
class Ended:
    """How a program ended."""

    status: int
    stages: list[str]
    output: str
    seconds: float  # from the signal, or from the last stage that it told of, until nobody was left

    def check(self, *statuses: int) -> None:
        """It ended well, with one of these."""
        noise = [word for word in NOISE if word in self.output]
        assert not noise, f"{noise} in\n{self.output}"
        assert self.status in statuses, f"status {self.status}, not {statuses}, after {self.stages}\n{self.output}"
        assert self.stages[-1:] == ["import"] or self.seconds < LIMIT + SLACK  # it tells of its start only


def members(session: int) -> list[int]:
    """The processes of that session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(path.name))
    return found


def end_of(directory: Path, source: str, moment: tuple[str, float, tuple[int, ...], float] | None = None) -> Ended:
    """Run a program to its end; `moment`: after which stage it gets which signals, and how far apart."""
    program, sent = directory / "program.py", directory / "sent.bin"
    program.write_text(BEGIN + source)
    if not sent.exists():
        sent.touch()
        os.truncate(sent, FILE_BYTES)
    with open(directory / "errors.txt", "w+b") as errors:
        process = subprocess.Popen(
            [sys.executable, str(program), str(sent)],
            **{"stdout": subprocess.PIPE, "stderr": errors, "stdin": subprocess.DEVNULL, "bufsize": 0},
            env=environment(directory),
            cwd=directory,
            start_new_session=True,
        )
        try:
            stages, began = _followed(process, moment)
            status = process.wait(max(0.1, began + LIMIT + SLACK - time.monotonic()) if moment else 120)
            until_ended(members(process.pid), LIMIT + SLACK)
            seconds = time.monotonic() - began
        finally:
            for pid in members(process.pid):
                os.kill(pid, signal.SIGKILL)
            with process:
                pass
        errors.seek(0)
        return Ended(status, stages, errors.read().decode(errors="replace"), seconds)


def _followed(
    process: subprocess.Popen[bytes], moment: tuple[str, float, tuple[int, ...], float] | None
) -> tuple[list[str], float]:
    """The stages it went through, until it ended or got its signals; and when that was."""
    assert process.stdout is not None
    stages: list[str] = []
    buffer, at = b"", time.monotonic()
    while data := os.read(process.stdout.fileno(), 4096):
        buffer += data
        *whole, buffer = buffer.split(b"\n")
        stages += [line.decode() for line in whole]
        at = time.monotonic()
        if moment is not None and moment[0] in stages:
            _, delay, numbers, apart = moment
            for number, seconds in zip(numbers, (delay, apart), strict=False):
                _until_silent(process, seconds)
                process.send_signal(number)
            return stages, time.monotonic()
    return stages, at


def _until_silent(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let that time pass, or less where the program ends before."""
    if process.poll() is not None:  # it ended by the first of two signals, and the second one has noticed
        return
    descriptor = os.pidfd_open(process.pid)
    try:
        select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------ by itself

BY_ITSELF = {
    "return": ("async def main(coro): pass\ndiscoro.run(main, **options)", 0, ""),
    "exception": ("async def main(coro):\n    1 / 0\ndiscoro.run(main, **options)", 1, "ZeroDivisionError: division by zero"),
    "sys.exit": ("async def main(coro):\n    sys.exit(3)\ndiscoro.run(main, **options)", 3, ""),
    "sys.exit in a generator": ("def main(coro):\n    yield\n    sys.exit(3)\ndiscoro.run(main, **options)", 3, ""),
    "sys.exit with a text": ("async def main(coro):\n    sys.exit('no')\ndiscoro.run(main, **options)", 1, "no"),
    "sys.exit of another coroutine": (
        "async def other(): sys.exit(3)\n"
        "async def main(coro):\n"
        "    await coro.monitor(discoro.Coro(other))\n"
        "    assert (await coro.receive()).reason == 'exception'\n"
        "discoro.run(main, **options)",
        0,
        "",
    ),
    "os._exit": ("async def main(coro): os._exit(4)\ndiscoro.run(main, **options)", 4, ""),
    "nothing closed": (
        "async def main(coro):\n"
        "    server = await discoro.Coro.locate('discoro_server')\n"
        "    job = discoro.Computation(spins)\n"
        "    await job.setup(server)\n"
        "    await job.run(server)\n"
        "    stage('ending')\n"
        "discoro.run(main, **options)",
        0,
        "",
    ),
    "an open mesh": ("mesh = discoro.BlockingMesh(**options)\nmesh.create(waits)", 0, ""),
    "an open mesh, busy worker": (
        "mesh = discoro.BlockingMesh(**options)\n"
        "job = mesh.computation(spins)\n"
        "server = mesh.locate('discoro_server')\n"
        "job.setup(server)\n"
        "remote = job.run(server)\n"
        "stage('ending')",
        0,
        "",
    ),
    "an open mesh, sys.exit": ("mesh = discoro.BlockingMesh(**options)\nsys.exit(3)", 3, ""),
    "an open mesh, exception": ("mesh = discoro.BlockingMesh(**options)\n1 / 0", 1, "ZeroDivisionError: division by zero"),
    "an open mesh, os._exit": ("mesh = discoro.BlockingMesh(**options)\nos._exit(4)", 4, ""),
    "threads that wait in a mesh": (
        "mesh = discoro.BlockingMesh(**options)\n"
        "def waiting():\n"
        "    try:\n"
        "        mesh.receive()\n"
        "    except discoro.NoMesh:\n"
        "        pass\n"
        "threading.Thread(target=waiting, daemon=True).start()",
        0,
        "",
    ),
    "exit handlers that use a mesh": (
        "mesh = discoro.BlockingMesh(**options)\n"
        "def last():\n"
        "    mesh.ref\n"
        "    mesh.create(waits)\n"
        "    stage('last')\n"
        "atexit.register(last)",
        0,
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", BY_ITSELF)
def test_a_program_that_ends_by_itself(tmp_path: Path, how: str) -> None:
    source, status, last = BY_ITSELF[how]
    ended = end_of(tmp_path, source)
    ended.check(status)
    lines = ended.output.splitlines()
    assert (lines[-1] if lines else "") == last, ended.output
    assert ended.output.count("Traceback") == ("Error" in last)
    frames = [line for line in lines if line.startswith("  File ") and "program.py" not in line]
    assert not frames, ended.output  # of ours, or of asyncio
    assert "last" in ended.stages or "last" not in how.split()


# ------------------------------------------------------------------ by signals


def round_of(seed: int) -> str:
    """One round: any program, any stage, any signal; what came of it, for people. AssertionError where it fails."""
    dice = random.Random(seed)
    name, stage, delay = dice.choice(list(PROGRAMS)), dice.choice(STAGES), dice.uniform(0, MOMENT)
    numbers = dice.choice([(signal.SIGINT,), (signal.SIGINT,), (signal.SIGINT,) * 2, (signal.SIGTERM,), (signal.SIGHUP,)])
    apart = dice.choice([0.0, dice.uniform(0, 0.1), dice.uniform(0, 1)])
    what = f"seed {seed}: {name}, {'+'.join(each.name for each in numbers)} {delay:.2f} s after {stage}"
    with tempfile.TemporaryDirectory() as directory:
        try:
            ended = end_of(Path(directory), PROGRAMS[name], (stage, delay, tuple(map(int, numbers)), apart))
            ended.check(-int(numbers[0]), 0)  # 0: it had ended before
            _check_trace(ended, stage)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            text = (Path(directory) / "errors.txt").read_text(errors="replace")
            raise AssertionError(f"{what}\n{error}\n{text}") from error
    return f"{what}: {ended.status} in {ended.seconds:.2f} s"


def _check_trace(ended: Ended, stage: str) -> None:
    """At most one traceback, which ends with KeyboardInterrupt, and shows nothing of how asyncio works."""
    assert ended.output.count("Traceback") <= 1
    if ended.status == -signal.SIGINT and ended.output:
        assert ended.output.splitlines()[-1].startswith("KeyboardInterrupt")
    if stage != "import":  # importing discoro shows where it was
        assert not re.search(r'File ".*/asyncio/', ended.output)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_signals_at_any_moment(number: int) -> None:
    seed = int(os.environ.get("DISCORO_SEED", secrets.randbits(32))) + number
    print(round_of(seed))


def main() -> int:
    """Rounds by command; the number that failed."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    first = int(sys.argv[2]) if len(sys.argv) > 2 else secrets.randbits(32)
    failed = 0
    for seed in range(first, first + count):
        try:
            print(round_of(seed), flush=True)
        except AssertionError as error:
            failed += 1
            print(f"FAILED {error}", flush=True)
    print(f"{count} rounds, {failed} failed")
    return min(failed, 100)


if __name__ == "__main__":
    sys.exit(main())
