"""The limit of memory of a worker: named in the error, passed only to tell of it, and kept again afterwards."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from discoro import allowance
from discoro.errors import ConfigError
from discoro.process import child_environment

GIB = 1 << 30
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA covers all memory on Linux only")


def limited(source: str) -> str:
    """What this source writes in a process that may take 200 MiB."""
    begin = "import asyncio, resource\nfrom discoro import allowance\nallowance.limit(200 << 20, 'ada')\n"
    command = [sys.executable, "-c", begin + textwrap.dedent(source)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=60)
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.parametrize("size", [1, 128 * (1 << 20) - 1])
def test_a_limit_that_no_worker_could_live_with_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=r"--max-memory .* is too little for a worker itself: give 128m or more|needs Linux"):
        allowance.check(size)


@on_linux
def test_one_past_the_hard_limit_of_the_node_itself_is_refused_at_its_start() -> None:
    source = """
        from discoro import allowance
        import resource
        resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))
        allowance.check(300 << 20)
        allowance.check(390 << 20)
    """
    command = [sys.executable, "-c", textwrap.dedent(source)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=60)
    assert "ConfigError: --max-memory 390 MiB cannot be kept: this process itself may take 400 MiB" in done.stderr


def test_none_and_large_ones_are_taken_where_the_system_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    allowance.check(0)
    allowance.check(1000 * GIB)
    monkeypatch.setattr(sys, "platform", "darwin")
    allowance.check(0)
    with pytest.raises(ConfigError, match="--max-memory cannot be kept on this system: it needs Linux"):
        allowance.check(GIB)


def test_without_a_limit_an_error_stays_as_it_is() -> None:
    error = MemoryError("yours")
    allowance.lift(error)
    allowance.settle(error)
    assert not hasattr(error, "__notes__")


@on_linux
def test_the_error_names_the_limit_once_and_what_it_was_spent_on_is_let_go_of() -> None:
    said = limited("""
        def spend():
            blocks = []
            while True:
                blocks.append(bytearray(1 << 20))

        for _ in range(2):  # the second time as much can be had as the first
            try:
                spend()
            except MemoryError as error:
                allowance.lift(error)
                room = bytearray(16 << 20)
                allowance.lift(error)
                allowance.settle(error)
                print(error.__notes__, resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20, len(bytearray(100 << 20)) >> 20)
    """)
    note = "['the worker may take 200 MiB of memory: --max-memory of the node ada'] 200 100\n"
    assert said == f"0 {note}{note}"


@on_linux
def test_where_discoro_itself_has_none_left_the_process_ends_and_says_so() -> None:
    said = limited("""
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(allowance.end_where_spent)
            loop.call_soon(lambda: 1 / 0)
            loop.call_soon(lambda: bytearray(1 << 40))
            await asyncio.sleep(60)

        asyncio.run(main())
    """)
    assert said.startswith("1 ") and "ZeroDivisionError" in said
    limit = "the worker may take 200 MiB of memory: --max-memory of the node ada"
    assert said.endswith(f"discoro worker: MemoryError: nothing was left for discoro itself; {limit}\n")
