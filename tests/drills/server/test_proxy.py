"""A message that is held back comes late; what is behind it waits, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, NetworkTimeout
from pymongo.uri_parser import parse_uri

from drills.plans import Held
from drills.proxy import Proxies
from streamqueue.clock import monotonic
from tests.waiting import wait_until

HOLD = 0.4


@pytest.fixture
def proxies(uri: str) -> Iterator[Proxies]:
    [(_, port)] = parse_uri(uri)["nodelist"]
    with Proxies([port]) as proxies:
        yield proxies


def connect(proxies: Proxies, app: str = "tester", **settings: Any) -> MongoClient[Any]:
    return MongoClient(proxies.hosts[0], directConnection=True, appname=app, **settings)


def job() -> dict[str, object]:
    return {"_id": ObjectId(), "queue": "drill", "state": "ready", "payload": {}}


def seconds_to_insert(client: MongoClient[Any]) -> float:
    began = monotonic()
    client.held.jobs.insert_one(job())
    return monotonic() - began


@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
def test_one_that_is_held_comes_late_and_is_counted(proxies: Proxies, reply: bool) -> None:
    with connect(proxies) as client:
        proxies.hold_commands("put", seconds=(HOLD, HOLD), reply=reply, times=1)
        late, next_one = seconds_to_insert(client), seconds_to_insert(client)

    assert late >= HOLD > next_one
    direction: Literal["request", "reply"] = "reply" if reply else "request"
    assert proxies.counts.held == {Held("tester", "put", direction): 1}


def test_other_connections_and_other_applications_pass(proxies: Proxies) -> None:
    with connect(proxies) as held, connect(proxies, app="other") as other:
        proxies.hold_commands("put", seconds=(30, 30), apps={"tester"})
        held_put = threading.Thread(target=seconds_to_insert, args=(held,))
        held_put.start()
        wait_until(lambda: proxies.holding, "it is held")

        assert held.admin.command("ping")["ok"]
        assert seconds_to_insert(other) < 30

        proxies.heal()
        held_put.join()


def test_a_request_comes_late_from_a_sender_that_has_given_it_up(proxies: Proxies) -> None:
    document = job()
    with (
        connect(proxies) as direct,
        connect(proxies, app="hasty", socketTimeoutMS=100, retryWrites=False) as hasty,
    ):
        proxies.hold_commands("put", seconds=(HOLD, HOLD), times=1)
        with pytest.raises((NetworkTimeout, AutoReconnect)):
            hasty.held.jobs.insert_one(document)
        assert direct.held.jobs.find_one(document["_id"]) is None

        wait_until(lambda: direct.held.jobs.find_one(document["_id"]), "it was carried out")
    wait_until(lambda: proxies.counts.late["put"], "it is counted")


def test_a_reply_that_says_that_nothing_was_done_is_not_worth_holding(proxies: Proxies) -> None:
    with connect(proxies) as client:
        proxies.hold_commands("complete", seconds=(30, 30), reply=True, times=1)
        client.held.jobs.delete_one({"_id": ObjectId(), "lease": b"nobody's"})

    assert not proxies.counts.held
