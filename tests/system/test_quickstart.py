"""`bin/quickstart` in a copy of the checkout, as on a fresh machine: it works, again and faster, and leaves nothing behind.

The copy has a home and a folder for temporary files of its own, which must stay empty.
Needs a package index, as `bin/test` did.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".discoro"
FIRST_START = 300  # seconds: pip may have to download
START = 90  # seconds: 10 of work for one processor, on a machine that does much else

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


class Clone:
    """A copy of the checkout, and what is around it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "clone"
        self.home, self.tmp = directory / "home", directory / "tmp"
        ignored = shutil.ignore_patterns(".discoro", ".git", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist")
        shutil.copytree(ROOT, self.path, ignore=ignored)
        if (STATE / "pip-cache").is_dir():  # spare the index what this checkout has downloaded already
            shutil.copytree(STATE / "pip-cache", self.path / ".discoro" / "pip-cache")
        self.home.mkdir()
        self.tmp.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYTHON", "DISCORO_"))}
        own.pop("PIP_CACHE_DIR", None)
        rustup = str(self.path.parent / "rustup")  # pip asks rustc for its version, and rustup's writes a file at that
        return {**own, "HOME": str(self.home), "TMPDIR": str(self.tmp), "RUSTUP_HOME": rustup, "COLUMNS": "", "TERM": "xterm"}

    def tracked(self) -> dict[str, tuple[int, int]]:
        """Everything in the copy but its ignored folder: size and time of change."""
        found = {}
        for path in self.path.rglob("*"):
            if path.relative_to(self.path).parts[0] != ".discoro":
                found[str(path)] = (path.lstat().st_size, path.lstat().st_mtime_ns)
        return found

    def received(self) -> list[Path]:
        """What lies in the quickstart's dest_path."""
        return list((self.path / ".discoro" / "files").iterdir())

    def processes(self, what: str = "") -> list[int]:
        """The processes that have this copy's home in their environment, and `what` in their command."""
        marked = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"HOME={self.home}".encode() in (process / "environ").read_bytes():
                    if what.encode() in (process / "cmdline").read_bytes():
                        marked.append(int(process.name))
        return marked

    def nothing_left(self) -> None:
        """Asserts it of processes, received files, home and temporary files."""
        assert self.processes() == []
        assert self.received() == []
        assert list(self.home.rglob("*")) == []
        assert list(self.tmp.rglob("*")) == []


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def started(clone: Clone) -> Clone:
    """The copy after its first start, which is the first test's, too."""
    first_start(clone)
    return clone


def start(clone: Clone, timeout: float) -> subprocess.CompletedProcess[str]:
    """A start as in a pipeline: standard output is no terminal. Run from elsewhere, with a file in the way of its imports."""
    elsewhere = clone.path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "discoro.py").write_text("raise SystemExit('taken from the current directory')")
    command = [clone.path / "bin" / "quickstart"]
    return subprocess.run(
        command, cwd=elsewhere, env=clone.environment, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )


def first_start(clone: Clone) -> None:
    before = clone.tracked()
    done = start(clone, FIRST_START)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bin/quickstart: making .discoro/venv" in done.stderr
    check_report(done.stdout)
    assert "Traceback" not in done.stderr
    assert clone.tracked() == before
    clone.nothing_left()


def check_report(text: str) -> None:
    """Every file went through some worker, and every slot had its share."""
    files, slots = re.match(r"(\d+) source files of Python \S+ for (\d+) slots\n", text).groups()  # type: ignore[union-attr]
    assert int(slots) == len(os.sched_getaffinity(0))
    assert int(files) > 300  # Debian's has the fewest
    shares = [int(share.replace(",", "")) for share in re.findall(r"(?m)^ *([\d,]+) +[\d,]+ +[\d.]+  \S+/\d+/\d+$", text)]
    assert len(shares) == int(slots)
    assert min(shares) > 0 and sum(shares) == int(files)
    assert len(re.findall(r"(?m)^ *[\d,]+  \S+ +\S+\.py:\d+$", text)) == 10  # the longest functions


