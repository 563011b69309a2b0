"""Steps: what a handler does once, and later attempts are given the stored result of.

Laws: one holder; an unknown outcome is not a failure; bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, JobCancelled, LeaseLost, PayloadError, Snooze
from streamqueue.protocol.document import CODEC
from tests.contract.looks import document, let_lease_run_out, server_time
from tests.contract.shells import Shell
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, DONE_AND_NOT_HEARD, INTERRUPTED, failing


class Broken(Exception):
    pass


class Work:
    """What a step does: it counts, and returns a value or raises."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value = value
        self.error = error
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        if self.error is not None:
            raise self.error
        return self.value


@pytest.fixture
async def job(queue: Any) -> Any:
    """A held job."""
    await queue.put({"n": 1}, max_attempts=5)
    return await queue.next()


async def again(queue: Any, job: Any) -> Any:
    """The next attempt of a job."""
    await job.error("again", delay=0)
    return await queue.next()


def stored(jobs: Collection[Any], job: Any) -> list[str]:
    """The names of the steps that are stored."""
    return [step["name"] for step in document(jobs, job.id).get("steps", [])]


async def test_a_step_returns_what_its_function_does(job: Any) -> None:
    work = Work({"charge": 12})

    assert await job.step("charge", work, 5, "eur") == {"charge": 12}
    assert work.calls == [(5, "eur")]


async def test_a_later_attempt_is_given_the_stored_result(queue: Any, job: Any) -> None:
    await job.step("charge", Work(1))
    job = await again(queue, job)
    work = Work(2)

    assert await job.step("charge", work) == 1
    assert work.calls == []


async def test_a_result_of_none_is_a_result(queue: Any, job: Any) -> None:
    await job.step("mail", Work())
    job = await again(queue, job)
    work = Work()

    assert await job.step("mail", work) is None
    assert work.calls == []


@pytest.mark.parametrize(
    "value",
    [
        {"name": "$queue"},
        (1, (2, 3)),
        datetime(2026, 12, 1, 11, 30, 0, 123456, tzinfo=UTC),
        {"$set": {"a.b": 1}, "": "$$ROOT"},
        UUID(int=7),
        [None, True, 2**40, 0.5, b"x", "é"],
    ],
    ids=["a path", "tuples", "microseconds", "dollars", "uuid", "many"],
)
async def test_the_first_attempt_is_given_what_later_ones_are(
    queue: Any, job: Any, value: Any
) -> None:
    first = await job.step("any", Work(value))
    job = await again(queue, job)

    later = await job.step("any", Work())

    assert (type(later), later) == (type(first), first)
    assert await job.step("other", Work(1)) == 1


async def test_each_step_is_found_by_its_name_whatever_came_before(queue: Any, job: Any) -> None:
    await job.step("a", Work("a"))
    await job.step("b", Work("b"))
    job = await again(queue, job)
    new = Work("new")

    assert await job.step("b", Work()) == "b"
    assert await job.step("between", new) == "new"
    assert await job.step("a", Work()) == "a"
    assert len(new.calls) == 1


async def test_arguments_are_not_compared(queue: Any, job: Any) -> None:
    await job.step("charge", Work(1), 5)
    job = await again(queue, job)

    assert await job.step("charge", Work(2), 6) == 1


async def test_an_error_of_a_step_is_raised_and_not_stored(
    queue: Any, job: Any, jobs: Collection[Any]
) -> None:
    with pytest.raises(OSError, match="no answer"):
        await job.step("charge", Work(error=OSError("no answer")))

    assert stored(jobs, job) == []
    job = await again(queue, job)
    assert await job.step("charge", Work(2)) == 2


@pytest.mark.parametrize("outcome", ["ran", "replayed", "raised"])
async def test_a_name_used_twice_in_an_attempt_is_refused_before_anything_is_run(
    queue: Any, job: Any, outcome: str
) -> None:
    if outcome == "raised":
        with pytest.raises(Broken):
            await job.step("mail", Work(error=Broken()))
    else:
        await job.step("mail", Work())
        if outcome == "replayed":
            job = await again(queue, job)
            await job.step("mail", Work())
    work = Work()

    with pytest.raises(ConfigurationError, match="has used the step 'mail' already"):
        await job.step("mail", work)

    assert work.calls == []


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, ".a", "é", "a\n", None, 5, {"$gt": ""}])
async def test_what_is_no_name_is_refused_before_anything_is_run(job: Any, name: Any) -> None:
    work = Work()

    with pytest.raises(ConfigurationError, match="step name"):
        await job.step(name, work)
    with pytest.raises(ConfigurationError, match="step name"):
        await step_id(job, name)

    assert work.calls == []


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "0" * 64])
async def test_a_name_is_of_the_letters_of_queue_names(
    job: Any, jobs: Collection[Any], name: str
) -> None:
    await job.step(name, Work())

    assert stored(jobs, job) == [name]


