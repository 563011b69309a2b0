"""Processes that tell histories, and what the checker says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drills import checker
from drills.told import Broken, Planted, read


@pytest.fixture
def one(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> Planted:
    """Another process."""
    return Planted(tmp_path)


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    """Returns the names of the laws that are broken."""

    def broken(
        *documents: dict[str, Any], laws: Any = checker.LAWS, entries: Any = None
    ) -> set[str]:
        account = read(tmp_path, *documents, entries=entries)
        return {verdict.law for verdict in checker.check(account, laws)}

    return broken
