"""Benchmarks run, with a few messages where they send thousands: their figures are complete, not exact."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PROGRAMS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/messages.py, imported and not run."""
    return imported("messages", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))  # it adds to it
    spec = importlib.util.spec_from_file_location(f"benchmark_of_{name}", PROGRAMS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_way_of_sending_is_measured_with_curve_and_open(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "SLICES", 2)
    several, alone = program.LOADS[2], program.LOADS[-1]
    few = [several._replace(ours=60, plain=60, pairs=3), alone._replace(ours=10, plain=10)]
    ratio = program.measure(few, 2, tmp_path / "figures.json")
    printed, errors = capfd.readouterr()
    found = json.loads((tmp_path / "figures.json").read_text())
    assert errors == ""
    assert list(found) == [each.name for each in few]
    for name, four in found.items():
        assert name in printed
        assert sorted(four) == ["discoro, CURVE", "discoro, open", "plain, CURVE", "plain, open"]
        assert all(each["seconds"] > 0 for rounds in four.values() for each in rounds)
        assert {len(rounds) for rounds in four.values()} == {2}
    curve, open_ = ([each["seconds"] for each in found[few[0].name][f"discoro, {kind}"]] for kind in ("CURVE", "open"))
    assert ratio == pytest.approx((open_[0] / curve[0] + open_[1] / curve[1]) / 2)


@pytest.mark.parametrize(("ratio", "status"), [(0.79, 1), (0.8, 0)])
def test_the_status_says_whether_the_promise_is_kept(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ratio: float, status: int
) -> None:
    asked = []
    monkeypatch.setattr(sys, "argv", ["messages.py", "5", "--json", "figures.json"])
    monkeypatch.setattr(program, "measure", lambda *told: asked.append(told) or ratio)
    assert program.main() == status
    assert asked == [(program.LOADS, 5, Path("figures.json"))]
    assert ("UNDER" in capsys.readouterr().out) == (status == 1)


def test_questions_behind_large_messages_are_measured_with_both_windows(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = imported("behind_bulk", monkeypatch)
    program.measure([program.WAYS[0]._replace(size=8 * program.MIB, message=4 * program.MIB, alone=10)], 1)
    printed, errors = capfd.readouterr()
    assert errors == ""
    lines = [line.split() for line in printed.splitlines()[2:]]
    assert [line[:2] for line in lines] == [["loopback", "adaptive"], ["loopback", "fixed"]]
    for line in lines:
        alone, beside, rate = float(line[2]), float(line[4]), float(line[6])
        assert 0 < alone and 0 < beside and 0 < rate


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/run.py, imported and not run."""
    return imported("run", monkeypatch)


def row_of(run: ModuleType, **more: Any) -> Any:
    row = run.Row("W1", "round trip", "us", [150.0, 120.0, 100.0], [100.0, 100.0, 50.0], "plain loop", 1.3, True)
    return row._replace(**more)


def test_a_figure_is_the_median_of_the_ratios_of_pairs(run: ModuleType) -> None:
    row = row_of(run)
    assert row.ratios == [1.5, 1.2, 2.0]
    assert (row.counts, row.verdict) == (1.5, "NO")
    assert row_of(run, aim=1.5).verdict == "yes"
    assert row_of(run, aim=1.6, less_is_better=False).verdict == "NO"
    assert row_of(run, aim=None).verdict == ""
    alone = row_of(run, theirs=[], aim=120)
    assert (alone.ratios, alone.counts, alone.verdict) == ([], 120.0, "yes")


def test_the_table_says_what_stands_beside_what_in_columns(run: ModuleType) -> None:
    rate = row_of(run, workload="W2", what="one way", unit="/s", ours=[1_234_567.0], theirs=[], aim=None)
    lines = run.table([row_of(run), rate]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "", "discoro", "beside it", "ratio", "aim", "met"]
    beside, ratio = "100 (50.0-100) us, plain loop", "1.50 (1.20-2.00)"
    assert cells[2] == ["W1", "round trip", "120 (100-150) us", beside, ratio, "<= 1.3", "NO"]
    assert cells[3] == ["W2", "one way", "1.23M/s", "", "", "", ""]


# What makes each workload small enough to be run here: it is shown that it measures what it says, not how fast anything is.
SMALL: dict[str, dict[str, Any]] = {
    "local": {"BALLS": 60, "MANY": 20, "OTHERS": 50},
    "round_trip": {"TRIPS": 5},
    "one_way": {"COUNT": 300, "PAIRS": 3},
    "remote": {"GATHERED": 30, "COUNT": 20, "PLAIN_COUNT": 50, "AT_ONCE": 5},
    "many": {"COUNT": 20, "WARM": 10, "AT_ONCE": 10},
    "bulk": {"LARGE": 3 << 20, "MANY": 3},
    "all_cores": {"ITEMS": 200, "PART": 10},
    "links": {"COUNTS": (1, 3), "IN_ONE": 2, "TRIPS": 2},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_workload_gives_its_figures(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    workload = importlib.import_module(f"workloads.{name}")
    for limit, value in SMALL[name].items():
        monkeypatch.setattr(workload, limit, value)
    rows = list(workload.rows(run.Setting(2, True, tmp_path)))
    assert capfd.readouterr().err == ""
    code = next(code for code, (module, _) in run.WORKLOADS.items() if module == name)
    assert {each.workload for each in rows} == {code}
    for row in rows:
        assert len(row.theirs) in (0, len(row.ours)) and row.what and row.unit is not None
        assert all(value > 0 for value in (*row.ours, *row.theirs)) or row.unit in ("KB", ""), row


def test_run_measures_what_it_is_told_prints_a_table_and_writes_all(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, bool]] = []

    def module(name: str) -> Any:
        def rows(setting: Any) -> Iterator[Any]:
            asked.append((name, setting.curve))
            yield row_of(run)

        return SimpleNamespace(rows=rows)

    monkeypatch.setattr(run.importlib, "import_module", module)
    monkeypatch.setattr(sys, "argv", ["run.py", "W0", "W5", "--rounds", "3", "--json", str(tmp_path / "figures.json")])
    assert run.main() == 0
    assert asked == [("workloads.local", False), ("workloads.bulk", False), ("workloads.bulk", True)]
    printed = capsys.readouterr().out
    assert printed.count("round trip") == 3 and "With CURVE" in printed and "Open" in printed
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["CURVE"][0]["ratios"] == [1.5, 1.2, 2.0] and "processors" in written["machine"]
