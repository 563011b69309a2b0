"""The commands, by value: what they match, what they write, and whose values are evaluated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Decimal128, ObjectId, Timestamp
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import (
    BulkWriteError,
    DuplicateKeyError,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from streamqueue.protocol import operations
from streamqueue.protocol.document import MAX_ERRORS, State
from streamqueue.protocol.operations import Find, Update
from streamqueue.protocol.put import check_put
from streamqueue.protocol.schema import CLAIM_ORDER
from streamqueue.protocol.settings import BELL
from streamqueue.protocol.unique import TaskKey

ID, OTHER = ObjectId(), ObjectId()
TOKEN, OTHER_TOKEN = b"token", b"other token"
QUEUE = "emails"
PROGRESS = {"progress": 5, "note": "half"}
UNTIL = datetime(2026, 11, 29, tzinfo=UTC)

HELD: dict[str, Callable[[], Update]] = {
    "error": lambda: operations.error(ID, TOKEN, "oops", 1, 3),
    "error without a message": lambda: operations.error(ID, TOKEN, None, 0, 3),
    "discard": lambda: operations.discard(ID, TOKEN, "oops"),
    "done": lambda: operations.done(ID, TOKEN),
    "cancelled": lambda: operations.cancelled(ID, TOKEN, "oops"),
    "release": lambda: operations.release(ID, TOKEN),
    "release for later": lambda: operations.release(ID, TOKEN, 5),
    "renew": lambda: operations.renew(operations.held(ID, TOKEN), 30),
    "progress": lambda: operations.renew(operations.held(ID, TOKEN), 30, PROGRESS),
    "error after progress": lambda: operations.with_progress(
        operations.error(ID, TOKEN, "oops", 1, 3), PROGRESS
    ),
}
HELD_TOGETHER: dict[str, Callable[[], Update]] = {
    "release many": lambda: operations.release_many([ID, OTHER], [TOKEN, OTHER_TOKEN]),
    "unclaim": lambda: operations.unclaim([ID, OTHER], [TOKEN, OTHER_TOKEN]),
    "renew many": lambda: operations.renew(
        operations.held_any([ID, OTHER], [TOKEN, OTHER_TOKEN]), 30
    ),
}
OTHERS: dict[str, Callable[[], Update]] = {
    "claim": lambda: operations.claim([ID], [QUEUE], "consumer-1", TOKEN, 30, UNTIL, lambda _: 3),
    "claim many": lambda: operations.claim(
        [ID, OTHER], [QUEUE], "consumer-1", TOKEN, 30, UNTIL, lambda _: 3
    ),
    "cancel": lambda: operations.cancel(QUEUE, ID, None),
    "promote": lambda: operations.promote([ID]),
    "reap": lambda: operations.reap([ID], 3),
    "reap without a note": lambda: operations.reap([ID], 3, note=False),
    "adopt": lambda: operations.adopt([ID]),
    "requeue": lambda: operations.requeue(QUEUE, ID),
    "requeue what died then": lambda: operations.requeue(QUEUE, ID, {"finished_at": UNTIL}),
    "purge to holders": lambda: operations.purge_to_holders(
        operations.Deaths(QUEUE), [{"_id": ID}]
    ),
    "cancelled to holders": lambda: operations.cancelled_to_holders([ID]),
    "quarantine misfits": lambda: operations.quarantine_misfits([ID]),
}
UPDATES = HELD | HELD_TOGETHER | OTHERS
FINDS: dict[str, Callable[[], Find]] = {
    "candidates": lambda: operations.candidates([QUEUE], 5),
    "claimed": lambda: operations.claimed([ID], TOKEN),
    "dead by now": lambda: operations.dead_by_now(operations.Deaths(QUEUE)),
    "due": lambda: operations.due([QUEUE], 5),
    "next due": lambda: operations.next_due([QUEUE]),
    "next expiry": lambda: operations.next_expiry([QUEUE]),
    "next expiry anywhere": lambda: operations.next_expiry(None),
    "expired": lambda: operations.expired([QUEUE], 5),
    "holders": lambda: operations.holders(QUEUE, TaskKey("k")),
    "ready jobs of other groups": lambda: operations.of_others("group", QUEUE, ["ada"], "", 5),
    "forgotten parents": lambda: operations.forgotten_parents([QUEUE], None, 5),
    "dependents": lambda: operations.waiting_for([ID]),
}
COMMANDS: dict[str, Callable[[], object]] = {
    **UPDATES,
    **FINDS,
    "stats": lambda: operations.stats(QUEUE, "jobs"),
    "stream": lambda: operations.stream_pipeline([QUEUE]),
    "of queue": lambda: operations.of_queue(QUEUE, "dead"),
    "settings": lambda: operations.settings_of([QUEUE]),
    "pause": lambda: operations.pause(QUEUE),
    "resume": lambda: operations.resume(QUEUE),
    "limit": lambda: operations.limit(QUEUE, "queue", {"running": 3, "rate": None}),
    "declare rules": lambda: operations.declare_rules(QUEUE, {"fair": True}),
    "ring": operations.ring,
}


def each(cases: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", cases.values(), ids=cases)


def leaves(
    value: object, path: tuple[object, ...] = ()
) -> Iterator[tuple[tuple[object, ...], Any]]:
    """Every value in a command that contains no others, with the way to it."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from leaves(inner, (*path, key))
        case list() | tuple():
            for index, inner in enumerate(value):
                yield from leaves(inner, (*path, index))
        case _:
            yield path, value


