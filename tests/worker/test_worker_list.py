"""``streamqueue consumers``: who lives, what they hold, and that the dead vanish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests import programs
from tests.waiting import wait_until
from tests.worker.processes import WorkerProcess

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(uri: str, jobs: Collection[Any]) -> Run:
    address = uri.replace("/?", f"/{jobs.database.name}?")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return programs.run(
            [sys.executable, "-m", "streamqueue", "consumers", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "STREAMQUEUE_URI": address},
        )

    return run


@pytest.fixture
def listed(run: Run) -> Callable[[], dict[str, Any]]:
    """The consumers by name, as a script reads them."""

    def listed() -> dict[str, Any]:
        result = run("--json")
        assert result.returncode == 0, result.stderr
        return {consumer["name"]: consumer for consumer in json.loads(result.stdout)}

    return listed


def test_nobody_is_listed_when_nobody_lives(run: Run) -> None:
    result = run()

    assert (result.stdout, result.returncode) == ("no live consumers\n", 0)


def test_a_worker_is_listed_with_what_it_holds(
    spawn: Callable[..., WorkerProcess],
    listed: Callable[[], dict[str, Any]],
    run: Run,
    jobs: Collection[Any],
) -> None:
    MongoQueue(jobs).put_many([{"seconds": 60}] * 3)
    process = spawn(consumer_id="the worker", concurrency=7, drain_timeout=0)
    process.until_said("started", 3)

    (consumer,) = listed().values()

    assert consumer["name"] == "the worker"
    assert consumer["queues"] == ["default"]
    assert (consumer["running"], consumer["slots"]) == (3, 7)
    assert consumer["pid"] == process.pid
    assert consumer["host"]
    header, line = run().stdout.splitlines()
    assert header.split() == ["CONSUMER", "QUEUES", "HOLDS", "LONGEST", "UP", "SEEN"]
    assert line.startswith("the worker  default  3/7 ")


def test_a_worker_that_stops_is_off_the_list_at_once(
    spawn: Callable[..., WorkerProcess], listed: Callable[[], dict[str, Any]]
) -> None:
    process = spawn(consumer_id="the worker")
    assert list(listed()) == ["the worker"]

    process.send(signal.SIGTERM)
    process.exit_code()

    assert listed() == {}


def test_a_worker_that_was_killed_vanishes_when_what_it_held_is_taken_back(
    spawn: Callable[..., WorkerProcess],
    listed: Callable[[], dict[str, Any]],
    jobs: Collection[Any],
) -> None:
    MongoQueue(jobs).put({"seconds": 60})
    killed = spawn(consumer_id="killed", timeout=1)
    killed.until_said("started")
    spawn(consumer_id="survivor", timeout=1, reap_interval=0.1, drain_timeout=0)

    killed.send(signal.SIGKILL)

    wait_until(lambda: list(listed()) == ["survivor"], "only the survivor is listed", within=20)


def test_a_script_that_holds_a_job_is_shown_as_not_on_the_list(
    run: Run, jobs: Collection[Any]
) -> None:
    queue = MongoQueue(jobs, "a script")
    queue.put({})
    queue.next()

    assert "a script  (not on the list)  1/?" in run().stdout
