"""What the command line chooses of a worker: its queues, its concurrency, and when it ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamqueue import MongoQueue
from tests.cli.supervised import Start, put
from tests.waiting import wait_until

TWO_QUEUES = """
import os
from pymongo import AsyncMongoClient
from streamqueue import Worker

worker = Worker(AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database())

def say(job):
    os.write(1, b'{"what": "ran", "queue": "%s"}\\n' % job.queue.encode())

@worker.schedule(every=3600)
@worker.handler("reports")
def report(job):
    say(job)

@worker.handler("emails")
def email(job):
    say(job)
"""


@pytest.fixture
def two_queues(start: Start, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO_QUEUES)


def test_a_worker_ends_with_0_when_all_is_done(start: Start, queue: MongoQueue) -> None:
    put(queue, 20, seconds=0.01)
    queue.put({}, delay=3600)

    worker = start("--until-empty")

    assert worker.exit_code(60) == 0
    assert len(worker.said("finished")) == 20
    assert "Nothing is left to do: 1 jobs are scheduled" in worker.log
    assert "NOT_TOLD" not in worker.log


def test_all_processes_end_when_all_is_done_and_the_supervisor_with_0(
    start: Start, queue: MongoQueue
) -> None:
    put(queue, 60, seconds=0.05)

    supervisor = start("--processes", "2", "--until-empty", concurrency=5)

    assert supervisor.exit_code(60) == 0, supervisor.log
    assert len(supervisor.said("finished")) == 60
    assert queue.size() == 0
    assert len(supervisor.logged(r"(Process \d \(pid \d+\) ended .*: nothing was left to do)")) == 2


def test_a_process_waits_for_what_another_one_still_runs(start: Start, queue: MongoQueue) -> None:
    put(queue, 1, seconds=1.5)

    supervisor = start("--processes", "2", "--until-empty", concurrency=1)

    assert supervisor.exit_code(60) == 0, supervisor.log
    ended = supervisor.log.index("nothing was left to do")
    assert len(supervisor.said("finished")) == 1
    assert "is ready" in supervisor.log[:ended]
    assert "started again" not in supervisor.log


@pytest.mark.usefixtures("two_queues")
def test_a_worker_of_some_of_its_queues_leaves_the_others_alone(
    start: Start, queue: MongoQueue
) -> None:
    collection = queue._store.jobs
    for name in ("emails", "reports"):
        MongoQueue(collection, name=name).put({})

    worker = start("--queues", "emails", "--until-empty", name="two:worker")

    assert worker.exit_code(60) == 0
    assert [line["queue"] for line in worker.said("ran")] == ["emails"]
    assert MongoQueue(collection, name="reports").size() == 1
    assert worker.logged(r"Working on queues: (.*)") == ["emails"]


@pytest.mark.usefixtures("two_queues")
def test_the_processes_of_a_worker_have_the_chosen_queues_and_concurrency(
    start: Start, queue: MongoQueue
) -> None:
    supervisor = start(
        *("--processes", "2", "--queues", "emails,reports", "--concurrency", "3"), name="two:worker"
    )
    supervisor.until_ready(2)

    pattern = r"Starting consumer .*: (\d+ jobs at a time of queues: .*)"
    assert supervisor.logged(pattern) == ["3 jobs at a time of queues: reports, emails"] * 2


@pytest.mark.usefixtures("two_queues")
def test_a_queue_that_the_worker_does_not_have_is_refused_with_those_it_has(start: Start) -> None:
    worker = start("--queues", "emails,email", name="two:worker")

    assert worker.exit_code(60) == 2
    assert "this worker has no queue 'email'; it has: reports, emails" in worker.log


def test_a_list_of_queues_with_nothing_between_two_commas_is_refused(start: Start) -> None:
    worker = start("--queues", "emails,,reports")

    assert worker.exit_code(60) == 2
    assert re.search("must be names with commas between them", worker.log)


def test_the_concurrency_of_the_command_line_wins(start: Start, queue: MongoQueue) -> None:
    put(queue, 4, seconds=60)

    worker = start("--concurrency", "2", concurrency=4)
    worker.until_said("started", times=2)

    wait_until(lambda: queue.stats()["locked"] == 2, "two are claimed")
    assert len(worker.said("started")) == 2
