"""A node that a program starts for itself: there when asked for, and gone with the program however that ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from discoro.connections import Ended
from discoro.errors import ConfigError, Timeout
from discoro.keyfile import KeyFile, write_key_file
from discoro.local import local_node
from discoro.mesh import Mesh
from discoro.security import Security
from discoro.transport import Transport
from tests.support.nodes import SECURITY, children, environment, files_below, until_ended

KEY = SECURITY.handed_down()


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the node of a test puts its files."""
    monkeypatch.setenv("DISCORO_DEST_PATH", str(tmp_path / "files"))
    return tmp_path / "files"


# What goes wrong first.


def test_a_node_that_does_not_start_is_an_error_with_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="ended with status 78 before it was ready"):
            async with local_node(KEY, "-c", "-1000"):
                raise AssertionError("ready")

    asyncio.run(main())
    assert "leaves no processor" in capfd.readouterr().err
    assert not children(os.getpid())


def test_a_damaged_key_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="78"):
            async with local_node("damaged"):
                raise AssertionError("ready")

    asyncio.run(main())
    assert "damaged" in capfd.readouterr().err


def test_one_that_takes_too_long_is_stopped() -> None:
    async def main() -> None:
        with pytest.raises(Timeout, match="not become ready in 0 s"):
            async with local_node(KEY, timeout=0):
                raise AssertionError("ready")

    asyncio.run(main())
    assert not children(os.getpid())


# What goes well.


def test_it_is_ready_and_goes_with_the_block(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with local_node(KEY, "-c", "2") as node:
            ready = node.ready
            assert ready["slots"] == 2 and ready["addresses"][0].startswith("127.0.0.1:")
            at = Path(f"/proc/{ready['pid']}")
            assert KEY.encode() not in (at / "cmdline").read_bytes() + (at / "environ").read_bytes()
            workers = children(ready["pid"])
        until_ended([ready["pid"], *workers], 0)

    asyncio.run(main())
    assert files_below(files) == []
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", ""), "the output is the program's own"


def test_an_error_in_the_block_passes_and_the_node_goes(files: Path) -> None:
    async def main() -> None:
        async with local_node(KEY):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(main())
    assert not children(os.getpid()) and files_below(files) == []


def test_it_follows_the_key_file_with_the_program(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ports are on loopback, which every user of the machine can reach, one who had the old key too."""
    monkeypatch.setattr("discoro.rekeying.LOOK_SECONDS", 0.05)
    path = tmp_path / "cluster.key"
    write_key_file(path, KeyFile(b"o" * 16))
    old = Security.from_key_file(path, now=0.0)

    async def main() -> None:
        async with Mesh(key_file=path, local=True, local_options=["-c", "1"]) as mesh:
            while not mesh.nodes():
                await asyncio.sleep(0.01)
            [node] = mesh.nodes()
            write_key_file(path, KeyFile(b"n" * 16))
            new = Security.from_key_file(path, now=0.0)
            for address in (mesh.addresses[0], node.addresses[0]):
                while await dialled(address, new) is not None:
                    await asyncio.sleep(0.1)
                assert await dialled(address, old) is Ended.DENIED

    asyncio.run(asyncio.wait_for(main(), 60))


async def dialled(address: str, security: Security) -> Ended | None:
    """What comes of a dial with that key; None for a connection."""
    outcome: asyncio.Future[Ended | None] = asyncio.get_running_loop().create_future()

    class Receives:
        def connected(self, conn: int) -> None:
            outcome.set_result(None)

        def received(self, conn: int, parts: object) -> None:
            pass

        def ended(self, conn: int, how: Ended, detail: str) -> None:
            if not outcome.done():
                outcome.set_result(how)

    transport = Transport(security, Receives())
    transport.dial(address)
    try:
        return await outcome
    finally:
        await transport.close()


# However the program ends.

PROGRAM = """
    import asyncio, os, sys, time
    from discoro.local import local_node

    async def main():
        async with local_node(sys.argv[1]) as node:
            if "fork" in sys.argv:  # a process that holds our end of the pipe to the node, as multiprocessing's do
                print(os.fork() or os.execvp("sleep", ["sleep", "600"]), flush=True)
            print(node.ready["pid"], flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


@contextmanager
def program(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program with a local node, and the pids that it says: of its node last."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), KEY, *arguments]
    own = environment(tmp_path)
    with subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(1 + len(arguments))]
        try:
            yield process, pids
        finally:
            for pid in (*pids, process.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [(), ("fork",)])
def test_the_node_ends_in_order_with_the_program(tmp_path: Path, files: Path, number: int, arguments: tuple[str, ...]) -> None:
    with program(tmp_path, *arguments) as (process, pids):
        workers = children(pids[-1])
        process.send_signal(number)
        process.wait()
        until_ended([pids[-1], *workers], 4)
        assert files_below(files) == []


def test_ctrl_c_ends_all(tmp_path: Path, files: Path) -> None:
    with program(tmp_path) as (process, pids):
        workers = children(pids[-1])
        os.killpg(process.pid, signal.SIGINT)
        process.wait(5)
        until_ended([*pids, *workers], 0)
        assert files_below(files) == []


def test_a_pipe_that_somebody_else_holds_does_not_keep_it(tmp_path: Path, files: Path) -> None:
    """At the end of the block, too: SIGTERM says what the end of the pipe cannot."""
    with program(tmp_path, "fork") as (process, pids):
        os.kill(process.pid, signal.SIGINT)
        process.wait(4)
        until_ended([pids[-1]], 0)
        assert files_below(files) == []


def test_a_node_that_is_stuck_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discoro.local.STOP_TIMEOUT", 0.1)

    async def main() -> None:
        async with local_node(KEY, "-c", "1") as node:
            os.kill(node.ready["pid"], signal.SIGSTOP)
        until_ended([node.ready["pid"]], 0)

    asyncio.run(main())
