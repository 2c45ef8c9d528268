"""`discoro join` and `discoro key`: what each does to the key file, what it prints where, and that no code leaks."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from discoro.cli.arguments import conceal
from discoro.cli.keys import in_words, seconds_of
from discoro.keyfile import KeyFile, code_of, read_key_file, write_key_file
from tests.support.commands import ROOT

KEY, OTHER = bytes(range(16)), bytes(range(16, 32))
COMMAND = [sys.executable, "-m", "discoro.cli.discoro"]
SECONDS = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "cluster.key"


def environment(path: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "DISCORO_KEY_FILE": str(path), **more}


def discoro(path: Path, *arguments: str, given: str = "", status: int = 0, **more: str) -> tuple[str, str]:
    """What the command prints, on standard output and on standard error."""
    told = {"input": given, "capture_output": True, "text": True, "timeout": SECONDS, "env": environment(path, **more)}
    done = subprocess.run([*COMMAND, *arguments], **told)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


# --- key show


def test_show_prints_the_code_alone_on_standard_output(path: Path) -> None:
    write_key_file(path, KeyFile(KEY))
    out, err = discoro(path, "key", "show")
    assert out == code_of(KEY) + "\n"
    assert code_of(KEY) not in err and "discoro join" in err


def test_show_makes_the_first_key_and_says_so(path: Path) -> None:
    out, err = discoro(path, "key", "show")
    assert out.strip() == code_of(read_key_file(path).key)
    assert f"{path} was made now" in err


def test_show_gives_the_key_that_is_to_come(path: Path) -> None:
    write_key_file(path, KeyFile(KEY, OTHER, time.time() + 1000))
    out, err = discoro(path, "key", "show")
    assert out.strip() == code_of(OTHER) and "the old one is accepted here until" in err
    assert "on machines that have the old one: discoro join --keep 16m" in err, "for no longer than here"


def test_a_code_that_nobody_reads_is_told_of_and_can_be_shown_again(path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "key", "show"], stdout=theirs, stderr=pipe, text=True, env=environment(path)) as process:
        os.close(theirs)
        err = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 78 and "`discoro key show` prints it again" in err
    assert "Traceback" not in err and "BrokenPipe" not in err


def test_show_of_a_file_that_others_can_read_is_refused(path: Path) -> None:
    write_key_file(path, KeyFile(KEY))
    path.chmod(0o644)
    out, err = discoro(path, "key", "show", status=78)
    assert out == "" and "open to others" in err and "chmod 600" in err
    assert "If it may have been read, make another with `discoro key new --now`" in err


# --- join


def test_join_reads_standard_input(path: Path) -> None:
    _, err = discoro(path, "join", given=code_of(KEY) + "\n")
    assert read_key_file(path) == KeyFile(KEY)
    assert "joined" in err and code_of(KEY) not in err


def test_join_replaces_a_key_that_this_machine_made_for_itself(path: Path) -> None:
    discoro(path, "key", "show")
    _, err = discoro(path, "join", given=code_of(KEY))
    assert read_key_file(path) == KeyFile(KEY) and "in place of the one before" in err


def test_join_with_the_key_that_is_there_changes_nothing(path: Path) -> None:
    during = KeyFile(OTHER, KEY, 4_000_000_000.0)
    for content, more in ((KeyFile(KEY), []), (KeyFile(KEY), ["--keep", "1d"]), (during, ["--keep", "1d"])):
        write_key_file(path, content)
        _, err = discoro(path, "join", *more, given=code_of(KEY))
        assert "has that key already" in err and read_key_file(path) == content


def test_join_with_the_new_code_ends_a_change_that_all_have_made(path: Path) -> None:
    write_key_file(path, KeyFile(OTHER, KEY, 4_000_000_000.0))
    _, err = discoro(path, "join", given=code_of(KEY))
    assert read_key_file(path) == KeyFile(KEY) and "the one before is accepted no more" in err


def test_join_with_the_old_code_takes_a_change_back(path: Path) -> None:
    write_key_file(path, KeyFile(KEY, OTHER, 4_000_000_000.0))
    _, err = discoro(path, "join", given=code_of(KEY))
    assert read_key_file(path) == KeyFile(KEY) and "is taken back" in err


def test_join_keeps_the_old_key_for_as_long_as_it_is_told(path: Path) -> None:
    write_key_file(path, KeyFile(KEY))
    before = time.time()
    discoro(path, "join", "--keep", "90m", given=code_of(OTHER))
    keys = read_key_file(path)
    assert (keys.key, keys.following) == (KEY, OTHER)
    assert before - 1 + 5400 <= keys.since <= time.time() + 5400


def test_join_replaces_what_cannot_be_used(path: Path) -> None:
    """The error about a key file that holds none says to join."""
    for spoil in (lambda: path.write_text("no key"), lambda: path.chmod(0o644)):
        write_key_file(path, KeyFile(OTHER))
        spoil()
        _, err = discoro(path, "join", given=code_of(KEY))
        assert read_key_file(path) == KeyFile(KEY) and "could not be used, and is replaced" in err


def test_join_in_the_middle_of_a_change_to_another_key_drops_none_unasked(path: Path) -> None:
    third = bytes(range(100, 116))
    content = KeyFile(KEY, OTHER, 4_000_000_000.0)
    write_key_file(path, content)
    _, err = discoro(path, "join", "--keep", "1d", given=code_of(third), status=78)
    assert read_key_file(path) == content and "is being changed to another key already" in err
    discoro(path, "join", given=code_of(third))
    assert read_key_file(path) == KeyFile(third)


def test_join_warns_about_a_code_on_the_command_line(path: Path) -> None:
    _, err = discoro(path, "join", code_of(KEY))
    assert read_key_file(path) == KeyFile(KEY)
    assert "command line" in err and code_of(KEY) not in err


@pytest.mark.parametrize("text", ["", "nonsense", code_of(KEY)[:-1], code_of(KEY)[:-1] + "0"])
def test_join_refuses_what_is_no_code_and_keeps_what_was_there(path: Path, text: str) -> None:
    write_key_file(path, KeyFile(OTHER))
    _, err = discoro(path, "join", given=text, status=78)
    assert read_key_file(path) == KeyFile(OTHER)
    assert "discoro key show" in err or "paste the whole of it" in err
    assert ("no code was given, and nothing is changed" in err) is (not text)
    assert not text or text not in err


def test_join_asks_on_a_terminal_and_does_not_show_what_is_pasted(path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([*COMMAND, "join"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(path)) as process:
        os.close(theirs)
        shown = read_until(ours, b"not shown here")
        os.write(ours, code_of(KEY).encode() + b"\n")
        shown += read_until(ours, b"joined")
        assert process.wait(SECONDS) == 0
    os.close(ours)
    assert code_of(KEY).encode() not in shown
    assert read_key_file(path) == KeyFile(KEY)


def test_ctrl_d_at_the_prompt_is_no_code_and_is_told_in_lines_that_fit(path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([*COMMAND, "join"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(path)) as process:
        os.close(theirs)
        read_until(ours, b"not shown here): ")
        os.write(ours, b"\x04")
        shown = read_until(ours, b"other")
        assert process.wait(SECONDS) == 78
    os.close(ours)
    lines = shown.decode().splitlines()
    assert lines[0] == "" and lines[1].startswith("discoro: no code was given") and max(map(len, lines)) <= 80
    assert not path.exists()


def read_until(descriptor: int, text: bytes) -> bytes:
    seen, end = b"", time.monotonic() + SECONDS
    while text not in seen:
        assert select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0], seen
        seen += os.read(descriptor, 4096)
    return seen


def test_ctrl_c_at_the_prompt_ends_it_without_noise(path: Path) -> None:
    ours, theirs = pty.openpty()
    options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    launch = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from discoro.cli.discoro import main; "
    command = [sys.executable, "-c", launch + "sys.exit(main(['join']))"]
    with subprocess.Popen(command, env=environment(path), **options) as process:
        os.close(theirs)
        shown = read_until(ours, b"not shown here")
        os.write(ours, b"\x03")
        assert process.wait(SECONDS) == 130
    os.close(ours)
    assert b"Traceback" not in shown and not path.exists()


# --- key new


def test_new_has_another_key_follow(path: Path) -> None:
    write_key_file(path, KeyFile(KEY))
    before = time.time()
    out, err = discoro(path, "key", "new")
    keys = read_key_file(path)
    assert keys.key == KEY and keys.following is not None and out.strip() == code_of(keys.following)
    assert before - 1 + 86400 <= keys.since <= time.time() + 86400, "a day"
    assert "discoro join --keep 1d" in err


def test_new_now_ends_the_old_key(path: Path) -> None:
    for content in (KeyFile(KEY), KeyFile(KEY, OTHER, 4_000_000_000.0)):
        write_key_file(path, content)
        out, err = discoro(path, "key", "new", "--now")
        keys = read_key_file(path)
        assert keys.following is None and keys.key not in (KEY, OTHER) and out.strip() == code_of(keys.key)
        assert "accepted no more" in err and "--keep" not in err


def test_new_during_a_change_is_refused(path: Path) -> None:
    content = KeyFile(KEY, OTHER, 4_000_000_000.0)
    write_key_file(path, content)
    _, err = discoro(path, "key", "new", status=78)
    assert "is being changed already" in err and "--now" in err and read_key_file(path) == content


def test_new_where_there_is_none_makes_the_first(path: Path) -> None:
    out, err = discoro(path, "key", "new")
    assert read_key_file(path).following is None and out.strip() == code_of(read_key_file(path).key)
    assert "was made now" in err and "--keep" not in err


# --- around them


def test_the_file_can_be_named(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    discoro(path, "join", "--key-file", str(other), given=code_of(KEY))
    assert read_key_file(other) == KeyFile(KEY) and not path.exists()


def test_a_secret_in_the_environment_is_told_of(path: Path) -> None:
    _, err = discoro(path, "key", "show", DISCORO_SECRET="correct horse battery staple")
    assert "DISCORO_SECRET is set" in err and "horse" not in err


NEW = ["key new --keep x", "key new --keep 31d", "key new --keep 1h --now"]


@pytest.mark.parametrize("arguments", ["", "key", "join a b", "key show --keep 1d", *NEW])
def test_wrong_usage(path: Path, arguments: str) -> None:
    _, err = discoro(path, *arguments.split(), status=2)
    assert "usage:" in err


def test_times() -> None:
    assert [seconds_of(text) for text in ("90s", "30m", "12h", "1d", "0s")] == [90, 1800, 43200, 86400, 0]
    assert [in_words(seconds) for seconds in (90.0, 1800.0, 43200.0, 86400.0)] == ["90s", "30m", "12h", "1d"]


def test_the_launcher_of_a_checkout_is_this_command() -> None:
    command = [sys.executable, str(ROOT / "bin" / "discoro"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and done.stdout.startswith("discoro ")


CONCEALING = """
import sys
from discoro.cli.arguments import conceal
print(conceal(sys.argv[2]), flush=True)
print(sys.argv, sys.orig_argv[-3:], flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell where the arguments lie")
def test_a_secret_is_wiped_from_the_visible_arguments(path: Path) -> None:
    secret = "correct horse battery stäple"
    command = [sys.executable, "-c", CONCEALING, "--secret", secret, f"--secret={secret}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment(path)) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert secret not in process.stdout.readline()
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.stdin.close()
    assert secret.encode() not in seen and b"horse" not in seen
    assert seen.count(b"*" * len(secret.encode())) == 2


def test_there_is_nothing_to_conceal_in_nothing() -> None:
    assert not conceal("")
