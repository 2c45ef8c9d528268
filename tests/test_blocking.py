"""The mesh for ordinary code: every call blocks, from any thread but its own, and raises what the operation raises."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro.blocking import BlockingMesh
from tests.support.commands import Machines
from tests.support.nodes import children, until_ended


def options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"key_file": tmp_path / "cluster.key", "mdns": False, "ip_addr": ["127.0.0.1"], **more}


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[BlockingMesh]:
    with BlockingMesh(**options(tmp_path)) as mesh:
        yield mesh


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), f"{thread} was left behind"


def echo(coro: Any = None) -> Any:
    """Replies with what it is asked; what it is merely sent ends it, as its value."""
    while True:
        message = yield coro.receive()
        if coro.reply(message) == 0:
            return message


async def forever() -> None:
    await asyncio.Event().wait()


# What goes wrong at the start.


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"ip_addr": ["192.0.2.254"]}, discoro.ConfigError),
        ({"ip_addr": "127.0.0.1"}, discoro.ConfigError),
        ({"key_file": "file/cluster.key"}, discoro.KeyFileError),
        ({"no_such_option": 1}, TypeError),
    ],
    ids=["address", "kind", "key", "unknown"],
)
def test_what_does_not_start_raises_here_and_leaves_nothing(
    wrong: dict[str, Any], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no directory")
    before = threading.active_count()
    with pytest.raises(error) as raised:
        BlockingMesh(**options(tmp_path, **wrong))
    assert raised.type is error
    assert threading.active_count() == before


def test_a_local_node_that_does_not_start_raises_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())
    with pytest.raises(discoro.ConfigError, match="status 78 before it was ready"):
        BlockingMesh(**options(tmp_path), local=True, local_options=["-c", "-1000"])
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # asyncio's own, which waited for the node's process
        assert not thread.is_alive(), thread
    assert not children(os.getpid())
    assert "leaves no processor" in capfd.readouterr().err


def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    async def start(self: discoro.Mesh) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await forever()
        finally:
            ended.set()

    monkeypatch.setattr(discoro.Mesh, "_start", start)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        BlockingMesh(**options(tmp_path))
    assert ended.is_set() and threading.active_count() == before


# What goes wrong afterwards.


def test_what_no_coroutine_can_be_made_of_is_refused(mesh: BlockingMesh) -> None:
    with pytest.raises(discoro.NotACoroutine, match="print"):
        mesh.create(print)
    with pytest.raises(discoro.NotACoroutine, match="print"):
        mesh.computation(print)
    with pytest.raises(TypeError, match="'ada/4711/12'"):
        mesh.coro("ada/4711/12")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="5 can be neither awaited nor called"):
        mesh.wait(5)
    with pytest.raises(TypeError, match="called already"):
        mesh.wait(forever(), 1)


def test_in_its_own_thread_it_does_not_wait(mesh: BlockingMesh) -> None:
    worker = mesh.create(echo)
    calls: list[Callable[[], Any]] = [worker.is_alive, lambda: worker.send(1), mesh.receive, mesh.close, mesh.servers]

    async def tries(call: Callable[[], Any]) -> None:
        with pytest.raises(RuntimeError, match=r"own thread.*yield or await"):
            call()

    for call in calls:
        mesh.wait(tries, call, timeout=10)
    assert worker.is_alive()


def test_after_the_end_every_call_says_so(tmp_path: Path) -> None:
    mesh = BlockingMesh(**options(tmp_path))
    worker, sums = mesh.create(echo), mesh.computation(echo)
    assert "closed" not in repr(mesh)
    mesh.close()
    mesh.close()
    assert repr(mesh).endswith(" closed>")
    calls: list[Callable[[], Any]] = [
        *(lambda: mesh.create(echo), lambda: mesh.coro(worker.ref), lambda: mesh.locate("x"), mesh.servers),
        *(lambda: mesh.computation(echo), lambda: mesh.wait(forever()), lambda: mesh.wait(forever), mesh.receive, mesh.reply),
        *(lambda: mesh.monitor(worker), lambda: mesh.register("x"), mesh.unregister),
        *(lambda: worker.send(1), lambda: worker.deliver(1), lambda: worker.ask(1), worker.result, worker.terminate),
        *(worker.is_alive, worker.resume, lambda: worker.throw(KeyError()), lambda: worker.hot_swap(echo)),
        *(lambda: sums.setup(worker), lambda: sums.run(worker), lambda: sums.ping(worker), lambda: sums.close(worker)),
    ]
    for call in calls:
        with pytest.raises(discoro.NoMesh, match="was closed: make another"):
            call()


def test_who_waits_when_it_is_closed_is_told(tmp_path: Path) -> None:
    mesh = BlockingMesh(**options(tmp_path))
    begun = threading.Barrier(3)

    async def waits() -> None:
        await asyncio.to_thread(begun.wait, 10)
        await forever()

    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(mesh.wait, waits) for _ in range(2)]
        begun.wait(10)
        mesh.close()
        for caller in callers:
            with pytest.raises(discoro.NoMesh, match="was closed.*while this call waited"):
                caller.result(10)


def test_a_signal_handler_may_close_it_while_its_thread_waits(mesh: BlockingMesh) -> None:
    async def interrupts() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        await forever()

    before = signal.signal(signal.SIGUSR1, lambda *_: mesh.close())
    try:
        with pytest.raises(discoro.NoMesh, match="was closed.*while this call waited"):
            mesh.wait(interrupts)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_tasks_that_users_left_end_with_it(tmp_path: Path) -> None:
    ended = []

    async def task() -> None:
        try:
            await forever()
        finally:
            ended.append("task")

    async def leaves() -> asyncio.Task[None]:
        left = asyncio.create_task(task())
        await asyncio.sleep(0)
        return left

    with BlockingMesh(**options(tmp_path)) as mesh:
        left = mesh.wait(leaves)
        assert not left.done()
    assert left.cancelled() and ended == ["task"]


def test_it_ends_with_its_own_coroutine(mesh: BlockingMesh) -> None:
    """Otherwise who waits in `receive` would wait for ever."""

    async def ends_it() -> None:
        await mesh.ref.terminate()
        await forever()

    with pytest.raises(discoro.NoMesh, match="somebody ended"):
        mesh.wait(ends_it)
    with pytest.raises(discoro.NoMesh, match="somebody ended"):
        mesh.receive()


def test_a_loop_that_is_stuck_does_not_keep_who_closes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    async def blocks() -> None:
        stuck.set()
        go_on.wait(20)

    mesh = BlockingMesh(**options(tmp_path))
    mesh.create(blocks)
    stuck.wait(10)
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(mesh.receive)
        mesh._background.close(0.1)
        with pytest.raises(discoro.NoMesh, match="was closed"):
            caller.result(10)
    assert "did not leave in 0.1 s" in caplog.text and "in blocks" in caplog.text
    go_on.set()


# Ctrl-C.


def test_ctrl_c_cancels_what_is_waited_for_and_leaves_the_mesh(mesh: BlockingMesh) -> None:
    ended: list[str] = []

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    async def operation() -> None:
        try:
            interrupt()
            await forever()
        finally:
            ended.append("operation")

    def coroutine(coro: Any = None) -> Any:
        try:
            interrupt()
            yield coro.receive()
        finally:
            ended.append("coroutine")

    with pytest.raises(KeyboardInterrupt):
        mesh.wait(operation())
    with pytest.raises(KeyboardInterrupt):
        mesh.wait(coroutine)
    worker = mesh.create(echo)
    assert worker.ask("still there", timeout=10) == "still there"
    mesh.wait(asyncio.sleep, 0)  # what was cancelled has had its turn
    assert ended == ["operation", "coroutine"]


def test_a_message_after_an_interrupted_receive_is_received(mesh: BlockingMesh) -> None:
    def sends(coro: Any = None) -> Any:
        message = yield coro.receive()
        mesh.ref.send(message)

    async def interrupts() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    worker = mesh.create(sends)
    with pytest.raises(KeyboardInterrupt):
        mesh.create(interrupts)
        mesh.receive()
    worker.send("m")
    assert mesh.receive(timeout=10) == "m"


# What goes well: coroutines of this process.


def test_a_coroutine_from_ordinary_code(mesh: BlockingMesh) -> None:
    worker = mesh.create(echo)
    assert worker.is_alive() and worker.ask("question", timeout=10) == "question"
    assert worker.deliver("end", timeout=10) == 1
    assert worker.result(timeout=10) == worker.finish() == worker.value() == "end"
    assert not worker.is_alive() and worker.terminate() == 0
    assert str(worker) == str(worker.ref) and str(worker.ref) in repr(worker)


def test_objects_do_not_travel_within_the_process(mesh: BlockingMesh) -> None:
    async def gives(what: object, coro: Any = None) -> Any:
        return what, await coro.receive()

    first, second = threading.Lock(), object()
    worker = mesh.create(gives, first)
    worker.send(second)
    got = worker.result(timeout=10)
    assert got[0] is first and got[1] is second


def test_what_it_raises_comes_out(mesh: BlockingMesh) -> None:
    async def fails() -> None:
        raise KeyError("mine")

    def ends() -> Any:
        yield asyncio.sleep(0)
        sys.exit(3)

    with pytest.raises(KeyError, match="mine"):
        mesh.wait(fails)
    for way in (ends, lambda: sys.exit(3)):
        with pytest.raises(discoro.CoroEnded, match="SystemExit"):
            mesh.wait(way)
    assert mesh.wait(asyncio.sleep, 0, "still there") == "still there"


def test_times_are_limits(mesh: BlockingMesh) -> None:
    worker = mesh.create(echo)
    with pytest.raises(discoro.Timeout):
        worker.result(timeout=0.01)
    assert mesh.receive(timeout=0.01) is None and mesh.receive(timeout=0, alarm_value="none") == "none"
    ended = threading.Event()

    async def waits() -> None:
        try:
            await forever()
        finally:
            ended.set()

    for operation in (waits, waits()):
        with pytest.raises(discoro.Timeout, match=r"not done in 0\.01 s"):
            mesh.wait(operation, timeout=0.01)
        assert ended.wait(10)
        ended.clear()

    async def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        mesh.wait(late(), timeout=10)


def test_a_coroutine_is_resumed_terminated_and_thrown_at(mesh: BlockingMesh) -> None:
    async def suspends(to: discoro.CoroRef, coro: Any = None) -> Any:
        to.send("begun")
        return await coro.suspend()

    workers = []
    for _ in range(3):
        workers.append(mesh.create(suspends, mesh.ref))
        assert mesh.receive(timeout=10) == "begun"
    assert workers[0].resume("update") == 0 and workers[0].result(timeout=10) == "update"
    assert mesh.monitor(workers[1]) == 0  # somebody hears of it: no warning
    assert workers[1].throw(KeyError("thrown")) == 0
    with pytest.raises(KeyError, match="thrown"):
        workers[1].result(timeout=10)
    assert workers[2].terminate() == 0
    with pytest.raises(discoro.CoroEnded, match="terminated"):
        workers[2].result(timeout=10)


def test_a_coroutine_goes_on_as_another_function(mesh: BlockingMesh) -> None:
    def first(coro: Any = None) -> Any:
        coro.hot_swappable(True)
        yield coro.receive()

    def second(n: int, coro: Any = None) -> Any:
        return n, (yield coro.receive())

    worker = mesh.create(first)
    assert worker.hot_swap(second, 2) == 0
    worker.send("m")
    assert worker.result(timeout=10) == (2, "m")


# Its own mailbox.


def test_coroutines_send_to_ordinary_code_and_ask_it(mesh: BlockingMesh) -> None:
    async def asks(to: discoro.CoroRef) -> Any:
        to.send("first")
        return await to.ask("second", timeout=10)

    worker = mesh.create(asks, mesh.ref)
    assert mesh.receive(timeout=10) == "first" and mesh.reply("nobody waits") == 0
    assert mesh.receive(timeout=10) == "second" and mesh.reply("answer") == 1
    assert worker.result(timeout=10) == "answer"


def test_the_end_of_a_coroutine_is_a_message(mesh: BlockingMesh) -> None:
    worker = mesh.create(echo)
    assert mesh.monitor(worker) == mesh.monitor(worker.ref) == 0
    worker.send("end")
    notice = mesh.receive(timeout=10)
    assert (notice.ref, notice.reason, notice.value) == (worker.ref, "normal", "end")
    assert mesh.receive(timeout=0) is None


def test_a_blocking_one_is_a_reference_to_coroutines(mesh: BlockingMesh) -> None:
    async def gives(first: object, second: object = None, coro: Any = None) -> Any:
        return first, second, await coro.receive()

    worker = mesh.create(echo)
    gets = mesh.create(gives, worker, second=worker)
    gets.send(worker)
    assert gets.result(timeout=10) == (worker.ref,) * 3
    assert mesh.wait(lambda each: each, worker) is worker.ref
    assert pickle.loads(pickle.dumps(worker)) == worker.ref
    assert {worker, mesh.coro(worker.ref)} == {worker} and worker != gets
    worker.terminate()


# Anything else.


def test_operations_and_functions_are_waited_for(mesh: BlockingMesh) -> None:
    def operation() -> Any:
        yield asyncio.sleep(0)
        return "generator"

    def function(a: int, b: int, coro: Any = None) -> Any:
        yield asyncio.sleep(0)
        return a + b, coro.name

    workers = [mesh.create(echo) for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.send(number)
    assert mesh.wait(workers[0].ref.result()) == 0
    assert mesh.wait(lambda: asyncio.gather(*(worker.ref.result() for worker in workers))) == [0, 1, 2]
    assert mesh.wait(operation()) == "generator"
    assert mesh.wait(function, 1, b=2, timeout=10) == (3, "function")
    assert mesh.wait(discoro.current_coro).ref == mesh.ref
    assert mesh.wait(discoro.Coro, forever).ref != mesh.ref


def test_what_ordinary_code_does_alone_names_this_way(mesh: BlockingMesh) -> None:
    with pytest.raises(discoro.NoMesh, match="BlockingMesh"):
        mesh.ref.send("m")


# Several threads, meshes and loops.


def test_several_threads_use_one_mesh(mesh: BlockingMesh) -> None:
    worker = mesh.create(echo)

    def asks(first: int) -> list[int]:
        return [worker.ask(number, timeout=20) for number in range(first, first + 100)]

    with ThreadPoolExecutor(8) as pool:
        assert [each for part in pool.map(asks, range(0, 800, 100)) for each in part] == list(range(800))
        receivers = [pool.submit(mesh.receive, 20) for _ in range(8)]
        for number in range(8):
            mesh.coro(mesh.ref).send(number)
        assert sorted(receiver.result(20) for receiver in receivers) == list(range(8))
        assert [pool.submit(mesh.receive, 0.01).result(20) for _ in range(2)] == [None, None]


def test_two_meshes_of_one_process_talk(mesh: BlockingMesh, tmp_path: Path) -> None:
    worker = mesh.create(echo)
    mesh.wait(register, "echo", worker)
    with BlockingMesh(**options(tmp_path, peers=mesh.addresses)) as other:
        found = other.locate("echo", timeout=10)
        assert found == worker and found.location == worker.location
        assert found.ask([1], timeout=10) == [1]
        other.register("other")
        back = mesh.locate("other", timeout=10)
        back.send(worker)
        assert other.receive(timeout=10) == worker.ref
        other.monitor(found)
        found.send("end")
        assert other.receive(timeout=10).value == "end" == worker.result(timeout=10)
        other.unregister()
        with pytest.raises(discoro.Timeout):
            mesh.locate("other", timeout=0.01)


def register(name: str, handle: discoro.CoroRef) -> Any:
    """In the coroutine of that reference, which only the mesh knows."""
    mesh = discoro.coro.host_here()  # type: ignore[attr-defined]
    coro = next(each for each in mesh.coros() if each.ref == handle)
    yield coro.register(name)


def test_it_blocks_inside_a_running_loop_as_any_call_does(tmp_path: Path) -> None:
    """The cell of a notebook: the loop that runs there has nothing to do with that of the mesh."""

    async def cell() -> Any:
        with BlockingMesh(**options(tmp_path)) as mesh:
            return mesh.create(echo).ask("m", timeout=10), mesh.wait(asyncio.sleep(0, "done"))

    assert asyncio.run(cell()) == ("m", "done")


def test_one_that_nobody_holds_ends(tmp_path: Path) -> None:
    mesh = BlockingMesh(**options(tmp_path))
    thread, background = mesh._background._thread, weakref.ref(mesh._background)
    worker = mesh.create(echo)
    del mesh
    gc.collect()
    assert worker.ask("held by its coroutine", timeout=10)
    del worker
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    del thread
    gc.collect()
    assert background() is None, "nothing is kept until the exit either"


# With a node.


def add(a: int, b: int, coro: Any = None) -> Any:
    yield coro.sleep(0)
    return a + b


def test_a_computation_from_ordinary_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORO_DEST_PATH", str(tmp_path / "files"))
    with BlockingMesh(**options(tmp_path), local=True, local_options=["-c", "2"]) as mesh:
        server = mesh.locate("discoro_server", timeout=10)
        assert server in mesh.servers() and len(mesh.servers()) == 2
        sums = mesh.computation(add)
        with pytest.raises(discoro.NotSetUp):
            sums.run(server, 1, 2)
        assert sums.setup(server) == sums.ping(server) == 0
        assert "open at 1" in repr(sums)
        remotes = [sums.run(server, n, b=1) for n in range(3)]
        assert [remote.result(timeout=10) for remote in remotes] == [1, 2, 3]
        assert mesh.wait(sums.run(server.ref, 1, 1).ref.result()) == 2
        assert sums.close(server) == 0
        nodes = children(os.getpid())
        assert nodes
    until_ended(list(nodes), 0)


# The end of the program.


def run_program(tmp_path: Path, source: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    """A program in which `options` has what a mesh needs, alone on this machine."""
    program = tmp_path / "program.py"
    head = f"options = dict(key_file={str(tmp_path / 'cluster.key')!r}, mdns=False, ip_addr=['127.0.0.1'])\n"
    program.write_text(head + source)
    own = {"PYTHONPATH": str(Path(discoro.__file__).parent.parent), "DISCORO_DEST_PATH": str(tmp_path / "files")}
    command = [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", str(program)]
    return subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=timeout, check=False)


FORGETS = """
import asyncio, discoro, time
{imports}
mesh = discoro.BlockingMesh(**options, local={local})

