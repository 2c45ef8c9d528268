"""W7: from starting a node to the first result of a program that was started with it; what importing costs, and a warm worker.

Across two network namespaces, where mDNS finds the node, only where namespaces can be made (root, or a kernel that lets users).
Linux only: it reads /proc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from figures import Row

from workloads import Setting, resident

ROOT = Path(__file__).resolve().parent.parent.parent
IMPORT = "import time; start = time.perf_counter(); import discoro; print(time.perf_counter() - start)"
WARM_UP = 1.0  # seconds until the workers of all slots have surely started

# The first program of a user: a square, computed elsewhere. Its options come as JSON.
FIRST = """
import json, sys
import discoro

def square(number):
    yield
    return number * number

def client(coro):
    server = yield coro.locate("discoro_server", timeout=20)
    computation = discoro.Computation(square)
    yield computation.setup(server)
    print((yield (yield computation.run(server, 7)).result()), flush=True)
    yield computation.close(server)

discoro.run(client, **json.loads(sys.argv[1]))
"""

# One setup at each slot: each takes a worker that waits. Prints the milliseconds of each.
SETUPS = """
import json, sys, time
import discoro

async def nothing():
    pass

async def main():
    computation = discoro.Computation(nothing)
    for server in await discoro.servers(timeout=1):
        start = time.perf_counter()
        await computation.setup(server)
        print(1e3 * (time.perf_counter() - start))
        await computation.close(server)

discoro.run(main, **json.loads(sys.argv[1]))
"""

Start = Callable[[str, list[str]], "subprocess.Popen[str]"]  # a program on a machine of that name


def here(_: str, command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def first_result(node: list[str], options: dict[str, object], start: Start = here) -> float:
    """Seconds from the start of both programs to the first result."""
    began = time.perf_counter()
    with start("a", [sys.executable, "-m", "discoro", "-c", "1", *node]) as server:
        with start("b", [sys.executable, "-c", FIRST, json.dumps(options)]) as client:
            assert client.stdout is not None
            said = client.stdout.readline()
            took = time.perf_counter() - began
        server.terminate()
    if said != "49\n":
        raise RuntimeError(f"the first program printed {said!r}")
    return took


def import_ms() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORT], stdout=subprocess.PIPE, text=True, check=True)
    return 1e3 * float(done.stdout)


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def warm(options: list[str], client: dict[str, object]) -> tuple[float, list[float]]:
    """Megabytes of a worker that waits, and milliseconds of setups that take one."""
    command = [sys.executable, "-m", "discoro", "-c", "4", "-i", "127.0.0.1", "--no-mdns", "--json-ready", *options]
    with here("", command) as node:
        assert node.stdout is not None
        ready = json.loads(node.stdout.readline())
        time.sleep(WARM_UP)
        size = max(map(resident, children(node.pid))) / 1e6
        command = [sys.executable, "-c", SETUPS, json.dumps({**client, "peers": ready["addresses"]})]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        node.terminate()
    return size, [float(line) for line in done.stdout.split()]


def across(security: list[str], client: dict[str, object], rounds: int) -> Iterator[Row]:
    """In two namespaces."""
    sys.path.insert(0, str(ROOT))
    try:
        from tests.support.netns import Lan, best_way
    except ImportError:  # pytest is what it needs
        return
    if best_way() is None:
        return
    with Lan(["a", "b"]) as lan:

        def start(host: str, command: list[str]) -> subprocess.Popen[str]:
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            return lan.popen(host, command, **options)

        took = [first_result(security, client, start) for _ in range(rounds)]
    yield Row("W7", "the same between two machines", "s", took, aim=2.5, less_is_better=True)


def rows(setting: Setting) -> Iterator[Row]:
    key = str(setting.folder / "key")
    security = ["--key-file", key] if setting.curve else ["--open"]
    security += ["--dest-path", str(setting.folder / "received")]
    client: dict[str, object] = {"key_file": key} if setting.curve else {"open": True}
    local = ["-i", "127.0.0.1", "--no-mdns", *security]
    # Nothing measured compiles: an installed discoro has its bytecode on disk.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ |= {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(setting.folder / "pycache")}
    subprocess.run([sys.executable, "-c", "import dill, discoro.cli.node, discoro.cli.worker"], check=True)
    first = [first_result(local, client) for _ in range(1 + setting.rounds)][1:]
    yield Row("W7", "a node's start to the first result", "s", first, aim=1.0, less_is_better=True)
    yield from across(security, client, setting.rounds)
    yield Row("W7", "import discoro", "ms", [import_ms() for _ in range(2 * setting.rounds)], aim=100, less_is_better=True)
    found = [warm(security, {**client, "mdns": False}) for _ in range(setting.rounds)]
    yield Row("W7", "a worker that waits", "MB", [size for size, _ in found], aim=35, less_is_better=True)
    took = [each for _, several in found for each in several]
    yield Row("W7", "setup that takes it", "ms", took, aim=10, less_is_better=True)
