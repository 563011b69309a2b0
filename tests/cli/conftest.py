"""The address of the test's own database, as a person would give it."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.synchronous.collection import Collection


@pytest.fixture
def address(uri: str, jobs: Collection[Any]) -> str:
    return uri.replace("/?", f"/{jobs.database.name}?")
