"""exchange.py between meshes in memory: what is refused first, then files that come and go, what breaks, and what is left then.

Hostile peers and hostile names are in test_hostile_files.py; rows between real processes in test_everywhere_files.py.
"""

from __future__ import annotations

import asyncio
import os
import random
import stat
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from discoro import ConfigError, Mesh, Peer, PeerLost, Timeout, TooLarge, TransferFailed
from discoro import exchange as exchange_module
from discoro.blobs import PIECE, WINDOW
from discoro.errors import Overloaded
from discoro.files import LINKED
from discoro.transfers import process_of
from tests.support.meshes import World, simulate, until
from tests.support.nodes import files_below

LARGE = 24 * PIECE + 5
Test = Callable[["Two"], Awaitable[Any]]


class Two:
    """Two meshes: `near`, which asks, and `far`; the directories for files of both; `home`, with what is sent."""

    def __init__(self, world: World, near: Mesh, far: Mesh, tmp_path: Path) -> None:
        self.network = world.network
        self.near, self.far = near, far
        self.there, self.here, self.home = tmp_path / "far", tmp_path / "near", tmp_path / "home"
        [self.peer] = near.peers()
        self.read: Counter[int] = Counter()  # how often each piece was asked for
        for mesh in (near, far):
            self._count(mesh)

    def _count(self, mesh: Mesh) -> None:
        answers = mesh.handlers["read"]

        def counted(incoming: Any) -> Any:
            self.read[incoming.arguments["piece"]] += 1
            return answers(incoming)

        mesh.handlers["read"] = counted

    def file(self, name: str, data: bytes = b"hello", executable: bool = False) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if executable else 0o644)
        return path

    def left(self, directory: Path) -> list[str]:
        """What lies there, but for what discoro has there while it runs."""
        return [name for name in files_below(directory) if not name.startswith(".discoro-")]


def two(tmp_path: Path, test: Test, role: str = "client", **options: Any) -> None:
    """Run a test; `role` and `options` are the far side's."""

    async def main(world: World) -> None:
        for name in ("far", "near", "home"):
            (tmp_path / name).mkdir(exist_ok=True)
        async with (
            world.mesh("far", role=role, dest_path=tmp_path / "far", **options) as far,
            world.mesh("near", far, dest_path=tmp_path / "near") as near,
        ):
            both = Two(world, near, far, tmp_path)
            await test(both)
            await until(lambda: not near._exchange._offers and not far._exchange._offers)  # nothing is offered for ever
            await until(lambda: not near.transfers._offered and not far.transfers._offered)
        assert not [name for name in files_below(tmp_path) if ".part" in name or "discoro-" in name]

    simulate(main)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# ------------------------------------------------------------------ what cannot be asked for


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "a/..", "a\\b", "C:x", "a\0b", "x" * 2000])
def test_a_name_that_leaves_the_directory_is_refused_here(tmp_path: Path, name: str) -> None:
    async def test(both: Two) -> None:
        with pytest.raises(ConfigError, match="file name"):
            await both.near.fetch_file(both.peer, name)
        with pytest.raises(ConfigError, match="file name"):
            await both.near.del_file(both.peer, name)
        if name not in ("", "."):
            with pytest.raises(ConfigError, match="file name"):
                await both.near.send_file(both.peer, both.file("a"), dir=name)

    two(tmp_path, test)


