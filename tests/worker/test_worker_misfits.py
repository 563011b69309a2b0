"""Payloads with types in a worker: what the handler gets, and what becomes of one that does not
fit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, ConfigurationError, Job
from streamqueue.store import left
from tests.waiting import wait_until_async
from tests.worker.programs import in_child
from tests.worker.started import StartedWorker, WorkerStarter


@dataclass
class Email:
    to: str
    copies: int = 1


@dataclass
class OldEmail:
    """What was deployed before: it asks for a field that is put no more."""

    address: str


class Kept:
    """Starts workers with one handler that keeps what it is given."""

    def __init__(self, start: WorkerStarter) -> None:
        self._start = start
        self.seen: list[Any] = []

    def prepare(self, kind: type[Any], **settings: Any) -> StartedWorker:
        worker = self._start.prepare(**settings)

        async def handler(job: AsyncJob[Any]) -> None:
            self.seen.append(job.data)

        worker.worker.handler("default", payload=kind)(handler)
        return worker

    async def __call__(self, kind: Any, **settings: Any) -> StartedWorker:
        worker = self.prepare(kind, **settings)
        await self._start.begin(worker)
        return worker

    async def until_seen(self, count: int, within: float = 10.0) -> None:
        await wait_until_async(lambda: len(self.seen) == count, f"{count} were run", within)


@pytest.fixture
def kept(start: WorkerStarter) -> Kept:
    return Kept(start)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done once a minute is done twice a second."""
    monkeypatch.setattr("streamqueue.worker.misfits.AGAIN", 0.5)
    monkeypatch.setattr(left, "AGAIN", 0.5)


async def until_left(jobs: Collection[Any], count: int = 1) -> None:
    await wait_until_async(
        lambda: jobs.count_documents({"state": "waiting", "misfit_at": {"$exists": True}}) == count,
        f"{count} jobs were not left to others",
    )


async def test_a_handler_gets_what_its_type_makes_of_the_payload(
    kept: Kept, queue: AsyncMongoQueue
) -> None:
    await kept(Email)

    await queue.put({"to": "ada", "copies": 2, "added_later": True})

    await kept.until_seen(1)
    assert kept.seen == [Email("ada", 2)]


