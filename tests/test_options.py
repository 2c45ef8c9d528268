"""What a mesh is told, and refuses to be told."""

from __future__ import annotations

import pytest

from discoro.errors import ConfigError
from discoro.options import MeshOptions


@pytest.mark.parametrize("name", ["ada", "a" * 63, "Ada's".replace("'", ""), "rechner-ä", None])
def test_names_that_can_be_read_back_are_taken(name: str | None) -> None:
    assert MeshOptions(name=name).name == name


@pytest.mark.parametrize("what", ["name", "cluster"])
@pytest.mark.parametrize("junk", ["", "a" * 64, "a/b", "it's", 'say "x"', "a\nb", "ä" * 32])
def test_names_that_could_not_be_read_back_are_refused(what: str, junk: str) -> None:
    with pytest.raises(ConfigError, match=f"{what}=.*cannot be used"):
        MeshOptions(**{what: junk})


def test_keys_are_those_of_the_options() -> None:
    assert MeshOptions(open=True).security().open
    assert MeshOptions(secret="a passphrase of some length").security().mac(b"x") != b""


@pytest.mark.parametrize("what", ["peers", "ip_addr", "local_options"])
@pytest.mark.parametrize("junk", ["grace", b"grace", [1]])
def test_a_text_in_place_of_a_list_is_refused_and_not_taken_letter_by_letter(what: str, junk: object) -> None:
    with pytest.raises(ConfigError, match=f"{what}=.*list of texts"):
        MeshOptions(**{what: junk})  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["discover_timeout", "connect_timeout", "peer_timeout"])
@pytest.mark.parametrize("junk", [0, -1, "3", None])
def test_times_are_numbers_above_zero(what: str, junk: object) -> None:
    with pytest.raises(ConfigError, match=f"{what}=.*seconds"):
        MeshOptions(**{what: junk})  # type: ignore[arg-type]


def test_a_cluster_is_a_text() -> None:
    with pytest.raises(ConfigError, match="cluster=3"):
        MeshOptions(cluster=3)  # type: ignore[arg-type]
