"""Handlers that take several jobs in a call: how those gather, and that each ends by itself."""

from __future__ import annotations

import contextvars
import gc
import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    Backoff,
    Cancel,
    ConfigurationError,
    Discard,
    Job,
    JobCancelled,
    JobInfo,
    LeaseLost,
    Retry,
    Snooze,
    Worker,
)
from streamqueue.logs import TextFormatter
from streamqueue.testing import run_until_empty
from tests.waiting import wait_until_async
from tests.worker.started import StartedWorker, WorkerStarter

LONG = 60
"""Seconds that no test takes: what ends before them has not waited for them."""


class Batched:
    """Starts workers with a handler that takes batches."""

    def __init__(self, start: WorkerStarter) -> None:
        self._start = start

    async def __call__(
        self,
        handler: Callable[[list[Any]], Any],
        batch: int = 3,
        *,
        batch_wait: float | timedelta = LONG,
        of_worker: dict[str, Any] | None = None,
        **settings: Any,
    ) -> StartedWorker:
        worker = self._start.prepare(**(of_worker or {}))
        settings = {"batch": batch, "batch_wait": batch_wait, "max_attempts": 1, **settings}
        worker.worker.handler("default", **settings)(handler)
        await self._start.begin(worker)
        return worker


@pytest.fixture
def batched(start: WorkerStarter) -> Batched:
    return Batched(start)


