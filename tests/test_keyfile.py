"""The key file and the code: what is written can be read, what is read is strict, and no error repeats a key.

What a key file may be, who may open it, and how the first one is made: tests/test_security.py, through `Security`.
"""

from __future__ import annotations

import errno
import os
import stat
import traceback
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discoro.errors import ConfigError, KeyFileError
from discoro.keyfile import (
    CODE_ALPHABET,
    CODE_LENGTH,
    KeyFile,
    code_of,
    hex_bytes,
    key_of_code,
    key_path,
    make_key_file,
    new_key,
    read_key_file,
    time_text,
    write_key_file,
)

KEY, NEXT = bytes(range(16)), bytes(range(16, 32))
CODE = "000G4-0R40M-30E20-9185G-R38E1-ZPJ2B"
SINCE = 1_800_000_000.0

keys = st.binary(min_size=16, max_size=16)


# --- the code


@given(keys)
def test_a_code_is_read_back(key: bytes) -> None:
    code = code_of(key)
    assert key_of_code(code) == key
    assert len(code.replace("-", "")) == CODE_LENGTH
    assert {len(group) for group in code.split("-")} == {5}


def test_the_code_is_the_same_for_ever() -> None:
    """The literal: a code that was written down must be good in years."""
    assert code_of(KEY) == CODE
    assert key_of_code(CODE) == KEY


@given(keys, st.sampled_from([str.lower, str.upper, lambda code: code.replace("-", ""), lambda code: f"  {code}\r\n"]))
def test_case_hyphens_and_spaces_do_not_matter(key: bytes, write: object) -> None:
    assert callable(write)
    assert key_of_code(write(code_of(key))) == key


@given(keys)
def test_letters_that_look_like_digits_are_read_as_these(key: bytes) -> None:
    code = code_of(key)
    assert not set("ILOU") & set(code)
    assert key_of_code(code.replace("0", "O").replace("1", "l")) == key
    assert key_of_code(code.replace("1", "I")) == key


@given(keys, st.integers(0, CODE_LENGTH - 1), st.sampled_from(CODE_ALPHABET))
def test_one_wrong_character_is_noticed(key: bytes, place: int, character: str) -> None:
    code = code_of(key).replace("-", "")
    wrong = code[:place] + character + code[place + 1 :]
    if wrong == code:
        assert key_of_code(wrong) == key
    else:
        with pytest.raises(ConfigError, match="typing error"):
            key_of_code(wrong)


@given(keys, st.integers(0, CODE_LENGTH - 2))
def test_two_swapped_characters_are_noticed(key: bytes, place: int) -> None:
    code = code_of(key).replace("-", "")
    swapped = code[:place] + code[place + 1] + code[place] + code[place + 2 :]
    if swapped != code:
        with pytest.raises(ConfigError, match="typing error"):
            key_of_code(swapped)


@given(st.text() | st.text(CODE_ALPHABET + "-", min_size=25, max_size=40))
def test_any_text_is_a_key_or_a_named_error(text: str) -> None:
    try:
        assert len(key_of_code(text)) >= 16
    except ConfigError as error:
        shown = "".join(traceback.format_exception_only(error))
        assert len(text.strip()) < 8 or text.strip() not in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "has 0"), ("B9RNQ-D7YWW", "has 10"), (code_of(KEY) + "0", "has 31"), ("U" * CODE_LENGTH, "character 1 of the code")],
)
def test_what_is_no_code_is_told_apart(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        key_of_code(text)


def test_the_digits_of_a_key_file_are_taken_too() -> None:
    assert key_of_code(KEY.hex()) == KEY
    assert key_of_code(f" {KEY.hex().upper()}\n") == KEY


def test_a_longer_key_has_no_code() -> None:
    with pytest.raises(ConfigError, match="256 bits has no code: copy the key file"):
        code_of(bytes(32))


# --- the file


@settings(deadline=None)  # the disk may be slow
@given(keys, st.none() | keys, st.integers(0, 4_000_000_000))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, key: bytes, following: bytes | None, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "written" / "cluster.key"
    content = KeyFile(key, following, float(at) if following else 0.0)
    write_key_file(path, content)
    assert read_key_file(path) == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["cluster.key"]


def test_the_following_key_takes_over_at_its_time() -> None:
    content = KeyFile(KEY, NEXT, SINCE)
    assert content.at(SINCE - 0.001) is content
    assert content.at(SINCE) == KeyFile(NEXT)
    assert KeyFile(KEY).at(SINCE) == KeyFile(KEY)


@pytest.mark.parametrize(
    "second",
    [
        NEXT.hex(),
        f"{NEXT.hex()} from tomorrow",
        f"{NEXT.hex()} from 2027-13-01T00:00:00Z",
        f"{NEXT.hex()} from 2027-01-15T08:00:00+01:00",
        f"{NEXT.hex()[:-1]} from {time_text(SINCE)}",
        f"from {time_text(SINCE)}",
        f"{NEXT.hex()} from {time_text(SINCE)}\n{KEY.hex()}",
    ],
)
def test_a_second_line_that_says_no_time_is_refused(tmp_path: Path, second: str) -> None:
    path = tmp_path / "cluster.key"
    path.touch(0o600)
    path.write_text(f"{KEY.hex()}\n{second}\n")
    with pytest.raises(KeyFileError, match="holds no cluster key") as caught:
        read_key_file(path)
    assert KEY.hex() not in str(caught.value) and NEXT.hex() not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_file_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.key"
    path.touch(0o600)
    path.write_bytes(content)
    try:
        read_key_file(path)
    except KeyFileError as error:
        assert "holds no cluster key" in str(error)
        assert error.__cause__ is None and error.__context__ is None, "a cause would carry what the file holds"


def test_writing_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    write_key_file(target, KeyFile(KEY))
    link.symlink_to(target)
    write_key_file(link, KeyFile(NEXT))
    assert link.is_symlink() and read_key_file(target) == KeyFile(NEXT)


def test_a_file_open_to_others_is_closed_by_writing(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    path.write_text("")
    path.chmod(0o644)
    write_key_file(path, KeyFile(KEY))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cluster.key"
    write_key_file(path, KeyFile(KEY))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match=r"cannot be written \(No space left on device\): it is as it was"):
        write_key_file(path, KeyFile(NEXT))
    monkeypatch.undo()
    assert read_key_file(path) == KeyFile(KEY) and os.listdir(tmp_path) == ["cluster.key"]


def test_printing_shows_no_key() -> None:
    for content in (KeyFile(KEY), KeyFile(KEY, NEXT, SINCE)):
        assert KEY.hex() not in repr(content) and repr(KEY) not in repr(content) and NEXT.hex() not in repr(content)


def test_new_keys_have_128_bits_of_their_own() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100 and {len(key) for key in made} == {16}


def test_hex_takes_nothing_else() -> None:
    assert hex_bytes(b" 00" * 16) is None and hex_bytes("０".encode() * 32) is None and hex_bytes(b"0" * 130) is None
    assert hex_bytes(b"00" * 16) == bytes(16)


def test_the_path_that_an_option_names_may_have_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert key_path("~/k", {}) == Path("/home/ada/k")


def test_where_there_is_a_key_nothing_need_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration directory may be mounted so that it can only be read."""
    path = tmp_path / "cluster.key"
    assert make_key_file(path)

    def read_only(*_: object) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("discoro.keyfile._draft", read_only)
    assert not make_key_file(path)