async def test_a_blocking_handler_gets_it_as_well(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = start.prepare()
    seen: list[Email] = []

    @worker.worker.handler("default", payload=Email)
    def handler(job: Job[Email]) -> None:
        seen.append(job.data)

    await start.begin(worker)
    await queue.put(Email("ada"))

    await worker.until_outcomes(completed=1)
    assert seen == [Email("ada")]


async def test_a_handler_in_a_child_process_gets_it_as_well(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = start.prepare()
    worker.worker.handler("default", payload=in_child.Sum, run_in="process")(in_child.adds_up)
    await start.begin(worker)

    assert await queue.request({"left": 2, "right": 3}, timeout=30) == 5


async def test_a_payload_that_does_not_fit_is_left_to_others_without_an_attempt(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = await kept(Email)

    job_id = await queue.put({"name": "secret"})

    await until_left(jobs)
    info = await queue.get(job_id)
    assert (info.state, info.attempts, info.errors) == ("waiting", 0, ())
    assert info.waits_for == {"misfit": "to: missing, expected str"}
    await worker.until_outcomes(released=1)
    assert worker.metric("streamqueue_jobs_left_total", queue="default", reason="misfit") == 1
    assert kept.seen == []


async def test_a_misfit_is_not_written_to_while_nobody_can_run_it(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any], soon: None
) -> None:
    first, second = await kept(Email), await kept(Email)
    await queue.put({})
    await until_left(jobs)
    await first.until_idle()
    before = jobs.find_one({})
    for worker in (first, second):
        worker.commands.forget()

    await wait_until_async(
        lambda: all(len(worker.commands.named("find")) >= 4 for worker in (first, second)),
        "both have looked twice",
    )

    assert jobs.find_one({}) == before
    assert first.commands.claims() == second.commands.claims() == []


async def test_a_worker_that_starts_runs_what_was_left_to_it(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await kept(OldEmail)
    await queue.put({"to": "ada"})
    await until_left(jobs)

    await kept(Email)

    await kept.until_seen(1)
    assert kept.seen == [Email("ada")]
    await wait_until_async(lambda: jobs.count_documents({}) == 0, "it is done")


async def test_a_worker_that_runs_hears_of_what_is_left_to_it(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    new = await kept(Email)
    later = datetime.now(UTC) + timedelta(hours=1)
    running = {"queue": "default", "state": "running", "locked_until": later}
    jobs.insert_one({**running, "payload": {"to": "ada"}})
    await new.until_idle()

    # As one does who has claimed it, and whose types it does not fit.
    left = {"waits_for": {"misfit": "address: missing"}, "misfit_at": datetime.now(UTC)}
    jobs.update_one({}, {"$set": {"state": "waiting", **left}, "$unset": {"locked_until": 1}})

    await kept.until_seen(1)


async def test_a_rolling_deployment_ends_with_every_job_done(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any], soon: None
) -> None:
    old = [await kept(OldEmail, concurrency=5) for _ in range(2)]
    new = await kept(Email, concurrency=5)

    await queue.put_many([{"to": str(number)} for number in range(50)])

    await kept.until_seen(50, within=30.0)
    await wait_until_async(lambda: jobs.count_documents({}) == 0, "all are done")
    assert sorted(int(email.to) for email in kept.seen) == list(range(50))
    await new.until_outcomes(completed=50)
    assert {name for worker in old for name in worker.outcomes()} <= {"released"}


async def test_a_misfit_for_which_nobody_comes_is_dead_with_the_field_named(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await kept(Email, misfit_grace=0.5)

    job_id = await queue.put({"to": 3})

    await wait_until_async(lambda: jobs.count_documents({"state": "dead"}), "it is dead")
    info = await queue.get(job_id)
    assert info.last_error == "misfit: to: expected str, found int"
    assert (info.attempts, info.waits_for) == (0, None)


async def test_without_a_grace_a_misfit_is_dead_at_once(kept: Kept, queue: AsyncMongoQueue) -> None:
    worker = await kept(Email, misfit_grace=0, max_attempts=5)

    job_id = await queue.put({})

    await worker.until_outcomes(dead=1)
    info = await queue.get(job_id)
    assert info.last_error == "misfit: to: missing, expected str"


async def test_a_dead_misfit_that_is_requeued_has_the_whole_grace_again(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = await kept(Email, misfit_grace=3600)
    job_id = await queue.put({})
    await until_left(jobs)
    await worker.until_idle()
    jobs.update_one({}, {"$set": {"misfit_at": datetime.now(UTC) - timedelta(hours=2)}})
    # (An update like this one is told to everybody only by the next look.)
    await worker.stop()
    again = await kept(Email, misfit_grace=3600)
    await wait_until_async(lambda: jobs.count_documents({"state": "dead"}), "it is dead")

    assert await queue.requeue(job_id) == 1

    await again.until_outcomes(released=1)
    await until_left(jobs)
    left = jobs.find_one({})
    assert left is not None
    assert left["misfit_at"] > datetime.now(UTC) - timedelta(hours=1)


async def test_what_replaces_the_payload_of_a_misfit_is_run_at_once(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await kept(Email)
    await queue.put({}, key="ada", on_conflict="replace")
    await until_left(jobs)

    await queue.put({"to": "ada"}, key="ada", on_conflict="replace")

    await kept.until_seen(1)


async def test_a_misfit_can_be_cancelled(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await kept(Email)
    job_id = await queue.put({})
    await until_left(jobs)

    assert await queue.cancel(job_id) == "cancelled"

    assert jobs.count_documents({}) == 0


async def test_a_misfit_expires_like_any_job_that_waits(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await kept(Email)

    await queue.put({}, expires=1)

    await until_left(jobs)
    await wait_until_async(lambda: jobs.count_documents({}) == 0, "it has expired")


async def test_jobs_that_fit_start_behind_misfits(
    kept: Kept, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = kept.prepare(Email)
    await queue.put_many([{} for _ in range(200)])
    await queue.put(Email("ada"))

    await kept._start.begin(worker)

    await kept.until_seen(1)
    await until_left(jobs, 200)


async def test_a_misfit_is_said_once_and_without_its_value(
    kept: Kept,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await kept(Email)

    await queue.put_many([{"to": {"secret": 1}} for _ in range(3)])

    await until_left(jobs, 3)
    lines = [record for record in caplog.records if getattr(record, "event", "") == "jobs_left"]
    assert len(lines) == 1
    assert "to: expected str, found dict" in lines[0].getMessage()
    assert "secret" not in caplog.text


@pytest.mark.parametrize("kind", [dict, int, "Email", AsyncJob], ids=str)
async def test_what_is_no_class_of_payloads_is_refused_when_it_is_registered(
    start: WorkerStarter, kind: Any
) -> None:
    worker = start.prepare()

    with pytest.raises(ConfigurationError, match="payload= must be a dataclass"):
        worker.worker.handler("default", payload=kind)


async def test_a_handler_without_a_type_runs_what_others_have_left(
    kept: Kept, start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await kept(Email)
    await queue.put({"any": 1})
    await until_left(jobs)
    seen: list[Any] = []

    async def handler(job: AsyncJob) -> None:
        seen.append(job.data)

    await start(handler)

    await wait_until_async(lambda: seen == [{"any": 1}], "it was run")


# schedules


async def test_a_schedule_whose_ticks_do_not_fit_its_handler_is_refused(
    start: WorkerStarter, kept: Kept
) -> None:
    for payload in (None, {"wat": 1}):
        worker = start.prepare().worker

        @worker.schedule(every=60, payload=payload)
        @worker.handler("default", payload=Email)
        async def handler(job: AsyncJob[Email]) -> None: ...

        with pytest.raises(ConfigurationError, match=r"handler, .* ticks put: to: missing"):
            await worker.run(handle_signals=False)


async def test_an_instance_may_be_the_payload_of_a_schedule(start: WorkerStarter) -> None:
    worker, seen = start.prepare(), []

    @worker.worker.schedule(every=1, payload=Email("ada"))
    @worker.worker.handler("default", payload=Email)
    async def handler(job: AsyncJob[Email]) -> None:
        seen.append(job.data)

    await start.begin(worker)

    await wait_until_async(lambda: Email("ada") in seen, "it has fired")
