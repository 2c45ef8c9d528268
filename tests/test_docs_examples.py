"""The programs that the pages show run as they stand, and print what the pages say they print.

Each runs with a node of this machine only, whatever it asks for itself; none finds, or is found by, anybody else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import Machines

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
DOCS = ROOT / "docs"

# Runs a program with these options for its mesh, in place of its own.
WITH_OPTIONS = """
import functools, json, runpy, sys
import discoro

options = json.loads(sys.argv[2])
discoro.run = functools.partial(discoro.run, **options)
discoro.Mesh = functools.partial(discoro.Mesh, **options)
discoro.BlockingMesh = functools.partial(discoro.BlockingMesh, **options)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def run_locally(program: Path, directory: Path) -> str:
    """What it prints, on two slots; its key and files lie in `directory`."""
    own = {
        "PYTHONPATH": str(ROOT),
        "DISCORO_KEY_FILE": str(directory / "cluster.key"),
        "DISCORO_DEST_PATH": str(directory / "files"),
    }
    options = '{"local": true, "local_options": ["-c", "2"]}'
    command = [sys.executable, "-c", WITH_OPTIONS, str(program), options]
    done = subprocess.run(command, cwd=directory, env=os.environ | own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def printed(page: str, command: str) -> str:
    """What the page says that a command prints."""
    found = re.search(rf"(?ms)^\$ {re.escape(command)}$\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("tutorial/first-program.md", "messages.py"),
        ("tutorial/first-program.md", "prepared.py"),
        ("how-to/use-every-slot.md", "every_slot.py"),
        ("how-to/asyncio-and-notebooks.md", "in_asyncio.py"),
        ("how-to/blocking.md", "blocking.py"),
    ],
)
def test_a_program_prints_what_its_page_says(page: str, name: str, tmp_path: Path) -> None:
    assert run_locally(EXAMPLES / name, tmp_path) == printed(page, f"python3 {name}")


IDEAS = [f"explanation/{page}" for page in ("coroutines", "messages", "references", "ends", "names")]
IDEAS += [f"how-to/{page}" for page in ("channels", "queues", "offer-functions", "broadcast")]
PROGRAMS = [
    pytest.param(program, text, id=f"{page} {number}")
    for page in IDEAS
    for number, (program, text) in enumerate(
        re.findall(
            r"(?ms)^```python\n((?:(?!^```).)*^discoro\.run\(.*?)^```\n\n```text\n(.*?)^```$",
            (DOCS / f"{page}.md").read_text(encoding="utf-8"),
        ),
        1,
    )
]


@pytest.mark.parametrize(("program", "text"), PROGRAMS)
def test_a_program_on_the_page_of_an_idea_prints_what_follows(program: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(program)
    assert run_locally(path, tmp_path) == text


def test_every_page_of_an_idea_has_a_program() -> None:
    assert {str(each.id).split()[0] for each in PROGRAMS} == set(IDEAS)


def test_a_cell_of_a_notebook_runs_where_await_is_allowed(tmp_path: Path) -> None:
    page = (DOCS / "how-to" / "asyncio-and-notebooks.md").read_text(encoding="utf-8")
    (cell,) = re.findall(r"(?ms)^```python\n(.*?)^```$", page)
    program = tmp_path / "cell.py"
    program.write_text(
        "import ast, asyncio, inspect\n"
        f"code = compile({cell!r}, 'cell', 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)\n"
        "asyncio.run(eval(code, {'__name__': '__main__'}))\n"
    )
    assert run_locally(program, tmp_path) == "42\n"


SERVE = """
import functools, runpy
discoro.run = functools.partial(discoro.run, peers=[{peer!r}], mdns=False, ip_addr=["127.0.0.1"])
runpy.run_path({program!r}, run_name="__main__")
"""


def test_a_server_of_ones_own_is_found_through_a_node(tmp_path: Path) -> None:
    with Machines(tmp_path, []) as machines:
        node = machines.node("ada", "-c", "1")
        programs = [str(EXAMPLES / name) for name in ("own_server.py", "own_client.py")]
        server, client = [machines.program("here", SERVE.format(peer=node.address, program=each)) for each in programs]
        line = client.line(20).decode()
        client.succeed(10)
        assert re.fullmatch(rf"ran in process {server.pid} of \S+/{server.pid}/\d+", line)
        server.process.send_signal(2)
        assert server.end(5) == 0


def test_the_page_on_finding_nothing_shows_what_is_said(tmp_path: Path) -> None:
    """Every line of the error but the second, which names the key, and what was heard, which depends on the network."""
    source = """
        async def main():
            try:
                await discoro.servers()
            except discoro.NoNodes as error:
                say("NoNodes", str(error))

        discoro.run(main, mdns=False, ip_addr=["127.0.0.1"], peers=["127.0.0.1:1"], discover_timeout=0.3)
    """
    page = (DOCS / "how-to" / "when-nothing-is-found.md").read_text(encoding="utf-8")
    with Machines(tmp_path, []) as machines:
        program = machines.program("here", source)
        first, this_side, *lines = program.next("NoNodes", 10).splitlines()
        program.succeed(5)
    assert first == "no usable node in 0.3 s" and "no usable node in 5 s\n" in page
    assert this_side.startswith('  this side: cluster "default", key')  # its path may be too long for the same line
    assert '  this side: cluster "default", key ' in page
    assert lines[-3].startswith("  try  discoro-node")
    assert "\n".join(lines[-3:]) in page
    (refused,) = [line for line in lines if "127.0.0.1:1" in line]
    assert refused.partition(": ")[2].split(": ")[-1] in page
