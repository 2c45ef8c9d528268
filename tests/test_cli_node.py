"""The command discoro-node: its options, what it says, its exit status, and how it ends."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discoro import __version__
from discoro.cli import node as command
from discoro.cli.node import host_of, name_of, parser, port_of, processors, seconds_of, size_of, slots_of, wrapped
from discoro.cli.terminal import folded
from discoro.errors import ConfigError
from discoro.keyfile import code_of, read_key_file
from tests.support.commands import ROOT, Machines, NodeCommand
from tests.support.nodes import COMMAND, LOOPBACK, a_node, children, environment, files_below, until_ended, until_gone

WAYS = {
    "python -m discoro": COMMAND,
    "bin/discoro-node": [sys.executable, str(ROOT / "bin" / "discoro-node")],
    "discoro-node": [sys.executable, "-c", "import sys; from discoro.cli.node import main; sys.exit(main())"],
}


def run(tmp_path: Path, *options: str, way: str = "python -m discoro", **more: str) -> subprocess.CompletedProcess[str]:
    """The command, where it ends by itself."""
    return subprocess.run(
        [*WAYS[way], *options], env=environment(tmp_path, **more), cwd=tmp_path, capture_output=True, text=True, timeout=30
    )


# Wrong usage and what cannot be used, first.


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_option_is_refused_with_the_usage(tmp_path: Path, way: str) -> None:
    done = run(tmp_path, "--nodes", way=way)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: discoro-node") and "unrecognized arguments: --nodes" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--dest",),  # no abbreviations: a later option would change their meaning
        ("-c", "many"),
        ("-c", "1.5"),
        ("-p", "70000"),
        ("-p", "65500"),  # no room for the workers
        ("-u", "-1"),
        ("-u", "٣"),
        ("--max_file_size", "big"),
        ("--max_file_size", "-1"),
        ("--max-memory", "much"),
        ("--drain-timeout", "-1"),
        ("--drain-timeout", "inf"),
        ("--max-memory", "-1"),
        ("-n", ""),
        ("-n", "x" * 64),
        ("-n", "a\nb"),
        ("--cluster", ""),
        ("--ext_ip_addr", "host:1"),
        ("--ext_ip_addr", "a host"),
        ("-d", "extra"),
    ],
)
def test_wrong_usage(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(options)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: discoro-node")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-c", "-1000"), "-c -1000 leaves no processor"),
        (("-c", "1000"), "1000 slots: a node has 1 to 250"),
        (("-i", "203.0.113.77"), "203.0.113.77: no interface of this machine"),
        (("--peer", "host:port"), "'host:port' is not an address"),
        (("--key-file", "."), "cannot be read (Is a directory)"),
        (("--key-file", "junk"), "junk holds no cluster key"),
        (("--key-file", "wide"), "wide is open to others (mode 0644)"),
        (("--max-memory", "127m"), "--max-memory 127 MiB is too little for a worker itself: give 128m or more"),
        (("--dest_path", "junk"), "junk cannot be written"),
        (("--dest_path", "/proc/self/files"), "/proc/self/files cannot be written"),
        (("-s", "short"), "the secret has 5 characters"),
        (("--certfile", "none.pem"), "none.pem cannot be read"),
        (("--keyfile", "none.pem"), "--keyfile needs --certfile"),
        (("--open", "-s", "long enough a secret"), "exclude each other"),
        (("--child",), "--child is for programs"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "junk").chmod(0o600)
    (tmp_path / "wide").write_text("0" * 32)
    (tmp_path / "wide").chmod(0o644)
    done = run(tmp_path, *LOOPBACK, *options)
    assert (done.returncode, done.stdout) == (78, ""), done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named_and_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if port > 65535 - 500:
            pytest.skip("the system gave one of the last ports")
        done = run(tmp_path, "-i", "127.0.0.1", "--no-mdns", "-u", str(port))
    assert done.returncode == 69
    assert f"port {port} is taken" in done.stderr and "choose another port (-p)" in done.stderr
    assert files_below(tmp_path / "files") == []


# Options.


@pytest.mark.parametrize(
    ("spellings", "value", "field", "expected"),
    [
        (("-c", "--cpus"), "3", "cpus", 3),
        (("-c", "--cpus"), "-1", "cpus", -1),
        (("-c", "--cpus"), "0", "cpus", 0),
        (("-i", "--ip_addr", "--ip-addr"), "10.0.0.1", "ip_addr", ["10.0.0.1"]),
        (("--ext_ip_addr", "--ext-ip-addr"), "192.0.2.7", "ext_ip_addr", "192.0.2.7"),
        (("-u", "--urp_port", "--udp_port", "--udp-port", "-p", "--port"), "9700", "port", 9700),
        (("-n", "--name"), "ada", "name", "ada"),
        (("--dest_path", "--dest-path"), "/tmp/x", "dest_path", Path("/tmp/x")),
        (("--max_file_size", "--max-file-size"), "20m", "max_file_size", 20 << 20),
        (("--max-memory",), "2g", "max_memory", 2 << 30),
        (("--drain-timeout",), "2.5", "drain_timeout", 2.5),
        (("-s", "--secret"), "hush", "secret", "hush"),
        (("--certfile",), "c.pem", "certfile", "c.pem"),
        (("--keyfile",), "k.pem", "keyfile", "k.pem"),
        (("--key_file", "--key-file"), "key", "key_file", "key"),
        (("--cluster",), "lab", "cluster", "lab"),
        (("--peer",), "ada:24200", "peer", ["ada:24200"]),
    ],
)
def test_every_spelling_of_an_option(spellings: tuple[str, ...], value: str, field: str, expected: object) -> None:
    for spelling in spellings:
        assert getattr(parser().parse_args([spelling, value]), field) == expected
    assert getattr(parser().parse_args([]), field) != expected or value == "0"


@pytest.mark.parametrize("spelling", ["-d", "--debug", "--open", "--no-mdns", "--json-ready"])
def test_every_switch(spelling: str) -> None:
    field = "debug" if spelling == "-d" else spelling.strip("-").replace("-", "_")
    assert getattr(parser().parse_args([spelling]), field) is True
    assert getattr(parser().parse_args([]), field) is False


def test_addresses_and_peers_may_be_several() -> None:
    options = parser().parse_args(["-i", "10.0.0.1", "--ip_addr", "::1", "--peer", "a", "--peer", "b"])
    assert (options.ip_addr, options.peer) == (["10.0.0.1", "::1"], ["a", "b"])


def test_slots_are_positive_negative_or_all_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "processors", lambda: 8)
    assert [slots_of(cpus) for cpus in (1, 100, 0, -1, -7)] == [1, 100, 8, 7, 1]
    with pytest.raises(ConfigError, match="-c -8 leaves no processor of 8: use -c -7 or more"):
        slots_of(-8)


def test_processors_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert processors() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert processors() == len(allowed)


def test_sizes() -> None:
    assert [size_of(text) for text in ("0", "20971520", "20m", "20MB")] == [0, 20 << 20, 20 << 20, 20 << 20]
    assert [size_of(text) for text in ("3k", "1g", "1T", "7b")] == [3072, 1 << 30, 1 << 40, 7]


@pytest.mark.parametrize(
    ("convert", "texts"),
    [
        (size_of, ("", "b", "m", "1.5g", "²", "0x10")),
        (port_of, ("", "²", "1 ", "65036")),
        (seconds_of, ("", "-1", "nan", "1e3", "²", "1s", "9" * 10)),
        (host_of, ("", "[::1", "::1", "a/b")),
        (name_of, ("", "\x1b[2J", "é" * 32)),
    ],
)
def test_what_is_no_value(convert: Any, texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match="is no "):
            convert(text)


def test_the_default_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORO_DEST_PATH", "/given")
    assert command.default_dest_path() == Path("/given")
    monkeypatch.delenv("DISCORO_DEST_PATH")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert command.default_dest_path() == Path("/cache/discoro")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert command.default_dest_path() == Path("/home/ada/.cache/discoro")


def test_the_installed_command_is_this_one() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "discoro-node = discoro.cli.node:main" in setup["options.entry_points"]["console_scripts"]


@pytest.mark.parametrize("way", WAYS)
def test_help_says_where_mdns_stays(tmp_path: Path, way: str) -> None:
    done = run(tmp_path, "--help", way=way, COLUMNS="80")
    assert done.returncode == 0 and "mDNS, which stays on UDP 5353" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_without_the_dependencies_the_launcher_says_what_to_do(tmp_path: Path) -> None:
    for library in ("zmq", "msgpack", "dill"):
        (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('gone', name={library!r})")
    done = run(tmp_path, way="bin/discoro-node", PYTHONPATH=str(tmp_path))
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1 and "pip install" in done.stderr and "Traceback" not in done.stderr


# What it says.


def test_the_ready_line_is_the_one_line_on_standard_output(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        node = machines.node("ada", "-c", "2", "--cluster", "lab")
        assert node.ready == {
            "name": "ada",
            "node": node.ready["node"],
            "pid": node.pid,
            "cluster": "lab",
            "addresses": node.ready["addresses"],
            "slots": 2,
        }
        (address,) = node.ready["addresses"]
        socket.create_connection(address.split(":")).close()
        node.process.terminate()
        assert node.process.stdout is not None
        assert node.process.stdout.read() == b""
        assert node.end(5) == 0


def test_the_banner(tmp_path: Path) -> None:
    with a_node(tmp_path, "--ext_ip_addr", "gate.example.org") as node:
        port = node.address.rpartition(":")[2]
        said = " ".join(node.output.split())
        assert said.startswith(f"discoro {__version__} node node cluster default slots {processors()} (")
        assert f"files {tmp_path}/files-node address gate.example.org:{port}, 127.0.0.1:{port} " in said
        assert f" ports TCP {port}, workers any free ones trust key {tmp_path}/cluster.key (made now) ready Ctrl-C" in said


def test_the_banner_tells_the_ports_and_what_is_left_out(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = min(free.getsockname()[1], 65000)
    with a_node(tmp_path, "-u", str(port), "--open") as node:
        assert f"ports     TCP {port}, workers {port + 1} to {port + 500}\n" in node.output
        assert "OPEN: whoever reaches these addresses can run code here" in node.output
        for line in node.output.splitlines():
            assert "\033" not in line and (len(line) <= 80 or str(tmp_path) in line)


def test_rows_of_the_banner_fit_the_terminal() -> None:
    rows = wrapped("address", ", ".join(["10.20.30.40:24200"] * 9), 80)
    assert rows[0].startswith("  address   10.") and all(row.startswith(" " * 12 + "10.") for row in rows[1:])
    assert max(map(len, rows)) <= 80 and len(rows) > 1
    assert wrapped("files", "/a/long-path/" * 9, 40) == ["  files     " + "/a/long-path/" * 9]


def test_a_secret_shows_in_no_output(tmp_path: Path) -> None:
    with a_node(tmp_path, "-d", "-s", "correct horse battery") as node:
        assert "--secret was seen in the list of processes until now" in node.output
        assert "horse" not in node.output
        for at in (Path(f"/proc/{pid}") for pid in children(node.pid)):
            assert b"horse" not in (at / "cmdline").read_bytes() + (at / "environ").read_bytes()


def on_a_terminal(tmp_path: Path, until: bytes) -> bytes:
    """What a node shows on a terminal until that; then it is stopped."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, *LOOPBACK, "-c", "1", "-n", "ada"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(tmp_path)) as process:
        os.close(theirs)
        shown = b""
        while until not in shown:
            assert select.select([ours], [], [], 20)[0], shown
            shown += os.read(ours, 4096)
        process.terminate()
        assert process.wait(10) == 0
    os.close(ours)
    return shown


