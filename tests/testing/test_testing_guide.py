"""The guide on testing: its files, as they stand there, in a project of their own."""

from __future__ import annotations

import re

import pytest

from tests.testing.users import PROCESSOR_TIME, ROOT, Project

GUIDE = (ROOT / "docs" / "guides" / "testing.md").read_text()
FILES = dict(re.findall(r"^```(?:python|ini)\n# (\S+)\n(.*?)^```$", GUIDE, re.M | re.S))
MOST_SECONDS = 3.0


@pytest.fixture
def guide(project: Project) -> Project:
    for name, text in FILES.items():
        project.write(name, text)
    return project


def test_every_file_of_the_guide_has_its_name() -> None:
    assert sorted(FILES) == [
        "conftest.py",
        "pytest.ini",
        "shop.py",
        "test_handlers.py",
        "test_shop.py",
    ]
    assert GUIDE.count("```python") + GUIDE.count("```ini") == len(FILES)


def test_the_tests_of_the_guide_pass_and_quickly(guide: Project) -> None:
    guide.write("processor_time.py", PROCESSOR_TIME)

    done = guide.test("-p", "no:asyncio", "-p", "processor_time")

    assert "8 passed" in done.stdout, done.stdout
    [seconds] = re.findall(r"processor seconds: ([\d.]+)", done.stdout)
    assert float(seconds) < MOST_SECONDS


def test_the_line_of_the_log_in_the_guide_is_the_workers() -> None:
    source = (ROOT / "streamqueue" / "worker" / "until_empty.py").read_text()
    source = re.sub(r'"\s+"', "", source)

    [line] = re.findall(r"^… (.*)$", GUIDE, re.M)
    assert re.sub(r"\d+", "%d", line) in source
