"""``python -m drills.planted [NAME ...] [--json]``: plant faults, and see that tests notice.

A test proves nothing before it has failed. So each fault of this folder is planted in a copy of
the code, and the one test that must catch it is run there. First all of these tests are run on the
code as it is, and must pass.

Progress goes to standard error, the members (or JSON) to standard output. Exits 1 when a fault was
not caught, 2 on wrong usage, when the code has moved on so that a fault must be written anew, and
when the tests fail already without a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from pymongo import MongoClient

from drills.planted import FAULTS
from drills.planted.fault import PlantedFault
from streamqueue.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
COPIED = ("deploy", "drills", "streamqueue", "tests", "pyproject.toml")
LONGEST_TEST = 90.0
"""Seconds. A test that a fault lets hang has not caught it: nothing would say so."""

TESTS_FAILED = 1
"""pytest's exit code; from 2 on it says that there was nothing fit to run."""


@dataclass(frozen=True)
class Finding:
    """What came of a fault.

    Attributes:
        by: the test that failed; without one, what happened instead.
        because: what the test said.
        seconds: how long its test took to say so.
    """

    fault: str
    law: int
    caught: bool
    by: str
    because: str
    seconds: float


class Trials:
    """Runs tests on copies of the code, all on one server."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def passes(self, selections: Sequence[str]) -> bool:
        """Whether these tests pass on the code as it is; shows what pytest says if they do not."""
        with tempfile.TemporaryDirectory() as folder:
            ended = self._test(copy_of_the_code(Path(folder)), selections, limit=None)
        if ended.returncode:
            print(ended.stdout, file=sys.stderr)
        return not ended.returncode

    def try_fault(self, fault: PlantedFault) -> Finding:
        """Plant a fault and run its test."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            code = copy_of_the_code(Path(folder))
            fault.plant(code / "streamqueue")
            try:
                ended = self._test(code, [fault.caught_by], "-x", limit=LONGEST_TEST)
            except subprocess.TimeoutExpired:
                caught, by, because = False, "its test hangs", ""
            else:
                caught, by, because = judge(ended.returncode, ended.stdout)
        seconds = round(time.monotonic() - started, 1)
        return Finding(fault.name, fault.law, caught, by, because, seconds)

    def _test(
        self, code: Path, selections: Sequence[str], *options: str, limit: float | None
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                    *("-p", "no:xdist", "--tb=line", *options, *selections),
                ],
                cwd=code,
                env={
                    **os.environ,
                    "PYTHONPATH": str(code),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "COLUMNS": "200",  # pytest cuts its summary to the width of the terminal
                    "STREAMQUEUE_TEST_URI": self._uri,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=limit,
            )
        finally:
            with MongoClient(self._uri) as client:  # a test that was killed may have left it on
                client.admin.command("configureFailPoint", "failCommand", mode="off")


def copy_of_the_code(folder: Path) -> Path:
    """Copy what tests need to run; return where it is."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def judge(exit_code: int, output: str) -> tuple[bool, str, str]:
    """Say from pytest's end whether a test failed, which, and why."""
    failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
    if exit_code == TESTS_FAILED and failed:
        test, _, because = failed[0].removeprefix("FAILED tests/").partition(" - ")
        return True, test, because
    if exit_code == 0:
        return False, "its test passes", ""
    return False, f"pytest ended with {exit_code}", "".join(output.strip().splitlines()[-1:])


def members(findings: Sequence[Finding]) -> str:
    """Return the findings for people to read."""
    width = max(len(finding.fault) for finding in findings)
    lines = [f"{'planted fault':{width}}  law  seconds  caught by"]
    lines += [
        f"{finding.fault:{width}}  {finding.law:3}  {finding.seconds:7.1f}  "
        f"{'' if finding.caught else 'NOT CAUGHT: '}{finding.by}"
        for finding in findings
    ]
    caught = sum(finding.caught for finding in findings)
    return "\n".join([*lines, f"{caught} of {len(findings)} planted faults caught"])


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m drills.planted",
        description="Plant faults in a copy of the code, and see that tests notice each of them.",
        epilog="faults:\n" + "\n".join(f"  {fault.name}" for fault in FAULTS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults, or parts of their names")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a members")
    arguments = parser.parse_args()
    for name in arguments.names:
        if not any(name in fault.name for fault in FAULTS):
            parser.error(f"there is no fault {name!r}")
    wanted = arguments.names or [""]
    chosen = [fault for fault in FAULTS if any(name in fault.name for name in wanted)]

    with ExitStack() as stack:
        uri = os.environ.get("STREAMQUEUE_TEST_URI")
        if uri is None:
            uri = stack.enter_context(EmbeddedServer(test_commands=True)).uri
        trials = Trials(uri)
        tests = sorted({fault.caught_by for fault in chosen})
        print(f"{len(tests)} tests on the code as it is ...", file=sys.stderr)
        if not trials.passes(tests):
            print("they must pass before a fault can make them fail", file=sys.stderr)
            return 2
        findings = []
        for number, fault in enumerate(chosen, 1):
            print(f"[{number}/{len(chosen)}] {fault.name} ...", end="", file=sys.stderr, flush=True)
            try:
                findings.append(trials.try_fault(fault))
            except ValueError as error:
                print(f"\n{error}", file=sys.stderr)
                return 2
            found = findings[-1]
            verdict = "caught" if found.caught else f"NOT CAUGHT, {found.by}"
            print(f" {verdict} ({found.seconds} s) {found.because[:200]}", file=sys.stderr)

    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(members(findings))
    return 0 if all(finding.caught for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
