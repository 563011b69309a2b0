"""examples/signup.py, and the tests beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.testing.users import PROCESSOR_TIME, ROOT, Project

MOST_SECONDS = 3.0


@pytest.mark.slow
async def test_it_runs_as_its_first_lines_say(follow: Callable[[str], Any]) -> None:
    await follow("signup")


def test_its_own_tests_pass_and_quickly(tmp_path: Path, uri: str) -> None:
    project = Project(tmp_path, uri)
    project.write("processor_time.py", PROCESSOR_TIME)

    done = project.test(str(ROOT / "examples" / "test_signup.py"), "-p", "processor_time")

    assert "5 passed" in done.stdout, done.stdout
    [seconds] = re.findall(r"processor seconds: ([\d.]+)", done.stdout)
    assert float(seconds) < MOST_SECONDS
