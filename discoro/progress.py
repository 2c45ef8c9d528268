"""How far a transfer is, for who asked for it: a function that is called, or a bar on a terminal.

`watching` makes what a transfer calls from what its user gave as `progress`. A `Bar` draws one line on standard error, and
wipes it away at the end, however that comes; where standard error is no terminal it draws nothing at all. It measures time,
and waits for nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import ClassVar, TextIO

from discoro.errors import ConfigError

log = logging.getLogger("discoro.progress")

Count = Callable[[int, int], object]  # bytes that have come, and bytes in all
REDRAWN_EVERY = 0.1  # seconds: more often nobody can read
NAME_LEAST = 8  # columns of the name that are worth showing
_WIPE = "\r\x1b[K"  # to the first column, and nothing to the right of it (ECMA-48)


@contextlib.contextmanager
def watching(progress: Count | bool | None, name: str) -> Iterator[Count | None]:
    """What is to be called with bytes done and bytes in all, in this block; None where nobody wants to know.

    `progress` True: a bar for `name`, where standard error is a terminal. ConfigError for what cannot be called.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        if not _is_terminal(sys.stderr):
            yield None
            return
        with Bar(name, sys.stderr) as bar:
            yield bar
    elif callable(progress):
        yield _Guarded(progress)
    else:
        raise ConfigError(f"progress={progress!r:.80} cannot be used: it is True, or a function of two numbers of bytes")


class _Guarded:
    """A user's function: what it raises is said in the log, and stops the counting, not the transfer."""

    def __init__(self, count: Count) -> None:
        self._count: Count | None = count

    def __call__(self, done: int, total: int) -> None:
        if self._count is None:
            return
        try:
            self._count(done, total)
        except Exception:  # the user's own function: a transfer does not fail for its display
            log.exception("! progress raised, and is called no more")
            self._count = None


class Bar:
    """One line on a terminal: name, percent, megabytes a second, time left. Of several at a time the first one shows."""

    _shown: ClassVar[Bar | None] = None  # there is one last line

    def __init__(self, name: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = "".join(letter if letter.isprintable() else "?" for letter in name)
        self._stream = stream
        self._clock = clock
        self._begun: tuple[float, int] | None = None  # when, and the bytes that were there: of a transfer that goes on
        self._drawn = -REDRAWN_EVERY

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if Bar._shown is self:
            Bar._shown = None
            self._write(_WIPE)

    def __call__(self, done: int, total: int) -> None:
        """That much has come."""
        now = self._clock()
        if self._begun is None or done and not self._begun[1]:  # the first word may come before it is known what is there
            self._begun = now, done
        if now - self._drawn < REDRAWN_EVERY or Bar._shown not in (None, self):
            return
        Bar._shown, self._drawn = self, now
        since, before = self._begun
        rate = (done - before) / (now - since) if now > since else 0.0
        self._write(_WIPE + line(self._name, done, total, rate, _columns(self._stream)) + "\r")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that was closed is nobody's transfer
            self._stream.write(text)
            self._stream.flush()


def line(name: str, done: int, total: int, rate: float, columns: int) -> str:
    """The line for so many bytes, at `rate` bytes a second, in less than `columns` columns."""
    percent = 100 * done // total if total else 100
    left = _time((total - done) / rate) if rate > 0 and done < total else ""
    figures = f" {percent:3d} % {rate / 1e6:8.1f} MB/s {left:>8}".rstrip()
    room = columns - 1 - len(figures)  # in the last column, some terminals begin a new line
    if room < NAME_LEAST:
        return f"{percent} %"[: max(columns - 1, 0)]
    return _fitted(name, room) + figures


def _fitted(name: str, columns: int) -> str:
    """The name in exactly that many columns: its end, which tells more files apart, where all of it is too much."""
    if _width(name) > columns:
        while _width(name) > columns - 1:
            name = name[1:]
        name = "…" + name
    return name + " " * (columns - _width(name))


def _width(text: str) -> int:
    """The columns that a terminal gives a text (Unicode, UAX 11)."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else not unicodedata.combining(letter) for letter in text)


def _time(seconds: float) -> str:
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours}:{minutes % 60:02d}:{int(seconds) % 60:02d}" if hours < 1000 else "days"


def _is_terminal(stream: TextIO | None) -> bool:
    """Of some, as of pythonw and of a daemon, there is none."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