async def tidies():
    await asyncio.to_thread(int)  # there is a pool of threads
    mesh.ref.send("ready")
    try:
        await asyncio.Event().wait()
    finally:
        print("tidied up")

worker = mesh.create(tidies)
mesh.receive()
{end}
"""


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize(("end", "status"), [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_one_that_is_not_closed_ends_with_the_program(tmp_path: Path, end: str, status: int, local: bool) -> None:
    done = run_program(tmp_path, FORGETS.format(imports="", local=local, end=end))
    assert (done.stdout, done.returncode) == ("tidied up\n", status), done.stderr
    expected = [line for line in done.stderr.splitlines() if "Error" in line]
    assert expected == (["ZeroDivisionError: division by zero"] if status == 1 else []), done.stderr
    assert status == 1 or done.stderr == ""
    assert not list((tmp_path / "files").glob("*")) if local else True


def test_a_program_that_is_interrupted_ends_in_order(tmp_path: Path) -> None:
    source = FORGETS.format(imports="import os, signal", local=False, end="os.kill(os.getpid(), signal.SIGINT); mesh.receive()")
    done = run_program(tmp_path, source)
    assert done.stdout == "tidied up\n" and done.returncode in (-2, 130)
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"


def test_a_stuck_loop_does_not_keep_the_program(tmp_path: Path) -> None:
    source = """
