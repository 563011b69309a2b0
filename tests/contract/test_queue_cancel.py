"""Cancelling: what waits has ended at once, and whoever runs a job is asked to stop it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import ExecutionTimeout
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncMongoQueue,
    Cancel,
    ConfigurationError,
    JobCancelled,
    JobNotFound,
    LeaseLost,
    MongoQueue,
)
from streamqueue.protocol import operations
from streamqueue.queue.steering import canceller
from tests.contract.shells import Shell
from tests.waiting import wait_until_async


def only(jobs: Collection[Any]) -> dict[str, Any]:
    """The one job there is."""
    (document,) = jobs.find({})
    return dict(document)


class PutsBehind(CommandListener):
    """Puts a job right after somebody has not found it, and before he looks again."""

    def __init__(self, jobs: Collection[Any], job_id: ObjectId) -> None:
        self._jobs = jobs
        self._left = [{"_id": job_id, "queue": "default", "state": "ready", "payload": {}}]

    def started(self, event: CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: CommandSucceededEvent) -> None:
        if event.command_name == "findAndModify" and self._left:
            self._jobs.insert_one(self._left.pop())

    def failed(self, event: CommandFailedEvent) -> None:
        pass


# what waits


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
async def test_a_job_that_is_put_at_the_same_time_has_not_ended(
    uri: str, jobs: Collection[Any], is_async: bool
) -> None:
    job_id = ObjectId()
    behind = PutsBehind(jobs, job_id)
    if is_async:
        async with AsyncMongoClient[Any](uri, event_listeners=[behind]) as client:
            cancelled = await AsyncMongoQueue(client[jobs.database.name].jobs).cancel(job_id)
    else:
        with MongoClient[Any](uri, event_listeners=[behind]) as client:
            cancelled = MongoQueue(client[jobs.database.name].jobs).cancel(job_id)

    assert cancelled == "cancelled"
    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("delay", [None, 60])
async def test_a_job_that_waits_is_gone(
    queue: Any, jobs: Collection[Any], delay: float | None
) -> None:
    job_id = await queue.put({}, delay=delay)

    assert await queue.cancel(job_id) == "cancelled"

    assert jobs.count_documents({}) == 0
    assert await queue.next() is None


@pytest.mark.parametrize(
    ("put", "of_queue", "kept"), [(60, None, 60), (None, 50, 50), (60, 50, 60), (0, 50, None)]
)
async def test_a_job_that_is_kept_stays_as_cancelled(
    shell: Shell, jobs: Collection[Any], put: float | None, of_queue: float | None, kept: Any
) -> None:
    queue = shell.queue(keep=of_queue)
    job_id = await queue.put({}, keep=put)

    assert await queue.cancel(job_id) == "cancelled"

    found = [
        (document["state"], document["removed_at"] - document["finished_at"])
        for document in jobs.find({})
    ]
    assert found == ([] if kept is None else [("cancelled", timedelta(seconds=kept))])
    assert await queue.next() is None


async def test_a_job_that_somebody_waits_for_stays_for_a_minute(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({})
    jobs.update_one({}, {"$set": {"awaited": True}})

    assert await queue.cancel(job_id) == "cancelled"

    document = only(jobs)
    assert (document["state"], document["awaited"]) == ("cancelled", False)
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=60)


async def test_a_job_that_has_ended_is_not_cancelled(queue: Any, jobs: Collection[Any]) -> None:
    done = await queue.put({}, keep=60)
    await (await queue.next()).complete(5)
    dead = await queue.put({}, max_attempts=1)
    await (await queue.next()).error("no")

    assert await queue.cancel(done) is None
    assert await queue.cancel(dead) is None

    assert {document["state"] for document in jobs.find({})} == {"done", "dead"}


@pytest.mark.parametrize("job_id", [ObjectId(), "6b0ddfb9cb9c2f1c9f4a1515", "no such", 5])
async def test_a_job_that_is_not_there_is_not_found(queue: Any, job_id: object) -> None:
    with pytest.raises(JobNotFound):
        await queue.cancel(job_id)


async def test_a_job_of_another_queue_is_not_found(shell: Shell, queue: Any) -> None:
    job_id = await shell.queue(name="other").put({})

    with pytest.raises(JobNotFound):
        await queue.cancel(job_id)


async def test_what_cannot_be_an_id_is_refused(queue: Any) -> None:
    with pytest.raises(ConfigurationError):
        await queue.cancel({"$ne": None})


async def test_an_id_may_be_given_as_its_text(queue: Any) -> None:
    assert await queue.cancel(str(await queue.put({}))) == "cancelled"


async def test_the_key_of_a_cancelled_job_is_free(queue: Any) -> None:
    await queue.cancel(await queue.put({}, key="a", keep=60))

    await queue.put({}, key="a")


async def test_a_cancelled_job_that_is_kept_can_be_requeued(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, keep=60)
    await queue.cancel(job_id)

    assert await queue.requeue(job_id) == 1

    assert (await queue.next()).id == job_id


# what runs


async def test_a_job_that_runs_is_asked_for_and_runs_on(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({})
    await queue.next()

    assert await queue.cancel(job_id) == "asked"
    first = only(jobs)["cancel_requested_at"]
    assert await queue.cancel(job_id) == "asked"

    document = only(jobs)
    assert (document["state"], document["cancel_requested_at"]) == ("running", first)


async def test_a_completion_before_its_holder_knew_of_the_request_stands(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, keep=60)
    job = await queue.next()
    await queue.cancel(job_id)

    await job.complete(5)

    document = only(jobs)
    assert (document["state"], document["result"]) == ("done", 5)


ENDS = {
    "an error": lambda job: job.error("no"),
    "an error without a delay": lambda job: job.error("no", delay=0),
    "a release": lambda job: job.release(),
    "a release for later": lambda job: job.release(delay=60),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("max_attempts", [1, 3])
async def test_a_job_that_was_asked_for_never_waits_again(
    queue: Any, jobs: Collection[Any], end: Any, max_attempts: int
) -> None:
    job_id = await queue.put({}, keep=60, max_attempts=max_attempts)
    jobs.update_one({}, {"$set": {"awaited": True}})
    job = await queue.next()
    await queue.cancel(job_id)

    await end(job)

    document = only(jobs)
    assert (document["state"], document["awaited"]) == ("cancelled", False)
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=60)
    assert {"lease", "locked_by", "allowed", "kept"}.isdisjoint(document)


async def test_such_a_job_that_nobody_keeps_is_due_to_be_removed(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({})
    job = await queue.next()
    await queue.cancel(job_id)

    await job.release()

    document = only(jobs)
    assert document["removed_at"] == document["finished_at"]
    assert "streamqueue_removed" in jobs.index_information()


@pytest.mark.parametrize("keep", [None, 60])
async def test_a_job_that_was_asked_for_is_not_returned_from_a_dead_consumer(
    queue: Any, jobs: Collection[Any], keep: float | None
) -> None:
    job_id = await queue.put({}, keep=keep)
    await queue.next()
    await queue.cancel(job_id)
    jobs.update_one({}, {"$set": {"locked_until": datetime.now(UTC) - timedelta(hours=1)}})

    assert await queue.repair() == 1

    states = [document["state"] for document in jobs.find({})]
    assert states == ([] if keep is None else ["cancelled"])


async def test_a_job_that_is_requeued_was_not_asked_for(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, keep=60)
    job = await queue.next()
    await queue.cancel(job_id)
    await job.release()

    await queue.requeue(job_id)
    await (await queue.next()).release()

    document = only(jobs)
    assert document["state"] == "ready"
    assert "cancel_requested_at" not in document


# who holds it, without a stream


async def asked(queue: Any, **settings: Any) -> Any:
    """A held job that somebody has asked for, and whose holder has looked."""
    job_id = await queue.put({}, **settings)
    job = await queue.next()
    assert await queue.cancel(job_id) == "asked"
    await wait_until_async(lambda: job.cancelled, "it is known")
    return job


async def test_a_job_shows_that_it_was_asked_for(queue: Any) -> None:
    job_id = await queue.put({})
    job = await queue.next()
    assert not job.cancelled

    await queue.cancel(job_id)

    await wait_until_async(lambda: job.cancelled, "it is known")


async def test_a_job_that_nobody_asked_for_does_not_show_that(queue: Any) -> None:
    await queue.put({})
    job = await queue.next()

    for _ in range(5):
        assert not job.cancelled
        await anyio.lowlevel.checkpoint()
    await job.complete()

    assert not job.cancelled


CALLS = {
    "complete": lambda job: job.complete(5),
    "progress": lambda job: job.progress(3),
    **ENDS,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_the_next_call_of_a_job_that_was_asked_for_ends_it(
    queue: Any, jobs: Collection[Any], call: Any
) -> None:
    job = await asked(queue, keep=60)

    with pytest.raises(JobCancelled) as raised:
        await call(job)

    assert raised.value.job_id == job.id
    document = only(jobs)
    assert document["state"] == "cancelled"
    assert "result" not in document
    assert job.cancelled


async def test_every_further_call_says_the_same(queue: Any, jobs: Collection[Any]) -> None:
    job = await asked(queue)

    for _ in range(2):
        with pytest.raises(JobCancelled):
            await job.complete()

    assert jobs.count_documents({}) == 0


async def test_progress_learns_it_and_the_next_call_says_so(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, keep=60)
    job = await queue.next()
    await queue.cancel(job_id)

    await job.progress(7)
    assert only(jobs)["state"] == "running"
    with pytest.raises(JobCancelled):
        await job.progress(8)

    document = only(jobs)
    assert (document["state"], document["progress"]) == ("cancelled", 7)


async def test_a_block_of_a_job_that_was_asked_for_ends_it_as_cancelled(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await asked(queue, keep=60)

    async with job:
        pass

    assert only(jobs)["state"] == "cancelled"


async def test_an_exception_of_such_a_block_is_raised_again(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await asked(queue, keep=60)

    with pytest.raises(ZeroDivisionError):
        async with job:
            raise ZeroDivisionError

    document = only(jobs)
    assert document["state"] == "cancelled"
    assert "last_error" not in document


async def test_a_call_that_ends_a_block_is_raised_from_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await asked(queue, keep=60)

    with pytest.raises(JobCancelled):
        async with job:
            await job.progress(1)

    assert only(jobs)["state"] == "cancelled"


async def test_a_job_that_was_lost_shows_nothing(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({})
    job = await queue.next()
    jobs.update_one({}, {"$set": {"lease": b"another's"}})
    await queue.cancel(job_id)

    assert not job.cancelled
    with pytest.raises(LeaseLost):
        await job.progress(1)


# by who holds it


@pytest.mark.parametrize("reason", [None, "no such customer"])
async def test_a_block_may_cancel_its_job(
    queue: Any, jobs: Collection[Any], reason: str | None
) -> None:
    await queue.put({}, keep=60)

    with pytest.raises(Cancel):
        async with await queue.next():
            raise Cancel(reason)

    document = only(jobs)
    assert document["state"] == "cancelled"
    assert document.get("last_error") == reason
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=60)


async def test_a_job_that_its_block_cancels_is_gone_if_nobody_keeps_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({})

    with pytest.raises(Cancel):
        async with await queue.next():
            raise Cancel

    assert jobs.count_documents({}) == 0


# what other programs store


async def test_null_is_no_request(queue: Any, jobs: Collection[Any]) -> None:
    """Programs that write all of their fields store null for what is not so."""
    job_id = await queue.put({})
    jobs.update_one({"_id": job_id}, {"$set": {"cancel_requested_at": None}})
    job = await queue.next()
    await job.progress(1)

    await job.error("no", delay=0)

    assert only(jobs)["state"] == "ready"
    await (await queue.next()).complete()
    assert jobs.count_documents({}) == 0


async def test_a_request_waits_for_no_transaction_for_long(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canceller, "PATIENCE_MS", 200)
    job_id = await queue.put({})
    job = await queue.next()
    with jobs.database.client.start_session() as session, session.start_transaction():
        jobs.update_one({"_id": job_id}, {"$set": {"touched": True}}, session=session)

        with pytest.raises(ExecutionTimeout):
            await queue.cancel(job_id)

        session.abort_transaction()
    assert await queue.cancel(job_id) == "asked"
    await job.release()


async def test_to_ask_often_whether_a_job_is_cancelled_looks_once(queue: Any) -> None:
    await queue.put({})
    job = await queue.next()
    tasks = len(anyio.get_running_tasks())

    assert not any(job.cancelled for _ in range(1000))

    assert len(anyio.get_running_tasks()) <= tasks + 1


async def test_a_job_can_be_asked_from_a_thread_whether_it_is_cancelled(queue: Any) -> None:
    await queue.put({})
    job = await queue.next()

    assert await anyio.to_thread.run_sync(lambda: job.cancelled) is False


@pytest.mark.parametrize("removed_at", [None, "soon", datetime(2126, 1, 1, tzinfo=UTC)])
def test_only_what_has_stayed_long_enough_is_removed(
    jobs: Collection[Any], removed_at: object
) -> None:
    """Somebody may have cancelled a job by hand, and said nothing of that, or anything."""
    fields = {} if removed_at is None else {"removed_at": removed_at}
    jobs.insert_one({"_id": 1, "state": "cancelled", **fields})

    jobs.delete_many(operations.cancelled_and_over([1]))

    assert jobs.count_documents({"_id": 1}) == 1
