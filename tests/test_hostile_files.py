"""Peers that lie about files: names that lead out, links, devices, contents that are not what was named, silence in the middle.

Nothing is ever written, read or removed outside the directory for files, and nothing is left of what was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from discoro import packing
from discoro.blobs import EMPTY, PIECE, Blob
from discoro.errors import ConfigError, PeerLost, ProtocolError, TooLarge, TransferFailed
from discoro.files import MAX_FILES, Shipped, packed_files
from discoro.inside import Inside, contents
from discoro.requests import Incoming
from discoro.transfers import process_of
from tests.support.commands import ROOT
from tests.support.meshes import World, simulate, until
from tests.support.nodes import files_below
from tests.test_blobs import blob_with
from tests.test_exchange import Two, noise, two
from tests.test_files import HOSTILE_NAMES

Answer = Callable[[Incoming], Any]


def take(*files: Shipped, **more: Any) -> tuple[str, dict[str, Any], list[bytes]]:
    """The request that has a peer take these files."""
    return "take", {"number": 1, "dir": "", "overwrite": True, **more}, [packed_files(files)]


def hello(name: str = "a") -> Shipped:
    return Shipped(name, blob_with(b"hello"), False)


def serving(both: Two, data: bytes | Callable[[int], Any]) -> None:
    """The near side answers every `read` with these bytes, or what the function gives for that piece."""

    def answer(incoming: Incoming) -> None:
        index = incoming.arguments["piece"]
        incoming.reply(0, [data(index) if callable(data) else data])

    both.near.handlers["read"] = answer


def refused(tmp_path: Path, error: Any, words: str, ask: Callable[[Two], Awaitable[Any]], role: str = "client") -> None:
    """The far side refuses it in these words; nothing lies there afterwards that was not there before, and nothing outside."""

    async def test(both: Two) -> None:
        serving(both, b"hello")
        before = files_below(tmp_path)
        with pytest.raises(error, match=words):
            await ask(both)
        assert [name for name in files_below(tmp_path) if "/.discoro-" not in name] == before

    two(tmp_path, test, role=role)


def asked(both: Two, request: tuple[Any, ...]) -> Awaitable[Any]:
    return both.near.request(process_of(both.far.me), *request)


# ------------------------------------------------------------------ names


def travels(text: str) -> bool:
    """Whether a message can carry it: half of a UTF-16 pair is no letter."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


@pytest.mark.parametrize("name", [name for name in HOSTILE_NAMES if travels(name)])
def test_no_name_that_leads_out_is_taken_fetched_or_removed(tmp_path: Path, name: str) -> None:
    async def test(both: Two) -> None:
        before = files_below(tmp_path)
        listed = [[name, *hello().to_plain()[1:]]]
        for request in (
            ("take", {"number": 1, "dir": "", "overwrite": True}, [packing.pack(listed)]),
            take(hello(), dir=name),
            ("fetch", {"number": 1, "name": name}),
            ("remove", {"name": name}),
        ):
            if request[0] == "take" and request[1]["dir"] == name == "":
                continue  # which is the directory for files itself
            with pytest.raises(ProtocolError):
                await asked(both, request)
        assert [each for each in files_below(tmp_path) if "/.discoro-" not in each] == before

    two(tmp_path, test)


@pytest.mark.parametrize(
    ("role", "name"),
    [
        *[("node", name) for name in ("node-3f2a/lock", "NODE-3f2a/x", "new-1/lock", ".discoro-1/x", "node-x")],
        *[("client", name) for name in (".discoro-1/x", ".Discoro-1", "node-0123456789ab/lock", "new-0123456789ab/lock")],
        ("worker", ".kept"),
    ],
)
def test_what_is_discoros_own_has_no_name_for_others(tmp_path: Path, role: str, name: str) -> None:
    inside = Inside(tmp_path, role)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"own")
    for ask in (
        lambda: inside.missing([hello(name)], True),
        lambda: inside.contents(name),
        lambda: inside.remove(name),
    ):
        with pytest.raises(TransferFailed, match="is discoro's own"):
            ask()
    assert path.read_bytes() == b"own"


