"""A node and its workers under real faults: killed, out of memory, told to leave, on a disk that is full.

Real processes on loopback. What is printed are figures for whoever reads; what is asserted are the promises.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Command, Machines, NodeCommand
from tests.support.netns import needs_namespaces
from tests.support.nodes import children, files_below, until_ended

pytestmark = pytest.mark.system

CLIENT = """
import gc, os, subprocess, sys
import discoro
from discoro import Computation, Coro, Mesh

def nothing(coro=None):
    yield None
    return os.getpid()

def echo(coro=None):
    while True:
        sender, text = yield coro.receive()
        sender.send((os.getpid(), text))

{functions}

def client(coro=None):
    {body}

discoro.run(client, peers=["{address}"], ip_addr=["127.0.0.1"], mdns=False)
"""


def a_client(machines: Machines, node: NodeCommand, body: str, functions: str = "") -> Command:
    """A program with `client` of this body, which has `computation` and `server` where it asks for them."""
    indented = body.strip("\n").replace("\n", "\n    ")
    return machines.program("client", CLIENT.format(address=node.address, body=indented, functions=functions))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path) as made:
        yield made


# Killed.

STARTING = """
def starts(coro=None):
    yield None
    sleep = ["sleep", "600"]
    started = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    child = os.fork()
    if not child:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.execvp("sleep", sleep)
    os.waitpid(child, 0)
    return started
"""
KILLED = """
server = yield Coro.locate("discoro_server")
computation = Computation(starts, depends=[nothing])
for number in range(3):
    yield computation.setup(server)
    remote = yield computation.run(server)
    say("started", [remote.pid, (yield remote.result())])
    told()
    try:
        while True:
            yield (yield computation.run(server)).result()
    except discoro.PeerLost:
        pass
    try:
        yield computation.ping(server)
    except discoro.WorkerLost as error:
        say("lost", str(error))
say("done")
"""


def started_by(worker: int) -> set[int]:
    """Every process that has the worker's mark, the worker aside."""
    (mark,) = [each for each in environment_of(worker) if each.startswith(b"DISCORO_CHILD=")]
    pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()}
    return {pid for pid in pids if pid != worker and mark in environment_of(pid)}


def environment_of(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def test_a_worker_that_is_killed_takes_along_all_that_it_started_and_is_told_of(machines: Machines) -> None:
    node = machines.node("node", "-c", "1")
    client = a_client(machines, node, KILLED, STARTING)
    for _ in range(3):
        worker, pids = client.next("started", 30)
        left = started_by(worker)
        assert left > set(pids) and len(left) == 3, "one in its group, one in a session of its own, one that nobody waits for"
        os.kill(worker, signal.SIGKILL)
        client.tell("go on")
        told = client.next("lost", 30)
        assert f"node/{worker} was killed by SIGKILL, by somebody" in told and "; it held " in told
        until_ended(list(left), 30)
    client.next("done", 30)
    client.succeed(30)


# Memory.

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="--max-memory is kept on Linux only")
SPEND = """
def large(coro=None):
    yield None
    blocks = []
    while True:
        blocks.append(bytearray(1 << 20))

def small(coro=None):
    yield None
    values = []
    while True:
        values.append([len(values)])

def once(coro=None):
    yield None
    return len(bytearray(1 << 30))
"""
SPENDING = """
server = yield Coro.locate("discoro_server")
beside, spends = Computation(echo, depends=[nothing]), [Computation(each) for each in (large, small, once)]
yield beside.setup(server)
neighbour = yield beside.run(server)
for computation in spends:
    yield computation.setup(server)
for computation in 2 * spends:
    remote = yield computation.run(server)
    try:
        yield remote.result()
    except MemoryError as error:
        say("spent", [remote.pid, error.__notes__])
    neighbour.send((coro.ref, computation.name))
    say("neighbour", (yield coro.receive()))
say("done")
"""


