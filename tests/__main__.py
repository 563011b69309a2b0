"""``python -m tests``: run the tests, four at a time, and what fails among them once more alone.

Those marked slow are left to ``make faults``.

Real servers and processes share the machine here, and a bound that leaves ten times the usual time
is met with once in some thousand tests. So up to eight that failed are run again, twice each, with
nothing beside them. A test that fails then has failed; one that passes is named at the end,
for whoever wants to know which of them lean on the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAST_FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
TESTS_FAILED = 1
"""pytest's exit code; from 2 on it says that the run itself was broken or interrupted."""
MOST = 8
"""More than this is no accident of the clock."""


def main() -> int:
    """Run the tests; return the exit code."""
    LAST_FAILED.unlink(missing_ok=True)
    ended = pytest("-n", "4", "--dist", "loadfile", "-m", "not slow", "--durations", "30")
    failed = sorted(json.loads(LAST_FAILED.read_text())) if LAST_FAILED.exists() else []
    if ended != TESTS_FAILED or not 0 < len(failed) <= MOST:
        return ended
    for _ in range(2):
        say(f"Failed beside others, run again alone: {', '.join(failed)}")
        if ended := pytest(*failed):
            return ended
    say(f"Passed alone, twice, and not beside others: {', '.join(failed)}")
    return 0


def pytest(*arguments: str) -> int:
    # Compiled once and not by each of the processes, of which the tests start some hundreds.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def say(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
