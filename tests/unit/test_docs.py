"""The pages: each on the list that the README leads to, and what they say is all there is."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamqueue
from docs import generated

ROOT = Path(__file__).parents[2]
DURATIONS = ROOT / "docs" / "guides" / "durations.md"
INDEX = ROOT / "docs" / "README.md"


def links(page: Path) -> set[Path]:
    """The files that a page leads to."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return {(page.parent / link).resolve() for link in found if "://" not in link}


def test_the_readme_leads_to_the_list() -> None:
    assert INDEX in links(ROOT / "README.md")


def test_the_list_has_every_page() -> None:
    pages = {page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts}

    assert pages - {INDEX} - links(INDEX) == set()


def test_the_table_of_extras_has_all_of_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text(), re.M)

    assert sorted(rows) == sorted(project["optional-dependencies"])


def test_every_alert_leads_to_its_section_of_the_runbook() -> None:
    runbook = (ROOT / "deploy" / "prometheus" / "README.md").read_text()
    operating = (ROOT / "docs" / "guides" / "operating.md").read_text()

    alerts = re.findall(r"^### (Streamqueue\w+)$", runbook, re.M)

    assert alerts
    assert [name for name in alerts if f"#{name.lower()})" not in operating] == []


# the reference


def test_every_public_name_and_member_has_a_docstring() -> None:
    assert generated.undocumented() == []


def test_a_public_name_without_a_docstring_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamqueue.MongoQueue.put, "__doc__", None)
    monkeypatch.setattr(streamqueue.Limit, "__doc__", None)

    with pytest.raises(generated.Undocumented, match=r": Limit, MongoQueue\.put$"):
        generated.check()


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    shown = "".join(generated.added_to(f"docs/reference/{page}") for page in generated.BESIDE)

    found = re.findall(r"^\.\. auto(?:class|function):: streamqueue\.(\w+)$", shown, re.M)

    assert sorted([*found, "__version__"]) == sorted(streamqueue.__all__)


@pytest.mark.parametrize(
    "row",
    [
        "| `MongoQueue` | `timeout` | `300` |",
        "| `MongoQueue.put` | `on_conflict` | `'raise'` |",
        "| `Worker` | `concurrency` | `20` |",
        "| `Worker(**settings)` | `sweep_interval` | `30.0` |",
        "| `Worker.handler` | `weight` | `1` |",
        "| `Backoff` | `maximum` | `300.0` |",
        "| `Retry` | `reason` | `None` |",
    ],
)
def test_a_default_is_in_the_table(row: str) -> None:
    assert row in list(generated.defaults())


def test_the_table_of_defaults_has_every_option() -> None:
    rows = "\n".join(generated.defaults())

    assert "| `worker` | `--metrics-port` | `STREAMQUEUE_METRICS_PORT` |" in rows
    assert re.search(r"^\| `dead purge` \| `--yes` \|  \|", rows, re.M)  # no variable


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