@on_linux
def test_a_worker_at_its_limit_of_memory_raises_in_user_code_and_lives_on(machines: Machines) -> None:
    node = machines.node("node", "-c", "1", "--max-memory", "160m")
    client = a_client(machines, node, SPENDING, SPEND)
    pids = set()
    for name in 2 * ["large", "small", "once"]:
        pid, notes = client.next("spent", 60)
        assert notes[0] == "the worker may take 160 MiB of memory: --max-memory of the node node"
        assert client.next("neighbour", 30) == [pid, name]
        pids.add(pid)
    client.next("done", 30)
    client.succeed(30)
    assert len(pids) == 1


TAKES = """
def takes(owner, coro=None):
    while True:
        try:
            message = yield coro.receive()
        except discoro.UnpackError as error:
            message = str(error)
        yield owner.deliver(message if isinstance(message, str) else len(message))
"""
NO_ROOM = "bytes, for which no memory is left: send less at a time, or see --max-memory of the node"
TOO_LARGE = """
server = yield Coro.locate("discoro_server")
taking, beside = Computation(takes), Computation(echo)
for computation in (taking, beside):
    yield computation.setup(server)
taker, neighbour = (yield taking.run(server, coro.ref)), (yield beside.run(server))
for number in range(3):
    try:
        yield taker.deliver(bytes(1 << 28))
    except discoro.TooLarge as error:
        say("too large", str(error))
    taker.send(bytes(1 << 28))
    say("unpacked", (yield coro.receive()))
    yield taker.deliver(bytes(1 << 22))
    say("as before", (yield coro.receive()))
    neighbour.send((coro.ref, number))
    say("neighbour", (yield coro.receive())[1])
"""


@on_linux
def test_a_message_for_which_a_worker_has_no_memory_is_told_of_and_the_link_lives(machines: Machines) -> None:
    node = machines.node("node", "-c", "1", "--max-memory", "200m")
    client = a_client(machines, node, TOO_LARGE, TAKES)
    for number in range(3):
        told = client.next("too large", 60)
        assert re.fullmatch(rf"node/\d+ cannot take 'deliver' with 268435\d+ {NO_ROOM}", told), told
        assert re.fullmatch(rf"cannot unpack a message of 268435\d+ {NO_ROOM}", client.next("unpacked", 60))
        assert client.next("as before", 60) == 1 << 22
        assert client.next("neighbour", 60) == number
    client.succeed(30)


HOARD = """
def hoard(coro=None):
    yield None
    blocks = []
    for size in (1 << 20, 1 << 12, 1 << 6):
        try:
            while True:
                blocks.append(bytearray(size))
        except MemoryError:
            pass
    while True:
        yield coro.receive()
"""
HOARDING = """
server = yield Coro.locate("discoro_server")
computation = Computation(hoard)
yield computation.setup(server)
remote = yield computation.run(server)
try:
    while True:
        yield remote.deliver(bytes(1 << 14))
except discoro.PeerLost:
    pass
try:
    yield computation.ping(server)
except discoro.WorkerLost as error:
    say("lost", str(error))
yield computation.setup(server)
say("again", (yield computation.ping(server)))
"""


@on_linux
def test_who_keeps_all_memory_and_leaves_nothing_for_discoro_loses_the_worker_and_is_told(machines: Machines) -> None:
    node = machines.node("node", "-c", "1", "--max-memory", "160m")
    client = a_client(machines, node, HOARDING, HOARD)
    told = client.next("lost", 60)
    print(told)
    assert "most likely because it reached the 160 MiB that --max-memory lets it have; it held " in told
    assert client.next("again", 30) == 0
    client.succeed(30)


CONTROL_GROUPS = Path("/sys/fs/cgroup")
GREEDY = """
def greedy(coro=None):
    yield None
    blocks = []
    while True:
        blocks.append(bytearray(b"x") * (1 << 20))
"""
OVER = """
server = yield Coro.locate("discoro_server")
computation = Computation(greedy)
yield computation.setup(server)
told()
try:
    yield (yield computation.run(server)).result()
except discoro.PeerLost:
    pass
try:
    yield computation.ping(server)
except discoro.WorkerLost as error:
    say("lost", str(error))
"""


