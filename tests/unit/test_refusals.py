"""What the server's replies to a write mean, and what is written in place of what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import (
    AutoReconnect,
    DuplicateKeyError,
    ExecutionTimeout,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from streamqueue.protocol import operations
from streamqueue.protocol.operations import Update, is_spoiled
from streamqueue.store.write_limit import WriteLimit

ID, TOKEN = ObjectId(), b"token"
LOCK = {"locked_by", "locked_at", "locked_until", "lease"}


def fields(update: Update) -> set[str]:
    [stage] = update.update
    return set(stage["$set"])


# what a reply says


@pytest.mark.parametrize(
    "error",
    [
        *(WriteError("no", code) for code in operations.DOCUMENT_ERRORS),
        *(OperationFailure("no", code) for code in operations.DOCUMENT_ERRORS),
        WriteError("a user's own index", 16755),
        DuplicateKeyError("a user's own index", 11000),
    ],
    ids=repr,
)
def test_what_the_server_will_never_take_is_a_refusal(error: Exception) -> None:
    assert operations.is_refusal(error)


@pytest.mark.parametrize(
    "error",
    [
        NetworkTimeout("no answer"),
        AutoReconnect("cut"),
        NotPrimaryError("an election"),
        ExecutionTimeout("took too long", 50),
        WriteConcernError("no majority", 64),
        WTimeoutError("no majority", 64),
        WriteConcernError("no majority, and too large", 17419),
        OperationFailure("no right", 13),
        WriteError("an election", 10107),
        WriteError("a conflict", 112),
        OperationFailure("what is it", 999),
        ValueError(),
    ],
    ids=repr,
)
def test_what_may_pass_is_no_refusal(error: Exception) -> None:
    assert not operations.is_refusal(error)


REFUSAL = {"index": 0, "code": 17419, "errmsg": "too large"}
DUPLICATE = {"index": 0, "code": 11000, "errmsg": "duplicate"}
NO_MAJORITY = {"code": 91, "errmsg": "shutting down"}
TIMED_OUT = {"code": 64, "errmsg": "timed out", "errInfo": {"wtimeout": True}}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"writeErrors": [REFUSAL]}, WriteError),
        ({"writeErrors": [DUPLICATE]}, DuplicateKeyError),
        ({"writeConcernError": NO_MAJORITY}, WriteConcernError),
        ({"writeConcernError": TIMED_OUT}, WTimeoutError),
        ({"writeErrors": [DUPLICATE], "writeConcernError": NO_MAJORITY}, WriteConcernError),
        ({"writeErrors": [REFUSAL], "writeConcernError": TIMED_OUT}, WTimeoutError),
    ],
)
def test_of_two_things_that_a_reply_says_the_doubt_is_raised(
    reply: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        operations.check_reply({"n": 0, "ok": 1, **reply})

    assert caught.type is kind


def test_a_reply_with_nothing_but_numbers_is_fine() -> None:
    operations.check_reply({"n": 1, "nModified": 1, "ok": 1})


# what is written instead


ENDS: dict[str, Callable[[], Update]] = {
    "error": lambda: operations.error(ID, TOKEN, "oops", 1, 3),
    "error without a message": lambda: operations.error(ID, TOKEN, None, 0, 3),
    "discard": lambda: operations.discard(ID, TOKEN, "oops"),
    "release": lambda: operations.release(ID, TOKEN),
    "release for later": lambda: operations.release(ID, TOKEN, 5),
    "reap": lambda: operations.reap([ID], 3),
}


@pytest.mark.parametrize("make", ENDS.values(), ids=ENDS)
def test_a_smaller_end_says_less_of_the_same(make: Callable[[], Update]) -> None:
    end = make()
    before = end

    for smaller in operations.smaller(end):
        assert smaller.filter == end.filter
        assert fields(smaller) < fields(before)
        assert smaller.update[0]["$set"].items() <= end.update[0]["$set"].items()
        before = smaller

    assert before is not end
    of_state = {"state", "allowed", "kept", "slots", *LOCK}
    assert fields(before) - {"run_at", "progress", "note", "awaited", "held_key"} == of_state


def test_a_smaller_end_leaves_out_what_is_new_of_the_progress() -> None:
    end = operations.release(ID, TOKEN)
    with_news = operations.with_progress(end, {"note": "half"})

    assert operations.smaller(with_news)[0] == end


@pytest.mark.parametrize("make", ENDS.values(), ids=ENDS)
def test_no_smaller_end_has_a_message(make: Callable[[], Update]) -> None:
    assert not any({"last_error", "errors"} & fields(end) for end in operations.smaller(make()))


@pytest.mark.parametrize(("delay", "timed"), [(5, True), (0, False)])
def test_what_is_scheduled_keeps_its_time_in_the_smallest_end(delay: float, timed: bool) -> None:
    for end in (
        operations.error(ID, TOKEN, "oops", delay, 3),
        operations.release(ID, TOKEN, delay),
    ):
        assert ("run_at" in fields(operations.smaller(end)[-1])) is timed


# shared writes


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 20, 1000])
def test_parts_are_up_to_eight_that_make_the_whole(count: int) -> None:
    parts = operations.parts(range(count))

    assert 1 < len(parts) <= 8
    assert [item for part in parts for item in part] == list(range(count))


def test_a_shared_write_is_spoiled_by_a_blocked_or_refused_document_alone() -> None:
    assert is_spoiled(ExecutionTimeout("blocked", 50))
    assert is_spoiled(WriteError("refused", 121))
    assert not is_spoiled(WTimeoutError("slow", 64))
    assert not is_spoiled(NetworkTimeout("slow"))


@pytest.mark.parametrize(("timeout", "seconds"), [(0.2, 0.05), (3, 0.15), (30, 0.5), (300, 0.5)])
def test_a_shared_write_has_a_small_part_of_the_lease(timeout: float, seconds: float) -> None:
    assert WriteLimit.of_lease(timeout).seconds == pytest.approx(seconds)


def test_a_slow_server_is_given_longer_until_it_is_quick_again() -> None:
    limit = WriteLimit.of_lease(3)
    for _ in range(10):
        limit.met()
    assert limit.seconds == 3

    limit.kept(took=2.0)
    assert limit.seconds == 3
    limit.kept(took=0.01)
    assert limit.seconds == pytest.approx(0.15)
