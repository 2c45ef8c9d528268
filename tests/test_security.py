"""Who is let in: the key file and its guards, the keys made of it, what never leaks, sockets on loopback."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dill
import pytest
import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from discoro import keyfile, security
from discoro.errors import ConfigError, KeyFileError
from discoro.security import Security

ROOT = Path(__file__).resolve().parent.parent
TYPED = "correct horse battery staple"
NOBODY = 65534  # any user id but root's
ONE_ID = "root of a namespace with one user id"
PATIENCE = 10_000  # milliseconds until an event that must come counts as missing


def keyed(path: Path, **options: Any) -> Security:
    """The security of the key file at `path`, whatever the environment says."""
    return Security.from_options(key_file=path, environ={}, **options)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(path: Path) -> str:
    """The text of the KeyFileError that the key file at `path` gives; it names the file and a way out."""
    with pytest.raises(KeyFileError) as caught:
        keyed(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A directory of an ordinary user's own, and the test runs as that user: root is stopped by no mode."""
    folder = Path(tempfile.mkdtemp())  # not tmp_path: it lies below directories that only root may enter
    me = os.geteuid()
    try:
        if me == 0:
            try:
                os.chown(folder, NOBODY, -1)
                os.seteuid(NOBODY)
            except OSError:
                pytest.skip(ONE_ID)
        yield folder
    finally:
        os.seteuid(me)
        shutil.rmtree(folder)


