"""The directory of a node: its alone, gone with it, and what a killed one left goes with the next."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from discoro.directory import NodeDirectory, keep, remove_unless_kept
from discoro.errors import DestPathError
from tests.support.nodes import environment, files_below

KILLED = """
import os, sys
from pathlib import Path
from discoro.directory import NodeDirectory, keep
directory = NodeDirectory(Path(sys.argv[1]))
directory.blobs.mkdir()
(directory.blobs / "blob").write_text("1")
for name in ("plain", "kept"):
    worker = directory.for_worker()
    (worker / name).write_text("2")
keep(worker)
os.kill(os.getpid(), 9)
"""


def killed_node(dest_path: Path) -> None:
    """A process that had a directory there and was killed: one worker's files are to be kept."""
    command = [sys.executable, "-c", KILLED, dest_path]
    done = subprocess.run(command, env=environment(dest_path), capture_output=True, timeout=20)
    assert done.returncode == -9, done.stderr


def made(directory: NodeDirectory) -> NodeDirectory:
    directory.blobs.mkdir()
    (directory.blobs / "blob").write_text("x")
    (directory.for_worker() / "file").write_text("x")
    return directory


def test_where_nothing_can_be_written_says_so() -> None:
    with pytest.raises(DestPathError, match="--dest_path"):
        NodeDirectory(Path("/proc/self/files"))  # where not even root may


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DestPathError, match="file cannot be written"):
        NodeDirectory(tmp_path / "file")


def test_a_file_system_without_locks_is_refused_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(DestPathError, match="locked in .*: No locks available"):
        NodeDirectory(tmp_path)
    assert files_below(tmp_path) == []


def test_after_it_dest_path_is_as_before(tmp_path: Path) -> None:
    (tmp_path / "somebody's").write_text("")
    directory = made(NodeDirectory(tmp_path))
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.remove()
    assert files_below(tmp_path) == ["somebody's"]


def test_a_relative_path_stays_the_same_for_workers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = NodeDirectory(Path("files"))
    assert directory.blobs.is_absolute() and directory.for_worker().parent.parent == tmp_path / "files"
    directory.remove()


def test_two_nodes_do_not_disturb_each_other(tmp_path: Path) -> None:
    first = made(NodeDirectory(tmp_path))
    before = files_below(first.path)
    second = made(NodeDirectory(tmp_path))
    assert files_below(first.path) == before
    first.remove()
    assert files_below(second.path) and not first.path.exists()
    second.remove()


def test_what_a_killed_node_left_goes_but_for_what_is_to_be_kept(tmp_path: Path) -> None:
    killed_node(tmp_path)
    assert any(name.endswith("plain") for name in files_below(tmp_path))
    for _ in range(2):  # the second time nothing but kept files is there
        NodeDirectory(tmp_path).remove()
        left = [name.rpartition("/")[2] for name in files_below(tmp_path) if not (tmp_path / name).is_dir()]
        assert left == [".kept", "kept"]


def test_the_directory_of_a_living_process_is_not_left_over(tmp_path: Path) -> None:
    """The lock says so, and not the number of a process, which another machine on a shared disk knows nothing of."""
    directory = made(NodeDirectory(tmp_path))
    code = "import sys, pathlib; from discoro.directory import NodeDirectory; NodeDirectory(pathlib.Path(sys.argv[1])).remove()"
    subprocess.run([sys.executable, "-c", code, tmp_path], env=environment(tmp_path), check=True, timeout=20)
    assert len(files_below(directory.path)) == 5
    directory.remove()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("precious")
    directory = NodeDirectory(tmp_path / "files")
    (directory.for_worker() / "link").symlink_to(tmp_path / "outside")
    directory.remove()
    assert (tmp_path / "outside" / "file").read_text() == "precious"


def test_a_worker_directory_that_is_gone_already_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = NodeDirectory(tmp_path)
    worker = directory.for_worker()
    shutil.rmtree(worker)
    remove_unless_kept(worker)
    directory.remove()
    assert not caplog.records


def test_kept_means_kept(tmp_path: Path) -> None:
    directory = NodeDirectory(tmp_path)
    worker = directory.for_worker()
    (worker / "file").write_text("x")
    keep(worker)
    remove_unless_kept(worker)
    directory.remove()
    assert (worker / "file").exists()


def test_files_that_cannot_be_kept_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DestPathError, match=r"no file can be kept in .*gone: No such file or directory\. Choose another"):
        keep(tmp_path / "gone")


def test_nothing_stays_of_a_directory_in_which_there_was_nothing_to_keep(tmp_path: Path) -> None:
    """A setup that was to keep its files and failed, say."""
    for name in ("nothing", "something"):
        (tmp_path / name).mkdir()
        keep(tmp_path / name)
    (tmp_path / "something" / "file").touch()
    for name in ("nothing", "something"):
        remove_unless_kept(tmp_path / name)
    assert [name for name in files_below(tmp_path) if ".kept" not in name] == ["something", "something/file"]
