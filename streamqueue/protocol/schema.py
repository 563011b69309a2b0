"""What a collection of jobs is made with: the order of claims, its indexes, and its validator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson.datetime_ms import DatetimeMS
from pymongo import ASCENDING, DESCENDING, IndexModel

from ..options import MAX_PRIORITY
from .document import State
from .settings import BELL

if TYPE_CHECKING:
    from collections.abc import Mapping

CLAIM_ORDER = [
    ("priority", DESCENDING),
    ("seq", ASCENDING),
    ("run_at", ASCENDING),
    ("_id", ASCENDING),
]
"""Higher priority first, then first in, first out.

``seq`` is the server's logical clock at the insert: it rises with every write, so of two puts the
one that had returned before the other began is the first, whatever their clients' clocks say. A job
that becomes due gets the one of that moment, and shares it with the last that was put before and
with all that became due together: of those the one whose time came first is the first.
"""

# Each index is partial on a state, or on those that sort before or after the two that a job is in
# while there is work of it: a job has an entry in one of them at a time, and every state has one.
# The state is in the keys although the filter fixes it: 6.0 cannot count or read ids from the index
# alone otherwise (SERVER-28889).
INDEXES = [
    IndexModel(
        [("queue", ASCENDING), ("state", ASCENDING), *CLAIM_ORDER],
        name="streamqueue_order",
        partialFilterExpression={"state": "ready"},
    ),
    IndexModel(
        [("state", ASCENDING), ("locked_until", ASCENDING), ("queue", ASCENDING)],
        name="streamqueue_running",
        partialFilterExpression={"state": "running"},
    ),
    IndexModel(
        [("queue", ASCENDING), ("state", ASCENDING), ("run_at", ASCENDING)],
        name="streamqueue_waiting",
        partialFilterExpression={"state": {"$gte": "scheduled"}},
    ),
    IndexModel(
        [("queue", ASCENDING), ("state", ASCENDING), ("finished_at", ASCENDING)],
        name="streamqueue_ended",
        partialFilterExpression={"state": {"$lt": "ready"}},
    ),
]
"""Those that every collection of jobs has."""

EARLIER_KEY_INDEX = "streamqueue_key"
"""What kept keys unique before they could be let go of while their job lives. Where it still stands
it refuses a second live job with a key, whatever else it was put with."""
SUPERSEDED_INDEXES = (
    *("streamqueue_scheduled", "streamqueue_dead", "streamqueue_ready"),
    EARLIER_KEY_INDEX,
)
"""What earlier versions made in the place of some of these, and no version from now on uses."""
BY_BYTES = {"locale": "simple"}
"""The collation of keys: those that differ in a byte differ, whatever the collection's is."""
# Partial on text, which sorts after the empty one: of what others have stored as a key, a null or a
# number, there may be any number.
KEY_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("task", ASCENDING), ("held_key", ASCENDING)],
    name="streamqueue_held_key",
    unique=True,
    partialFilterExpression={"held_key": {"$gte": ""}},
    collation=BY_BYTES,
).document
"""The one that keeps keys unique: a job is in it exactly while it holds its key. It is made for the
first put that has one: each index costs every write of every job, whether it holds the job or
not."""
RUNNING_KEY_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("task", ASCENDING), ("key", ASCENDING), ("state", ASCENDING)],
    name="streamqueue_running_key",
    unique=True,
    partialFilterExpression={"state": "running", "key": {"$gte": ""}},
    collation=BY_BYTES,
).document
"""The one by which no two jobs of a key run at once, also where the first has let go of it."""
REMOVED_INDEX: Mapping[str, Any] = IndexModel(
    [("removed_at", ASCENDING)],
    name="streamqueue_removed",
    expireAfterSeconds=0,
    partialFilterExpression={"removed_at": {"$exists": True}},
).document
"""The one by which the server removes ended jobs that were kept for a time, made for the first."""
EXPIRES_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("expires_at", ASCENDING)],
    name="streamqueue_expires",
    partialFilterExpression={"expires_at": {"$exists": True}, "state": {"$gte": "ready"}},
).document
"""The one by which jobs that wait are found to be too late, made for the first put that has such a
time."""
GROUP_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("group", ASCENDING), ("seq", ASCENDING), ("state", DESCENDING)],
    name="streamqueue_group",
    partialFilterExpression={"group": {"$gte": ""}, "state": {"$gte": "ready"}},
    collation=BY_BYTES,
).document
"""The one by which the first of a group is found, and other groups than some: of live jobs, in
their order. Of those that joined at the same moment (one update promotes many) the one comes first
that runs, or ran and is to be tried again: "ready" is the lowest of the states that live."""
DEAD_GROUP_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("group", ASCENDING), ("state", ASCENDING)],
    name="streamqueue_dead_group",
    partialFilterExpression={"group": {"$gte": ""}, "state": "dead"},
    collation=BY_BYTES,
).document
"""The one by which groups are found that have a dead job, which may hold its group."""
TASK_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("task", ASCENDING), ("seq", ASCENDING), ("state", ASCENDING)],
    name="streamqueue_task",
    partialFilterExpression={"task": {"$gte": ""}, "state": "ready"},
    collation=BY_BYTES,
).document
"""The one by which jobs of other tasks than some are found, where tasks have limits of their
own."""
SLOTS_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("slots", ASCENDING), ("state", ASCENDING)],
    name="streamqueue_slots",
    unique=True,
    partialFilterExpression={"state": "running", "slots": {"$exists": True}},
    collation=BY_BYTES,
).document
"""The one by which no two running jobs have a slot of a limit in common. A slot cannot leak: it is
in it exactly while its job runs."""
# Two that begin with what a look asks for, and end with the ids, by which it goes on from one part
# of the dependents to the next.
AFTER_INDEX: Mapping[str, Any] = IndexModel(
    [("after", ASCENDING), ("_id", ASCENDING)],
    name="streamqueue_after",
    partialFilterExpression={"after": {"$exists": True}, "state": {"$gte": "ready"}},
).document
"""The one by which the dependents of a parent are found that have not ended."""
WITNESS_INDEX: Mapping[str, Any] = IndexModel(
    [("waits_for.parents", ASCENDING), ("_id", ASCENDING)],
    name="streamqueue_witness",
    partialFilterExpression={"state": "waiting", "waits_for.parents": {"$exists": True}},
).document
"""The one by which those are found that wait for this parent in particular."""
HELD_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("state", ASCENDING), ("waits_for.failed", ASCENDING)],
    name="streamqueue_held",
    partialFilterExpression={"state": "waiting", "waits_for.failed": True},
).document
"""The one by which those are counted whose parents will not end unless somebody requeues one."""
NEEDED_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("needed", ASCENDING)],
    name="streamqueue_needed",
    partialFilterExpression={"needed": {"$exists": True}},
).document
"""The one by which parents are found that nobody may need any more."""
MISFIT_INDEX: Mapping[str, Any] = IndexModel(
    [("queue", ASCENDING), ("state", ASCENDING), ("misfit_at", ASCENDING)],
    name="streamqueue_misfit",
    partialFilterExpression={"state": "waiting", "misfit_at": {"$exists": True}},
).document
"""The one by which jobs are found that are left to other processes: their payloads do not fit, or
their tasks are not known."""
FEATURE_INDEXES = {
    "key": (KEY_INDEX, RUNNING_KEY_INDEX),
    "keep": (REMOVED_INDEX,),
    "expires": (EXPIRES_INDEX,),
    "group": (GROUP_INDEX, DEAD_GROUP_INDEX),
    "limits": (SLOTS_INDEX,),
    "task limits": (TASK_INDEX,),
    "misfits": (MISFIT_INDEX,),
    "after": (AFTER_INDEX, WITNESS_INDEX, HELD_INDEX, NEEDED_INDEX),
}
"""Those that only a feature needs, by the feature."""

