"""The ``streamqueue`` command, also as ``python -m streamqueue``."""

import sys

# In full: a child process of a handler loads this file by its path, where it has no package.
from streamqueue.signals import take

UNTIL_TOLD = ("worker", "exporter")
"""The commands that run until they are told to stop."""


def main() -> int:
    """Run the command line; return the exit code."""
    if sys.argv[1:2] and sys.argv[1] in UNTIL_TOLD:
        take()  # first: what is loaded now takes its time, and is not to miss a signal
    from streamqueue.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
