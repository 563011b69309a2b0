"""Looking at jobs: one by its id, many in pages, and how many there are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, JobInfo, JobNotFound
from streamqueue.protocol.document import CODEC
from streamqueue.protocol.operations import LISTED
from tests.contract.shells import Shell

NOW = datetime(2026, 11, 29, 1, 31, 48, tzinfo=UTC)
ENDED = ("dead", "cancelled", "done")


def stored(state: str, **fields: Any) -> dict[str, Any]:
    """A document as another program, or another version, may have stored it."""
    return {"queue": "default", "state": state, "payload": {}, **fields}


def ended_at_once(jobs: Collection[Any], state: str, count: int) -> list[ObjectId]:
    """Jobs that one write ended, in no order of their ids; their ids in order."""
    ids = sorted(ObjectId() for _ in range(count))
    shuffled = ids[1::2] + ids[::2]
    jobs.insert_many([stored(state, _id=job_id, finished_at=NOW) for job_id in shuffled])
    return ids


async def pages(queue: Any, limit: int, **settings: Any) -> list[JobInfo]:
    """All that ``list`` shows, page after page."""
    found: list[JobInfo] = []
    after = None
    while page := await queue.list(limit=limit, start_after=after, **settings):
        assert len(page) <= limit
        found += page
        assert len({info.id for info in found}) == len(found)
        after = page[-1]
    return found


# one job


async def test_a_job_is_found_right_after_its_put(queue: Any) -> None:
    job_id = await queue.put({"to": "ada"}, priority=5, max_attempts=7, key="ada")

    info = await queue.get(job_id)

    assert (info.id, info.queue, info.state, info.ended) == (job_id, "default", "ready", False)
    assert (info.data, info.priority, info.max_attempts, info.key) == ({"to": "ada"}, 5, 7, "ada")
    assert (info.attempts, info.locked_by, info.started_at, info.result) == (0, None, None, None)
    assert info.created_at is not None


async def test_a_running_job_shows_who_holds_it_and_until_when(shell: Shell) -> None:
    queue = shell.queue(consumer_id="shop-1", timeout=60)
    job_id = await queue.put({})
    job = await queue.next()
    await job.progress(42)

    info = await queue.get(job_id)

    assert (info.state, info.attempts, info.progress) == ("running", 1, 42)
    assert (info.locked_by, info.started_at) == ("shop-1", job.locked_at)
    assert info.locked_until > info.started_at


async def test_a_dead_job_shows_what_went_wrong_and_when(queue: Any) -> None:
    job_id = await queue.put({}, max_attempts=2)
    for message in ("first", "second"):
        await (await queue.next()).error(message, delay=0)

    info = await queue.get(job_id)

    assert (info.state, info.ended, info.last_error) == ("dead", True, "second")
    assert [(past.attempt, past.message) for past in info.errors] == [(1, "first"), (2, "second")]
    assert info.errors[1].at == info.finished_at


async def test_a_job_is_found_by_the_text_of_its_id(queue: Any) -> None:
    job_id = await queue.put({})

    assert (await queue.get(str(job_id))).id == job_id


@pytest.mark.parametrize("job_id", ["order-7", 7, UUID(int=7)])
async def test_a_job_is_found_by_the_id_that_another_program_gave_it(
    queue: Any, jobs: Collection[Any], job_id: Any
) -> None:
    await queue.size()
    await queue.put({})
    jobs.with_options(codec_options=CODEC).insert_one(stored("ready", _id=job_id))

    assert (await queue.get(job_id)).id == job_id


async def test_a_job_that_is_gone_is_not_found(queue: Any) -> None:
    job_id = await queue.put({})
    await (await queue.next()).complete()

    with pytest.raises(JobNotFound) as gone:
        await queue.get(job_id)

    assert gone.value.job_id == job_id


async def test_a_job_of_another_queue_is_not_found(shell: Shell) -> None:
    job_id = await shell.queue(name="emails").put({})

    with pytest.raises(JobNotFound):
        await shell.queue().get(job_id)


async def test_what_is_no_id_is_refused(queue: Any) -> None:
    with pytest.raises(ConfigurationError):
        await queue.get({"$ne": 1})


async def test_the_text_of_a_job_has_no_payload(queue: Any) -> None:
    job_id = await queue.put({"secret": "canary"})

    text = repr(await queue.get(job_id))

    assert str(job_id) in text
    assert "canary" not in text


# pages


async def test_ready_jobs_are_listed_as_they_are_claimed(queue: Any) -> None:
    last, first, second = [await queue.put({}, priority=p) for p in (0, 5, 5)]

    listed = await queue.list("ready")

    assert [info.id for info in listed] == [first, second, last]
    assert [info.id for info in listed] == [job.id for job in await queue.claim(3)]


@pytest.mark.parametrize(
    ("state", "field"),
    [
        *(("running", "locked_until"), ("scheduled", "run_at"), ("waiting", "run_at")),
        *((state, "finished_at") for state in ENDED),
    ],
)
async def test_other_jobs_are_listed_by_their_time(
    queue: Any, jobs: Collection[Any], state: str, field: str
) -> None:
    for second in (2, 0, 1):
        jobs.insert_one(stored(state, _id=second, **{field: NOW + timedelta(seconds=second)}))

    assert [info.id for info in await queue.list(state)] == [0, 1, 2]


async def test_without_a_state_the_states_are_listed_one_after_the_other(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.insert_many([stored(state) for state in sorted(LISTED) for _ in range(2)])

    listed = await pages(queue, 3)

    assert [info.state for info in listed] == [state for state in LISTED for _ in range(2)]


@pytest.mark.parametrize("limit", [1, 3, 50])
async def test_pages_have_every_ready_job_once(queue: Any, limit: int) -> None:
    for priority in (0, 7, -3):
        await queue.put_many([{}] * 7, priority=priority)

    listed = await pages(queue, limit, state="ready")

    assert [info.id for info in listed] == [job.id for job in await queue.claim(21)]


@pytest.mark.parametrize("limit", [1, 4, 7, 50])
async def test_pages_have_every_job_once_of_those_that_one_write_ended(
    queue: Any, jobs: Collection[Any], limit: int
) -> None:
    later = jobs.insert_one(stored("done", finished_at=NOW + timedelta(seconds=1))).inserted_id
    ids = ended_at_once(jobs, "done", 11)
    undated = jobs.insert_one(stored("done")).inserted_id

    listed = await pages(queue, limit, state="done")

    assert [info.id for info in listed] == [undated, *ids, later]


async def test_a_page_begins_behind_a_job_that_has_gone_on_since(queue: Any) -> None:
    _, second = await queue.put_many([{}, {}])
    [seen] = await queue.list("ready", limit=1)
    await queue.next()

    listed = await queue.list("ready", start_after=seen)

    assert [info.id for info in listed] == [second]


async def test_a_page_begins_behind_an_id(queue: Any) -> None:
    ids = await queue.put_many([{}, {}, {}])

    listed = await queue.list(start_after=str(ids[0]))

    assert [info.id for info in listed] == ids[1:]


async def test_a_page_cannot_begin_behind_an_id_that_is_gone(queue: Any) -> None:
    with pytest.raises(JobNotFound):
        await queue.list(start_after=ObjectId())


async def test_a_page_cannot_begin_behind_a_job_in_another_state(queue: Any) -> None:
    job_id = await queue.put({})

    with pytest.raises(ConfigurationError, match="start_after must be a dead job"):
        await queue.list("dead", start_after=job_id)


async def test_jobs_of_a_group_are_listed(queue: Any, jobs: Collection[Any]) -> None:
    jobs.insert_many([stored("ready", _id=n, group=f"customer-{n % 2}") for n in range(6)])

    listed = await pages(queue, 2, group="customer-1")

    assert [(info.id, info.group) for info in listed] == [(n, "customer-1") for n in (1, 3, 5)]


@pytest.mark.parametrize(
    "settings", [{"state": "lost"}, {"limit": 0}, {"limit": 10**6}, {"group": ""}, {"group": {}}]
)
async def test_what_cannot_be_listed_is_refused(queue: Any, settings: Any) -> None:
    with pytest.raises(ConfigurationError):
        await queue.list(**settings)


async def test_damaged_jobs_are_in_the_pages_too(queue: Any, jobs: Collection[Any]) -> None:
    odd = [None, 7, "soon", NOW, {"a": 1}, ObjectId(), float("inf")]
    jobs.insert_many([stored("scheduled", run_at=value) for value in odd])

    listed = await pages(queue, 2, state="scheduled")

    assert len({info.id for info in listed}) == len(listed) == len(odd)


async def test_a_list_of_large_jobs_moves_no_payloads(queue: Any, jobs: Collection[Any]) -> None:
    large = {"payload": {"text": "x" * 1_000_000}, "result": "y" * 1_000_000}
    for _ in range(20):
        jobs.insert_many([stored("done", finished_at=NOW, **large) for _ in range(5)])
    jobs.database.command("profile", 2)

    listed = await queue.list("done", limit=100)

    jobs.database.command("profile", 0)
    profiled = jobs.database["system.profile"].find({"responseLength": {"$exists": True}})
    moved = [look["responseLength"] for look in profiled]
    assert len(listed) == 100
    assert sum(moved) < 200_000
    assert {(info.data, info.result) for info in listed} == {(None, None)}


async def test_a_list_has_payload_and_result_if_asked(queue: Any, jobs: Collection[Any]) -> None:
    jobs.insert_one(stored("done", finished_at=NOW, payload={"n": 1}, result=[2]))

    [info] = await queue.list(data=True)

    assert (info.data, info.result) == ({"n": 1}, [2])


@pytest.mark.few(4)
@pytest.mark.parametrize("state", [None, *LISTED])
async def test_a_page_is_read_from_the_index_of_its_state(
    queue: Any, jobs: Collection[Any], state: str | None
) -> None:
    jobs.drop_indexes()  # of lists that other tests stored
    await queue.size()
    times = ("run_at", "locked_until", "finished_at")
    jobs.insert_many(
        stored(each, priority=0, **dict.fromkeys(times, NOW + timedelta(seconds=n)))
        for each in LISTED
        for n in range(100)
    )
    [seen] = await queue.list(state, limit=1)
    jobs.database["system.profile"].drop()
    jobs.database.command("profile", 2)

    await queue.list(state, limit=10, start_after=seen)

    jobs.database.command("profile", 0)
    looks = list(jobs.database["system.profile"].find({"ns": jobs.full_name}))
    assert sum(look["docsExamined"] for look in looks) <= 20
    assert sum(look["keysExamined"] for look in looks) <= 30


# counts


async def test_the_jobs_of_all_queues_are_counted(shell: Shell) -> None:
    emails, reports = shell.queue(name="emails"), shell.queue(name="reports")
    await emails.put_many([{}, {}, {}])
    await emails.next()
    await reports.put({}, delay=60)

    assert await shell.queue().counts() == {
        "emails": {"running": 1, "ready": 2},
        "reports": {"scheduled": 1},
    }


async def test_every_state_is_counted(queue: Any, jobs: Collection[Any]) -> None:
    jobs.insert_many([stored(state) for state in LISTED])

    stats = await queue.stats()

    assert await queue.counts() == {"default": dict.fromkeys(LISTED, 1)}
    assert stats == {
        **dict.fromkeys(("available", "scheduled", "waiting", "locked", "errors"), 1),
        **dict.fromkeys(("done", "cancelled"), 1),
        "total": 7,
    }


def total(counted: Any) -> int:
    """All jobs, in what ``size``, ``stats`` or ``counts`` return of one queue."""
    if isinstance(counted, int):
        return counted
    return int(counted["total"] if "total" in counted else sum(counted["default"].values()))


@pytest.mark.parametrize("count", ["size", "stats", "counts"])
async def test_a_job_that_comes_and_goes_is_counted_once(
    shell: Shell, jobs: Collection[Any], count: str
) -> None:
    queue = shell.queue()
    job_id = await queue.put({})
    over = Event()

    def come_and_go() -> None:
        while not over.is_set():
            for state in ("running", "scheduled", "done", "ready"):
                jobs.update_one({"_id": job_id}, {"$set": {"state": state}})

    with ThreadPoolExecutor(1) as threads:
        threads.submit(come_and_go)
        try:
            found = [await getattr(queue, count)() for _ in range(60)]
        finally:
            over.set()

    assert {total(each) for each in found} == {1}


async def test_what_has_no_queue_is_not_counted(queue: Any, jobs: Collection[Any]) -> None:
    jobs.insert_many([{"state": "ready", "queue": odd} for odd in (None, 7, {"a": 1}, ["x"])])

    assert await queue.counts() == {}


async def test_all_queues_are_counted_from_indexes_alone(queue: Any, jobs: Collection[Any]) -> None:
    jobs.drop_indexes()  # of lists that other tests stored
    await queue.size()
    jobs.insert_many([stored(state, queue=f"q{n}") for state in LISTED for n in range(50)])
    jobs.database["system.profile"].drop()
    jobs.database.command("profile", 2)

    counts = await queue.counts()

    jobs.database.command("profile", 0)
    looks = list(jobs.database["system.profile"].find({"ns": jobs.full_name}))
    assert len(counts) == 50
    assert {look["docsExamined"] for look in looks} == {0}


async def test_queues_are_counted_without_their_indexes(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({})
    jobs.drop_index("streamqueue_order")
    try:
        assert await queue.counts() == {"default": {"ready": 1}}
    finally:
        jobs.drop_indexes()
