"""However a client's Python was started, its code runs there as here: as a script, by -m, -c, typed in, from a zip, by pytest.

Each start is a process of its own; all of them meet one node.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Machines, NodeCommand
from tests.support.nodes import environment
from tests.support.shipped import STYLES, in_style, write

SECONDS = 40.0

# No empty lines inside: it is typed in, too.
CODE = """
import discoro
from .tools import twice
class Point:
    def __init__(self, x): self.x = x

DEF computation(point, coro=None):
    WAIT coro.sleep(0)
    from .late import NAME
    assert type(point) is Point
    return twice(point.x), NAME, Point(1)

def main():
    with discoro.BlockingMesh(mdns=False, ip_addr=["127.0.0.1"]) as mesh:
        server = mesh.locate("discoro_server", timeout=20)
        ours = mesh.computation(computation)
        ours.setup(server, 20)
        number, name, point = ours.run(server, Point(4)).result(20)
        ours.close(server)
        print("came back:", number, name, type(point) is Point)

"""
CALLED = 'if __name__ == "__main__":\n    main()\n\n'
TOOLS = {"tools.py": "def twice(n): return 2 * n\n", "late.py": 'NAME = "late"\n'}
CAME_BACK = "came back: 8 late True"


class Site:
    """One node, and what its clients print; they are started in `directory`, which each test has to itself."""

    def __init__(self, machines: Machines, directory: Path) -> None:
        self._own = directory
        self._node: NodeCommand = machines.node("node", "-c", "2")
        self.directory = directory

    def lay(self, name: str, files: dict[str, str]) -> Path:
        """A new directory to start in, with these files."""
        self.directory = self._own / re.sub(r"\W+", "-", name)
        for file, text in files.items():
            write(self.directory / file, text)
        return self.directory

    def prints(self, *command: str, typed: str = "") -> str:
        """What a Python that is started so prints, once it has ended in order."""
        own = environment(self._own, DISCORO_PEERS=self._node.address)
        command = (sys.executable, *command)
        done = subprocess.run(
            command, cwd=self.directory, env=own, input=typed, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("starts")
    with Machines(directory) as machines:
        yield Site(machines, directory)


@pytest.fixture
def site(module_site: Site, request: pytest.FixtureRequest) -> Site:
    module_site.lay(request.node.name, {})
    return module_site


pytestmark = pytest.mark.parametrize("style", STYLES)


def in_package(style: str) -> str:
    return in_style(CODE, style)


def alone(style: str) -> str:
    """The same code outside of a package."""
    return in_package(style).replace("from .", "from ")


def test_a_script_started_from_elsewhere(site: Site, style: str, request: pytest.FixtureRequest) -> None:
    there = site.lay(f"{request.node.name}-there", TOOLS | {"script.py": alone(style) + CALLED})
    site.lay(f"{request.node.name}-here", {"readme": ""})
    assert CAME_BACK in site.prints(os.fspath(there / "script.py"))


def test_a_package_by_its_name(site: Site, style: str, request: pytest.FixtureRequest) -> None:
    files = {f"app/{name}": text for name, text in TOOLS.items()}
    site.lay(request.node.name, files | {"app/__init__.py": "", "app/__main__.py": in_package(style) + CALLED})
    assert CAME_BACK in site.prints("-m", "app")


def test_a_module_of_a_package_by_its_name(site: Site, style: str, request: pytest.FixtureRequest) -> None:
    files = {f"app/{name}": text for name, text in TOOLS.items()}
    site.lay(request.node.name, files | {"app/__init__.py": "", "app/run.py": in_package(style) + CALLED})
    assert CAME_BACK in site.prints("-m", "app.run")


def test_a_package_that_a_line_of_code_calls(site: Site, style: str, request: pytest.FixtureRequest) -> None:
    files = {f"app/{name}": text for name, text in TOOLS.items()}
    site.lay(request.node.name, files | {"app/__init__.py": "", "app/run.py": in_package(style)})
    assert CAME_BACK in site.prints("-c", "from app.run import main; main()")


def test_code_on_the_command_line(site: Site, style: str, request: pytest.FixtureRequest) -> None:
    site.lay(request.node.name, TOOLS)
    assert CAME_BACK in site.prints("-c", alone(style) + CALLED)


@pytest.mark.parametrize("how", ["-", "-i"])
def test_code_that_is_piped_or_typed_in(site: Site, style: str, how: str, request: pytest.FixtureRequest) -> None:
    site.lay(request.node.name, TOOLS)
    assert CAME_BACK in site.prints(how, typed=alone(style) + CALLED)


def test_a_zip_of_everything(site: Site, style: str, request: pytest.FixtureRequest) -> None:
    """What comes out of a zip goes by value, so that nothing can be imported from it there: only what code names goes along."""
    directory = site.lay(request.node.name, {"readme": ""})
    code = "from late import NAME\n" + alone(style).replace("    from late import NAME\n", "")
    with zipfile.ZipFile(directory / "app.zip", "w") as archive:
        for name, text in (TOOLS | {"__main__.py": code + CALLED}).items():
            archive.writestr(name, text)
    assert CAME_BACK in site.prints("app.zip")


def test_a_test_that_pytest_rewrites(site: Site, style: str, request: pytest.FixtureRequest) -> None:
    site.lay(request.node.name, TOOLS | {"test_ours.py": alone(style).replace("def main():", "def test_main():")})
    assert CAME_BACK in site.prints("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-c", os.devnull, "test_ours.py")
