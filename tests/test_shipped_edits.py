"""A package of one's own, of several modules with a data file, edited between runs: what runs is what was written last.

Each client is a program in a directory of its own, beside the package; all of them at one slot of one node. What travels
unasked has limits, and what the worker lacks is told before anything runs: that is held here, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Command, Machines, NodeCommand
from tests.support.shipped import STYLES, Scripts, in_style, write

SECONDS = 20.0

# Every line that is edited has the same length in both versions, so that neither size nor time of a file tells them apart.
PACKAGE = {
    "report/__init__.py": """
        from __future__ import annotations
        from dataclasses import dataclass
        from pathlib import Path
        from .text import title

        @dataclass
        class Summary:
            title: str
            rows: list[str]
            late: str = ""

        def summary() -> Summary:
            rows = (Path(__file__).parent / "data" / "table.csv").read_text().split()
            return Summary(title(), rows)
    """,
    "report/text.py": """
        def title(): return "title VERSION"
    """,
    "report/late.py": """
        from . import summary
        def finished():
            found = summary()
            found.late = "late VERSION"
            return found
    """,
    "report/data/table.csv": "row-VERSION row-2\n",
}

# Tells its summary, waits to be told to go on, and ends with another, which imports a module then only.
PROGRAM = """
import discoro
import report

DEF work(client, coro=None):
    client.send(report.summary())
    WAIT coro.receive()
    from report.late import finished
    return finished()

def plain(summary):
    assert type(summary) is report.Summary
    return [summary.title, summary.rows[0], summary.late]

with discoro.BlockingMesh(mdns=False, ip_addr=["127.0.0.1"]) as mesh:
    server = mesh.locate("discoro_server")
    computation = mesh.computation(work)
    computation.setup(server)
    remote = computation.run(server, mesh.ref)
    say("first", plain(mesh.receive(20)))
    told()
    remote.send("go on")
    say("last", plain(remote.result(20)))
    computation.close(server)
"""


def first(version: str) -> list[str]:
    return [f"title {version}", f"row-{version}", ""]


def last(version: str) -> list[str]:
    return [f"title {version}", f"row-{version}", f"late {version}"]


class Site:
    """One node with one slot, and clients in directories of their own."""

    def __init__(self, directory: Path, resources: contextlib.ExitStack) -> None:
        self._directory = directory
        self._resources = resources
        self._machines = resources.enter_context(Machines(directory))
        self._node: NodeCommand = self._machines.node("node", "-c", "1")

    def project(self, name: str, version: str) -> Path:
        """A directory with the package in it, in that version."""
        directory = self._directory / name
        for file, text in PACKAGE.items():
            path = write(directory / file, in_style(text, "async").replace("VERSION", version))
            os.utime(path, (1_700_000_000, 1_700_000_000))
        return directory

    def client(self, directory: Path, source: str, style: str = "generators", **environment: str) -> Command:
        """A program in that directory. Its own Python must not take one version's compiled modules for another's."""
        scripts = self._resources.enter_context(Scripts(directory, of=self._machines))
        own = {"DISCORO_PEERS": self._node.address, "PYTHONDONTWRITEBYTECODE": "1", **environment}
        return scripts.program("client", in_style(source, style), key_file=None, **own)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.ExitStack() as resources:
        yield Site(tmp_path, resources)


def run_once(site: Site, directory: Path, style: str) -> list[Any]:
    client = site.client(directory, PROGRAM, style)
    told = [client.next("first", SECONDS)]
    client.tell("go on")
    told.append(client.next("last", SECONDS))
    client.succeed(SECONDS)
    return told


@pytest.mark.parametrize("style", STYLES)
def test_edited_code_runs_edited_and_undone_again(site: Site, style: str) -> None:
    for version in ("A", "B", "A"):
        assert run_once(site, site.project("project", version), style) == [first(version), last(version)]


@pytest.mark.parametrize("style", STYLES)
def test_two_clients_at_one_slot_each_run_their_own_version(site: Site, style: str) -> None:
    clients = {version: site.client(site.project(version, version), PROGRAM, style) for version in "AB"}
    for version, client in clients.items():
        assert client.next("first", SECONDS) == first(version)
    for client in clients.values():  # both run, at one slot
        client.tell("go on")
    for version, client in clients.items():
        assert client.next("last", SECONDS) == last(version)
        client.succeed(SECONDS)


SEVERAL = """
import importlib, os, sys
import discoro
import report.text

