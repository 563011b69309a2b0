"""Limits that are set for all processes: what is stored of them, and what must be there before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, Rate
from streamqueue.protocol.limits import Rule, Rules
from streamqueue.protocol.settings import BELL, QueueSettings
from tests.contract.shells import Shell
from tests.worker.faults import failing

GROUPED = {"streamqueue_group", "streamqueue_dead_group"}


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """As everywhere, with no settings left behind."""
    yield jobs
    of_settings(jobs).delete_many({})


def of_settings(jobs: Collection[Any]) -> Collection[Any]:
    return jobs.database[f"{jobs.name}.settings"]


def stored(jobs: Collection[Any], queue: str = "default") -> dict[str, Any]:
    """What is stored of a queue."""
    return of_settings(jobs).find_one({"_id": queue}) or {}


def rules(jobs: Collection[Any]) -> Rules:
    """The rules that hold by it."""
    return QueueSettings.from_document(stored(jobs)).rules


async def test_a_limit_is_stored_and_holds(queue: Any, jobs: Collection[Any]) -> None:
    await queue.limit(running=3)

    assert rules(jobs) == Rules((Rule("queue", running=3),))


@pytest.mark.parametrize("rate", [50, Rate(100, 60, 5)])
async def test_a_rate_is_so_many_in_a_second_or_in_a_time(
    queue: Any, jobs: Collection[Any], rate: Any
) -> None:
    await queue.limit(rate=rate)

    assert rules(jobs) == Rules((Rule("queue", rate=Rate(50) if rate == 50 else rate),))


async def test_what_is_not_given_stays_as_it_is(queue: Any, jobs: Collection[Any]) -> None:
    await queue.limit(running=3)
    await queue.limit(rate=50)
    await queue.limit(running=4)

    assert rules(jobs) == Rules((Rule("queue", running=4, rate=Rate(50)),))


async def test_limits_of_the_queue_and_of_its_groups_are_two(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.limit(running=30)
    await queue.limit(running=3, per="group")

    assert set(rules(jobs).limits) == {Rule("queue", running=30), Rule("group", running=3)}


async def test_none_takes_away_what_was_set_and_then_the_code_holds_again(
    queue: Any, jobs: Collection[Any]
) -> None:
    declared = {"limits": [{"per": "queue", "running": 9}]}
    of_settings(jobs).insert_one({"_id": "default", "declared": declared})
    await queue.limit(running=3)
    assert rules(jobs) == Rules((Rule("queue", running=3),))

    await queue.limit(running=None)

    assert rules(jobs) == Rules((Rule("queue", running=9),))
    assert stored(jobs) == {"_id": "default", "declared": declared}


async def test_to_take_away_what_is_not_set_changes_nothing(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.limit(running=3)

    await queue.limit(rate=None)
    await queue.limit(running=None, per="group")

    assert rules(jobs) == Rules((Rule("queue", running=3),))


async def test_a_pause_and_a_limit_leave_each_other_as_they_are(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.pause()
    await queue.limit(running=3)
    assert await queue.is_paused()

    await queue.resume()

    assert rules(jobs) == Rules((Rule("queue", running=3),))


async def test_the_bell_rings_for_a_limit(queue: Any, jobs: Collection[Any]) -> None:
    await queue.limit(rate=50)

    assert jobs.count_documents({"_id": BELL}) == 1


async def test_what_another_program_has_stored_stands_in_the_way_of_none(
    queue: Any, jobs: Collection[Any]
) -> None:
    of_task = {"per": "queue", "task": "resize", "running": 2}
    odd = [7, None, {"per": "queue", "running": "many"}, of_task, {"per": "moon", "running": 1}]
    of_settings(jobs).insert_one({"_id": "default", "limits": odd})

    await queue.limit(running=3)

    assert set(rules(jobs).limits) == {Rule("queue", "resize", 2), Rule("queue", running=3)}
    of_settings(jobs).update_one({"_id": "default"}, {"$set": {"limits": "none"}})
    await queue.limit(running=4)
    assert rules(jobs) == Rules((Rule("queue", running=4),))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "running or rate"),
        ({"per": "group"}, "running or rate"),
        ({"running": 0}, "running must be"),
        ({"running": True}, "running must be"),
        ({"running": 1.5}, "running must be"),
        ({"rate": "50"}, "rate must be"),
        ({"rate": 0}, "count must be"),
        ({"running": 3, "per": "task"}, "per must be"),
        ({"running": 3, "per": ["queue"]}, "per must be"),
    ],
    ids=repr,
)
async def test_what_is_no_limit_is_refused_and_nothing_stored(
    queue: Any, jobs: Collection[Any], wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        await queue.limit(**wrong)

    assert stored(jobs) == {}


ANY = st.sampled_from([..., None, 1, 2])
CALLS = st.lists(st.tuples(ANY, ANY, st.sampled_from(["queue", "group"])), max_size=8)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=CALLS)
async def test_after_any_calls_what_was_said_last_of_each_holds(
    queue: Any, jobs: Collection[Any], calls: list[tuple[Any, Any, str]]
) -> None:
    of_settings(jobs).delete_many({})
    said: dict[tuple[str, str], Any] = {}
    for running, rate, per in calls:
        if running is ... and rate is ...:
            continue
        await queue.limit(running=running, rate=rate, per=per)
        given = {"running": running, "rate": rate and rate is not ... and Rate(rate)}
        for name, value in {"running": running, "rate": rate}.items():
            if value is not ...:
                said[per, name] = value and given[name]

    expected = {
        Rule(per, None, said.get((per, "running")), said.get((per, "rate")))
        for per in ("queue", "group")
        if said.get((per, "running")) or said.get((per, "rate"))
    }
    assert set(rules(jobs).limits) == expected
    assert ("limits" in stored(jobs)) == bool(expected)


# indexes


@pytest.mark.parametrize(
    ("limit", "made"),
    [
        ({"running": 3}, {"streamqueue_slots"}),
        ({"rate": 50}, set()),
        ({"running": 3, "per": "group"}, {"streamqueue_slots", *GROUPED}),
        ({"rate": 50, "per": "group"}, GROUPED),
        ({"running": None, "rate": None, "per": "group"}, set()),
    ],
    ids=["running", "rate", "running of groups", "rate of groups", "nothing"],
)
async def test_the_indexes_that_a_limit_needs_are_made_before_and_no_others(
    shell: Shell, jobs: Collection[Any], limit: dict[str, Any], made: set[str]
) -> None:
    jobs.drop_indexes()

    await shell.queue().limit(**limit)

    assert jobs.index_information().keys() & {"streamqueue_slots", *GROUPED} == made


async def test_an_index_that_is_gone_by_now_is_made_again(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.limit(running=3)
    jobs.drop_index("streamqueue_slots")

    await queue.limit(running=4)

    assert "streamqueue_slots" in jobs.index_information()


async def test_without_its_index_no_limit_is_stored(shell: Shell, jobs: Collection[Any]) -> None:
    jobs.drop_indexes()
    jobs.create_index([("other", 1)], name="streamqueue_slots")

    try:
        with pytest.raises(ConfigurationError, match=r"streamqueue_slots.*init"):
            await shell.queue().limit(running=3)
    finally:
        jobs.drop_index("streamqueue_slots")

    assert stored(jobs) == {}


async def test_who_cannot_see_that_its_index_is_there_stores_no_limit(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    """Nothing shows that no two jobs get one slot."""
    with (
        failing(client, "createIndexes", "listIndexes", app=None, errorCode=13),
        pytest.raises(ConfigurationError, match="give this one listIndexes"),
    ):
        await shell.queue().limit(running=3)

    assert stored(jobs) == {}