# --- the key file: bad ones first


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"tiger42\n",
        b"0" * 31,
        b"0" * 33,  # a digit lost or doubled in a paste
        b"0" * 30,  # 120 bits
        b"0" * 130,
        b"0123456789abcdeg" * 2,
        b"01 23 45 67 89 ab cd ef 01 23 45 67 89 ab cd ef",
        "０".encode() * 32,  # a digit to str.isdigit, but not hexadecimal
        b"\xff\xfe\x00" * 20,
        b"a" * 5_000_000,
    ],
    ids=lambda content: content[:12].decode("ascii", "backslashreplace"),
)
def test_garbage_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cluster.key"
    path.write_bytes(content)
    path.chmod(0o600)
    text = refused(path)
    assert "holds no cluster key" in text and "discoro join" in text
    assert path.read_bytes() == content


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    path.touch(0o600)
    os.truncate(path, 50_000_000)
    tracemalloc.start()
    try:
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666, 0o777])
def test_a_key_open_to_others_is_refused_with_the_command_that_closes_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "cluster key"
    keyed(path)
    path.chmod(mode)
    text = refused(path)
    assert f"mode {mode:04o}" in text
    assert f"chmod 600 '{path}'" in text
    path.chmod(0o600)
    keyed(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_for_its_owner_alone_is_taken(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "cluster.key"
    made = keyed(path)
    path.chmod(mode)
    assert keyed(path).mac(b"x") == made.mac(b"x")


def test_an_unreadable_key_is_refused_and_no_other_is_made(plain_user: Path) -> None:
    path = plain_user / "cluster.key"
    keyed(path)
    path.chmod(0)
    text = refused(path)
    assert "cannot be read (Permission denied)" in text
    assert "--key-file" in text and "--secret" in text and "--open" in text
    assert list(plain_user.iterdir()) == [path]


def test_a_key_of_somebody_else_is_refused(plain_user: Path) -> None:
    """Before its mode is looked at, and its content: /etc/passwd is root's, and readable."""
    text = refused(Path("/etc/passwd"))
    assert "belongs to user id 0" in text and f"user id {os.geteuid()}" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_roots_key_must_not_belong_to_a_user(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    keyed(path)
    try:
        os.chown(path, NOBODY, -1)
    except OSError:
        pytest.skip(ONE_ID)
    assert f"belongs to user id {NOBODY}" in refused(path)


def test_a_key_that_cannot_be_made_names_the_ways_out(plain_user: Path) -> None:
    folder = plain_user / "locked"
    folder.mkdir(mode=0o500)
    text = refused(folder / "cluster.key")
    assert "none can be made (Permission denied)" in text
    assert "--key-file" in text and "--secret" in text and "--open" in text
    text = refused(folder / "deeper" / "cluster.key")
    assert "none can be made (Permission denied)" in text
    assert list(folder.iterdir()) == []


def test_of_a_directory_that_cannot_be_entered_it_is_not_said_that_it_holds_no_key(plain_user: Path) -> None:
    folder = plain_user / "shut"
    folder.mkdir()
    keyed(folder / "cluster.key")
    folder.chmod(0)
    text = refused(folder / "cluster.key")
    folder.chmod(0o700)
    assert f"out of reach of user id {os.geteuid()} (Permission denied)" in text and "there is no" not in text


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)  # reading it would wait for a writer
    assert "not a regular file" in refused(tmp_path / "fifo")
    assert "Is a directory" in refused(tmp_path)
    assert "not a regular file" in refused(Path("/dev/null"))
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(tmp_path / "file" / "cluster.key")


def test_a_link_is_followed_and_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    assert "No such file" in refused(link)
    assert not target.exists()
    assert keyed(target).mac(b"x") == keyed(link).mac(b"x")
    target.chmod(0o640)
    assert "mode 0640" in refused(link)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refused(tmp_path / "cluster.key")
    assert list(tmp_path.iterdir()) == []


# --- the key file: making it


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_first_start_makes_the_key_and_the_second_reads_it(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "config" / "discoro" / "cluster.key"
    before = os.umask(umask)
    try:
        first = keyed(path)
    finally:
        os.umask(before)
    assert first.made_now and not first.open
    assert first.origin == f"key {path} (made now)"
    assert mode_of(path) == 0o600 and mode_of(path.parent) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["cluster.key"]

    content = path.read_bytes()
    second = keyed(path)
    assert not second.made_now
    assert second.origin == f"key {path}"
    assert second.mac(b"x") == first.mac(b"x")
    assert path.read_bytes() == content


def test_a_new_key_has_128_bits_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b", "c"):
        keyed(tmp_path / name)
        keys.add((tmp_path / name).read_text())
    assert len(keys) == 3
    assert all(len(bytes.fromhex(key)) == 16 for key in keys)


def test_spaces_around_a_pasted_key_and_its_letters_case_do_not_matter(tmp_path: Path) -> None:
    key = "00112233445566778899aabbccddeeff"
    macs = set()
    for number, text in enumerate([key, f"{key}\n", f"\n  {key}\r\n", key.upper()]):
        path = tmp_path / str(number)
        path.write_text(text)
        path.chmod(0o600)
        macs.add(keyed(path).mac(b"x"))
    assert len(macs) == 1


def test_a_key_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    """What the slower of two starters meets, after both saw no file."""
    path = tmp_path / "cluster.key"
    assert keyfile.make_key_file(path)
    content = path.read_bytes()
    assert not keyfile.make_key_file(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


STARTER = """
import sys
from discoro.security import Security
print("ready", flush=True)
for line in sys.stdin:
    it = Security.from_options(key_file=line.strip(), environ={})
    print(it.made_now, it.mac(b"x").hex(), flush=True)
"""


@contextmanager
def python(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process that can import discoro, talking through pipes; ended with the block."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "random"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_starters_one_makes_the_key_and_both_have_it(tmp_path: Path) -> None:
    with python(STARTER) as one, python(STARTER) as two:
        assert (hear(one), hear(two)) == ("ready", "ready")
        for number in range(100):
            path = tmp_path / str(number) / "cluster.key"
            say(one, str(path))
            say(two, str(path))
            (made_one, mac_one), (made_two, mac_two) = hear(one).split(), hear(two).split()
            assert {made_one, made_two} == {"True", "False"}
            assert mac_one == mac_two
            assert list(path.parent.iterdir()) == [path]


# --- where the key comes from


def test_the_key_lies_in_the_users_config_directory(tmp_path: Path) -> None:
    home, config = tmp_path / "home", tmp_path / "config"
    Security.from_options(environ={"HOME": str(home), "XDG_CONFIG_HOME": str(config)})
    assert (config / "discoro" / "cluster.key").is_file() and not home.exists()
    # the XDG rules: empty means unset, relative is ignored
    for elsewhere in ("", "relative"):
        Security.from_options(environ={"HOME": str(home), "XDG_CONFIG_HOME": elsewhere})
    assert (home / ".config" / "discoro" / "cluster.key").is_file()
    assert not Path("relative").exists()


def test_without_a_home_the_error_says_so() -> None:
    with pytest.raises(KeyFileError, match=r"set HOME\. .*--key-file.*--secret.*--open"):
        Security.from_options(environ={"HOME": "relative"})


def test_an_option_beats_the_variable_and_the_variable_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    environ = {"HOME": str(tmp_path), "DISCORO_KEY_FILE": "~/variable"}
    assert Security.from_options(environ=environ).origin == f"key {tmp_path}/variable (made now)"
    option = Security.from_options(key_file="~/option", environ=environ)
    assert option.origin == f"key {tmp_path}/option (made now)"
    assert Security.from_options(secret=TYPED, environ=environ).origin == "secret"
    assert Security.from_options(open=True, environ=environ).origin == "open: no key"
    empty = Security.from_options(environ={**environ, "DISCORO_KEY_FILE": ""})
    assert empty.origin == f"key {tmp_path}/.config/discoro/cluster.key (made now)"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"open": True, "secret": TYPED}, "--open and --secret"),
        ({"open": True, "key_file": "k"}, "--open and --key-file"),
        ({"open": True, "certfile": "c", "keyfile": "k"}, "--open and --certfile"),
        ({"secret": TYPED, "key_file": "k"}, "--secret and --key-file"),
        ({"certfile": "c", "keyfile": "k", "key_file": "k"}, "--certfile and --key-file"),
        ({"open": True, "secret": ""}, "--open and --secret"),
        ({"secret": TYPED, "secret_file": "s"}, "--secret and --secret-file"),
        ({"secret_file": "s", "key_file": "k"}, "--secret-file and --key-file"),
    ],
)
def test_no_source_of_trust_is_left_unused_in_silence(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named} exclude each other"):
        Security.from_options(**options, environ={})


# --- a typed secret


@pytest.mark.parametrize("secret", ["", " ", "tiger42"])
def test_a_secret_too_short_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError, match=rf"has {len(secret)} characters, at least 8 are needed"):
        Security.from_options(secret=secret, environ={})


