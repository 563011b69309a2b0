"""Waiting for what becomes of jobs: their ends, their results, and each change on the way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after
from anyio.to_thread import run_sync
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncMongoQueue,
    Backoff,
    JobCancelled,
    JobFailed,
    JobInfo,
    JobNotFound,
    MongoQueue,
    StreamQueueError,
    Worker,
)
from streamqueue.protocol import operations
from tests.contract.looks import awaited_streams, document, kill_streams, open_streams
from tests.contract.shells import InThreads, Shell
from tests.contract.waiters import SOON, WAIT, Waiter
from tests.waiting import wait_until, wait_until_async
from tests.worker.faults import DONE_AND_NOT_HEARD, failing

APP = "waits"
LONG = 10.0
"""Seconds that a call waits at the most: a thread that waited for ever could not be cancelled."""
Call = Callable[[], Awaitable[Any]]


class Outcome(Waiter):
    """A call in a task of its own, and what it returned or raised."""

    async def run(self, call: Call) -> None:
        try:
            await super().run(call)
        except Exception as error:
            self.result = error
            self.done.set()


@asynccontextmanager
async def asking(jobs: Collection[Any], *calls: Call) -> AsyncIterator[list[Outcome]]:
    """Run calls, and go on once they are all marked and the stream is read."""
    outcomes = [Outcome() for _ in calls]
    async with create_task_group() as tasks:
        for outcome, call in zip(outcomes, calls, strict=True):
            tasks.start_soon(outcome.run, call)
        await wait_until_async(lambda: awaited_streams(jobs), "the stream is read")
        await wait_until_async(
            lambda: jobs.count_documents({"awaited": True}) >= 1, "a job is marked"
        )
        yield outcomes


async def states(queue: Any, job_id: Any) -> AsyncIterator[JobInfo]:
    """What ``watch`` yields, of either shell."""
    if not isinstance(queue, InThreads):
        async with aclosing(queue.watch(job_id)) as watched:
            async for info in watched:
                yield info
        return
    blocking: Iterator[JobInfo] = queue._target.watch(job_id)
    while (info := await run_sync(partial(next, blocking, None))) is not None:
        yield info


async def one_job(queue: Any, **settings: Any) -> tuple[Any, Any]:
    """A job that runs: its id, and whoever holds it."""
    job_id = await queue.put({"n": 1}, **settings)
    return job_id, await queue.next()


# the end


async def test_a_wait_ends_when_the_job_is_done_though_nobody_keeps_it(
    shell: Shell, jobs: Collection[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        await job.complete({"sent": 3})
        info = await outcome.soon()

    assert (info.id, info.state, info.ended, info.result) == (job_id, "done", True, {"sent": 3})
    assert info.data == {"n": 1}


async def test_a_wait_ends_when_the_job_is_dead(shell: Shell, jobs: Collection[Any]) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker, max_attempts=1)

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        await job.error("boom")
        info = await outcome.soon()

    assert (info.state, info.last_error) == ("dead", "boom")


async def test_a_wait_goes_on_when_an_attempt_fails(shell: Shell, jobs: Collection[Any]) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker, max_attempts=2)

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        await job.error("boom", delay=0)
        await (await worker.next()).complete()
        info = await outcome.soon()

    assert (info.state, info.attempts, info.last_error) == ("done", 2, "boom")


async def test_a_wait_ends_when_another_program_replaces_the_job_by_one_that_has_ended(
    shell: Shell, jobs: Collection[Any]
) -> None:
    waits = shell.queue()
    job_id = await waits.put({})

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        ended = {"queue": "default", "state": "cancelled", "payload": {}, "awaited": False}
        jobs.replace_one({"_id": job_id}, ended)
        info = await outcome.soon()

    assert info.state == "cancelled"


async def test_many_that_wait_for_one_job_are_all_told(shell: Shell, jobs: Collection[Any]) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)
    calls = [lambda: waits.wait(job_id, LONG)] * 8

    async with asking(jobs, *calls) as outcomes:
        await job.complete(7)
        results = [(await outcome.soon()).result for outcome in outcomes]

    assert results == [7] * 8


async def test_a_wait_for_what_has_ended_returns_at_once_and_opens_no_stream(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue(keep=60)
    job_id, job = await one_job(queue)
    await job.complete("fine")

    with fail_after(SOON):
        info = await queue.wait(job_id)

    assert (info.state, info.result) == ("done", "fine")
    assert open_streams(jobs) == 0
    assert "awaited" not in document(jobs, job_id)


async def test_a_wait_for_what_is_gone_says_at_once_what_to_set(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id, job = await one_job(queue)
    await job.complete()

    with fail_after(SOON), pytest.raises(JobNotFound, match=r"put it with keep=.*request\(\)"):
        await queue.wait(job_id)

    assert open_streams(jobs) == 0


async def test_a_wait_ends_when_its_time_is_over_and_the_job_is_as_it_was(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({})

    for timeout in (0, 0.1):
        with fail_after(SOON), pytest.raises(TimeoutError):
            await queue.wait(job_id, timeout=timeout)

    assert (await queue.get(job_id)).state == "ready"


async def test_a_wait_ends_when_the_queue_is_cleared(shell: Shell, jobs: Collection[Any]) -> None:
    waits = shell.queue()
    job_id = await waits.put({})

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        await shell.queue().clear()

        assert isinstance(await outcome.soon(), JobNotFound)


async def test_a_wait_ends_when_the_queue_object_is_closed(
    shell: Shell, jobs: Collection[Any]
) -> None:
    waits = shell.queue()
    job_id = await waits.put({})
    calls = [lambda: waits.wait(job_id, LONG)] * 3

    async with asking(jobs, *calls) as outcomes:
        await waits.close()
        errors = [await outcome.soon() for outcome in outcomes]

    assert [str(error) for error in errors] == [
        "the queue was closed while this call waited for a job"
    ] * 3
    assert all(isinstance(error, StreamQueueError) for error in errors)
    assert open_streams(jobs) == 0


async def test_a_queue_object_can_be_waited_on_again_once_it_was_closed(
    shell: Shell, jobs: Collection[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)
    with pytest.raises(TimeoutError):
        await waits.wait(job_id, timeout=0.1)
    await waits.close()

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        await job.complete(1)

        assert (await outcome.soon()).result == 1


async def test_a_requeued_job_is_waited_for_till_its_next_end(
    shell: Shell, jobs: Collection[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker, max_attempts=1)
    await job.error("boom")
    await worker.requeue(job_id)

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        await (await worker.next()).complete("at last")

        assert (await outcome.soon()).result == "at last"


async def test_a_wait_that_is_over_lets_another_read_the_stream(
    shell: Shell, jobs: Collection[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)

    async with asking(
        jobs, lambda: waits.wait(job_id, timeout=0.3), lambda: waits.wait(job_id, LONG)
    ) as [first, second]:
        assert isinstance(await first.soon(), TimeoutError)
        await job.complete(2)

        assert (await second.soon()).result == 2


async def test_who_watches_and_takes_its_time_keeps_no_other_waiting(
    shell: Shell, jobs: Collection[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    watched_id, watched = await one_job(worker)
    other_id, other = await one_job(worker)
    changes = states(waits, watched_id)
    await anext(changes)
    reader, sleeper = Outcome(), Outcome()

    async with create_task_group() as tasks:
        tasks.start_soon(reader.run, lambda: anext(changes))
        await wait_until_async(lambda: awaited_streams(jobs), "it reads the stream")
        tasks.start_soon(sleeper.run, lambda: waits.wait(other_id, LONG))
        await wait_until_async(
            lambda: jobs.count_documents({"awaited": True}) == 2, "the other one waits"
        )
        await watched.progress(1)
        assert (await reader.soon()).progress == 1

        await other.complete(2)

        assert (await sleeper.soon()).result == 2


async def test_an_id_that_no_program_uses_keeps_no_other_waiting(
    shell: Shell, jobs: Collection[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)
    strange = {"_id": "x" * 1025, "queue": waits.name, "state": "scheduled", "payload": {}}
    jobs.insert_one(strange)
    changes = states(waits, strange["_id"])
    await anext(changes)
    reader, sleeper = Outcome(), Outcome()

    async with create_task_group() as tasks:
        tasks.start_soon(reader.run, lambda: anext(changes))
        tasks.start_soon(sleeper.run, lambda: waits.wait(job_id, LONG))
        await wait_until_async(
            lambda: jobs.count_documents({"awaited": True}) == 2, "both are marked"
        )
        await job.complete(2)
        jobs.update_one({"_id": strange["_id"]}, {"$set": {"progress": 5}})

        assert (await sleeper.soon()).result == 2
        assert (await reader.soon()).progress == 5


async def test_a_cancelled_wait_leaves_the_stream_to_the_others(
    async_client: AsyncMongoClient[Any], jobs: Collection[Any]
) -> None:
    first, second = Outcome(), Outcome()
    async with AsyncMongoQueue(async_client[jobs.database.name][jobs.name]) as queue:
        job_id, job = await one_job(queue)
        async with create_task_group() as others:
            async with create_task_group() as tasks:
                tasks.start_soon(first.run, lambda: queue.wait(job_id))
                await wait_until_async(lambda: awaited_streams(jobs), "the first one reads")
                others.start_soon(second.run, lambda: queue.wait(job_id, LONG))
                tasks.cancel_scope.cancel()
            await job.complete("fine")

            assert (await second.soon()).result == "fine"
    assert not first.done.is_set()
    assert open_streams(jobs) == 0


# results


async def test_a_result_is_that_of_a_job_that_was_kept(shell: Shell) -> None:
    queue = shell.queue(keep=60)
    job_id, job = await one_job(queue)
    await job.complete([1, "two"])

    assert await queue.result(job_id) == [1, "two"]


async def test_a_result_can_be_waited_for(shell: Shell, jobs: Collection[Any]) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)

    async with asking(jobs, lambda: waits.result(job_id, wait=LONG)) as [outcome]:
        await job.complete(42)

        assert await outcome.soon() == 42


async def test_there_is_no_result_of_a_job_that_runs(queue: Any) -> None:
    job_id, _ = await one_job(queue)

    with pytest.raises(TimeoutError, match="it is running"):
        await queue.result(job_id)


async def test_the_result_of_a_dead_job_is_its_last_error(queue: Any) -> None:
    job_id, job = await one_job(queue, max_attempts=1)
    await job.error("Traceback:\nValueError: no address")

    with pytest.raises(JobFailed, match="is dead: ValueError: no address") as failed:
        await queue.result(job_id)

    assert (failed.value.info.id, failed.value.info.attempts) == (job_id, 1)


async def test_the_result_of_a_cancelled_job_is_that(queue: Any, jobs: Collection[Any]) -> None:
    job_id = jobs.insert_one(
        {"queue": "default", "state": "cancelled", "payload": {}, "finished_at": datetime.now(UTC)}
    ).inserted_id

    for wait in (None, 1):
        with pytest.raises(JobCancelled):
            await queue.result(job_id, wait)


async def test_there_is_no_result_of_what_is_gone(queue: Any) -> None:
    with pytest.raises(JobNotFound, match="keep="):
        await queue.result(ObjectId())


# requests


async def test_a_request_returns_what_its_job_does(shell: Shell, jobs: Collection[Any]) -> None:
    asks, worker = shell.queue(), shell.queue()

    async with asking(jobs, lambda: asks.request({"n": 20}, priority=3, timeout=LONG)) as [outcome]:
        job = await worker.next(wait=WAIT)
        await job.complete(job.data["n"] + 1)

        assert await outcome.soon() == 21
    assert job.priority == 3


async def test_a_request_has_the_index_made_by_which_its_job_is_removed(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.drop_indexes()

    with pytest.raises(TimeoutError):
        await queue.request({}, timeout=0)

    assert "streamqueue_removed" in jobs.index_information()


async def test_a_request_raises_what_became_of_its_job(shell: Shell, jobs: Collection[Any]) -> None:
    asks, worker = shell.queue(), shell.queue()

    async with asking(jobs, lambda: asks.request({}, max_attempts=1, timeout=LONG)) as [outcome]:
        await (await worker.next(wait=WAIT)).error("boom")

        assert isinstance(await outcome.soon(), JobFailed)


async def test_a_request_that_is_too_late_is_told_so(shell: Shell, jobs: Collection[Any]) -> None:
    asks, worker = shell.queue(), shell.queue()

    async with asking(jobs, lambda: asks.request({}, expires=0.5, timeout=LONG)) as [outcome]:
        expired = {"expires_at": {"$exists": True}, "$expr": {"$lt": ["$expires_at", "$$NOW"]}}
        await wait_until_async(lambda: jobs.count_documents(expired), "it is too late")
        assert await worker.next() is None
        assert isinstance(await outcome.soon(), JobCancelled)


async def test_a_request_that_takes_too_long_leaves_its_job(queue: Any) -> None:
    job_id = ObjectId()

    with pytest.raises(TimeoutError):
        await queue.request({}, timeout=0.1, job_id=job_id)

    assert (await queue.get(job_id)).state == "ready"


async def test_a_repeated_request_returns_what_the_first_one_has_done(shell: Shell) -> None:
    queue, job_id = shell.queue(keep=60), ObjectId()
    await queue.put({}, job_id=job_id)
    await (await queue.next()).complete("once")

    with fail_after(SOON):
        assert await queue.request({}, job_id=job_id) == "once"


@pytest.mark.few(1)
async def test_every_request_of_many_returns_its_own_value(
    shell: Shell, async_client: AsyncMongoClient[Any], jobs: Collection[Any]
) -> None:
    """On a queue that keeps nothing, by a worker that is as quick as it can be."""
    asks, answers = shell.queue(), {}
    worker = Worker(async_client[jobs.database.name][jobs.name], concurrency=100)

    @worker.handler("default")
    async def double(job: Any) -> int:
        return int(job.data["n"]) * 2

    async def ask(n: int) -> None:
        answers[n] = await asks.request({"n": n}, timeout=LONG)

    async with create_task_group() as tasks:
        await tasks.start(partial(worker.run, handle_signals=False))
        async with create_task_group() as asking:
            for n in range(500):
                asking.start_soon(ask, n)
        worker.stop()

    assert answers == {n: n * 2 for n in range(500)}


# what it costs


class Commands(CommandListener):
    """Counts the commands of a client, and of its stream's."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def started(self, event: Any) -> None:
        self.count[event.command_name] += 1

    def succeeded(self, event: Any) -> None: ...
    def failed(self, event: Any) -> None: ...


