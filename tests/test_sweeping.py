"""What a child left running is found by its mark, in whatever session it runs, and killed; nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from discoro import sweeping

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc, in which marks are looked for")

def test_what_it_left_is_killed_where_python_has_no_pidfd_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    left = subprocess.Popen(["sleep", "600"], env={"DISCORO_CHILD": "mark"}, start_new_session=True)
    try:
        while not Path(f"/proc/{left.pid}/environ").read_bytes():  # it is still in exec
            pass
        sweeping.kill_left("mark")
        assert left.wait(5) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


def test_one_look_serves_all_that_ended_until_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[set[str]] = []
    begun, go = threading.Event(), threading.Event()

    def look(marks: set[str]) -> None:
        looks.append(marks)
        begun.set()
        go.wait(10)

    monkeypatch.setattr(sweeping, "kill_marked", look)
    threads = [threading.Thread(target=sweeping.kill_left, args=(mark,)) for mark in "abcd"]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(sweeping._marks) < 3:
        threading.Event().wait(0.001)
    go.set()
    for thread in threads:
        thread.join()
    assert looks == [{"a"}, {"b", "c", "d"}]


def test_the_children_of_a_child_that_is_a_parent_itself_are_found_by_either_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORO_CHILD", "outer")
    kept = subprocess.Popen(["sleep", "600"], env={"DISCORO_CHILD": "another"})
    inner = subprocess.Popen(["sleep", "600"], env={"DISCORO_CHILD": "outer:inner"}, start_new_session=True)
    try:
        while not Path(f"/proc/{inner.pid}/environ").read_bytes():  # it is still in exec
            pass
        sweeping.kill_left("outer")
        assert inner.wait(5) == -signal.SIGKILL and kept.poll() is None
    finally:
        kept.kill()
        kept.wait()
        inner.kill()
        inner.wait()