def test_the_code_is_shown_once_and_on_a_terminal_only(tmp_path: Path) -> None:
    first = on_a_terminal(tmp_path, b"Ctrl-C stops it").decode()
    code = code_of(read_key_file(tmp_path / "cluster.key").key)
    assert "on each further machine type discoro join, and" in first and code in first
    assert max(map(len, first.split("\r\n"))) <= 80 or str(tmp_path) in first
    second = on_a_terminal(tmp_path, b"Ctrl-C stops it").decode()
    assert "discoro join" not in second and code not in second


def test_the_code_shows_in_no_log(tmp_path: Path) -> None:
    with a_node(tmp_path, "-d") as node:
        assert "(made now)" in node.output
        assert code_of(read_key_file(tmp_path / "cluster.key").key)[:11] not in node.output


def test_a_secret_from_a_file_and_from_standard_input(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text("correct horse battery\n")
    with a_node(tmp_path, "--secret-file", str(secret)) as node:
        assert f"secret {secret}" in " ".join(node.output.split()) and "horse" not in node.output
    command = [*COMMAND, *LOOPBACK, "--secret-file", "-", "-c", "1"]
    done = subprocess.run(command, input="short\n", capture_output=True, text=True, timeout=20, env=environment(tmp_path))
    assert done.returncode == 78 and "the secret has 5 characters" in done.stderr


@pytest.mark.parametrize(("typed", "status"), [(b"short\n", 78), (b"\x04", 78), (b"\x03", 130)])
def test_a_secret_is_asked_for_on_a_terminal_and_ctrl_c_ends_that(tmp_path: Path, typed: bytes, status: int) -> None:
    ours, theirs = pty.openpty()
    take_terminal = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from discoro.cli.node import main; "
    launch = [sys.executable, "-c", take_terminal + "sys.exit(main(['--secret-file', '-', '-i', '127.0.0.1']))"]
    options: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    with subprocess.Popen(launch, env=environment(tmp_path), **options) as process:
        os.close(theirs)
        shown = b""
        while b"not shown here): " not in shown:
            assert select.select([ours], [], [], 20)[0], shown
            shown += os.read(ours, 4096)
        os.write(ours, typed)
        assert process.wait(20) == status
        shown += os.read(ours, 4096)
    os.close(ours)
    assert b"short\r" not in shown and b"Traceback" not in shown and max(map(len, shown.splitlines())) <= 80
    assert (b"at least 8 are needed" in b" ".join(shown.split())) is (status == 78)


def test_what_is_said_on_a_terminal_fits_it_and_divides_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"discoro: {'a key ' * 10}is open to others: run `chmod 600 /home/ada/cluster.key`"
    assert folded(text) == text, "no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = folded(text).splitlines()
    assert [len(line) <= 80 for line in lines] == [True, True] and lines[1] == "  others: run `chmod 600 /home/ada/cluster.key`"


def test_a_secret_beside_one_from_standard_input_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "--secret", "correct horse", "--secret-file", "-")
    assert done.returncode == 78 and "--secret and --secret-file exclude each other" in done.stderr