def keys(value: object) -> Iterator[str]:
    """Every key in a command."""
    match value:
        case dict():
            for key, inner in value.items():
                yield key
                yield from keys(inner)
        case list() | tuple():
            for inner in value:
                yield from keys(inner)


def fields(update: Update) -> dict[str, Any]:
    """What an update sets."""
    stage, *_ = update.update  # after which a bare holder of a key may be left
    return stage["$set"]


# Who may write.


@each(HELD)
def test_a_write_to_a_held_job_matches_its_id_and_token_and_nothing_else(
    make: Callable[[], Update],
) -> None:
    assert make().filter == {"_id": ID, "lease": TOKEN}


@each(HELD_TOGETHER)
def test_a_write_to_several_held_jobs_matches_their_ids_and_tokens(
    make: Callable[[], Update],
) -> None:
    assert make().filter == {
        "_id": {"$in": [ID, OTHER]},
        "lease": {"$in": [TOKEN, OTHER_TOKEN]},
    }


def test_a_claim_takes_only_what_is_ready_in_its_queue_and_only_for_some_time() -> None:
    update = operations.claim([ID], [QUEUE], "consumer-1", TOKEN, 30, UNTIL, lambda _: 3)

    assert update.filter == {
        "_id": {"$eq": ID},
        "state": "ready",
        "queue": {"$eq": QUEUE},
        "$expr": {"$lt": ["$$NOW", UNTIL]},
    }


def test_a_claim_writes_the_token_that_later_writes_match() -> None:
    update = operations.claim([ID], [QUEUE], "consumer-1", TOKEN, 30, UNTIL, lambda _: 3)

    assert fields(update)["lease"] == TOKEN


def test_tokens_are_never_used_twice() -> None:
    tokens = {operations.new_token() for _ in range(10_000)}

    assert len(tokens) == 10_000
    assert {len(token) for token in tokens} == {16}


@pytest.mark.parametrize("name", ["promote", "reap"])
def test_what_time_does_to_a_job_is_checked_again_in_the_update(name: str) -> None:
    wanted = UPDATES[name]().filter

    assert wanted["state"] == {"promote": "scheduled", "reap": "running"}[name]
    assert "$$NOW" in [value for _, value in leaves(wanted)]


@pytest.mark.parametrize(
    "name",
    [
        *("error", "error without a message", "discard", "release", "release for later"),
        *("release many", "unclaim", "reap", "reap without a note", "requeue"),
    ],
)
def test_what_ends_an_attempt_removes_the_whole_lock(name: str) -> None:
    written = fields(UPDATES[name]())

    lock = {field: written.get(field) for field in ("lease", "locked_by", "locked_at")}
    assert lock == dict.fromkeys(lock, "$$REMOVE")
    assert written["locked_until"] == "$$REMOVE"


@pytest.mark.parametrize("name", ["renew", "progress", "renew many"])
def test_a_renewal_touches_neither_the_token_nor_the_state(name: str) -> None:
    assert fields(UPDATES[name]()).keys() <= {"locked_until", "progress", "note"}


# Values of users are data.


def parents(value: object, wanted: object, key: object = None) -> Iterator[object]:
    """The keys under which a value stands in a command."""
    if value == wanted:
        yield key
    elif isinstance(value, dict):
        for inner, content in value.items():
            yield from parents(content, wanted, inner)
    elif isinstance(value, list):
        for content in value:
            yield from parents(content, wanted, key)