def test_a_secret_that_is_no_text_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="not valid text") as caught:
        Security.from_options(secret="gr\udcfcne Wiese am Bach", environ={})
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_weak_secret_is_warned_about_and_a_long_one_not(caplog: pytest.LogCaptureFixture) -> None:
    Security.from_options(secret="eightchr", environ={})
    assert "the secret is short" in caplog.text and "eightchr" not in caplog.text
    caplog.clear()
    Security.from_options(secret="sixteen letters!", environ={})
    assert caplog.text == ""


DERIVE = """
import sys
from discoro.security import Security
it = Security.from_options(environ={}, **{sys.argv[1]: sys.argv[2]})
print(it.handed_down(), it.mac(b"x").hex())
"""


def derived_elsewhere(option: str, value: str) -> list[str]:
    with python(DERIVE, option, value) as process:
        return hear(process).split()


def test_the_derivation_is_the_same_in_every_process_and_for_ever(tmp_path: Path) -> None:
    """The literals: were they to change, an upgraded machine would be locked out of its cluster."""
    path = tmp_path / "cluster.key"
    path.write_text("00112233445566778899aabbccddeeff\n")
    path.chmod(0o600)
    here = [keyed(path).handed_down(), keyed(path).mac(b"x").hex()]
    assert here[1] == "a756a5635b8d10edea9601b31eb0f9fa"
    assert derived_elsewhere("key_file", str(path)) == here

    typed = Security.from_options(secret=TYPED, environ={})
    assert typed.mac(b"x").hex() == "256803e3b7861fdc1b3b8d4e176a8b59"
    assert derived_elsewhere("secret", TYPED) == [typed.handed_down(), typed.mac(b"x").hex()]
    assert curve_keys(typed)["server public"] == "8MelG-?S/=m{gIw?a9uCn/QLh:c?XMBl4.Oe0oa3"


def test_every_key_is_different(tmp_path: Path) -> None:
    typed = Security.from_options(secret=TYPED, environ={})
    everything = [
        key
        for each in (keyed(tmp_path / "a"), keyed(tmp_path / "b"), typed)
        for key in [each.handed_down(), each.mac(b"x").hex(), *curve_keys(each).values()]
    ]
    assert len(set(everything)) == len(everything) == 18


# --- the greeting MAC


def test_a_mac_fits_one_body_and_one_key_only(tmp_path: Path) -> None:
    mine, other = keyed(tmp_path / "a"), keyed(tmp_path / "b")
    mac = mine.mac(b"greeting")
    assert len(mac) >= 16
    assert mine.verify(b"greeting", mac)
    assert keyed(tmp_path / "a").verify(b"greeting", mac)
    assert not other.verify(b"greeting", mac)
    assert not mine.verify(b"greetinG", mac)
    for wrong in (b"", mac[:-1], mac + b"\0", bytes(len(mac)), mac[::-1]):
        assert not mine.verify(b"greeting", wrong)


def test_open_takes_no_mac_and_gives_none(tmp_path: Path) -> None:
    opened, mine = Security.from_options(open=True, environ={}), keyed(tmp_path / "a")
    assert opened.open and not mine.open
    assert opened.mac(b"greeting") == b""
    assert opened.verify(b"greeting", b"")
    assert not opened.verify(b"greeting", mine.mac(b"greeting"))
    assert not mine.verify(b"greeting", b"")


# --- handed down to workers


def both(tmp_path: Path, now: float = 0.0) -> Security:
    """The trust of a key file in which one key follows another, at a time of 1000."""
    path = tmp_path / "changing.key"
    keyfile.write_key_file(path, keyfile.KeyFile(OLD, NEW, 1000.0))
    return Security.from_key_file(path, now=now)


