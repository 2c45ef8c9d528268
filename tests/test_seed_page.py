"""The asyncoro 3.2 discoro page, promise by promise: each test is named after what one sentence of the page says.

Written as a user of that page would write it: generator functions, everything with yield, on a real node.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro import (
    Computation,
    Coro,
    ExitNotice,
    NoNodes,
    NotACoroutine,
    NotSetUp,
    SetupFailed,
    Timeout,
    TooLarge,
    discoro_server,
)
from tests.support.commands import Machines, NodeCommand
from tests.support.sites import Site, files_below, running_site

CPUS = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        yield site


@contextlib.contextmanager
def node(directory: Path, *options: str) -> Iterator[NodeCommand]:
    """A node started as a program with these options, which stand after those of the tests and so win."""
    with Machines(directory) as machines:
        yield machines.node("here", *options)


def client_of(node: NodeCommand, directory: Path, client: Any, *args: Any, **options: Any) -> Any:
    """Run a client against that node, with the key of its directory unless the options say otherwise."""
    options = {"key_file": directory / "cluster.key"} if not options else options
    here = {"mdns": False, "ip_addr": ["127.0.0.1"], "peers": [node.address], "discover_timeout": 3.0}
    return discoro.run(client, *args, **{**here, **options})


# ------------------------------------------------------------------ what is sent in these tests


def compute(n: int, coro: Any = None) -> Any:
    yield coro.sleep(0)
    return 2 * n


def call(function: Any, *args: Any) -> Any:
    yield
    return function(*args)


def listen(coro: Any = None) -> Any:
    message = yield coro.receive()
    return message


def wait(coro: Any = None) -> Any:
    yield coro.receive()


def helper(n: int) -> int:
    return 100 + n


class Shape:
    corners = 4


# ------------------------------------------------------------------ class Computation


def test_clients_send_different_computations_to_create_coroutines_at_a_remote_server(site: Site) -> None:
    def client(server: Any, coro: Any = None) -> Any:
        results = []
        for function, args in ((compute, (21,)), (call, (len, "four"))):
            computation = Computation(function)
            yield computation.setup(server)
            remote = yield computation.run(server, *args)
            assert remote.pid not in (os.getpid(), site.node.pid)
            results.append((yield remote.result()))
        return results

    assert site.run("node", client) == [42, 4]


def names(function: Any) -> list[str]:
    found = inspect.signature(function).parameters.values()
    return [each.name for each in found if each.name != "self" and each.kind is not inspect.Parameter.KEYWORD_ONLY]


def defaults(function: Any) -> dict[str, Any]:
    found = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in found if each.default is not inspect.Parameter.empty}


def test_names_order_and_defaults_of_the_parameters_are_those_of_the_page() -> None:
    assert names(Computation) == ["computation", "depends", "cleanup"]
    assert names(Computation.setup) == ["peer", "timeout", "func", "args", "kwargs"]
    assert names(Computation.run) == ["peer", "args", "kwargs"]
    assert names(Computation.ping)[0] == "peer"
    assert names(Computation.close)[:4] == ["peer", "func", "args", "kwargs"]
    assert defaults(Computation)["cleanup"] is True
    assert not defaults(Computation)["depends"]
    assert not any(defaults(Computation.setup).values())
    assert defaults(discoro_server) == {"name": "discoro_server"}


def test_a_computation_must_be_a_generator_function() -> None:
    with pytest.raises(NotACoroutine):
        Computation(helper)
    Computation(compute)


def test_depends_is_a_list_of_functions_classes_modules_and_path_names_of_files(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "seedling.py").write_text("LEAVES = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import seedling  # type: ignore[import-not-found]

    def uses_all() -> Any:
        yield
        with open("data.txt") as file:
            return globals()["helper"](1), globals()["Shape"]().corners, __import__("seedling").LEAVES, file.read()

    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(uses_all, depends=[helper, Shape, seedling, str(tmp_path / "data.txt")])
        yield computation.setup(server)
        remote = yield computation.run(server)
        return (yield remote.result())

    assert site.run("node", client) == (101, 4, 2, "data")


@pytest.mark.parametrize("cleanup", [True, False])
def test_cleanup_says_whether_the_server_removes_the_files_after_the_computation_is_done(
    site: Site, tmp_path: Path, cleanup: bool
) -> None:
    (tmp_path / "data.txt").touch()

    def client(server: Any, coro: Any = None) -> Any:
        others = Computation(wait)  # so that the worker, and its directory with it, outlives the close
        yield others.setup(server)
        computation = Computation(call, [tmp_path / "data.txt"], cleanup)
        yield computation.setup(server)
        remote = yield computation.run(server, os.path.abspath, "data.txt")
        path = yield remote.result()
        assert os.path.exists(path)
        yield computation.close(server)
        return os.path.exists(path)

    assert site.run("node", client) is not cleanup


# ------------------------------------------------------------------ setup


def test_setup_transfers_the_computation_to_the_peer_that_locate_gave_and_returns_0(site: Site) -> None:
    def client(_: Any, coro: Any = None) -> Any:
        peer = yield Coro.locate("discoro_server")
        return (yield Computation(compute).setup(peer))

    assert site.run("node", client) == 0


def test_timeout_is_the_seconds_that_the_transfer_may_take(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(os.urandom(1 << 20))

    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(compute, depends=[tmp_path / "data"])
        with pytest.raises(Timeout, match="not done in 0 s"):
            yield computation.setup(server, timeout=0)
        return (yield computation.setup(server, 20))

    assert site.run("node", client) == 0


def test_func_is_transferred_and_executed_with_args_and_kwargs(site: Site) -> None:
    def prepare(base: int, scale: int = 1) -> None:
        global origin
        origin = base * scale

    def from_origin(n: int) -> Any:
        yield
        return origin + n  # type: ignore[name-defined]

    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(from_origin)
        yield computation.setup(server, func=prepare, args=(20,), kwargs={"scale": 2})
        remote = yield computation.run(server, 2)
        return (yield remote.result())

    assert site.run("node", client) == 42


def test_func_can_prepare_the_peer_by_loading_modules(site: Site) -> None:
    def load() -> None:
        global colorsys
        import colorsys

    def use() -> Any:
        yield
        return colorsys.rgb_to_hsv(0, 0, 0)

    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(use)
        yield computation.setup(server, None, load)
        remote = yield computation.run(server)
        return (yield remote.result())

    assert site.run("node", client) == (0.0, 0.0, 0)


def test_setup_is_called_once_for_each_peer(site: Site) -> None:
    def client(server: Any, coro: Any = None) -> Any:
        first, second = yield discoro.servers()
        computation = Computation(compute)
        yield computation.setup(first)
        with pytest.raises(NotSetUp):
            yield computation.run(second, 1)
        yield computation.setup(second)
        one = yield computation.run(first, 1)
        two = yield computation.run(second, 1)
        return (yield one.result()), (yield two.result())

    assert site.run("node", client) == (2, 2)


# ------------------------------------------------------------------ run


def test_run_creates_a_coroutine_with_the_arguments_and_gives_its_reference(site: Site) -> None:
    def echo(*args: Any, **kwargs: Any) -> Any:
        yield
        return args, kwargs

    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(echo)
        yield computation.setup(server)
        remote = yield computation.run(server, 1, "a", key=[2])
        assert isinstance(remote, discoro.CoroRef)
        return (yield remote.result())

    assert site.run("node", client) == ((1, "a"), {"key": [2]})


def test_the_reference_serves_to_pass_messages_and_to_monitor(site: Site) -> None:
    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(listen)
        yield computation.setup(server)
        remote = yield computation.run(server)
        yield coro.monitor(remote)
        assert (yield remote.deliver("hello")) == 1
        return (yield coro.receive()) == ExitNotice(remote, "normal", "hello")

    assert site.run("node", client) is True


def test_run_is_called_as_many_times_as_necessary(site: Site) -> None:
    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(compute)
        yield computation.setup(server)
        remotes, total = [], 0
        for n in range(100):
            remotes.append((yield computation.run(server, n)))
        for remote in remotes:
            total += yield remote.result()
        return len(set(remotes)), total

    assert site.run("node", client) == (100, 9900)


def test_all_coroutines_of_a_server_run_in_one_thread(site: Site) -> None:
    def client(server: Any, coro: Any = None) -> Any:
        threads = set()
        for _ in range(3):
            computation = Computation(call)
            yield computation.setup(server)
            for _ in range(3):
                remote = yield computation.run(server, lambda: (os.getpid(), threading.get_ident()))
                threads.add((yield remote.result()))
        return len(threads)

    assert site.run("node", client) == 1


def test_several_servers_of_a_node_use_several_processors(site: Site) -> None:
    """Two computations that compute without a pause, each until the other has begun: only two processes end them."""

    def meet(mine: str, other: str) -> Any:
        import os
        import time

        yield
        open(mine, "x").close()
        end = time.monotonic() + 10
        while not os.path.exists(other):
            if time.monotonic() > end:
                raise TimeoutError("alone")
        return os.getpid()

    def client(server: Any, coro: Any = None) -> Any:
        computation, remotes = Computation(meet), []
        names = [str(site.directory / name) for name in ("a", "b")]
        for peer in (yield discoro.servers()):
            yield computation.setup(peer)
            remotes.append((yield computation.run(peer, *names)))
            names.reverse()
        pids = set()
        for remote in remotes:
            pids.add((yield remote.result()))
        return len(pids)

    assert site.run("node", client) == 2


# ------------------------------------------------------------------ ping and close


def test_ping_checks_that_the_server_is_reachable_and_gives_0(site: Site) -> None:
    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(compute)
        yield computation.setup(server)
        return (yield computation.ping(server))

    assert site.run("node", client) == 0


def test_close_closes_the_computation_and_then_run_and_ping_fail(site: Site) -> None:
    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(compute)
        yield computation.setup(server)
        value = yield computation.close(server)
        for fails in (computation.run, computation.ping):
            with pytest.raises(NotSetUp, match="was closed"):
                yield fails(server)
        return value

    assert site.run("node", client) == 0


def test_func_of_close_is_transferred_and_executed_to_unload_modules_and_delete_globals(site: Site) -> None:
    def prepare() -> None:
        global wave, table
        import wave

        table = {"a": 1}

    def clean(path: str, word: str = "") -> None:
        global wave, table
        import sys

        name = wave.__name__
        del wave, table, sys.modules[name]
        with open(path, "w") as file:
            file.write(f"{word} {'table' in globals()} {name in sys.modules}")

    def client(server: Any, coro: Any = None) -> Any:
        computation = Computation(compute)
        yield computation.setup(server, func=prepare)
        return (yield computation.close(server, clean, (str(site.directory / "cleaned"),), {"word": "clean"}))

    assert site.run("node", client) == 0
    assert (site.directory / "cleaned").read_text() == "clean False False"


def test_close_of_one_peer_leaves_the_others(site: Site) -> None:
    def client(server: Any, coro: Any = None) -> Any:
        first, second = yield discoro.servers()
        computation = Computation(compute)
        yield computation.setup(first)
        yield computation.setup(second)
        yield computation.close(first)
        remote = yield computation.run(second, 4)
        return (yield remote.result())

    assert site.run("node", client) == 8


# ------------------------------------------------------------------ discoro_server


def test_discoro_server_is_a_generator_method_that_makes_a_server_of_any_name(site: Site) -> None:
    assert inspect.isgeneratorfunction(discoro_server)

    def client(_: Any, coro: Any = None) -> Any:
        Coro(discoro_server, name="mine")
        peer = yield Coro.locate("mine", timeout=10)
        computation = Computation(compute)
        yield computation.setup(peer)
        remote = yield computation.run(peer, 4)
        assert remote.pid == os.getpid()
        return (yield remote.result())

    assert site.run("node", client) == 8


# ------------------------------------------------------------------ discoro as a program


def test_the_program_starts_servers_that_clients_can_send_computations_to(site: Site) -> None:
    assert site.node.process.args[1:3] == ["-m", "discoro"]  # type: ignore[index]
    test_clients_send_different_computations_to_create_coroutines_at_a_remote_server(site)


@pytest.mark.parametrize(("options", "slots"), [((), CPUS), (("-c", "0"), CPUS), (("-c", "1"), 1), (("-c", str(1 - CPUS)), 1)])
def test_c_is_the_number_of_servers_or_of_processors_not_used_or_all(
    tmp_path: Path, options: tuple[str, ...], slots: int
) -> None:
    with node(tmp_path, *options) as started:
        assert started.ready["slots"] == slots


def test_i_and_ip_addr_and_ext_ip_addr_say_where_a_node_listens_and_is_reached(tmp_path: Path) -> None:
    with node(tmp_path, "-c", "1", "--ip_addr", "127.0.0.1", "--ext_ip_addr", "192.0.2.7") as started:
        port = started.address.rpartition(":")[2]
        assert started.ready["addresses"] == [f"192.0.2.7:{port}", f"127.0.0.1:{port}"]
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
            pass


@pytest.mark.parametrize("option", ["-u", "--urp_port", "--udp_port"])
def test_u_sets_the_port(tmp_path: Path, option: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with node(tmp_path, "-c", "1", option, str(port)) as started:
        assert started.address == f"127.0.0.1:{port}"


@pytest.mark.parametrize("option", ["-n", "--name"])
def test_n_names_the_node(tmp_path: Path, option: str) -> None:
    def client(coro: Any = None) -> Any:
        server = yield Coro.locate("discoro_server", location="bertha", timeout=10)
        return str(server).partition("/")[0]

    with node(tmp_path, "-c", "1", option, "bertha") as started:
        assert started.ready["name"] == "bertha"
        assert client_of(started, tmp_path, client) == "bertha"


def send_file(path: Path) -> Any:
    """A client that sends a file, and gives the place where it arrived."""

    def client(coro: Any = None) -> Any:
        server = yield Coro.locate("discoro_server", timeout=10)
        computation = Computation(call, depends=[path])
        yield computation.setup(server)
        remote = yield computation.run(server, os.path.abspath, path.name)
        return (yield remote.result())

    return client


def test_dest_path_is_where_files_go(tmp_path: Path) -> None:
    (tmp_path / "data.txt").touch()
    with node(tmp_path, "-c", "1", "--dest_path", str(tmp_path / "there")) as started:
        place = client_of(started, tmp_path, send_file(tmp_path / "data.txt"))
    assert place.startswith(f"{tmp_path}/there/")
    assert files_below(tmp_path / "there") == [], "a node that stops leaves nothing"


def test_max_file_size_is_the_largest_file_taken(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(1000))
    (tmp_path / "large").write_bytes(bytes(1001))
    with node(tmp_path, "-c", "1", "--max_file_size", "1000") as started:
        client_of(started, tmp_path, send_file(tmp_path / "small"))
        with pytest.raises(TooLarge, match=r"1001 bytes; at most 1000 .*the largest are large \(1001 bytes\)"):
            client_of(started, tmp_path, send_file(tmp_path / "large"))


@pytest.mark.parametrize("option", ["-s", "--secret"])
def test_s_is_the_secret_that_both_sides_know(tmp_path: Path, option: str) -> None:
    with node(tmp_path, "-c", "1", option, "correct horse battery staple") as started:
        (tmp_path / "data.txt").touch()
        client = send_file(tmp_path / "data.txt")
        assert client_of(started, tmp_path, client, secret="correct horse battery staple")
        with pytest.raises(NoNodes):
            client_of(started, tmp_path, client, secret="another horse battery staple", discover_timeout=0.5)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is not installed")
def test_certfile_and_keyfile_are_the_pair_that_both_sides_have(tmp_path: Path) -> None:
    pair = {"certfile": tmp_path / "cert.pem", "keyfile": tmp_path / "key.pem"}
    request = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=group", "-days", "1"]
    subprocess.run(
        [*request, "-keyout", pair["keyfile"], "-out", pair["certfile"]], check=True, capture_output=True, timeout=20
    )
    pair["keyfile"].chmod(0o600)
    (tmp_path / "data.txt").touch()
    options = [text for name, path in pair.items() for text in (f"--{name}", str(path))]
    with node(tmp_path, "-c", "1", *options) as started:
        assert client_of(started, tmp_path, send_file(tmp_path / "data.txt"), **pair)


@pytest.mark.parametrize("option", ["-d", "--debug"])
def test_d_shows_debug_messages(tmp_path: Path, option: str) -> None:
    with node(tmp_path, "-c", "1", option) as started:
        pass
    assert " DEBUG " in started.output or " INFO " in started.output
    with node(tmp_path, "-c", "1") as quiet:
        pass
    assert " DEBUG " not in quiet.output
    assert " INFO " not in quiet.output


def test_a_func_that_fails_is_told_with_its_reason(site: Site) -> None:
    """The page says `If successful, the return value is 0`: what is not successful raises."""

    def client(server: Any, coro: Any = None) -> Any:
        with pytest.raises(SetupFailed, match="func <lambda> of setup raised ZeroDivisionError"):
            yield Computation(compute).setup(server, func=lambda: 1 // 0)

    site.run("node", client)