TAKES_A_TEXT: dict[str, Callable[[str], Update]] = {
    "claim": lambda text: operations.claim([ID], [QUEUE], text, TOKEN, 30, UNTIL, lambda _: 3),
    "error": lambda text: operations.error(ID, TOKEN, text, 0, 3),
    "discard": lambda text: operations.discard(ID, TOKEN, text),
}


@each(TAKES_A_TEXT)
@pytest.mark.parametrize("text", ["$$ROOT", "$payload", "$$NOT_A_VARIABLE", ""])
def test_a_text_of_a_user_is_never_evaluated(make: Callable[[str], Update], text: str) -> None:
    assert set(parents(make(text).update, text)) == {"$literal"}


@pytest.mark.parametrize("count", [5, "$$ROOT", {"$set": {"state": "dead"}}])
def test_a_progress_count_is_never_evaluated(count: Any) -> None:
    command = operations.renew(operations.held(ID, TOKEN), 30, {"progress": count})

    assert set(parents(command.update, count)) == {"$literal"}


@pytest.mark.parametrize(
    "make",
    [
        lambda name: operations.candidates([name], 5).filter,
        lambda name: operations.due([name], 5).filter,
        lambda name: operations.next_due([name]).filter,
        lambda name: operations.next_expiry([name]).filter,
        lambda name: operations.expired([name], 5).filter,
        lambda name: operations.claim([ID], [name], "c", TOKEN, 30, UNTIL, lambda _: 3).filter,
        lambda name: operations.unplaced([name], 5).filter,
        lambda name: operations.requeue(name, ID).filter,
        lambda name: operations.dead_by_now(operations.Deaths(name)).filter,
        lambda name: operations.of_queue(name),
        lambda name: operations.holders(name, TaskKey("k")).filter,
    ],
)
def test_a_queue_name_is_only_ever_compared(make: Callable[[Any], dict[str, Any]]) -> None:
    name = {"$ne": None}  # what the checks of options.py would have to let through

    assert make(name)["queue"] == {"$eq": name}


def test_several_queues_are_compared_one_by_one() -> None:
    assert operations.candidates(["a", "b"], 5).filter["queue"] == {"$in": ["a", "b"]}


def test_a_key_is_only_ever_compared() -> None:
    assert operations.holders(QUEUE, TaskKey("$k")).filter["held_key"] == {"$eq": "$k"}


def test_a_job_id_is_only_ever_compared() -> None:
    assert operations.requeue(QUEUE, ID).filter["_id"] == {"$eq": ID}


@each(COMMANDS)
def test_no_command_runs_code_on_the_server(make: Callable[[], object]) -> None:
    assert not {"$where", "$function", "$accumulator"} & set(keys(make()))


# Time is the server's.


