"""The recipes of the guide on unique jobs, as they stand there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests.contract.looks import server_time
from tests.guides import recipes_of


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    with MongoQueue(jobs) as queue:
        yield queue


@pytest.fixture
def guide(queue: MongoQueue) -> Any:
    return recipes_of("unique.md", queue)


def let_time_pass(jobs: Collection[Any], seconds: float) -> None:
    """Move all that is stored back in time."""
    moved: dict[str, Any] = {}
    for name in ("created_at", "run_at", "unique_until"):
        earlier = {"$subtract": [f"${name}", int(seconds * 1000)]}
        is_there = {"$eq": [{"$type": f"${name}"}, "date"]}
        moved[name] = {"$cond": [is_there, earlier, "$$REMOVE"]}
    jobs.update_many({}, [{"$set": moved}])


def run(queue: MongoQueue) -> list[Any]:
    """Complete what is due; return the payloads."""
    found = []
    while job := queue.next():
        found.append(job.data)
        job.complete()
    return found


def test_a_webhook_that_comes_twice_is_one_job(guide: Any, queue: MongoQueue) -> None:
    first = guide.payment_came({"id": 1, "paid": 5})

    again = guide.payment_came({"id": 1, "paid": 5})
    other = guide.payment_came({"id": 2, "paid": 6})

    assert first == again != other
    assert [each["paid"] for each in run(queue)] == [5, 6]


def test_with_an_edit_a_second_for_a_minute_the_debounced_job_runs_three_times(
    guide: Any, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    seen = []
    for second in range(60):
        guide.edited("a", second)
        let_time_pass(jobs, 1)
        seen += [each["text"] for each in run(queue)]

    assert seen == [19, 39, 59]


def test_the_debounced_job_runs_once_things_are_quiet(
    guide: Any, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    for second in range(3):
        guide.edited("a", second)
        let_time_pass(jobs, guide.QUIET - 1)
    before = run(queue)
    let_time_pass(jobs, 1)

    assert before == []
    assert run(queue) == [{"article": "a", "text": 2}]


def test_the_throttled_job_holds_its_key_while_it_lives(guide: Any, queue: MongoQueue) -> None:
    for _ in range(3):
        guide.stock_changed("north")

    assert run(queue) == [{"shop": "north"}]


def test_what_comes_before_the_job_begins_is_in_it(guide: Any, queue: MongoQueue) -> None:
    for price in (1, 2, 3):
        guide.price_changed("hat", price)

    assert run(queue) == [{"item": "hat", "price": 3}]


def test_a_reminder_is_sent_by_the_earliest_time(
    guide: Any, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    now = server_time(jobs)
    for minutes in (30, 10, 20):
        guide.remind("ada", now + guide.timedelta(minutes=minutes))
    let_time_pass(jobs, 15 * 60)

    assert run(queue) == [{"customer": "ada"}]


def test_an_order_and_a_restocking_that_is_under_way_are_stored_together(
    guide: Any, queue: MongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    orders = jobs.database.orders
    orders.insert_one({"_id": ObjectId()})
    queue.put({}, key="restock")

    guide.order(client, orders, ["hat"])

    assert orders.count_documents({"items": "hat"}) == 1
    assert queue.size() == 1


def test_an_import_says_which_rows_are_new(guide: Any, queue: MongoQueue) -> None:
    queue.put({"sku": "b"}, key="b")

    assert guide.imported([{"sku": "a"}, {"sku": "b"}, {"sku": "c"}]) == [
        {"sku": "a"},
        {"sku": "c"},
    ]
