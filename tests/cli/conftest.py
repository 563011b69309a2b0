"""The test's own database, as a person would give it, and workers that a supervisor runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.cli.main import main
from tests.cli.supervised import WORKER, Start, Supervisor

Command = Callable[..., str]
"""Calls the command line with these arguments."""


@pytest.fixture
def address(uri: str, jobs: Collection[Any]) -> str:
    return uri.replace("/?", f"/{jobs.database.name}?")


@pytest.fixture
def start(address: str, tmp_path: Path) -> Iterator[Start]:
    """Run ``streamqueue worker tasks:worker``; keywords are settings of the worker."""
    (tmp_path / "tasks.py").write_text(WORKER)
    started: list[Supervisor] = []

    def start(
        *options: str,
        name: str = "tasks:worker",
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> Supervisor:
        environment = {"STREAMQUEUE_URI": address, "WORKER_SETTINGS": json.dumps(settings)}
        command = [sys.executable, "-m", "streamqueue", "worker", name, *options]
        started.append(Supervisor(command, tmp_path, environment | (env or {})))
        return started[-1]

    yield start
    for supervisor in started:
        supervisor.end()


@pytest.fixture
def queue(jobs: Collection[Any]) -> MongoQueue:
    return MongoQueue(jobs)


@pytest.fixture
def command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Call a command and return what it has printed."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def command(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return command
