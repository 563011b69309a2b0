"""Secured servers, shared by the tests of a file, and the installed command as a process."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import programs
from tests.ops.running import Run, Spawn, WorkerCommand
from tests.ops.secured import SecuredServer, secured


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    """A replica set that wants a user and a password."""
    with secured(tmp_path_factory.mktemp("secured")) as server:
        yield server


@pytest.fixture
def database() -> str:
    """The name of a database that nobody has used."""
    return f"test_{secrets.token_hex(6)}"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command to its end: ``run("stats", uri=…)``."""

    def run(
        *arguments: str, uri: str | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMQUEUE_URI")}
        environment |= env or {}
        if uri is not None:
            environment["STREAMQUEUE_URI"] = uri
        return programs.run(
            [sys.executable, "-m", "streamqueue", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=environment,
        )

    return run


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start ``streamqueue worker`` with that URI, and wait until it works or has ended."""
    started: list[WorkerCommand] = []

    def spawn(uri: str | None, *arguments: str, env: dict[str, str] | None = None) -> WorkerCommand:
        folder = tmp_path / f"worker-{len(started)}"
        worker = WorkerCommand(folder, uri, arguments, env or {})
        started.append(worker)
        worker.until_working()
        return worker

    yield spawn
    for worker in started:
        worker.end()