def test_an_absolute_name_is_refused_in_words(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        words = r"'/etc/passwd' is absolute: names at a peer are relative to its directory for files"
        for asking in (
            both.near.fetch_file(both.peer, "/etc/passwd"),
            both.near.del_file(both.peer, "/etc/passwd"),
            both.near.del_file(both.peer, "x", dir="/etc/passwd"),
            both.near.send_file(both.peer, both.file("a"), dir="/etc/passwd"),
        ):
            with pytest.raises(ConfigError, match=words):
                await asking

    two(tmp_path, test)


@pytest.mark.parametrize("peer", [None, "far", ("far", 1), 7])
def test_only_peers_and_references_are_asked(tmp_path: Path, peer: Any) -> None:
    async def test(both: Two) -> None:
        for asking in (
            both.near.fetch_file(peer, "a"),
            both.near.del_file(peer, "a"),
            both.near.send_file(peer, both.file("a")),
        ):
            with pytest.raises(TypeError, match="a Peer or a reference is wanted"):
                await asking

    two(tmp_path, test)


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        (both.home / "empty").mkdir()
        os.mkfifo(both.home / "pipe")
        both.file("odd\\name")
        for path, why in (
            (both.home / "none", "No such file or directory. Check the path"),
            (both.home / "empty", "has no files in it that would travel"),
            (both.home / "pipe", "neither a file nor a directory"),
            (both.home / "odd\\name", "Rename"),
            (Path("/dev/null"), "neither a file nor a directory"),
        ):
            with pytest.raises(ConfigError, match=f"{path.name.replace(chr(92), '.')} was not sent to far/.*{why}"):
                await both.near.send_file(both.peer, path)
        with pytest.raises(ConfigError, match="progress=7 cannot be used"):
            await both.near.send_file(both.peer, both.file("a"), progress=7)  # type: ignore[arg-type]
        assert both.left(both.there) == []

    two(tmp_path, test)


def test_the_receivers_limit_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        words = r"data was not sent to far/\d+: 11 bytes; at most 10 of a file are taken here .*data/large \(11 bytes\)"
        both.file("data/small")
        both.file("data/large", bytes(11))
        with pytest.raises(TooLarge, match=words):
            await both.near.send_file(both.peer, both.home / "data")
        assert both.left(both.there) == [] and not both.read
        with pytest.raises(TooLarge, match="at most 10 of a file"):
            (both.here / "mine").write_bytes(bytes(11))
            await both.far.fetch_file(both.far.peers()[0], "mine")

    two(tmp_path, test, max_file_size=10)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        for asking in (
            both.near.fetch_file(both.peer, "sub/none"),
            both.near.del_file(both.peer, "sub/none"),
            both.near.del_file(both.peer, "none", dir="sub"),
        ):
            with pytest.raises(TransferFailed, match=f"at far/.*there is no sub/none in {both.there}|from far/.*there is no"):
                await asking

    two(tmp_path, test)


# ------------------------------------------------------------------ sending


@pytest.mark.parametrize("size", [0, 1, LINKED - 1, LINKED, PIECE * WINDOW * 2 + 1])
def test_a_file_lies_there_with_its_bytes(tmp_path: Path, size: int) -> None:
    async def test(both: Two) -> None:
        path = both.file("data.bin", noise(size))
        assert await both.near.send_file(both.peer, path) == 0
        assert (both.there / "data.bin").read_bytes() == noise(size)
        assert await both.near.send_file(both.peer, str(path), dir="a/b/") == 0
        assert (both.there / "a" / "b" / "data.bin").read_bytes() == noise(size)

    two(tmp_path, test)


def test_any_reference_means_its_process(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        async def waits(coro: Any = None) -> None:
            await coro.receive()

        there = asyncio.ensure_future(both.far.run(waits))
        await until(lambda: bool(both.far.coros()))
        [coro] = both.far.coros()
        await both.near.send_file(coro.ref, both.file("a"))
        await both.near.send_file(process_of(both.far.me), both.file("b"))
        await both.near.send_file(Peer.of(both.far.me), both.file("c"))
        assert both.left(both.there) == ["a", "b", "c"]
        coro.mailbox.put(0)
        await there

    two(tmp_path, test)


def test_a_process_exchanges_files_with_itself(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        me = process_of(both.near.me)
        await both.near.send_file(me, both.file("a", noise(LINKED)), dir="sub")
        assert (both.here / "sub" / "a").read_bytes() == noise(LINKED)
        assert await both.near.fetch_file(me, "sub/a") == both.here / "a"
        assert (both.here / "a").read_bytes() == noise(LINKED)
        await both.near.del_file(me, "a", dir="sub")
        assert both.left(both.here) == ["a"]

    two(tmp_path, test)


def test_the_same_file_does_not_travel_again(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        path = both.file("data.bin", noise(LINKED))
        await both.near.send_file(both.peer, path)
        before = both.read.total()
        assert before
        for overwrite in (False, True):
            assert await both.near.send_file(both.peer, path, overwrite=overwrite) == 0
        assert both.read.total() == before

    two(tmp_path, test)


def test_another_file_is_replaced_only_if_that_is_wanted(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        (both.there / "a").write_bytes(b"mine!")
        path = both.file("a")
        with pytest.raises(TransferFailed) as caught:
            await both.near.send_file(both.peer, path)
        text = str(caught.value)
        assert f"{path} was not sent to far/" in text and f"{both.there / 'a'} is another file, of 5 bytes" in text
        assert (both.there / "a").read_bytes() == b"mine!" and not both.read
        await both.near.send_file(both.peer, path, overwrite=True)
        assert (both.there / "a").read_bytes() == b"hello"

    two(tmp_path, test)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_that_name_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    async def test(both: Two) -> None:
        (both.there / "a").mkdir()
        (both.there / "b").write_bytes(b"")
        with pytest.raises(TransferFailed, match="there is a directory of that name"):
            await both.near.send_file(both.peer, both.file("a"), overwrite=overwrite)
        with pytest.raises(TransferFailed, match=f"{both.there / 'b'} is no directory"):
            await both.near.send_file(both.peer, both.file("a"), dir="b", overwrite=overwrite)
        assert both.left(both.there) == ["a", "b"] and not both.read

    two(tmp_path, test)


def test_a_script_stays_executable_and_becomes_so(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        await both.near.send_file(both.peer, both.file("run.sh", executable=True))
        assert stat.S_IMODE((both.there / "run.sh").stat().st_mode) == 0o700
        await both.near.send_file(both.peer, both.file("run.sh"))
        assert stat.S_IMODE((both.there / "run.sh").stat().st_mode) == 0o600, "its content is the same: nothing is lost"

    two(tmp_path, test)


def test_a_directory_is_sent_whole_but_for_what_never_travels(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        for name in ("top.txt", "a/deep/file.txt", ".git/config", "a/__pycache__/x.pyc", "skip.log"):
            both.file(f"data/{name}", name.encode())
        both.file("data/.discoroignore", b"*.log\n")
        (both.home / "data" / "link").symlink_to("a/deep")
        await both.near.send_file(both.peer, both.home / "data", dir="in")
        wanted = ["in", "in/data", "in/data/.discoroignore", "in/data/a", "in/data/a/deep", "in/data/a/deep/file.txt"]
        assert both.left(both.there) == [*wanted, "in/data/link", "in/data/link/file.txt", "in/data/top.txt"]
        assert (both.there / "in/data/link/file.txt").read_bytes() == b"a/deep/file.txt"

    two(tmp_path, test)


def test_relative_paths_are_relative_to_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(both: Two) -> None:
        monkeypatch.chdir(both.home)
        both.file("sub/a")
        await both.near.send_file(both.peer, "sub/a")
        await both.near.send_file(both.peer, ".", dir="all")
        monkeypatch.chdir(both.home / "sub")
        await both.near.send_file(both.peer, "..", dir="up")
        wanted = ["a", "all", "all/home", "all/home/sub", "all/home/sub/a", "up", "up/home", "up/home/sub", "up/home/sub/a"]
        assert both.left(both.there) == wanted
        assert await both.near.fetch_file(both.peer, "a", dir="got") == both.home / "sub" / "got" / "a"

    two(tmp_path, test)


def test_equal_files_at_a_client_are_each_its_own(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        for name in ("one", "two", "three"):
            both.file(f"data/{name}", noise(LINKED))
        await both.near.send_file(both.peer, both.home / "data")
        await both.near.send_file(both.peer, both.home / "data" / "one")
        assert sorted(both.read.values()) == [2], "each time once for all of them: the client gave away what it had"
        with open(both.there / "data" / "two", "r+b") as file:
            file.write(b"changed")
        for name in ("data/one", "data/three", "one"):
            assert (both.there / name).read_bytes() == noise(LINKED)

    two(tmp_path, test)


def test_at_a_node_large_files_share_the_store_and_travel_once(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        path = both.file("a", noise(LINKED))
        await both.near.send_file(both.peer, path)
        await both.near.send_file(both.peer, path, dir="again")
        assert both.read.total() == 1
        found = [(both.there / name).stat() for name in ("a", "again/a")]
        assert found[0].st_ino == found[1].st_ino and stat.S_IMODE(found[0].st_mode) == 0o400
        await both.near.del_file(both.peer, "a")
        assert (both.there / "again" / "a").read_bytes() == noise(LINKED)

    two(tmp_path, test, role="node")


def test_two_that_send_different_files_of_one_name_are_not_both_told_that_it_lies_there(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        paths = [both.file(f"{number}/same", noise(LINKED + number)) for number in range(5)]
        sent = await asyncio.gather(*(both.near.send_file(both.peer, path) for path in paths), return_exceptions=True)
        assert sorted(map(str, sent)).count("0") == 1 and all(isinstance(each, TransferFailed) for each in sent if each != 0)
        assert (both.there / "same").read_bytes() == paths[sent.index(0)].read_bytes()

    two(tmp_path, test)


# ------------------------------------------------------------------ fetching, removing


def test_a_file_is_fetched_to_where_its_path_says(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        (both.there / "out").mkdir()
        (both.there / "out" / "result.bin").write_bytes(noise(LARGE))
        fetched = await both.near.fetch_file(both.peer, "out/result.bin")
        assert fetched == both.here / "result.bin" and fetched.read_bytes() == noise(LARGE)
        assert os.access(fetched, os.W_OK) and fetched.stat().st_nlink == 1, "it is the user's now"
        chosen = await both.near.fetch_file(both.peer, Path("out/result.bin"), dir=both.home / "new" / "deep")
        assert chosen == both.home / "new" / "deep" / "result.bin" and chosen.read_bytes() == noise(LARGE)

    two(tmp_path, test)


def test_a_directory_is_fetched_whole(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        for name in ("one", "sub/two"):
            path = both.there / "out" / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        assert await both.near.fetch_file(both.peer, "out/run") == both.here / "run"
        assert both.left(both.here) == ["run", "run/one", "run/sub", "run/sub/two"]
        (both.here / "run" / "one").write_text("mine")
        with pytest.raises(TransferFailed, match="run/one is another file"):
            await both.near.fetch_file(both.peer, "out/run")
        await both.near.fetch_file(both.peer, "out/run", overwrite=True)
        assert (both.here / "run" / "one").read_text() == "one"

    two(tmp_path, test)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        (both.there / "a").write_bytes(b"hello")
        with pytest.raises(ConfigError, match=f"a was not fetched from far/.*the directory {both.file('file')} cannot be made"):
            await both.near.fetch_file(both.peer, "a", dir=both.file("file"))

    two(tmp_path, test)


def test_what_is_removed_takes_empty_directories_with_it_but_not_the_directory_for_files(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        await both.near.send_file(both.peer, both.file("a"), dir="x/y/z")
        await both.near.send_file(both.peer, both.file("b"), dir="x")
        assert await both.near.del_file(both.peer, "y/z/a", dir="x") == 0
        assert both.left(both.there) == ["x", "x/b"]
        assert await both.near.del_file(both.peer, "x") == 0, "a directory with what is in it"
        assert both.left(both.there) == [] and both.there.is_dir()
        with pytest.raises(TransferFailed, match="there is no x"):
            await both.near.del_file(both.peer, "x")

    two(tmp_path, test)


def test_one_peer_is_offered_so_many_files_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "OFFERED", 3)

    async def test(both: Two) -> None:
        for name in "abcd":
            (both.there / name).write_text(name)
        to = process_of(both.far.me)
        for number in (101, 102, 103):
            await both.near.request(to, "fetch", {"number": number, "name": "a"})
        with pytest.raises(Overloaded, match="far offers you 3 files already"):
            await both.near.fetch_file(both.peer, "b")
        await both.near.request(to, "fetched", {"number": 102})
        await both.near.fetch_file(both.peer, "b")
        for number in (101, 103):
            await both.near.request(to, "fetched", {"number": number})

    two(tmp_path, test)


# ------------------------------------------------------------------ progress


def test_whoever_asks_for_progress_is_told_and_nobody_else(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        told: list[tuple[int, int]] = []
        path = both.file("a", noise(LARGE))
        with both.network.delaying(0.02):
            await both.near.send_file(both.peer, path, progress=lambda *count: told.append(count))
        assert told[-1] == (LARGE, LARGE) and len(told) > 2
        assert [count for count in told if count[1] != LARGE] == [] and told == sorted(told)
        fetched: list[tuple[int, int]] = []
        with both.network.delaying(0.02):
            await both.near.fetch_file(both.peer, "a", progress=lambda *count: fetched.append(count))
        assert fetched[-1] == (LARGE, LARGE) and len(fetched) > 2 and fetched == sorted(fetched)
        nothing: list[tuple[int, int]] = []
        await both.near.send_file(both.peer, path, progress=lambda *count: nothing.append(count))
        assert nothing == [(0, 0)], "nothing had to travel"

    two(tmp_path, test)


def test_progress_that_raises_is_logged_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(both: Two) -> None:
        def count(done: int, total: int) -> None:
            raise ValueError("of the user's own")

        with both.network.delaying(0.02):
            await both.near.send_file(both.peer, both.file("a", noise(LARGE)), progress=count)
        assert (both.there / "a").read_bytes() == noise(LARGE)

    two(tmp_path, test)
    assert [record.levelname for record in caplog.records if "progress raised" in record.message] == ["ERROR"]


# ------------------------------------------------------------------ what breaks


async def part_of(both: Two, work: Awaitable[Any], pieces: int) -> None:
    """Until that many pieces of it were asked for."""
    task = asyncio.ensure_future(work)
    await until(lambda: both.read.total() >= pieces or task.done())
    assert not task.done(), task.result()
    both.running = task  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", ["send", "fetch"])
def test_a_transfer_that_broke_goes_on_where_it_broke(tmp_path: Path, verb: str) -> None:
    async def test(both: Two) -> None:
        path = both.file("a", noise(LARGE))
        source, target = (path, both.there) if verb == "send" else (both.there / "a", both.here)
        source.write_bytes(noise(LARGE))

        def begin() -> Awaitable[Any]:
            if verb == "send":
                return both.near.send_file(Peer.of(both.far.me), path)
            return both.near.fetch_file(Peer.of(both.far.me), "a")

        with both.network.delaying(0.01):
            await part_of(both, begin(), 16)
        with both.network.partition("near", "far"):
            with pytest.raises(PeerLost, match=r"a was not (sent to|fetched from) far/\d+: "):
                await both.running  # type: ignore[attr-defined]
        assert both.left(target) == [], "nothing half-written"
        before = both.read.copy()
        await begin()
        again = both.read - before
        assert (target / "a").read_bytes() == noise(LARGE)
        assert set(both.read) == set(range(25)) and len(again) <= 25 - 16 + WINDOW and max(again.values()) == 1

    two(tmp_path, test)


def test_a_cut_of_seconds_is_not_noticed(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        with both.network.delaying(0.01):
            await part_of(both, both.near.send_file(both.peer, both.file("a", noise(LARGE))), 16)
        both.network.cut("near", "far")
        assert await both.running == 0  # type: ignore[attr-defined]
        assert (both.there / "a").read_bytes() == noise(LARGE) and set(both.read.values()) == {1}

    two(tmp_path, test)


@pytest.mark.parametrize("verb", ["send", "fetch"])
def test_when_the_time_is_over_nothing_is_left_and_nothing_comes_later(tmp_path: Path, verb: str) -> None:
    async def test(both: Two) -> None:
        both.file("data/small")
        both.file("data/large", noise(LARGE))
        if verb == "fetch":
            (both.home / "data").rename(both.there / "data")
        with both.network.delaying(0.05), pytest.raises(Timeout, match=r"data was not (sent to|fetched from) far/\d+ in 0.5 s"):
            if verb == "send":
                await both.near.send_file(both.peer, both.home / "data", timeout=0.5)
            else:
                await both.near.fetch_file(both.peer, "data", timeout=0.5)
        assert both.read, "it had begun"
        before = both.read.total()
        await asyncio.sleep(30)  # of a clock that is moved
        assert both.left(both.there if verb == "send" else both.here) == []
        assert both.read.total() <= before + WINDOW, "more than what was on the way"
        assert not both.far._exchange._under_way and not both.near._exchange._under_way

    two(tmp_path, test)


def test_what_is_given_up_while_it_waits_for_its_place_is_not_placed(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        async with both.far._exchange._placing:
            with pytest.raises(Timeout):
                await both.near.send_file(both.peer, both.file("a"), timeout=1)
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        assert both.left(both.there) == []

    two(tmp_path, test)


def test_what_is_given_up_while_it_is_placed_is_taken_back(tmp_path: Path) -> None:
    """With real threads, on a real clock: the loop goes on while files are placed."""
    placing, real = threading.Event(), exchange_module.Inside.place

    def place(inside: Any, plan: Any, overwrite: bool, stopped: threading.Event) -> None:
        placing.set()
        assert stopped.wait(10)
        real(inside, plan, overwrite, stopped)

    async def main() -> None:
        (tmp_path / "data").mkdir()
        for name in ("a", "b"):
            (tmp_path / "data" / name).write_text(name)
        async with World().mesh("near", dest_path=tmp_path / "near") as near:
            with pytest.raises(Timeout):
                await near.send_file(process_of(near.me), tmp_path / "data", timeout=0.2)
            assert placing.is_set()
            await until(lambda: not near._exchange._under_way)
            assert [name for name in files_below(tmp_path / "near") if not name.startswith(".discoro-")] == []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange_module.Inside, "place", place)
        asyncio.run(main())


def test_many_that_send_the_same_content_at_once_all_arrive(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        paths = [both.file(str(number), noise(LINKED)) for number in range(10)]
        await asyncio.gather(*(both.near.send_file(both.peer, path) for path in paths))
        found = [both.there / str(number) for number in range(10)]
        assert all(path.read_bytes() == noise(LINKED) and path.stat().st_nlink == 1 for path in found)

    two(tmp_path, test)


def test_a_file_that_changes_while_it_is_sent_is_said(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        path = both.file("a", noise(LARGE))
        with both.network.delaying(0.01):
            await part_of(both, both.near.send_file(both.peer, path), 12)
        with open(path, "ab") as file:
            file.write(b"more")
        with pytest.raises(ConfigError, match=f"the file {path} was changed while it was sent: send it again"):
            await both.running  # type: ignore[attr-defined]
        assert both.left(both.there) == []
        await both.near.send_file(both.peer, path)
        assert (both.there / "a").stat().st_size == LARGE + 4

    two(tmp_path, test)


def test_a_file_that_goes_while_it_is_sent_is_said(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        path = both.file("a", noise(LARGE))
        with both.network.delaying(0.01):
            await part_of(both, both.near.send_file(both.peer, path), 12)
        path.unlink()
        with pytest.raises(ConfigError, match=f"the file {path} cannot be read any more: No such file"):
            await both.running  # type: ignore[attr-defined]
        assert both.left(both.there) == []

    two(tmp_path, test)


def test_of_a_directory_that_cannot_be_placed_nothing_new_is_left(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        for name in ("a", "b/c", "d"):
            both.file(f"data/{name}", name.encode())
        real, calls = exchange_module.Inside.place, []

        def place(inside: Any, plan: Any, *more: Any) -> None:
            calls.append(plan)
            plan[-1][1].unlink()  # the content of the last one is gone
            return real(inside, plan, *more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exchange_module.Inside, "place", place)
            with pytest.raises(TransferFailed, match="could not be written in"):
                await both.near.send_file(both.peer, both.home / "data")
        assert calls and both.left(both.there) == []
        assert not [name for name in files_below(both.there) if ".part" in name], "nor of what was to be moved"
        await both.near.send_file(both.peer, both.home / "data")
        assert both.left(both.there) == ["data", "data/a", "data/b", "data/b/c", "data/d"]

    two(tmp_path, test)
