"""What putting jobs counts."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.synchronous.collection import Collection

from streamqueue import DuplicateJob, PayloadError
from streamqueue.metrics.bundles import PutResult
from tests.contract.shells import Shell


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def queue(shell: Shell, registry: CollectorRegistry) -> Any:
    return shell.queue(registry=registry)


def puts(registry: CollectorRegistry, queue: str = "default") -> dict[str, float]:
    """Return how many puts were counted, by result."""
    return {
        result: registry.get_sample_value(
            "streamqueue_jobs_put_total", {"queue": queue, "result": result}
        )
        or 0.0
        for result in ("inserted", "duplicate", "error")
    }


def counted(registry: CollectorRegistry) -> dict[str, float | None]:
    """The same, with those that only a put with a key can have."""
    labels = [{"queue": "default", "result": result} for result in get_args(PutResult)]
    return {
        each["result"]: registry.get_sample_value("streamqueue_jobs_put_total", each)
        for each in labels
    }


def operations(registry: CollectorRegistry) -> float | None:
    """Return how many MongoDB operations of putting were timed."""
    return registry.get_sample_value(
        "streamqueue_mongodb_operation_duration_seconds_count", {"operation": "put"}
    )


async def test_a_put_is_counted_and_timed(queue: Any, registry: CollectorRegistry) -> None:
    await queue.put({"n": 1})

    assert puts(registry) == {"inserted": 1, "duplicate": 0, "error": 0}
    assert operations(registry) == 1


async def test_many_puts_are_counted_by_jobs_and_timed_by_writes(
    queue: Any, registry: CollectorRegistry
) -> None:
    await queue.put_many([{"n": number} for number in range(7)])

    assert puts(registry) == {"inserted": 7, "duplicate": 0, "error": 0}
    assert operations(registry) == 1


async def test_puts_are_counted_under_their_queue(
    shell: Shell, registry: CollectorRegistry
) -> None:
    await shell.queue(name="emails", registry=registry).put({})
    await shell.queue(name="reports", registry=registry).put({})

    assert puts(registry, "emails")["inserted"] == 1
    assert puts(registry, "reports")["inserted"] == 1


async def test_a_put_with_the_key_of_a_live_job_is_counted_as_a_duplicate(
    queue: Any, registry: CollectorRegistry
) -> None:
    await queue.put({}, key="k")
    with pytest.raises(DuplicateJob):
        await queue.put({}, key="k")

    assert puts(registry) == {"inserted": 1, "duplicate": 1, "error": 0}


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize(
    ("on_conflict", "result"),
    [("skip", "duplicate"), ("replace", "replaced"), ("earlier", "duplicate")],
)
async def test_a_put_that_finds_its_key_taken_is_counted_by_what_becomes_of_it(
    queue: Any, registry: CollectorRegistry, on_conflict: str, result: str, many: bool
) -> None:
    for _ in range(2):
        if many:
            await queue.put_many([{}], keys=["k"], on_conflict=on_conflict)
        else:
            await queue.put({}, key="k", on_conflict=on_conflict)

    expected = dict.fromkeys(("inserted", "duplicate", "replaced", "error"), 0)
    assert counted(registry) == {**expected, "inserted": 1, result: 1}
    assert operations(registry) == 2


async def test_a_repeated_put_is_counted_as_inserted_as_its_caller_is_told(
    queue: Any, registry: CollectorRegistry
) -> None:
    job_id = ObjectId()

    await queue.put({}, job_id=job_id)
    await queue.put({}, job_id=job_id)

    assert puts(registry) == {"inserted": 2, "duplicate": 0, "error": 0}


async def test_a_put_that_the_server_refuses_is_counted_as_an_error(
    queue: Any, registry: CollectorRegistry, jobs: Collection[Any]
) -> None:
    await queue.put({})
    jobs.database.command("collMod", jobs.name, validator={"payload.n": {"$lt": 2}})

    with pytest.raises(PyMongoError):
        await queue.put({"n": 2})

    assert puts(registry) == {"inserted": 1, "duplicate": 0, "error": 1}


async def test_of_many_puts_those_before_the_refused_one_are_counted_as_inserted(
    queue: Any, registry: CollectorRegistry, jobs: Collection[Any]
) -> None:
    await queue.put({})
    jobs.database.command("collMod", jobs.name, validator={"payload.n": {"$lt": 2}})

    with pytest.raises(BulkWriteError):
        await queue.put_many([{"n": 0}, {"n": 1}, {"n": 2}, {"n": 1}])

    assert puts(registry) == {"inserted": 3, "duplicate": 0, "error": 2}


async def test_a_payload_that_is_refused_before_it_is_sent_is_not_counted(
    queue: Any, registry: CollectorRegistry
) -> None:
    await queue.put({})
    with pytest.raises(PayloadError):
        await queue.put({"n": object()})

    assert puts(registry) == {"inserted": 1, "duplicate": 0, "error": 0}