def one(tmp_path: Path, key: bytes) -> Security:
    path = tmp_path / f"{key.hex()}.key"
    keyfile.write_key_file(path, keyfile.KeyFile(key))
    return keyed(path)


OLD, NEW = bytes(range(16)), bytes(range(16, 32))


def test_while_a_key_is_changed_greetings_under_either_are_good(tmp_path: Path) -> None:
    old, new, changing = one(tmp_path, OLD), one(tmp_path, NEW), both(tmp_path)
    assert changing.same_key(old) and changing.following is not None and changing.following.same_key(new)
    for other in (old, new):
        assert other.verify(b"hello", changing.mac(b"hello")) and changing.verify(b"hello", other.mac(b"hello"))
        assert not other.verify(b"hellO", changing.mac(b"hello"))
    assert not old.verify(b"hello", new.mac(b"hello"))
    third = keyed(tmp_path / "third")
    assert not third.verify(b"hello", changing.mac(b"hello")) and not changing.verify(b"hello", third.mac(b"hello"))
    assert "a new key takes over at 1970-01-01T00:16:40Z" in changing.origin


def test_once_the_time_has_come_the_new_key_is_the_only_one(tmp_path: Path) -> None:
    new, changing = one(tmp_path, NEW), both(tmp_path)
    for later in (changing.at(1000.0), both(tmp_path, now=1000.0)):
        assert later.same_key(new) and later.following is None and later.path == tmp_path / "changing.key"
        assert later.origin == f"key {later.path}"
        assert not later.verify(b"hello", one(tmp_path, OLD).mac(b"hello"))
    assert changing.at(999.9) is changing


def test_both_keys_are_handed_down(tmp_path: Path) -> None:
    changing = both(tmp_path)
    again = Security.from_handed_down(changing.handed_down())
    assert again.same_key(changing) and again.following is not None and again.following.same_key(changing.following)
    assert again.at(1e12) is again, "a worker learns from its node when the new key takes over"
    with pytest.raises(ConfigError):
        Security.from_handed_down(f"{changing.handed_down()} {changing.handed_down()}")


def test_the_same_trust_is_the_same_keys_at_the_same_time(tmp_path: Path) -> None:
    changing = both(tmp_path)
    assert changing.same_trust(both(tmp_path)) and one(tmp_path, OLD).same_trust(one(tmp_path, OLD))
    assert not changing.same_trust(one(tmp_path, OLD)) and not one(tmp_path, OLD).same_trust(changing)
    assert not changing.same_trust(changing.at(1000.0))


# --- where a typed secret comes from


def test_a_secret_in_a_file_is_the_same_as_a_typed_one(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{TYPED}\r\n")
    path.chmod(0o600)
    found = Security.from_options(secret_file=path, environ={})
    assert found.same_key(Security.from_options(secret=TYPED, environ={})) and found.origin == f"secret {path}"
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="the secret file .* is open to others"):
        Security.from_options(secret_file=path, environ={})
    path.chmod(0o600)
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(KeyFileError, match="not valid text") as caught:
        Security.from_options(secret_file=path, environ={})
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_secret_in_the_environment(tmp_path: Path) -> None:
    environ = {"DISCORO_SECRET": TYPED, "HOME": str(tmp_path)}
    typed = Security.from_options(secret=TYPED, environ={})
    found = Security.from_options(environ=environ)
    assert found.same_key(typed) and TYPED not in found.origin and list(tmp_path.iterdir()) == []
    assert Security.from_options(open=True, environ=environ).open, "what is typed beats the environment"
    assert not Security.from_options(key_file=tmp_path / "k", environ=environ).same_key(typed)
    with pytest.raises(ConfigError, match="DISCORO_SECRET and DISCORO_KEY_FILE exclude each other"):
        Security.from_options(environ={**environ, "DISCORO_KEY_FILE": "k"})
    assert "cluster.key" in Security.from_options(environ={**environ, "DISCORO_SECRET": ""}).origin


def test_what_is_handed_down_is_the_same_trust(tmp_path: Path) -> None:
    mine = keyed(tmp_path / "a")
    worker = Security.from_handed_down(mine.handed_down() + "\n")  # as a line is read
    assert worker.mac(b"x") == mine.mac(b"x")
    assert curve_keys(worker) == curve_keys(mine)
    assert not worker.open and not worker.made_now
    opened = Security.from_handed_down(Security.from_options(open=True, environ={}).handed_down() + "\n")
    assert opened.open and opened.mac(b"x") == b""