DEF work(client, coro=None):
    client.send(report.summary().title)
    WAIT coro.receive()
    from report.late import finished
    return finished().late

with discoro.BlockingMesh(mdns=False, ip_addr=["127.0.0.1"]) as mesh:
    server = mesh.locate("discoro_server")
    opened = []
    for turn in range(2):
        computation = mesh.computation(work)
        computation.setup(server)
        opened.append((computation, computation.run(server, mesh.ref)))
        say("first", mesh.receive(20))
        told()
        importlib.invalidate_caches()
        importlib.reload(report.text)
        importlib.reload(report)
    for computation, remote in opened:
        remote.send("go on")
        say("last", remote.result(20))
        computation.close(server)
"""


@pytest.mark.parametrize("style", STYLES)
def test_two_computations_of_one_client_each_run_their_own_version(site: Site, style: str) -> None:
    client = site.client(site.project("project", "A"), SEVERAL, style)
    for version, later in (("A", "B"), ("B", "B")):
        assert client.next("first", SECONDS) == f"title {version}"
        site.project("project", later)
        client.tell("edited")
    assert [client.next("last", SECONDS) for _ in range(2)] == ["late A", "late B"]
    client.succeed(SECONDS)


AGAIN = """
import importlib
import discoro
import report.text

DEF work(client, coro=None):
    client.send(report.summary().title)
    WAIT coro.receive()
    from report.late import finished
    return finished().late

with discoro.BlockingMesh(mdns=False, ip_addr=["127.0.0.1"]) as mesh:
    server = mesh.locate("discoro_server")
    computation = mesh.computation(work)
    running = []
    for turn in range(2):
        computation.setup(server)
        running.append(computation.run(server, mesh.ref))
        say("first", mesh.receive(20))
        told()
        importlib.invalidate_caches()
        importlib.reload(report.text)
        importlib.reload(report)
    for remote in running:
        remote.send("go on")
        say("last", remote.result(20))
    computation.close(server)
"""


@pytest.mark.parametrize("style", STYLES)
def test_a_computation_that_is_set_up_again_runs_edited_and_what_runs_goes_on(site: Site, style: str) -> None:
    client = site.client(site.project("project", "A"), AGAIN, style)
    for version, later in (("A", "B"), ("B", "B")):
        assert client.next("first", SECONDS) == f"title {version}"
        site.project("project", later)
        client.tell("edited")
    assert [client.next("last", SECONDS) for _ in range(2)] == ["late A", "late B"]
    client.succeed(SECONDS)


# What is told before anything runs

REFUSED = """
import discoro
IMPORT

def work(coro=None):
    yield coro.sleep(0)
    return USE

with discoro.BlockingMesh(mdns=False, ip_addr=["127.0.0.1"]) as mesh:
    server = mesh.locate("discoro_server")
    computation = mesh.computation(work, DEPENDS)
    try:
        computation.setup(server)
    except discoro.errors.DiscoroError as error:
        say("refused", [type(error).__name__, str(error)])
    else:
        say("result", computation.run(server).result(20))
