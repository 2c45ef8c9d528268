"""What of a directory travels: what is in the way, what is left out, links, and the lines of `.discoroignore`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from discoro import trees
from discoro.errors import ConfigError
from discoro.trees import tree


def grow(top: Path, *names: str) -> Path:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("")
    return top


def names(top: Path) -> list[str]:
    return [name.removeprefix("t/") for name, _ in tree(top, "t")]


# ------------------------------------------------------------------ bad input


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [pipe, listening])
def test_what_is_no_file_is_named_with_the_cure(tmp_path: Path, make: Callable[[Path], None]) -> None:
    grow(tmp_path, "sub/a.txt")
    make(tmp_path / "sub" / "odd")
    with pytest.raises(ConfigError, match=r"sub/odd is neither a file nor a directory, .*\.discoroignore"):
        names(tmp_path)
    (tmp_path / ".discoroignore").write_text("odd\n")
    assert names(tmp_path) == [".discoroignore", "sub/a.txt"]


def test_a_device_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/dev/.* (is neither a file nor a directory|leads to|cannot be read)"):
        names(Path("/dev"))


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "lost").symlink_to("gone.txt")
    with pytest.raises(ConfigError, match=r"the link .*/lost leads to gone\.txt, where nothing is"):
        names(tmp_path)
    (tmp_path / "lost").unlink()
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(ConfigError, match="self"):
        names(tmp_path)


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "shut/a.txt")
    look = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return look(path)

    monkeypatch.setattr(trees.os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"the directory .*/shut .*cannot be read: Permission denied"):
        names(tmp_path)


@pytest.mark.parametrize(("content", "why"), [(b"*.csv\n!keep.csv\n", "!keep.csv"), (b"\xff\xfe", "cannot be read")])
def test_lines_that_cannot_be_used_are_told(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / ".discoroignore").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"\.discoroignore.*{why}"):
        names(tmp_path)


# ------------------------------------------------------------------ what travels


def test_everything_travels_in_order_under_the_name_of_the_tree(tmp_path: Path) -> None:
    grow(tmp_path, "b.py", "a/z.txt", "a/y/x.csv", "c/.env", "a.py")
    (tmp_path / "empty").mkdir()
    found = dict(tree(tmp_path, "shop"))
    assert list(found) == ["shop/a.py", "shop/b.py", "shop/a/z.txt", "shop/a/y/x.csv", "shop/c/.env"]
    assert found["shop/a/y/x.csv"] == tmp_path / "a/y/x.csv"


def test_what_others_make_is_left_out(tmp_path: Path) -> None:
    made = ["__pycache__/a.pyc", "b.pyc", ".git/config", "sub/.hg/x", "sub/.svn/x", "node_modules/x/y.js", ".venv/x", "venv/x"]
    made += [f".{name}/x" for name in ("mypy_cache", "pytest_cache", "ruff_cache", "ipynb_checkpoints", "tox", "nox")]
    made += ["s.egg-info/PKG-INFO", "my-env/pyvenv.cfg", "my-env/lib/x.py", "cache/CACHEDIR.TAG", "cache/x"]
    grow(tmp_path, "kept.py", "sub/.github/x", *made)
    (tmp_path / "submodule").mkdir()
    (tmp_path / "submodule" / ".git").write_text("gitdir: elsewhere\n")
    (tmp_path / ".#kept.py").symlink_to("somebody@host.1234")
    assert names(tmp_path) == ["kept.py", "sub/.github/x"]


def test_the_directory_itself_may_have_any_name(tmp_path: Path) -> None:
    assert names(grow(tmp_path / "venv", "CACHEDIR.TAG", "a.py")) == ["CACHEDIR.TAG", "a.py"]


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    grow(tmp_path / "elsewhere", "data.csv")
    top = grow(tmp_path / "top", "a/b.py")
    (top / "file.csv").symlink_to("../elsewhere/data.csv")
    (top / "one").symlink_to("../elsewhere")
    (top / "two").symlink_to(tmp_path / "elsewhere")
    (top / "a" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "back").symlink_to("../top")
    (tmp_path / "elsewhere" / "here").symlink_to(".")
    assert names(top) == ["file.csv", "a/b.py", "one/data.csv", "two/data.csv"]


# ------------------------------------------------------------------ .discoroignore

FILES = ["a.csv", "data/a.csv", "data/deep/b.csv", "data/readme", "src/data/c.py", "notes.txt"]


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("", FILES),
        ("# a.csv\n\n   \n", FILES),
        ("*.csv", ["data/readme", "src/data/c.py", "notes.txt"]),
        ("data", ["a.csv", "notes.txt"]),
        ("/data", ["a.csv", "src/data/c.py", "notes.txt"]),
        ("/data/", ["a.csv", "src/data/c.py", "notes.txt"]),
        ("notes.txt/", FILES),
        ("data/*.csv", ["a.csv", "data/readme", "src/data/c.py", "notes.txt"]),
        ("data/deep", ["a.csv", "data/a.csv", "data/readme", "src/data/c.py", "notes.txt"]),
        ("  [an]*.[ct]??  \n", ["data/deep/b.csv", "data/readme", "src/data/c.py"]),
        ("A.CSV", FILES),
    ],
)
def test_lines_leave_out(tmp_path: Path, lines: str, left: list[str]) -> None:
    grow(tmp_path, *FILES)
    (tmp_path / ".discoroignore").write_text(lines)
    assert sorted(names(tmp_path)) == sorted([".discoroignore", *left])


def test_only_the_file_at_the_top_counts(tmp_path: Path) -> None:
    grow(tmp_path, *FILES)
    (tmp_path / "data" / ".discoroignore").write_text("*")
    assert "data/a.csv" in names(tmp_path)