@pytest.mark.parametrize("text", ["", "OPEN", "ab" * 16, "ab" * 63, "ab" * 65, "xy" * 64, "é" * 128])
def test_damaged_handed_down_text_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match="arrived damaged") as caught:
        Security.from_handed_down(text)
    assert len(text) < 32 or text not in str(caught.value)


# --- what never leaks


def curve_keys(it: Security) -> dict[str, str]:
    """The CURVE keys that sockets are given, as Z85. (pyzmq cannot read them back from a real socket.)"""
    server, client = SimpleNamespace(), SimpleNamespace()
    it.secure_server(cast("zmq.Socket[bytes]", server))
    it.secure_client(cast("zmq.Socket[bytes]", client))
    assert client.curve_serverkey == server.curve_publickey
    return {
        "server public": server.curve_publickey.decode(),
        "server secret": server.curve_secretkey.decode(),
        "client public": client.curve_publickey.decode(),
        "client secret": client.curve_secretkey.decode(),
    }


def forms(secret: bytes) -> set[bytes]:
    """How a secret could look in a text: itself, as Python prints it, in hexadecimal, as Z85."""
    found = {secret, repr(secret).encode()[2:-1], secret.hex().encode()}
    return found | ({z85.encode(secret)} if len(secret) % 4 == 0 else set())


def all_secrets(it: Security, *typed: str) -> set[bytes]:
    raw = [bytes.fromhex(it.handed_down()), *(z85.decode(key.encode()) for key in curve_keys(it).values())]
    return set().union(*(forms(each) for each in [*raw, *(text.encode() for text in typed)]))


def assert_clean(shown: str, hidden: set[bytes]) -> None:
    assert hidden
    for secret in hidden:
        assert secret not in shown.encode("utf-8", "surrogateescape")


def test_printing_shows_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "cluster.key"
    from_file, typed = keyed(path), Security.from_options(secret="CANARY-7f3a9b", environ={})
    for it, source in ((from_file, path.read_text().strip()), (typed, "CANARY-7f3a9b")):
        hidden = all_secrets(it, source)
        shown = f"{it} {it!r} {[it]} {it.origin} {it.mac(b'x')!r}"
        assert_clean(shown + caplog.text, hidden)
        assert not hasattr(it, "__dict__")
    assert "the secret is short" in caplog.text
    assert repr(from_file) == f"<Security key {path} (made now)>"


def pickled(protocol: int, it: Security) -> bytes:
    return pickle.dumps(it, protocol)