async def test_two_steps_at_the_same_time_are_both_stored(job: Any, jobs: Collection[Any]) -> None:
    values = {}

    async def step(name: str) -> None:
        values[name] = await job.step(name, Work(name))

    async with anyio.create_task_group() as tasks:
        for name in ("a", "b", "c"):
            tasks.start_soon(step, name)

    assert values == {"a": "a", "b": "b", "c": "c"}
    assert sorted(stored(jobs, job)) == ["a", "b", "c"]


async def test_a_step_inside_a_step_is_refused_and_the_outer_one_fails(
    shell: Shell, job: Any, jobs: Collection[Any]
) -> None:
    inner = Work()

    def outer() -> Any:
        return job._target.step("inner", inner)

    async def async_outer() -> Any:
        return await job.step("inner", inner)

    with pytest.raises(ConfigurationError, match="inside another step"):
        await job.step("outer", async_outer if shell.is_async else outer)

    assert inner.calls == []
    assert stored(jobs, job) == []


async def test_a_step_of_another_job_may_be_inside_one(shell: Shell, queue: Any) -> None:
    """Claimed together, they have one token."""
    await queue.put_many([{}, {}])
    job, other = await queue.claim(2)

    def outer() -> Any:
        return other._target.step("inner", str)

    async def async_outer() -> Any:
        return await other.step("inner", str)

    assert await job.step("outer", async_outer if shell.is_async else outer) == ""


async def test_a_step_after_a_step_is_not_inside_it(job: Any) -> None:
    with pytest.raises(Broken):
        await job.step("a", Work(error=Broken()))

    assert await job.step("b", Work(2)) == 2


# fenced


async def test_a_step_of_a_lost_lease_is_not_stored(
    queue: Any, job: Any, jobs: Collection[Any]
) -> None:
    let_lease_run_out(jobs, job.id)
    await queue.repair()
    other = await queue.next()

    with pytest.raises(LeaseLost):
        await job.step("charge", Work("late"))

    assert await other.step("charge", Work("ours")) == "ours"


@pytest.mark.parametrize("end", ["complete", "error", "release"])
async def test_after_the_end_of_the_job_no_step_is_run(job: Any, end: str) -> None:
    await getattr(job, end)()
    work = Work()

    with pytest.raises(LeaseLost):
        await job.step("charge", work)

    assert work.calls == []


async def test_a_step_starts_the_lock_timeout_again(job: Any, jobs: Collection[Any]) -> None:
    let_lease_run_out(jobs, job.id)

    await job.step("charge", Work())

    left = document(jobs, job.id)["locked_until"] - server_time(jobs)
    assert left > timedelta(seconds=200)


async def test_a_step_learns_that_the_job_is_to_be_cancelled_and_is_stored(
    queue: Any, job: Any, jobs: Collection[Any]
) -> None:
    assert await queue.cancel(job.id) == "asked"

    await job.step("charge", Work())
    assert stored(jobs, job) == ["charge"]

    work = Work()
    with pytest.raises(JobCancelled):
        await job.step("mail", work)
    assert work.calls == []
    assert jobs.count_documents({}) == 0


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "fault",
    [CONNECTION_CUT, INTERRUPTED, DONE_AND_NOT_HEARD],
    ids=["cut", "interrupted", "done and not heard"],
)
async def test_a_write_of_unknown_outcome_is_repeated_until_it_is_certain(
    job: Any, jobs: Collection[Any], client: MongoClient[Any], fault: dict[str, Any]
) -> None:
    work = Work("done")
    with failing(client, "findAndModify", app=None, times=3, **fault) as struck:
        assert await job.step("charge", work) == "done"

    assert struck.hits() >= 2
    assert len(work.calls) == 1
    assert stored(jobs, job) == ["charge"]


async def test_a_write_of_unknown_outcome_ends_with_the_lease(
    shell: Shell, client: MongoClient[Any]
) -> None:
    queue = shell.queue(timeout=0.5)
    await queue.put({})
    job = await queue.next()

    with (
        anyio.fail_after(5),
        failing(client, "findAndModify", app=None, **INTERRUPTED),
        pytest.raises(OperationFailure, match="failCommand"),
    ):
        await job.step("charge", Work())


# limits


