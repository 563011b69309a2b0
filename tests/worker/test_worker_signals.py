"""Worker processes that are told to stop.

Law: going down is graceful.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests.waiting import wait_until
from tests.worker.processes import WorkerProcess
from tests.worker.started import STREAM_APP

Spawn = Callable[..., WorkerProcess]

INTERPRETER_END = 0.5
"""Seconds an interpreter may take to go down on a busy machine."""


@pytest.fixture
def blocking_queue(jobs: Collection[Any]) -> MongoQueue:
    return MongoQueue(jobs)


@pytest.mark.few(1)
@pytest.mark.parametrize("handler", ["waits", "blocks"])
def test_handlers_that_run_at_sigterm_finish_and_are_completed(
    spawn: Spawn, blocking_queue: MongoQueue, jobs: Collection[Any], handler: str
) -> None:
    process = spawn(handler=handler, drain_timeout=10, concurrency=10)
    blocking_queue.put_many([{"seconds": 1} for _ in range(10)])
    process.until_said("started", times=10)

    code, seconds = process.stop()

    assert code == 0
    assert seconds < 3
    assert len(process.said("finished")) == 10
    assert process.outcomes() == {"completed": 10}
    assert jobs.count_documents({}) == 0


@pytest.mark.few(1)
@pytest.mark.parametrize("handler", ["waits", "blocks"])
def test_handlers_longer_than_the_drain_time_are_released_and_the_process_ends(
    spawn: Spawn, blocking_queue: MongoQueue, jobs: Collection[Any], handler: str
) -> None:
    process = spawn(handler=handler, drain_timeout=0.5, concurrency=5)
    blocking_queue.put_many([{"seconds": 8} for _ in range(5)])
    process.until_said("started", times=5)

    code, seconds = process.stop(within=15)

    assert code == 0
    assert seconds < 0.5 + 1 + INTERPRETER_END
    assert process.outcomes() == {"released": 5}
    left = [(job["state"], job["attempts"]) for job in jobs.find()]
    assert left == [("ready", 0)] * 5


def test_a_second_signal_hurries(spawn: Spawn, blocking_queue: MongoQueue) -> None:
    process = spawn(drain_timeout=60)
    blocking_queue.put({"seconds": 60})
    process.until_said("started")

    process.send(signal.SIGTERM)
    # A second one sent at once may arrive as one with the first.
    again = threading.Timer(0.3, process.send, [signal.SIGTERM])
    again.start()
    code = process.exit_code(within=5)
    again.join()

    assert code == 0
    assert process.outcomes() == {"released": 1}


@pytest.mark.few(1)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_idle_process_ends_within_a_read_of_its_stream(
    spawn: Spawn, how: signal.Signals
) -> None:
    process = spawn(max_await=1)

    asked_at = time.monotonic()
    process.send(how)
    code = process.exit_code()

    assert code == 0
    assert time.monotonic() - asked_at < 1 + 0.5 + INTERPRETER_END


def test_a_stopped_process_leaves_no_cursor_and_no_connection(
    spawn: Spawn, blocking_queue: MongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    def left() -> list[Any]:
        every = {"idleConnections": True, "idleCursors": True, "allUsers": True}
        cursors = {"type": "idleCursor", "ns": f"{jobs.database.name}.{jobs.name}"}
        ours = {"$or": [{"appName": STREAM_APP}, cursors]}
        return list(client.admin.aggregate([{"$currentOp": every}, {"$match": ours}]))

    process = spawn()
    blocking_queue.put({"seconds": 0})
    process.until_said("finished")
    process.stop()

    wait_until(lambda: not left(), "nothing is left on the server", 3)
