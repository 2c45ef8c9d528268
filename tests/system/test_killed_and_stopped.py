"""Worker, node and client are killed and stopped at random moments.

Ten rounds here, any number by `python -m tests.soak faults`; see `tests/support/killing.py`.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.soak.faults import figures, play

pytestmark = [pytest.mark.system, pytest.mark.slow]

ROUNDS = 5


@pytest.mark.parametrize("half", [1, 2])  # of the ten: one test is to end within the time that any may take
def test_whoever_is_killed_or_stopped_everybody_is_told_and_nothing_is_left(tmp_path: Path, half: int) -> None:
    seed = secrets.randbelow(1 << 31)
    print(f"half {half} with seed {seed}: python -m tests.soak faults --rounds {ROUNDS} --seed {seed}")
    played = play(tmp_path, seed, ROUNDS)
    sums = figures(played)
    print(", ".join(f"{what} {count:,}" for what, count in sums.items()))
    assert not [text for each in played for text in each.verdict.broken]
    assert len(played) == ROUNDS and sums["monitors"] >= ROUNDS
