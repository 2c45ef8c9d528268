"""Who a process is, and what opens its links, comes from the system's randomness: nobody can foretell it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import discoro
from tests.support.commands import ROOT

PACKAGE = Path(discoro.__file__).parent

# All that discoro draws, in a process whose `random` begins where that of every other one does.
DRAWS = """
import asyncio, json, random
random.seed(7)
import discoro
from discoro.directory import ClientDirectory
from discoro.keyfile import new_key

async def nothing(coro=None):
    await coro.sleep(0)

async def main():
    options = {"mdns": False, "ip_addr": ["127.0.0.1"], "secret": "the same for both"}
    async with discoro.Mesh(name="one", **options) as one:
        async with discoro.Mesh(name="two", peers=one.addresses, **options) as two:
            while not (links := [link for link in two._peers if link.opened]):
                await asyncio.sleep(0.01)
            directory = ClientDirectory(None)
            directory.remove()
            return {
                "birth": two.me.birth,
                "node": two.me.node,
                "session": links[0].session,
                "session of the other": links[0].peer_session,
                "computation": discoro.Computation(nothing)._id,
                "directory": directory.blobs.name,
                "key": new_key().hex(),
                "the test's own": random.getrandbits(64),
            }

print(json.dumps(asyncio.run(main())))
"""


def drawn() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", DRAWS], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    values: dict[str, object] = json.loads(done.stdout)
    return values


def test_two_processes_whose_random_numbers_are_the_same_have_nothing_in_common() -> None:
    one, other = drawn(), drawn()
    assert one.pop("the test's own") == other.pop("the test's own"), "random began at the same place in both"
    assert [what for what in one if one[what] == other[what]] == []
    assert len({*one.values(), *other.values()}) == 2 * len(one)


def test_only_who_chooses_among_equals_uses_random() -> None:
    """A module that needs what nobody can foretell takes `secrets`, or `os.urandom`, which is the same."""
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            users |= {path.stem for name in names if name.partition(".")[0] in ("random", "uuid", "numpy")}
    assert users <= {"names", "arrays"}, "names picks one of the servers that have the same load; arrays packs numpy's"
