"""How fast discoro starts, and what a waiting worker costs.

Prints each figure, beside its limit where one is promised; exit status 1 where a promise is not kept. Everything runs on
loopback, under a key and in a folder made for the run. Linux only: it reads /proc.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = 10  # fresh interpreters, of which the median counts
RUNS = 5  # of the first program
SLOTS = 4
WARM_UP = 3  # seconds for the workers of all slots to start
MB = 1_000_000

IMPORT = "import time; start = time.perf_counter(); import discoro; print(time.perf_counter() - start)"

# The first program of the README, as it is, but for asking the node of this run only.
FIRST = f"""
import functools, runpy, sys
import discoro
discoro.run = functools.partial(discoro.run, mdns=False, peers=[sys.argv[1]])
runpy.run_path({str(ROOT / "examples" / "first.py")!r}, run_name="__main__")
"""

# One setup at each slot: each takes one of the workers that were warm before.
SETUPS = """
import sys, time
import discoro

async def nothing():
    pass

async def main():
    computation = discoro.Computation(nothing)
    for server in await discoro.servers(timeout=1):
        start = time.perf_counter()
        await computation.setup(server)
        print(time.perf_counter() - start)
        await computation.close(server)

discoro.run(main, mdns=False, peers=[sys.argv[1]])
"""


def import_time() -> float:
    """Seconds that `import discoro` takes in a fresh interpreter."""
    return statistics.median(float(python("-c", IMPORT)) for _ in range(IMPORTS))


def import_parts() -> list[tuple[str, float]]:
    """Seconds of it by top-level package, each without what it imports; the profiler makes all of them longer."""
    bare = own_times("")
    parts: Counter[str] = Counter()
    for module, microseconds in own_times("import discoro").items():
        if module not in bare:
            parts[module.partition(".")[0]] += microseconds
    return [(package, microseconds / 1e6) for package, microseconds in parts.most_common()]


def own_times(program: str) -> dict[str, int]:
    """The microseconds that each module which a program imports takes by itself, from -X importtime."""
    command = [sys.executable, "-X", "importtime", "-c", program]
    written = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    rows = re.findall(r"(?m)^import time: *(\d+) \| *\d+ \| *(\S+)$", written)
    return {module: int(microseconds) for microseconds, module in rows}


def first_result(address: str) -> float:
    """Seconds from the command to the line that the README's first program prints; a tenth of one it sleeps."""
    start = time.perf_counter()
    command = [sys.executable, "-c", FIRST, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        took = time.perf_counter() - start
    if not line.endswith(" 49\n"):
        sys.exit(f"the first program printed {line!r}")
    return took


def setup_time(address: str) -> float:
    """Seconds that setup takes where a worker waits."""
    return statistics.median(float(line) for line in python("-c", SETUPS, address).split())


def resident(pid: int) -> int:
    """Bytes of memory that a process has resident, those it shares with others too."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def python(*arguments: str) -> str:
    """What a Python with these arguments prints."""
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return done.stdout


@contextmanager
def node() -> Iterator[tuple[str, int]]:
    """A node on loopback: its address and its pid."""
    command = [sys.executable, "-m", "discoro", "--json-ready", "-c", str(SLOTS), "-i", "127.0.0.1", "-p", "0", "--no-mdns"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield ready["addresses"][0], process.pid
        finally:
            process.terminate()


def measure() -> Iterator[tuple[str, float, str, float | None]]:
    """What was measured, its value, the unit, and the limit where one is promised."""
    yield "import discoro", import_time() * 1e3, "ms", 150
    with node() as (address, pid):
        time.sleep(WARM_UP)
        yield "a warm worker, resident", max(map(resident, children(pid))) / MB, "MB", 40
        yield "its node, resident", resident(pid) / MB, "MB", None
        yield "command to first result", statistics.median(first_result(address) for _ in range(RUNS)), "s", 2
        time.sleep(WARM_UP)
        yield "setup with a warm worker", setup_time(address) * 1e3, "ms", None


def main() -> int:
    """Print every figure; 1 where one is over its limit."""
    print(f"CPython {platform.python_version()}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}")
    # Nothing measured compiles: an installed discoro has its bytecode on disk, and who compiles keeps some of the memory.
    python("-c", "import dill, discoro.cli.node, discoro.cli.worker")
    over = 0
    for what, value, unit, limit in measure():
        verdict = "" if limit is None else f"limit {limit:g}{', OVER' if value > limit else ''}"
        over += "OVER" in verdict
        print(f"  {what:26}{value:8.2f} {unit:3} {verdict}".rstrip(), flush=True)
    longest = [f"{package} {seconds * 1e3:.1f}" for package, seconds in import_parts()[:8]]
    print(f"  the import by package, under a profiler (ms): {', '.join(longest)}")
    return 1 if over else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="discoro-benchmark-") as directory:
        for name in ("DISCORO_PEERS", "PYTHONDONTWRITEBYTECODE"):
            os.environ.pop(name, None)
        os.environ |= {
            "PYTHONPATH": str(ROOT),
            "PYTHONPYCACHEPREFIX": f"{directory}/pycache",
            "DISCORO_KEY_FILE": f"{directory}/cluster.key",
            "DISCORO_DEST_PATH": f"{directory}/files",
        }
        sys.exit(main())