class Sizes:
    """A handler that notes the jobs of each of its calls."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    async def __call__(self, jobs: list[AsyncJob]) -> None:
        self.calls.append([job.data.get("n") for job in jobs])

    def seen(self) -> list[Any]:
        return sorted(n for call in self.calls for n in call)


class Held:
    """A handler that notes its jobs and waits, until it is let go or cancelled."""

    def __init__(self) -> None:
        self.jobs: list[AsyncJob] = []
        self.gate = anyio.Event()
        self.cancelled = self.returned = False

    async def __call__(self, jobs: list[AsyncJob]) -> None:
        self.jobs = jobs
        try:
            await self.gate.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        self.returned = True

    async def until_called(self) -> None:
        await wait_until_async(lambda: self.jobs, "it is called")


def numbered(count: int, **settings: Any) -> list[dict[str, Any]]:
    return [{"n": n, **settings} for n in range(count)]


def by_number(jobs: list[Any], number: int) -> Any:
    return next(job for job in jobs if job.data["n"] == number)


def stored(jobs: Collection[Any]) -> dict[int, Any]:
    """Return what is stored, by the numbers in the payloads."""
    return {job["payload"]["n"]: job for job in jobs.find({"payload.n": {"$exists": True}})}


async def until_gathered(worker: StartedWorker, count: int = 1) -> None:
    await wait_until_async(
        lambda: worker.metric("streamqueue_claims_total", result="won") == count,
        f"{count} are claimed",
    )


# how they gather


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_handler_gets_jobs_in_a_list(
    batched: Batched, queue: AsyncMongoQueue, kind: str
) -> None:
    calls: list[Any] = []

    async def in_loop(jobs: list[AsyncJob]) -> None:
        calls.append((type(jobs), [type(job) for job in jobs]))

    def in_thread(jobs: list[Job]) -> None:
        calls.append((type(jobs), [type(job) for job in jobs]))

    worker = await batched(in_loop if kind == "loop" else in_thread)
    await queue.put_many(numbered(3))

    await worker.until_outcomes(completed=3)
    assert calls == [(list, [AsyncJob if kind == "loop" else Job] * 3)]


async def test_a_full_batch_waits_for_nothing(batched: Batched, queue: AsyncMongoQueue) -> None:
    sizes = Sizes()
    worker = await batched(sizes, 2)

    await queue.put_many(numbered(6))

    await worker.until_outcomes(completed=6)
    assert sizes.seen() == [0, 1, 2, 3, 4, 5]
    assert [len(call) for call in sizes.calls] == [2, 2, 2]


async def test_a_batch_of_all_slots_fills_although_its_jobs_come_one_by_one(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    sizes = Sizes()
    worker = await batched(sizes, 6, of_worker={"concurrency": 6})

    for payload in numbered(6):
        await queue.put(payload)

    await worker.until_outcomes(completed=6)
    assert sizes.seen() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("wait", [0.3, timedelta(seconds=0.3)], ids=["seconds", "timedelta"])
async def test_a_job_without_company_waits_no_longer_than_it_is_told(
    batched: Batched, queue: AsyncMongoQueue, wait: float | timedelta
) -> None:
    sizes = Sizes()
    worker = await batched(sizes, 10, batch_wait=wait)
    began = time.monotonic()

    await queue.put({"n": 0})

    await worker.until_outcomes(completed=1, within=5)
    assert sizes.calls == [[0]]
    assert time.monotonic() - began >= 0.3


async def test_the_next_batch_gathers_while_one_runs(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    both = anyio.Event()
    calls = []

    async def handler(jobs: list[AsyncJob]) -> None:
        calls.append(len(jobs))
        if len(calls) == 2:
            both.set()
        await both.wait()

    worker = await batched(handler, 3, of_worker={"concurrency": 6})
    await queue.put_many(numbered(6))

    await worker.until_outcomes(completed=6)


async def test_the_lease_of_a_job_that_gathers_is_renewed(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    sizes = Sizes()
    worker = await batched(sizes, 3, batch_wait=1, of_worker={"timeout": 0.5, "reap_interval": 0.1})

    await queue.put({"n": 0})

    await worker.until_outcomes(completed=1)
    assert worker.metric("streamqueue_leases_renewed_total") > 0


async def test_a_batch_has_one_job_of_an_ordered_group_at_the_most_and_those_in_order(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    calls: list[list[tuple[str, int]]] = []

    async def handler(jobs: list[AsyncJob]) -> None:
        calls.append([(str(job.group), job.data["n"]) for job in jobs])

    worker = await batched(handler, 4, batch_wait=0.05, ordered=True)
    for number in range(3):
        await queue.put({"n": number}, group="a")
        await queue.put({"n": number}, group="b")

    await worker.until_outcomes(completed=6)
    assert all(max(Counter(group for group, _ in call).values()) == 1 for call in calls)
    for name in ("a", "b"):
        assert [n for call in calls for group, n in call if group == name] == [0, 1, 2]


async def test_the_later_jobs_of_a_group_do_not_begin_when_the_batch_fails(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    calls: list[list[int]] = []

    async def handler(jobs: list[AsyncJob]) -> None:
        calls.append([job.data["n"] for job in jobs])
        if len(calls) == 1:
            raise OSError

    soon = Backoff(initial=0.01)
    worker = await batched(handler, 4, batch_wait=0.05, ordered=True, backoff=soon, max_attempts=2)
    await queue.put_many(numbered(2), group="a")

    await worker.until_outcomes(retried=1, completed=2)
    assert calls == [[0], [0], [1]]


# which end early


async def test_a_cancelled_job_that_gathers_is_not_handled(
    batched: Batched,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = Sizes()
    worker = await batched(sizes, 2)
    first = await queue.put({"n": 0})
    await until_gathered(worker)

    with caplog.at_level("INFO", "streamqueue"):
        assert await queue.cancel(first) == "asked"
        await wait_until_async(lambda: "ancel" in caplog.text, "it has heard of that")
    await queue.put({"n": 1})

    await worker.until_outcomes(cancelled=1, completed=1)
    assert sizes.calls == [[1]]


async def test_a_job_that_is_too_late_once_the_batch_begins_has_expired(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    sizes = Sizes()
    worker = await batched(sizes, 3, batch_wait=0.6)

    await queue.put({"n": 0}, expires=0.3)
    await queue.put({"n": 1})

    await worker.until_outcomes(expired=1, completed=1)
    assert sizes.calls == [[1]]


@dataclass
class Row:
    n: int


async def test_a_misfit_is_left_to_others_and_the_rest_goes_on(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen: list[Any] = []

    async def handler(rows: list[AsyncJob[Row]]) -> None:
        seen.extend(row.data for row in rows)

    worker = await batched(handler, 3, payload=Row)
    await queue.put_many([{"n": 0}, {"n": "text"}, {"n": 2}])

    await worker.until_outcomes(completed=2, released=1)
    assert seen == [Row(0), Row(2)]
    assert stored(jobs)["text"]["attempts"] == 0  # type: ignore[index]


# which are given back


@pytest.mark.parametrize("how", ["stop", "pause"])
async def test_a_job_that_gathers_is_given_back_with_its_attempt(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any], how: str
) -> None:
    sizes = Sizes()
    worker = await batched(sizes, 3)
    await queue.put_many(numbered(2))
    await until_gathered(worker, 2)

    if how == "stop":
        await worker.stop()
    else:
        await queue.pause()

    await worker.until_outcomes(released=2)
    assert [(job["state"], job["attempts"]) for job in stored(jobs).values()] == [("ready", 0)] * 2
    assert sizes.calls == []


@pytest.mark.parametrize("of", ["worker", "queue"])
async def test_a_queue_that_goes_on_after_a_pause_has_all_of_its_slots(
    batched: Batched, queue: AsyncMongoQueue, of: str
) -> None:
    sizes = Sizes()
    three = {"concurrency": 3}
    worker = await batched(
        sizes, 3, of_worker=three if of == "worker" else {}, **(three if of == "queue" else {})
    )
    await queue.put_many(numbered(2))
    await until_gathered(worker, 2)
    await queue.pause()
    await worker.until_outcomes(released=2)

    await queue.put({"n": 2})
    await queue.resume()

    await worker.until_outcomes(released=2, completed=3)
    assert [len(call) for call in sizes.calls] == [3]


async def test_what_gathers_in_a_run_that_is_cancelled_is_given_back(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    sizes = Sizes()
    worker = start.prepare()
    worker.worker.handler("default", batch=3, batch_wait=LONG)(sizes)
    async with anyio.create_task_group() as running:
        await running.start(worker.run)
        await queue.put_many(numbered(2))
        await until_gathered(worker, 2)
        running.cancel_scope.cancel()

    found = stored(jobs).values()
    assert [(job["state"], job["attempts"]) for job in found] == [("ready", 0)] * 2
    assert sizes.calls == []


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_batch_that_outlasts_the_drain_time_is_given_back(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    held, gate, begun = Held(), threading.Event(), anyio.Event()

    def blocks(jobs: list[Job]) -> None:
        anyio.from_thread.run_sync(begun.set, token=token)
        gate.wait(10)

    token = anyio.lowlevel.current_token()
    handler = held if kind == "loop" else blocks
    worker = await batched(handler, 2, of_worker={"drain_timeout": 0.1})
    try:
        await queue.put_many(numbered(2))
        await (held.until_called() if kind == "loop" else begun.wait())

        await worker.stop()
    finally:
        gate.set()

    assert worker.outcomes() == {"released": 2}
    assert [(job["state"], job["attempts"]) for job in stored(jobs).values()] == [("ready", 0)] * 2
    assert held.cancelled == (kind == "loop")


# each ends by itself


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_what_a_handler_has_ended_itself_stays_when_the_rest_is_completed(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    async def in_loop(jobs: list[AsyncJob]) -> None:
        await by_number(jobs, 0).complete("first")
        await by_number(jobs, 1).error("no", delay=LONG)
        await by_number(jobs, 2).release(delay=LONG)
        await by_number(jobs, 3).progress(40, "packing")

    def in_thread(jobs: list[Job]) -> None:
        by_number(jobs, 0).complete("first")
        by_number(jobs, 1).error("no", delay=LONG)
        by_number(jobs, 2).release(delay=LONG)
        by_number(jobs, 3).progress(40, "packing")

    handler = in_loop if kind == "loop" else in_thread
    worker = await batched(handler, 5, keep=LONG, max_attempts=3)
    await queue.put_many(numbered(5))

    await worker.until_outcomes(completed=3, retried=1, released=1)
    found = stored(jobs)
    assert [found[n]["state"] for n in range(5)] == [
        *("done", "scheduled", "scheduled", "done", "done")
    ]
    assert [found[n].get("result") for n in range(5)] == ["first", None, None, None, None]
    assert [found[n]["attempts"] for n in (1, 2)] == [1, 0]


async def test_an_exception_fails_those_that_have_not_ended(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(jobs: list[AsyncJob]) -> None:
        await by_number(jobs, 1).complete()
        raise OSError("no answer")

    worker = await batched(handler, 3)
    await queue.put_many(numbered(3))

    await worker.until_outcomes(completed=1, dead=2)
    found = stored(jobs)
    assert sorted(found) == [0, 2]
    for job in found.values():
        assert "in handler" in job["last_error"]
        assert job["last_error"].splitlines()[-1] == "OSError: no answer"


async def test_each_fails_by_its_own_attempts(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(jobs: list[AsyncJob]) -> None:
        raise OSError

    worker = await batched(handler, 2, backoff=Backoff(initial=LONG))
    await queue.put({"n": 0}, max_attempts=1)
    await queue.put({"n": 1}, max_attempts=2)

    await worker.until_outcomes(dead=1, retried=1)
    assert {n: job["state"] for n, job in stored(jobs).items()} == {0: "dead", 1: "scheduled"}


async def test_the_backoff_function_and_on_dead_are_asked_for_each(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    asked: list[Any] = []
    dead: list[Any] = []

    def wait(attempt: int, error: BaseException) -> float:
        asked.append((attempt, str(error)))
        return 0.01

    async def told(info: JobInfo, error: BaseException | None) -> None:
        dead.append((info.data, str(error)))

    async def handler(jobs: list[AsyncJob]) -> None:
        raise OSError("no")

    worker = await batched(handler, 2, batch_wait=0.2, backoff=wait, on_dead=told, max_attempts=2)
    await queue.put_many(numbered(2))

    await worker.until_outcomes(retried=2, dead=2)
    await wait_until_async(lambda: len(dead) == 2, "both are told")
    assert sorted(asked) == [(1, "no"), (1, "no"), (2, "no"), (2, "no")]
    assert sorted(dead, key=str) == [({"n": 0}, "no"), ({"n": 1}, "no")]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (lambda: Retry(LONG), "retried"),
        (lambda: Snooze(LONG), "released"),
        (lambda: Discard("no use"), "dead"),
        (lambda: Cancel("no use"), "cancelled"),
        (lambda: KeyError("to discard on"), "dead"),
        (lambda: SystemExit(3), "retried"),
    ],
    ids=["retry", "snooze", "discard", "cancel", "discard_on", "exit"],
)
async def test_what_a_handler_raises_holds_for_all_that_have_not_ended(
    batched: Batched, queue: AsyncMongoQueue, raised: Callable[[], BaseException], outcome: str
) -> None:
    async def handler(jobs: list[AsyncJob]) -> None:
        await by_number(jobs, 0).complete()
        raise raised()

    long = Backoff(initial=LONG)
    worker = await batched(handler, 3, max_attempts=2, discard_on=KeyError, backoff=long)
    await queue.put_many(numbered(3))

    await worker.until_outcomes(**{"completed": 1, outcome: 2})


async def lazy() -> None:
    """Something that somebody forgot to await."""


@pytest.mark.parametrize(
    ("returned", "said"),
    [(lambda: [1, 2], "job.complete(result)"), (lazy, "nobody has awaited")],
    ids=["results", "a coroutine"],
)
async def test_what_a_handler_returns_is_a_failure_that_says_what_to_do(
    batched: Batched,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    returned: Callable[[], Any],
    said: str,
) -> None:
    async def handler(jobs: list[AsyncJob]) -> Any:
        return returned()

    worker = await batched(handler, 2)
    await queue.put_many(numbered(2))

    await worker.until_outcomes(dead=2)
    assert [said in job["last_error"].splitlines()[-1] for job in jobs.find()] == [True, True]


async def test_a_scope_that_a_handler_leaves_open_ends_with_it(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    left = []

    async def handler(jobs: list[AsyncJob]) -> None:
        scope = anyio.CancelScope()
        scope.__enter__()
        left.append(scope)

    worker = await batched(handler, 2)
    await queue.put_many(numbered(4))

    await worker.until_outcomes(completed=4)
    assert len(left) == 2


# lost, or cancelled, while it runs


async def test_a_job_that_is_lost_is_out_alone(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    held = Held()
    worker = await batched(held, 3, of_worker={"timeout": 0.5})
    ids = await queue.put_many(numbered(3))
    await held.until_called()

    jobs.update_one({"_id": ids[1]}, {"$set": {"lease": b"somebody else's"}})
    await wait_until_async(
        lambda: worker.metric("streamqueue_leases_lost_total") == 1, "its lease is lost"
    )
    with pytest.raises(LeaseLost):
        await by_number(held.jobs, 1).progress(1)
    held.gate.set()

    await worker.until_outcomes(lease_lost=1, completed=2)
    assert list(stored(jobs)) == [1]
    assert held.returned


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
async def test_a_job_that_is_cancelled_is_out_alone_and_ends_with_its_batch(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any], fails: bool
) -> None:
    held = Held()

    async def handler(jobs: list[AsyncJob]) -> None:
        await held(jobs)
        if fails:
            raise OSError

    worker = await batched(handler, 3)
    ids = await queue.put_many(numbered(3))
    await held.until_called()

    await queue.cancel(ids[1])
    cancelled = by_number(held.jobs, 1)
    await wait_until_async(lambda: cancelled.cancelled, "it is said")
    with pytest.raises(JobCancelled):
        await cancelled.complete()
    await worker.until_idle()
    assert worker.outcomes() == {}  # somebody still works on it
    held.gate.set()

    await worker.until_outcomes(**{"cancelled": 1, "dead" if fails else "completed": 2})


async def test_a_handler_is_cancelled_once_all_that_it_has_not_ended_are(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    held = Held()

    async def handler(jobs: list[AsyncJob]) -> None:
        await by_number(jobs, 0).complete()
        await held(jobs)

    worker = await batched(handler, 3)
    ids = await queue.put_many(numbered(3))
    await held.until_called()

    await queue.cancel(ids[1])
    await wait_until_async(lambda: by_number(held.jobs, 1).cancelled, "the first is asked")
    assert not held.cancelled
    await queue.cancel(ids[2])

    await worker.until_outcomes(completed=1, cancelled=2)
    assert held.cancelled


async def test_a_thread_goes_on_and_its_cancelled_job_ends_with_it(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    gate = threading.Event()
    raised: list[Any] = []
    seen: list[Job] = []

    def handler(jobs: list[Job]) -> None:
        seen.extend(jobs)
        gate.wait(10)
        try:
            by_number(jobs, 0).progress(1)
        except JobCancelled as error:
            raised.append(error.job_id)

    worker = await batched(handler, 2)
    try:
        ids = await queue.put_many(numbered(2))
        await wait_until_async(lambda: len(seen) == 2, "it is called")
        await queue.cancel(ids[0])
        await wait_until_async(lambda: by_number(seen, 0).cancelled, "it is said")
    finally:
        gate.set()

    await worker.until_outcomes(cancelled=1, completed=1)
    assert raised == [ids[0]]


# time limits


async def test_the_time_limit_of_the_call_fails_those_that_have_not_ended(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(jobs: list[AsyncJob]) -> None:
        await by_number(jobs, 0).complete()
        await anyio.sleep(LONG)

    worker = await batched(handler, 3, time_limit=0.2)
    await queue.put_many(numbered(3))

    await worker.until_outcomes(completed=1, dead=2)
    for job in jobs.find():
        assert "time limit of 0.2 s" in job["last_error"].splitlines()[-1]
        assert "in handler" in job["last_error"]  # where it was


async def test_the_time_for_which_jobs_gather_does_not_count(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    worker = await batched(Sizes(), 3, batch_wait=0.5, time_limit=0.3)

    await queue.put({"n": 0})

    await worker.until_outcomes(completed=1)


async def test_a_thread_that_is_over_its_limit_has_failed_when_it_returns(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    def handler(jobs: list[Job]) -> None:
        threading.Event().wait(0.4)

    worker = await batched(handler, 2, time_limit=0.1)
    await queue.put_many(numbered(2))

    await worker.until_outcomes(dead=2)
    assert worker.metric("streamqueue_overdue_handlers") == 0


# middleware


async def test_each_job_passes_the_middleware_with_what_became_of_it(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    seen: list[tuple[int, str]] = []

    async def around(job: AsyncJob, call_next: Any) -> Any:
        try:
            await call_next(job)
        except OSError as error:
            seen.append((job.data["n"], str(error)))
            raise
        seen.append((job.data["n"], "returned"))

    async def handler(jobs: list[AsyncJob]) -> None:
        await by_number(jobs, 1).complete()
        raise OSError("no")

    worker = await batched(handler, 3, of_worker={"middleware": [around]})
    await queue.put_many(numbered(3))

    await worker.until_outcomes(completed=1, dead=2)
    assert sorted(seen) == [(0, "no"), (1, "returned"), (2, "no")]


async def test_a_job_that_a_middleware_ends_leaves_the_batch(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    async def around(job: AsyncJob, call_next: Any) -> Any:
        if job.data["n"] == 1:
            await anyio.sleep(0.01)
            raise Cancel
        return await call_next(job)

    sizes = Sizes()
    worker = await batched(sizes, 3, of_worker={"middleware": [around]})
    await queue.put_many(numbered(3))

    await worker.until_outcomes(completed=2, cancelled=1)
    assert sizes.calls == [[0, 2]]


async def test_a_middleware_that_holds_jobs_back_holds_up_no_others(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    two = anyio.Semaphore(2)
    sizes = Sizes()

    async def around(job: AsyncJob, call_next: Any) -> Any:
        async with two:  # which the last is let through by the end of the first
            return await call_next(job)

    worker = await batched(sizes, 3, batch_wait=0.1, of_worker={"middleware": [around]})
    await queue.put_many(numbered(3))

    await worker.until_outcomes(completed=3)
    assert [len(call) for call in sizes.calls] == [2, 1]


async def test_a_job_that_is_lost_while_it_waits_for_the_others_is_not_in_the_list(
    batched: Batched, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    come: list[int] = []
    gate = anyio.Event()

    async def around(job: AsyncJob, call_next: Any) -> Any:
        come.append(job.data["n"])
        if job.data["n"] == 1:
            await gate.wait()
        return await call_next(job)

    seen: list[int] = []

    def handler(jobs: list[Job]) -> None:
        seen.extend(job.data["n"] for job in jobs)

    worker = await batched(handler, 2, of_worker={"middleware": [around], "timeout": 0.5})
    ids = await queue.put_many(numbered(2))
    await wait_until_async(lambda: len(come) == 2, "both have begun")
    jobs.update_one({"_id": ids[0]}, {"$set": {"lease": b"somebody else's"}})
    await wait_until_async(
        lambda: worker.metric("streamqueue_leases_lost_total") == 1, "its lease is lost"
    )
    gate.set()

    await worker.until_outcomes(lease_lost=1, completed=1)
    assert seen == [1]


async def test_a_batch_has_a_context_of_its_own(batched: Batched, queue: AsyncMongoQueue) -> None:
    customer = contextvars.ContextVar("customer", default="nobody")
    seen: list[str] = []

    async def handler(jobs: list[AsyncJob]) -> None:
        seen.append(customer.get())
        customer.set("ada")

    worker = await batched(handler, 2)
    await queue.put_many(numbered(4))

    await worker.until_outcomes(completed=4)
    assert seen == ["nobody", "nobody"]


async def test_a_line_that_a_batch_logs_names_its_queue_and_no_job(
    batched: Batched, queue: AsyncMongoQueue
) -> None:
    lines: list[str] = []

    async def handler(jobs: list[AsyncJob]) -> None:
        record = logging.LogRecord("shop", logging.INFO, __file__, 1, "stored", None, None)
        lines.append(TextFormatter().format(record).partition("shop: ")[2])

    worker = await batched(handler, 2)
    await queue.put_many(numbered(2))

    await worker.until_outcomes(completed=2)
    assert lines == ["stored [queue=default]"]


# what is left


class Thing:
    """Something a job leads to."""


@pytest.mark.few(1)
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
async def test_nothing_of_a_batch_is_held_after_its_end(
    batched: Batched, queue: AsyncMongoQueue, fails: bool
) -> None:
    things: list[weakref.ref[Thing]] = []

    async def handler(jobs: list[AsyncJob]) -> None:
        for job in jobs:
            thing = Thing()
            job.data["thing"] = thing
            things.append(weakref.ref(thing))
        if fails:
            raise OSError

    worker = await batched(handler, 2)
    gc.collect()
    gc.disable()
    try:
        await queue.put_many(numbered(2))
        await worker.until_outcomes(**{"dead" if fails else "completed": 2})
        await wait_until_async(
            lambda: [thing() for thing in things] == [None, None], "nothing holds them"
        )
    finally:
        gc.enable()


# until it is empty


async def test_a_test_may_run_a_worker_with_batches_until_it_is_empty(
    async_jobs: AsyncCollection[Any], queue: AsyncMongoQueue
) -> None:
    sizes = Sizes()
    worker = Worker(async_jobs, registry=CollectorRegistry())
    worker.handler("default", batch=3, batch_wait=0.02)(sizes)
    await queue.put_many(numbered(4))

    report = await run_until_empty(worker)

    assert report.outcomes == {"completed": 4}
    assert sizes.seen() == [0, 1, 2, 3]


async def test_a_test_learns_what_a_batch_has_raised(
    async_jobs: AsyncCollection[Any], queue: AsyncMongoQueue
) -> None:
    async def handler(jobs: list[AsyncJob]) -> None:
        raise ZeroDivisionError("one of our own")

    worker = Worker(async_jobs, registry=CollectorRegistry())
    worker.handler("default", batch=2, batch_wait=LONG)(handler)
    await queue.put_many(numbered(2))

    with pytest.raises(ZeroDivisionError, match="one of our own") as raised:
        await run_until_empty(worker)

    assert raised.traceback[-1].name == "handler"
    assert len(raised.value.__notes__) == 1


# what is refused


async def one(job: AsyncJob) -> None: ...


async def several(jobs: list[AsyncJob]) -> None: ...


def several_blocking(jobs: list[Job]) -> None: ...


def of_a_payload(payload: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    ("function", "settings", "said"),
    [
        (several, {"batch": 21}, "more than the 20 jobs that may run at a time"),
        (several, {"batch": 6, "concurrency": 5}, "more than the 5 jobs that may run at a time"),
        (of_a_payload, {"batch": 2, "run_in": "process"}, "takes no batch="),
        (several, {"batch": 0}, "batch must be a whole number from 1"),
        (several, {"batch": 2, "batch_wait": -1}, "batch_wait must be from 0 seconds"),
        (one, {"batch_wait": 1}, "say with batch= how many"),
        (one, {"batch": 2}, r"annotate its parameter as list\[AsyncJob\]"),
        (several, {}, "it gets one job: with batch="),
        (several_blocking, {}, "it gets one job: with batch="),
        (several_blocking, {"batch": 2, "run_in": "loop"}, "is a def"),
    ],
    ids=[
        *("more than the slots", "more than its slots", "a process", "none", "a negative time"),
        *("a time alone", "one job", "no batch", "no batch in a thread", "a def in the loop"),
    ],
)
async def test_what_cannot_be_is_refused_where_it_stands(
    start: WorkerStarter, function: Any, settings: dict[str, Any], said: str
) -> None:
    worker = start.prepare().worker

    with pytest.raises(ConfigurationError, match=said):
        worker.handler("default", **settings)(function)


async def test_slots_that_a_task_takes_from_its_queue_are_noticed_when_the_worker_starts(
    start: WorkerStarter,
) -> None:
    worker = start.prepare()
    worker.worker.handler("default", batch=10)(several)

    @worker.worker.task(concurrency=5)
    async def resize(path: str) -> None: ...

    with pytest.raises(ConfigurationError, match="batch=10 of queue 'default' is more than the 5"):
        with anyio.fail_after(5):
            await worker.worker.run(handle_signals=False)


async def test_a_task_takes_no_batch(start: WorkerStarter) -> None:
    with pytest.raises(TypeError, match="batch"):
        start.prepare().worker.task(batch=2)  # type: ignore[call-arg]