@each(COMMANDS)
def test_no_command_carries_a_time_of_this_machine(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make()
    monkeypatch.setattr(time, "time", lambda: 0.0)

    assert make() == before
    times = {value for _, value in leaves(before) if isinstance(value, datetime)}
    assert times <= {UNTIL}  # which is the server's, as it was last observed


WRITES_TIMES = {
    "claim": {"locked_at", "locked_until"},
    "renew": {"locked_until"},
    "done": {"finished_at", "removed_at", "kept_until"},
    "cancel": {"cancel_requested_at", "finished_at", "removed_at", "kept_until"},
    "cancelled": {"finished_at", "removed_at", "errors", "kept_until"},
    "error": {"run_at", "finished_at", "removed_at", "errors", "kept_until"},
    "release": {"finished_at", "removed_at", "kept_until"},
    "release for later": {"run_at", "finished_at", "removed_at", "kept_until"},
    "reap": {"finished_at", "removed_at", "errors", "run_at", "kept_until"},
    "adopt": {"run_at"},
    "requeue": {"run_at"},
}


@pytest.mark.parametrize(("name", "times"), WRITES_TIMES.items())
def test_a_time_that_is_stored_is_the_servers(name: str, times: set[str]) -> None:
    written = fields(UPDATES[name]())

    stamped = {
        field
        for field, expression in written.items()
        if "$$NOW" in [value for _, value in leaves(expression)]
    }
    assert stamped - {"held_key"} == times  # that is no time, and may depend on one


@pytest.mark.parametrize(
    ("timeout", "milliseconds"), [(30, 30_000), (0.5, 500), (0.0001, 1), (1.0005, 1001)]
)
def test_a_lease_is_never_shorter_than_asked_for(timeout: float, milliseconds: int) -> None:
    command = operations.renew(operations.held(ID, TOKEN), timeout)

    assert fields(command)["locked_until"] == {"$add": ["$$NOW", milliseconds]}


# What becomes of a job.


@pytest.mark.parametrize(("delay", "state"), [(0, "ready"), (0.001, "scheduled")])
def test_a_failed_attempt_waits_only_if_there_is_a_delay(delay: float, state: str) -> None:
    written = fields(operations.error(ID, TOKEN, None, delay, 3))
    [_, cancelled, otherwise] = written["state"]["$cond"]
    [_, dead, again] = otherwise["$cond"]

    assert (cancelled, dead, again) == ("cancelled", "dead", state)


@pytest.mark.parametrize("delay", [None, 0, 0.0])
def test_a_release_without_a_delay_is_ready_and_keeps_its_place(delay: float | None) -> None:
    written = fields(operations.release(ID, TOKEN, delay))

    assert written["state"]["$cond"][1:] == ["cancelled", "ready"]
    assert "run_at" not in written


def test_a_failed_attempt_without_a_message_keeps_the_last_one() -> None:
    written = fields(operations.error(ID, TOKEN, None, 0, 3))

    assert not {"last_error", "errors"} & written.keys()


def test_an_error_list_is_cut_to_its_end() -> None:
    written = fields(operations.error(ID, TOKEN, "oops", 0, 3))

    assert written["errors"]["$slice"][1] == -MAX_ERRORS


def test_a_long_message_is_cut() -> None:
    written = fields(operations.error(ID, TOKEN, "x" * 100_000, 0, 3))

    assert len(written["last_error"]["$literal"]) == 4096


def test_a_requeued_job_has_all_its_attempts() -> None:
    assert fields(operations.requeue(QUEUE, ID))["attempts"] == 0


def test_what_is_left_of_a_purged_job_that_holds_its_key_is_no_job_any_more() -> None:
    update = operations.purge_to_holders(operations.Deaths(QUEUE), [{"_id": ID}, {"_id": OTHER}])

    [stage] = update.update
    left = stage["$replaceWith"]
    assert {"_id", "queue", "key", "held_key", "removed_at"} <= left.keys()
    assert not {"state", "payload"} & left.keys()


def test_only_what_is_dead_of_what_was_meant_and_holds_its_key_is_purged_to_that() -> None:
    deaths = operations.Deaths(QUEUE, match="oops")
    wanted = operations.purge_to_holders(deaths, [{"_id": ID}, {"_id": OTHER}]).filter

    assert wanted["_id"] == {"$in": [ID, OTHER]}
    assert wanted["state"] == {"$eq": "dead"}
    assert wanted["last_error"] == {"$regex": "oops"}
    assert wanted["unique_until"] == {"$type": "date"}


def test_of_cancelled_jobs_those_alone_that_may_hold_a_key_for_longer_leave_a_holder() -> None:
    update = operations.cancelled_to_holders([ID, OTHER])

    assert update.filter == {
        "_id": {"$in": [ID, OTHER]},
        "state": "cancelled",
        "unique_until": {"$type": "date"},
    }
    assert update.update == [operations.UNNEEDED_AS_BARE_HOLDER]


def test_a_misfit_that_takes_no_larger_change_is_dead_without_a_word() -> None:
    update = operations.quarantine_misfits([ID])

    assert update.filter["state"] == "waiting"
    assert update.filter["$or"] == [
        {"waits_for.misfit": {"$exists": True}},
        {"waits_for.task": {"$exists": True}},
    ]
    written = fields(update)
    assert (written["state"], written["waits_for"]) == ("dead", "$$REMOVE")
    assert not {"last_error", "errors", "finished_at"} & written.keys()


@pytest.mark.parametrize("awaited", [True, False])
def test_a_put_with_a_key_says_that_somebody_waits_only_if_somebody_does(awaited: bool) -> None:
    plain: dict[str, Any] = dict.fromkeys(("priority", "delay", "run_at", "max_attempts"))
    put = check_put({}, key="k", on_conflict="skip", awaited=awaited, **plain)

    written = fields(operations.put_unique(QUEUE, put))

    assert ("awaited" in written) is awaited


# Slots.


@pytest.mark.parametrize(
    ("slots", "expected"), [(["q#1"], {"$literal": ["q#1"]}), ([], "$$REMOVE")], ids=str
)
def test_a_job_that_is_claimed_alone_is_given_its_slots(slots: list[str], expected: Any) -> None:
    assert operations.slots_of([ID], [slots]) == expected


def test_each_of_many_that_are_claimed_is_given_the_slots_in_the_place_of_its_id() -> None:
    [found, without] = operations.slots_of([ID, OTHER], [["q#1"], []])["$ifNull"]
    [slots, place] = found["$arrayElemAt"]

    assert slots == [{"$literal": ["q#1"]}, None]
    assert place == {"$indexOfArray": [[{"$literal": ID}, {"$literal": OTHER}], "$_id"]}
    assert without == "$$REMOVE"


# Reads.


@pytest.mark.parametrize(
    ("passed", "after", "expected"),
    [
        ([], "", {"$gte": ""}),
        ([], "ada", {"$gt": "ada"}),
        (["bob"], "", {"$gte": "", "$nin": ["bob"]}),
        (["bob"], "ada", {"$gt": "ada", "$nin": ["bob"]}),
    ],
)
def test_ready_jobs_are_looked_for_in_groups_behind_one_and_in_none_that_is_passed(
    passed: list[str], after: str, expected: Any
) -> None:
    assert operations.of_others("group", QUEUE, passed, after, 5).filter["group"] == expected


def test_parents_that_were_forgotten_are_read_on_from_a_moment() -> None:
    first = operations.forgotten_parents([QUEUE], None, 5).filter["needed"]
    others = operations.forgotten_parents([QUEUE], UNTIL, 5).filter["needed"]

    assert (first, others) == ({"$type": "date"}, {"$type": "date", "$gt": UNTIL})


@pytest.mark.parametrize(
    "find", [operations.waiting_for, operations.coming_after, operations.live_dependents]
)
def test_dependents_are_read_on_behind_an_id(find: Callable[..., Find]) -> None:
    assert "_id" not in find([ID]).filter
    assert find([ID], OTHER).filter == {**find([ID]).filter, "_id": {"$gt": OTHER}}


@pytest.mark.parametrize(
    ("find", "stages"),
    [
        (Find({"a": 1}), []),
        (Find({"a": 1}, {"_id": 1}), [{"$project": {"_id": 1}}]),
        (
            Find({"a": 1}, {"_id": 1}, [("b", 1), ("c", -1)], -5),
            [{"$sort": {"b": 1, "c": -1}}, {"$limit": 5}, {"$project": {"_id": 1}}],
        ),
    ],
    ids=["of whole documents", "of fields", "of the first of them"],
)
def test_a_read_is_the_same_as_an_aggregation(find: Find, stages: list[Any]) -> None:
    assert operations.as_pipeline(find) == [{"$match": {"a": 1}}, *stages]


def test_jobs_are_sorted_as_the_server_sorts_them_whatever_their_priorities_are() -> None:
    urgent_first: list[Any] = [
        *("no number", 2**40, Decimal128("5"), 1.5, -1, None),
        *(float("nan"), Decimal128("NaN"), Decimal128("sNaN")),
    ]
    jobs = [
        {"_id": number, "seq": Timestamp(1, number + 1), "priority": priority}
        for number, priority in enumerate(urgent_first)
    ]
    found = random.Random(1).sample(jobs, len(jobs))

    assert sorted(found, key=operations.claim_order_of) == jobs


def test_what_waits_is_read_in_the_order_of_claims() -> None:
    assert FINDS["candidates"]().sort == CLAIM_ORDER


def test_what_was_claimed_is_not_sorted_by_the_server_and_is_one_reply() -> None:
    command = operations.claimed([ID, OTHER], TOKEN)

    assert command.sort is None
    assert command.limit == -2


def test_the_claim_order_is_priority_then_first_in_first_out() -> None:
    assert CLAIM_ORDER == [("priority", -1), ("seq", 1), ("run_at", 1), ("_id", 1)]


@pytest.mark.parametrize("name", ["candidates", "due", "next due", "next expiry", "expired"])
def test_no_payload_is_read_where_it_is_not_needed(name: str) -> None:
    projection = FINDS[name]().projection

    assert projection is not None
    assert "payload" not in projection


def test_states_without_jobs_count_nothing() -> None:
    counts = operations.read_stats([{"_id": "ended", "count": 5}, {"_id": "errors", "count": 2}])

    assert {name: count for name, count in counts.items() if count} == {"errors": 2, "total": 5}
    assert len(counts) == 8


def test_every_counted_state_is_one_a_job_can_be_in() -> None:
    assert set(operations.COUNTED_STATES.values()) <= set(State)


def test_expired_jobs_are_sorted_by_queue_and_what_becomes_of_them() -> None:
    found = [
        {"_id": 1, "queue": "a", "attempts": 1},
        {"_id": 2, "queue": "a", "attempts": 3},
        {"_id": 3, "queue": "b", "attempts": 3},
        {"_id": 4, "queue": "b", "attempts": 3, "max_attempts": 3},
        {"_id": 5, "queue": "a", "attempts": 2},
    ]

    groups = operations.group_expired(found, {"a": 3, "b": 4}.__getitem__)

    assert groups == {
        ("a", "requeued"): [1, 5],
        ("a", "dead"): [2],
        ("b", "requeued"): [3],
        ("b", "dead"): [4],
    }


@pytest.mark.parametrize("queue", [["a"], {"a": 1}, None, 5])
def test_an_expired_job_with_a_damaged_queue_is_sorted_too(queue: Any) -> None:
    found = [{"_id": 1, "queue": queue, "attempts": 1}, {"_id": 2, "queue": "a", "attempts": 1}]

    groups = operations.group_expired(found, lambda _: 3)

    assert sorted(id_ for ids in groups.values() for id_ in ids) == [1, 2]


# The stream.


def test_an_event_can_be_resumed_after() -> None:
    [_, project, _] = operations.stream_pipeline([QUEUE])

    assert project["$project"].get("_id", 1) == 1


def test_what_the_server_applies_to_its_oplog_compares_fields_with_constants_alone() -> None:
    """An expression there would cost every write to the collection, and every stream of it."""
    [match, _, _] = operations.stream_pipeline(["a", "b"])

    assert "$expr" not in str(match)


def test_an_event_passes_only_for_our_queues_or_if_it_does_not_say() -> None:
    [match, _, _] = operations.stream_pipeline(["a", "b"])

    whole, partial, bell = match["$match"]["$or"]
    assert whole["fullDocument.queue"] == {"$in": ["a", "b"]}
    assert partial["operationType"] == "update"
    assert partial["updateDescription.updatedFields.queue"] == {"$in": [None, "a", "b"]}
    assert bell["fullDocument._id"] == BELL


# Errors of groups.


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"keyPattern": {"_id": 1}}, True),
        ({"keyPattern": {"queue": 1, "key": 1}}, False),
        ({}, False),
        (None, False),
    ],
)
def test_only_a_clash_of_ids_says_that_a_put_was_repeated(details: Any, expected: bool) -> None:
    assert operations.is_repeated_put(DuplicateKeyError("", 11000, details)) is expected


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"keyPattern": {"queue": 1, "key": 1}}, True),
        ({"keyPattern": {"_id": 1}}, False),
        ({"keyPattern": {"payload.order": 1}}, False),
        ({}, False),
        (None, False),
    ],
)
def test_only_a_clash_of_keys_says_that_a_job_is_a_duplicate(details: Any, expected: bool) -> None:
    assert operations.is_duplicate_job(DuplicateKeyError("", 11000, details)) is expected