@contextlib.contextmanager
def a_control_group(limit: int) -> Iterator[Path]:
    """A new control group for memory with that limit; skips where none can be made."""
    version = 2 if (CONTROL_GROUPS / "cgroup.controllers").exists() else 1
    group = (CONTROL_GROUPS if version == 2 else CONTROL_GROUPS / "memory") / f"discoro-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error.strerror}")
    try:
        try:
            (group / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no limit of memory can be set for a control group: {error.strerror}")
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():  # of a test that failed
            os.kill(int(pid), signal.SIGKILL)
        while (group / "cgroup.procs").read_text():
            pass
        group.rmdir()


def test_a_worker_that_the_kernel_kills_for_memory_is_told_so(machines: Machines) -> None:
    with a_control_group(300 << 20) as group:
        node = machines.node("node", "-c", "1", within=["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"])
        client = a_client(machines, node, OVER, GREEDY)
        client.tell("go on")
        told = client.next("lost", 60)
        print(told)
        # how much it held at most is not known where the node itself had more, as a child of a large process may
        assert re.search(r"was killed by SIGKILL, by the kernel, for memory: it held \d+ MiB of the 300 MiB there are", told)
        client.succeed(30)
        node.process.terminate()
        assert node.end(30) == 0


# Its port.

FORKING = """
def forks(coro=None):
    yield None
    ours, theirs = os.pipe()  # until both run: what is looked at must not be how they begin
    child = os.fork()
    if not child:
        os.setsid()
        os.write(theirs, b"x")
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {})
    other = os.fork()
    if not other:
        import time
        os.setsid()
        os.write(theirs, b"x")
        time.sleep(600)
        os._exit(0)
    os.read(ours, 1), os.read(ours, 1)
    return [child, other]
"""
FORKED = """
server = yield Coro.locate("discoro_server")
computation = Computation(forks)
yield computation.setup(server)
remote = yield computation.run(server)
say("forked", (yield remote.result()))
told()
"""


def a_port() -> int:
    """One that is free, with free ones above it most likely."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return min(free.getsockname()[1], 65_000)


def tcp_of(pid: int) -> list[str]:
    """The TCP sockets that a process has."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]": f"{row[1]} {row[2]}" for row in rows}
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found.append(os.readlink(path))
    return [inodes[link] for link in found if link in inodes]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_node_starts_again_on_its_port_at_once_whatever_its_code_has_forked(machines: Machines, how: int) -> None:
    port = str(a_port())
    left: list[int] = []
    try:
        for number in range(3):
            node = machines.node(f"node{number}", "-c", "1", "-p", port)
            assert node.address == f"127.0.0.1:{port}"
            client = a_client(machines, node, FORKED, FORKING)
            left += client.next("forked", 30)
            assert not any(tcp_of(pid) for pid in left if alive(pid))
            workers = children(node.pid)
            node.process.send_signal(how)
            node.end(30)
            until_ended(list(workers), 30)
            client.kill()
        assert [pid for pid in left if alive(pid)] == (left if how == signal.SIGKILL else left[::2])
    finally:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether it runs: not one that has ended, and that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# A disk that is full.

FULL = """
server = yield Coro.locate("discoro_server")
beside = Computation(nothing)
yield beside.setup(server)
for path in {paths!r}:
    try:
        yield Computation(nothing, depends=[path]).setup(server)
    except discoro.DiscoroError as error:
        say("refused", [type(error).__name__, str(error)])
say("beside", (yield (yield beside.run(server)).result()))
yield beside.close(server)
"""
FILLING = """
def fill(coro=None):
    yield None
    number = 0
    try:
        while True:
            open(f"filled-{number}", "wb").close()
            number += 1
    except OSError:
        return number

def free(coro=None):
    yield None
    for name in os.listdir("."):
        if name.startswith("filled-"):
            os.unlink(name)
"""
NO_DIRECTORY = """
server = yield Coro.locate("discoro_server")
fills, frees = Computation(fill), Computation(free)
yield fills.setup(server)
yield frees.setup(server)
say("filled", (yield (yield fills.run(server)).result()))
told()
yield (yield frees.run(server)).result()
say("freed")
told()
"""
ASKING = """
server = yield Coro.locate("discoro_server")
while True:
    computation = Computation(nothing)
    try:
        yield computation.setup(server)
    except discoro.DiscoroError as error:
        say("refused", [type(error).__name__, str(error)])
    else:
        say("set up")
    if told() == "end":
        break
"""


