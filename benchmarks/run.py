"""All that is promised of discoro's speed, measured on this machine: python benchmarks/run.py

Each workload does the same by discoro and by what it is held against, in turn, most by a plain loop of pyzmq (plain.py); the
ratio of each such pair is what counts, as machines are noisy and differ. Prints a table, and writes every round to a file. The
exit status says nothing about aims: a slow machine is no error.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCHMARKS.parent), str(BENCHMARKS)]

import zmq  # noqa: E402
from figures import Row, cells, plain_values, table  # noqa: E402
from workloads import Setting  # noqa: E402

import discoro  # noqa: E402

WORKLOADS = {
    "W0": ("local", "two coroutines of one process"),
    "W1": ("round_trip", "a message there and back"),
    "W2": ("one_way", "messages one way"),
    "W3": ("remote", "coroutines elsewhere that do nothing"),
    "W4": ("many", "ten thousand coroutines elsewhere"),
    "W5": ("bulk", "large messages"),
    "W6": ("all_cores", "a function on all cores"),
    "W7": ("first_result", "from start to first result"),
    "W8": ("links", "many links"),
}
WITHOUT_NETWORK = ("W0",)
ROUNDS = 5


def machine() -> str:
    """What the figures are of."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = f"CPython {platform.python_version()}, {cores} processors, {platform.system()} {platform.machine()}"
    return f"{about}, libzmq {zmq.zmq_version()}, discoro {discoro.__version__}, {datetime.date.today()}"


def measured(names: Sequence[str], kinds: Sequence[str], rounds: int, folder: Path) -> Iterator[tuple[str, Row]]:
    """Each figure, and of which kind of connection; said on standard error as it comes."""
    for kind in kinds:
        for name in names:
            if name in WITHOUT_NETWORK and kind != kinds[0]:
                continue
            workload = importlib.import_module(f"workloads.{WORKLOADS[name][0]}")
            for row in workload.rows(Setting(rounds, kind == "CURVE", folder)):
                print(f"{kind}: {', '.join(filter(None, cells(row)))}", file=sys.stderr, flush=True)
                yield kind, row


def arguments() -> argparse.Namespace:
    listed = "; ".join(f"{name} {what}" for name, (_, what) in WORKLOADS.items())
    parser = argparse.ArgumentParser(description="Measure discoro on this machine.", epilog=listed)
    parser.add_argument("workloads", nargs="*", metavar="W", choices=[[], *WORKLOADS], help="W0 to W8 (default: all)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each, that count (default: %(default)s)")
    parser.add_argument("--only", choices=("CURVE", "open"), help="one kind of connection (default: both)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what each round came to")
    return parser.parse_args()


def main() -> int:
    told = arguments()
    kinds = [told.only] if told.only else ["open", "CURVE"]
    memory = Path("/dev/shm")  # keys and files lie there: the disk is not what is measured
    folder = Path(tempfile.mkdtemp(prefix="discoro-benchmark-", dir=memory if memory.is_dir() else None))
    found: dict[str, list[Row]] = {kind: [] for kind in kinds}
    try:
        for kind, row in measured(told.workloads or list(WORKLOADS), kinds, told.rounds, folder):
            found[kind].append(row)
    finally:
        shutil.rmtree(folder)
        print(machine())
        for kind, rows in found.items():
            print(f"\n{'With CURVE' if kind == 'CURVE' else 'Open'}\n\n{table(rows)}")
        if told.json is not None:
            figures = {kind: plain_values(rows) for kind, rows in found.items()}
            told.json.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
