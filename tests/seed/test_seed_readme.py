"""What mongoqueue promised its users: its README as it was written, and what it got wrong.

The first part is the usage section of the README of mongoqueue 0.5.2, from top to bottom, with
pymongo's old ``Connection`` read as ``MongoClient``. The second has a test for each defect of its
code, so that none comes back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import LeaseLost, MongoQueue
from streamqueue.protocol.document import CODEC
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def doctest_queue(uri: str) -> Iterator[Collection[Any]]:
    with MongoClient(uri) as client:
        client.drop_database("doctest_db")
        yield client.doctest_db.doctest_queue
        client.drop_database("doctest_db")


@pytest.fixture
def queue(doctest_queue: Collection[Any]) -> MongoQueue:
    """The queue of the README, empty."""
    doctest_queue.delete_many({})
    return MongoQueue(doctest_queue, consumer_id="consumer-1", timeout=300, max_attempts=3)


# The README.


def test_the_usage_section_works_as_it_was_written(
    uri: str, queue: MongoQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    with MongoClient[dict[str, Any]](uri) as connection:
        queue = MongoQueue(
            connection.doctest_db.doctest_queue,
            consumer_id="consumer-1",
            timeout=300,
            max_attempts=3,
        )
        queue.put({"foobar": 1})
        queue.put({"foobar": 0, "priority": 1})
        job = queue.next()
        assert job is not None
        payload = job.payload  # the README shows the other job here, against its own rule
        with job as data:
            print(data["payload"])  # noqa: T201 - so it stands in the README

    assert payload == {"foobar": 0}
    assert capsys.readouterr().out == "{'foobar': 0}\n"


def test_arguments_may_be_given_by_position(doctest_queue: Collection[Any]) -> None:
    queue = MongoQueue(doctest_queue, "consumer-1", 300, 3)
    queue.put({"foobar": 1})

    job = queue.next()

    assert job is not None
    assert (job.locked_by, job.max_attempts) == ("consumer-1", 3)


def test_a_priority_key_makes_a_job_overtake_those_with_a_lower_one(queue: MongoQueue) -> None:
    queue.put({"foobar": 1})
    queue.put({"foobar": 0, "priority": 1})

    job = queue.next()

    assert job is not None
    assert job.payload == {"foobar": 0}


def test_complete_removes_the_job_from_the_queue(queue: MongoQueue) -> None:
    queue.put({"foobar": 1})
    job = queue.next()
    assert job is not None

    job.complete()

    assert queue.size() == 0


def test_error_gives_the_job_back_with_one_more_attempt_and_the_message(
    queue: MongoQueue, doctest_queue: Collection[Any]
) -> None:
    queue.put({"foobar": 1})
    job = queue.next()
    assert job is not None

    job.error("something broke")

    [stored] = doctest_queue.find()
    assert (stored["attempts"], stored["last_error"]) == (1, "something broke")
    assert stored["state"] in ("ready", "scheduled")


def test_the_message_of_an_error_is_optional(queue: MongoQueue) -> None:
    queue.put({"foobar": 1})
    job = queue.next()
    assert job is not None

    job.error()

    assert queue.stats()["locked"] == 0


def test_progress_notes_a_count_and_resets_the_lock_timeout(
    queue: MongoQueue, doctest_queue: Collection[Any]
) -> None:
    queue.put({"foobar": 1})
    job = queue.next()
    assert job is not None
    [before] = doctest_queue.find()

    job.progress(10)

    [after] = doctest_queue.find()
    assert after["progress"] == 10
    assert after["locked_until"] > before["locked_until"]


def test_release_does_not_modify_the_attempts(
    queue: MongoQueue, doctest_queue: Collection[Any]
) -> None:
    queue.put({"foobar": 1})
    job = queue.next()
    assert job is not None

    job.release()

    [stored] = doctest_queue.find()
    assert stored["attempts"] == 0


def test_an_exception_in_the_closure_is_stored_on_the_job(
    queue: MongoQueue, doctest_queue: Collection[Any]
) -> None:
    queue.put({"foobar": 1})
    job = queue.next()
    assert job is not None

    with pytest.raises(ZeroDivisionError), job:
        1 / 0  # noqa: B018  # pyright: ignore[reportUnusedExpression]

    [stored] = doctest_queue.find()
    assert "ZeroDivisionError: division by zero" in stored["last_error"]


def test_a_job_that_failed_max_attempts_times_is_no_longer_processed(queue: MongoQueue) -> None:
    queue.put({"foobar": 1})
    for _ in range(3):
        job = queue.next()
        assert job is not None
        job.error("again", delay=0)

    assert queue.next() is None
    assert queue.stats()["errors"] == 1


def test_different_consumers_do_not_process_the_same_message(
    queue: MongoQueue, doctest_queue: Collection[Any]
) -> None:
    other = MongoQueue(doctest_queue, consumer_id="consumer-2")
    queue.put({"foobar": 1})
    queue.next()

    assert other.next() is None


# The defects.


def test_the_timeout_is_in_seconds_and_not_in_days(
    queue: MongoQueue, doctest_queue: Collection[Any]
) -> None:
    queue.put({"foobar": 1})
    queue.next()

    [stored] = doctest_queue.find()

    assert stored["locked_until"] - stored["locked_at"] == timedelta(seconds=300)


def test_a_short_timeout_is_over_after_a_short_time(doctest_queue: Collection[Any]) -> None:
    doctest_queue.delete_many({})
    queue = MongoQueue(doctest_queue, timeout=0.05)
    queue.put({"foobar": 1})
    queue.next()

    repaired = wait_until(queue.repair, "the lock is stale", within=5)

    assert repaired == 1


def test_one_repair_frees_all_stale_jobs(queue: MongoQueue, doctest_queue: Collection[Any]) -> None:
    queue.put_many([{"foobar": n} for n in range(10)])
    queue.claim(10)
    doctest_queue.update_many({}, [{"$set": {"locked_until": {"$subtract": ["$$NOW", 1000]}}}])

    assert queue.repair() == 10


def test_releasing_again_and_again_never_uses_up_the_attempts(queue: MongoQueue) -> None:
    queue.put({"foobar": 1})
    for _ in range(10):
        job = queue.next()
        assert job is not None
        job.release()

    assert queue.stats()["available"] == 1


@pytest.fixture(params=["Pacific/Kiritimati", "Etc/GMT+12"])
def far_from_greenwich(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The local time of this process is many hours off UTC."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
def test_times_do_not_depend_on_the_local_time_zone(
    queue: MongoQueue, doctest_queue: Collection[Any]
) -> None:
    queue.put({"foobar": 1})
    queue.next()

    [stored] = doctest_queue.with_options(codec_options=CODEC).find()

    hello = doctest_queue.database.client.admin.command("hello", codec_options=CODEC)
    for field in ("created_at", "run_at", "locked_at"):
        assert abs(stored[field] - hello["localTime"]) < timedelta(seconds=10), field


@pytest.mark.usefixtures("far_from_greenwich")
def test_a_live_lock_is_live_in_every_time_zone(queue: MongoQueue) -> None:
    queue.put({"foobar": 1})
    queue.next()

    assert queue.repair() == 0


def test_jobs_of_one_priority_are_first_in_first_out(queue: MongoQueue) -> None:
    for n in range(50):
        queue.put({"foobar": n, "priority": 1})

    order = [job.payload["foobar"] for job in iter(queue.next, None)]

    assert order == list(range(50))


def test_a_failing_job_does_not_keep_the_others_waiting(queue: MongoQueue) -> None:
    queue.put({"foobar": "fails"})
    queue.put({"foobar": "waits"})
    job = queue.next()
    assert job is not None

    job.error("oops")

    following = queue.next()
    assert following is not None
    assert following.payload == {"foobar": "waits"}


def test_a_restarted_namesake_cannot_complete_what_its_former_self_held(
    queue: MongoQueue, doctest_queue: Collection[Any]
) -> None:
    queue.put({"foobar": 1})
    former = queue.next()
    assert former is not None
    doctest_queue.update_one({}, [{"$set": {"locked_until": {"$subtract": ["$$NOW", 1000]}}}])
    restarted = MongoQueue(doctest_queue, consumer_id="consumer-1")
    restarted.repair()
    current = restarted.next()
    assert current is not None

    with pytest.raises(LeaseLost):
        former.complete()

    current.complete()
    assert restarted.size() == 0


def test_a_lost_lease_is_not_passed_over_in_silence(queue: MongoQueue) -> None:
    queue.put({"foobar": 1})
    job = queue.next()
    assert job is not None
    queue.clear()

    with pytest.raises(LeaseLost):
        job.complete()


def test_stats_count_without_code_on_the_server(queue: MongoQueue) -> None:
    queue.put({"foobar": 1})

    stats = queue.stats()

    assert {"available", "locked", "errors", "total"} <= stats.keys()


def test_a_consumer_need_not_poll(queue: MongoQueue) -> None:
    with queue:
        queue.put({"foobar": 1}, delay=0.1)

        job = queue.next(wait=10)

    assert job is not None
    assert job.payload == {"foobar": 1}