import discoro, threading
mesh, stuck = discoro.BlockingMesh(**options), threading.Event()

async def blocks():
    stuck.set()
    threading.Event().wait()

mesh.create(blocks)
stuck.wait()
"""
    done = run_program(tmp_path, source)
    assert done.returncode == 0
    assert "did not leave in 2.5 s" in done.stderr and "in blocks" in done.stderr and "Error" not in done.stderr


FORKS = """
import discoro, os
mesh = discoro.BlockingMesh(**options)
worker = mesh.create(lambda coro=None: (yield coro.receive()))
if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    worker.send("still there")
    print(worker.result(timeout=10))
else:
    for call in (worker.is_alive, mesh.receive, lambda: worker.send(1)):
        try:
            call()
        except discoro.NoMesh as error:
            print("fork" in str(error) and str(os.getppid()) in str(error))
    print(mesh.__repr__().partition(" of ")[2])
    mesh.close()
    with discoro.BlockingMesh(**options) as own:
        print(own.wait(own.ref.is_alive))
"""


def test_a_fork_is_told_to_make_its_own(tmp_path: Path) -> None:
    done = run_program(tmp_path, FORKS)
    assert done.stdout.splitlines() == ["True"] * 3 + ["another process>", "True", "0", "still there"], done.stderr
    assert done.stderr == ""


def test_two_programs_talk(tmp_path: Path) -> None:
    """In two processes: nothing but references and messages between them."""
    source = """
        mesh = discoro.BlockingMesh(mdns=False, ip_addr=["127.0.0.1"], peers=told())
        mesh.register("program")
        say("ready", mesh.addresses)
        asker = mesh.receive(timeout=20)
        mesh.coro(asker).send(["hello", mesh.ref])
        say("got", mesh.receive(timeout=20))
    """
    with Machines(tmp_path) as machines:
        program = machines.program("here", source)
        program.tell([])
        with BlockingMesh(**options(tmp_path, peers=program.next("ready", 10))) as mesh:
            mesh.locate("program", timeout=10).send(mesh.ref)
            word, ref = mesh.receive(timeout=10)
            assert word == "hello"
            mesh.coro(ref).deliver("goodbye", timeout=10)
        assert program.next("got", 10) == "goodbye"
        program.succeed(5)
