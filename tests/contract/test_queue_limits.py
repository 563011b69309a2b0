"""Limits of a queue, and the order of its groups, for whoever takes jobs by hand.

Law: a limit is a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError
from streamqueue.store.collection import BESIDE
from tests.contract.shells import Shell


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """As everywhere, with no settings left behind, nor what they have made of rates."""
    yield jobs
    for beside in BESIDE:
        jobs.database[f"{jobs.name}{beside}"].delete_many({})


def rule(jobs: Collection[Any], queue: str = "default", **settings: Any) -> None:
    """Store the rules of a queue, before anybody has read them."""
    jobs.database[f"{jobs.name}.settings"].replace_one({"_id": queue}, settings, upsert=True)


def put_all(jobs: Collection[Any], groups: str) -> None:
    """Put a job of each group, a letter each and a dash for none, in this order."""
    from bson import Timestamp

    documents = []
    for number, group in enumerate(groups):
        document: dict[str, Any] = {
            "queue": "default",
            "state": "ready",
            "priority": 0,
            "seq": Timestamp(0, 0),
            "payload": {"n": number},
        }
        if group != "-":
            document["group"] = group
        documents.append(document)
    jobs.insert_many(documents)


async def taken(queue: Any, most: int = 100) -> list[int]:
    return [job.data["n"] for job in await queue.claim(most)]


async def test_no_more_than_the_limit_run_at_once(jobs: Collection[Any], shell: Shell) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 3}])
    put_all(jobs, "-----")
    one, another = shell.queue(), shell.queue()

    held = await one.claim(2)
    assert len(await another.claim(10)) == 1
    assert await another.next() is None

    await held[0].complete()
    assert len(await another.claim(10)) == 1


async def test_a_group_has_as_many_as_its_limit_and_no_other_waits_for_it(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "group", "running": 1}])
    put_all(jobs, "aaab-a")

    assert await taken(shell.queue()) == [0, 3, 4]


async def test_an_ordered_group_runs_one_after_the_other(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, declared={"ordered": True})
    put_all(jobs, "aabab")
    queue = shell.queue()

    held = await queue.claim(10)
    assert [job.data["n"] for job in held] == [0, 2]
    await held[0].complete()
    assert await taken(queue) == [1]


async def test_a_head_holds_its_group_through_its_backoff(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, declared={"ordered": True})
    put_all(jobs, "aab")
    queue = shell.queue()
    head = await queue.next()

    await head.error("again", delay=60)

    assert await taken(queue) == [2]


@pytest.mark.parametrize(("ordered", "next_one"), [(True, [1]), ("strict", [])])
async def test_a_dead_head_holds_its_group_only_where_that_is_strict(
    jobs: Collection[Any], shell: Shell, ordered: object, next_one: list[int]
) -> None:
    rule(jobs, declared={"ordered": ordered})
    put_all(jobs, "aa")
    queue = shell.queue(max_attempts=1)
    head = await queue.next()

    await head.error("no more")

    assert await taken(queue) == next_one


async def test_fair_groups_take_turns(jobs: Collection[Any], shell: Shell) -> None:
    rule(jobs, declared={"fair": True})
    put_all(jobs, "aaaaaabbc")

    assert await taken(shell.queue(), 5) == [0, 6, 8, 1, 7]


async def test_a_group_that_is_held_stands_before_no_other_however_many_jobs_it_has(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, declared={"ordered": True})
    put_all(jobs, "a" * 3000 + "b")
    queue = shell.queue()
    await queue.next()

    assert await taken(queue) == [3000]


def put_of_tasks(jobs: Collection[Any], tasks: str) -> None:
    """Put a job of each task, a letter each, in this order."""
    put_all(jobs, "-" * len(tasks))
    for task in set(tasks):
        numbers = [number for number, each in enumerate(tasks) if each == task]
        jobs.update_many({"payload.n": {"$in": numbers}}, {"$set": {"task": task}})


async def test_a_task_that_is_limited_stands_before_no_other_however_many_jobs_it_has(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "task": "a", "running": 2}])
    put_of_tasks(jobs, "a" * 1500 + "bb")

    assert await taken(shell.queue(), 10) == [0, 1, 1500, 1501]


async def test_a_group_that_waits_for_its_rate_stands_before_no_other(
    jobs: Collection[Any], shell: Shell
) -> None:
    rate = {"count": 1, "seconds": 60.0}
    rule(jobs, limits=[{"per": "group", "rate": rate}])
    put_all(jobs, "a" * 1500 + "b")
    queue = shell.queue()
    assert await taken(queue) == [0, 1500]


async def test_without_its_index_a_rule_is_refused_and_other_queues_go_on(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 2}])
    put_all(jobs, "-")
    await shell.queue(name="other").put({"n": 7})
    if "streamqueue_slots" in jobs.index_information():
        jobs.drop_index("streamqueue_slots")
    jobs.create_index([("x", 1)], name="streamqueue_slots")
    try:
        with pytest.raises(ConfigurationError, match="streamqueue_slots"):
            await shell.queue().next()

        assert await taken(shell.queue(name="other")) == [7]
    finally:
        jobs.drop_index("streamqueue_slots")
