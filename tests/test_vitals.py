"""Memory as the system tells it: of this very process, and from files as control groups of both kinds have them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from discoro.vitals import Kills, kills, memory_there_is, resident

EVENTS = "low 0\nhigh 3\nmax 9\noom 2\noom_kill 2\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


def system(tmp_path: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup; slashes in names are written __."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    contents = {"proc/self/cgroup": cgroup, "proc/vmstat": "pgfault 7\noom_kill 11\n"}
    contents |= {"groups/" + name.replace("__", "/"): text for name, text in files.items()}
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return proc, groups


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    assert kills(tmp_path, tmp_path) == Kills(None, None)
    assert resident(2**22 + 1) == 0
    assert memory_there_is(tmp_path, tmp_path) > 0  # of the machine, which needs no file


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc/PID/statm")
def test_what_a_process_holds() -> None:
    before = resident(os.getpid())
    with mmap.mmap(-1, 50 << 20) as data:  # fresh from the system: what malloc gives may have been resident before
        data.write(b"x" * (50 << 20))
        assert 1 << 20 < before < before + (40 << 20) < resident(os.getpid())


@pytest.mark.parametrize(
    ("cgroup", "files", "group"),
    [
        ("0::/user/node\n", {"user__node__memory.events": EVENTS}, 2),
        ("0::/user/node\n", {"user__memory.events": EVENTS}, 2),  # where the controller is on above only
        ("0::/\n", {"memory.events": EVENTS}, 2),  # a container
        ("4:memory:/node\n0::/\n", {"memory__node__memory.oom_control": V1}, 5),
        ("5:cpu,memory:/host/path\n", {"memory__memory.oom_control": V1}, 5),  # a container without a namespace for groups
        ("4:cpu:/node\n", {"memory__memory.oom_control": V1}, None),
        ("0::/node\n", {"node__memory.events": "junk"}, None),
    ],
)
def test_whom_the_kernel_killed_for_memory(tmp_path: Path, cgroup: str, files: dict[str, str], group: int | None) -> None:
    proc, groups = system(tmp_path, cgroup, **files)
    assert kills(proc, groups) == Kills(group, 11)


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("0::/a/b\n", {"a__memory.max": "4096\n", "a__b__memory.max": "max\n"}, 4096),
        ("0::/a/b\n", {"a__memory.max": "8192\n", "a__b__memory.max": "4096\n"}, 4096),
        ("4:memory:/a\n", {"memory__a__memory.limit_in_bytes": "4096\n", "memory__a__memory.oom_control": V1}, 4096),
        ("4:memory:/a\n", {"memory__a__memory.limit_in_bytes": f"{2**63 - 4096}\n", "memory__a__memory.oom_control": V1}, 0),
        ("0::/a\n", {"a__memory.max": "max\n"}, 0),
    ],
)
def test_how_much_memory_there_is(tmp_path: Path, cgroup: str, files: dict[str, str], limit: int) -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_there_is(*system(tmp_path, cgroup, **files)) == (limit or machine)


def test_what_is_not_known_stays_unknown_in_a_difference() -> None:
    assert Kills(3, 9).since(Kills(1, 9)) == Kills(2, 0)
    assert Kills(None, 9).since(Kills(1, None)) == Kills(None, None)
