"""Settings that have a name, a type and no other."""

# pyright: strict

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncSchedules, Schedules, Topic, Worker


def right(jobs: AsyncCollection[dict[str, Any]]) -> None:
    Worker(jobs, sweep_interval=None, reap_interval=timedelta(seconds=1), max_await=0.5)
    Worker(jobs, consumer_id="one", log_tracebacks=True, export_state="leader")


def wrong(jobs: AsyncCollection[dict[str, Any]]) -> None:
    Worker(jobs, sweep_intervall=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Worker(jobs, concurency=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Worker(jobs, sweep_interval="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Worker(jobs, export_state="Leader")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def schedules(worker: Worker) -> None:
    @worker.schedule("0 3 * * *", key="report", priority=3, expires=600, keep=timedelta(days=1))
    @worker.handler("reports")
    async def report(job: AsyncJob) -> None: ...

    worker.schedule(every=10, prioritty=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    worker.schedule(every=10, delay=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    worker.schedule(every=10, catch_up="some")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    worker.schedule(every=10, priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def stored_schedules(schedules: Schedules, later: AsyncSchedules, topic: Topic) -> None:
    schedules.add("report", cron="0 3 * * *", queue="reports", group="ada", unique_for=60)
    await later.add("poll", every=10, on_conflict="skip", key="poll", max_attempts=1)
    schedules.add("report", cron="0 3 * * *", prioritty=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await later.add("poll", every=10, run_at=datetime.now(UTC))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    topic.publish({}, prioritty=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def queues(jobs: Collection[dict[str, Any]]) -> None:
    Schedules(jobs, name="emails")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
