"""A child: told through its pipe, seen to end, and never longer there than its parent."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from discoro import process
from discoro.process import Child, Later, child_environment
from tests.support.nodes import until_ended

HOLD = "import ctypes; ctypes.PyDLL(None).sleep(600)"  # a C call that does not let go of the interpreter
MEET = "from discoro.process import Parent; parent = Parent.meet()"
OBEY = f"{MEET}; import threading; done = threading.Event(); parent.end_with(done.set, grace=60); print('ready', flush=True)"


class Watched:
    """A Child that runs this Python source, and what it wrote."""

    def __init__(self, source: str, *, told: dict[str, Any] | None = None, **options: Any) -> None:
        self.output = b""
        self.wrote = asyncio.Event()
        self.child = Child([sys.executable, "-c", textwrap.dedent(source)], told or {}, self._take, **options)

    def _take(self, data: bytes) -> None:
        self.output += data
        self.wrote.set()

    async def line(self, ends: str = "\n") -> str:
        """What it has written, once that is a line, or has this in it."""
        async with asyncio.timeout(10):
            while ends.encode() not in self.output:
                self.wrote.clear()
                await self.wrote.wait()
        return self.output.decode()

    async def finish(self, timeout: float = 10) -> int:
        async with asyncio.timeout(20):
            return await self.child.finish(timeout)


def in_loop(work: Callable[[], Awaitable[None]]) -> None:
    """Run this, and see that it left no descriptor open."""
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(work())
    assert len(os.listdir("/proc/self/fd")) == before


def run_alone(source: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A Python that nobody started as a child of a node."""
    command, environment = [sys.executable, "-c", source], child_environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, **options)


# What is no parent.


@pytest.mark.parametrize("said", ["", "\n", "junk\n", "[1]\n", "{}\n", '{"parent"', "x" * 100_000])
def test_a_standard_input_that_is_no_parents_is_refused(said: str) -> None:
    done = run_alone(f"{MEET}; print(parent)", input=said)
    assert done.stdout == "None\n", done.stderr


def test_a_terminal_is_no_parent() -> None:
    ours, theirs = os.openpty()
    try:
        assert run_alone(f"{MEET}; print(parent)", stdin=theirs).stdout == "None\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_one_whose_parent_is_gone_already_ends_at_once() -> None:
    done = run_alone("from discoro.process import Parent; Parent(1, 0, {}).end_with(print, grace=60); print('on')")
    assert (done.returncode, done.stdout) == (1, "")


def test_what_cannot_be_started_leaves_nothing() -> None:
    async def work() -> None:
        with pytest.raises(OSError):
            Child(["/no/such/program"], {}, lambda data: None)

    in_loop(work)


# The pipe.


def test_what_is_told_arrives_and_shows_nowhere() -> None:
    async def work() -> None:
        watched = Watched(f"{MEET}; print(parent.told, flush=True); import signal; signal.pause()", told={"key": "hush"})
        assert await watched.line() == "{'key': 'hush'}\n"
        at = Path(f"/proc/{watched.child.pid}")
        assert b"hush" not in (at / "cmdline").read_bytes() + (at / "environ").read_bytes()
        watched.child.signal(signal.SIGKILL)
        await watched.finish()

    in_loop(work)


LATER = f"""
{MEET}; import threading; done = threading.Event()
parent.end_with(done.set, grace=60, on_told=lambda told: print(told, flush=True)); done.wait(); print("in order", flush=True)
"""


def test_what_is_told_later_arrives_in_order_and_the_end_after_it() -> None:
    async def work() -> None:
        watched = Watched(LATER)
        for number in range(3):  # the first ones before the child has started: they lie in the pipe behind the first line
            watched.child.tell({"number": number})
        assert await watched.line("2}\n") == "".join(f"{{'number': {number}}}\n" for number in range(3))
        watched.child.tell({"late": "x" * 10_000})
        assert (await watched.line("x'}\n")).endswith(f"{{'late': '{'x' * 10_000}'}}\n")
        watched.child.ask_to_end()
        watched.child.tell({"too": "late"})
        assert (await watched.line("order\n")).endswith("x'}\nin order\n")
        await watched.finish()

    in_loop(work)