BUCKETS_INDEX: Mapping[str, Any] = IndexModel(
    [("full_at", ASCENDING)],
    name="streamqueue_buckets",
    expireAfterSeconds=0,
).document
"""The one by which the server removes the buckets of rates that nobody has used for a while. It is
in the collection that has the buckets, and is made when the first starts are reserved."""

FIRST_DATE = DatetimeMS(-62_135_596_800_000)
LAST_DATE = DatetimeMS(253_402_300_799_999)
"""The years 1 to 9999, which a Python program can put; BSON goes 292 million further each way."""

_DATES = (
    *("run_at", "created_at", "locked_at", "locked_until"),
    *("finished_at", "removed_at", "expires_at", "cancel_requested_at", "tick", "unique_until"),
    *("needed", "kept_until", "misfit_at"),
)

_FIELDS: dict[str, Any] = {
    "$map": {"input": {"$objectToArray": "$$ROOT"}, "in": "$$this.k"},
}
# BSON permits a field twice, and mongod 6.0.5 itself ends (an invariant of its own fails) when an
# update changes one of the two.
_NO_FIELD_TWICE: dict[str, Any] = {"$eq": [{"$size": _FIELDS}, {"$size": {"$setUnion": [_FIELDS]}}]}
# A schema has no bounds for dates.
_OUT_OF_BOUNDS = [
    {field: {operator: bound}}
    for field in _DATES
    for operator, bound in (("$lt", FIRST_DATE), ("$gt", LAST_DATE))
]
# Not ``$``, which is also before a line feed at the end.
_NAME = {"bsonType": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\z"}
_IS_A_JOB: dict[str, Any] = {
    "$jsonSchema": {
        "bsonType": "object",
        "required": ["queue", "state", "payload"],
        "properties": {
            # What programs use. Those that are left out can be equal to others without being the
            # same (a double, a decimal), or are documents, and nobody has them by accident.
            "_id": {"bsonType": ["objectId", "string", "int", "long", "binData"]},
            "queue": _NAME,
            "state": {"enum": [str(state) for state in State]},
            "payload": {"bsonType": "object"},
            "priority": {
                "bsonType": ["int", "long"],
                "minimum": -MAX_PRIORITY,
                "maximum": MAX_PRIORITY,
            },
            "attempts": {"bsonType": ["int", "long"], "minimum": 0},
            "max_attempts": {"bsonType": ["int", "long"], "minimum": 1},
            "task": {"bsonType": "string"},
            "schedule": {"bsonType": "string"},
            "key": {"bsonType": "string"},
            "held_key": {"bsonType": "string"},
            "key_until": {"enum": ["start"]},
            "group": {"bsonType": "string"},
            "slots": {"bsonType": "array", "items": {"bsonType": "string"}},
            "after": {"bsonType": "array"},
            "if_parent_fails": {"enum": ["cancel", "run", "hold"]},
            "delay": {"bsonType": ["int", "long", "double"]},
            "waits_for": {"bsonType": "object"},
            "seq": {"bsonType": "timestamp"},
            **{field: {"bsonType": "date"} for field in _DATES},
        },
    },
    "$nor": _OUT_OF_BOUNDS,
    "$expr": _NO_FIELD_TWICE,
}
_HOLDS_A_KEY: dict[str, Any] = {
    "$jsonSchema": {
        "bsonType": "object",
        "required": ["queue", "unique_until"],
        "properties": {
            "queue": _NAME,
            "task": {"bsonType": "string"},
            "key": {"bsonType": "string"},
            "held_key": {"bsonType": "string"},
            **{field: {"bsonType": "date"} for field in _DATES},
        },
        "not": {"anyOf": [{"required": ["state"]}, {"required": ["payload"]}]},
    },
    "$nor": _OUT_OF_BOUNDS,
    "$expr": _NO_FIELD_TWICE,
}
"""What is left of a job that was removed and whose key is held for longer; when that time is over
it may have let go of the key."""
_IS_THE_BELL: dict[str, Any] = {
    "_id": BELL,
    "rung_at": {"$type": "date"},
    "$expr": {"$eq": [{"$size": _FIELDS}, 2]},
}
VALIDATOR: dict[str, Any] = {"$or": [_IS_A_JOB, _HOLDS_A_KEY, _IS_THE_BELL]}
"""What ``init --validator`` has the server ask of each document that is inserted or changed."""
