"""How the limits of queues stand, counted from outside: what is seen, and what the looks cost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import Limit, MongoQueue, Rate
from streamqueue.exporter import limit_queries
from streamqueue.exporter.census import Surveyor
from streamqueue.exporter.counts import LimitCensus, QueueCensus
from streamqueue.exporter.limits import limits_shown
from streamqueue.protocol.limits import Rule, check_rules
from streamqueue.protocol.rates import bucket_id, moment_of
from streamqueue.protocol.schema import TASK_INDEX
from streamqueue.store.asynchronous import AsyncStore
from tests.ops.profiled import looks_of


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    with MongoQueue(jobs, name="calls") as queue:
        queue.put({}, group="of nobody")  # makes the indexes of groups
        queue.clear()
        yield queue


@pytest.fixture
async def surveyor(async_jobs: AsyncCollection[Any]) -> Surveyor:
    store = AsyncStore(async_jobs)
    await store.prepare()
    return Surveyor(store)


def of_settings(jobs: Collection[Any]) -> Collection[Any]:
    return jobs.database[f"{jobs.name}.settings"]


def of_rates(jobs: Collection[Any]) -> Collection[Any]:
    return jobs.database[f"{jobs.name}.rates"]


def rule(jobs: Collection[Any], *limits: Limit, ordered: Any = False, queue: str = "calls") -> None:
    """Store what a worker of the queue declares."""
    declared = check_rules(limits, ordered, False).declared()
    of_settings(jobs).replace_one({"_id": queue}, {"declared": declared}, upsert=True)


def rule_of_tasks(jobs: Collection[Any], *rules: Rule) -> None:
    """Store limits of tasks, which no handler declares."""
    jobs.database.command("createIndexes", jobs.name, indexes=[dict(TASK_INDEX)])
    stored = {"limits": [rule.stored() for rule in rules]}
    of_settings(jobs).replace_one({"_id": "calls"}, stored, upsert=True)


def there(jobs: Collection[Any], state: str, count: int = 1, **fields: Any) -> None:
    """Insert jobs in a state, each with its place in the order."""
    for _ in range(count):
        job_id = MongoQueue(jobs, name="calls").put({}, group=fields.get("group"))
        jobs.update_one({"_id": job_id}, {"$set": {"state": state, **fields}})


async def counted(surveyor: Surveyor) -> QueueCensus:
    return (await surveyor.take()).queues["calls"]


async def limits(surveyor: Surveyor) -> list[LimitCensus]:
    return (await counted(surveyor)).limits


async def saturated(surveyor: Surveyor) -> list[int | None]:
    return [limit.saturated for limit in await limits(surveyor)]


# running jobs


async def test_a_limit_says_how_many_may_run_and_how_many_do(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(running=3))
    there(jobs, "running", 2)

    assert await limits(surveyor) == [LimitCensus("queue", None, 3, None, 2)]


async def test_a_full_limit_is_saturated_while_jobs_are_ready(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(running=2))
    there(jobs, "running", 2)
    full = await saturated(surveyor)
    there(jobs, "ready")

    assert (full, await saturated(surveyor)) == ([0], [1])


async def test_a_limit_that_has_room_is_not_saturated(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(running=3))
    there(jobs, "running", 2)
    there(jobs, "ready", 5)

    assert await saturated(surveyor) == [0]


async def test_what_is_set_for_all_processes_wins_over_what_a_handler_declares(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(running=3))
    there(jobs, "running", 2)
    there(jobs, "ready")
    queue.limit(running=2)

    assert await limits(surveyor) == [LimitCensus("queue", None, 2, None, 2, 1)]


# groups


async def test_groups_without_room_that_have_ready_jobs_are_counted(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(running=2, per="group"))
    for group, running, ready in (("full", 2, 3), ("too", 3, 1), ("idle", 2, 0), ("open", 1, 4)):
        there(jobs, "running", running, group=group)
        there(jobs, "ready", ready, group=group)

    assert await limits(surveyor) == [LimitCensus("group", None, 2, None, 3, 2)]


async def test_jobs_that_have_not_taken_their_place_yet_are_not_held_back(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(running=1, per="group"))
    there(jobs, "running", group="ada")
    queue.put({}, group="ada", delay=60)
    there(jobs, "ready", group="eve")

    assert await saturated(surveyor) == [0]


async def test_the_order_of_groups_is_a_limit_of_one_job_at_a_time(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(running=5, per="group"), Limit(running=9), ordered=True)
    there(jobs, "running", group="ada")
    there(jobs, "ready", group="ada")

    assert await limits(surveyor) == [
        LimitCensus("queue", None, 9, None, 1),
        LimitCensus("group", None, 1, None, 1, 1),
    ]


async def test_no_more_groups_are_looked_at_than_it_is_said(
    surveyor: Surveyor,
    jobs: Collection[Any],
    queue: MongoQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limit_queries, "MOST_GROUPS", 3)
    rule(jobs, Limit(running=1, per="group"), ordered="strict")
    for number in range(5):
        there(jobs, "running", group=f"g{number}")
        there(jobs, "ready", group=f"g{number}")
        there(jobs, "dead", group=f"g{number}")

    found = await counted(surveyor)

    assert (found.limits[0].saturated, found.held_groups) == (3, 3)


# tasks


async def test_a_limit_of_each_task_counts_those_without_room(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule_of_tasks(jobs, Rule("task", None, 1))
    there(jobs, "running", 2, task="resize")
    there(jobs, "running", task="mail")
    there(jobs, "ready", task="resize")
    there(jobs, "ready", task="report")

    assert await limits(surveyor) == [LimitCensus("task", None, 1, None, 2, 1)]


async def test_a_limit_of_one_task_counts_its_jobs_alone(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule_of_tasks(
        jobs,
        Rule("task", "resize", 2),
        Rule("task", "mail", 2),
        Rule("group", "resize", 1),
        Rule("group", "mail", 1),
    )
    there(jobs, "running", 2, task="resize", group="ada")
    there(jobs, "running", 1, task="mail", group="ada")
    there(jobs, "ready", task="resize", group="ada")

    assert await limits(surveyor) == [
        LimitCensus("task", "resize", 2, None, 2, 1),
        LimitCensus("task", "mail", 2, None, 1, 0),
        LimitCensus("group", "resize", 1, None, 2, 1),
        LimitCensus("group", "mail", 1, None, 1, 0),
    ]


@pytest.mark.parametrize("task", ["", "x" * 65, "a\nb", "\udc80", "\x1b[2J"], ids=repr)
def test_a_task_that_is_no_name_is_no_label(task: str) -> None:
    rules = check_rules(Limit(running=1), False, False)
    odd = type(rules)((Rule("task", task, 1), *rules.limits))

    assert limits_shown(odd) == list(rules.limits)


# rates


async def test_a_rate_is_saturated_while_its_next_start_is_yet_to_come(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(rate=Rate(1, 3600)))
    queue.put_many([{}] * 2)
    before = await limits(surveyor)

    job = queue.next()
    assert job is not None

    assert before == [LimitCensus("queue", None, None, Rate(1, 3600))]
    assert await saturated(surveyor) == [1]
    job.complete()
    assert await saturated(surveyor) == [1]
    queue.clear()
    assert await saturated(surveyor) == [0]


async def test_a_rate_whose_next_start_has_come_is_not(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(rate=Rate(1, 60)))
    there(jobs, "ready")
    bucket(jobs, "q:", seconds_ago=61)

    assert await saturated(surveyor) == [0]


async def test_groups_whose_rate_is_used_up_and_that_have_ready_jobs_are_counted(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, Limit(rate=Rate(1, 60), per="group"))
    for group in ("ada", "eve", "kim"):
        there(jobs, "ready", group=group)
    for group in ("ada", "eve", "nobody:with:colons"):
        bucket(jobs, f"g:{group}")
    bucket(jobs, "g:kim", seconds_ago=61)
    bucket(jobs, "g:kim", queue="calls2")

    assert await saturated(surveyor) == [2]


@pytest.mark.parametrize("last", [None, "soon", {}, 1.5], ids=repr)
async def test_a_damaged_bucket_does_not_stop_the_census(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue, last: object
) -> None:
    rule(jobs, Limit(rate=1))
    there(jobs, "ready")
    of_rates(jobs).insert_one({"_id": bucket_id("calls", "q:"), "last": last})

    assert await saturated(surveyor) == [0]


def bucket(
    jobs: Collection[Any], scope: str, *, seconds_ago: float = 0, queue: str = "calls"
) -> None:
    """Store a bucket whose last start was planned then."""
    last = moment_of(datetime.now(UTC)) - int(seconds_ago * 1e9)
    of_rates(jobs).insert_one({"_id": bucket_id(queue, scope), "last": last})


# held groups


async def test_groups_that_a_dead_job_holds_are_counted_where_order_is_strict(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    for group in ("ada", "eve", "kim"):
        there(jobs, "dead", 2, group=group)
    there(jobs, "ready", 4, group="ada")
    there(jobs, "ready", group="eve")
    there(jobs, "ready", group="lee")
    there(jobs, "dead")
    found = {}
    for ordered in (False, True, "strict"):
        rule(jobs, Limit(running=9), ordered=ordered)
        found[ordered] = (await counted(surveyor)).held_groups

    assert found == {False: None, True: None, "strict": 2}


async def test_no_group_is_held_once_its_dead_jobs_are_gone(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, ordered="strict")
    there(jobs, "dead", group="ada")
    there(jobs, "ready", group="ada")
    held = (await counted(surveyor)).held_groups
    queue.requeue()

    assert (held, (await counted(surveyor)).held_groups) == (1, 0)


# damage, and what it costs


@pytest.mark.parametrize("odd", [7, None, ["a", "b"], {"a": 1}, "x" * 5000], ids=str)
async def test_odd_groups_and_tasks_do_not_stop_the_census(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue, odd: object
) -> None:
    rule_of_tasks(jobs, Rule("group", None, 1), Rule("task", None, 1))
    jobs.insert_many(
        {"queue": "calls", "state": state, "payload": {}, "group": odd, "task": odd}
        for state in ("running", "ready", "dead")
    )

    found = await counted(surveyor)

    assert (found.running, found.ready, len(found.limits)) == (1, 1, 2)


async def test_rules_that_are_none_are_left_out(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    there(jobs, "ready")
    odd = {"declared": {"ordered": 5, "limits": [7, {"per": "week"}]}, "limits": ["x", {}]}
    of_settings(jobs).insert_one({"_id": "calls", **odd})

    found = await counted(surveyor)

    assert (found.limits, found.held_groups) == ([], None)


async def test_a_queue_that_has_nothing_but_rules_is_not_shown(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    rule(jobs, Limit(running=3), queue="of-long-ago")

    assert (await surveyor.take()).queues == {}


async def test_without_the_indexes_of_groups_nothing_is_looked_up(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, ordered="strict")
    for state in ("running", "ready", "dead"):
        there(jobs, state, group="ada")
    for name in ("streamqueue_group", "streamqueue_dead_group"):
        jobs.drop_index(name)

    found = await counted(surveyor)

    assert (found.limits, found.held_groups) == ([LimitCensus("group", None, 1, None, 1)], 0)


async def test_a_queue_without_rules_is_asked_nothing_more(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    for state in ("running", "ready", "dead"):
        there(jobs, state, 3, group="ada")
    plain = await looks_of(jobs, surveyor)
    rule(jobs, Limit(running=5))
    limited = await looks_of(jobs, surveyor)
    rule(jobs, Limit(running=1, per="group"), ordered="strict")
    ruled = await looks_of(jobs, surveyor)

    # A limit of the whole queue goes by what was counted already; in groups are looked for those
    # that are full, whether they have ready jobs, dead ones, and ready ones behind those.
    more = [len(looks) - len(plain) for looks in (limited, ruled)]
    assert more == [0, 4]


async def test_what_is_said_of_groups_is_read_from_indexes_however_much_waits(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    rule(jobs, ordered="strict")
    for group in ("ada", "eve"):
        there(jobs, "running", group=group)
        there(jobs, "dead", 5, group=group)
        queue.put_many([{}] * 2000, group=group)

    looks = [look for look in await looks_of(jobs, surveyor) if look["ns"].endswith(".jobs")]

    of_groups = [look for look in looks if "group" in look["planSummary"]]
    assert len(of_groups) == 3
    assert not any("COLLSCAN" in look["planSummary"] for look in looks)
    assert sum(look.get("docsExamined", 0) for look in of_groups) == 0
    assert sum(look.get("keysExamined", 0) for look in of_groups) < 20
