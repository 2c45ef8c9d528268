"""The house stays in order: who may import whom, and who may touch what.

Reads the source of every module, imports inside functions and under TYPE_CHECKING included, and runs none of
it. The rules are the tables at the top; `broken_rules` holds a module against them; its own tests come first.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "discoro"

# Imports go from right to left only. A package counts as one room (cli).
ORDER = (
    "errors memory progress folding drawing verdicts packing messages pacing outbox link blobs copies files store directory "
    "trees inside imports modules building arrays raised shipping culprit payload depends sweeping process vitals allowance "
    "busy responding throttle watchdog keyfile security connections zmtp sockets arrivals listening dialling transport "
    "interfaces adverts discovery peers references requests outcomes mailbox driving coro script exits holding names "
    "finding introducing presence status local options answers transfers exchange sending moving rekeying mesh services "
    "broadcasting spreading hubs channels queues rci gathering computation takeover server workers keeping node program "
    "background blocking measuring pool cli __main__"
).split()
THINKING = set("errors verdicts packing messages pacing outbox link blobs copies zmtp busy status".split())

# The front door (discoro/__init__.py) hands out public names; the commands stand outside, in front of it.
FRONT_DOOR = "__init__"
OUTSIDE = {"cli", "__main__"}
# The one name that everybody may take from the front door: a literal, set before anything is imported there.
VERSION = "__version__"

# Each foreign library has its owners, and there are no others: these five are what an installation brings.
# pickle stands here for what it can do: whoever may unpickle runs code.
OWNERS = {
    "zmq": {"sockets", "listening", "dialling", "security"},
    "zeroconf": {"discovery"},
    "ifaddr": {"interfaces"},
    "msgpack": {"packing"},
    "dill": {"payload", "shipping"},
    "pickle": {"arrays", "building", "payload", "shipping"},
}

# Thinking modules get values and the time, and give values: no socket, clock, file, thread or log.
TOUCHING = set(
    "asyncio concurrent datetime logging multiprocessing os pathlib sched select selectors shutil signal "
    "socket ssl subprocess tempfile threading time".split()
)
TOUCHING_CALLS = {"open", "print", "input"}


@dataclass(frozen=True)
class Import:
    """One name imported at one line: `module` in full, and `name` where it is taken out of that module."""

    line: int
    module: str
    name: str | None = None


def imports_of(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import in the tree, relative ones (`package` is where they start), `import_module("…")` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (Import(node.lineno, module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and called_name(node) in ("import_module", "__import__"):
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                module = node.args[0].value
                yield Import(node.lineno, package + module if module.startswith(".") else module)


def called_name(call: ast.Call) -> str:
    """`f` of both `f()` and `a.f()`."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def room_of(found: Import, package: Path = PACKAGE) -> str | None:
    """The room of discoro that an import leads into; None for what is not discoro's."""
    parts = found.module.split(".")
    if parts[0] != "discoro":
        return None
    if len(parts) > 1:
        return parts[1]
    is_room = found.name in ORDER or (package / f"{found.name}.py").exists()
    return found.name if is_room and found.name else FRONT_DOOR


def broken_rules(room: str, source: str, package: str = "discoro") -> list[str]:
    """What a module of `room` does that the tables forbid, one sentence each; `package` is where it lives."""
    tree = ast.parse(source)
    found = [rule for each in imports_of(tree, package) for rule in broken_by(room, each)]
    if room in THINKING:
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        found += [
            f"line {call.lineno}: a thinking module calls {called_name(call)}()"
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id in TOUCHING_CALLS
        ]
    return found


