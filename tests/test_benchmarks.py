"""Benchmarks run, with a few messages where they send thousands: their figures are complete, not exact."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

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