def end_them_all(jobs: Collection[Any], count: int) -> None:
    """Let so many jobs end at once, when somebody waits for each of them."""
    wait_until(lambda: jobs.count_documents({"awaited": True}) == count, "all are marked", 60)
    ended = {"state": "done", "result": "$payload.n", "awaited": False, "finished_at": "$$NOW"}
    jobs.update_many({}, [{"$set": ended}])


def waited_for_in_threads(
    client: MongoClient[Any], jobs: Collection[Any], ids: list[ObjectId], commands: Commands
) -> tuple[dict[ObjectId, JobInfo], Counter[str]]:
    with MongoQueue(client[jobs.database.name][jobs.name]) as queue:
        queue.size()
        commands.count.clear()
        told = {}

        def wait(job_id: ObjectId) -> None:
            told[job_id] = queue.wait(job_id)

        threads = [threading.Thread(target=wait, args=[job_id]) for job_id in ids]
        for thread in threads:
            thread.start()
        end_them_all(jobs, len(ids))
        for thread in threads:
            thread.join(WAIT)
        return told, commands.count.copy()


async def waited_for_in_tasks(
    client: AsyncMongoClient[Any], jobs: Collection[Any], ids: list[ObjectId], commands: Commands
) -> tuple[dict[ObjectId, JobInfo], Counter[str]]:
    async with AsyncMongoQueue(client[jobs.database.name][jobs.name]) as queue:
        await queue.size()
        commands.count.clear()
        told = {}

        async def wait(job_id: ObjectId) -> None:
            told[job_id] = await queue.wait(job_id)

        async with create_task_group() as tasks:
            for job_id in ids:
                tasks.start_soon(wait, job_id)
            await run_sync(end_them_all, jobs, len(ids))
        return told, commands.count.copy()


