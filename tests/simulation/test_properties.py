"""Any interleaving of what coroutines do to each other, and of what befalls their processes, keeps the promises.

PROPERTY_EXAMPLES=N in the environment tries that many, at random; without it the same 600 are tried each time."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings

from tests.simulation.programs import Program, programs
from tests.simulation.promises import broken
from tests.simulation.stage import play

MORE = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
BATCH = 600  # examples of one test: a test that takes minutes counts as hung


@pytest.mark.parametrize("batch", range(max(1, -(-MORE // BATCH))))
@settings(
    max_examples=min(MORE, BATCH) or BATCH,
    derandomize=not MORE,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(programs())
def test_any_interleaving_keeps_the_promises(batch: int, program: Program) -> None:
    found = broken(play(program))
    assert not found, "\n".join(found)
