"""``python -m drills [NAME ...] [--long] [--json]``: run drills, print the account.

Progress goes to standard error, the table (or JSON) to standard output. Exits 1 when a law was
broken, when a process ended that nobody had killed, and when a drill hit too little to prove
anything; 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from fnmatch import fnmatch

from drills.drill import Arena, Drill, Scale, perform
from drills.report import Screen, footnotes, table

MODULES = (
    "kills",
    "ticks",
    "answers",
    "topics",
    "keys",
    "dependencies",
    "steps",
    "limits",
    "poison",
    "hells",
    "foreigners",
    "clocks",
    "cancellations",
    "wakeups",
    "dispatching",
    "servers",
    "wires",
    "held",
    "streams",
    "gaps",
    "long_outages",
    "soak",
)
"""Where the drills are; each module names its own in ``DRILLS``."""


def all_drills() -> list[Drill]:
    """Return all drills, in the order in which they are run."""
    modules = [importlib.import_module(f"drills.{name}") for name in MODULES]
    return [drill for module in modules for drill in module.DRILLS]


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    drills = all_drills()
    names = "\n".join(f"  {drill.name:22} {drill.about}" for drill in drills)
    parser = argparse.ArgumentParser(
        prog="python -m drills",
        description="Break things on real servers while jobs flow, and account for every job.",
        epilog=f"drills:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="drills, or patterns; default all")
    parser.add_argument("--long", action="store_true", help="hit much more, in much more time")
    parser.add_argument("--short", action="store_true", help="hit as little as the tests do")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    wanted = arguments.names or ["*"]
    chosen = [drill for drill in drills if any(fnmatch(drill.name, name) for name in wanted)]
    for name in wanted:
        if not any(fnmatch(drill.name, name) for drill in drills):
            parser.error(f"there is no drill {name!r}")
    scale = Scale.LONG if arguments.long else Scale.DEFAULT
    if arguments.short:
        scale = Scale.SHORT
    screen, reports = Screen(), []
    with Arena() as arena:
        for drill in chosen:
            reports.append(perform(drill, arena, scale, screen.say))
            screen.done(reports[-1])
    if arguments.json:
        sys.stdout.write(json.dumps([report.as_json() for report in reports], indent=2) + "\n")
    else:
        sys.stdout.write(table(reports) + "\n")
        for report in reports:
            for note in footnotes(report):
                sys.stdout.write(f"{report.drill}: {note}\n")
    for report in reports:
        for problem in report.problems():
            sys.stderr.write(f"{report.drill}: {problem}\n")
        if report.kept is not None:
            sys.stderr.write(f"{report.drill}: the histories are in {report.kept}\n")
    return 0 if all(report.passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
