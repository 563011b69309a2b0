"""The producer of the real run: puts jobs of all kinds, publishes, and serves its own metrics.

``python -m tests.ops.programs.clerk PORT``, with the address in ``STREAMQUEUE_URI``. Ends with its
standard input.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from contextlib import suppress
from itertools import count
from typing import Any

from bson import ObjectId
from prometheus_client import disable_created_metrics, start_http_server
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from streamqueue import DuplicateJob, MongoQueue, NewJob, Topic

APP = "real-run-producer"
PAUSE_SECONDS = 0.05
TOPIC_EVERY = 20

RARE: tuple[tuple[int, str, dict[str, Any], dict[str, Any]], ...] = (
    (13, "emails", {"seconds": 0.01}, {"delay": 3}),
    (6, "calls", {"seconds": 0.2}, {"group": "ada"}),
    (17, "invoices", {"seconds": 0.3}, {"key": "the one report", "delay": 2}),
    (11, "invoices", {"seconds": 0.1}, {"key": "a price", "delay": 2, "on_conflict": "replace"}),
    (19, "emails", {"ends": "snoozes"}, {}),
    (23, "emails", {"seconds": 2.5}, {}),
    (29, "invoices", {"ends": "retries"}, {}),
    (31, "emails", {"ends": "retries"}, {}),
    (37, "emails", {"blocked": 0.15}, {}),
    (101, "invoices", {"ends": "fails"}, {"max_attempts": 2}),
    (103, "emails", {"ends": "is discarded"}, {}),
)
"""Every so many puts: the queue, the payload and how it is put."""


def main() -> None:
    """Put jobs until standard input ends."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as the worker command does
    start_http_server(int(sys.argv[1]), "127.0.0.1")
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with MongoClient[dict[str, Any]](os.environ["STREAMQUEUE_URI"], appname=APP) as client:
        jobs = client.get_default_database().jobs
        queues = {name: MongoQueue(jobs, name=name) for name in ("emails", "invoices", "calls")}
        topics = [Topic(jobs, name) for name in ("orders", "unread")]
        topics[0].subscribe("invoices")
        _hold(queues["calls"])
        for number in count(1):
            if over.wait(random.uniform(0.5, 1.5) * PAUSE_SECONDS):
                return
            if number % TOPIC_EVERY == 0:
                _publish(topics[number // TOPIC_EVERY % 2])
            for name, payload, how in _next(number):
                try:
                    queues[name].put(payload, **how)
                except (DuplicateJob, PyMongoError):
                    pass  # it is counted, which is what the run is about


def _hold(calls: MongoQueue) -> None:
    """Put a job that fails, and one that its death holds back, for its group and as its parent."""
    fails: dict[str, Any] = {"max_attempts": 1}
    with suppress(PyMongoError):
        calls.put_many([NewJob({"ends": "fails"}, group="eve", **fails), NewJob({}, group="eve")])
        parent = ObjectId()
        calls.put_many(
            [NewJob({"ends": "fails"}, job_id=parent, **fails), NewJob({}, after=[parent])]
        )


def _publish(topic: Topic) -> None:
    try:
        topic.publish({"seconds": 0.01})
    except PyMongoError:
        pass


def _next(number: int) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    rare = [(name, payload, how) for every, name, payload, how in RARE if number % every == 0]
    name = "invoices" if number % 3 == 0 else "emails"
    return [*rare, (name, {"seconds": random.choice((0.001, 0.01, 0.05, 0.2))}, {})]


if __name__ == "__main__":
    main()
