"""The key of a running process as its file changes: what KeyWatch decides, and what Rekeying has done and told."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import pytest

from discoro.errors import ConfigError, PortTaken
from discoro.keyfile import KeyFile, write_key_file
from discoro.messages import Greeting
from discoro.moving import Moving
from discoro.peers import Peers
from discoro.rekeying import KeyWatch, Rekeying
from discoro.security import Security

OLD, NEW, OTHER = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))
ME = Greeting("00000000000000aa", 7, 0xAA, "ada", "node", "default", "3.11", "0", ("127.0.0.1:1",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cluster.key"


def watch_of(path: Path, content: KeyFile, now: float = 0.0) -> KeyWatch:
    write_key_file(path, content)
    return KeyWatch(Security.from_key_file(path, now=now), path)


def trust_of(tmp_path: Path, key: bytes) -> Security:
    path = tmp_path / f"{key[0]}.key"
    write_key_file(path, KeyFile(key))
    return Security.from_key_file(path, now=0.0)


# --- what is decided


def test_a_file_that_stays_is_no_news(path: Path) -> None:
    watch = watch_of(path, KeyFile(OLD))
    assert [watch.look(now) for now in (0.0, 2.0, 4.0)] == [None, None, None]
    write_key_file(path, KeyFile(OLD))
    assert watch.look(6.0) is None, "the same key, written again"


def test_a_key_is_followed_by_another_and_replaced_by_it(path: Path) -> None:
    watch = watch_of(path, KeyFile(OLD))
    assert watch.look(0.0) is None
    write_key_file(path, KeyFile(OLD, NEW, 100.0))
    changed = watch.look(2.0)
    assert changed is not None and changed.following is not None
    assert [watch.look(now) for now in (4.0, 99.9)] == [None, None]
    replaced = watch.look(100.0)
    assert replaced is not None and replaced.same_key(changed.following) and replaced.following is None
    assert watch.look(102.0) is None


def test_a_change_between_the_start_and_the_first_look_is_seen(path: Path) -> None:
    watch = watch_of(path, KeyFile(OLD))
    write_key_file(path, KeyFile(NEW))
    changed = watch.look(0.0)
    assert changed is not None and changed.following is None


def test_a_file_that_cannot_be_read_changes_nothing_and_is_told_of_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = watch_of(path, KeyFile(OLD))
    path.unlink()
    assert [watch.look(now) for now in (0.0, 2.0)] == [None, None]
    assert caplog.text.count("the cluster key stays the one that was read before") == 1
    path.touch(0o644)
    path.chmod(0o644)
    assert watch.look(4.0) is None and "open to others" in caplog.text
    write_key_file(path, KeyFile(NEW))
    assert watch.look(6.0) is not None
    assert OLD.hex() not in caplog.text and NEW.hex() not in caplog.text


def test_a_clock_that_is_set_back_brings_no_old_key_back(path: Path) -> None:
    watch = watch_of(path, KeyFile(OLD, NEW, 100.0))
    assert watch.look(100.0) is not None
    assert watch.look(50.0) is None


# --- what is done


class Doors:
    """A transport, as far as keys go."""

    def __init__(self) -> None:
        self.used: list[tuple[Security, range | None]] = []
        self.opens: list[str] = []
        self.error: Exception | None = None

    def use(self, security: Security, ports: range | None = None) -> list[str]:
        if self.error is not None:
            raise self.error
        self.used.append((security, ports))
        opened, self.opens = self.opens, []
        return opened


class PeersHere:
    """The links of a process, as far as keys go."""

    def __init__(self) -> None:
        self.keys: list[Security] = []

    def use_key(self, security: Security) -> None:
        self.keys.append(security)


class MovingHere:
    """Where a process is to be found, as far as keys go."""

    def __init__(self) -> None:
        self.further: list[list[str]] = []

    def opened(self, further: list[str]) -> None:
        self.further.append(further)


class MeshHere:
    def __init__(self) -> None:
        self.me = ME
        self.spawned: list[Awaitable[Any]] = []

    def spawn(self, work: Awaitable[Any]) -> None:
        self.spawned.append(work)


class Scene:
    def __init__(self, tmp_path: Path) -> None:
        self.mesh, self.peers, self.doors, self.moving = MeshHere(), PeersHere(), Doors(), MovingHere()
        self.old, self.new = trust_of(tmp_path, OLD), trust_of(tmp_path, NEW)
        moving, peers = cast(Moving, self.moving), cast(Peers, self.peers)
        self.rekeying = Rekeying(self.mesh, moving, peers, self.doors, self.old, range(5, 9))
        self.told: list[Security] = []
        self.rekeying.on_changed.append(lambda: self.told.append(self.rekeying.security))

    def both(self, path: Path) -> Security:
        write_key_file(path, KeyFile(OLD, NEW, 100.0))
        return Security.from_key_file(path, now=0.0)

    async def settle(self) -> None:
        await asyncio.gather(*self.mesh.spawned)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_second_door_is_told(scene: Scene, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changing = scene.both(path)
    scene.doors.opens = ["127.0.0.1:2"]
    scene.rekeying.use(changing)
    assert scene.doors.used == [(changing, range(5, 9))] and scene.peers.keys == [changing] and scene.told == [changing]
    assert scene.moving.further == [["127.0.0.1:2"]]
    assert "127.0.0.1:2" in caplog.text and "a new key takes over at" in caplog.text


def test_a_new_key_needs_no_telling(scene: Scene) -> None:
    scene.rekeying.use(scene.new)
    assert scene.doors.used == [(scene.new, range(5, 9))] and scene.peers.keys == [scene.new] and scene.told == [scene.new]
    assert scene.moving.further == []


def test_where_no_port_is_free_the_key_is_changed_all_the_same(
    scene: Scene, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene.doors.error = PortTaken("each port is taken")
    changing = scene.both(path)
    scene.rekeying.use(changing)
    assert scene.rekeying.security is changing and scene.peers.keys == [changing]
    assert "whoever has only the new cluster key cannot come in here" in caplog.text


def test_where_an_address_is_gone_the_key_is_changed_all_the_same(
    scene: Scene, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene.doors.error = ConfigError("cannot listen on 192.0.2.7:1")
    scene.rekeying.use(scene.both(path))
    assert scene.rekeying.security.following is not None and "192.0.2.7" in caplog.text


@pytest.mark.parametrize("overtaken", [False, True])
def test_without_descriptors_it_is_tried_again_and_the_greetings_change_at_once(
    scene: Scene, overtaken: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("discoro.rekeying.LOOK_SECONDS", 0.0)
    scene.doors.error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    scene.rekeying.use(scene.new)
    assert scene.peers.keys == [scene.new] and scene.told == [] and "tried again: " in caplog.text
    scene.doors.error = None
    if overtaken:
        scene.rekeying.use(scene.old)
    asyncio.run(scene.settle())
    last = scene.old if overtaken else scene.new
    assert [security for security, _ in scene.doors.used] == [last] == scene.told and scene.rekeying.security is last


def test_a_process_that_starts_during_a_change_opens_the_second_door(scene: Scene, path: Path) -> None:
    assert scene.rekeying.second_door() == [] and scene.doors.used == []
    scene.rekeying.security = changing = scene.both(path)
    scene.doors.opens = ["127.0.0.1:2"]
    assert scene.rekeying.second_door() == ["127.0.0.1:2"] and scene.doors.used == [(changing, range(5, 9))]


def test_of_a_client_and_a_worker_the_change_is_no_warning(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.mesh.me = ME._replace(role="client")
    with caplog.at_level(logging.WARNING):
        scene.rekeying.use(scene.new)
    assert caplog.text == ""


def test_it_prints_no_key(scene: Scene, path: Path) -> None:
    for shown in (repr(scene.rekeying), repr(watch_of(path, KeyFile(OLD, NEW, 9.0)))):
        assert OLD.hex() not in shown and NEW.hex() not in shown
