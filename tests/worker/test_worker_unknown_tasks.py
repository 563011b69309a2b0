"""Jobs of tasks that a worker does not know: left to others, and in nobody's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from bson import Timestamp
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, MongoQueue
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import StartedWorker, WorkerStarter


class Tasks:
    """Starts workers that know some tasks, and keeps the tasks of the jobs that they ran."""

    def __init__(self, start: WorkerStarter, jobs: Collection[Any]) -> None:
        self._start = start
        self._jobs = jobs
        self.seen: list[str | None] = []

    async def handle(self, job: AsyncJob) -> None:
        self.seen.append(job.data["task"])

    async def run(self, task: str) -> None:
        self.seen.append(task)

    def prepare(self, *tasks: str | None, **settings: Any) -> StartedWorker:
        worker = self._start.prepare(**settings)
        self.know(worker, *tasks)
        return worker

    def know(self, worker: StartedWorker, *tasks: str | None) -> None:
        for task in tasks:
            if task is None:
                worker.worker.handler("default")(self.handle)
            else:
                worker.worker.task(name=task)(self.run)

    async def __call__(self, *tasks: str | None, **settings: Any) -> StartedWorker:
        worker = self.prepare(*tasks, **settings)
        await self._start.begin(worker)
        return worker

    def put(self, tasks: Sequence[str | None]) -> None:
        """Put a job of each of these tasks, as a producer does."""
        job = {"queue": "default", "state": "ready", "priority": 0, "attempts": 0}
        self._jobs.insert_many(
            [
                {**job, "payload": {"task": task}, "seq": Timestamp(0, 0)}
                | ({} if task is None else {"task": task})
                for task in tasks
            ]
        )

    async def until_seen(self, *tasks: str | None, within: float = 10.0) -> None:
        await wait_until_async(lambda: self.seen == [*tasks], f"{tasks} were run", within)


@pytest.fixture
def tasks(start: WorkerStarter, jobs: Collection[Any]) -> Tasks:
    return Tasks(start, jobs)


async def test_a_job_of_an_unknown_task_is_not_claimed_however_it_comes(
    tasks: Tasks, jobs: Collection[Any]
) -> None:
    tasks.put(["new"])
    worker = await tasks("mail", None)

    tasks.put(["new", "mail", None])

    await tasks.until_seen("mail", None)
    await worker.until_idle()
    assert [job.get("attempts") for job in jobs.find({"state": "ready", "task": "new"})] == [0, 0]
    await worker.until_outcomes(completed=2)
    assert worker.metric("streamqueue_jobs_left_total", queue="default", reason="task") == 2


async def test_a_few_jobs_of_unknown_tasks_are_not_written_to(
    tasks: Tasks, jobs: Collection[Any]
) -> None:
    tasks.put(["new"] * 20)
    before = list(jobs.find({"task": "new"}))
    await tasks("mail")

    tasks.put(["mail"] * 5)

    await tasks.until_seen(*["mail"] * 5)
    assert list(jobs.find({"task": "new"})) == before


def is_of_ready(command: Mapping[str, Any]) -> bool:
    return bool(command["filter"].get("state") == "ready" and "sort" in command)


async def test_a_known_task_behind_many_unknown_ones_starts_at_once(
    tasks: Tasks, jobs: Collection[Any]
) -> None:
    tasks.put(["new"] * 20_000)
    tasks.put(["mail"])
    worker = tasks.prepare("mail")

    await tasks._start.begin(worker)

    await tasks.until_seen("mail")
    reads = worker.commands.named("find")
    claim = worker.commands.claims()[0].at
    heads = [sent for sent in reads if sent.at < claim and is_of_ready(sent.command)]
    assert len(heads) <= 2


async def test_those_that_fill_what_is_read_are_parked_for_who_knows_them(
    tasks: Tasks, jobs: Collection[Any], queue: Any
) -> None:
    tasks.put(["new"] * 200)
    await tasks("mail")
    await wait_until_async(lambda: jobs.count_documents({"state": "waiting"}), "they are parked")
    some = jobs.find_one({"state": "waiting"})
    assert some is not None
    info = await queue.get(some["_id"])
    assert (info.waits_for, info.attempts) == ({"task": "new"}, 0)

    await tasks("new")

    await tasks.until_seen(*["new"] * 200)
    await wait_until_async(lambda: jobs.count_documents({}) == 0, "all are done")


async def test_jobs_of_unknown_tasks_do_not_die_of_the_grace(
    tasks: Tasks, jobs: Collection[Any]
) -> None:
    tasks.put(["new"] * 200)
    worker = await tasks("mail", misfit_grace=0.1)
    await wait_until_async(lambda: jobs.count_documents({"state": "waiting"}), "they are parked")

    tasks.put(["mail"])

    await tasks.until_seen("mail")
    await worker.until_idle()
    assert jobs.count_documents({"state": "dead"}) == 0


async def test_an_unknown_task_is_said_once(tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    await tasks("mail")

    tasks.put(["new", "new", "other", None, "mail"])

    await tasks.until_seen("mail")
    said = [each.getMessage() for each in caplog.records if "left to other" in each.getMessage()]
    assert sorted(said) == [
        f"Jobs {which} in queue default are left to other workers: none is registered here"
        for which in ("of task 'new'", "of task 'other'", "without a task")
    ]


async def test_a_worker_with_rules_leaves_them_as_well(tasks: Tasks, jobs: Collection[Any]) -> None:
    MongoQueue(jobs).limit(running=2)
    tasks.put(["new"] * 70)
    worker = await tasks("mail")

    tasks.put(["mail"] * 3)

    await tasks.until_seen("mail", "mail", "mail")
    await worker.until_outcomes(completed=3)


async def test_the_sweep_does_not_take_them_for_missed_ones(
    tasks: Tasks, jobs: Collection[Any]
) -> None:
    worker = await tasks("mail", sweep_interval=0.1)
    tasks.put(["new"])

    await wait_until_async(lambda: len(worker.commands.named("find")) > 10, "it has swept")

    assert worker.metric("streamqueue_missed_wakeups_total") == 0


async def test_a_dispatcher_hands_out_none_of_them(
    tasks: Tasks, members: Members, jobs: Collection[Any]
) -> None:
    tasks.put(["new"] * 3)
    host = members.prepare()
    tasks.know(host, "mail")
    await members.open_for(host)
    await members.begin(host)

    tasks.put(["new", "mail"])

    await tasks.until_seen("mail")
    await host.until_idle()
    assert jobs.count_documents({"state": "ready", "task": "new"}) == 4
    await host.until_outcomes(completed=1)
