"""discoro: the command for what is done once, on one machine, by a person: keys, for now.

Exit status: 0, 2 for wrong usage, 78 for a key or a file that cannot be used (sysexits.h), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from discoro import __version__
from discoro.cli import keys
from discoro.errors import ConfigError

CONFIG = 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; the exit status."""
    options = parser().parse_args(arguments)
    try:
        options.do(options)
    except ConfigError as error:
        keys.say(str(error))
        return CONFIG
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the prompt's line ends
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="discoro",
        description="Keys of a discoro cluster: whoever has the cluster key can run code as the user of every node.",
        epilog="A node is started by discoro-node. `discoro join --help` and `discoro key --help` tell more.",
        allow_abbrev=False,
    )
    p.add_argument("--version", action="version", version=f"discoro {__version__}")
    commands = p.add_subparsers(required=True, metavar="join|key")
    keys.add_join(commands)
    keys.add_key(commands)
    return p


if __name__ == "__main__":
    sys.exit(main())
