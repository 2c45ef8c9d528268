"""progress.py: what cannot be called first, then a bar: drawn, wiped away, and none at all where there is no terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from discoro import progress as progress_module
from discoro.errors import ConfigError
from discoro.progress import Bar, line, watching

WIPE = "\r\x1b[K"


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal, of 80 columns since nobody knows better."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def nothing_shows() -> Iterator[None]:
    yield
    assert Bar._shown is None, "a bar that has ended gives its line back"


# ------------------------------------------------------------------ who is told


@pytest.mark.parametrize("progress", [1, "bar", 0.5, []])
def test_what_cannot_be_called_is_refused(progress: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"progress={progress!r} cannot be used: it is True, or a function")):
        with watching(progress, "a"):
            pass


@pytest.mark.parametrize("progress", [None, False])
def test_nobody_is_told_unless_asked(progress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    with watching(progress, "a") as watch:
        assert watch is None


def test_a_function_is_told_until_it_raises(caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int]] = []

    def count(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise ZeroDivisionError

    with watching(count, "a") as watch:
        assert watch is not None
        for done in range(4):
            watch(done, 3)
    assert told == [(0, 3), (1, 3), (2, 3)]
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [("ERROR", True)]


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_there_is_no_bar_where_there_is_no_terminal(stream: TextIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    with watching(True, "a") as watch:
        assert watch is None
    assert stream is None or stream.getvalue() == ""


def test_there_is_no_bar_on_a_stream_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    with watching(True, "a") as watch:
        assert watch is None


# ------------------------------------------------------------------ the line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("data.bin", 0, 1000, 0.0, 60), "data.bin                             0 %      0.0 MB/s"),
        (("data.bin", 250, 1000, 100.0, 60), "data.bin                            25 %      0.0 MB/s  0:00:07"),
        (("data.bin", 1000, 1000, 2.5e6, 60), "data.bin                           100 %      2.5 MB/s"),
        (("data.bin", 0, 0, 0.0, 60), "data.bin                           100 %      0.0 MB/s"),
        (("data.bin", 1, 10**9, 1e5, 60), "data.bin                             0 %      0.1 MB/s  2:46:39"),
        (("data.bin", 1, 10**12, 1e2, 60), "data.bin                             0 %      0.0 MB/s     days"),
        (("a-long-name-of-a-file.bin", 0, 1, 0.0, 40), "…name-of-a-file.bin   0 %      0.0 MB/s"),
        (("数据文件很长的名字.bin", 0, 1, 0.0, 40), "…文件很长的名字.bin   0 %      0.0 MB/s"),
        (("data.bin", 500, 1000, 0.0, 20), "50 %"),
        (("data.bin", 500, 1000, 0.0, 3), "50"),
        (("data.bin", 500, 1000, 0.0, 1), ""),
    ],
)
def test_the_line(arguments: tuple[Any, ...], text: str) -> None:
    drawn = line(*arguments)
    assert re.sub(r"(?<=\S) +(?=\d+ %)", " ", drawn) == re.sub(r"(?<=\S) +(?=\d+ %)", " ", text)
    assert progress_module._width(drawn) < max(arguments[-1], 1)


def test_a_name_cannot_move_the_cursor() -> None:
    terminal = Terminal()
    with Bar("evil\x1b[2J\r\n\x07", terminal, Clock()) as bar:
        bar(1, 2)
    assert "\x1b[2J" not in terminal.getvalue() and "evil?[2J???" in terminal.getvalue()


# ------------------------------------------------------------------ the bar


def test_it_is_drawn_ten_times_a_second_and_wiped_away() -> None:
    terminal, clock = Terminal(), Clock()
    with Bar("a", terminal, clock) as bar:
        for step in range(100):
            bar(step, 100)
            clock.now += 0.01
        drawn = terminal.getvalue()
        assert drawn.count(WIPE) in (10, 11) and drawn.endswith("\r")
    assert terminal.getvalue() == drawn + WIPE


def test_an_error_wipes_it_away_too() -> None:
    terminal = Terminal()
    with pytest.raises(ZeroDivisionError), Bar("a", terminal, Clock()) as bar:
        bar(1, 2)
        raise ZeroDivisionError
    assert terminal.getvalue().endswith(WIPE)


def test_one_that_never_drew_wipes_nothing() -> None:
    terminal = Terminal()
    with Bar("a", terminal, Clock()):
        pass
    assert terminal.getvalue() == ""


def test_the_speed_does_not_count_what_was_there_before() -> None:
    terminal, clock = Terminal(), Clock()
    with Bar("a", terminal, clock) as bar:
        bar(500_000_000, 1_000_000_000)
        clock.now += 10
        bar(600_000_000, 1_000_000_000)
    assert "60 %     10.0 MB/s  0:00:40" in terminal.getvalue()


def test_of_several_the_first_one_shows_and_then_the_next() -> None:
    terminal, clock = Terminal(), Clock()
    with Bar("second", terminal, clock) as second:
        with Bar("first", terminal, clock) as first:
            for step in range(3):
                first(step, 9)
                second(step, 9)
                clock.now += 1
            assert "second" not in terminal.getvalue()
        second(3, 9)
        assert terminal.getvalue().count("second") == 1


def test_a_terminal_that_went_away_harms_nobody() -> None:
    terminal = Terminal()
    with Bar("a", terminal, Clock()) as bar:
        terminal.close()
        bar(1, 2)


def test_a_real_terminal_gets_a_line_of_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
        with os.fdopen(terminal, "w", encoding="utf-8") as stream:
            monkeypatch.setattr("sys.stderr", stream)
            with watching(True, "x" * 100) as watch:
                assert watch is not None
                watch(1, 2)
                drawn = os.read(controller, 1000).decode()
            wiped = os.read(controller, 1000).decode()
    finally:
        os.close(controller)
    assert re.fullmatch(r"\r\x1b\[K(…x+ +50 % +0\.0 MB/s)\r", drawn), drawn
    assert len(drawn) - len(WIPE) - 1 == 49 and wiped == WIPE
