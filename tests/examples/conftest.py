"""The examples, as modules of the test's own database, and as programs that run on it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from tests.docs.blocks import Block
from tests.docs.session import Session, Surroundings
from tests.waiting import free_port

Follow = Callable[..., Any]
"""Types the commands that the first lines of an example show."""


@pytest.fixture
def address(uri: str, jobs: Collection[Any]) -> str:
    return uri.replace("/?", f"/{jobs.database.name}?")


@pytest.fixture
def load(address: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import an example; its collection is the test's."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def load(name: str) -> Any:
        monkeypatch.delitem(sys.modules, f"examples.{name}", raising=False)
        return importlib.import_module(f"examples.{name}")

    return load


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
async def follow(
    address: str,
    tmp_path: Path,
    port: int,
    load: Callable[[str], Any],
) -> AsyncIterator[Follow]:
    """Do what the first lines of an example say; what they start goes on until the test ends."""
    edits = {"8000": str(port), "/tmp/pictures": str(tmp_path / "pictures")}
    session = Session(tmp_path, address, Surroundings(edits=edits))

    async def follow(name: str) -> None:
        lines = (load(name).__doc__ or "").splitlines()
        typed = [line.strip() for line in lines if line.startswith("    $ ")]
        assert typed
        await session.follow(Block("console", "\n".join(typed), 1))

    yield follow
    await session.end()
