"""What a queue logs: the events that matter, with their facts, and nothing of a payload."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue.logs import JsonFormatter
from tests.contract.shells import Shell
from tests.waiting import wait_until_async
from tests.worker.faults import failing

CANARY = "4111-1111-1111-1111"


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(line) for line in caplog.records if getattr(line, "event", None) == event]


def written(caplog: pytest.LogCaptureFixture) -> str:
    """Everything, as the two kinds of formatters write it."""
    formatters = (logging.Formatter(), JsonFormatter())
    return "\n".join(form.format(line) for line in caplog.records for form in formatters)


async def test_an_error_that_cannot_be_stored_is_logged_without_what_it_says(
    queue: Any, client: MongoClient[Any], caplog: pytest.LogCaptureFixture
) -> None:
    await queue.put({"card": CANARY})
    job = await queue.next()

    with (
        failing(client, "update", app=None, errorCode=50),
        pytest.raises(ValueError, match=CANARY),
    ):
        async with job as data:
            raise ValueError(data["card"])

    [line] = logged(caplog, "claim_left")
    assert (line["levelname"], line["error"]) == ("ERROR", "ExecutionTimeout")
    assert (line["queue"], line["job_id"], line["attempt"]) == ("default", str(job.id), 1)
    assert CANARY not in written(caplog)


async def test_a_blocking_block_tells_as_little(
    jobs: Collection[Any], client: MongoClient[Any], caplog: pytest.LogCaptureFixture
) -> None:
    # In one thread: there the block's exception is the context of what its end raises.
    from streamqueue import MongoQueue

    queue = MongoQueue(jobs)
    queue.put({"card": CANARY})
    job = queue.next()
    assert job is not None

    with (
        failing(client, "update", app=None, errorCode=50),
        pytest.raises(ValueError, match=CANARY),
        job as data,
    ):
        raise ValueError(data["card"])

    assert len(logged(caplog, "claim_left")) == 1
    assert CANARY not in written(caplog)


async def test_what_is_no_longer_held_at_the_end_of_its_block_is_a_lost_lease(
    queue: Any, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    await queue.put({"card": CANARY})
    job = await queue.next()

    jobs.delete_one({})
    async with job:
        pass

    [line] = logged(caplog, "lease_lost")
    assert (line["levelname"], line["job_id"]) == ("WARNING", str(job.id))


@pytest.mark.parametrize(
    ("attempts", "result", "level"), [(2, "requeued", "WARNING"), (1, "dead", "ERROR")]
)
async def test_what_a_dead_consumer_held_is_reaped_in_its_name(
    shell: Shell, caplog: pytest.LogCaptureFixture, attempts: int, result: str, level: str
) -> None:
    victim = shell.queue(consumer_id="victim", timeout=0.1, max_attempts=attempts)
    await victim.put({"card": CANARY})
    assert await victim.next() is not None

    await wait_until_async(shell.queue().repair, "its lease has run out")

    [line] = logged(caplog, "jobs_reaped")
    assert (line["levelname"], line["result"], line["count"]) == (level, result, 1)
    assert (line["queue"], line["consumers"]) == ("default", ["victim"])


async def test_a_new_collection_says_that_its_indexes_were_made_and_an_old_one_does_not(
    shell: Shell, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    jobs.drop_indexes()

    await shell.queue().size()
    await shell.queue().size()

    [line] = logged(caplog, "indexes_created")
    assert line["count"] == len(jobs.index_information()) - 1


async def test_without_the_right_to_make_missing_indexes_a_queue_says_so_once_and_works(
    shell: Shell,
    jobs: Collection[Any],
    client: MongoClient[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    jobs.insert_one({})
    jobs.drop_indexes()
    queue = shell.queue()

    with failing(client, "createIndexes", app=None, errorCode=13):
        await queue.put({"card": CANARY})

    [line] = logged(caplog, "indexes_refused")
    assert (line["levelname"], line["count"]) == ("WARNING", 4)
    assert "keys" not in line["message"]
    assert await queue.size() == 1


@pytest.mark.parametrize("may_look", [True, False])
async def test_without_that_right_it_says_nothing_of_indexes_that_may_all_be_there(
    shell: Shell, client: MongoClient[Any], caplog: pytest.LogCaptureFixture, may_look: bool
) -> None:
    await shell.queue().size()  # makes them
    caplog.set_level(logging.DEBUG)
    refused = ["createIndexes", *([] if may_look else ["listIndexes"])]

    with failing(client, *refused, app=None, errorCode=13):
        await shell.queue().put({})

    [line] = logged(caplog, "indexes_refused")
    assert line["levelname"] == "DEBUG"


async def test_indexes_that_are_not_safe_yet_are_no_reason_to_stop(
    shell: Shell, client: MongoClient[Any]
) -> None:
    queue = shell.queue()
    slow = {"code": 64, "errmsg": "waiting for replication timed out", "errInfo": {}}

    with failing(client, "createIndexes", app=None, writeConcernError=slow):
        await queue.put({"card": CANARY})

    assert await queue.size() == 1


@pytest.mark.few(1)
async def test_a_stream_that_breaks_is_a_line_and_one_when_it_is_back(
    queue: Any, client: MongoClient[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert await queue.next(wait=0.05) is None

    with failing(client, "getMore", app="streamqueue-stream", times=1, errorCode=286):
        assert await queue.next(wait=2) is None

    [broken] = logged(caplog, "stream_broken")
    [back] = logged(caplog, "stream_reopened")
    assert (broken["levelname"], broken["reason"], broken["code"]) == (
        "WARNING",
        "history_lost",
        286,
    )
    assert (back["levelname"], back["count"]) == ("INFO", 1)
    assert back["seconds"] >= 0


async def test_a_job_that_is_buried_is_named_with_its_queue(
    shell: Shell, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    queue = shell.queue(name="emails")
    job_id = await queue.put({})
    jobs.update_one({"_id": job_id}, {"$set": {"payload": CANARY}})

    assert await queue.next() is None

    [line] = logged(caplog, "job_dead")
    assert line["message"].startswith(f"Buried job {job_id} of queue emails: ")
    assert CANARY not in written(caplog)