def problem(index: int, code: int = 11000) -> dict[str, Any]:
    return {"index": index, "code": code, "errmsg": "oops", "keyPattern": {"_id": 1}}


def test_each_job_of_a_group_gets_its_own_error() -> None:
    error = BulkWriteError({"writeErrors": [problem(2), problem(0, code=121)]})

    first, second, third = operations.errors_of_each(error, 3)

    assert type(first) is WriteError
    assert second is None
    assert type(third) is DuplicateKeyError


def test_the_error_of_one_job_keeps_what_the_server_said() -> None:
    [error] = operations.errors_of_each(BulkWriteError({"writeErrors": [problem(0)]}), 1)

    assert isinstance(error, DuplicateKeyError)
    assert (error.code, error.details) == (11000, problem(0))


LATE = {"code": 64, "errmsg": "waiting for replication timed out", "errInfo": {"wtimeout": True}}
STEPPED_DOWN = {"code": 189, "errmsg": "primary stepped down"}


@pytest.mark.parametrize(
    ("doubt", "kind"), [(LATE, WTimeoutError), (STEPPED_DOWN, WriteConcernError)]
)
@pytest.mark.parametrize("problems", [[], [problem(0), problem(2, code=121)]])
def test_when_the_majority_did_not_answer_no_job_of_the_group_is_safe_nor_there_already(
    doubt: Any, kind: type[Exception], problems: Any
) -> None:
    error = BulkWriteError({"writeErrors": problems, "writeConcernErrors": [doubt]})

    errors = operations.errors_of_each(error, 3)

    assert [type(found) for found in errors] == [kind] * 3
    assert len(set(map(id, errors))) == 3  # each is raised in a task of its own


