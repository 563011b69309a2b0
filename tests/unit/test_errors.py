"""The errors: one tree, with data in attributes and a message that says what to do."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
from bson import ObjectId

import streamqueue
from streamqueue import (
    ConfigurationError,
    Discard,
    DuplicateJob,
    EmbeddedServerError,
    ForeignLoop,
    ForkedProcess,
    JobCancelled,
    JobFailed,
    JobInfo,
    JobNotFound,
    LeaseLost,
    PayloadError,
    ReplicaSetRequired,
    Retry,
    ScheduleNotFound,
    Snooze,
    StreamQueueError,
    errors,
)

ID = ObjectId("6b047ca649993ecb424f6c2f")

MAKE: dict[str, Callable[[], StreamQueueError]] = {
    "ConfigurationError": lambda: ConfigurationError("limit must be 1 to 5"),
    "ReplicaSetRequired": ReplicaSetRequired,
    "PayloadError": lambda: PayloadError("too large"),
    "DuplicateJob": lambda: DuplicateJob("k", ID),
    "JobNotFound": lambda: JobNotFound(ID, "dead"),
    "ScheduleNotFound": lambda: ScheduleNotFound("nightly"),
    "JobCancelled": lambda: JobCancelled(ID),
    "JobFailed": lambda: JobFailed(JobInfo.from_document({"_id": ID, "last_error": "boom"})),
    "LeaseLost": lambda: LeaseLost(ID),
    "ForeignLoop": ForeignLoop,
    "ForkedProcess": ForkedProcess,
    "EmbeddedServerError": lambda: EmbeddedServerError("no mongod"),
}


def test_the_table_above_has_every_error() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, StreamQueueError)
    }

    assert defined - {"StreamQueueError"} == MAKE.keys()


@pytest.mark.parametrize("name", MAKE)
def test_every_error_can_be_imported_from_the_package(name: str) -> None:
    assert getattr(streamqueue, name) is getattr(errors, name)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ConfigurationError, ValueError),
        (ReplicaSetRequired, ConfigurationError),
        (PayloadError, ValueError),
        (JobNotFound, LookupError),
        (ForeignLoop, RuntimeError),
        (ForkedProcess, RuntimeError),
    ],
)
def test_an_error_is_also_what_python_calls_it(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, builtin)


@pytest.mark.parametrize("outcome", [Retry, Snooze, Discard])
def test_an_outcome_is_not_an_error(outcome: type[Exception]) -> None:
    assert not issubclass(outcome, StreamQueueError)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ReplicaSetRequired(), "mongod --replSet rs0"),
        (ReplicaSetRequired(), "rs.initiate()"),
        (ReplicaSetRequired(), "streamqueue server"),
        (ReplicaSetRequired("this member was never initiated"), "never initiated"),
        (DuplicateJob("order:5", ID), "'order:5'"),
        (DuplicateJob("order:5", ID), str(ID)),
        (JobNotFound(ID, "dead"), f"no dead job {ID}"),
        (JobNotFound(ID), f"no job {ID}"),
        (LeaseLost(ID), str(ID)),
        (LeaseLost(ID), "nothing was changed"),
        (LeaseLost(ID), "may be running elsewhere"),
        (ForeignLoop(), "make a new client and a new queue inside this loop"),
        (ForkedProcess(), "make the MongoClient and the queue in the child"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_message_says_what_happened_and_what_to_do(error: Exception, advice: str) -> None:
    assert advice in str(error)


def test_a_duplicate_says_which_key_and_which_job() -> None:
    error = DuplicateJob("k", ID)

    assert (error.key, error.job_id) == ("k", ID)


def test_a_duplicate_whose_job_has_ended_meanwhile_has_no_id() -> None:
    assert DuplicateJob("k", None).job_id is None


@pytest.mark.parametrize("error", [JobNotFound(ID), LeaseLost(ID)], ids=type)
def test_an_error_about_one_job_says_which(error: JobNotFound | LeaseLost) -> None:
    assert error.job_id == ID


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize(
    "through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_an_error_survives_the_way_to_another_process(
    make: Callable[[], StreamQueueError],
    through: Callable[[StreamQueueError], StreamQueueError],
) -> None:
    error = make()

    arrived = through(error)

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_a_retry_leaves_the_delay_to_the_backoff_by_default() -> None:
    assert Retry().delay is None


def test_an_outcome_carries_what_it_was_given() -> None:
    assert (Retry(5).delay, Snooze(0.5).delay, Discard("why").reason) == (5, 0.5, "why")


def test_a_discard_without_a_reason_says_who_did_it() -> None:
    assert Discard().reason == "discarded by the handler"