"""


def asked(site: Site, directory: Path, imported: str, use: str, depends: str = "[]", **environment: str) -> tuple[str, Any]:
    """What setup of a function that imports and uses this says: refused, or the result."""
    source = REFUSED.replace("IMPORT", imported).replace("USE", use).replace("DEPENDS", depends)
    client = site.client(directory, source, **environment)
    told = client.event(SECONDS)
    client.succeed(SECONDS)
    return told


def test_a_module_that_was_removed_is_gone(site: Site, tmp_path: Path) -> None:
    extra = write(site.project("project", "A") / "report" / "extra.py", "")
    use = "report.summary() and importlib.util.find_spec('report.extra') is not None"
    for there in (True, False):
        assert asked(site, tmp_path / "project", "import importlib.util, report", use) == ("result", there)
        extra.unlink(missing_ok=True)


def installed(site_packages: Path) -> Path:
    """A package that is installed at the client only, under another name than the one it is imported by."""
    write(site_packages / "rare_parts" / "__init__.py", "NAME = 'rare'\ndef name(): return NAME\n")
    record = site_packages / "rare_goods-4.5.6.dist-info"
    write(record / "METADATA", "Metadata-Version: 2.1\nName: rare-goods\nVersion: 4.5.6\n")
    write(record / "top_level.txt", "rare_parts\n")
    write(record / "RECORD", "rare_parts/__init__.py,,\n")
    return site_packages


@pytest.mark.parametrize(
    ("imported", "use"),
    [
        ("import rare_parts", "rare_parts.NAME"),
        ("from rare_parts import name", "name()"),
        ("import user_of_rare", "user_of_rare.NAME"),
    ],
)
def test_a_package_that_the_worker_lacks_is_told_with_its_version(site: Site, tmp_path: Path, imported: str, use: str) -> None:
    path = os.pathsep.join([os.fspath(installed(tmp_path / "venv" / "site-packages")), os.fspath(Path(__file__).parents[1])])
    write(tmp_path / "project" / "user_of_rare.py", "from rare_parts import NAME\n")
    kind, (error, text) = asked(site, tmp_path / "project", imported, use, PYTHONPATH=path)
    assert kind == "refused"
    assert "rare_goods==4.5.6" in text.replace("-", "_"), (error, text)


def test_a_package_that_the_worker_lacks_may_be_optional(site: Site, tmp_path: Path) -> None:
    path = os.pathsep.join([os.fspath(installed(tmp_path / "venv" / "site-packages")), os.fspath(Path(__file__).parents[1])])
    helper = "try:\n    import rare_parts\nexcept ImportError:\n    rare_parts = None\ndef value(): return rare_parts is None\n"
    write(tmp_path / "project" / "careful.py", helper)
    assert asked(site, tmp_path / "project", "import careful", "careful.value()", PYTHONPATH=path) == ("result", True)


def test_a_module_with_the_name_of_one_of_pythons_own_is_refused_by_its_path(site: Site, tmp_path: Path) -> None:
    path = write(tmp_path / "project" / "sched.py", "NAME = 'mine'\n")
    kind, (error, text) = asked(site, tmp_path / "project", "import sched", "sched.NAME")
    assert (kind, error) == ("refused", "ConfigError")
    assert str(path) in text and "rename" in text


def test_a_module_of_ones_own_goes_before_an_installed_one_of_its_name(site: Site, tmp_path: Path) -> None:
    write(tmp_path / "project" / "iniconfig.py", "NAME = 'mine'\n")  # pytest brings one
    assert asked(site, tmp_path / "project", "import iniconfig", "iniconfig.NAME") == ("result", "mine")


def test_data_that_nobody_named_is_refused_with_the_largest_paths_and_goes_when_named(site: Site, tmp_path: Path) -> None:
    project = tmp_path / "project"
    write(project / "bulky" / "__init__.py", "NAME = 'bulky'\n")
    for number in range(1, 8):
        path = write(project / "bulky" / "data" / f"part-{number}.bin", "")
        os.truncate(path, number << 22)  # 4 to 28 MiB, and no room on the disk
    kind, (error, text) = asked(site, project, "import bulky", "bulky.NAME")
    assert (kind, error) == ("refused", "TooLarge")
    told = [number for number in range(8) if str(project / "bulky" / "data" / f"part-{number}.bin") in text]
    assert told == [3, 4, 5, 6, 7]
    assert "depends" in text
    write(project / "bulky" / ".discoroignore", "data\n")
    assert asked(site, project, "import bulky", "bulky.NAME") == ("result", "bulky")
