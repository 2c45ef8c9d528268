"""python -m tests.soak load --minutes 15 | faults --rounds 200; status 1 where a promise did not hold."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import conftest  # noqa: F401  (its environment: nothing of the user's is read or touched)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Faults for as long as you like.")
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser("load", help="a mixed load under faults, and whether memory stays flat")
    load.add_argument("--minutes", type=float, default=15)
    faults = commands.add_parser("faults", help="processes are killed and stopped at random moments")
    faults.add_argument("--rounds", type=int, default=200)
    for each in (load, faults):
        each.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31), help="to repeat what was drawn")
        each.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args(arguments)
    if given.command == "load":
        from tests.soak.load import run as run_load

        return run_load(given.minutes, given.seed, given.json)
    from tests.soak.faults import run as run_faults

    return run_faults(given.rounds, given.seed, given.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
