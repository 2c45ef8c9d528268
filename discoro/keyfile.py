"""The cluster key in its file: made at the first start, read with care, changed in time, written down as a code to paste.

Never: derives anything from a key, logs or shows one unasked, or takes one from a file that others can open.

How the parts play together: `key_path` says where the file lies. `KeyFile` is what stands in it: one key, and while the
cluster's key is being changed the next one, with the time from when it is the only one. `make_key_file` makes a first
one, `read_key_file` and `write_key_file` are each other's mirror. `code_of` and `key_of_code` turn a key into what people
copy from one terminal into another, and back. `read_private` reads any file that only its owner may open.
"""

from __future__ import annotations

import calendar
import hashlib
import os
import re
import secrets
import shlex
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from discoro.errors import ConfigError, KeyFileError

KEY_BYTES = 16  # of a new key: 128 random bits are out of reach of guessing, and short enough to paste
KEY_TEXT = re.compile(rb"(?:[0-9a-fA-F]{2}){16,64}")  # what a key file holds: 128 to 512 bits
NEXT_TEXT = re.compile(rb"(\S+) from (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"  # UTC, as RFC 3339 has it
FILE_LIMIT = 64 * 1024  # bytes read of any file; a chain of certificates with its private key takes a tenth

CODE_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U, which are misread
CODE_LENGTH = 30  # characters of 5 bits: 128 of the key, 22 that show a typing error
CODE_GROUP = 5
CHECK_BITS = 5 * CODE_LENGTH - 8 * KEY_BYTES

OTHERWISE = "Or name another file with --key-file (DISCORO_KEY_FILE), use --secret or --secret-file, or --open for no key."


@dataclass(frozen=True, repr=False)
class KeyFile:
    """What a key file says: the cluster's `key`, and while that is being changed the `following` one, which is the only one
    from `since` on, in seconds of Unix time. Printed, it shows no key.
    """

    key: bytes
    following: bytes | None = None
    since: float = 0.0

    def at(self, now: float) -> KeyFile:
        """What it means at that time: once it has come, the following key is the key."""
        return KeyFile(self.following) if self.following is not None and now >= self.since else self

    def __repr__(self) -> str:
        return "<KeyFile with a following key>" if self.following else "<KeyFile>"


def key_path(key_file: str | Path | None, environ: Mapping[str, str]) -> Path:
    """Where the cluster key lies: `key_file`, else DISCORO_KEY_FILE, else discoro/cluster.key under XDG_CONFIG_HOME or
    ~/.config (XDG Base Directory specification). KeyFileError where there is no home to keep it in.
    """
    named = key_file if key_file is not None else environ.get("DISCORO_KEY_FILE") or None
    if named is not None:
        return Path(os.path.abspath(os.path.expanduser(named)))
    config = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):  # the XDG Base Directory rules: a relative one is ignored
        config = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
    if not os.path.isabs(config):
        raise KeyFileError(f"no home directory to keep the cluster key in: set HOME. {OTHERWISE}")
    return Path(config, "discoro", "cluster.key")


# --- making, reading, writing


def new_key() -> bytes:
    """128 random bits."""
    return secrets.token_bytes(KEY_BYTES)


def make_key_file(path: Path) -> bool:
    """Make a new random key at `path`, mode 0600, its directory 0700; False where there is a file already.

    Of many starters at once exactly one makes it, and a reader finds it whole or not at all: it is written
    aside and linked to its name, which never replaces a file. KeyFileError where that is not possible.
    """
    if os.path.lexists(path):  # perhaps where nothing can be written
        return False
    try:
        draft = _draft(path, KeyFile(new_key()))
        try:
            os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise KeyFileError(f"{_why_none_was_made(path, str(error.strerror))}. {OTHERWISE}") from error
    return True


def _why_none_was_made(path: Path, reason: str) -> str:
    try:
        path.lstat()
    except PermissionError:  # a directory of somebody else, say root's: there may be a key or none
        return f"the cluster key {path} is out of reach of user id {os.geteuid()} ({reason}): check who owns its directory"
    except OSError:
        pass
    return f"there is no cluster key {path}, and none can be made ({reason}): make the directory writable"


