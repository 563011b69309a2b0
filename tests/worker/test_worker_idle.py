"""An idle worker sends next to nothing, and the event alone starts a job.

Laws: the document is the truth; nobody polls.
"""

from __future__ import annotations

from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from tests.worker.started import WorkerStarter

IDLE_SECONDS = 10


def server_counters(jobs: Collection[Any]) -> dict[str, int]:
    """Return what the server counted on this collection, besides ``getMore``."""
    top = jobs.database.client.admin.command("top")["totals"][f"{jobs.database.name}.{jobs.name}"]
    kinds = ("queries", "insert", "update", "remove", "commands")
    return {kind: top[kind]["count"] for kind in kinds}


def difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {kind: after[kind] - before[kind] for kind in after if after[kind] != before[kind]}


async def test_an_idle_worker_starts_a_job_with_nothing_sent_but_the_claim(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    sent_before_the_handler = []
    started = anyio.Event()

    async def handler(job: Any) -> None:
        sent_before_the_handler.extend(worker.commands.besides("getMore"))
        started.set()

    worker = await start(handler)
    await worker.until_idle()
    worker.commands.forget()

    await queue.put({"n": 1})

    with anyio.fail_after(5):
        await started.wait()
    assert [sent.name for sent in sent_before_the_handler] == ["findAndModify"]


async def test_the_claim_is_sent_before_the_next_read_of_the_stream_is_prepared(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    prepared_together: list[list[str]] = []
    started = anyio.Event()

    async def handler(job: Any) -> None:
        started.set()

    worker = await start(handler)
    await worker.until_idle()

    async def note_each_turn_of_the_loop() -> None:
        while True:
            before = len(worker.commands.all)
            await checkpoint()
            if sent := worker.commands.all[before:]:
                prepared_together.append([command.name for command in sent])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note_each_turn_of_the_loop)
        await queue.put({"n": 1})
        with anyio.fail_after(5):
            await started.wait()
        tasks.cancel_scope.cancel()

    # A command is on the wire one turn after it is prepared, at the latest.
    assert ["findAndModify"] in prepared_together


async def test_the_server_counts_one_claim_and_no_query_for_a_job_of_an_idle_worker(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: Any) -> None:
        pass

    worker = await start(handler)
    await queue.size()  # its first call checks the server and makes the indexes
    await worker.until_idle()
    before = server_counters(jobs)

    await queue.put({"n": 1})
    await worker.until_outcomes(completed=1)

    counted = difference(server_counters(jobs), before)
    assert counted == {"insert": 1, "commands": 1, "remove": 1}


async def test_ten_idle_seconds_send_nothing_but_get_more_and_looks_for_leases(
    start: WorkerStarter, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    async def handler(job: Any) -> None:
        pass

    worker = await start(handler, max_await=1)
    await worker.until_idle()
    worker.commands.forget()
    before = server_counters(jobs)

    await anyio.sleep(IDLE_SECONDS)

    # A lease of a queue that nobody else serves makes no event: one look every five seconds.
    looks = worker.commands.besides("getMore")
    assert [look.command["filter"] for look in looks] == [{"state": "running"}] * len(looks)
    assert 1 <= len(looks) <= 3
    assert difference(server_counters(jobs), before) == {"queries": len(looks)}
    # One stream, which asks again after a second of silence (``max_await``).
    assert IDLE_SECONDS / 2 <= len(worker.commands.named("getMore")) <= IDLE_SECONDS + 2
