"""Any interleaving of what coroutines do to each other, and of what befalls their processes, keeps the promises.

PROPERTY_EXAMPLES=N in the environment tries that many, at random; without it the same 1,000 are tried each time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings

from tests.support.programs import Program, programs
from tests.support.promises import broken
from tests.support.stage import play

MORE = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
EXAMPLES = MORE or 1000


@settings(
    max_examples=EXAMPLES,
    derandomize=not MORE,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(programs())
def test_any_interleaving_keeps_the_promises(program: Program) -> None:
    history = play(program)
    assert not broken(history), "\n".join(broken(history))
