"""Limits and order that handlers declare: checked, and stored before anything is claimed.

Laws: a limit is a limit; the document is the truth.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    ConfigurationError,
    Limit,
    Rate,
    Worker,
)
from streamqueue.protocol.limits import Rule, Rules
from streamqueue.protocol.settings import BELL, QueueSettings
from streamqueue.worker.worker import settings_of
from tests.waiting import wait_until_async
from tests.worker.faults import TIME_LIMIT, failing
from tests.worker.members import Members
from tests.worker.started import StartedWorker, WorkerStarter

DECLARED = {"limits": Limit(running=3)}


async def handle(job: AsyncJob) -> None:
    pass


@pytest.fixture
async def nowhere() -> AsyncIterator[AsyncCollection[Any]]:
    """A collection to which nothing is sent."""
    client: AsyncMongoClient[Any] = AsyncMongoClient(connect=False)
    yield client.test.jobs
    await client.close()


def rules_of(collection: Any, **options: Any) -> Rules:
    """What a handler says that is registered with these."""
    worker = Worker(collection)
    worker.handler("default", **options)(handle)
    return settings_of(worker).handlers["default"].rules


def of_settings(jobs: Collection[Any]) -> Collection[Any]:
    return jobs.database[f"{jobs.name}.settings"]


def stored(jobs: Collection[Any], queue: str = "default") -> dict[str, Any]:
    """What is stored of a queue."""
    return of_settings(jobs).find_one({"_id": queue}) or {}


def rules(jobs: Collection[Any], queue: str = "default") -> Rules:
    """The rules that hold by it."""
    return QueueSettings.from_document(stored(jobs, queue)).rules


def prepare(start: WorkerStarter, handler: Callable[..., Any] = handle, **rules: Any) -> Any:
    """Make a worker whose handler has these."""
    worker = start.prepare(sweep_interval=None)
    worker.worker.handler("default", **rules)(handler)
    return worker


def changes_of_settings(worker: StartedWorker) -> int:
    """How often it has written to the settings, or rung the bell."""
    sent = worker.commands.named("update", "insert", "findAndModify")
    return sum(
        str(next(iter(each.command.values()))).endswith(".settings") or BELL in str(each.command)
        for each in sent
    )


def reads_of_settings(worker: StartedWorker) -> int:
    return sum(
        str(each.command["find"]).endswith(".settings") for each in worker.commands.named("find")
    )


# registered


async def test_a_handler_says_its_limits_and_its_order(nowhere: Any) -> None:
    limits = [Limit(running=5, per="group"), Limit(running=30, rate=Rate(100, 60))]

    said = rules_of(nowhere, limits=limits, ordered="strict", fair=True)

    assert said.ordered == "strict"
    assert said.fair is True
    assert set(said.limits) == {
        Rule("group", running=5),
        Rule("queue", running=30, rate=Rate(100, 60)),
    }


async def test_one_limit_needs_no_list_and_a_handler_without_says_nothing(nowhere: Any) -> None:
    assert rules_of(nowhere, limits=Limit(rate=50)).limits == (Rule("queue", rate=Rate(50)),)
    assert not rules_of(nowhere)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"limits": 3}, "limits must be"),
        ({"limits": "3"}, "limits must be"),
        ({"limits": [3]}, "limits must be"),
        ({"limits": [Limit(3), Limit(rate=5)]}, "make them one"),
        ({"limits": [Limit(3, per="group"), Limit(4, per="group")]}, "make them one"),
        ({"ordered": "yes"}, "ordered must be"),
        ({"ordered": 1}, "ordered must be"),
        ({"ordered": None}, "ordered must be"),
        ({"fair": "yes"}, "fair must be"),
    ],
    ids=repr,
)
async def test_what_is_no_rule_is_refused_where_it_stands(
    nowhere: Any, wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        rules_of(nowhere, **wrong)


# stored


async def test_what_is_declared_is_stored_when_the_worker_starts(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    await started(start, limits=Limit(3, 50), ordered=True, fair=True)

    assert rules(jobs) == Rules((Rule("queue", running=3, rate=Rate(50)),), True, True)
    assert jobs.count_documents({"_id": BELL}) == 1
    names = {"streamqueue_slots", "streamqueue_group", "streamqueue_dead_group"}
    assert names <= set(jobs.index_information())


@pytest.mark.parametrize("declared", [{}, DECLARED], ids=["nothing", "a limit"])
async def test_where_that_is_stored_already_nothing_more_is_sent_than_one_reading(
    start: WorkerStarter, jobs: Collection[Any], declared: dict[str, Any]
) -> None:
    if declared:
        await (await started(start, **declared)).stop()

    worker = await started(start, **declared)

    assert changes_of_settings(worker) == 0
    assert reads_of_settings(worker) == 1


async def started(start: WorkerStarter, **rules: Any) -> StartedWorker:
    """Start a worker whose handler has these; return when it has looked at all there is."""
    worker: StartedWorker = prepare(start, **rules)
    return await begun(start, worker)


async def begun(start: WorkerStarter, worker: StartedWorker) -> StartedWorker:
    await start.begin(worker)
    await worker.until_idle(0.1)  # one that ends at once may leave a connection half open
    return worker


async def test_the_last_start_holds_for_all(start: WorkerStarter, jobs: Collection[Any]) -> None:
    await started(start, limits=Limit(3))

    await started(start, limits=Limit(5, per="group"), fair=True)

    assert rules(jobs) == Rules((Rule("group", running=5),), fair=True)


async def test_a_start_whose_code_declares_nothing_any_more_takes_it_away(
    start: WorkerStarter, jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    await started(start, limits=Limit(3), ordered=True)
    await queue.limit(rate=50)

    await started(start)

    assert "declared" not in stored(jobs)
    assert rules(jobs) == Rules((Rule("queue", rate=Rate(50)),))


async def test_what_a_later_version_has_declared_is_replaced_as_well(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    later = {"limits": [{"per": "queue", "running": 3}], "weighted": {"by": "moon"}}
    of_settings(jobs).insert_one({"_id": "default", "declared": later, "paused": False})

    await started(start, limits=Limit(3))

    declared = {"limits": [{"per": "queue", "running": 3}]}
    assert stored(jobs) == {"_id": "default", "declared": declared, "paused": False}


async def test_each_queue_has_its_own(start: WorkerStarter, jobs: Collection[Any]) -> None:
    worker = prepare(start, limits=Limit(3))
    worker.worker.handler("calls", limits=Limit(rate=50))(handle)
    worker.worker.handler("plain")(handle)

    await begun(start, worker)

    assert rules(jobs) == Rules((Rule("queue", running=3),))
    assert rules(jobs, "calls") == Rules((Rule("queue", rate=Rate(50)),))
    assert stored(jobs, "plain") == {}


async def test_members_of_a_dispatcher_store_it_too(
    members: Members, jobs: Collection[Any]
) -> None:
    await members.open()
    worker = members.prepare()
    worker.worker.handler("default", limits=Limit(3))(handle)

    await members.begin(worker)
    await worker.until_idle(0.1)

    assert rules(jobs) == Rules((Rule("queue", running=3),))


# before anything is claimed


async def test_nothing_is_claimed_before_it_is_stored(
    start: WorkerStarter, jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    await queue.put_many([{}] * 3)
    seen: list[Rules] = []

    async def look(job: AsyncJob) -> None:
        seen.append(rules(jobs))

    worker = prepare(start, look, limits=Limit(rate=100_000))
    async with failing_settings(jobs, worker, "update", times=1, **TIME_LIMIT):
        await start.begin(worker)
        await worker.until_outcomes(completed=3)

    assert seen == [Rules((Rule("queue", rate=Rate(100_000)),))] * 3


@asynccontextmanager
async def failing_settings(
    jobs: Collection[Any], worker: StartedWorker, *commands: str, **fault: Any
) -> AsyncIterator[None]:
    """Make these commands fail where they are for the settings of queues."""
    namespace = f"{jobs.database.name}.{jobs.name}.settings"
    with failing(jobs.database.client, *commands, app=worker.app, namespace=namespace, **fault):
        yield


async def test_nothing_is_claimed_by_what_was_read_before_it_was_stored(
    start: WorkerStarter, jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    await queue.put({})
    worker = prepare(start, limits=Limit(rate=100_000))

    async with failing_settings(jobs, worker, "find", skip=1, **TIME_LIMIT):
        await start.begin(worker)
        await wait_until_async(lambda: reads_of_settings(worker) > 3, "it reads what holds")
        claims = worker.commands.claims()

    assert rules(jobs)
    assert not claims
    await worker.until_outcomes(completed=1)


async def test_an_outage_while_it_is_stored_delays_the_start_and_no_more(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    worker = prepare(start, limits=Limit(3))

    async with failing_settings(jobs, worker, "find", times=2, **TIME_LIMIT):
        await begun(start, worker)

    assert rules(jobs) == Rules((Rule("queue", running=3),))


# what cannot be


@pytest.mark.parametrize("command", ["find", "update"])
async def test_a_worker_that_may_not_store_what_it_declares_does_not_start(
    start: WorkerStarter, jobs: Collection[Any], queue: AsyncMongoQueue, command: str
) -> None:
    await queue.put({})
    worker = prepare(start, limits=Limit(3))

    async with failing_settings(jobs, worker, command, errorCode=13):
        with pytest.raises(ConfigurationError, match="streamqueueScheduler"):
            await worker.worker.run(handle_signals=False)

    assert stored(jobs) == {}
    assert jobs.count_documents({"state": "ready"}) == 1


async def test_one_whose_rules_are_stored_already_needs_no_right_to_store_them(
    start: WorkerStarter, jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    await (await started(start, limits=Limit(rate=100_000))).stop()
    worker = prepare(start, limits=Limit(rate=100_000))

    async with failing_settings(jobs, worker, "update", errorCode=13):
        await start.begin(worker)
        await queue.put({})
        await worker.until_outcomes(completed=1)


async def test_one_that_declares_nothing_leaves_what_it_may_not_take_away_and_says_so(
    start: WorkerStarter, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await (await started(start, limits=Limit(3))).stop()
    worker = prepare(start)

    async with failing_settings(jobs, worker, "update", errorCode=13):
        await begun(start, worker)

    assert rules(jobs) == Rules((Rule("queue", running=3),))
    (line,) = [line for line in caplog.records if getattr(line, "event", "") == "rules_left"]
    assert "jobs.settings" in line.getMessage()


async def test_one_that_declares_nothing_needs_no_right_to_read_the_settings(
    start: WorkerStarter, jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    worker = prepare(start)

    async with failing_settings(jobs, worker, "find", errorCode=13):
        await start.begin(worker)
        await queue.put({})
        await worker.until_outcomes(completed=1)


async def test_without_the_index_of_the_slots_a_worker_with_a_limit_does_not_start(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    jobs.create_index([("other", 1)], name="streamqueue_slots")
    worker = prepare(start, limits=Limit(3))

    with pytest.raises(ConfigurationError, match=r"streamqueue_slots.*streamqueue init"):
        await worker.worker.run(handle_signals=False)

    assert stored(jobs) == {}


async def test_where_nobody_can_be_told_it_is_stored_and_the_log_says_so(
    start: WorkerStarter, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As under the validator of an earlier version."""
    jobs.database.create_collection(jobs.name, validator={"queue": {"$exists": True}})

    await started(start, limits=Limit(3))

    assert rules(jobs) == Rules((Rule("queue", running=3),))
    assert "rules_not_told" in {getattr(line, "event", "") for line in caplog.records}


async def test_a_worker_that_is_stopped_while_its_rules_cannot_be_stored_ends(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    worker = prepare(start, limits=Limit(3))

    async with (
        failing_settings(jobs, worker, "update", **TIME_LIMIT),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(worker.run)
        await wait_until_async(lambda: reads_of_settings(worker) > 1, "it tries again")
        worker.worker.stop()

    await worker.until_ended()
