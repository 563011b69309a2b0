"""``make_job``: a job for a handler, without a server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from streamqueue import (
    AsyncJob,
    ConfigurationError,
    Discard,
    Job,
    JobCancelled,
    LeaseLost,
    PayloadError,
    Task,
)
from streamqueue.testing import Call, make_job


async def test_what_an_async_handler_asks_of_its_job_can_be_read() -> None:
    async def handler(job: AsyncJob) -> None:
        await job.progress(1, "packed")
        await job.complete({"size": (1, 2)})

    job = make_job({"n": 1})

    await handler(job)

    assert job.calls == [
        ("progress", {"count": 1, "note": "packed"}),
        Call("complete", {"result": {"size": [1, 2]}}),
    ]


def test_what_a_blocking_handler_asks_of_its_job_can_be_read() -> None:
    def handler(job: Job) -> None:
        job.error("no stamps", delay=5)

    job = make_job({"n": 1}, blocking=True)

    handler(job)

    assert job.calls == [("error", {"message": "no stamps", "delay": 5.0})]


@dataclass
class Email:
    to: str
    copies: int = 1


def test_a_job_made_of_an_instance_has_data_of_its_class() -> None:
    data: object = make_job(Email("ada")).data

    assert data == Email("ada")


def test_a_job_made_of_a_call_is_of_its_task_and_queue() -> None:
    job = make_job(Task("resize", queue="images").call(width=2), blocking=True)

    assert (job.task, job.queue, job.data) == ("resize", "images", {"width": 2})


def test_a_job_has_the_context_that_it_was_given() -> None:
    assert make_job({}).context == {}
    assert make_job({}, context={"client": 5}).context == {"client": 5}


async def test_a_step_of_an_earlier_attempt_is_not_run_and_another_one_is_noted() -> None:
    async def handler(job: AsyncJob) -> None:
        total = await job.step("count", lambda: 1 / 0)
        await job.step("sum", max, total, 2)

    job = make_job({}, steps={"count": 3})

    await handler(job)

    assert job.calls == [("step", {"name": "sum", "result": 3})]


def test_a_step_in_a_blocking_handler_is_run_and_its_result_has_been_through_bson() -> None:
    job = make_job({}, blocking=True)

    assert job.step("pair", lambda: (1, 2)) == [1, 2]
    assert job.calls == [("step", {"name": "pair", "result": [1, 2]})]


def test_a_payload_has_been_through_bson_and_back() -> None:
    payload = {"at": datetime(2026, 1, 1, 12, 0, 0, 123456), "pair": (1, 2), "$a.b": {"": None}}

    data = make_job(payload).data

    assert data == {
        "at": datetime(2026, 1, 1, 12, 0, 0, 123000, tzinfo=UTC),
        "pair": [1, 2],
        "$a.b": {"": None},
    }
    assert data["payload"] is data


def test_what_no_put_would_take_is_refused() -> None:
    with pytest.raises(PayloadError, match="holds a builtins"):
        make_job({"n": object()})


def test_a_priority_in_the_payload_is_the_jobs_as_with_put() -> None:
    job = make_job({"n": 1, "priority": 7})

    assert (job.priority, job.data) == (7, {"n": 1})


def test_a_job_has_the_fields_it_was_made_with_and_the_usual_others() -> None:
    job = make_job({}, queue="emails", attempts=2, last_error="no stamps", key="k", group="ada")

    assert (job.queue, job.attempts, job.max_attempts) == ("emails", 2, 3)
    assert (job.last_error, job.key, job.group) == ("no stamps", "k", "ada")
    assert job.id is not None
    assert job.run_at is not None
    assert not job.cancelled


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"atempts": 2}, "a job has no field 'atempts': did you mean attempts?"),
        ({"colour": "red"}, "a job has no field 'colour': it may have id, queue"),
        ({"attempts": "two"}, "a job cannot have 'two' as its attempts"),
        ({"queue": "$where"}, "queue"),
        ({"run_at": "soon"}, "a job cannot have 'soon' as its run_at"),
        ({"key": object()}, "a field of this job cannot be stored as BSON"),
    ],
    ids=["misspelt", "unknown", "no number", "no name", "no date", "no BSON"],
)
def test_a_field_that_no_job_can_have_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_job({}, **fields)

    assert sentence in str(caught.value)


def test_a_result_that_cannot_be_stored_is_refused_as_in_a_worker() -> None:
    job = make_job({}, blocking=True)

    with pytest.raises(PayloadError, match="holds a builtins"):
        job.complete(object())


def test_a_job_that_has_ended_is_held_no_longer() -> None:
    job = make_job({}, blocking=True)
    job.release(delay=1)

    with pytest.raises(LeaseLost):
        job.complete()

    assert job.calls == [("release", {"delay": 1.0})]


async def test_a_job_that_is_cancelled_says_so_at_the_next_call() -> None:
    job = make_job({})

    job.cancel()

    assert job.cancelled
    with pytest.raises(JobCancelled):
        await job.progress(1)


def test_a_block_that_discards_its_job_is_recorded() -> None:
    job = make_job({}, blocking=True)

    with pytest.raises(Discard), job:
        raise Discard("no such customer")

    assert job.calls == [("discard", {"reason": "no such customer"})]


def test_a_job_needs_no_event_loop_and_no_server() -> None:
    async def handler() -> None:
        async with make_job({"n": 1}) as data:
            assert data == {"n": 1}

    anyio.run(handler)
