"""The ``streamqueue`` command, also as ``python -m streamqueue``."""

import sys

from .signals import take

UNTIL_TOLD = ("worker", "exporter")
"""The commands that run until they are told to stop."""


def main() -> int:
    """Run the command line; return the exit code."""
    if sys.argv[1:2] and sys.argv[1] in UNTIL_TOLD:
        take()  # first: what is loaded now takes its time, and is not to miss a signal
    from .cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