def test_telling_one_that_is_stopped_waits_for_nothing_and_the_last_of_each_kind_arrives() -> None:
    async def work() -> None:
        watched = Watched(LATER)
        watched.child.tell({"begin": 0})
        await watched.line("0}\n")
        watched.child.signal(signal.SIGSTOP)
        for number in range(1000):  # 100 bytes each: more than a pipe holds
            watched.child.tell({"hosts": [number, "x" * 90]})
        watched.child.tell({"security": "last"})
        watched.child.signal(signal.SIGCONT)
        assert "[999, " in await watched.line("'last'}\n")
        watched.child.ask_to_end()
        await watched.finish()

    in_loop(work)


def test_a_child_does_not_get_the_secret_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORO_SECRET", "correct horse battery staple")
    monkeypatch.setenv("DISCORO_PEERS", "ada")
    environment = child_environment()
    assert "DISCORO_SECRET" not in environment and environment["DISCORO_PEERS"] == "ada"


def test_code_that_reads_standard_input_finds_it_empty() -> None:
    async def work() -> None:
        watched = Watched(f"{MEET}; import sys; print(repr(sys.stdin.read()))")
        assert await watched.finish() == 0
        assert watched.output == b"''\n"

    in_loop(work)


def test_a_child_that_reads_nothing_and_ends_at_once_is_only_one_that_ended() -> None:
    async def work() -> None:
        watched = Watched("import os; os._exit(7)", told={"long": "x" * 60_000})
        assert await watched.finish() == 7

    in_loop(work)


def test_standard_error_comes_too_where_asked_for() -> None:
    async def work() -> None:
        watched = Watched("import sys; print('out', flush=True); print('err', file=sys.stderr)", with_errors=True)
        await watched.finish()
        assert watched.output == b"out\nerr\n"

    in_loop(work)


def test_more_output_than_a_pipe_holds_is_taken_to_its_end() -> None:
    async def work() -> None:
        watched = Watched("print('x' * 3_000_000)")
        await watched.finish()
        assert len(watched.output) == 3_000_001

    in_loop(work)


# Its end.


def test_its_end_is_seen_though_a_process_that_lives_on_holds_the_pipe() -> None:
    """It left the group and has not got the mark: what is meant to stay is started so."""

    async def work() -> None:
        watched = Watched("""
            import os, subprocess
            env = {name: value for name, value in os.environ.items() if name != "DISCORO_CHILD"}
            held = subprocess.Popen(["sleep", "600"], start_new_session=True, env=env)
            print(held.pid, flush=True)
            os._exit(3)
        """)
        assert await watched.finish(timeout=0.05) == 3
        os.kill(int(watched.output), signal.SIGKILL)

    in_loop(work)


def test_what_it_started_ends_with_it() -> None:
    async def work() -> None:
        watched = Watched("""
            import os, subprocess
            print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
            os._exit(0)
        """)
        await watched.finish()
        until_ended([int(watched.output)], 5)

    in_loop(work)


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc, in which marks are looked for")
LEAVING = """
    import os, subprocess, sys
    command = [sys.executable, "-c", 'import os, time; os.fork(); os.write(1, b"%d%c" % (os.getpid(), 10)); time.sleep(600)']
    subprocess.Popen(command, start_new_session=True)
    import signal; signal.pause()
"""


@needs_proc
def test_what_moved_to_sessions_of_its_own_ends_with_it_whoever_kills_it() -> None:
    async def work() -> None:
        watched = Watched(LEAVING)
        async with asyncio.timeout(10):
            while watched.output.count(b"\n") < 2:
                watched.wrote.clear()
                await watched.wrote.wait()
        watched.child.signal(signal.SIGKILL)
        await watched.finish()
        until_ended([int(line) for line in watched.output.split()], 0)

    in_loop(work)


