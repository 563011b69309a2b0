"""``python -m tests.coverage [TEST ...]``: run the tests, and say which of our lines they reach.

The processes that the tests start are measured too, except those that are killed: these write
nothing down. Ends with 1 if a test failed, or less was reached than `GOALS` says. With tests named,
the goals are only shown.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOALS = {"streamqueue/*": 95, "streamqueue/protocol/*": 100}
"""Of the lines and branches of these files so many in a hundred."""
TESTS = ("-n", "3", "--dist", "loadfile", "-m", "not slow")
SLOW_TESTS = ("-m", "slow", "tests/cli/test_bench.py", "tests/cli/test_top.py")
"""Those alone that reach what no other test does."""


def main() -> int:
    """Run the tests and print the tables; return the exit code."""
    named = sys.argv[1:]
    coverage("erase")
    runs = [named] if named else [TESTS, SLOW_TESTS]
    codes = [coverage("run", "-m", "pytest", "-q", *tests) for tests in runs]
    coverage("combine", "--quiet")
    for files, goal in GOALS.items():
        lowest = [] if named else ["--fail-under", str(goal)]
        codes.append(coverage("report", "--skip-covered", "--include", files, *lowest))
        sys.stdout.write(f"{files}: the goal is {goal} %\n\n")
        sys.stdout.flush()
    return int(any(codes))


def coverage(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main())