def test_open_at_a_public_address_needs_a_second_word(tmp_path: Path) -> None:
    command = [*COMMAND, *LOOPBACK, "-c", "1", "--open", "--ext-ip-addr", "gate.example.org"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment(tmp_path))
    assert done.returncode == 78
    assert "--open at public addresses (gate.example.org)" in done.stderr and "--open-public" in done.stderr
    with a_node(tmp_path, "--open", "--open-public", "--ext-ip-addr", "gate.example.org") as node:
        assert "OPEN" in node.output


def test_debug_logs_more_of_discoro(tmp_path: Path) -> None:
    with a_node(tmp_path, "-d") as node, Machines(tmp_path) as machines:
        machines.program("client", CLIENT.format(address=node.address, function="nothing")).next("set up", 20)
        assert "discoro." in node.output


# How it ends.

CLIENT = """
import ctypes, os, subprocess
from discoro import Computation, Coro, Mesh

def nothing(coro=None):
    yield coro.receive()

def hold(coro=None):
    yield None
    while True:
        ctypes.PyDLL(None).sleep(600)

def client(coro=None):
    server = yield Coro.locate("discoro_server")
    computation = Computation({function}, depends=[__file__])
    yield computation.setup(server)
    remote = yield computation.run(server)
    say("set up", remote.pid)
    try:
        yield remote.result()
    except Exception as error:
        say("lost", str(error))
    yield coro.receive()

discoro.run(client, peers=["{address}"], ip_addr=["127.0.0.1"], mdns=False)
"""