async def is_dead(job: Any, jobs: Collection[Any], *said: str) -> None:
    """Assert that the job is dead, and why; and that its block has nothing left to end."""
    there = document(jobs, job.id)
    assert there["state"] == "dead"
    for each in said:
        assert each in there["last_error"]
    with pytest.raises(LeaseLost):
        await job.complete()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x" * 256 * 1024, ("262,1", "262,144", "'big'")),
        ({1: 2}, ("not a string", "'big'")),
        (object(), ("builtins.object", "'big'")),
        ({"a": [2**70]}, ("64 bits", "['a'][0]")),
    ],
    ids=["large", "key", "object", "number"],
)
async def test_a_result_that_cannot_be_stored_makes_the_job_dead_at_once(
    queue: Any, job: Any, jobs: Collection[Any], value: Any, said: tuple[str, ...]
) -> None:
    await queue.put({"other": True})
    other = await queue.next()

    with pytest.raises(PayloadError, match="step 'big'"):
        await job.step("big", Work(value))

    await is_dead(job, jobs, *said)
    assert await other.step("fine", Work(1)) == 1


async def test_a_result_of_256_kb_is_stored(job: Any) -> None:
    value = "x" * (256 * 1024 - 30)

    assert await job.step("big", Work(value)) == value


async def test_results_of_more_than_4_mb_together_make_the_job_dead_in_whichever_attempt(
    queue: Any, job: Any, jobs: Collection[Any]
) -> None:
    for number in range(16):
        if number == 10:
            job = await again(queue, job)
        await job.step(f"s{number}", Work("x" * 260_000))

    with pytest.raises(PayloadError, match=r"have 4,\d{3},\d{3} bytes.*260,0.*4,194,304"):
        await job.step("last", Work("x" * 260_000))

    await is_dead(job, jobs, "4,194,304")


async def test_more_than_a_thousand_steps_make_the_job_dead_before_the_next_is_run(
    queue: Any, job: Any, jobs: Collection[Any]
) -> None:
    many = [{"name": f"s{number}", "at": None, "result": None} for number in range(999)]
    jobs.update_one({"_id": job.id}, {"$set": {"steps": many}})
    job = await again(queue, job)
    assert await job.step("s998", Work(1)) is None
    await job.step("last", Work())
    work = Work()

    with pytest.raises(PayloadError, match=r"1,000 steps.*'more'"):
        await job.step("more", work)

    assert work.calls == []
    await is_dead(job, jobs, "1,000")


async def test_a_result_that_the_server_does_not_take_makes_the_job_dead(
    job: Any, jobs: Collection[Any]
) -> None:
    validator = {"$or": [{"steps": {"$exists": False}}, {"state": {"$ne": "running"}}]}
    jobs.database.command("collMod", jobs.name, validator=validator)

    with pytest.raises(PayloadError, match="does not store the job with the result of step 'a'"):
        await job.step("a", Work("x" * 1000))

    assert document(jobs, job.id)["state"] == "dead"


async def test_a_payload_error_of_the_function_is_an_error_as_any_other(
    job: Any, jobs: Collection[Any]
) -> None:
    with pytest.raises(PayloadError, match="mine"):
        await job.step("put", Work(error=PayloadError("mine")))

    assert document(jobs, job.id)["state"] == "running"


@pytest.mark.parametrize(
    "there",
    [5, "x", {"name": "a"}, [5, None, {"name": 7}, {"result": 1}]],
    ids=["number", "text", "mapping", "list"],
)
async def test_what_another_program_stored_as_steps_is_no_step(
    queue: Any, job: Any, jobs: Collection[Any], there: Any
) -> None:
    jobs.update_one({"_id": job.id}, {"$set": {"steps": there}})
    job = await again(queue, job)

    assert await job.step("a", Work(1)) == 1
    job = await again(queue, job)
    assert await job.step("a", Work(2)) == 1
    assert [step.name for step in (await queue.get(job.id)).steps] == ["a"]


async def test_a_job_without_steps_has_no_field_for_them(job: Any, jobs: Collection[Any]) -> None:
    assert "steps" not in document(jobs, job.id)


async def test_the_shell_tells_a_blocking_job_from_an_async_function(
    shell: Shell, job: Any
) -> None:
    async def fetch(number: int) -> int:
        return number + 1

    if shell.is_async:
        assert await job.step("fetch", fetch, 1) == 2
        assert await job.step("made", lambda: fetch(2)) == 3
        return
    with pytest.raises(ConfigurationError, match="async function"):
        await job.step("fetch", fetch, 1)
    with pytest.raises(TypeError, match="awaitable"):
        await job.step("made", lambda: fetch(2))


# what becomes of them


async def error(job: Any) -> None:
    await job.error("broken", delay=0)


async def release(job: Any) -> None:
    await job.release()


async def snooze(job: Any) -> None:
    with pytest.raises(Snooze):
        async with job:
            raise Snooze(0)


@pytest.mark.parametrize("end", [error, release, snooze])
async def test_steps_outlast_an_attempt_however_it_ends(
    queue: Any, job: Any, end: Callable[[Any], Awaitable[None]]
) -> None:
    await job.step("charge", Work(1))
    await end(job)

    assert await (await queue.next()).step("charge", Work(2)) == 1


