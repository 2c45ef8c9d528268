"""files.py: names that would leave their directory first, then blobs that lie, then files in and out."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import stat
from pathlib import Path
from typing import Any

import pytest

from discoro.blobs import EMPTY, Blob, Chunk, new_digest
from discoro.errors import ConfigError, DestPathError, ProtocolError, SetupFailed, TooLarge
from discoro.files import (
    MAX_FILES,
    MAX_OPEN,
    Shipped,
    Store,
    checked_files,
    checked_name,
    measure,
    private_directory,
    read_chunk,
    remove_files,
)
from tests.support.sites import files_below

HOSTILE_NAMES = [
    *("", ".", "..", "/", "//", "/etc/passwd", "../x", "a/../../x", "a/..", "a//b", "a/", "./a", "~/../x/"),
    *("..\\x", "C:\\x", "C:x", "C:/x", "\\\\host\\share", "a\\b", "NUL:", "a:b"),
    *("a\0b", "a\nb", "\x1b[2J", "a*", "a?", 'a"b', "<a>", "a|b"),
    *("...", "a ", "a.", " /a/. ", "a/ ", "\udce9", "caf\ud800", "x" * 2000),
]


def blob_of(data: bytes) -> Blob:
    digest = new_digest()
    digest.update(data)
    return Blob(digest.hexdigest(), len(data))


def shipped(name: str, data: bytes = b"hello", executable: bool = False) -> Shipped:
    return Shipped(name, blob_of(data), executable)


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
        checked_files(values)


def test_a_list_of_files_comes_through_as_plain_values() -> None:
    files = [shipped("a"), shipped("b/c", b"", executable=True)]
    assert checked_files([each.to_plain() for each in files]) == files


# ------------------------------------------------------------------ reading what is sent


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.txt cannot be read: No such file"):
        measure(tmp_path / "missing.txt", "missing.txt")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        measure(tmp_path, "directory")


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
    assert measure(path, "x/tool") == shipped("x/tool")
    path.chmod(0o700)
    assert measure(path, "tool").executable
    path.write_bytes(b"")
    assert measure(path, "tool").blob == EMPTY


def test_a_file_that_changes_while_it_is_sent_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"hello")
    assert read_chunk(path, Chunk(1, 3)) == b"ell"
    with pytest.raises(ConfigError, match="log became shorter while it was sent"):
        read_chunk(path, Chunk(3, 3))
    path.unlink()
    with pytest.raises(ConfigError, match="log cannot be read any more: No such file"):
        read_chunk(path, Chunk(0, 5))


# ------------------------------------------------------------------ the directory


def test_a_place_that_cannot_be_written_says_so_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DestPathError, match=r"file/below cannot be written: Not a directory.*--dest_path"):
        private_directory(tmp_path / "file" / "below")


def test_a_private_directory_is_nobody_elses(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert files_below(made) == [], "the probe was left"


# ------------------------------------------------------------------ the store, from a sender that lies


def test_bytes_with_another_digest_leave_nothing(store: Store) -> None:
    blob = blob_of(b"hello")
    with pytest.raises(ProtocolError, match="what came has another digest"):
        store.take(blob, 0, b"hellp")
    assert files_below(store.directory) == []
    assert not store.has(blob)
    assert store.take(blob, 0, b"hello"), "an honest sender pays for a liar"


@pytest.mark.parametrize(("offset", "data"), [(1, b"e"), (-1, b"h"), (0, b""), (0, b"hello!")])
def test_chunks_that_do_not_fit_are_refused_and_spoil_nothing(store: Store, offset: int, data: bytes) -> None:
    blob = blob_of(b"hello")
    with pytest.raises(ProtocolError):
        store.take(blob, offset, data)
    assert not store.take(blob, 0, b"hel")
    with pytest.raises(ProtocolError):
        store.take(blob, 4, b"o")
    assert store.take(blob, 3, b"lo")


@pytest.mark.parametrize("data", [b"", b"x"])
def test_a_chunk_of_what_has_no_bytes_is_refused(store: Store, data: bytes) -> None:
    with pytest.raises(ProtocolError, match="of 0 bytes"):
        store.take(blob_of(b""), 0, data)


def test_a_size_that_lies_about_a_digest_makes_no_file(store: Store) -> None:
    blob = blob_of(b"hello")
    with pytest.raises(ProtocolError, match="another digest"):
        store.take(Blob(blob.digest, 3), 0, b"hel")
    assert not store.has(blob)


def test_a_file_past_the_limit_is_refused_when_offered_and_when_sent(tmp_path: Path) -> None:
    store, blob = Store(tmp_path, max_file_size=4), blob_of(b"hello")
    with pytest.raises(TooLarge, match=r"at most 4 bytes of a file are taken here \(--max_file_size\)"):
        store.offer([blob])
    with pytest.raises(TooLarge):
        store.take(blob, 0, b"hello")
    assert files_below(tmp_path) == []
    assert store.offer([blob_of(b"hell")]), "the limit itself is allowed"


def test_a_link_in_the_place_of_a_part_is_not_followed(store: Store, tmp_path: Path) -> None:
    outside, blob = tmp_path / "outside", blob_of(b"hello")
    outside.write_bytes(b"mine")
    (store.directory / f"{blob.digest}.part").symlink_to(outside)
    with pytest.raises(SetupFailed, match="could not be written"):
        store.take(blob, 0, b"hello")
    assert outside.read_bytes() == b"mine"


def test_a_disk_that_fails_is_told_to_the_sender(store: Store) -> None:
    blob = blob_of(b"hello")
    assert not store.take(blob, 0, b"hel")
    (store.directory / f"{blob.digest}.part").unlink()
    store.directory.rmdir()
    with pytest.raises(SetupFailed, match=f"a file could not be written in {store.directory}: No such file"):
        store.take(blob, 3, b"lo")
    store.directory.mkdir()
    assert store.offer([blob]) == [[blob.digest, 0]], "what was lost is still counted as received"


# ------------------------------------------------------------------ the store


def test_a_blob_is_whole_or_absent(store: Store) -> None:
    blob = blob_of(b"hello")
    assert store.offer([blob, blob]) == [[blob.digest, 0]]
    assert not store.take(blob, 0, b"hel")
    assert not store.has(blob)
    assert not store.path(blob).exists()
    assert store.take(blob, 3, b"lo")
    assert store.has(blob)
    assert store.path(blob).read_bytes() == b"hello"
    assert store.offer([blob]) == []
    assert files_below(store.directory) == [str(store.path(blob))]


def test_a_file_without_bytes_needs_no_chunk(store: Store) -> None:
    assert store.offer([EMPTY]) == []
    assert store.has(EMPTY)
    assert store.missing([shipped("a", b""), shipped("b")]) == ["b"]


def test_a_transfer_goes_on_where_it_broke(store: Store) -> None:
    blob = blob_of(b"hello")
    store.take(blob, 0, b"hel")
    again = Store(store.directory)
    assert again.offer([blob]) == [[blob.digest, 3]]
    assert again.take(blob, 3, b"lo")
    assert again.path(blob).read_bytes() == b"hello"


def test_a_part_that_was_damaged_is_dropped_at_the_end_and_sent_anew(store: Store) -> None:
    blob = blob_of(b"hello")
    (store.directory / f"{blob.digest}.part").write_bytes(b"heL")
    assert store.offer([blob]) == [[blob.digest, 3]]
    with pytest.raises(ProtocolError, match="another digest"):
        store.take(blob, 3, b"lo")
    assert store.offer([blob]) == [[blob.digest, 0]]
    assert store.take(blob, 0, b"hello")


@pytest.mark.parametrize("left", [b"hellp", b"hello and more"])
def test_a_part_that_is_long_enough_to_be_whole_is_not_trusted(store: Store, left: bytes) -> None:
    blob = blob_of(b"hello")
    (store.directory / f"{blob.digest}.part").write_bytes(left)
    assert store.offer([blob]) == [[blob.digest, 0]]
    assert store.take(blob, 0, b"hello")


def test_two_senders_of_one_blob_help_each_other(store: Store) -> None:
    blob = blob_of(b"hello")
    assert store.offer([blob]) == [[blob.digest, 0]]
    assert not store.take(blob, 0, b"hel")
    assert store.offer([blob]) == [[blob.digest, 3]]
    assert not store.take(blob, 0, b"h")
    assert store.take(blob, 3, b"lo")
    assert store.take(blob, 3, b"lo"), "the slower one is told that all is well"
    assert store.path(blob).read_bytes() == b"hello"


def test_transfers_that_were_left_do_not_add_up_in_memory(store: Store) -> None:
    data = [f"hello {number}".encode() for number in range(3 * MAX_OPEN)]
    for each in data:
        store.take(blob_of(each), 0, each[:5])
    assert len(store._open) == MAX_OPEN
    for each in data:
        assert store.take(blob_of(each), 5, each[5:]), "the oldest go on from the disk"
    assert len(store._open) == 0


# ------------------------------------------------------------------ putting files in place


def placed(store: Store, name: str, there: Path, data: bytes = b"hello", executable: bool = False) -> Path:
    store.take(blob_of(data), 0, data)
    return store.place(shipped(name, data, executable), there)


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
    with pytest.raises(SetupFailed, match=r"a/b could not be written in .*a is a link"):
        placed(store, "a/b", there)
    assert files_below(outside) == []


@pytest.mark.parametrize("name", ["file/below", "directory"])
def test_a_place_that_is_taken_by_another_kind_of_thing_is_named(store: Store, there: Path, name: str) -> None:
    (there / "file").touch()
    (there / "directory").mkdir()
    with pytest.raises(SetupFailed, match=f"{name} could not be written in {there}"):
        placed(store, name, there)
    assert files_below(there) == [str(there / "file")], "something was left aside"


def test_a_blob_that_is_not_here_cannot_be_placed(store: Store, there: Path) -> None:
    with pytest.raises(SetupFailed, match="a could not be written"):
        store.place(shipped("a"), there)
    assert files_below(there) == []


def test_a_file_gets_its_name_its_bytes_and_whether_it_is_executable(store: Store, there: Path) -> None:
    (there / "tool").write_bytes(b"what was there before")
    path = placed(store, "tool", there, executable=True)
    assert path == there / "tool"
    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(placed(store, "a/b/c", there).stat().st_mode) == 0o600
    assert files_below(there) == [str(there / "a/b/c"), str(there / "tool")]


def test_a_placed_file_is_a_copy_which_its_user_may_change(store: Store, there: Path) -> None:
    placed(store, "a", there).write_bytes(b"changed")
    assert store.path(blob_of(b"hello")).read_bytes() == b"hello"


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
