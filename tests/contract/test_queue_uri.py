"""Nothing that a URI says of reading and writing reaches the queue: it has concerns of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.synchronous.collection import Collection

from tests.contract.shells import AsyncShell, BlockingShell, Shell
from tests.contract.uris import SETTINGS
from tests.contract.waiters import SOON, WAIT, waiting


@asynccontextmanager
async def with_settings(
    kind: type[Shell], uri: str, settings: str, jobs: Collection[Any]
) -> AsyncIterator[Any]:
    """The queue ``default`` on clients whose URI says so."""
    own = f"{uri}&{settings}"
    async with AsyncMongoClient(own, tz_aware=True) as async_client:
        with MongoClient[Any](own, tz_aware=True) as client:
            shell = kind(client[jobs.database.name][jobs.name], client, async_client)
            yield shell.queue(timeout=60)
            await shell.close()


@pytest.mark.few(11)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", [BlockingShell, AsyncShell], ids=["blocking", "async"])
async def test_a_queue_works_whatever_the_uri_says(
    uri: str, jobs: Collection[Any], kind: type[Shell], settings: str
) -> None:
    async with with_settings(kind, uri, settings, jobs) as queue:
        async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
            await queue.put({"n": 0}, key="a")
            woken = await waiter.soon()
        with anyio.fail_after(2 * SOON):
            await queue.put_many([{"n": n} for n in range(1, 5)])
            first = await queue.next()
            await first.progress(1)
            await first.complete()
            [second] = await queue.claim(1)
            await second.error("no", delay=0)
            async with aclosing(aiter(queue)) as iterator:
                third = await anext(iterator)
                await third.release()
            await queue.repair()
            await queue.requeue()
            counts = await queue.stats()
            size = await queue.size()

    assert woken.data == {"n": 0}
    assert (counts["available"], counts["locked"], counts["total"], size) == (3, 1, 4, 4)