def broken_by(room: str, found: Import) -> Iterator[str]:
    """What is wrong with one import made in `room`."""
    where = f"line {found.line}: {room} imports {found.module}" + (f".{found.name}" if found.name else "")
    into = room_of(found)
    library = found.module.split(".")[0]
    if into is not None:
        if not may_enter(room, into, found.name):
            yield f"{where}: imports go downward only"
    elif library in OWNERS:
        if room not in OWNERS[library]:
            yield f"{where}: {library} belongs to {', '.join(sorted(OWNERS[library]))}"
    elif library not in sys.stdlib_module_names:
        yield f"{where}: not one of the five libraries that discoro brings"
    elif room in THINKING and library in TOUCHING:
        yield f"{where}: a thinking module touches nothing"


def may_enter(room: str, into: str, name: str | None) -> bool:
    """Whether `room` may import from the room `into`; ValueError for a room that ORDER does not name."""
    if into == FRONT_DOOR:
        return room in OUTSIDE or name == VERSION
    if room == FRONT_DOOR:
        return into not in OUTSIDE
    return ORDER.index(into) < ORDER.index(room) or (into == room and into in OUTSIDE)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """`discoro.cli.node` for discoro/cli/node.py, `discoro.cli` for its __init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def home_of(path: Path) -> str:
    """The package that relative imports of this file start from."""
    return ".".join(path.relative_to(PACKAGE.parent).parent.parts)


# The rules themselves, on sources that break each of them.


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("messages", "from discoro import link"),
        ("messages", "from discoro.link import Link"),
        ("messages", "from .link import Link"),
        ("messages", "from . import link"),
        ("messages", "import discoro.link"),
        ("messages", "def f():\n    from discoro import link"),
        ("messages", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from discoro import link"),
        ("messages", "import importlib\nimportlib.import_module('discoro.link')"),
        ("messages", "import importlib\nimportlib.import_module('.link', 'discoro')"),
        ("mesh", "from discoro import Mesh"),
        ("mesh", "import discoro"),
        ("node", "from discoro.cli import banner"),
        ("__init__", "from discoro.cli import node"),
        ("link", "from discoro.link import Link"),
        ("mesh", "import zmq.asyncio"),
        ("mesh", "def f():\n    import pickle"),
        ("server", "from dill import loads"),
        ("cli", "import requests"),
        ("link", "import time"),
        ("link", "from os import path"),
        ("blobs", "import importlib\nimportlib.import_module('socket')"),
        ("messages", "open('file')"),
    ],
)
def test_a_broken_rule_is_seen(room: str, source: str) -> None:
    assert len(broken_rules(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("link", "from discoro import errors, messages\nfrom .errors import Timeout\nimport enum"),
        ("mesh", "from discoro import __version__"),
        ("cli", "from discoro import run\nfrom discoro.cli import banner\nimport os"),
        ("__init__", "from discoro.pool import Pool"),
        ("sockets", "import zmq\nimport time"),
        ("node", "open('file')"),
    ],
)
def test_what_is_allowed_passes(room: str, source: str) -> None:
    assert broken_rules(room, source) == []


def test_relative_imports_from_a_package_are_resolved() -> None:
    assert broken_rules("cli", "from ..node import Node\nfrom .banner import text", "discoro.cli") == []
    found = list(imports_of(ast.parse("from ..node import Node"), "discoro.cli"))
    assert found == [Import(1, "discoro.node", "Node")]


# The house as it is.


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} - {FRONT_DOOR}
    assert rooms <= set(ORDER), f"say where they stand in ORDER: {sorted(rooms - set(ORDER))}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_module_keeps_the_rules(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    broken = broken_rules(room, path.read_text(encoding="utf-8"), home_of(path))
    assert not broken, "\n".join([str(path), *broken])


def test_no_circle() -> None:
    """The order forbids circles between rooms; this also sees those between the modules of one package."""
    names = {dotted(path) for path in modules()}
    graph: dict[str, set[str]] = {}
    for path in modules():
        found = imports_of(ast.parse(path.read_text(encoding="utf-8")), home_of(path))
        reached = {name for each in found for name in (each.module, f"{each.module}.{each.name}")}
        graph[dotted(path)] = (reached & names) - {dotted(path), "discoro", "discoro.cli"}
    TopologicalSorter(graph).prepare()
