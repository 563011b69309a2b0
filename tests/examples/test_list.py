"""The folder of examples: short files, each in its list."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import ROOT

FOLDER = ROOT / "examples"
FILES = sorted(FOLDER.glob("*.py"))
LONGEST = 80


def test_the_list_has_every_example() -> None:
    listed = re.findall(r"^\| \[(.+?)\]\(\1\) \|", (FOLDER / "README.md").read_text(), re.M)

    assert sorted(listed) == [file.name for file in FILES]


def test_the_documentation_leads_to_the_list() -> None:
    assert "(../examples/README.md)" in (ROOT / "docs" / "README.md").read_text()


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if not file.name.startswith("test_")],
    ids=lambda file: file.name,
)
def test_an_example_is_short(file: object) -> None:
    assert isinstance(file, type(FOLDER))
    assert len(file.read_text().splitlines()) < LONGEST