@pytest.mark.parametrize(
    ("role", "name"), [("client", "node-1.csv"), ("client", "new-data"), ("worker", "node-1"), (None, ".kept")]
)
def test_an_ordinary_name_is_nobodys_own(tmp_path: Path, role: str | None, name: str) -> None:
    assert Inside(tmp_path, role).missing([hello(name)], False) == [hello(name)]


def test_a_link_to_what_is_discoros_own_is_not_read_through(tmp_path: Path) -> None:
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1" / "lock").write_bytes(b"own")
    (tmp_path / "link").symlink_to("node-1")
    with pytest.raises(TransferFailed, match="is discoro's own"):
        Inside(tmp_path, "node").contents("link")


@pytest.mark.parametrize("offered", [["b"], ["a", "b"], ["a/../../b"], ["/etc/x"], [".bashrc"], ["ab"], ["a", "a/x"], []])
def test_a_peer_offers_nothing_but_what_was_fetched(tmp_path: Path, offered: list[str]) -> None:
    async def test(both: Two) -> None:
        def answer(incoming: Incoming) -> None:
            body = packing.pack([[name, *hello().to_plain()[1:]] for name in offered])
            incoming.reply(0, [body])

        both.far.handlers["fetch"] = answer
        both.far.handlers["read"] = lambda incoming: incoming.reply(0, [b"hello"])
        with pytest.raises((ProtocolError, TransferFailed), match="was not fetched"):
            await both.near.fetch_file(both.peer, "a")
        assert both.left(both.here) == [] and files_below(both.home) == []

    two(tmp_path, test)