@contextlib.contextmanager
def busy_node(tmp_path: Path, function: str, *options: str) -> Iterator[tuple[NodeCommand, Any, int]]:
    """A node, a client of it, and the pid of the worker that runs the function for that client."""
    with Machines(tmp_path) as machines:
        node = machines.node("node", "-c", "1", *options)
        client = machines.program("client", CLIENT.format(address=node.address, function=function))
        yield node, client, client.next("set up", 20)


@pytest.mark.parametrize(
    ("number", "function"),
    [(signal.SIGTERM, "nothing"), (signal.SIGINT, "nothing"), (signal.SIGHUP, "nothing"), (signal.SIGTERM, "hold")],
)
def test_a_signal_stops_it_in_order(tmp_path: Path, number: int, function: str) -> None:
    with busy_node(tmp_path, function) as (node, client, worker):
        before = children(node.pid)
        assert worker in before
        started = time.monotonic()
        node.process.send_signal(number)
        assert node.end(3) == 0
        assert time.monotonic() - started < 3
        until_ended(list(before), 0)
        assert files_below(tmp_path / "files-node") == []
        assert "ended: " in client.next("lost", 5)  # by its worker, or by the node where that was busy
        client.process.kill()
        assert node.output.endswith("discoro-node: stopping\n")


CLOSING = """
def nothing(coro=None):
    yield coro.receive()

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(nothing)
    yield computation.setup(server)
    remote = yield computation.run(server)
    yield computation.ping(server)
    say("set up", remote.pid)
    if told() == "close":
        yield computation.close(server)
    say("done")

discoro.run(client, peers=["{address}"], ip_addr=["127.0.0.1"], mdns=False)
"""