def on_a_small_disk(machines: Machines, tmp_path: Path, options: str) -> tuple[NodeCommand, Path]:
    """A node whose files lie on a tmpfs with these options, in a namespace of its own, and where that is seen from here."""
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    probe = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no tmpfs can be mounted in a namespace: {probe.stderr.strip()}")
    within = [*unshare, "sh", "-c", f'mount -t tmpfs -o {options} tmpfs {disk} && exec "$@"', "sh"]
    node = machines.node("node", "-c", "1", "--dest-path", str(disk), within=within)
    return node, Path(f"/proc/{node.pid}/root{disk}")


def test_a_disk_that_is_full_refuses_files_by_name_and_disturbs_nobody(machines: Machines, tmp_path: Path) -> None:
    node, disk = on_a_small_disk(machines, tmp_path, "size=8m")
    (tmp_path / "large").write_bytes(os.urandom(20 << 20))
    (tmp_path / "many").mkdir()
    for number in range(40):
        (tmp_path / "many" / str(number)).write_bytes(os.urandom(500_000))
    paths = [str(tmp_path / name) for name in ("large", "many")]
    client = a_client(machines, node, FULL.format(paths=2 * paths))
    for _ in range(4):
        kind, text = client.next("refused", 30)
        print(kind, text)
        assert (
            kind in ("TransferFailed", "SetupFailed") and "No space left on device" in text and str(tmp_path / "disk") in text
        )
    client.next("beside", 30)
    client.succeed(30)
    left = files_below(disk)
    assert not [name for name in left if ".part" in name or "large" in name or "many" in name], left
    another = a_client(machines, node, FULL.format(paths=[]))
    another.next("beside", 30)
    another.succeed(30)


def test_a_disk_without_room_for_one_more_file_is_told_to_who_sets_up_and_used_again_later(
    machines: Machines, tmp_path: Path
) -> None:
    node, _ = on_a_small_disk(machines, tmp_path, "nr_inodes=60")
    filler = a_client(machines, node, NO_DIRECTORY, FILLING)
    assert filler.next("filled", 30) > 5
    askers = []
    while True:
        asker = a_client(machines, node, ASKING)
        kind, value = asker.event(60)
        askers.append(asker)
        if kind == "refused":
            break
    print(value)
    assert value[0] in ("SetupFailed", "DestPathError"), "no worker, or one that finds no room"
    assert "No space left on device" in value[1] and str(tmp_path / "disk") in value[1]
    filler.tell("free it")
    filler.next("freed", 30)
    while kind == "refused":
        asker.tell("again")
        kind, value = asker.event(60)
    for each in (*askers, filler):
        each.tell("end")
        each.succeed(30)


# Leaving.

HOLDING = """
import discoro

def nothing(coro=None):
    yield coro.receive()

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(nothing)
    yield computation.setup(server)
    remote = yield computation.run(server)
    say("set up")
    told()
    remote.send("end")
    yield remote.result()
    yield computation.close(server)
    say("closed")

discoro.run(client)
"""
SEEKING = """
def client(coro=None):
    try:
        yield discoro.Coro.locate("discoro_server")
    except discoro.NoNodes:
        say("none")

discoro.run(client, discover_timeout=2.0)
"""


@needs_namespaces
def test_newcomers_do_not_find_a_node_that_drains_and_its_clients_go_on(tmp_path: Path) -> None:
    with Machines(tmp_path, ["node", "client"]) as machines:
        node = machines.node("node", "-c", "1", "--drain-timeout", "600")
        client = machines.program("client", HOLDING)
        client.next("set up", 30)
        node.process.terminate()
        node.until_output(lambda output: "draining" in output, 30)
        newcomer = machines.program("client", SEEKING)
        newcomer.next("none", 30)
        client.tell("go on")
        client.next("closed", 30)
        assert node.end(30) == 0
        client.succeed(30)
        newcomer.succeed(30)
