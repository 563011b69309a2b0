"""Worker processes that are killed or frozen with jobs in their hands.

Laws: nothing is lost; one holder; nothing is stuck; poison is contained.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.processes import WorkerProcess
from tests.worker.started import WorkerStarter

LEASE = 2.0
REAP_INTERVAL = 1.0
SLACK = 1.0

Spawn = Callable[..., WorkerProcess]


class Successor:
    """The handler of the worker that is left."""

    def __init__(self) -> None:
        self.attempts: dict[str, int] = {}

    async def __call__(self, job: AsyncJob) -> None:
        self.attempts[str(job.id)] = job.attempts


async def test_the_jobs_of_a_killed_process_are_all_run_by_another_in_time(
    start: WorkerStarter, spawn: Spawn, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    successor = Successor()
    victim = spawn(timeout=LEASE)
    await queue.put_many([{"seconds": 60} for _ in range(20)])
    victim.until_said("started", times=20)
    worker = await start(successor, timeout=LEASE, reap_interval=REAP_INTERVAL)

    victim.send(signal.SIGKILL)
    killed_at = time.monotonic()
    await worker.until_outcomes(completed=20)

    assert time.monotonic() - killed_at < LEASE + REAP_INTERVAL + SLACK
    assert list(successor.attempts.values()) == [2] * 20
    assert worker.metric("streamqueue_jobs_reaped_total", result="requeued") == 20
    assert jobs.count_documents({}) == 0


@pytest.mark.slow
async def test_a_worker_that_shared_a_backlog_takes_over_from_one_that_was_killed(
    start: WorkerStarter, spawn: Spawn, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    successor = Successor()
    worker = await start(successor, timeout=LEASE, reap_interval=REAP_INTERVAL)
    victim = spawn(timeout=LEASE)
    for _ in range(40):
        await queue.put({"seconds": 60})
    victim.until_said("started")
    await wait_until_async(
        lambda: len(successor.attempts) + len(victim.said("started")) == 40, "all were started"
    )

    victim.send(signal.SIGKILL)
    await worker.until_outcomes(completed=40, within=LEASE + REAP_INTERVAL + SLACK)

    inherited = {line["job"] for line in victim.said("started")}
    assert len(successor.attempts) == 40
    assert {job for job, attempt in successor.attempts.items() if attempt == 2} == inherited
    assert jobs.count_documents({}) == 0


async def test_a_process_that_slept_through_its_leases_is_refused_and_stops_its_handlers(
    start: WorkerStarter, spawn: Spawn, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    successor = Successor()
    sleeper = spawn(timeout=LEASE)
    late = await queue.put_many([{"seconds": 1, "late": True} for _ in range(5)])
    running = await queue.put_many([{"seconds": 60} for _ in range(5)])
    sleeper.until_said("started", times=10)
    sleeper.send(signal.SIGSTOP)

    worker = await start(successor, timeout=LEASE, reap_interval=REAP_INTERVAL)
    await worker.until_outcomes(completed=10)
    sleeper.send(signal.SIGCONT)
    sleeper.until_said("refused", times=5, within=2)
    sleeper.until_said("cancelled", times=5, within=2)
    code, _ = sleeper.stop()

    assert code == 0
    assert {line["job"] for line in sleeper.said("refused")} == {str(id_) for id_ in late}
    assert {line["job"] for line in sleeper.said("cancelled")} == {str(id_) for id_ in running}
    assert sleeper.outcomes() == {"lease_lost": 10}
    assert list(successor.attempts.values()) == [2] * 10
    assert jobs.count_documents({}) == 0


async def test_a_job_that_kills_its_process_each_time_is_dead_in_the_end(
    start: WorkerStarter, spawn: Spawn, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await queue.put({"seconds": 60}, max_attempts=2)

    for attempt in (1, 2):
        victim = spawn(timeout=0.5, reap_interval=0.1)
        victim.until_said("started")
        assert victim.said("started")[0]["attempt"] == attempt
        victim.send(signal.SIGKILL)
        victim.exit_code()
    await start(Successor(), timeout=0.5, reap_interval=0.1)

    await wait_until_async(lambda: jobs.find_one({"state": "dead"}), "it is dead", 3)