async def test_steps_outlast_a_lost_lease(queue: Any, job: Any, jobs: Collection[Any]) -> None:
    await job.step("charge", Work(1))
    let_lease_run_out(jobs, job.id)
    await queue.repair()

    assert await (await queue.next()).step("charge", Work(2)) == 1


async def die(queue: Any, job: Any) -> None:
    await job.step("charge", Work(1))
    with pytest.raises(Broken):
        async with job:
            raise Broken


async def a_dead_job(queue: Any, **settings: Any) -> Any:
    job_id = await queue.put({}, max_attempts=1, **settings)
    await die(queue, await queue.next())
    return job_id


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_requeue_keeps_the_steps_and_with_fresh_it_takes_them_away(
    queue: Any, many: bool
) -> None:
    job_id = await a_dead_job(queue)
    which = [] if many else [job_id]
    assert await queue.requeue(*which) == 1
    job = await queue.next()
    assert await job.step("charge", Work(2)) == 1
    with pytest.raises(Broken):
        async with job:
            raise Broken

    assert await queue.requeue(*which, fresh=True) == 1

    assert (await queue.get(job_id)).steps == ()
    assert await (await queue.next()).step("charge", Work(2)) == 2


async def test_a_job_that_is_replaced_has_no_steps_of_its_old_payload(queue: Any) -> None:
    await queue.put({"old": True}, key="k")
    job = await queue.next()
    await job.step("charge", Work(1))
    await job.error(delay=0)
    await queue.put({"new": True}, key="k", on_conflict="replace", key_until="end")

    job = await queue.next()

    assert job.data == {"new": True}
    assert await job.step("charge", Work(2)) == 2


# what is shown


async def test_a_look_shows_the_steps_with_their_times_and_not_their_results(
    queue: Any, job: Any, jobs: Collection[Any]
) -> None:
    before = server_time(jobs)
    await job.step("charge", Work("x" * 1000))
    await job.step("mail", Work())

    info = await queue.get(job.id)
    [listed] = await queue.list("running")

    assert [step.name for step in info.steps] == ["charge", "mail"]
    assert all(step.at >= before for step in info.steps)
    assert listed.steps == info.steps


async def test_who_waits_for_a_job_is_shown_its_steps(
    queue: Any, job: Any, jobs: Collection[Any]
) -> None:
    async def finish() -> None:
        await wait_until_async(lambda: document(jobs, job.id).get("awaited"), "somebody waits")
        await job.step("charge", Work("x" * 1000))
        await job.complete()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(finish)
        info = await queue.wait(job.id, 10)

    assert (info.state, [step.name for step in info.steps]) == ("done", ["charge"])


async def test_a_look_moves_no_results_of_steps(
    queue: Any, job: Any, jobs: Collection[Any]
) -> None:
    for number in range(8):
        await job.step(f"s{number}", Work("x" * 250_000))
    database = jobs.database
    database.command("profile", 2)
    try:
        await queue.get(job.id)
        await queue.list("running")
    finally:
        database.command("profile", 0)
        sizes = [
            entry["responseLength"]
            for entry in database["system.profile"].find({"ns": jobs.full_name})
        ]
        database["system.profile"].drop()

    assert sizes
    assert max(sizes) < 10_000


# step_id


async def step_id(job: Any, name: str) -> Any:
    target = getattr(job, "_target", job)
    return target.step_id(name)


async def test_the_id_of_a_step_is_the_same_in_every_attempt(queue: Any, job: Any) -> None:
    first = await step_id(job, "charge")
    other = await step_id(job, "mail")
    job = await again(queue, job)

    assert first == f"{job.id}:charge" == await step_id(job, "charge")
    assert other != first


@pytest.mark.parametrize(
    "job_id",
    [7, "7", "é\r\n" * 300, UUID(int=7), 2**40],
    ids=["int", "digits", "long", "uuid", "long int"],
)
async def test_the_id_of_a_step_is_short_and_plain_whatever_the_jobs_is(
    queue: Any, jobs: Collection[Any], job_id: Any
) -> None:
    insert = jobs.with_options(codec_options=CODEC).insert_one
    insert({"_id": job_id, "queue": "default", "state": "ready", "payload": {}})
    job = await queue.next()
    first = await step_id(job, "charge")
    job = await again(queue, job)

    assert await step_id(job, "charge") == first
    assert first.isascii()
    assert first.isprintable()
    assert len(first) == 24 + len(":charge")


async def test_no_two_jobs_have_the_same_step_ids(queue: Any, jobs: Collection[Any]) -> None:
    ids: list[Any] = [7, "7", ObjectId(), "x"]
    for job_id in ids:
        jobs.insert_one({"_id": job_id, "queue": "default", "state": "ready", "payload": {}})

    found = {await step_id(await queue.next(), "charge") for _ in ids}

    assert len(found) == len(ids)
