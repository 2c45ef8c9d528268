"""files.py: names that would leave their directory first, then what files hold, then files put in place and removed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import py_compile
import random
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from discoro import packing
from discoro.blobs import EMPTY, PIECE
from discoro.errors import ConfigError, DestPathError, ProtocolError, TransferFailed
from discoro.files import (
    LINKED,
    MAX_FILES,
    Shipped,
    checked_name,
    in_thread,
    measure,
    packed_files,
    place,
    private_directory,
    remove_files,
    units,
    unpacked_files,
)
from discoro.store import Store
from tests.support.sites import files_below
from tests.test_blobs import blob_with

HOSTILE_NAMES = [
    *("", ".", "..", "/", "//", "/etc/passwd", "../x", "a/../../x", "a/..", "a//b", "a/", "./a", "~/../x/"),
    *("..\\x", "C:\\x", "C:x", "C:/x", "\\\\host\\share", "a\\b", "NUL:", "a:b"),
    *("a\0b", "a\nb", "\x1b[2J", "a*", "a?", 'a"b', "<a>", "a|b"),
    *("...", "a ", "a.", " /a/. ", "a/ ", "\udce9", "caf\ud800", "x" * 2000),
]


def shipped(name: str, data: bytes = b"hello", executable: bool = False) -> Shipped:
    return Shipped(name, blob_with(data), executable)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs")


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return private_directory(tmp_path / "there")


# ------------------------------------------------------------------ names and lists from outside


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_leaves_its_directory_anywhere_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="file name"):
        checked_name(name)


@pytest.mark.parametrize(
    "name", ["a", "a.txt", ".hidden", "a/b/c.py", "..a", "a b", "naïve.txt", "数据.csv", "-rf", "~", "$HOME"]
)
def test_an_ordinary_name_passes(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "values",
    [
        None,
        "a",
        {"a": 1},
        ["a"],
        [[]],
        [["a", "b", 5]],
        [["a", "g" * 64, 5, False]],
        [["a", "a" * 64, -1, False]],
        [["a", "a" * 64, 5, 1]],
        [[5, "a" * 64, 5, False]],
        [["../a", "a" * 64, 5, False]],
        [["a", "a" * 64, 0, False]],
        [["a", "a" * 64, 5, False]] * (MAX_FILES + 1),
    ],
)
def test_a_list_that_is_no_list_of_files_is_refused(values: Any) -> None:
    with pytest.raises(ProtocolError):
        unpacked_files(packing.pack(values))


def test_a_list_of_files_comes_through_as_plain_values() -> None:
    files = [shipped("a"), shipped("b/c", b"", executable=True)]
    assert unpacked_files(packed_files(files)) == files


@pytest.mark.parametrize("part", [b"", b"junk", b"\x90\x90", b"\xdd\xff\xff\xff\xff", packed_files([])[:-1]])
def test_a_part_that_is_no_list_of_files_is_refused(part: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpacked_files(part)


def test_a_file_is_a_unit_and_so_is_a_directory_with_all_that_is_in_it() -> None:
    one = [shipped("a.txt"), shipped("p/b"), shipped("p/c/d")]
    assert units(one).keys() == {"a.txt", "p"}
    assert units(one) == units(reversed(one))
    assert units([*one, shipped("p/e")])["p"] != units(one)["p"], "a package with a module more is another one"
    assert units([shipped("a.txt", b"other")])["a.txt"] != units(one)["a.txt"]


# ------------------------------------------------------------------ reading what is sent


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.txt cannot be read: No such file"):
        measure(tmp_path / "missing.txt", "missing.txt")
    with pytest.raises(ConfigError, match="neither a file nor a directory"):
        measure(tmp_path, "directory")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_file(path: str) -> None:
    with pytest.raises(ConfigError, match="a device, a pipe or a socket cannot be sent"):
        measure(Path(path), "device")


def test_a_pipe_is_no_file_and_nobody_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="a device, a pipe or a socket cannot be sent"):
        measure(tmp_path / "pipe", "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(0o000)
    with pytest.raises(ConfigError, match="secret cannot be read: Permission denied"):
        measure(tmp_path / "secret", "secret")


def test_a_file_with_a_name_that_others_cannot_have_is_the_callers_fault(tmp_path: Path) -> None:
    path = tmp_path / "what?.txt"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no name everywhere.*\. Rename"):
        measure(path, path.name)


def test_a_file_is_measured_by_its_bytes_and_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_bytes(b"hello")
    assert measure(path, "x/tool")[0] == shipped("x/tool")
    path.chmod(0o700)
    assert measure(path, "tool")[0].executable
    path.write_bytes(b"")
    assert measure(path, "tool")[0].blob == EMPTY


@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1, 9 * PIECE, 9 * PIECE + 1])
def test_a_file_of_many_pieces_is_measured_by_several_threads_and_read_piece_by_piece(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "data").write_bytes(data)
    found, source = measure(tmp_path / "data", "data")
    assert found.blob == blob_with(data)
    assert b"".join(source.read_piece(index) for index in range(found.blob.pieces)) == data


def test_a_file_that_changes_after_it_was_measured_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"hello")
    _, source = measure(path, "log")
    assert source.read_piece(0) == b"hello"
    path.write_bytes(b"hellp")
    os.utime(path, ns=(0, 0))  # as a change within the same tick of the file system's clock would not show
    with pytest.raises(ConfigError, match="log was changed while it was sent"):
        source.read_piece(0)
    path.unlink()
    with pytest.raises(ConfigError, match="log cannot be read any more: No such file"):
        source.read_piece(0)


def test_a_large_file_that_was_edited_is_measured_anew(tmp_path: Path) -> None:
    """The digest of one that lay still for a while is remembered; one that was written just now may change in the same tick."""
    path, old = tmp_path / "data", time.time() - 1000
    for content in (bytes(PIECE), b"x" * PIECE, b"y" * PIECE):
        path.write_bytes(content)
        assert measure(path, "data")[0].blob == blob_with(content)
        os.utime(path, (old, old))
        assert measure(path, "data")[0].blob == blob_with(content)
        old += 1


# ------------------------------------------------------------------ the directory


def test_a_place_that_cannot_be_written_says_so_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DestPathError, match=r"file/below cannot be written: Not a directory.*--dest_path"):
        private_directory(tmp_path / "file" / "below")


def test_a_private_directory_is_nobody_elses(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert files_below(made) == [], "the probe was left"


# ------------------------------------------------------------------ putting files in place


def placed(store: Store, name: str, there: Path, data: bytes = b"hello", executable: bool = False) -> Path:
    blob = store.put([data])
    store.keep(blob)
    return place(store.path(blob), shipped(name, data, executable), there)


def test_a_link_in_place_is_replaced_and_not_followed(store: Store, there: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (there / "a").symlink_to(outside)
    path = placed(store, "a", there)
    assert outside.read_bytes() == b"mine"
    assert not path.is_symlink()
    assert path.read_bytes() == b"hello"


def test_a_directory_that_is_a_link_is_not_entered(store: Store, there: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (there / "a").symlink_to(outside)
    with pytest.raises(TransferFailed, match=r"a/b could not be written in .*a is a link"):
        placed(store, "a/b", there)
    assert files_below(outside) == []


@pytest.mark.parametrize("name", ["file/below", "directory"])
def test_a_place_that_is_taken_by_another_kind_of_thing_is_named(store: Store, there: Path, name: str) -> None:
    (there / "file").touch()
    (there / "directory").mkdir()
    with pytest.raises(TransferFailed, match=f"{name} could not be written in {there}"):
        placed(store, name, there)
    assert files_below(there) == [str(there / "file")], "something was left aside"


def test_a_blob_that_is_not_here_cannot_be_placed(store: Store, there: Path) -> None:
    with pytest.raises(TransferFailed, match="a could not be written"):
        place(store.path(blob_with(b"hello")), shipped("a"), there)
    assert files_below(there) == []


def test_a_file_gets_its_name_its_bytes_and_whether_it_is_executable(store: Store, there: Path) -> None:
    (there / "tool").write_bytes(b"what was there before")
    path = placed(store, "tool", there, executable=True)
    assert path == there / "tool"
    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(placed(store, "a/b/c", there).stat().st_mode) == 0o600
    assert files_below(there) == [str(there / "a/b/c"), str(there / "tool")]


def test_a_small_file_is_a_copy_which_its_user_may_change(store: Store, there: Path) -> None:
    placed(store, "a", there).write_bytes(b"changed")
    assert store.path(blob_with(b"hello")).read_bytes() == b"hello"


def test_a_large_file_lies_on_the_disk_once_and_nobody_may_write_to_it(store: Store, there: Path) -> None:
    data = bytes(LINKED)
    first, second = placed(store, "a", there, data), placed(store, "b", there, data)
    assert first.samefile(second)
    assert stat.S_IMODE(first.stat().st_mode) == 0o400
    (there / "new").write_bytes(b"another file takes its place")
    os.replace(there / "new", first)
    assert second.read_bytes() == data
    assert os.access(placed(store, "tool", there, data, executable=True), os.X_OK), "a copy, as its mode is its own"


def test_a_file_system_without_links_gets_copies(store: Store, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert placed(store, "a", there, bytes(LINKED)).read_bytes() == bytes(LINKED)


# ------------------------------------------------------------------ removing them


def test_removing_takes_what_was_placed_and_nothing_else(store: Store, there: Path) -> None:
    mine = [placed(store, name, there) for name in ("a", "b/c/d", "b/e")]
    (there / "b" / "result").write_bytes(b"what the computation made")
    remove_files([*mine, there / "gone already"], there)
    assert files_below(there) == [str(there / "b/result")]
    assert not (there / "b" / "c").exists(), "an empty directory was left"


def test_removing_stops_at_the_directory_itself(store: Store, there: Path) -> None:
    remove_files([placed(store, "a/b", there), placed(store, "c", there)], there)
    assert there.is_dir()
    assert list(there.iterdir()) == []


def test_removing_a_module_takes_what_python_compiled_of_it(store: Store, there: Path) -> None:
    module = placed(store, "package/module.py", there, b"ANSWER = 42\n")
    py_compile.compile(str(module))
    assert Path(importlib.util.cache_from_source(str(module))).exists()
    remove_files([module], there)
    assert list(there.iterdir()) == []


def test_a_digest_that_nobody_waits_for_any_more_ends_at_the_next_piece(tmp_path: Path) -> None:
    """A program waits for its threads: Ctrl-C must not mean after the last gigabyte."""
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 16 << 30)  # a hole

    async def work() -> None:
        measuring = asyncio.ensure_future(in_thread(measure, large, "large"))
        await asyncio.sleep(0)
        measuring.cancel()
        await asyncio.wait([measuring])
        assert measuring.cancelled()

    asyncio.run(work())  # which waits for the thread
