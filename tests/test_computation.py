"""computation.py: calls that cannot work first, then what travels and what comes back, at a node and at a server of one's own.

How a server opens and closes computations is test_server.py's.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro import (
    Computation,
    ConfigError,
    Coro,
    CoroRef,
    ExitNotice,
    NoSuchCoro,
    NotACoroutine,
    NotSetUp,
    PackError,
    ProtocolError,
    RemoteError,
    Timeout,
    TooLarge,
    discoro_server,
)
from discoro import computation as computation_module
from discoro.files import MAX_FILES
from discoro.modules import Referred
from discoro.requests import Service
from tests.support.sites import Site, both_kinds, running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site"), "--max-file-size", "21m") as site:
        yield site


# ------------------------------------------------------------------ what is shipped in these tests


def square(n: int, coro: Any = None) -> Any:
    yield coro.sleep(0)
    return n * n


async def square_async(n: int) -> int:
    await asyncio.sleep(0)
    return n * n


both_forms = pytest.mark.parametrize("function", [square, square_async])


def answer(value: Any = None) -> Any:
    yield
    return value


def call(function: Callable[..., Any], *args: Any) -> Any:
    """A computation that gives what a plain function gives."""
    yield
    return function(*args)


def listen(coro: Any = None) -> Any:
    """Gives every message back until None comes, then the number of them."""
    count = 0
    while (message := (yield coro.receive())) is not None:
        client, value = message
        client.send(value)
        count += 1
    return count


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def moved(self, by: int) -> Point:
        return Point(self.x + by, self.y + by)


class Odd(Exception):
    """Has an `__init__` that its args do not fit."""

    def __init__(self, what: str, count: int) -> None:
        super().__init__(f"{count} {what}")
        self.what, self.count = what, count


# ------------------------------------------------------------------ Computation(...) that cannot work


def plain() -> None:
    pass


async def both_at_once() -> Any:
    yield


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (plain, "plain is not a coroutine function: it has no `yield`"),
        (both_at_once, "async generator"),
        (Point, "Point is not a coroutine function"),
        (None, "it is not a function"),
        ("square", "it is not a function"),
        (square(3), "was called already"),
        (lambda: 1, "it has no `yield`"),
    ],
)
def test_what_is_no_coroutine_function_is_refused(function: Any, why: str) -> None:
    with pytest.raises(NotACoroutine, match=why):
        Computation(function)
    with pytest.raises(TypeError):
        Computation(function)


@pytest.mark.parametrize("junk", [None, 5, 1.5, b"data.txt", object(), [], {"a": 1}, Point(1, 2)])
def test_a_dependency_that_is_none_is_named(junk: Any) -> None:
    with pytest.raises(ConfigError, match="depends takes functions, classes, modules and paths; this is") as caught:
        Computation(square, depends=[junk])
    assert repr(junk)[:30] in str(caught.value)


@pytest.mark.parametrize("text", ["data.txt", Path("data.txt")])
def test_a_path_in_place_of_a_list_of_paths_is_not_taken_letter_by_letter(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"depends is a list .* write \["):
        Computation(square, depends=text)


def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"no file {tmp_path}/missing\.txt .*current directory is {tmp_path}"):
        Computation(square, depends=["missing.txt"])


def test_a_file_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe .* neither a file nor a directory"):
        Computation(square, depends=[tmp_path / "pipe"])


def test_two_files_of_one_name_are_named_both(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.txt").touch()
    with pytest.raises(ConfigError, match=r"a/data\.txt and .*b/data\.txt would both be data\.txt"):
        Computation(square, depends=[tmp_path / "a/data.txt", tmp_path / "b/data.txt"])
    Computation(square, depends=[tmp_path / "a/data.txt", str(tmp_path / "a/data.txt")])  # but one file twice is one file


def test_more_files_than_travel_together_are_refused_before_all_are_looked_at(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(ConfigError, match=f"more than {MAX_FILES} files"):
        Computation(square, depends=[tmp_path])


def test_a_module_without_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_up")
    with pytest.raises(ConfigError, match="module made_up has no file"):
        Computation(square, depends=[module])
    (tmp_path / "empty_space").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="module empty_space has no file"):
        Computation(square, depends=[__import__("empty_space")])


def test_modules_that_every_python_has_are_not_sent() -> None:
    assert Computation(square, depends=[sys, itertools, json, json.decoder, os.path])._depends.files == {}


def test_functions_of_c_and_of_the_standard_library_are_functions() -> None:
    Computation(square, depends=[len, json.dumps, dict, Point.moved])


def test_a_package_travels_whole_and_once_without_what_is_made_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["store_room/__init__.py", "store_room/shelf.py", "store_room/data.csv", "store_room/back/__init__.py"]
    left_out = [
        "store_room/__pycache__/shelf.pyc",
        "store_room/.git/config",
        "store_room/shelf.pyc",
        "store_room/node_modules/x.js",
    ]
    for name in names + left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    shelf, back = importlib.import_module("store_room.shelf"), importlib.import_module("store_room.back")
    assert sorted(Computation(square, depends=[shelf, back])._depends.files) == sorted(names)


def test_a_directory_travels_under_its_name_wherever_it_is_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").touch()
    monkeypatch.chdir(tmp_path / "data")
    for named in (".", "../data", tmp_path / "data", f"{tmp_path}/data/"):
        assert list(Computation(square, depends=[named])._depends.files) == ["data/a.txt"]


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=f"directory {tmp_path} .* cannot be read: Permission denied"):
        Computation(square, depends=[tmp_path])


# ------------------------------------------------------------------ calls that cannot work


@pytest.mark.parametrize("peer", [None, "discoro_server", 5, object()])
def test_a_peer_that_is_no_reference_is_named(site: Site, peer: Any) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(square)
        for call in (computation.setup, computation.run, computation.ping, computation.close):
            with pytest.raises(ConfigError, match=r"peer is what Coro\.locate or discoro\.servers gave") as caught:
                await call(peer)
            assert repr(peer)[:30] in str(caught.value)

    site.run("bare", client)


def test_a_peer_that_is_no_server_says_so(site: Site) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        with pytest.raises(ProtocolError, match="it is no discoro_server"):
            await Computation(square).setup(coro)

    site.run("bare", client)


def test_a_server_that_has_ended_says_so(site: Site) -> None:
    async def client(server: CoroRef) -> None:
        await server.terminate()
        with pytest.raises(NoSuchCoro, match="has ended"):
            await Computation(square).setup(server)

    site.run("bare", client)


def test_outside_of_a_mesh_the_error_says_how_to_start_one() -> None:
    async def program() -> None:
        with pytest.raises(discoro.NoMesh, match=r"discoro\.run"):
            await Computation(square).setup(CoroRef("node", 1, 2, 3))

    asyncio.run(program())


@both_kinds
def test_before_setup_and_after_close_run_ping_and_close_say_that_it_is_not_set_up(site: Site, kind: str) -> None:
    async def refused(computation: Computation, server: CoroRef) -> None:
        with pytest.raises(NotSetUp, match="square is not set up .*computation.setup"):
            await computation.run(server, 3)
        with pytest.raises(NotSetUp, match="square is not set up .*computation.setup"):
            await computation.ping(server)
        with pytest.raises(NotSetUp, match="square is not set up .*computation.setup"):
            await computation.close(server)

    async def client(server: CoroRef) -> None:
        computation = Computation(square)
        await refused(computation, server)
        await computation.setup(server)
        await computation.close(server)
        await refused(computation, server)

    site.run(kind, client)


@pytest.mark.parametrize("func", [5, "print", square, square_async, both_at_once, Point, [plain]])
def test_a_func_that_is_no_plain_function_is_refused(site: Site, func: Any) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(square)
        with pytest.raises(ConfigError, match="func must be a plain function"):
            await computation.setup(server, func=func)
        await computation.setup(server)
        with pytest.raises(ConfigError, match="func must be a plain function"):
            await computation.close(server, func=func)
        assert await computation.close(server) == 0, "a close that could not begin closed it all the same"

    site.run("bare", client)


def test_what_cannot_be_packed_is_named_in_the_callers_words(site: Site) -> None:
    one = (n for n in ())

    def stuck() -> Any:
        yield
        return one

    async def client(server: CoroRef) -> None:
        computation = Computation(answer)
        with pytest.raises(PackError, match=r"^args\[0\]: cannot pickle 'generator'"):
            await computation.setup(server, func=print, args=(one,))
        with pytest.raises(PackError, match=r"^kwargs\['a'\]\[1\]: cannot pickle 'generator'"):
            await computation.setup(server, func=print, kwargs={"a": [1, one]})
        with pytest.raises(PackError, match="^the computation: cannot pickle 'generator'.*'one' in"):
            await Computation(stuck).setup(server)
        with pytest.raises(PackError, match=r"^depends\[1\]: cannot pickle 'generator'.*'one' in"):
            await Computation(answer, depends=[stuck]).setup(server)
        await computation.setup(server)
        with pytest.raises(PackError, match=r"^args\[1\]\['a'\]: cannot pickle 'generator'"):
            await computation.run(server, 1, {"a": one})
        with pytest.raises(PackError, match=r"^kwargs\['value'\]\.thing: cannot pickle 'generator'"):
            await computation.run(server, value=types.SimpleNamespace(thing=one))
        assert await (await computation.run(server, 1)).result() == 1

    site.run("bare", client)


@both_kinds
@both_forms
def test_arguments_that_the_computation_does_not_take_are_its_own_error(site: Site, kind: str, function: Any) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(function)
        await computation.setup(server)
        for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"m": 1})):
            remote = await computation.run(server, *args, **kwargs)
            with pytest.raises(TypeError, match="argument"):
                await remote.result()
        assert await (await computation.run(server, 3)).result() == 9

    site.run(kind, client)


# ------------------------------------------------------------------ what works


@both_kinds
@both_forms
def test_the_four_methods_give_what_the_page_says(site: Site, kind: str, function: Any) -> None:
    def client(server: CoroRef, coro: Any = None) -> Any:
        computation = Computation(function)
        assert (yield computation.setup(server)) == 0
        assert (yield computation.ping(server)) == 0
        remotes = []
        for n in range(3):
            remotes.append((yield computation.run(server, n)))
        assert all(isinstance(remote, CoroRef) for remote in remotes)
        assert len(set(remotes)) == 3
        results = []
        for remote in remotes:
            results.append((yield remote.result()))
        assert (yield computation.close(server)) == 0
        return results

    assert site.run(kind, client) == [0, 1, 4]


def test_a_coro_of_this_process_is_a_peer_like_its_reference(site: Site) -> None:
    async def client(_: CoroRef) -> None:
        here, computation = Coro(discoro_server, name="here"), Computation(square)
        assert await computation.setup(here) == 0
        assert await computation.ping(here.ref) == 0
        assert await (await computation.run(here, 3)).result() == 9
        assert await computation.close(here.ref) == 0
        with pytest.raises(NotSetUp):
            await computation.ping(here)

    site.run("bare", client)


@both_kinds
def test_one_computation_is_open_at_several_servers_and_closed_at_each(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        here, computation = Coro(discoro_server, name="here"), Computation(square)
        assert await asyncio.gather(computation.setup(server), computation.setup(here)) == [0, 0]
        assert repr(computation) == "<Computation square open at 2 servers>"
        await computation.close(here)
        assert await (await computation.run(server, 3)).result() == 9
        with pytest.raises(NotSetUp):
            await computation.run(here, 3)

    site.run(kind, client)


@both_kinds
def test_arguments_by_position_and_by_name_and_a_lambda(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> Any:
        computation = Computation(call)
        await computation.setup(server)
        doubled = await (await computation.run(server, lambda *each: [2 * n for n in each], 1, 2)).result()
        other = Computation(answer)
        await other.setup(server)
        return doubled, await (await other.run(server, value={"a": (1, [2])})).result()

    assert site.run(kind, client) == ([2, 4], {"a": (1, [2])})


@both_kinds
def test_instances_of_a_class_are_instances_of_it_on_both_sides(site: Site, kind: str) -> None:
    def judge(point: Any) -> Any:
        yield
        return isinstance(point, Point), point.moved(10)

    async def client(server: CoroRef) -> None:
        computation = Computation(judge, depends=[Point])
        await computation.setup(server)
        remote = await computation.run(server, Point(1, 2))
        there, point = await remote.result()
        assert there is True
        assert isinstance(point, Point)
        assert (point.x, point.y) == (11, 12)

    site.run(kind, client)


# ------------------------------------------------------------------ errors come back


def fail(kind: Any, *args: Any) -> Any:
    yield
    raise kind(*args)


@both_kinds
def test_an_exception_comes_back_as_itself_with_its_traceback_as_cause(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(fail, depends=[Odd])
        await computation.setup(server)
        for kind, *args in ((ValueError, "a", 1), (KeyError, "k"), (Odd, "apples", 3), (FileNotFoundError, 2, "None", "x")):
            error, remote = kind(*args), await computation.run(server, kind, *args)
            with pytest.raises(type(error)) as caught:
                await remote.result()
            assert type(caught.value) is type(error)
            assert str(caught.value) == str(error)
            assert vars(caught.value) == {**vars(error), "__notes__": caught.value.__notes__}
            assert isinstance(caught.value.__cause__, RemoteError)
            assert "in fail\n" in str(caught.value.__cause__)
            assert "raise kind(*args)" in str(caught.value.__cause__)

    site.run(kind, client)


@both_kinds
def test_an_exception_that_cannot_travel_is_told_in_words(site: Site, kind: str) -> None:
    def fail_with_lock() -> Any:
        yield
        raise RuntimeError("kept", threading.Lock())

    async def client(server: CoroRef) -> None:
        computation = Computation(fail_with_lock)
        await computation.setup(server)
        with pytest.raises(RemoteError, match=r"builtins\.RuntimeError: \('kept'.*[^$]*in fail_with_lock"):
            await (await computation.run(server)).result()

    site.run(kind, client)


@both_kinds
def test_a_result_that_cannot_be_packed_is_an_error_of_the_result(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(call)
        await computation.setup(server)
        remote = await computation.run(server, lambda: {"a": threading.Lock()})
        with pytest.raises(PackError, match=r"message\['a'\]: cannot pickle '_thread.lock'"):
            await remote.result()

    site.run(kind, client)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_would_end_a_process_ends_the_coroutine_only(site: Site, error: type[BaseException]) -> None:
    async def client(server: CoroRef) -> None:
        computation, good = Computation(fail), Computation(square)
        await good.setup(server)
        await computation.setup(server)
        with pytest.raises((error, discoro.CoroEnded)):
            await (await computation.run(server, error)).result()
        assert await (await good.run(server, 3)).result() == 9

    site.run("node", client)


# ------------------------------------------------------------------ messages


@both_kinds
def test_messages_go_both_ways_in_order_and_delivery_is_confirmed(site: Site, kind: str) -> None:
    def client(server: CoroRef, coro: Any = None) -> Any:
        computation = Computation(listen)
        yield computation.setup(server)
        remote = yield computation.run(server)
        assert (yield remote.deliver((coro, "first"))) == 1
        for number in range(1000):
            remote.send((coro.ref, number))
        assert (yield coro.receive()) == "first"
        for number in range(1000):
            assert (yield coro.receive()) == number
        remote.send(None)
        assert (yield remote.result()) == 1001

    site.run(kind, client)


@both_kinds
def test_a_monitor_gets_exactly_one_notice_with_the_value_after_all_messages(site: Site, kind: str) -> None:
    async def client(server: CoroRef, coro: Any = None) -> None:
        computation = Computation(listen)
        await computation.setup(server)
        remote = await computation.run(server)
        assert await coro.monitor(remote) == 0
        remote.send((coro, "hello"))
        remote.send(None)
        assert await coro.receive() == "hello"
        assert await coro.receive() == ExitNotice(remote, "normal", 1)
        await computation.close(server)
        assert await coro.receive(0, "nothing") == "nothing"

    site.run(kind, client)


@both_kinds
def test_a_remote_coroutine_is_terminated_by_its_reference(site: Site, kind: str) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(listen)
        await computation.setup(server)
        remote = await computation.run(server)
        assert await remote.is_alive()
        assert await remote.terminate() == 0
        with pytest.raises(discoro.CoroEnded, match="terminated"):
            await remote.result()
        assert not await remote.is_alive()

    site.run(kind, client)


# ------------------------------------------------------------------ files


def read(name: str) -> Any:
    """What stands in a file, found as a data file is: in the working directory of a worker."""
    yield
    with open(name, "rb") as file:
        return file.read()


def test_files_lie_in_the_working_directory_under_their_base_names_before_func_runs(site: Site, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "data.txt").write_text("hello")
    (tmp_path / "empty").touch()

    def look() -> None:
        global seen
        with open("data.txt") as file:
            seen = sorted(os.listdir()), file.read()

    def tell() -> Any:
        yield
        return seen  # type: ignore[name-defined]

    async def client(server: CoroRef) -> Any:
        computation = Computation(tell, depends=[tmp_path / "deep" / "data.txt", str(tmp_path / "empty")])
        await computation.setup(server, func=look)
        return await (await computation.run(server)).result()

    assert site.run("node", client) == (["data.txt", "empty"], "hello")


@both_kinds
def test_a_package_in_depends_is_imported_where_it_arrives(
    site: Site, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"parcel_{kind}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "part.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(f"{name}.part").part

    def there(name: str) -> Any:
        yield
        import importlib

        part = importlib.import_module(f"{name}.part")
        return part.ANSWER, part.__file__

    async def client(server: CoroRef) -> Any:
        computation = Computation(there, depends=[module])
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, f"{name}.part")
        sys.path.remove(str(tmp_path))
        await computation.setup(server)
        found = await (await computation.run(server, name)).result()
        await computation.close(server)
        assert f"{name}.part" not in sys.modules
        return found

    value, file = site.run(kind, client)
    assert value == 42
    assert not file.startswith(str(tmp_path))
    assert not Path(file).exists(), "close left it"


def test_an_edited_file_travels_as_edited_at_the_next_setup(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("old")

    async def client(server: CoroRef) -> Any:
        computation, found = Computation(read, depends=[path]), []
        for text in ("old", "new"):
            path.write_text(text)
            await computation.setup(server)
            found.append(await (await computation.run(server, "data.txt")).result())
        return found

    assert site.run("node", client) == [b"old", b"new"]


@both_kinds
def test_a_file_that_went_away_is_named_at_setup(site: Site, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.touch()

    async def client(server: CoroRef) -> None:
        computation = Computation(read, depends=[path])
        path.unlink()
        with pytest.raises(ConfigError, match=rf"the file {path} cannot be read"):
            await computation.setup(server)
        with pytest.raises(NotSetUp):
            await computation.ping(server)

    site.run(kind, client)


def test_a_file_past_the_limit_of_the_node_is_named_with_both_sizes(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "big"
    with open(path, "wb") as file:
        file.truncate((21 << 20) + 1)

    async def client(server: CoroRef) -> None:
        computation = Computation(read, depends=[path])
        with pytest.raises(TooLarge, match=f"{(21 << 20) + 1} bytes; at most {21 << 20} .*--max_file_size.* big "):
            await computation.setup(server)
        with pytest.raises(NotSetUp):
            await computation.run(server, "big")

    site.run("node", client)


def test_twenty_megabytes_and_five_hundred_files_arrive_as_they_were(site: Site, tmp_path: Path) -> None:
    big, many = tmp_path / "big", tmp_path / "many"
    big.write_bytes(os.urandom(20 << 20))
    many.mkdir()
    for number in range(500):
        (many / f"a file with a rather long name {number:04}.txt").write_text(f"{number}\n" * number)

    def digest() -> Any:
        yield
        import hashlib

        found = hashlib.sha256()
        for name in ["big", *sorted(os.listdir("many"))]:
            with open(name if name == "big" else f"many/{name}", "rb") as file:
                found.update(file.read())
        return len(os.listdir("many")), found.hexdigest()

    async def client(server: CoroRef) -> Any:
        computation = Computation(digest, depends=[big, many])
        await computation.setup(server)
        return await (await computation.run(server)).result()

    import hashlib

    expected = hashlib.sha256()
    for path in [big, *sorted(many.iterdir())]:
        expected.update(path.read_bytes())
    assert site.run("node", client) == (500, expected.hexdigest())


@both_kinds
def test_the_same_file_sent_to_several_servers_at_once_arrives_at_each(site: Site, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(3 << 20))

    async def client(server: CoroRef) -> list[int]:
        computations = [Computation(square, depends=[path]) for _ in range(4)]
        return list(await asyncio.gather(*(each.setup(server) for each in computations)))

    assert site.run(kind, client) == [0] * 4


def test_a_file_that_grows_or_changes_while_it_is_sent_is_an_error_and_no_mixture(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"a" * (1 << 20))
    measured = computation_module._measured

    def change_afterwards(files: Any) -> Any:
        found = measured(files)
        path.write_bytes(b"a" * (1 << 19) + b"b" * (1 << 19))
        os.utime(path, ns=(1, 1))
        return found

    async def client(server: CoroRef) -> None:
        computation = Computation(read, depends=[path])
        monkeypatch.setattr(computation_module, "_measured", change_afterwards)
        with pytest.raises(ConfigError, match="data was changed while it was sent: send it again"):
            await computation.setup(server)
        monkeypatch.undo()
        await computation.setup(server)
        assert await (await computation.run(server, "data")).result() == path.read_bytes()

    site.run("node", client)


# ------------------------------------------------------------------ timeouts


@both_kinds
def test_a_setup_without_time_is_not_done(site: Site, kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(os.urandom(1 << 20))

    async def client(server: CoroRef) -> None:
        computation = Computation(square, depends=[tmp_path / "data"])
        with pytest.raises(Timeout, match="setup of square at .* was not done in 0 s, and was given up"):
            await computation.setup(server, timeout=0)
        with pytest.raises(NotSetUp):
            await computation.run(server, 3)
        assert await computation.setup(server, timeout=10) == 0
        with pytest.raises(Timeout):
            await computation.setup(server, timeout=0)
        assert await (await computation.run(server, 3)).result() == 9, "what was set up before does not stay"

    site.run(kind, client)


class Deaf(Service):
    """The service of one that never answers."""

    def on_request(self, incoming: Any) -> None:
        self.kept = incoming

    def on_message(self, body: Any) -> None:
        pass


def test_ping_of_a_server_that_does_not_answer_ends_in_time(site: Site) -> None:
    def never(coro: Any = None) -> Any:
        yield coro.sleep(3600)

    async def client(server: CoroRef) -> None:
        deaf, computation = Coro(never), Computation(square)
        deaf.service = Deaf()
        computation._there[deaf.ref] = computation_module._There(deaf.ref, Referred())
        with pytest.raises(Timeout, match="did not answer ping in 0.05 s"):
            await computation.ping(deaf, timeout=0.05)

    site.run("bare", client)


# ------------------------------------------------------------------ real programs


PROGRAM = """
import discoro, math
from collections import Counter

