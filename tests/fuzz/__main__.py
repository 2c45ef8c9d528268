"""Runs fuzz targets in processes of their own, two at a time, and prints a line for each; status 1 where something was found.

python -m tests.fuzz --inputs 1000000             all targets, so many inputs in all, most of them for the frames
python -m tests.fuzz --seconds 60 frames links    two of them, each for a minute
python -m tests.fuzz --again FILE                 one input that was saved, with the traceback
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / ".discoro" / "fuzz"  # where inputs that are a finding stay
AT_A_TIME = 2
GROWTH = 32 << 20  # bytes over the second half: more is a leak; libFuzzer itself keeps the inputs that reached something new
SHARES = {"frames": 60, "first": 15, "values": 12, "lists": 6, "pieces": 4, "payloads": 1.5, "links": 1, "requests": 0.5}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Coverage-guided fuzzing of every decoder.")
    parser.add_argument("--inputs", type=int, help="how many in all targets together")
    parser.add_argument("--seconds", type=float, help="how long each target takes")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31), help="of the mutations, to repeat a run")
    parser.add_argument("--again", type=Path, help="an input that was saved")
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(SHARES)}; default: all")
    given = parser.parse_args(arguments)
    unknown = set(given.targets) - set(SHARES)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: `pip install -e .[test,fuzz]`")
    if given.again:
        return again(given.again)
    if (given.inputs is None) == (given.seconds is None):
        parser.error("say --inputs or --seconds")
    return fuzz(given.targets or list(SHARES), given.inputs, given.seconds, given.seed)


def fuzz(targets: Sequence[str], inputs: int | None, seconds: float | None, seed: int) -> int:
    whole = sum(SHARES[name] for name in targets)
    print(f"seed {seed}; findings go to {FOUND}")
    print(f"{'target':10} {'inputs':>10} {'inputs/s':>9} {'slowest':>9} {'peak':>9} {'growth':>9}  findings", flush=True)

    def one(name: str) -> dict[str, Any]:
        share = math.inf if inputs is None else math.ceil(inputs * SHARES[name] / whole)
        told = run(name, share, math.inf if seconds is None else seconds, seed)
        print(line(name, told), flush=True)
        return told

    began = time.monotonic()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        reports = list(pool.map(one, sorted(targets, key=lambda name: -SHARES[name])))
    count = sum(told["inputs"] for told in reports)
    findings = [text for told in reports for text in told["findings"].items()]
    for place, path in findings:
        print(f"{place}: {path}")
    print(f"{count:,} inputs in {time.monotonic() - began:.0f} s, {len(findings)} findings")
    return 1 if findings else 0


def run(name: str, inputs: float, seconds: float, seed: int) -> dict[str, Any]:
    """What one target reported; that it ended by itself, or grew, is a finding too."""
    directory = FOUND / name
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"discoro-fuzz-{name}-") as scratch:
        report, corpus, log = Path(scratch, "report"), Path(scratch, "corpus"), directory / "log.txt"
        corpus.mkdir()
        plan = {"target": name, "inputs": inputs, "seconds": seconds, "seed": seed, "directory": str(directory)}
        plan |= {"report": str(report), "corpus": str(corpus)}
        command = [sys.executable, "-m", "tests.fuzz.target", json.dumps(plan)]
        with open(log, "wb") as output:
            done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
        told: dict[str, Any] = {"inputs": 0, "seconds": 1.0, "slowest": 0.0, "peak": 0, "growth": 0, "findings": {}}
        if report.exists():
            told = json.loads(report.read_text())
        else:
            told["findings"][f"{name} ended by itself with {done.returncode}"] = str(log)
    if told["growth"] > GROWTH:
        told["findings"][f"{name} grew by {told['growth'] >> 20} MiB over the second half"] = str(log)
    return told


def line(name: str, told: dict[str, Any]) -> str:
    rate, slowest = told["inputs"] / told["seconds"], f"{1000 * told['slowest']:.1f} ms"
    peak, growth = (f"{told[what] / (1 << 20):.1f} MiB" for what in ("peak", "growth"))
    return f"{name:10} {told['inputs']:10,} {rate:9,.0f} {slowest:>9} {peak:>9} {growth:>9}  {len(told['findings'])}"


def again(path: Path) -> int:
    """Read one input that was saved, by the target whose directory it lies in."""
    from tests.fuzz.target import GROUPS, decoders
    from tests.support.mutations import apart

    data, by_name = path.read_bytes(), {each.name: each for each in decoders.ALL}
    names = GROUPS[path.resolve().parent.name]
    decoder = by_name[names[data[0] % len(names)]] if data else by_name[names[0]]
    began = time.perf_counter()
    try:
        with decoders.guard():
            print(f"{decoder.name}: {decoder.decode(apart(data[1:]))!r:.1000}")
    except decoder.errors as error:
        print(f"{decoder.name}: {type(error).__name__}: {error}")
    print(f"{1000 * (time.perf_counter() - began):.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
