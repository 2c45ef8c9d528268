"""server.py: requests that lie first, then how computations are opened, kept apart and closed, in a worker and in a process of
one's own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from discoro import (
    CloseFailed,
    Computation,
    Coro,
    CoroEnded,
    CoroRef,
    ExitNotice,
    Mesh,
    NotSetUp,
    PeerLost,
    ProtocolError,
    RemoteError,
    SetupFailed,
    Timeout,
    TransferFailed,
    UnpackError,
    WorkerLost,
    current_mesh,
    discoro_server,
    packing,
    payload,
)
from discoro.files import measure, packed_files
from discoro.server import Computations, Serving, lacking, serve
from tests.support.meshes import World, simulate, until
from tests.support.sites import Site, both_kinds, files_below, running_site
from tests.test_files import HOSTILE_NAMES

VERSION = 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        yield site


# ------------------------------------------------------------------ what is shipped in these tests


def version(coro: Any = None) -> Any:
    """Gives the VERSION that it sees, once it is told to."""
    yield coro.receive()
    return VERSION


def wait(coro: Any = None) -> Any:
    """Waits for ever."""
    yield coro.receive()


def answer(value: Any = None) -> Any:
    yield
    return value


def call(function: Any, *args: Any) -> Any:
    yield
    return function(*args)


async def result_of(computation: Computation, server: CoroRef, *args: Any) -> Any:
    return await (await computation.run(server, *args)).result()


# ------------------------------------------------------------------ requests that lie

OPEN = {"id": "a", "name": "n", "files": 0, "cleanup": True, "code": 1}
SQUARE = payload.pack_code([answer])


NONSENSE: list[tuple[str, Any, Any, type[Exception]]] = [
    ("setup", {}, [], ProtocolError),
    ("setup", {**OPEN, "id": 5}, SQUARE, ProtocolError),
    ("setup", {**OPEN, "id": "a" * 300}, SQUARE, ProtocolError),
    ("setup", {**OPEN, "name": None}, SQUARE, ProtocolError),
    ("setup", {**OPEN, "files": None}, SQUARE, ProtocolError),
    ("setup", {**OPEN, "files": 2}, SQUARE, ProtocolError),
    ("setup", {**OPEN, "files": 1}, SQUARE, ProtocolError),
    ("setup", {**OPEN, "files": 1}, [b"junk", *SQUARE], ProtocolError),
    ("setup", {**OPEN, "files": 1}, [packing.pack([["../x", "a" * 64, 5, False]]), *SQUARE], ProtocolError),
    ("setup", {**OPEN, "files": 1}, [packing.pack([["a", "a" * 64, 5, False]]), *SQUARE], TransferFailed),
    ("setup", {**OPEN, "code": 2}, SQUARE, ProtocolError),
    ("setup", {**OPEN, "code": -1}, SQUARE, ProtocolError),
    ("setup", {**OPEN, "code": "1"}, SQUARE, ProtocolError),
    ("setup", OPEN, [b"junk"], UnpackError),
    ("setup", OPEN, payload.pack_code([]), ProtocolError),
    ("setup", OPEN, payload.pack_code([5]), ProtocolError),
    ("setup", OPEN, [*SQUARE, b"junk"], UnpackError),
    ("setup", OPEN, [*SQUARE, *payload.pack_code([1, 2, 3])], ProtocolError),
    ("setup", OPEN, [*SQUARE, *payload.pack_code([print])], ProtocolError),
    ("lacks", {}, [], ProtocolError),
    ("lacks", {"names": ["os.path"]}, [], ProtocolError),
    ("lacks", {"names": [5]}, [], ProtocolError),
    ("extend", {"id": "nobody"}, [], NotSetUp),
    ("run", {}, [], ProtocolError),
    ("run", {"id": "nobody"}, [], NotSetUp),
    ("ping", {"id": None}, [], ProtocolError),
    ("close", {"id": "nobody", "timeout": 1}, [], NotSetUp),
    ("quit", {}, [], ProtocolError),
    ("__class__", {}, [], ProtocolError),
]


@both_kinds
def test_a_request_that_makes_no_sense_is_answered_and_changes_nothing(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        for verb, arguments, body, error in NONSENSE:
            with pytest.raises(error):
                await current_mesh().request(server, verb, arguments, body, timeout=10)
            with pytest.raises(NotSetUp):
                await current_mesh().request(server, "ping", {"id": "a"}, timeout=10)
        assert await Computation(answer).setup(server) == 0

    site.run(kind, client)


@both_kinds
def test_close_without_a_sensible_time_closes_nothing(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(answer)
        await computation.setup(server)
        for timeout in (None, "1", True, -1, 1e9, float("nan")):
            with pytest.raises(ProtocolError, match="close without a timeout"):
                await current_mesh().request(server, "close", {"id": computation._id, "timeout": timeout}, timeout=10)
        assert await computation.ping(server) == 0

    site.run(kind, client)


@both_kinds
def test_arguments_of_run_that_are_none_are_refused(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(answer)
        await computation.setup(server)
        worker = computation._there[server].worker
        for junk, error in (([b"junk"], UnpackError), ([], UnpackError), (payload.pack(5), ProtocolError)):
            with pytest.raises(error):
                await current_mesh().request(worker, "run", {"id": computation._id}, junk)
        assert await result_of(computation, server, 3) == 3

    site.run(kind, client)


@both_kinds
def test_a_hostile_file_name_is_refused_and_nothing_is_written(site: Site, kind: str, tmp_path: Path) -> None:
    async def client(server: CoroRef) -> None:
        mesh, path = current_mesh(), tmp_path / "mine"
        path.write_bytes(data := os.urandom(16))
        good, source = measure(path, "good")
        with mesh.transfers.offering([source]):
            await mesh.request(server, "setup", {**OPEN, "files": 1}, [packed_files([good]), *SQUARE])
            for name in HOSTILE_NAMES:
                if name.isprintable():  # others cannot even be told
                    body = [packed_files([good._replace(name=name)]), *SQUARE]
                    with pytest.raises(ProtocolError, match="file name"):
                        await mesh.request(server, "setup", {**OPEN, "files": 1}, body, timeout=10)
        places = [site.directory, *Path(tempfile.gettempdir()).glob("discoro-server-*")]
        written = [path for place in places for path in map(Path, files_below(place)) if holds(path, data)]
        assert {path.name for path in written} <= {good.blob.digest, "good"}, "besides the blob itself"
        assert written

    site.run(kind, client)


def holds(path: Path, data: bytes) -> bool:
    """Whether the file has these bytes; one that is gone meanwhile, as a worker's are with it, has none."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def test_a_message_to_a_server_is_told_of_and_harms_nobody(site: Site) -> None:
    async def client(server: CoroRef) -> None:
        here = Coro(discoro_server, name="here")
        computation = Computation(answer)
        await computation.setup(here)
        with pytest.raises(ProtocolError, match="and no messages"):
            here.send("quit")
        assert await computation.ping(here) == 0
        server.send("quit")
        assert await computation.setup(server) == 0

    site.run("bare", client)