def test_the_error_of_one_job_does_not_quote_what_was_put() -> None:
    sent = {**problem(0), "op": {"payload": {"card": "4111-1111"}}}

    [error] = operations.errors_of_each(BulkWriteError({"writeErrors": [sent]}), 1)

    assert "4111" not in str(error)


@given(st.sets(st.integers(0, 49)))
def test_exactly_the_jobs_that_failed_have_an_error(failed: set[int]) -> None:
    error = BulkWriteError({"writeErrors": [problem(index) for index in failed]})

    errors = operations.errors_of_each(error, 50)

    assert {index for index, found in enumerate(errors) if found is not None} == failed


DIED = [{"_id": ID}, {"_id": OTHER}]


def test_of_a_group_of_updates_the_ids_of_those_are_returned_that_were_refused() -> None:
    error = BulkWriteError({"writeErrors": [problem(1, code=17419)]})

    [(job_id, why)] = operations.refused_of_each(error, DIED)

    assert (job_id, type(why)) == (OTHER, WriteError)


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ({"writeErrors": [problem(1, code=112)]}, WriteError),
        ({"writeErrors": [problem(1, code=121)], "writeConcernErrors": [LATE]}, WTimeoutError),
    ],
    ids=["a conflict", "no majority"],
)
def test_what_may_have_passed_of_a_group_of_updates_is_raised_and_no_refusal(
    details: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        operations.refused_of_each(BulkWriteError(details), DIED)


def test_clashes_are_told_apart_by_what_was_there() -> None:
    key = {**problem(2), "keyPattern": {"queue": 1, "key": 1}}
    error = BulkWriteError({"writeErrors": [problem(0), key]})

    assert operations.clashes(operations.errors_of_each(error, 4)) == ([0], [2])


@pytest.mark.parametrize(
    "other", [{"code": 121}, {"keyPattern": {"payload.order": 1}}, {"keyPattern": None}]
)
def test_with_any_other_error_among_them_it_is_no_matter_of_clashes(other: Any) -> None:
    error = BulkWriteError({"writeErrors": [problem(0), problem(1) | other]})

    assert operations.clashes(operations.errors_of_each(error, 2)) is None


# Indexes.


THE_KEY_INDEX = {
    "v": 2,
    "key": {"queue": 1, "task": 1, "held_key": 1},
    "name": "streamqueue_held_key",
    "unique": True,
    "partialFilterExpression": {"held_key": {"$gte": ""}},
}


def test_the_index_of_the_keys_is_known_by_what_it_is() -> None:
    assert operations.keeps_keys_unique(THE_KEY_INDEX)
    assert operations.keeps_keys_unique(THE_KEY_INDEX | {"name": "by_hand"})


@pytest.mark.parametrize(
    "other",
    [
        {"unique": False},
        {"key": {"queue": 1, "held_key": 1}},
        {"key": {"queue": 1, "task": 1, "held_key": 1, "state": 1}},
        {"partialFilterExpression": {"held_key": {"$gte": ""}, "state": "ready"}},
        {"partialFilterExpression": None},
    ],
)
def test_an_index_of_that_name_that_is_another_keeps_no_keys_unique(other: Any) -> None:
    assert not operations.keeps_keys_unique(THE_KEY_INDEX | other)


def test_an_index_that_is_being_built_keeps_no_keys_unique_yet() -> None:
    assert not operations.keeps_keys_unique({"spec": THE_KEY_INDEX, "buildUUID": b""})


def test_the_head_of_a_strict_group_and_its_dead_are_of_one_snapshot() -> None:
    command = operations.heads_of("jobs", "default", ["ada"], strict=True)

    assert command["readConcern"] == {"level": "snapshot"}
    assert "readConcern" not in operations.heads_of("jobs", "default", ["ada"])