# ------------------------------------------------------------------ links, devices


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory outside, with a secret; and in the directory for files of the far side, links to both."""
    there, outside = tmp_path / "far", tmp_path / "outside"
    for each in (there, outside, there / "real"):
        each.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (there / "door").symlink_to(outside)
    (there / "file").symlink_to(outside / "secret")
    (there / "up").symlink_to("..")
    (there / "loop").symlink_to("loop")
    (there / "real" / "door").symlink_to(outside)
    (there / "real" / "fine").write_bytes(b"fine")
    (there / "within").symlink_to("real/fine")
    return outside


@pytest.mark.parametrize("name", ["door/secret", "file", "door", "up/outside/secret", "real", "loop", "real/door/secret"])
def test_no_link_leads_a_reader_out(tmp_path: Path, outside: Path, name: str) -> None:
    with pytest.raises(TransferFailed, match="leads out of|cannot be read|there is no"):
        Inside(tmp_path / "far", "client").contents(name)


@pytest.mark.parametrize("name", ["within", "up/far/real/fine"])
def test_a_link_that_stays_inside_is_read(tmp_path: Path, outside: Path, name: str) -> None:
    [(file, source)] = Inside(tmp_path / "far", "client").contents(name)
    assert file.name == Path(name).name and source.read_piece(0) == b"fine"


@pytest.mark.parametrize("name", ["door/secret", "door/new", "up/new", "real/door/new", "loop/x"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_link_leads_a_writer_out(tmp_path: Path, outside: Path, name: str, overwrite: bool) -> None:
    inside = Inside(tmp_path / "far", "client")
    for ask in (lambda: inside.missing([hello(name)], overwrite), lambda: inside.remove(name)):
        with pytest.raises(TransferFailed, match="is a link, which nobody may follow"):
            ask()
    assert files_below(outside) == ["secret"] and (outside / "secret").read_bytes() == b"secret"


def test_a_link_in_the_place_of_a_file_is_replaced_or_removed_itself(tmp_path: Path, outside: Path) -> None:
    async def ask(both: Two) -> None:
        serving(both, b"hello")
        with pytest.raises(TransferFailed, match="file is another file"):
            await asked(both, take(hello("file"), overwrite=False))
        await asked(both, take(hello("file")))
        assert (both.there / "file").read_bytes() == b"hello" and not (both.there / "file").is_symlink()
        await asked(both, ("remove", {"name": "door"}))
        assert not os.path.lexists(both.there / "door")
        await asked(both, ("remove", {"name": "real"}))
        assert not os.path.lexists(both.there / "real")
        assert files_below(outside) == ["secret"] and (outside / "secret").read_bytes() == b"secret"

    async def main(world: World) -> None:
        for name in ("near", "home"):
            (tmp_path / name).mkdir()
        async with (
            world.mesh("far", dest_path=tmp_path / "far") as far,
            world.mesh("near", far, dest_path=tmp_path / "near") as near,
        ):
            await ask(Two(world, near, far, tmp_path))

    simulate(main)


def test_a_link_made_after_the_look_is_not_followed(tmp_path: Path) -> None:
    """Between the comparison and the placing lies the whole transfer."""
    (tmp_path / "outside").mkdir()

    async def test(both: Two) -> None:
        def swap(index: int) -> bytes:
            (both.there / "sub").symlink_to(tmp_path / "outside")
            return b"hello"

        serving(both, swap)
        with pytest.raises(TransferFailed, match="sub is a link, which nobody may follow"):
            await asked(both, take(hello("sub/a")))
        assert files_below(tmp_path / "outside") == []

    two(tmp_path, test)


def test_devices_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opened, it would wait for ever
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    (tmp_path / "device").symlink_to("/dev/zero")
    inside = Inside(tmp_path, "client")
    for name, words in (("pipe", "neither a file nor"), ("socket", "neither a file nor"), ("device", "leads out")):
        with pytest.raises(TransferFailed, match=words):
            inside.contents(name)
        with pytest.raises(TransferFailed, match=f"{name} is another file"):
            inside.missing([hello(name)], False)
    if os.geteuid() == 0:
        os.mknod(tmp_path / "zero", 0o600 | 0o020000, os.makedev(1, 5))
        with pytest.raises(TransferFailed, match="neither a file nor"):
            inside.contents("zero")


# ------------------------------------------------------------------ contents that are not what was named


@pytest.mark.parametrize(
    ("blob", "served", "words"),
    [
        (blob_with(b"hello"), b"jello", "what came has another digest"),
        (blob_with(b"hello"), b"hell", "4 bytes came for piece 0, which has 5"),
        (blob_with(b"hello"), b"hello, world", "12 bytes came for piece 0, which has 5"),
        (blob_with(b"hello"), b"", "0 bytes came for piece 0, which has 5"),
        (Blob(blob_with(b"hello").digest, 6), b"hello!", "what came has another digest"),
        (Blob(blob_with(b"hello").digest, 4), b"hell", "what came has another digest"),
        (Blob(EMPTY.digest, 5), b"hello", "no bytes have one digest, and nothing else has it"),
        (Blob(blob_with(b"hello").digest, 0), b"", "no bytes have one digest, and nothing else has it"),
        (Blob("0" * 63, 5), b"hello", "not 64 hex digits"),
        (Blob("../" + "0" * 61, 5), b"hello", "not 64 hex digits"),
        (Blob(blob_with(b"hello").digest, -1), b"hello", "not a number of bytes"),
        (Blob(blob_with(b"hello").digest, 1 << 62), b"hello", "could not be written|File too large|came for piece"),
    ],
)
def test_a_digest_or_a_size_that_lies_leaves_nothing(tmp_path: Path, blob: Blob, served: bytes, words: str) -> None:
    async def ask(both: Two) -> None:
        serving(both, served)
        await asked(both, take(Shipped("a", blob, False)))

    refused(tmp_path, (ProtocolError, TransferFailed), words, ask)


def test_one_wrong_piece_of_many_spoils_all(tmp_path: Path) -> None:
    data = noise(20 * PIECE)

    def served(index: int) -> bytes:
        piece = data[index * PIECE : (index + 1) * PIECE]
        return piece if index != 13 else piece[:-1] + b"!"

    async def ask(both: Two) -> None:
        serving(both, served)
        await asked(both, take(Shipped("a", blob_with(data), False)))

    refused(tmp_path, ProtocolError, "what came has another digest", ask)


def test_pieces_in_several_parts_or_none(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        for body in ([b"he", b"llo"], []):
            both.near.handlers["read"] = lambda incoming, body=body: incoming.reply(0, body)  # type: ignore[misc]
            try:
                await asked(both, take(hello()))
            except ProtocolError:
                assert both.left(both.there) == []
            else:
                assert (both.there / "a").read_bytes() == b"hello"

    two(tmp_path, test)


def test_after_a_lie_an_honest_transfer_of_that_content_arrives(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        honest = both.near.handlers["read"]
        path = both.file("a", noise(3 * PIECE))
        serving(both, lambda index: bytes(PIECE))
        with pytest.raises(ProtocolError, match="another digest"):
            await both.near.send_file(both.peer, path)
        both.near.handlers["read"] = honest
        await both.near.send_file(both.peer, path)
        assert (both.there / "a").read_bytes() == noise(3 * PIECE)

    two(tmp_path, test)


@pytest.mark.parametrize("piece", [-1, 1, 2**63, None, "0", 0.0, True])
def test_a_piece_that_there_is_not_is_refused(tmp_path: Path, piece: Any) -> None:
    async def test(both: Two) -> None:
        (both.there / "a").write_bytes(b"hello")
        await asked(both, ("fetch", {"number": 1, "name": "a"}))
        blob = {"digest": blob_with(b"hello").digest, "size": 5}
        with pytest.raises(ProtocolError, match="has no piece"):
            await asked(both, ("read", {**blob, "piece": piece}))
        assert bytes((await asked(both, ("read", {**blob, "piece": 0}))).body[0]) == b"hello"
        await asked(both, ("fetched", {"number": 1}))

    two(tmp_path, test)


def test_only_what_is_offered_is_read_and_only_as_long(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        (both.there / "a").write_bytes(b"hello")
        read = ("read", {"digest": blob_with(b"hello").digest, "size": 5, "piece": 0})
        with pytest.raises(TransferFailed, match="far does not offer"):
            await asked(both, read)
        await asked(both, ("fetch", {"number": 1, "name": "a"}))
        await asked(both, read)
        await asked(both, ("fetched", {"number": 1}))
        with pytest.raises(TransferFailed, match="far does not offer"):
            await asked(both, read)

    two(tmp_path, test)


def test_who_fetches_and_is_lost_is_offered_nothing_any_more(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        (both.there / "a").write_bytes(b"hello")
        await asked(both, ("fetch", {"number": 1, "name": "a"}))
        assert both.far._exchange._offers
        await both.near.close_peer(both.peer)
        # two() waits until nothing is offered

    two(tmp_path, test)


# ------------------------------------------------------------------ requests that make no sense, too many files


@pytest.mark.parametrize(
    "request_",
    [
        ("take", {"dir": "", "overwrite": True}, [packed_files([])]),
        ("take", {"number": "1", "dir": "", "overwrite": True}, [packed_files([])]),
        ("take", {"number": 1, "dir": 7}, [packed_files([])]),
        ("take", {"number": 1, "dir": ""}),
        ("take", {"number": 1, "dir": ""}, [packed_files([]), b""]),
        ("take", {"number": 1, "dir": ""}, [b"\xc1"]),
        ("take", {"number": 1, "dir": ""}, [packing.pack({"a": 1})]),
        ("take", {"number": 1, "dir": ""}, [packing.pack([["a"]])]),
        ("fetch", {"name": "a"}),
        ("fetch", {"number": 1}),
        ("fetch", {"number": 1, "name": 7}),
        ("fetched", {}),
        ("withdraw", {"number": None}),
        ("remove", {}),
        ("remove", {"name": ["a"]}),
        ("release", {}, [packing.pack([7])]),
        ("release", {}, [packing.pack([["x", 7]])]),
    ],
)
def test_requests_without_their_arguments_are_refused(tmp_path: Path, request_: tuple[Any, ...]) -> None:
    words = "without|not a list|of files|digest|not a discoro header"
    refused(tmp_path, ProtocolError, words, lambda both: asked(both, request_))


def test_one_number_stands_for_one_transfer(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        (both.there / "a").write_bytes(b"hello")
        await asked(both, ("fetch", {"number": 1, "name": "a"}))
        for verb in (("fetch", {"number": 1, "name": "a"}), take(hello("b"))):
            with pytest.raises(ProtocolError, match="with the number of another one"):
                await asked(both, verb)
        await asked(both, ("fetched", {"number": 1}))

    two(tmp_path, test)


def test_nobody_ends_what_another_peer_asked_for(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        (tmp_path / "far").mkdir()
        (tmp_path / "far" / "a").write_bytes(b"hello")
        async with (
            world.mesh("far", dest_path=tmp_path / "far") as far,
            world.mesh("near", far) as near,
            world.mesh("evil", far) as evil,
        ):
            to = process_of(far.me)
            await near.request(to, "fetch", {"number": 1, "name": "a"})
            await evil.request(to, "fetched", {"number": 1})
            await evil.request(to, "withdraw", {"number": 1})
            read = {"digest": blob_with(b"hello").digest, "size": 5, "piece": 0}
            assert (await near.request(to, "read", read)).value == 0

    simulate(main)


def test_more_files_than_a_list_may_have_are_refused_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [["f" + str(number), *hello().to_plain()[1:]] for number in range(MAX_FILES + 1)]

    async def ask(both: Two) -> None:
        await asked(both, ("take", {"number": 1, "dir": "", "overwrite": True}, [packing.pack(files)]))

    refused(tmp_path, ProtocolError, "not a list of at most 100000 items", ask)
    many = tmp_path / "many"
    many.mkdir()
    for number in range(4):
        (many / str(number)).touch()
    monkeypatch.setattr("discoro.inside.MAX_FILES", 3)
    with pytest.raises(ConfigError, match="more than 3 files: send it in parts, or as an archive"):
        contents(many)


def test_names_that_make_a_list_too_long_are_refused_by_who_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discoro.exchange.MAX_LIST", 150)

    async def test(both: Two) -> None:
        both.file("data/" + "x" * 200)
        with pytest.raises(TooLarge, match="the names of its 1 files have 2.. bytes; at most 150"):
            await both.near.send_file(both.peer, both.home / "data")

    two(tmp_path, test)


# ------------------------------------------------------------------ silence


def test_a_peer_that_goes_silent_in_the_middle_is_lost_and_leaves_nothing(tmp_path: Path) -> None:
    async def test(both: Two) -> None:
        (both.there / "a").write_bytes(noise(20 * PIECE))
        honest, served = both.far.handlers["read"], []

        def answer(incoming: Incoming) -> Any:
            served.append(incoming)
            return honest(incoming) if len(served) < 5 else None  # the rest is never answered

        both.far.handlers["read"] = answer
        with pytest.raises(TimeoutError, match="a was not fetched from far/.* in 60 s"):
            await both.near.fetch_file(both.peer, "a", timeout=60)
        both.far.handlers["read"] = honest
        assert both.left(both.here) == []
        assert (await both.near.fetch_file(both.peer, "a")).read_bytes() == noise(20 * PIECE)

    two(tmp_path, test)


def test_a_peer_that_leaves_in_the_middle_is_told_at_once(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        for name in ("near", "far"):
            (tmp_path / name).mkdir()
        (tmp_path / "far" / "a").write_bytes(noise(20 * PIECE))
        served: list[Incoming] = []
        async with contextlib.AsyncExitStack() as stack:
            far = await stack.enter_async_context(world.mesh("far", dest_path=tmp_path / "far"))
            async with world.mesh("near", far, dest_path=tmp_path / "near") as near:
                far.handlers["read"] = served.append
                fetching = asyncio.ensure_future(near.fetch_file(near.peers()[0], "a"))
                await until(lambda: len(served) > 4)
                await stack.aclose()
                with pytest.raises(PeerLost, match=r"a was not fetched from far/\d+: .*left the mesh"):
                    await fetching
                assert not [name for name in files_below(tmp_path / "near") if not name.startswith(".discoro-")]

    simulate(main)


# ------------------------------------------------------------------ a disk that fills


def small_disk() -> str:
    """Why no small disk can be made here; "" where it can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "no unshare (util-linux)"
    command = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return tried.stderr.strip()


