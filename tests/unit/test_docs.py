"""The guides: each within a click of the README, and what they say is all there is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamqueue

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
DURATIONS = ROOT / "docs" / "guides" / "durations.md"
INDEX = ROOT / "docs" / "README.md"


def links(page: Path) -> set[Path]:
    """The files that a page leads to."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return {(page.parent / link).resolve() for link in found if "://" not in link}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.stem))
def test_a_guide_is_one_click_from_the_readme_and_on_the_list(guide: Path) -> None:
    assert guide in links(ROOT / "README.md")
    assert guide in links(INDEX)


def test_the_list_has_every_page() -> None:
    pages = set((ROOT / "docs").rglob("*.md")) - {INDEX}

    assert pages - links(INDEX) == set()


# durations


def parameters() -> Iterator[tuple[str, inspect.Parameter]]:
    """Each parameter of what is public, with whose it is."""
    for name in streamqueue.__all__:
        public: Any = getattr(streamqueue, name)
        members = {name: public}
        if inspect.isclass(public):
            members = {key: getattr(public, key) for key in dir(public) if not key.startswith("_")}
            members[name] = public
        for owner, member in members.items():
            try:
                signature = inspect.signature(member)
            except (TypeError, ValueError):
                continue  # no function
            for parameter in signature.parameters.values():
                yield owner, parameter


def durations() -> set[tuple[str, str]]:
    """Each that may be a timedelta: whose it is, and its name."""
    return {
        (owner, parameter.name)
        for owner, parameter in parameters()
        if "timedelta" in str(parameter.annotation)
    }


def settings_in_the_tables() -> set[str]:
    rows = re.findall(r"^\| ([^|]*) \|", DURATIONS.read_text(), re.M)
    return {
        name
        for row in rows
        for code in re.findall(r"`([^`]+)`", row)
        for name in re.findall(r"(\w+)=", code) or re.findall(r"^(\w+)$", code)
    }


def test_every_duration_is_in_the_tables() -> None:
    found = durations()

    assert {("put", "expires"), ("Worker", "timeout"), ("schedule", "spread")} <= found
    assert {name for _, name in found} - settings_in_the_tables() == set()


def test_the_tables_have_no_setting_that_there_is_not() -> None:
    known = {parameter.name for _, parameter in parameters()} | {"Worker", "MongoQueue", "publish"}

    assert settings_in_the_tables() - known == set()
