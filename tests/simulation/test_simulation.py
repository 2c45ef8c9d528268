"""Some hundred seeds of the simulation; `python -m tests.simulation` runs any number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.world import simulate

ROOT = Path(__file__).resolve().parents[2]
SEEDS, TENTHS = 400, 10  # in so many parts, so that one that fails is soon found
KNOWN = [int(line.split()[0]) for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines() if line[:1].isdigit()]


@pytest.mark.parametrize("part", range(TENTHS))
def test_no_seed_breaks_a_promise(part: int) -> None:
    for seed in range(part, SEEDS, TENTHS):
        report = simulate(seed)
        assert not report.violations, f"seed {seed}: {report.program}\n" + "\n".join(report.violations)


@pytest.mark.parametrize("seed", KNOWN)
def test_what_once_broke_one_does_so_no_more(seed: int) -> None:
    assert not simulate(seed).violations


@pytest.mark.parametrize("processes", [20, 50])
def test_many_processes(processes: int) -> None:
    report = simulate(1, processes)
    assert report.program.processes == processes
    assert not report.violations, "\n".join(report.violations)


def test_the_same_seed_gives_the_same_trace_also_in_another_process() -> None:
    seeds = range(20, 30)
    here = [simulate(seed).trace_digest for seed in seeds]
    assert here == [simulate(seed).trace_digest for seed in seeds]
    assert len(set(here)) == len(here)
    source = f"from tests.simulation.world import simulate; print(*[simulate(n).trace_digest for n in {list(seeds)}])"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", source], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == here


def test_the_command_prints_its_figures_and_what_failed() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "30", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 seeds from 0 in " in done.stdout and ": 0 failed" in done.stdout
    assert "Received " in done.stdout
