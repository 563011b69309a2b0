"""Keeping: a job that is done stays for as long as it was told to, and its result with it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, JobNotFound, LeaseLost, NewJob, PayloadError
from tests.contract.shells import Shell


def only(jobs: Collection[Any]) -> dict[str, Any]:
    """The one job there is."""
    (document,) = jobs.find({})
    return dict(document)


async def test_a_job_that_is_kept_stays_as_done_with_its_result(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, keep=60)

    await (await queue.next()).complete({"sum": [1, 2.5]})

    document = only(jobs)
    assert document["state"] == "done"
    assert document["result"] == {"sum": [1, 2.5]}
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=60)
    assert {"lease", "locked_by", "locked_at", "locked_until", "kept"}.isdisjoint(document)
    assert "awaited" not in document


async def test_a_job_that_nobody_keeps_is_removed_and_its_result_not_looked_at(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({})

    await (await queue.next()).complete(object())

    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("result", [None, 0, "", [], {"$a": "$$NOW", "a.b": 1}, ObjectId()])
async def test_any_value_of_bson_is_a_result(
    queue: Any, jobs: Collection[Any], result: object
) -> None:
    await queue.put({}, keep=60)

    await (await queue.next()).complete(result)

    assert only(jobs).get("result") == result


async def test_no_result_is_stored_when_there_is_none(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, keep=60)

    async with await queue.next():
        pass

    assert "result" not in only(jobs)


@pytest.mark.parametrize(
    ("put", "of_queue", "kept"),
    [
        pytest.param(None, 5, 5, id="the queue's"),
        pytest.param(7, 5, 7, id="its own before the queue's"),
        pytest.param(timedelta(seconds=7), None, 7, id="a timedelta"),
        pytest.param(0, 5, None, id="its own 0"),
        pytest.param(None, 0, None, id="the queue's 0"),
    ],
)
async def test_the_jobs_own_keep_comes_before_the_queues(
    shell: Shell, jobs: Collection[Any], put: Any, of_queue: Any, kept: float | None
) -> None:
    queue = shell.queue(keep=of_queue)
    await queue.put({}, keep=put)

    await (await queue.next()).complete()

    stays = [document["removed_at"] - document["finished_at"] for document in jobs.find({})]
    assert stays == ([] if kept is None else [timedelta(seconds=kept)])


async def test_jobs_of_one_call_are_kept_as_each_says(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put_many([{}, NewJob({}, keep=5), NewJob({}, keep=0)], keep=9)

    for job in await queue.claim(3):
        await job.complete()

    stays = [document["removed_at"] - document["finished_at"] for document in jobs.find({})]
    assert sorted(stays) == [timedelta(seconds=5), timedelta(seconds=9)]


@pytest.mark.parametrize("keep", [-1, "long", True, float("nan")])
async def test_a_keep_that_is_no_duration_is_refused(shell: Shell, keep: Any) -> None:
    with pytest.raises(ConfigurationError, match="keep must be"):
        shell.queue(keep=keep)
    with pytest.raises(ConfigurationError, match="keep must be"):
        await shell.queue().put({}, keep=keep)


async def test_what_is_kept_is_removed_by_an_index_of_its_own(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, keep=60)

    index = jobs.index_information()["streamqueue_removed"]
    assert (index["key"], index["expireAfterSeconds"]) == ([("removed_at", 1)], 0)


async def test_a_queue_that_keeps_makes_that_index_too(shell: Shell, jobs: Collection[Any]) -> None:
    jobs.drop_indexes()

    assert await shell.queue(keep=60).next() is None

    assert "streamqueue_removed" in jobs.index_information()


UNSTORABLE = {
    "a type": ({"rows": [{"day": date(2026, 1, 1)}]}, r"datetime\.date, at result\['rows'\]\[0\]"),
    "a number": ([2**64], r"int beyond 64 bits, at result\[0\]"),
    "a size": ("x" * 2**20, r"1,048,5\d\d bytes|1,048,576"),
}


@pytest.mark.parametrize(("result", "message"), UNSTORABLE.values(), ids=UNSTORABLE)
async def test_a_result_that_cannot_be_stored_makes_the_job_dead_at_once(
    queue: Any, jobs: Collection[Any], result: object, message: str
) -> None:
    await queue.put({}, keep=60)
    job = await queue.next()

    with pytest.raises(PayloadError, match=message) as raised:
        await job.complete(result)

    document = only(jobs)
    assert (document["state"], document["attempts"]) == ("dead", 1)
    assert document["last_error"] == str(raised.value)
    assert "removed_at" not in document


async def test_a_block_that_completes_with_such_a_result_ends_there(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, keep=60)
    job = await queue.next()

    with pytest.raises(PayloadError):
        async with job:
            await job.complete(object())

    assert "this result cannot be stored" in only(jobs)["last_error"]


async def test_a_job_that_the_server_refuses_with_its_result_is_dead_at_once(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, keep=60)
    job = await queue.next()
    jobs.database.command("collMod", jobs.name, validator={"result": {"$ne": 8}})

    with pytest.raises(PayloadError, match="with this result of 19 bytes"):
        await job.complete(8)

    assert only(jobs)["state"] == "dead"


async def test_a_job_that_was_lost_is_not_done(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, keep=60)
    job = await queue.next()
    jobs.update_one({}, {"$set": {"lease": b"another's"}})

    with pytest.raises(LeaseLost):
        await job.complete(1)

    assert only(jobs)["state"] == "running"


async def test_a_job_is_done_once(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, keep=60)
    job = await queue.next()
    await job.complete(1)

    with pytest.raises(LeaseLost):
        await job.complete(2)

    assert only(jobs)["result"] == 1


@pytest.mark.parametrize("keep", [None, 60])
async def test_a_job_is_done_when_its_transaction_commits(
    shell: Shell, jobs: Collection[Any], keep: float | None
) -> None:
    queue = shell.queue(keep=keep)
    await queue.put({})
    job = await queue.next()

    async with shell.transaction() as session:
        await job.complete(5, session=session)
        states = [document["state"] for document in jobs.find({})]

    assert states == ["running"]
    ended = [(document["state"], document["result"]) for document in jobs.find({})]
    assert ended == ([] if keep is None else [("done", 5)])


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_an_awaited_job_that_nobody_keeps_stays_for_a_minute(
    shell: Shell, queue: Any, jobs: Collection[Any], in_transaction: bool
) -> None:
    await queue.put({})
    job = await queue.next()
    jobs.update_one({}, {"$set": {"awaited": True}})

    if in_transaction:
        async with shell.transaction() as session:
            await job.complete("yes", session=session)
    else:
        await job.complete("yes")

    document = only(jobs)
    assert (document["state"], document["result"], document["awaited"]) == ("done", "yes", False)
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=60)


async def test_an_awaited_job_with_a_result_that_cannot_be_stored_is_dead(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({})
    job = await queue.next()
    jobs.update_one({}, {"$set": {"awaited": True}})

    with pytest.raises(PayloadError):
        await job.complete(object())

    document = only(jobs)
    assert (document["state"], document["awaited"]) == ("dead", False)


@pytest.mark.parametrize("keep", [30, 90])
async def test_an_awaited_job_is_kept_for_the_longer_of_the_two(
    queue: Any, jobs: Collection[Any], keep: float
) -> None:
    await queue.put({}, keep=keep)
    jobs.update_one({}, {"$set": {"awaited": True}})

    await (await queue.next()).complete()

    document = only(jobs)
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=max(keep, 60))


ENDS = {
    "an error": lambda job: job.error("no", delay=0),
    "a release": lambda job: job.release(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_a_job_that_waits_again_is_awaited_still(
    queue: Any, jobs: Collection[Any], end: Any
) -> None:
    await queue.put({}, max_attempts=2)
    jobs.update_one({}, {"$set": {"awaited": True}})

    await end(await queue.next())

    assert only(jobs)["awaited"] is True


async def test_a_dead_job_is_no_longer_awaited(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, max_attempts=1)
    jobs.update_one({}, {"$set": {"awaited": True}})

    await (await queue.next()).error("no")

    document = only(jobs)
    assert (document["state"], document["awaited"]) == ("dead", False)


async def test_a_job_that_died_with_its_consumer_is_no_longer_awaited(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue(max_attempts=1)
    await queue.put({})
    await queue.next()
    past = datetime.now(UTC) - timedelta(hours=1)
    jobs.update_one({}, {"$set": {"awaited": True, "locked_until": past}})

    assert await queue.repair() == 1

    document = only(jobs)
    assert (document["state"], document["awaited"]) == ("dead", False)


async def test_jobs_that_nobody_awaits_get_no_such_field(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, max_attempts=1)
    await (await queue.next()).error("no")

    assert "awaited" not in only(jobs)


async def test_a_job_that_is_requeued_has_nothing_of_its_end(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, max_attempts=1)
    await (await queue.next()).error("no")
    jobs.update_one({}, {"$set": {"awaited": False, "result": 1, "removed_at": datetime.now(UTC)}})

    await queue.requeue(job_id)

    assert {"awaited", "result", "removed_at", "finished_at"}.isdisjoint(only(jobs))


async def test_done_jobs_are_counted_but_not_claimed_again(queue: Any) -> None:
    await queue.put({}, keep=60)
    await (await queue.next()).complete()

    assert await queue.next() is None
    assert await queue.size() == 1
    assert (await queue.stats())["total"] == 1


async def test_a_done_job_is_not_dead(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, keep=60)
    await (await queue.next()).complete()

    with pytest.raises(JobNotFound):
        await queue.requeue(job_id)
    assert await queue.requeue() == 0
    assert await queue.drop_max_attempts() == 0
    assert only(jobs)["state"] == "done"


async def test_a_queue_is_cleared_of_what_is_kept(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, keep=60)
    await (await queue.next()).complete()

    assert await queue.clear() == 1
    assert jobs.count_documents({}) == 0


async def test_a_key_is_free_when_its_job_is_done(queue: Any) -> None:
    await queue.put({}, key="a", keep=60)
    await (await queue.next()).complete()

    await queue.put({}, key="a", keep=60)

    assert await queue.size() == 2


async def test_who_waits_for_a_job_of_a_queue_that_is_cleared_hears_of_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put_many([{}, {}, {}], delay=None)
    await queue.next()
    jobs.update_many({}, {"$set": {"awaited": True}})

    with jobs.watch([], max_await_time_ms=100) as stream:
        await queue.clear()
        told = []
        while (event := stream.try_next()) is not None:
            if event["operationType"] == "update":
                updated = event["updateDescription"]["updatedFields"]
                told.append((updated["state"], updated["awaited"]))

    assert told == [("cancelled", False)] * 3


async def test_what_another_program_has_kept_is_removed_by_the_index_too(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue()
    jobs.insert_one({"queue": queue.name, "state": "ready", "payload": {}, "keep": 60})
    await (await queue.next()).complete()

    assert await queue.next() is None

    assert "streamqueue_removed" in jobs.index_information()
