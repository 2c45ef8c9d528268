"""The judge of the event logs: it finds nothing in good ones, and each kind of violation in bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.event_log import EventLog, Limits, Line, judge, read

ANN, BOB = [1, 7], [2, 9]  # coroutines: birth of their process, and their id
GOOD: list[Line] = [
    ["monitors", 0.0, ANN, BOB],
    ["waits", 0.0, ANN, BOB, "result"],
    ["sent", 1.0, BOB, ANN, 0],
    ["sent", 1.0, BOB, ANN, 1],
    ["sent", 1.0, ANN, BOB, 0],
    ["received", 1.1, ANN, BOB, 0],
    ["received", 1.1, ANN, BOB, 1],
    ["received", 1.1, BOB, ANN, 0],
    ["lives", 2.0, BOB],
    ["ended", 2.0, BOB, "normal"],
    ["noticed", 2.1, ANN, BOB, "normal"],
    ["answered", 2.1, ANN, BOB, "result", "value"],
    ["lives", 3.0, ANN],
    ["lost", 9.0, 1, 2],
    ["counted", 9.0, 1, 0],
    ["counted", 9.0, 2, 0],
    ["over", 50.0],
]
CUT: list[Line] = [["apart", 0.5, [1, 2], 31.0], ["lost", 19.0, 1, 2], ["lost", 19.0, 2, 1]]


def but(old: int, *new: Line) -> list[Line]:
    """The good log with other lines in place of one."""
    return sorted([*GOOD[:old], *GOOD[old + 1 :], *new], key=lambda line: float(line[1]))


def and_also(*new: Line) -> list[Line]:
    return sorted([*GOOD, *new], key=lambda line: float(line[1]))


def test_a_good_log_has_no_fault_and_its_figures() -> None:
    verdict = judge(GOOD)
    assert not verdict.broken
    assert verdict.figures["sent"] == verdict.figures["received"] == 3
    assert verdict.figures["monitors"] == verdict.figures["links lost"] == 1
    assert "sent 3, received 3" in str(verdict)


@pytest.mark.parametrize(
    ("what", "log"),
    [
        pytest.param("duplicated", and_also(["received", 1.2, ANN, BOB, 1]), id="twice"),
        pytest.param("out of order", but(5, ["received", 1.15, ANN, BOB, 0]), id="the second before the first"),
        pytest.param("out of order", but(6, ["received", 2.5, ANN, BOB, 1]), id="after the notice of its sender"),
        pytest.param("lost while both lived", but(6), id="the last never came"),
        pytest.param("lost while both lived", but(5), id="a gap"),
        pytest.param(
            "lost and not counted",
            [*CUT, ["sent", 5.0, BOB, ANN, 0], ["lives", 40.0, ANN], ["counted", 45.0, 2, 0]],
            id="over a link that ended",
        ),
        pytest.param("strays", and_also(["received", 1.3, BOB, ANN, 99]), id="what nobody sent"),
        pytest.param("notices missing", but(10), id="never told"),
        pytest.param("notices missing", but(10, ["noticed", 12.1, ANN, BOB, "normal"]), id="told too late"),
        pytest.param("notices missing", [["monitors", 0.0, ANN, BOB], ["died", 1.0, 2, "killed"]], id="of a killed process"),
        pytest.param("notices doubled or false", and_also(["noticed", 2.2, ANN, BOB, "normal"]), id="told twice"),
        pytest.param("notices doubled or false", and_also(["noticed", 1.0, BOB, ANN, "peer lost"]), id="it lives"),
        pytest.param("left waiting", but(11), id="never answered"),
        pytest.param("left waiting", but(11, ["answered", 12.1, ANN, BOB, "result", "value"]), id="answered too late"),
        pytest.param("left waiting", [["waits", 0.0, ANN, BOB, "run"], ["died", 1.0, 2, "killed"]], id="for a killed process"),
        pytest.param("left over", and_also(["left", 40.0, 4711, "worker"]), id="a process"),
    ],
)
def test_each_violation_is_found(what: str, log: list[Line]) -> None:
    verdict = judge(sorted(log, key=lambda line: float(line[1])))
    assert verdict.figures[what] == sum(text.startswith(f"{what}: ") for text in verdict.broken) > 0


def test_who_is_apart_or_stopped_is_told_later() -> None:
    watching: list[Line] = [["monitors", 0.0, ANN, BOB], ["died", 1.0, 2, "killed"], ["noticed", 20.0, ANN, BOB, "peer lost"]]
    assert judge(watching).figures["notices missing"] == 1
    assert not judge([CUT[0], *watching]).broken
    assert not judge([["stopped", 0.5, 1, 18.0], *watching]).broken
    assert judge(watching, Limits(crash=30.0)).broken == []


def test_a_loss_is_honest_only_where_something_kept_them_apart() -> None:
    lost: list[Line] = [["monitors", 0.0, ANN, BOB], ["noticed", 19.0, ANN, BOB, "peer lost"]]
    assert judge(lost).figures["notices doubled or false"] == 1
    assert not judge([lost[0], CUT[0], lost[1]]).broken
    assert judge([lost[0], CUT[0], ["noticed", 19.0, ANN, BOB, "normal"]]).figures["notices doubled or false"] == 1


def test_who_dies_before_it_would_be_told_misses_nothing() -> None:
    assert not judge([["monitors", 0.0, ANN, BOB], ["died", 1.0, 2, "killed"], ["died", 1.5, 1, "killed"]]).broken


def test_what_several_processes_wrote_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    one, other = EventLog(tmp_path / "one.jsonl"), EventLog(tmp_path / "other.jsonl")
    other.add("sent", BOB, ANN, 0)
    one.add("received", ANN, BOB, 0)
    other.add("over")
    for each in (one, other):
        each.close()
    assert [line[0] for line in read(tmp_path)] == ["sent", "received", "over"]
    with pytest.raises(AssertionError):
        EventLog(tmp_path / "third.jsonl").add("sent", BOB)