@contextlib.contextmanager
def draining_node(tmp_path: Path, timeout: str) -> Iterator[tuple[NodeCommand, Any]]:
    """A node that got SIGTERM and drains, and a client with a computation open there."""
    with Machines(tmp_path) as machines:
        node = machines.node("node", "-c", "1", "--drain-timeout", timeout)
        client = machines.program("client", CLOSING.format(address=node.address))
        client.next("set up", 30)
        node.process.terminate()
        said = f"draining, for at most {timeout} s: nothing of "
        node.until_output(lambda output: said in output and "Ctrl-C ends it at once" in output, 30)
        yield node, client
        assert files_below(tmp_path / "files-node") == []


@pytest.mark.parametrize("how", ["close", "leave"])
def test_a_node_that_drains_ends_once_all_was_closed(tmp_path: Path, how: str) -> None:
    with draining_node(tmp_path, "60") as (node, client):
        client.tell(how)
        client.next("done", 30)
        assert node.end(30) == 0
        assert "still open" not in node.output and node.output.endswith("discoro-node: stopping\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_node_that_drains_at_once(tmp_path: Path, number: int) -> None:
    with draining_node(tmp_path, "600") as (node, client):
        node.process.send_signal(number)
        assert node.end(30) == 0
        assert "still open: nothing of " in node.output
        client.process.kill()


def test_a_node_that_drains_ends_when_the_time_is_over(tmp_path: Path) -> None:
    with draining_node(tmp_path, "0.1") as (node, client):
        assert node.end(30) == 0
        assert "still open: nothing of " in node.output
        client.process.kill()


def test_a_node_with_nothing_open_drains_at_once_and_ctrl_c_never_drains(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        free, asked = (machines.node(name, "-c", "1", "--drain-timeout", "600") for name in ("free", "asked"))
        free.process.terminate()
        asked.process.send_signal(signal.SIGINT)
        assert free.end(30) == 0 and "nothing is open" in free.output
        assert asked.end(30) == 0 and "draining" not in asked.output


def test_ctrl_c_in_a_terminal_again_and_again(tmp_path: Path) -> None:
    """All of the terminal's foreground gets it; the workers are not of it."""
    ours, theirs = pty.openpty()
    try:
        options: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
        with subprocess.Popen([*COMMAND, *LOOPBACK, "-c", "2"], env=environment(tmp_path), **options) as node:
            said = b""
            while b"Ctrl-C" not in said:
                said += os.read(ours, 4096)
            workers = children(node.pid)
            while node.poll() is None and b"stopping" not in said:
                os.killpg(node.pid, signal.SIGINT)
                said += os.read(ours, 4096)
            for _ in range(3):
                os.killpg(node.pid, signal.SIGINT)
            assert node.wait(3) == 0
        until_ended(list(workers), 0)
        os.close(theirs)
        theirs = -1
        with contextlib.suppress(OSError):
            while data := os.read(ours, 4096):
                said += data
        assert b"Traceback" not in said and b"Error" not in said
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    assert files_below(tmp_path / "files") == []


def test_nohup_is_respected(tmp_path: Path) -> None:
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["nohup", *COMMAND, *LOOPBACK, "--json-ready"], env=environment(tmp_path), **options) as node:
        assert node.stdout is not None and json.loads(node.stdout.readline())
        node.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            node.wait(0.3)
        node.terminate()
        assert node.wait(5) == 0


@pytest.mark.parametrize("function", ["nothing", "hold"])
def test_a_killed_node_leaves_no_worker_and_the_next_one_no_files(tmp_path: Path, function: str) -> None:
    with busy_node(tmp_path, function) as (node, client, worker):
        workers = children(node.pid)
        assert worker in workers
        node.kill()
        assert until_ended(list(workers), 2) < 2
        assert any(name.endswith(".py") for name in files_below(tmp_path / "files-node"))
        client.process.kill()
        with Machines(tmp_path) as machines:
            machines.node("node")
            assert not any(name.endswith(".py") for name in files_below(tmp_path / "files-node"))
    assert files_below(tmp_path / "files-node") == []


def test_two_nodes_with_one_directory(tmp_path: Path) -> None:
    with busy_node(tmp_path, "nothing") as (node, _, worker):
        with Machines(tmp_path) as machines:
            machines.node("other", "--dest_path", str(tmp_path / "files-node"))
        assert any(name.endswith(".py") for name in files_below(tmp_path / "files-node"))
        assert worker in children(node.pid)


@pytest.mark.parametrize("function", ["nothing", "hold"])
def test_a_client_that_is_killed_leaves_no_worker_and_no_files(tmp_path: Path, function: str) -> None:
    with busy_node(tmp_path, function) as (_, client, worker):
        files = Path(f"/proc/{worker}/cwd").readlink()
        assert list(files.glob("*.py"))
        client.kill()
        until_ended([worker], 5)
        until_gone(files, 5)


def test_warnings_of_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left open, in the node and in its workers."""
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    with busy_node(tmp_path, "nothing") as (node, client, worker):
        os.kill(worker, signal.SIGTERM)
        client.next("lost", 10)
        client.process.kill()
        node.process.terminate()
        assert node.end(5) == 0
        assert "was killed by SIGTERM" in node.output and "Warning" not in node.output