def test_the_most_memory_that_it_had_is_known_afterwards() -> None:
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) + 100  # past this process's, which count as the child's

    async def work() -> None:
        watched = Watched(f"bytearray({mib} << 20)[:: 4096] = b'x' * ({mib} << 8)")
        assert await watched.finish() == 0
        assert mib << 20 < watched.child.peak < (mib + 200) << 20

    in_loop(work)


def test_asked_to_end_it_ends_in_order() -> None:
    async def work() -> None:
        watched = Watched(f"{OBEY}; done.wait(); print('in order')")
        assert await watched.line() == "ready\n"
        watched.child.ask_to_end()
        assert await watched.finish() == 0
        assert watched.output == b"ready\nin order\n"

    in_loop(work)


def test_one_that_does_not_end_in_time_ends_itself_hard() -> None:
    async def work() -> None:
        watched = Watched(f"{OBEY.replace('60', '0.05')}; threading.Event().wait()")
        await watched.line()
        watched.child.ask_to_end()
        assert await watched.finish() == 1

    in_loop(work)


def test_a_signal_to_one_that_has_ended_is_none() -> None:
    async def work() -> None:
        watched = Watched("")
        await watched.finish()
        watched.child.signal(signal.SIGTERM)
        watched.child.signal_group(signal.SIGTERM)
        watched.child.ask_to_end()
        assert "status 0" in repr(watched.child)

    in_loop(work)


# The end of its parent.

PARENT = """
    import asyncio, sys
    from discoro.process import Child

    async def main():
        heard = asyncio.Event()
        child = Child([sys.executable, "-c", sys.argv[1]], {}, lambda data: heard.set())
        await heard.wait()
        print(child.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.mark.parametrize("busy", [HOLD, "import signal; signal.pause()", "while True: pass"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_its_parent(busy: str, number: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(PARENT), f"{OBEY}\n{busy}"]
    with subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait()
        assert until_ended([child], 2) < 2


def test_without_the_kernels_help_the_pipe_ends_it() -> None:
    """As on systems other than Linux."""
    child = OBEY.replace("parent.end_with", "import sys; sys.platform = 'other'; parent.end_with").replace("60", "0.05")
    command = [sys.executable, "-c", textwrap.dedent(PARENT), f"{child}\nthreading.Event().wait()"]
    with subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        until_ended([pid], 2)


# Its environment.


def test_a_child_of_a_checkout_finds_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(process.__file__).parents[1])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert child_environment()["PYTHONPATH"] == here
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert child_environment()["PYTHONPATH"] == f"{here}{os.pathsep}/elsewhere"
    monkeypatch.setenv("PYTHONPATH", f"/elsewhere{os.pathsep}{here}")
    assert child_environment()["PYTHONPATH"] == f"/elsewhere{os.pathsep}{here}"


def test_a_child_of_an_installation_gets_the_environment_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "__file__", "/venv/lib/python3/site-packages/discoro/process.py")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert child_environment() == dict(os.environ)


def test_of_what_is_told_later_the_last_counts_from_when_it_can_be_used() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        key, hosts = Later(loop, "key"), Later(loop, "hosts")
        used: list[object] = []
        for told in ({"key": "first"}, {"hosts": ["a"]}, {"key": "second"}):
            for later in (key, hosts):
                await asyncio.to_thread(later.on_told, told)
        await asyncio.sleep(0)
        key.begin(used.append)
        assert used == ["second"], "and nothing of another name"
        await asyncio.to_thread(key.on_told, {"key": None})
        await asyncio.sleep(0)
        assert used == ["second", None]
        Later(loop, "other").begin(used.append)
        assert len(used) == 2

    asyncio.run(scenario())