UNIT = 10

class Box:
    def __init__(self, content): self.content = content
    def __add__(self, other): return Box(self.content + other.content)

class Full(Exception):
    def __init__(self, box, limit):
        super().__init__("full")
        self.box, self.limit = box, limit

def helper(n):
    return Box(math.isqrt(n) * UNIT)

def COMPUTE(box, coro=None):
    if not isinstance(box, Box):
        raise TypeError("not my class")
    client = AWAIT coro.receive()
    client.send(helper(49) + box)
    if box.content > 5:
        raise Full(box, Counter("aab"))
    return Counter("aab")

def CLIENT(coro=None):
    server = AWAIT discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(compute)
    AWAIT computation.setup(server)
    for content in (1, 7):
        remote = AWAIT computation.run(server, Box(content))
        remote.send(coro)
        box = AWAIT coro.receive()
        say("box", [isinstance(box, Box), box.content])
        try:
            say("result", dict((AWAIT remote.result())))
        except Full as error:
            say("error", [error.box.content, error.limit["a"], "in compute" in str(error.__cause__)])
    AWAIT computation.close(server)

discoro.run(client, mdns=False, ip_addr=["127.0.0.1"])
"""
FORMS = {
    "generators": PROGRAM.replace("COMPUTE", "compute").replace("CLIENT", "client").replace("AWAIT", "yield"),
    "async": PROGRAM.replace("def COMPUTE", "async def compute")
    .replace("def CLIENT", "async def client")
    .replace("AWAIT", "await"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_program_of_one_file_brings_helper_class_import_and_constant(site: Site, form: str) -> None:
    program = site.machines.program("client", FORMS[form], DISCORO_PEERS=site.node.address)
    assert [program.event(20) for _ in range(4)] == [
        ("box", [True, 71]),
        ("result", {"a": 2, "b": 1}),
        ("box", [True, 77]),
        ("error", [7, 2, True]),
    ]
    program.succeed(10)
    assert program.output == ""


def test_many_runs_are_forgotten_as_they_end(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(square)
        await computation.setup(server)
        for _ in range(5):
            remotes = await asyncio.gather(*(computation.run(server, n) for n in range(500)))
            assert [await remote.result() for remote in remotes[-3:]] == [n * n for n in (497, 498, 499)]
        assert len(computation._runs[server]) < 2000

    with caplog.at_level(logging.WARNING):
        site.run("node", client)
    assert caplog.records == []
