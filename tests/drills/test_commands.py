"""A command is known by what it writes, however it is sent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from drills.commands import Kind, kind_of, writes
from streamqueue.protocol import operations

JOB, OTHER = ObjectId(), ObjectId()
TOKEN = bytes(range(16))

Sent = Callable[[operations.Update], dict[str, Any]]


def as_update_one(update: operations.Update) -> dict[str, Any]:
    return {"update": "jobs", "updates": [{"q": update.filter, "u": update.update}]}


def as_update_many(update: operations.Update) -> dict[str, Any]:
    many = {"q": update.filter, "u": update.update, "multi": True}
    return {"update": "jobs", "updates": [many], "maxTimeMS": 500}


def as_find_and_modify(update: operations.Update) -> dict[str, Any]:
    return {"findAndModify": "jobs", "query": update.filter, "update": update.update, "new": True}


INSERTED = {"_id": JOB, "queue": "drill", "state": "ready", "payload": {"n": 1}}


def claim(*ids: ObjectId) -> operations.Update:
    until = datetime(2030, 1, 1, tzinfo=UTC)
    return operations.claim(ids, ["drill"], "me", TOKEN, 30, until, lambda _: 3)


@pytest.mark.parametrize("sent", [as_update_one, as_update_many, as_find_and_modify])
def test_a_claim_is_known_by_its_token_however_it_is_sent(sent: Sent) -> None:
    command = sent(claim(JOB, OTHER))

    assert kind_of(command) == "claim"
    assert [write.token for write in writes(command)] == [TOKEN]


def test_a_claim_under_further_conditions_is_a_claim() -> None:
    wanted, update = claim(JOB)
    limited = {"$and": [wanted, {"priority": {"$gt": 0}}]}

    assert kind_of(as_update_one(operations.Update(limited, update))) == "claim"


def test_a_claim_whose_values_depend_on_the_document_is_a_claim() -> None:
    held = {"$cond": [{"$eq": ["$state", "ready"]}, "running", "$state"]}
    lease = {"$cond": [{"$eq": ["$state", "ready"]}, {"$literal": TOKEN}, "$lease"]}
    update = operations.Update({"_id": JOB}, [{"$set": {"state": held, "lease": lease}}])

    assert kind_of(as_update_one(update)) == "claim"


UPDATES: dict[str, tuple[Kind, operations.Update]] = {
    "renew": ("renew", operations.renew(operations.held(JOB, TOKEN), 30)),
    "progress": ("renew", operations.renew(operations.held(JOB, TOKEN), 30, {"progress": 7})),
    "renew many": ("renew", operations.renew(operations.held_any([JOB, OTHER], [TOKEN]), 30)),
    "unclaim": ("untake", operations.unclaim([JOB, OTHER], [TOKEN])),
    "unclaim one": ("untake", operations.unclaim([JOB], [TOKEN])),
    "error": ("error", operations.error(JOB, TOKEN, "no", 0, 3)),
    "error with a delay": ("error", operations.error(JOB, TOKEN, None, 5, 3)),
    "discard": ("error", operations.discard(JOB, TOKEN, "no")),
    "release": ("release", operations.release(JOB, TOKEN)),
    "snooze": ("release", operations.release(JOB, TOKEN, 5)),
    "promote": ("promote", operations.promote([JOB])),
    "reap": ("reap", operations.reap([JOB, OTHER], 3)),
    "adopt": ("adopt", operations.adopt([JOB])),
    "bury": ("change", operations.bury([JOB], "no")),
    "quarantine": ("change", operations.quarantine([JOB])),
    "requeue": ("change", operations.requeue("drill", JOB)),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_is_known_by_the_fields_it_sets(name: str) -> None:
    kind, update = UPDATES[name]

    assert kind_of(as_update_one(update)) == kind


@pytest.mark.parametrize(
    "end", [operations.error(JOB, TOKEN, "no", 5, 3), operations.discard(JOB, TOKEN, "no")]
)
def test_an_error_made_smaller_is_an_error(end: operations.Update) -> None:
    assert {kind_of(as_update_one(less)) for less in operations.smaller(end)} == {"error"}


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("put", {"insert": "jobs", "documents": [INSERTED]}),
        ("change", {"insert": "ledger", "documents": [{"_id": 1, "job": JOB}]}),
        ("complete", {"delete": "jobs", "deletes": [{"q": operations.held(JOB, TOKEN)}]}),
        ("complete", {"findAndModify": "jobs", "query": {"lease": TOKEN}, "remove": True}),
        ("change", {"delete": "jobs", "deletes": [{"q": {"queue": "drill"}}]}),
        ("read", {"find": "jobs", "filter": operations.claimed([JOB, OTHER], TOKEN).filter}),
        (None, {"find": "jobs", "filter": operations.candidates(["drill"], 5).filter}),
        (None, {"getMore": 7}),
        ("commit", {"commitTransaction": 1, "autocommit": False}),
        ("abort", {"abortTransaction": 1, "autocommit": False}),
    ],
)
def test_what_is_no_update_is_known_by_what_it_names(kind: Kind, command: dict[str, Any]) -> None:
    assert kind_of(command) == kind


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("put in a transaction", {"insert": "jobs", "documents": [INSERTED]}),
        ("change", {"insert": "ledger", "documents": [{"_id": 1}]}),
        (
            "complete in a transaction",
            {"delete": "jobs", "deletes": [{"q": operations.held(JOB, TOKEN)}]},
        ),
    ],
)
def test_a_write_in_a_transaction_is_told_from_one_outside(
    kind: Kind, command: dict[str, Any]
) -> None:
    assert kind_of({**command, "autocommit": False}) == kind