def write_key_file(path: Path, content: KeyFile) -> None:
    """Put this into the key file, in place of what was there; whole or not at all. KeyFileError where that fails."""
    path = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
    try:
        draft = _draft(path, content)
        try:
            os.replace(draft, path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyFileError(f"the cluster key {path} cannot be written ({error.strerror}): it is as it was") from error


def _draft(path: Path, content: KeyFile) -> Path:
    """A file beside `path` with this content, on the disk; its directory is made where there is none."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with open(draft, "x", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write(_text_of(content))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # Ctrl-C as well: no part of a key stays behind
        draft.unlink(missing_ok=True)
        raise
    return draft


def read_key_file(path: Path) -> KeyFile:
    """What stands in the key file. KeyFileError where it cannot be read, is open to others, or holds no key."""
    content = _parsed(read_private(path, "cluster key"))
    if content is None:
        raise KeyFileError(
            f"{path} holds no cluster key (32 to 128 hexadecimal digits): get the right one with `discoro join`, "
            f"or remove it, and a new one is made. {OTHERWISE}"
        )
    return content


def _text_of(content: KeyFile) -> str:
    lines = [content.key.hex()]
    if content.following is not None:
        lines.append(f"{content.following.hex()} from {time_text(content.since)}")
    return "".join(f"{line}\n" for line in lines)


def _parsed(text: bytes) -> KeyFile | None:
    """What the text says; None for other text, and no exception, whose traceback would keep it."""
    first, *more = [line.strip() for line in text.strip().splitlines()] or [b""]
    key = hex_bytes(first)
    if key is None or len(more) > 1:
        return None
    if not more:
        return KeyFile(key)
    found = NEXT_TEXT.fullmatch(more[0])
    following = hex_bytes(found[1]) if found else None
    if found is None or following is None:
        return None
    try:
        since = calendar.timegm(time.strptime(found[2].decode(), TIME_FORMAT))
    except ValueError:  # a 13th month
        return None
    return KeyFile(key, following, float(since))


def time_text(seconds: float) -> str:
    """A Unix time in UTC, to the second."""
    return time.strftime(TIME_FORMAT, time.gmtime(seconds))


def hex_bytes(text: bytes) -> bytes | None:
    """The bytes of a key's text; None for other text, and no exception, whose traceback would keep it."""
    text = text.strip()
    return bytes.fromhex(text.decode()) if KEY_TEXT.fullmatch(text) else None


# --- the code that people paste


def code_of(key: bytes) -> str:
    """The key as 30 characters in groups of five, easy to read out. ConfigError for a key that is not of 128 bits."""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"a key of {8 * len(key)} bits has no code: copy the key file itself")
    bits = int.from_bytes(key) << CHECK_BITS | _check(key)
    code = "".join(CODE_ALPHABET[bits >> 5 * place & 31] for place in reversed(range(CODE_LENGTH)))
    return "-".join(code[at : at + CODE_GROUP] for at in range(0, CODE_LENGTH, CODE_GROUP))


def key_of_code(text: str) -> bytes:
    """The key that was written as this code, or as hexadecimal digits like those in a key file.

    Spaces, hyphens and letters' case do not matter; O is read as 0, I and L as 1. ConfigError, which does not repeat the
    text, for anything else: one wrong or swapped character is noticed.
    """
    plain = "".join(text.split()).replace("-", "")
    if len(plain) >= 2 * KEY_BYTES:
        key = hex_bytes(plain.encode("ascii", "replace"))
        if key is not None:
            return key
    code = plain.upper().translate(_READ_AS)
    if len(code) != CODE_LENGTH:
        raise ConfigError(f"a code has {CODE_LENGTH} letters and digits, and this has {len(code)}: paste the whole of it")
    bits = 0
    for at, character in enumerate(code, 1):
        value = CODE_ALPHABET.find(character)
        if value < 0:
            raise ConfigError(f"character {at} of the code is in no code: paste it as `discoro key show` prints it")
        bits = bits << 5 | value
    key = (bits >> CHECK_BITS).to_bytes(KEY_BYTES)
    if bits & ((1 << CHECK_BITS) - 1) != _check(key):
        raise ConfigError("the code has a typing error in it: compare it with what `discoro key show` prints")
    return key


_READ_AS = str.maketrans("OIL", "011")


def _check(key: bytes) -> int:
    digest = hashlib.blake2b(key, digest_size=4, person=b"discoro-code").digest()
    return int.from_bytes(digest) >> 32 - CHECK_BITS


# --- files that only their owner may open


def read_private(path: Path, what: str) -> bytes:
    """The content of a file that only this user can open; else KeyFileError, which calls it `what`."""
    try:  # O_NONBLOCK: a FIFO would make us wait for whoever writes to it
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            _refuse_unsafe(path, what, os.fstat(file.fileno()))
            return file.read(FILE_LIMIT)
    except OSError as error:
        raise KeyFileError(
            f"the {what} {path} cannot be read ({error.strerror}): check it, and who owns it. {OTHERWISE}"
        ) from error


def _refuse_unsafe(path: Path, what: str, status: os.stat_result) -> None:
    """Judges the opened file and not its name, so that nobody can put another in its place in between."""
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"the {what} {path} is not a regular file. {OTHERWISE}")
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"the {what} {path} belongs to user id {status.st_uid}, who could run code as you "
            f"(user id {os.geteuid()}): use a copy of your own. {OTHERWISE}"
        )
    if status.st_mode & 0o077:
        another = "make another with `discoro key new --now`" if what == "cluster key" else "take another"
        raise KeyFileError(
            f"the {what} {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}), who could run "
            f"code as you: run `chmod 600 {shlex.quote(str(path))}`. If it may have been read, {another}"
        )
