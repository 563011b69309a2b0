"""The guide on payloads with types: its code, as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests.waiting import wait_until_async

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "payload-types.md").read_text("utf-8")
WORKER, PUTS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)


async def test_the_worker_of_the_guide_gets_what_its_puts_say(
    uri: str, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: list[tuple[str, str]] = []

    async def deliver(to: str, subject: str) -> None:
        delivered.append((to, subject))

    module = ModuleType("guide")  # where a class looks for the types of its fields
    monkeypatch.setitem(sys.modules, "guide", module)
    names = vars(module)
    names |= {"uri": uri, "deliver": deliver}
    here = f'["{jobs.database.name}"]["{jobs.name}"]'
    exec(WORKER.replace(".shop.jobs", here), names)
    exec(PUTS, names)
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await names["worker"].run(handle_signals=False, task_status=task_status)

        await tasks.start(run)
        with MongoQueue(jobs, name="emails") as queue:
            await anyio.to_thread.run_sync(names["greet"], queue)
        await wait_until_async(lambda: len(delivered) == 2, "both were delivered")
        names["worker"].stop()
    client: AsyncMongoClient[Any] = names["collection"].database.client
    await client.close()
    assert sorted(delivered) == [
        ("ada@example.org", "Hello"),
        ("grace@example.org", "Welcome"),
    ]
