"""`python -m discoro`: the same as discoro-node."""

import sys

from discoro.cli.node import main

if __name__ == "__main__":
    sys.exit(main())