@pytest.mark.few(1)
@pytest.mark.parametrize("shell", ["blocking", "async"])
async def test_a_thousand_that_wait_have_one_stream_and_no_query_but_their_first_look(
    uri: str, jobs: Collection[Any], shell: str
) -> None:
    ids = MongoQueue(jobs).put_many([{"n": n} for n in range(1000)])
    commands = Commands()

    if shell == "async":
        async with AsyncMongoClient(uri, tz_aware=True, event_listeners=[commands]) as client:
            told, counted = await waited_for_in_tasks(client, jobs, ids, commands)
    else:
        with MongoClient(uri, tz_aware=True, event_listeners=[commands]) as blocking:
            told, counted = waited_for_in_threads(blocking, jobs, ids, commands)

    assert [told[job_id].result for job_id in ids] == list(range(1000))
    asked = {name: counted[name] for name in ("findAndModify", "aggregate", "find", "update")}
    assert asked == {"findAndModify": 1000, "aggregate": 1, "find": 0, "update": 0}


async def test_the_stream_is_shut_when_nobody_has_waited_for_a_while(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamqueue.queue.answers.waiting.IDLE", 0.2)
    job_id = await queue.put({})
    with pytest.raises(TimeoutError):
        await queue.wait(job_id, timeout=0.1)
    assert open_streams(jobs) == 1

    await wait_until_async(lambda: not open_streams(jobs), "the stream is shut")


def test_the_server_looks_up_only_what_somebody_waits_for(jobs: Collection[Any]) -> None:
    """By its plan: the condition stands before the stage that looks documents up, the last one that
    the change stream has."""
    if jobs.database.client.server_info()["versionArray"][0] < 6:
        pytest.skip("5.0 looks up every changed document, and filters then")
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {}})
    changes = {"$changeStream": {"fullDocument": "updateLookup"}}
    pipeline = [changes, *operations.ends_pipeline([1, 2])]

    plan = jobs.database.command(
        "explain", {"aggregate": jobs.name, "pipeline": pipeline, "cursor": {}}
    )

    stages = [(next(iter(stage)), str(stage)) for stage in plan["stages"]]
    looks_up = max(at for at, (name, _) in enumerate(stages) if name == "$changeStream")
    [asks] = [at for at, (name, text) in enumerate(stages) if "updatedFields.awaited" in text]
    assert asks < looks_up