def test_one_slow_setup_keeps_nobody_waiting(site: Site, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")

    def slow(path: str) -> None:
        with open(path):  # which waits for a writer
            pass

    async def client(server: CoroRef) -> None:
        first, second = Computation(answer), Computation(answer)
        await second.setup(server)
        setup = asyncio.ensure_future(first.setup(server, func=slow, args=(str(tmp_path / "go"),)))
        writer = await asyncio.to_thread(open, tmp_path / "go", "wb")  # and that for the reader: now func runs
        with writer:
            assert await second.ping(server) == 0
        assert await setup == 0

    site.run("node", client)


# ------------------------------------------------------------------ globals


def fill_table(entries: dict[str, int]) -> None:
    global table
    table = dict(entries)


def from_table(key: str) -> Any:
    yield
    table["asked"] = table.get("asked", 0) + 1
    return table[key], size_of_table()


def size_of_table() -> int:
    return len(table)


def drop_table(asked: int) -> None:
    global table
    if table["asked"] != asked:
        raise AssertionError(f"another table: {table}")
    del table
    if "table" in globals():
        raise AssertionError("not deleted")


@both_kinds
def test_what_setup_sets_two_functions_read_and_close_deletes(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation, other = Computation(from_table), Computation(from_table)
        await computation.setup(server, func=fill_table, args=({"a": 1},))
        await other.setup(server, func=fill_table, kwargs={"entries": {"b": 2, "c": 3}})
        assert await result_of(computation, server, "a") == (1, 2)
        assert await result_of(other, server, "c") == (3, 3)
        with pytest.raises(KeyError):
            await result_of(other, server, "a")
        assert await computation.close(server, func=drop_table, args=(1,)) == 0
        assert await other.close(server, func=drop_table, kwargs={"asked": 2}) == 0

    site.run(kind, client)
    assert "table" not in globals(), "a computation wrote into this very module"


COUNT = 0


def count(to: int) -> None:
    global COUNT
    COUNT = to


def counted() -> Any:
    yield
    return COUNT


def expect_count(expected: int) -> None:
    if COUNT != expected:
        raise AssertionError(f"{COUNT}, not {expected}")


@both_kinds
def test_what_setup_set_is_not_undone_by_the_value_that_close_brings_along(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(counted)
        await computation.setup(server, func=count, args=(5,))
        assert await result_of(computation, server) == 5
        assert await computation.close(server, func=expect_count, args=(5,)) == 0

    site.run(kind, client)
    assert COUNT == 0


@both_kinds
def test_functions_classes_and_globals_of_one_name_are_each_computations_own(site: Site, kind: str) -> None:
    sources = {
        word: f"WORD = {word!r}\nclass Thing:\n    word = WORD\ndef f():\n    yield\n    return WORD, Thing.word"
        for word in "ab"
    }

    def made(word: str) -> Computation:
        values: dict[str, Any] = {"__name__": "homemade"}
        exec(sources[word], values)
        return Computation(values["f"])

    async def client(server: CoroRef) -> None:
        computations = {word: made(word) for word in sources}
        for computation in computations.values():
            await computation.setup(server)
        for word, computation in computations.items():
            assert await result_of(computation, server) == (word, word)
        await computations["a"].close(server)
        assert await result_of(computations["b"], server) == ("b", "b")

    site.run(kind, client)


# ------------------------------------------------------------------ func fails


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even this")


def raise_it(kind: Any, *args: Any) -> None:
    raise kind(*args)


@both_kinds
@pytest.mark.parametrize("kind_of_error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_func_of_setup_raises_is_the_cause_and_nothing_is_set_up(
    site: Site, kind: str, kind_of_error: Any, tmp_path: Path
) -> None:
    (tmp_path / "data.txt").touch()

    async def client(server: CoroRef) -> None:
        computation = Computation(answer, depends=[tmp_path / "data.txt"])
        with pytest.raises(SetupFailed, match=f"func raise_it of setup raised .*{kind_of_error.__name__}: 17") as caught:
            await computation.setup(server, func=raise_it, args=(kind_of_error, 17))
        cause = caught.value.__cause__
        assert type(cause) is kind_of_error
        assert cause.args == (17,)
        assert isinstance(cause.__cause__, RemoteError)
        assert "in raise_it\n    raise kind(*args)" in str(cause.__cause__)
        with pytest.raises(NotSetUp):
            await computation.run(server)
        with pytest.raises(NotSetUp):
            await computation.ping(server)
        assert await computation.setup(server) == 0

    site.run(kind, client)


@both_kinds
def test_a_setup_that_fails_leaves_no_file(site: Site, kind: str, tmp_path: Path) -> None:
    name = f"left_{kind}.py"
    (tmp_path / name).write_text("HERE = __file__\n")

    def note_place(name: str, there: str) -> None:
        with open(there, "w") as file:
            file.write(str(__import__(name).HERE))
        raise ValueError

    async def client(server: CoroRef) -> None:
        keeps_the_worker, computation = Computation(answer), Computation(answer, depends=[tmp_path / name])
        await keeps_the_worker.setup(server)
        with pytest.raises(SetupFailed):
            await computation.setup(server, func=note_place, args=(name.removesuffix(".py"), str(tmp_path / "place")))
        place = Path((tmp_path / "place").read_text())
        assert place.name == name
        assert not place.exists()
        assert place.parent.is_dir()

    site.run(kind, client)


@both_kinds
def test_an_error_that_cannot_be_told_is_told_all_the_same(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(answer)
        with pytest.raises(SetupFailed, match="func raise_it of setup raised .*Unspeakable"):
            await computation.setup(server, func=raise_it, args=(Unspeakable,))
        await computation.setup(server)
        with pytest.raises(CloseFailed, match="func raise_it of close raised .*Unspeakable"):
            await computation.close(server, func=raise_it, args=(Unspeakable,))

    site.run(kind, client)


@both_kinds
def test_what_func_of_close_raises_is_the_cause_and_all_is_closed(site: Site, kind: str, tmp_path: Path) -> None:
    (tmp_path / "data.txt").touch()

    async def client(server: CoroRef) -> None:
        computation = Computation(call, depends=[tmp_path / "data.txt"])
        await computation.setup(server)
        with pytest.raises(CloseFailed, match="func raise_it of close raised ValueError: 17$") as caught:
            await computation.close(server, func=raise_it, args=(ValueError, 17))
        assert type(caught.value.__cause__) is ValueError
        assert "in raise_it" in str(caught.value.__cause__.__cause__)
        for method in (computation.run, computation.ping, computation.close):
            with pytest.raises(NotSetUp):
                await method(server)

    site.run(kind, client)


@both_kinds
def test_a_setup_that_fails_leaves_the_one_before_in_force(site: Site, kind: str) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        computation = Computation(version)
        await computation.setup(server)
        remote = await computation.run(server)
        with pytest.raises(SetupFailed):
            await computation.setup(server, func=raise_it, args=(ValueError,))
        for each in (remote, await computation.run(server)):
            each.send("go")
            assert await each.result() == 1
        assert await computation.close(server) == 0

    site.run(kind, client)


# ------------------------------------------------------------------ set up again


@both_kinds
def test_a_second_setup_is_for_later_runs_and_running_coroutines_go_on(
    site: Site, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        computation = Computation(version)
        await computation.setup(server)
        before = await computation.run(server)
        monkeypatch.setattr(sys.modules[__name__], "VERSION", 2)
        assert await computation.setup(server) == 0
        after = await computation.run(server)
        for remote, expected in ((after, 2), (before, 1)):
            remote.send("go")
            assert await remote.result() == expected
        last = await computation.run(server)
        assert await computation.close(server) == 0
        with pytest.raises(CoroEnded, match="computation closed"):
            await last.result()

    site.run(kind, client)


@both_kinds
def test_closing_ends_what_was_started_before_a_second_setup(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(wait)
        await computation.setup(server)
        remote = await computation.run(server)
        await computation.setup(server)
        await computation.close(server)
        with pytest.raises(CoroEnded, match="computation closed"):
            await remote.result()

    site.run(kind, client)


def read_now(name: str) -> str:
    with open(name) as file:
        return file.read()


def test_a_file_name_with_two_contents_goes_to_two_workers_and_each_sees_its_own(site: Site, tmp_path: Path) -> None:
    async def client(server: CoroRef) -> None:
        computations = {}
        for word in ("one", "two"):
            (tmp_path / word).mkdir()
            (tmp_path / word / "data.txt").write_text(word)
            computations[word] = Computation(call, depends=[tmp_path / word / "data.txt"])
            await computations[word].setup(server)
        workers = {await result_of(each, server, os.getpid) for each in computations.values()}
        assert len(workers) == 2
        for word, computation in computations.items():
            assert await result_of(computation, server, read_now, "data.txt") == word
        await computations["one"].close(server)
        assert await result_of(computations["two"], server, read_now, "data.txt") == "two"

    site.run("node", client)


def test_a_server_of_ones_own_has_one_content_for_a_file_name_and_says_so(site: Site, tmp_path: Path) -> None:
    async def client(server: CoroRef) -> None:
        computations = []
        for word in ("one", "two"):
            (tmp_path / word).mkdir()
            (tmp_path / word / "data.txt").write_text(word)
            computations.append(Computation(answer, depends=[tmp_path / word / "data.txt"]))
        await computations[0].setup(server)
        with pytest.raises(SetupFailed, match=r"data\.txt is another computation's here, .*: close answer, or use a node"):
            await computations[1].setup(server)
        assert await result_of(computations[0], server, 1) == 1
        await computations[0].close(server)
        assert await computations[1].setup(server) == 0

    site.run("bare", client)


@both_kinds
def test_a_file_that_two_computations_share_stays_until_the_last_closes(site: Site, kind: str, tmp_path: Path) -> None:
    name = f"shared_{kind}.py"
    (tmp_path / name).write_text("WORD = 'there'\n")

    def imported(name: str) -> str:
        sys.modules.pop(name, None)
        return str(__import__(name).WORD)

    async def client(server: CoroRef) -> None:
        first, second = (Computation(call, depends=[tmp_path / name]) for _ in range(2))
        await first.setup(server)
        await second.setup(server)
        await first.close(server)
        assert await result_of(second, server, imported, name.removesuffix(".py")) == "there"

    site.run(kind, client)


@both_kinds
def test_a_module_that_was_edited_is_imported_as_edited(site: Site, kind: str, tmp_path: Path) -> None:
    name = f"edited_{kind}"
    path = tmp_path / f"{name}.py"

    def imported(name: str) -> int:
        return int(__import__(name).NUMBER)

    async def client(server: CoroRef) -> None:
        keeps_the_worker, computation = Computation(answer), Computation(call, depends=[path])
        await keeps_the_worker.setup(server)
        for number in (1, 2, 3):  # sources of one size within one second: Python would take them for the same
            path.write_text(f"NUMBER = {number}\n")
            await computation.setup(server)
            assert await result_of(computation, server, imported, name) == number
            if number == 2:
                await computation.close(server)

    path.touch()
    site.run(kind, client)


# ------------------------------------------------------------------ other clients


@both_kinds
def test_clients_do_not_touch_each_other(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        mine, mesh = Computation(from_table), current_mesh()
        await mine.setup(server, func=fill_table, args=({"mine": 1},))

        async def other() -> None:
            theirs = Computation(from_table)
            await theirs.setup(server, func=fill_table, args=({"theirs": 2},))
            with pytest.raises(KeyError):
                await result_of(theirs, server, "mine")
            assert await result_of(theirs, server, "theirs") == (2, 2)
            assert await theirs.close(server) == 0

        async with Mesh(**site.options(peers=[*server.addresses, *mesh.addresses], name="other")) as there:
            await there.run(other)
        assert await result_of(mine, server, "mine") == (1, 2)

    site.run(kind, client)


def test_two_clients_never_share_a_process(site: Site) -> None:
    async def client(server: CoroRef) -> None:
        async def pid() -> int:
            computation = Computation(call)
            await computation.setup(server)
            return int(await result_of(computation, server, os.getpid))

        mine = await pid()
        assert await pid() == mine, "computations of one client share a worker"
        async with Mesh(**site.options(name="other")) as other:
            assert await other.run(pid) != mine

    site.run("node", client)


def last_words(tell: Any, coro: Any = None) -> Any:
    try:
        yield coro.receive()
    finally:
        tell.send("ended")


def test_a_client_that_leaves_has_its_computations_closed(site: Site) -> None:
    async def program() -> None:
        async with Mesh(**site.options(name="own", peers=[])) as own:
            own_server = Coro.start(own, discoro_server, ("mine",))

            async def watch(coro: Any = None) -> None:
                async def client() -> CoroRef:
                    computation = Computation(last_words)
                    await computation.setup(own_server.ref)
                    return await computation.run(own_server.ref, coro)

                async with Mesh(**site.options(name="leaver", peers=[own.addresses[0]])) as leaver:
                    remote = await leaver.run(client)
                    await coro.monitor(remote)
                assert await coro.receive(10) == "ended"
                notice = await coro.receive(10)
                assert (notice.ref, notice.reason) == (remote, "computation closed")

            await own.run(watch)

    asyncio.run(program())


# ------------------------------------------------------------------ close


def note_end(pause: float, coro: Any = None) -> Any:
    global ends
    try:
        yield coro.receive()
    finally:
        yield coro.sleep(pause)
        ends += 1


def no_ends() -> None:
    global ends
    ends = 0


def expect_ends(count: int) -> None:
    if ends != count:
        raise AssertionError(f"{ends} coroutines had ended before func")


@both_kinds
def test_close_ends_the_coroutines_then_runs_func_and_the_monitor_is_told_the_reason(site: Site, kind: str) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        computation, other = Computation(note_end), Computation(version)
        await computation.setup(server, func=no_ends)
        await other.setup(server)
        remotes = [await computation.run(server, 0.02 * number) for number in range(3)]
        going_on = await other.run(server)
        for remote in remotes:
            await coro.monitor(remote)
        assert await computation.close(server, func=expect_ends, args=(3,)) == 0
        notices = [await coro.receive(10) for _ in remotes]
        assert {notice.ref for notice in notices} == set(remotes)
        assert {notice.reason for notice in notices} == {"computation closed"}
        assert all(isinstance(notice, ExitNotice) and isinstance(notice.error, CoroEnded) for notice in notices)
        assert await coro.receive(0, "no more") == "no more"
        with pytest.raises(CoroEnded, match="computation closed"):
            await remotes[0].result()
        going_on.send("go")
        assert await going_on.result() == 1

    site.run(kind, client)


@both_kinds
def test_while_a_computation_closes_there_are_no_new_runs(site: Site, kind: str) -> None:
    def until_told(client: Any, coro: Any = None) -> Any:
        try:
            yield coro.receive()
        finally:
            client.send("ending")
            yield coro.receive()

    async def client(server: CoroRef, coro: Any = None) -> None:
        computation = Computation(until_told)
        await computation.setup(server)
        remote, worker = await computation.run(server, coro), computation._there[server].worker
        closing = asyncio.ensure_future(computation.close(server))
        assert await coro.receive(10) == "ending"
        with pytest.raises(NotSetUp, match="is being closed"):
            await current_mesh().request(worker, "run", {"id": computation._id}, payload.pack(((), {})))
        with pytest.raises(NotSetUp, match="computation.setup"):
            await computation.run(server)
        remote.send("end")
        assert await closing == 0

    site.run(kind, client)


def test_a_setup_that_comes_while_the_computation_closes_stays(site: Site) -> None:
    def until_told(client: Any, coro: Any = None) -> Any:
        try:
            yield coro.receive()
        finally:
            client.send("ending")
            yield coro.receive()

    async def client(server: CoroRef, coro: Any = None) -> None:
        computation = Computation(until_told)
        await computation.setup(server)
        remote = await computation.run(server, coro)
        closing = asyncio.ensure_future(computation.close(server))
        assert await coro.receive(10) == "ending"
        assert await computation.setup(server) == 0
        remote.send("end")
        assert await closing == 0
        assert await computation.ping(server) == 0

    site.run("bare", client)


def directories(site: Site) -> set[Path]:
    """Of the node's workers."""
    return {path for path in site.directory.glob("files-here/*/*") if path.is_dir()}


@both_kinds
def test_close_removes_the_files_that_came_unless_they_are_to_be_kept(site: Site, kind: str, tmp_path: Path) -> None:
    name = f"kept_{kind}.py"
    (tmp_path / name).write_text("HERE = __file__\n")

    def where(name: str) -> str:
        return str(__import__(name).HERE)

    async def client(server: CoroRef) -> None:
        keeps_the_worker = Computation(answer)
        await keeps_the_worker.setup(server)
        for cleanup in (True, False):
            computation = Computation(call, [tmp_path / name], cleanup)
            await computation.setup(server)
            path = Path(await result_of(computation, server, where, name.removesuffix(".py")))
            assert path.exists()
            await computation.close(server)
            assert path.exists() is not cleanup
        kept.append(path)

    kept: list[Path] = []
    site.run(kind, client)
    if kind == "bare":
        assert not kept[0].exists(), "a server of one's own takes its directory with it"


# ------------------------------------------------------------------ close, of what does not end


def swallow(coro: Any = None) -> Any:
    """Does not end before it is told to, whoever cancels it."""
    while True:
        try:
            return (yield coro.receive())
        except asyncio.CancelledError:
            pass


def test_what_does_not_end_is_named_by_a_server_of_ones_own(site: Site) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        computation = Computation(swallow)
        await computation.setup(server)
        remote = await computation.run(server)
        with pytest.raises(CloseFailed, match=rf"1 coroutines of swallow did not end in 0.05 s: swallow \({remote}\)"):
            await computation.close(server, close_timeout=0.05)
        for method in (computation.run, computation.ping):
            with pytest.raises(NotSetUp):
                await method(server)
        remote.send("end")
        with pytest.raises(CoroEnded, match="computation closed"):
            await remote.result()

    site.run("bare", client)


def busy_in_python(coro: Any = None) -> Any:
    client = yield coro.receive()
    client.send("busy")
    yield coro.sleep(0)
    while True:
        pass


def busy_in_c(coro: Any = None) -> Any:
    import re

    client = yield coro.receive()
    client.send("busy")
    yield coro.sleep(0)
    re.match(r"(a+)+$", "a" * 60 + "b")  # which holds the interpreter's lock for longer than anybody lives


async def lost_with(worker_mate: CoroRef, coro: Any, reason: str) -> None:
    """The monitor of a coroutine that shared the worker is told the very reason."""
    notice = await coro.receive(10)
    assert (notice.ref, notice.reason) == (worker_mate, "worker lost")
    assert isinstance(notice.error, WorkerLost)
    assert reason in str(notice.error)
    with pytest.raises(WorkerLost):
        await worker_mate.result()


@pytest.mark.parametrize(
    ("function", "stuck", "stands"),
    [
        (swallow, "1 coroutines of swallow did not end in 0.1 s", None),
        (busy_in_python, "has been busy for 1 s, in", "`busy_in_python` at test_server.py:"),
        (busy_in_c, "has been busy for 1 s, in", "`busy_in_c` at test_server.py:"),
    ],
)
def test_what_does_not_end_is_killed_with_its_worker_and_all_are_told_why(
    site: Site, function: Any, stuck: str, stands: str | None, tmp_path: Path
) -> None:
    (tmp_path / "data.txt").touch()

    async def client(server: CoroRef, coro: Any = None) -> None:
        computation, other = Computation(function, depends=[tmp_path / "data.txt"]), Computation(wait)
        await computation.setup(server)
        await other.setup(server)
        worker_mate = await other.run(server)
        await coro.monitor(worker_mate)
        remote = await computation.run(server)
        if stands:
            remote.send(coro)
            assert await coro.receive(10) == "busy"
        (directory,) = [each for each in directories(site) if (each / "data.txt").exists()]
        with pytest.raises(CloseFailed, match=stuck) as caught:
            await computation.close(server, close_timeout=0.1)
        assert str(remote) in str(caught.value)
        assert "The worker was killed" in str(caught.value)
        assert (stands or "") in str(caught.value)
        await lost_with(worker_mate, coro, stuck)
        with pytest.raises(WorkerLost, match="wait is gone with its worker .* was ended: .*Call setup again"):
            await other.run(server)
        with pytest.raises(WorkerLost, match="Call setup again"):
            await other.ping(server)
        for method in (computation.run, computation.ping, computation.close):
            with pytest.raises(NotSetUp):
                await method(server)
        await gone(directory)
        for again in (computation, other):
            assert await again.setup(server) == 0

    site.run("node", client)


async def gone(directory: Path) -> None:
    """A worker's directory is removed right after its end was told, in a thread of the node's: no event tells of it here."""
    async with asyncio.timeout(10):
        while directory.exists():
            await asyncio.sleep(0)


# ------------------------------------------------------------------ a worker that ends


def call_when_told(function: Any, *args: Any, coro: Any = None) -> Any:
    yield coro.receive()
    return function(*args)


def end_process(how: int) -> None:
    os._exit(3) if how == 3 else os.kill(os.getpid(), how)


@pytest.mark.parametrize(("how", "told"), [(3, "exited with status 3"), (signal.SIGKILL, "was killed by SIGKILL")])
def test_a_worker_that_ends_is_told_of_and_a_new_setup_finds_another(site: Site, how: int, told: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(call_when_told)
        with pytest.raises(WorkerLost, match=f"call_when_told is gone with its worker at .* {told}.*Call setup again"):
            await computation.setup(server, func=end_process, args=(how,))
        with pytest.raises(NotSetUp):
            await computation.run(server)
        await computation.setup(server)
        remote = await computation.run(server, end_process, how)
        remote.send("go")
        with pytest.raises(WorkerLost, match=told):
            await remote.result()
        for method in (computation.run, computation.ping, computation.close):
            with pytest.raises(WorkerLost, match=f"{told}.*Call setup again"):
                await method(server)
        await computation.setup(server)
        assert await computation.ping(server) == 0

    site.run("node", client)


# ------------------------------------------------------------------ setup, out of time


def sleep_for_ever() -> None:
    time.sleep(10_000)


def compute_for_ever() -> None:
    while True:
        pass


@pytest.mark.parametrize("func", [sleep_for_ever, compute_for_ever])
def test_a_setup_out_of_time_leaves_nothing_and_the_slot_is_usable_at_once(site: Site, func: Any, tmp_path: Path) -> None:
    (tmp_path / "data.txt").touch()

    async def client(server: CoroRef) -> None:
        computation = Computation(call, depends=[tmp_path / "data.txt"])
        with pytest.raises(Timeout, match="setup of call at .* was not done in 0.2 s"):
            await computation.setup(server, timeout=0.2, func=func)
        with pytest.raises(NotSetUp):
            await computation.run(server)
        assert await computation.setup(server, timeout=5) == 0
        assert await result_of(computation, server, abs, -5) == 5
        async with asyncio.timeout(10):  # the directory of the one that was killed goes in a thread of the node's
            while len([each for each in directories(site) if (each / "data.txt").exists()]) != 1:
                await asyncio.sleep(0)

    site.run("node", client)


@pytest.mark.parametrize("func", [sleep_for_ever, compute_for_ever])
def test_a_setup_out_of_time_does_not_leave_the_others_of_its_worker_waiting(site: Site, func: Any) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        other, computation = Computation(wait), Computation(answer)
        await other.setup(server)
        worker_mate = await other.run(server)
        await coro.monitor(worker_mate)
        with pytest.raises(Timeout):
            await computation.setup(server, timeout=0.2, func=func)
        await lost_with(worker_mate, coro, "has been busy")
        assert await computation.setup(server, timeout=5) == 0
        assert await other.setup(server, timeout=5) == 0

    site.run("node", client)


def test_a_second_setup_out_of_time_closes_the_computation(site: Site) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(wait)
        await computation.setup(server)
        remote = await computation.run(server)
        with pytest.raises(Timeout):
            await computation.setup(server, timeout=0.2, func=sleep_for_ever)
        with pytest.raises((WorkerLost, CoroEnded)):
            await remote.result(10)
        with pytest.raises(NotSetUp):
            await computation.run(server)
        assert await computation.setup(server, timeout=5) == 0

    site.run("node", client)


def test_a_setup_whose_caller_is_ended_is_given_up_too(site: Site) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        computation = Computation(answer)

        async def set_up(coro: Any = None) -> None:
            await computation.setup(server, func=sleep_for_ever)

        caller = Coro(set_up)
        await coro.monitor(caller)
        async with asyncio.timeout(10):
            while not current_mesh()._requests:
                await asyncio.sleep(0)
        await caller.terminate()
        assert (await coro.receive(10)).reason == "terminated"
        assert await computation.setup(server, timeout=5) == 0

    site.run("node", client)


# ------------------------------------------------------------------ a server of one's own


def test_a_server_of_ones_own_leaves_the_process_as_it_was(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "visitor.py"
    path.write_text("HERE = __file__\n")
    before = os.getcwd(), list(sys.path)
    places: list[str] = []

    def where() -> str:
        import visitor  # type: ignore[import-not-found]

        return str(visitor.HERE)

    async def client(server: CoroRef, coro: Any = None) -> None:
        computation, waiting = Computation(call, depends=[path]), Computation(wait)
        await computation.setup(server)
        await waiting.setup(server)
        remote = await waiting.run(server)
        await coro.monitor(remote)
        places.append(await result_of(computation, server, where))
        assert os.getcwd() == before[0]
        await server.terminate()
        assert (await coro.receive(10)).reason == "computation closed"

    site.run("bare", client)
    assert (os.getcwd(), sys.path) == before
    assert "visitor" not in sys.modules
    assert not Path(places[0]).parent.parent.exists()


def test_two_servers_of_one_process_are_apart(site: Site) -> None:
    async def client(server: CoroRef) -> None:
        other = Coro(discoro_server, name="other")
        computation = Computation(from_table)
        await computation.setup(server, func=fill_table, args=({"a": 1},))
        await computation.setup(other, func=fill_table, args=({"a": 2},))
        assert await result_of(computation, server, "a") == (1, 2)
        assert await result_of(computation, other, "a") == (2, 2)
        assert await Coro.locate("other") == other.ref

    site.run("bare", client)


# ------------------------------------------------------------------ coroutines that coroutines create


class Parcel:
    pass


def judge(client: Any, coro: Any = None) -> Any:
    while True:
        parcel = yield coro.receive()
        client.send(isinstance(parcel, Parcel))


def creates_a_judge(client: Any, coro: Any = None) -> Any:
    client.send(Coro(judge, client))
    try:
        yield coro.receive()
    finally:
        client.send(Coro(judge, client))


@both_kinds
def test_coroutines_that_a_computation_creates_belong_to_it(site: Site, kind: str) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        keeps_the_worker, computation = Computation(wait), Computation(creates_a_judge, depends=[Parcel])
        await keeps_the_worker.setup(server)
        going_on = await keeps_the_worker.run(server)
        await computation.setup(server)
        await computation.run(server, coro)
        first = await coro.receive(10)
        first.send(Parcel())
        assert await coro.receive(10) is True, "it does not know the classes of its computation"
        await computation.close(server)
        last = await coro.receive(10)
        assert [await each.is_alive() for each in (first, last, going_on)] == [False, False, True]

    site.run(kind, client)


@pytest.mark.parametrize("how", ["closed", "lost"])
def test_a_setup_that_was_given_up_while_it_fetched_opens_nothing(tmp_path: Path, how: str) -> None:
    """Not even where all had come, and the last piece was on its way to the disk."""
    (tmp_path / "data").write_bytes(b"data")
    shipped, source = measure(tmp_path / "data", "data")
    code = payload.pack_code([version])

    async def main(world: World) -> None:
        async with (
            world.mesh("server", dest_path=tmp_path / "server") as server,
            world.mesh("client", server, dest_path=tmp_path / "client") as client,
        ):
            backend, came, go = Computations(server, tmp_path), asyncio.Event(), asyncio.Event()
            ref = Coro.start(server, serve, (Serving(backend, "it"),)).ref
            pull = server.transfers._pull

            async def slowly(*args: Any) -> None:
                await pull(*args)
                came.set()
                await go.wait()

            server.transfers._pull = slowly  # type: ignore[method-assign]
            arguments = {"id": "1", "name": "version", "files": 1, "code": len(code)}
            with client.transfers.offering([source]):
                setup = asyncio.ensure_future(client.request(ref, "setup", arguments, [packed_files([shipped]), *code]))
                await came.wait()
                if how == "closed":
                    assert (await client.request(ref, "close", {"id": "1", "timeout": 1})).value == 0
                else:
                    with world.network.partition("server", "client"):
                        await until(lambda: not server.linked(client.me.birth))
                go.set()
                with pytest.raises(PeerLost):
                    await setup
            await until(lambda: not backend._fetching)
            assert not backend._opened

    simulate(main)


def test_a_module_that_was_hidden_on_purpose_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "colorsys", None)
    assert lacking(["colorsys", "sys"]) == ["colorsys"]
