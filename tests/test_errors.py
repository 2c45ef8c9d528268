"""The tree of errors: as drawn, and over the wire and back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from discoro import errors
from discoro.errors import DiscoroError, RemoteError, from_wire, to_wire


def every_error() -> list[type[DiscoroError]]:
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, DiscoroError)]
    return sorted(found, key=lambda each: each.__name__)


@pytest.mark.parametrize("kind", every_error())
def test_an_error_comes_back_as_itself(kind: type[DiscoroError]) -> None:
    back = from_wire(*to_wire(kind("the text")))
    assert (type(back), str(back)) == (kind, "the text")


def test_an_error_that_this_version_does_not_know_keeps_name_and_text() -> None:
    back = from_wire("FromTheFuture", "the text")
    assert (type(back), str(back)) == (RemoteError, "FromTheFuture: the text")


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+) {2,}", errors.__doc__ or "")
    assert sorted(drawn) == [each.__name__ for each in every_error() if each is not DiscoroError]


def test_the_tree_in_the_reference_is_the_tree() -> None:
    page = (Path(__file__).parents[1] / "docs/reference/errors.md").read_text(encoding="utf-8")
    drawn = re.findall(r"[├└]── (\w+)", page)
    assert sorted(drawn) == [each.__name__ for each in every_error() if each is not DiscoroError]


def test_every_error_says_what_it_is() -> None:
    assert all(each.__doc__ for each in every_error())