# What runs one of the functions below in a process that has a disk of 4 MiB at far/.
ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from tests import test_hostile_files
getattr(test_hostile_files, sys.argv[1])(Path(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.system
@pytest.mark.skipif(bool(small_disk()), reason=f"no disk of its own can be mounted: {small_disk()}")
@pytest.mark.parametrize("role", ["client", "node"])
@pytest.mark.parametrize("fill", ["fills_by_one_file", "fills_by_many_files", "fills_and_finds_room_again"])
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path, fill: str, role: str) -> None:
    (tmp_path / "far").mkdir()
    run = 'mount -t tmpfs -o size=4m tmpfs "$1/far" && exec "$2" -W error -c "$3" "$4" "$1" "$5"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", run, "sh", tmp_path, sys.executable, ON_A_SMALL_DISK]
    done = subprocess.run([*command, fill, role], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.system
@pytest.mark.skipif(bool(small_disk()), reason=f"no disk of its own can be mounted: {small_disk()}")
def test_what_is_fetched_to_another_disk_is_received_there(tmp_path: Path) -> None:
    test_a_full_disk_is_said_and_nothing_is_left(tmp_path, "fetches_to_another_disk", "client")


def fills_by_one_file(tmp_path: Path, role: str) -> None:
    async def test(both: Two) -> None:
        path = both.file("a", noise(5 * PIECE))
        with pytest.raises(TransferFailed, match="5242880 bytes could not be written in .*: No space left on device"):
            await both.near.send_file(both.peer, path)
        assert not both.read, "it was known before the first byte came"
        left = [name for name in files_below(both.there) if "/" in name or not name.startswith(".discoro-")]
        assert left == [], left

    two(tmp_path, test, role)


def fills_by_many_files(tmp_path: Path, role: str) -> None:
    async def test(both: Two) -> None:
        (both.there / "mine").write_bytes(b"mine")
        for number in range(100):
            both.file(f"data/{number}", noise(50_000 + number))
        with pytest.raises(TransferFailed, match="could not be written in .*: No space left on device"):
            await both.near.send_file(both.peer, both.home / "data")
        left = [name for name in files_below(both.there) if "/" in name or not name.startswith(".discoro-")]
        assert left == ["mine"], left  # nobody rewrites the asserts of this process
        await both.near.send_file(both.peer, both.home / "data" / "7")
        assert (both.there / "7").read_bytes() == noise(50_007)

    two(tmp_path, test, role)


def fetches_to_another_disk(tmp_path: Path, role: str) -> None:
    async def test(both: Two) -> None:
        path, other = both.file("a", noise(PIECE + 7)), both.there / "chosen"
        (both.there / "a").write_bytes(path.read_bytes())
        fetched = await both.near.fetch_file(both.peer, "a", dir=other)
        assert fetched == other / "a" and fetched.read_bytes() == path.read_bytes(), fetched
        store = both.near.transfers.store
        assert not store._here and files_below(store.directory) == [], "it never lay on the disk of near/"
        assert [name for name in os.listdir(other) if name.startswith(".discoro-")], "but beside its place"

    two(tmp_path, test, role)


def fills_and_finds_room_again(tmp_path: Path, role: str) -> None:
    """What is kept for later makes room for what comes now."""

    async def test(both: Two) -> None:
        for number in range(8):
            path = both.file("a", noise(PIECE + number))
            await both.near.send_file(both.peer, path)
            await both.near.del_file(both.peer, "a")

    two(tmp_path, test, role)