class Terminal:
    """The quickstart on a terminal of 80 columns, in a process group of its own as a shell makes one; errors go to a file."""

    def __init__(self, clone: Clone, errors: Path) -> None:
        self.output = ""
        self._errors = errors
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        command = [clone.path / "bin" / "quickstart"]
        with open(errors, "wb") as file:
            self._process = subprocess.Popen(
                command, cwd=clone.path, env=clone.environment, start_new_session=True, stdin=theirs, stdout=theirs, stderr=file
            )
        os.close(theirs)

    @property
    def errors(self) -> str:
        """What it wrote on standard error."""
        return self._errors.read_text(errors="replace")

    def until(self, seen: Callable[[str], object], timeout: float) -> None:
        """Read until the output is as wanted. Fails after `timeout` seconds, or at its end."""
        end = time.monotonic() + timeout
        while not seen(self.output):
            left = max(0.0, end - time.monotonic())
            assert select.select([self._ours], [], [], left)[0], f"nothing more for {timeout} s after {self.output}"
            assert self._read(), f"ended after {self.output}"

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the group in the foreground."""
        os.killpg(self._process.pid, signal.SIGINT)

    def end(self, timeout: float) -> int:
        """Read to the end; the exit status."""
        end = time.monotonic() + timeout
        more = True
        while more:
            left = max(0.0, end - time.monotonic())
            assert select.select([self._ours], [], [], left)[0], f"still open after {timeout} s: {self.output}"
            more = self._read()
        return self._process.wait(max(0.1, end - time.monotonic()))

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # EIO: nobody has the other end any more
            data = b""
        self.output += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        """Nothing of it stays, whatever the test found."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(started: Clone, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(started, tmp_path / "errors.txt")
    yield terminal
    terminal.close()


def bar_drawn(output: str) -> object:
    return re.search(r"\r\[#+ +\] +\d+%", output)


def test_the_first_start_makes_what_it_needs_and_nothing_outside_its_folder(started: Clone) -> None:
    kept = {path.name for path in (started.path / ".discoro").iterdir()}
    assert {"venv", "cluster.key", "files"} <= kept
    assert (started.path / ".discoro" / "cluster.key").stat().st_mode & 0o077 == 0


def test_a_second_start_takes_the_environment_as_it_is(started: Clone) -> None:
    made = (started.path / ".discoro" / "venv" / "made-from").stat().st_mtime_ns
    done = start(started, START)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "making" not in done.stderr
    assert (started.path / ".discoro" / "venv" / "made-from").stat().st_mtime_ns == made
    check_report(done.stdout)
    assert "\r" not in done.stdout
    started.nothing_left()


def test_on_a_terminal_one_line_is_redrawn_and_nothing_is_wider(started: Clone, terminal: Terminal) -> None:
    assert terminal.end(START) == 0, terminal.errors
    assert bar_drawn(terminal.output)
    shown = [line.rpartition("\r")[2] for line in terminal.output.replace("\r\n", "\n").split("\n")]
    assert shown[1] == "[" + "#" * 60 + "] 100%"
    assert max(map(len, shown)) < 80
    check_report("\n".join(shown))


def test_ctrl_c_ends_it_in_order_within_three_seconds(started: Clone, terminal: Terminal) -> None:
    terminal.until(bar_drawn, START)
    terminal.interrupt()
    assert terminal.end(3) == 130, terminal.errors
    assert "Traceback" not in terminal.errors
    assert "stopped" in terminal.output
    started.nothing_left()


def test_workers_that_die_fail_it_with_a_clear_line(started: Clone, terminal: Terminal) -> None:
    terminal.until(bar_drawn, START)
    workers = started.processes("discoro.cli.worker")
    assert workers
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    assert terminal.end(20) == 1, terminal.errors
    assert re.match(r"stdlib_report\.py: \S", terminal.errors.splitlines()[-1])
    started.nothing_left()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "bin", clone / "bin")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    (clone / ".discoro").write_text("no folder")
    done = subprocess.run([clone / "bin" / "quickstart"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 69
    assert done.stderr.startswith("bin/quickstart: the folder ") and done.stderr.count("\n") == 1
