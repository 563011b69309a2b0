"""``streamqueue worker`` with a lifespan: one in each process, and what its errors end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.supervised import Start
from tests.waiting import wait_until

TASKS = """
import contextlib, json, os, anyio
from pymongo import AsyncMongoClient
from streamqueue import Worker

def say(what, **more):
    os.write(1, json.dumps({"what": what, "pid": os.getpid(), **more}).encode() + b"\\n")

@contextlib.asynccontextmanager
async def lifespan(worker):
    if os.environ.get("FAILS") == "opening":
        raise OSError("no such model")
    say("opened")
    yield {"model": "large"}
    say("closed")
    if os.environ.get("FAILS") == "closing":
        raise OSError("no such model")

jobs = AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database().jobs
worker = Worker(jobs, max_await=0.1, lifespan=lifespan)

@worker.handler("default")
async def handle(job):
    say("handled", model=job.context["model"])
"""


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(TASKS)


def test_each_process_has_its_own_and_the_dispatcher_none(start: Start) -> None:
    supervisor = start("--processes", "2", name="shared:worker")
    pids = supervisor.until_ready(2)

    assert {line["pid"] for line in supervisor.said("opened")} == set(pids.values())
    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code() == 0
    assert {line["pid"] for line in supervisor.said("closed")} == set(pids.values())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_worker_whose_lifespan_cannot_be_opened_says_why_and_where(
    start: Start, log_format: str
) -> None:
    worker = start("--log-format", log_format, name="shared:worker", env={"FAILS": "opening"})

    assert worker.exit_code() == 1
    sentence = "the worker does not start: its lifespan raised OSError: no such model"
    assert sentence in worker.log
    assert "in lifespan" in worker.log


def test_an_error_of_its_end_is_an_exit_code(start: Start) -> None:
    worker = start(name="shared:worker", env={"FAILS": "closing"})
    wait_until(lambda: worker.logged("(Working on queues)"), "it is ready", 20)
    os.kill(worker.process.pid, signal.SIGTERM)

    assert worker.exit_code() == 1
    assert "the lifespan raised OSError: no such model, while the worker stopped" in worker.log
