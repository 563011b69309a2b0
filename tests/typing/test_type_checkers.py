"""What mypy and pyright say of the files beside this one.

A line that is wrong carries the error that each of them must find, in a comment that lets it pass;
one that is not needed is an error itself. So what fails here is an error that is missing as well as
one too many.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in Path(__file__).parent.glob("*.py")
    if not path.name.startswith("test_")
)
CHECKERS = {
    "mypy": ("mypy", "--no-error-summary"),
    "pyright": ("basedpyright", "--pythonpath", sys.executable),
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_finds_what_is_wrong_and_nothing_else(checker: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", *CHECKERS[checker], *FILES], cwd=ROOT, capture_output=True, text=True
    )

    assert (found.returncode, found.stderr) == (0, ""), found.stdout


def test_both_checkers_are_told_of_each_error() -> None:
    lines = [line for name in FILES for line in (ROOT / name).read_text("utf-8").splitlines()]
    wrong = [line for line in lines if ": ignore[" in line]

    assert len(wrong) > 50
    assert [line for line in wrong if not ("# type: ig" in line and "# pyright: ig" in line)] == []