# outages


class EndsBetween(CommandListener):
    """Has a job done right after it was marked, before the driver marks it once more."""

    def __init__(self, jobs: Collection[Any]) -> None:
        self._worker = MongoQueue(jobs)

    def started(self, event: CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        if event.command_name == "findAndModify":
            job = self._worker.next()
            assert job is not None
            job.complete("fine")


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
async def test_no_end_is_missed_when_the_first_look_is_sent_twice(
    uri: str, client: MongoClient[Any], jobs: Collection[Any], is_async: bool
) -> None:
    """The reply is the one of the first time, and says that it is of the second (6.0.5)."""
    job_id = MongoQueue(jobs).put({})
    between, where = EndsBetween(jobs), jobs.database.name
    with failing(client, "findAndModify", app=APP, times=1, **DONE_AND_NOT_HEARD) as fault:
        if is_async:
            async with AsyncMongoClient[Any](uri, event_listeners=[between], appname=APP) as own:
                asynchronous = AsyncMongoQueue(own[where].jobs)
                info = await asynchronous.wait(job_id, LONG)
                await asynchronous.close()
        else:
            with MongoClient[Any](uri, event_listeners=[between], appname=APP) as own_too:
                blocking = MongoQueue(own_too[where].jobs)
                info = await run_sync(blocking.wait, job_id, LONG)
                blocking.close()

    assert fault.hits() == 1
    assert info.result == "fine"


@pytest.mark.few(2)
@pytest.mark.parametrize("times", [1, 5])
async def test_no_end_is_missed_when_the_stream_breaks(
    shell: Shell, jobs: Collection[Any], times: int
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        for _ in range(times):
            kill_streams(jobs)
        await job.complete("fine")

        assert (await outcome.soon()).result == "fine"


async def test_no_end_is_missed_when_the_stream_has_lost_its_place(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)
    lost: Any = {"errorCode": 286, "errorLabels": ["NonResumableChangeStreamError"]}

    async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
        with failing(client, "getMore", "aggregate", app="streamqueue-ends", **lost) as fault:
            await wait_until_async(lambda: fault.hits() >= 2, "the stream is lost")
            await job.complete("fine")

        assert (await outcome.soon()).result == "fine"


async def test_no_end_is_missed_between_the_first_look_and_the_opening_of_the_stream(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)
    outcome = Outcome()
    slow: Any = {"blockConnection": True, "blockTimeMS": 500}

    with failing(client, "aggregate", app="streamqueue-ends", times=1, **slow) as fault:
        async with create_task_group() as tasks:
            tasks.start_soon(outcome.run, lambda: waits.wait(job_id, LONG))
            await wait_until_async(lambda: fault.hits(), "the stream is being opened")
            await job.complete("fine")

            assert (await outcome.soon()).result == "fine"


async def test_a_wait_outlasts_an_outage_before_its_first_look(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    waits, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)
    await waits.size()

    with failing(client, "findAndModify", app=None, times=3, errorCode=50):
        async with asking(jobs, lambda: waits.wait(job_id, LONG)) as [outcome]:
            await job.complete("fine")

            assert (await outcome.soon()).result == "fine"


async def test_a_wait_without_the_right_to_a_stream_is_refused(
    queue: Any, client: MongoClient[Any]
) -> None:
    job_id = await queue.put({})

    with (
        failing(client, "aggregate", app="streamqueue-ends", errorCode=13),
        fail_after(SOON),
        pytest.raises(OperationFailure),
    ):
        await queue.wait(job_id)


async def test_a_wait_needs_no_right_to_mark_the_job(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    """All that happens to it is asked for instead; an end that leaves nothing is its removal."""
    waits, worker = shell.queue(), shell.queue()
    (kept, held), (left, other) = await one_job(worker, keep=60), await one_job(worker)
    outcomes = [Outcome(), Outcome()]

    with failing(client, "findAndModify", app=None, errorCode=13):
        async with create_task_group() as tasks:
            for outcome, job_id in zip(outcomes, (kept, left), strict=True):
                tasks.start_soon(outcome.run, partial(waits.wait, job_id, LONG))
            await wait_until_async(lambda: awaited_streams(jobs), "the stream is read")
            await held.complete(1)
            await other.complete(2)

            assert (await outcomes[0].soon()).result == 1
            assert isinstance(await outcomes[1].soon(), JobNotFound)


async def test_a_job_that_is_deleted_by_hand_leaves_nobody_waiting(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamqueue.queue.answers.waits.LOOK_AGAIN", Backoff(0.5, 0.5, jitter=0))
    job_id = await queue.put({})

    async with asking(jobs, lambda: queue.wait(job_id, LONG)) as [outcome]:
        jobs.delete_one({"_id": job_id})

        assert isinstance(await outcome.soon(), JobNotFound)


# each change


async def test_a_job_is_watched_until_it_has_ended(shell: Shell) -> None:
    watches, worker = shell.queue(), shell.queue()
    job_id = await worker.put({})
    seen: list[Any] = []

    with fail_after(WAIT):
        async for info in states(watches, job_id):
            seen.append(info.progress or info.state)
            if info.state == "ready":
                job = await worker.next()
            elif info.progress is None and not info.ended:
                await job.progress(10)
            elif not info.ended:
                await job.complete("fine")

    assert seen[0] == "ready"
    assert seen[-2:] in ([10, "done"], ["running", 10], [10, 10])
    assert (info.state, info.result) == ("done", "fine")


async def test_the_end_of_a_job_is_all_there_is_to_watch_of_one_that_has_ended(
    queue: Any,
) -> None:
    job_id, job = await one_job(queue, max_attempts=1)
    await job.error("boom")

    with fail_after(SOON):
        seen = [info async for info in states(queue, job_id)]

    assert [(info.state, info.last_error) for info in seen] == [("dead", "boom")]


async def test_what_is_gone_cannot_be_watched(queue: Any) -> None:
    with fail_after(SOON), pytest.raises(JobNotFound):
        [info async for info in states(queue, ObjectId())]


async def test_many_are_watched_that_began_one_after_the_other(shell: Shell) -> None:
    watches, worker = shell.queue(), shell.queue()
    ids = await worker.put_many([{}] * 5)
    seen: dict[Any, list[str]] = {job_id: [] for job_id in ids}

    async def watch(job_id: Any) -> None:
        async for info in states(watches, job_id):
            seen[job_id].append(info.state)

    with fail_after(WAIT):
        async with create_task_group() as tasks:
            for number, job_id in enumerate(ids, 1):
                tasks.start_soon(watch, job_id)
                await wait_until_async(
                    lambda number=number: len([one for one in seen.values() if one]) == number,
                    "its first state is seen",
                )
            for job in await worker.claim(5):
                job_id = job.id
                await wait_until_async(
                    lambda job_id=job_id: seen[job_id][-1] == "running", "it is seen running"
                )
                await job.complete()

    assert set(map(tuple, seen.values())) == {("ready", "running", "done")}


async def test_a_watch_shows_no_older_state_after_a_newer_while_its_stream_is_cut(
    shell: Shell, jobs: Collection[Any]
) -> None:
    watches, worker = shell.queue(), shell.queue()
    job_id, job = await one_job(worker)
    seen: list[int] = []

    async def work() -> None:
        for count in range(1, 40):
            jobs.update_one({"_id": job_id}, {"$set": {"progress": count}})
            if count % 10 == 0:
                kill_streams(jobs)
            await anyio.lowlevel.checkpoint()
        await job.complete("fine")

    with fail_after(WAIT):
        async with create_task_group() as tasks:
            async for info in states(watches, job_id):
                if not seen:
                    tasks.start_soon(work)
                seen.append(info.progress or 0)

    assert (info.state, info.result) == ("done", "fine")
    running = seen[:-1]
    assert running == sorted(running)


async def test_a_watch_ends_with_an_error_when_the_job_is_removed(
    shell: Shell, jobs: Collection[Any]
) -> None:
    watches = shell.queue()
    job_id = await watches.put({})

    async def watch() -> None:
        async for _ in states(watches, job_id):
            jobs.delete_one({"_id": job_id})

    with fail_after(WAIT), pytest.raises(JobNotFound):
        await watch()
