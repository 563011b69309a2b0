"""What a test leaves switched on at the shared server is off for the next one."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.protocol.schema import EARLIER_KEY_INDEX
from tests.leftovers import FAILPOINTS, collection_left_plain, failpoints_switched_off


@pytest.mark.parametrize("name", FAILPOINTS)
def test_a_failpoint_that_is_left_is_switched_off(client: MongoClient[Any], name: str) -> None:
    with failpoints_switched_off(client):
        unused = {"failCommands": ["unused"], "errorCode": 1}
        data = {"data": unused} if name == "failCommand" else {}
        client.admin.command({"configureFailPoint": name, "mode": "alwaysOn", **data})

    set_to = client.admin.command({"getParameter": 1, f"failpoint.{name}": 1})
    assert set_to[f"failpoint.{name}"]["mode"] == 0


def test_a_validator_and_a_profiler_that_are_left_are_taken_back(jobs: Collection[Any]) -> None:
    jobs.insert_one({})

    with collection_left_plain(jobs):
        jobs.database.command("collMod", jobs.name, validator={"n": 1})
        jobs.database.command("profile", 2)

    jobs.insert_one({"n": 2})
    assert jobs.database.command("profile", -1)["was"] == 0


def test_an_index_that_no_queue_makes_is_dropped_and_the_others_stay(jobs: Collection[Any]) -> None:
    MongoQueue(jobs).put({})
    made = set(jobs.index_information())

    with collection_left_plain(jobs):
        jobs.create_index([("queue", 1), ("key", 1)], name=EARLIER_KEY_INDEX, unique=True)
        jobs.create_index("payload.order", unique=True)

    assert set(jobs.index_information()) == made
