"""``streamqueue worker`` that ends although nobody told it to: an error, in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamqueue import MongoQueue
from tests.cli.supervised import Start
from tests.waiting import wait_until

NOBODY = "though nobody told it to stop"

ENDED = """
import asyncio, json, os, sys, anyio
from pymongo import AsyncMongoClient
from streamqueue import Worker
from streamqueue.worker.scheduler import Timers

jobs = AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database().jobs
worker = Worker(jobs, max_await=0.1, drain_timeout=0.2)
until = asyncio.Event()

def say(what, **more):
    os.write(1, json.dumps({"what": what, "pid": os.getpid(), **more}).encode() + b"\\n")

async def part(self):
    await until.wait()
    match os.environ["HOW"]:
        case "a part exits":
            sys.exit(0)
        case "a part is cancelled":
            asyncio.current_task().cancel()
            await asyncio.sleep(1)

if "part" in os.environ["HOW"]:
    Timers.run = part

def exits():
    sys.exit(0)

@worker.handler("default")
async def handle(job):
    say("started")
    match os.environ["HOW"]:
        case "every task is cancelled":
            for task in asyncio.all_tasks():
                task.cancel()
        case "a callback exits":
            asyncio.get_running_loop().call_soon(exits)
        case _:
            until.set()
    await asyncio.sleep(10)
"""

HOWS = [
    "a part returns",
    "a part exits",
    "a part is cancelled",
    "every task is cancelled",
    "a callback exits",
]


@pytest.mark.parametrize("how", HOWS)
def test_a_run_that_ends_by_itself_is_an_error_in_a_sentence(
    start: Start, queue: MongoQueue, tmp_path: Path, how: str
) -> None:
    (tmp_path / "ended.py").write_text(ENDED)
    worker = start(name="ended:worker", env={"HOW": how})
    queue.put({})

    assert worker.exit_code() == 1
    assert worker.logged(f"^(streamqueue: .*{NOBODY})")
    assert "Stopped" not in worker.log


def test_a_supervisor_starts_it_again(start: Start, queue: MongoQueue, tmp_path: Path) -> None:
    (tmp_path / "ended.py").write_text(ENDED)
    worker = start("--processes", "2", name="ended:worker", env={"HOW": HOWS[3]})
    worker.until_ready(2)
    queue.put({})

    wait_until(lambda: worker.logged("(ended with exit code 1; it is started again)"), "it is", 20)
    assert "somebody else" not in worker.log


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["alone", "supervised"])
def test_a_module_that_exits_is_told_with_its_line(
    start: Start, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")

    worker = start(*options, name="exits:worker")

    assert worker.exit_code() == 1
    assert "module 'exits' called sys.exit(" in worker.log
    assert "while it was imported (exits.py, line 2)" in worker.log


def test_a_module_that_exits_is_an_object_in_json(start: Start, tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")

    worker = start("--log-format", "json", name="exits:worker")

    assert worker.exit_code() == 1
    [line] = [json.loads(line) for line in worker.log.splitlines()]
    assert line["event"] == "command_failed"


def test_a_function_that_exits_instead_of_making_a_worker_is_told_too(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "exits.py").write_text("import sys\ndef worker():\n    sys.exit(0)\n")

    worker = start(name="exits:worker")

    assert worker.exit_code() == 1
    assert "exits:worker called sys.exit(0) instead of returning a Worker" in worker.log