@pytest.mark.parametrize(
    "save",
    [
        *(partial(pickled, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        lambda it: dill.dumps(it, recurse=True),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_it_cannot_be_pickled(tmp_path: Path, save: Callable[[Security], object]) -> None:
    it = keyed(tmp_path / "cluster.key")
    with pytest.raises(TypeError, match="holds the cluster key") as caught:
        save(it)
    shown = "".join(traceback.format_exception(caught.value))
    assert_clean(shown, all_secrets(it, (tmp_path / "cluster.key").read_text().strip()))


def test_it_cannot_be_changed(tmp_path: Path) -> None:
    it = keyed(tmp_path / "cluster.key")
    for name in ("open", "origin", "_master", "anything"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(it, name, True)
    with pytest.raises(AttributeError, match="immutable"):
        del it.origin
    assert not it.open


def full_traceback(error: BaseException) -> str:
    """As tools do that show each frame's locals; without the frames of this file: they know the keys."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    assert frames is not None
    return "".join(traceback.TracebackException(type(error), error, frames, capture_locals=True).format())


def test_a_traceback_with_all_its_variables_shows_no_key(tmp_path: Path) -> None:
    """A key that is refused is secret too: it may lack but one digit, or be open to others."""
    path = tmp_path / "cluster.key"
    hidden = all_secrets(keyed(path), path.read_text().strip(), path.read_text()[:-2])
    path.chmod(0o644)
    with pytest.raises(KeyFileError) as caught:
        keyed(path)
    assert_clean(full_traceback(caught.value), hidden)
    path.chmod(0o600)
    path.write_text(path.read_text()[:-2])
    with pytest.raises(KeyFileError) as caught:
        keyed(path)
    assert_clean(full_traceback(caught.value), hidden)


def test_errors_about_a_secret_do_not_show_it() -> None:
    for secret in ("seven77", "gr\udcfcne Wiese am Bach"):
        with pytest.raises(ConfigError) as caught:
            Security.from_options(secret=secret, environ={})
        shown = "".join(traceback.format_exception(caught.value))
        assert "seven77" not in shown and "Wiese" not in shown


# --- a certificate and its private key


def openssl(folder: Path, *arguments: str) -> None:
    """Runs openssl in `folder`; skips where this machine has none."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("the openssl command is not installed")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=discoro")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A directory with cert.pem and key.pem that belong together, and are valid for a year."""
    openssl(tmp_path, "req", "-x509", *NEW_KEY, "-days", "365", "-keyout", "key.pem", "-out", "cert.pem")
    (tmp_path / "key.pem").chmod(0o600)
    return tmp_path


def from_pair(folder: Path, **options: Any) -> Security:
    options = {"certfile": folder / "cert.pem", "keyfile": folder / "key.pem"} | options
    return Security.from_options(**options, environ={})


def pair_refused(folder: Path, **options: Any) -> str:
    """The error's text; it is a ConfigError, and shows nothing of the private key."""
    with pytest.raises(ConfigError) as caught:
        from_pair(folder, **options)
    shown = full_traceback(caught.value)
    for line in (folder / "key.pem").read_text().splitlines() if (folder / "key.pem").exists() else []:
        assert line.startswith("-----") or line not in shown
    return str(caught.value)


def test_a_pair_is_a_key_of_its_own(pair: Path) -> None:
    it = from_pair(pair)
    assert it.mac(b"x") == from_pair(pair).mac(b"x")
    assert not it.open
    assert it.origin.startswith(f"certificate {pair}/cert.pem (SHA-256 ")
    openssl(pair, "req", "-x509", *NEW_KEY, "-keyout", "key.pem", "-out", "cert.pem")
    assert from_pair(pair).mac(b"x") != it.mac(b"x")


def test_the_fingerprint_is_the_one_that_openssl_prints(pair: Path) -> None:
    openssl(pair, "x509", "-in", "cert.pem", "-outform", "DER", "-out", "cert.der")
    openssl(pair, "dgst", "-sha256", "-r", "-out", "digest", "cert.der")
    assert f"(SHA-256 {(pair / 'digest').read_text()[:16]})" in from_pair(pair).origin


def test_a_pair_and_a_secret_are_both_needed(pair: Path) -> None:
    both = from_pair(pair, secret=TYPED)
    assert both.origin.endswith("and secret")
    macs = {from_pair(pair).mac(b"x"), Security.from_options(secret=TYPED, environ={}).mac(b"x")}
    assert len(macs | {both.mac(b"x"), from_pair(pair, secret=TYPED + "!").mac(b"x")}) == 4


def test_both_in_one_file(pair: Path) -> None:
    separate = from_pair(pair)
    one = pair / "both.pem"
    one.write_text((pair / "cert.pem").read_text() + (pair / "key.pem").read_text())
    one.chmod(0o644)
    assert "mode 0644" in pair_refused(pair, certfile=one, keyfile=None)
    one.chmod(0o600)
    assert from_pair(pair, certfile=one, keyfile=None).mac(b"x") == separate.mac(b"x")


def test_a_key_in_the_older_form_is_taken(pair: Path) -> None:
    openssl(pair, "ec", "-in", "key.pem", "-out", "old.pem")
    (pair / "old.pem").chmod(0o600)
    assert "BEGIN EC PRIVATE KEY" in (pair / "old.pem").read_text()
    assert len(from_pair(pair, keyfile=pair / "old.pem").mac(b"x")) == 16


def test_a_pair_that_does_not_belong_together_is_refused(pair: Path) -> None:
    for new_key in (NEW_KEY, ("-newkey", "rsa:2048", "-nodes", "-subj", "/CN=discoro")):
        openssl(pair, "req", "-new", *new_key, "-keyout", "other.pem", "-out", "csr")
        text = pair_refused(pair, keyfile=pair / "other.pem")
        assert "do not belong together" in text and "cert.pem" in text and "other.pem" in text


SCRIPT = "import sys, discoro; discoro.run(lambda coro=None: (yield), local=True, certfile=sys.argv[1], keyfile=sys.argv[2])"


@pytest.mark.parametrize("who", ["node", "script"])
@pytest.mark.parametrize(
    ("certificate", "key", "mode", "said"),
    [
        ("cert.pem", "other.pem", 0o600, "do not belong together"),
        ("cert.pem", "key.pem", 0o644, "is open to others (mode 0644)"),
        ("cert.pem", "none.pem", 0, "cannot be read (No such file or directory)"),
        ("cert.pem", "junk.pem", 0o600, "cannot be used"),
    ],
)
def test_a_node_and_a_script_say_what_is_wrong_with_a_pair(
    pair: Path, who: str, certificate: str, key: str, mode: int, said: str
) -> None:
    openssl(pair, "req", "-new", *NEW_KEY, "-keyout", "other.pem", "-out", "csr")
    (pair / "junk.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    if mode:
        (pair / key).chmod(mode)
    files = [str(pair / certificate), str(pair / key)]
    command = ["-m", "discoro", "--certfile", files[0], "--keyfile", files[1]] if who == "node" else ["-c", SCRIPT, *files]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == (78 if who == "node" else 1)
    assert done.stdout == "" and key in done.stderr and said in done.stderr


@pytest.mark.parametrize("form", [("pkcs8", "-topk8", "-v2", "aes256"), ("ec", "-aes256")])
def test_an_encrypted_key_is_refused_and_nobody_asked_for_a_password(pair: Path, form: tuple[str, ...]) -> None:
    openssl(pair, *form, "-in", "key.pem", "-out", "locked.pem", "-passout", "pass:open sesame")
    (pair / "locked.pem").chmod(0o600)
    assert "locked.pem is encrypted" in pair_refused(pair, keyfile=pair / "locked.pem")


def signed(folder: Path, start: str, end: str, *extensions: str, by_itself: bool = True) -> None:
    """Makes cert.pem anew, for key.pem, valid from `start` to `end` (YYYYMMDD); by itself or by an authority."""
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=here\n[here]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n"
        "policy=any\nx509_extensions=kind\n[any]\ncommonName=supplied\n[kind]\n" + "\n".join(extensions)
    )
    (folder / "index").write_text("")
    (folder / "serial").write_text("01\n")
    openssl(folder, "req", "-new", "-key", "key.pem", "-subj", "/CN=discoro", "-out", "csr")
    signer: tuple[str, ...] = ("-selfsign", "-keyfile", "key.pem")
    if not by_itself:
        openssl(folder, "req", "-x509", *NEW_KEY, "-keyout", "authority.key", "-out", "authority.pem")
        signer = ("-cert", "authority.pem", "-keyfile", "authority.key")
    sign = ("ca", "-batch", "-config", "ca.cnf", "-in", "csr", "-notext", *signer)
    openssl(folder, *sign, "-startdate", f"{start}000000Z", "-enddate", f"{end}000000Z", "-out", "cert.pem")


@pytest.mark.parametrize("by_itself", [True, False])
def test_an_expired_certificate_is_refused_whoever_signed_it(pair: Path, by_itself: bool) -> None:
    signed(pair, "20200101", "20200102", "basicConstraints=CA:FALSE", by_itself=by_itself)
    assert "cert.pem has expired" in pair_refused(pair)
    signed(pair, "20200101", "20990102", "basicConstraints=CA:FALSE", by_itself=by_itself)
    assert not from_pair(pair).open


@pytest.mark.parametrize(
    ("start", "extensions"),
    [
        ("20980101", ["basicConstraints=CA:TRUE"]),  # for a machine whose clock stands at 1970
        ("20200101", ["basicConstraints=CA:FALSE", "extendedKeyUsage=clientAuth"]),
    ],
    ids=["not yet valid", "not for servers"],
)
def test_what_else_tls_would_mind_does_not_matter(pair: Path, start: str, extensions: list[str]) -> None:
    signed(pair, start, "20990102", *extensions)
    assert not from_pair(pair).open


def test_a_private_key_open_to_others_is_refused(pair: Path) -> None:
    (pair / "key.pem").chmod(0o640)
    assert "private key" in pair_refused(pair) and "chmod 600" in pair_refused(pair)


def test_files_that_are_missing_or_something_else_are_named(pair: Path) -> None:
    assert f"{pair}/nowhere cannot be read" in pair_refused(pair, certfile=pair / "nowhere")
    assert f"{pair}/nowhere cannot be read" in pair_refused(pair, keyfile=pair / "nowhere")
    assert "--keyfile needs --certfile" in pair_refused(pair, certfile=None)
    (pair / "text").write_text("-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n")
    (pair / "text").chmod(0o600)
    assert f"{pair}/text holds no certificate" in pair_refused(pair, certfile=pair / "text")
    assert f"{pair}/text cannot be used" in pair_refused(pair, keyfile=pair / "text")
    only_key = pair_refused(pair, certfile=pair / "key.pem", keyfile=None)
    assert f"{pair}/key.pem holds no certificate" in only_key


# --- libzmq


@pytest.mark.parametrize(
    ("version", "has_curve", "said"),
    [((4, 3, 4), True, r"libzmq 4\.3\.4 .*4\.3\.5 is needed"), ((4, 3, 5), False, "no CURVE")],
)
def test_a_libzmq_unfit_for_strangers_is_refused(version: tuple[int, int, int], has_curve: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        security.refuse_unfit_zmq(version, has_curve)
    security.refuse_unfit_zmq((4, 3, 5), True)


def test_the_libzmq_here_is_looked_at_unless_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 2, 0))
    with pytest.raises(ConfigError, match=r"libzmq 4\.2\.0"):
        keyed(tmp_path / "cluster.key")
    assert list(tmp_path.iterdir()) == []
    assert Security.from_options(open=True, environ={}).open


# --- real sockets on loopback

NewSocket = Callable[[int], "zmq.Socket[bytes]"]
FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


@contextmanager
def sockets() -> Iterator[NewSocket]:
    """Makes sockets; all are closed, without waiting for anything unsent, with the block."""
    with ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, linger=0)

        def new(kind: int) -> zmq.Socket[bytes]:
            socket = context.socket(kind)
            socket.linger = 0
            socket.rcvtimeo = PATIENCE
            stack.callback(socket.close, 0)
            return socket

        yield new


def served(new: NewSocket, server: Security) -> tuple[zmq.Socket[bytes], str]:
    router = new(zmq.ROUTER)
    server.secure_server(router)
    return router, f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"


def send_from(new: NewSocket, client: Security, address: str, body: bytes) -> zmq.Socket[bytes]:
    dealer = new(zmq.DEALER)
    client.secure_client(dealer)
    dealer.connect(address)
    dealer.send(body)
    return dealer


def wait_for_failure(*monitors: zmq.Socket[bytes]) -> None:
    """Returns when either side saw a handshake fail; fails when one succeeds, or nothing happens."""
    poller = zmq.Poller()
    for monitor in monitors:
        poller.register(monitor, zmq.POLLIN)
    while ready := poller.poll(PATIENCE):
        for monitor, _ in ready:
            event = recv_monitor_message(monitor)["event"]
            assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
            if event & FAILURES:
                return
    pytest.fail("no handshake failed")


def assert_shut_out(server: Security, client: Security) -> None:
    """Nothing that `client` sends reaches a socket of `server`, which goes on to serve its own."""
    events = zmq.EVENT_HANDSHAKE_SUCCEEDED | FAILURES
    with sockets() as new:
        router, address = served(new, server)
        inside = router.get_monitor_socket(events)
        dealer = new(zmq.DEALER)
        outside = dealer.get_monitor_socket(events)
        try:
            client.secure_client(dealer)
            dealer.connect(address)
            dealer.send(b"from a stranger")
            wait_for_failure(inside, outside)
            assert router.poll(0) == 0
            send_from(new, server, address, b"from a friend")
            assert router.recv_multipart()[1:] == [b"from a friend"]
        finally:
            for socket, monitor in ((router, inside), (dealer, outside)):
                socket.close(0)
                monitor.close(0)


def test_the_same_key_talks_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    server = keyed(path)
    for client in (keyed(path), server, Security.from_handed_down(server.handed_down())):
        with sockets() as new:
            router, address = served(new, server)
            dealer = send_from(new, client, address, b"ping")
            identity, body = router.recv_multipart()
            router.send_multipart([identity, body + b" pong"])
            assert dealer.recv() == b"ping pong"
            assert router.mechanism == dealer.mechanism == zmq.CURVE


def test_open_talks_to_open() -> None:
    opened = Security.from_options(open=True, environ={})
    with sockets() as new:
        router, address = served(new, opened)
        send_from(new, opened, address, b"ping")
        assert router.recv_multipart()[1:] == [b"ping"]
        assert router.mechanism == zmq.NULL


def test_another_key_is_shut_out(tmp_path: Path) -> None:
    assert_shut_out(keyed(tmp_path / "a"), keyed(tmp_path / "b"))


def test_another_secret_is_shut_out() -> None:
    assert_shut_out(Security.from_options(secret=TYPED, environ={}), Security.from_options(secret=TYPED + "r", environ={}))


def test_open_is_shut_out_of_a_keyed_cluster(tmp_path: Path) -> None:
    assert_shut_out(keyed(tmp_path / "a"), Security.from_options(open=True, environ={}))


def test_the_keyed_never_talk_to_the_open(tmp_path: Path) -> None:
    assert_shut_out(Security.from_options(open=True, environ={}), keyed(tmp_path / "a"))


def test_knowing_the_keys_of_those_who_dial_is_not_enough(tmp_path: Path) -> None:
    """The gate is the public key of those who listen: who has all of the other pair stays outside."""
    mine = keyed(tmp_path / "a")
    keys = curve_keys(mine)

    class Thief(Security):
        __slots__ = ()

        def secure_client(self, socket: zmq.Socket[Any]) -> None:
            socket.curve_publickey = keys["client public"].encode()
            socket.curve_secretkey = keys["client secret"].encode()
            socket.curve_serverkey = keys["client public"].encode()

    assert_shut_out(mine, Thief(b"", "stolen"))
