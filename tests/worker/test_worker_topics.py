"""Workers are woken by what is published to a topic, as by any put.

Laws: the document is the truth, the event a hint; nobody polls.
"""

from __future__ import annotations

from typing import Any

from pymongo.asynchronous.collection import AsyncCollection

from streamqueue import AsyncJob, AsyncTopic
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter


async def test_a_published_message_wakes_the_workers_of_every_subscriber(
    start: WorkerStarter, async_jobs: AsyncCollection[Any]
) -> None:
    seen: list[tuple[str, int]] = []

    async def mails(job: AsyncJob) -> None:
        seen.append(("default", job.data["n"]))

    async def billing(job: AsyncJob) -> None:
        seen.append(("billing", job.data["n"]))

    topic = AsyncTopic(async_jobs, "orders")
    for name in ("default", "billing"):
        await topic.subscribe(name)
    workers = [await start(mails), await start(mails, billing, concurrency=1)]

    for n in range(3):
        await topic.publish({"n": n})
        await wait_until_async(lambda n=n: len(seen) == 2 * (n + 1), "both have it")

    assert sorted(seen) == sorted((name, n) for n in range(3) for name in ("default", "billing"))
    for worker in workers:
        assert worker.metric("streamqueue_missed_wakeups_total") == 0
