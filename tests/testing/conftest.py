from __future__ import annotations

from pathlib import Path

import pytest

from tests.testing.users import Project


@pytest.fixture
def project(tmp_path: Path, uri: str) -> Project:
    return Project(tmp_path, uri)
