"""The simulation has teeth: whatever is broken in discoro on purpose, some seed finds it."""

from __future__ import annotations

import itertools

import pytest

from tests.simulation.mutants import EQUIVALENT, MUTANTS, Mutant
from tests.simulation.world import simulate

SEEDS = 200  # within which each is to be found
HARMLESS = 40  # seeds with which one that makes no difference is tried


CRASHES = ("TypeError(", "AttributeError(", "NameError(")  # of a mutant that no longer fits what it replaces: no finding


def found_by(mutant: Mutant, seeds: int = SEEDS) -> int | None:
    """The first seed that finds it: its own, or one of the first."""
    with mutant.alive():
        for seed in itertools.chain([mutant.seed], range(seeds)):
            violations = simulate(seed).violations
            assert not any(crash in each for crash in CRASHES for each in violations), violations
            if any(each.startswith(mutant.promise) for each in violations):
                return seed
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_what_is_broken_in_discoro_is_found(mutant: Mutant) -> None:
    assert not simulate(mutant.seed).violations
    assert found_by(mutant) is not None


@pytest.mark.parametrize(("mutant", "why"), EQUIVALENT, ids=lambda each: getattr(each, "what", ""))
def test_what_makes_no_difference_is_not_found(mutant: Mutant, why: str) -> None:
    assert why
    assert found_by(mutant, HARMLESS) is None
