"""The guide on steps: its recipes, as they stand there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import Backoff, MongoQueue, Worker
from tests.waiting import wait_until_async

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "steps.md").read_text()
RECIPES = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)
AT_ONCE = Backoff(initial=0.01, maximum=0.05)


class World:
    """Whom the handlers of the guide call, each of whom fails as often as is said."""

    def __init__(self) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.fails: Counter[str] = Counter()

    def _do(self, name: str, *given: Any) -> Any:
        if self.fails[name]:
            self.fails[name] -= 1
            raise OSError(name)
        self.did.append((name, *given))
        return name

    async def post(self, _path: str, body: Any, headers: Any) -> Any:
        return self._do("charge", headers["Idempotency-Key"], body["total"])

    async def ship(self, address: str) -> Any:
        return self._do("ship", address)

    def confirm(self, to: str, payment: str, parcel: str) -> Any:
        return self._do("confirm", to, payment, parcel)

    def send(self, address: str) -> Any:
        return self._do("mail", address)


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def guide(uri: str, jobs: Collection[Any], world: World) -> AsyncIterator[Any]:
    """What the guide defines, on the test's collection; its worker runs."""
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        here = client[jobs.database.name][jobs.name]
        names: dict[str, Any] = {
            "uri": uri,
            "AsyncMongoClient": lambda _uri: SimpleNamespace(shop=SimpleNamespace(jobs=here)),
            "Worker": lambda collection: Worker(collection, max_attempts=10, backoff=AT_ONCE),
            "payments": world,
            **{name: getattr(world, name) for name in ("ship", "confirm", "send")},
        }
        for recipe in RECIPES:
            exec(re.sub(r"^from .* import .*\n", "", recipe, flags=re.M), names)
        guide = SimpleNamespace(**names)
        async with anyio.create_task_group() as tasks:

            async def run(*, task_status: Any) -> None:
                await guide.worker.run(handle_signals=False, task_status=task_status)

            await tasks.start(run)
            yield guide
            guide.worker.stop()


async def ended(queue: MongoQueue, job_id: Any) -> None:
    """Wait until a job is done, and gone."""
    await wait_until_async(lambda: queue.size() == 0, f"{job_id} is done")


@pytest.mark.parametrize("fails", ["ship", "confirm"])
async def test_nobody_is_charged_twice_though_what_follows_fails(
    guide: Any, world: World, jobs: Collection[Any], fails: str
) -> None:
    queue = MongoQueue(jobs, name="orders")
    world.fails[fails] = 3

    job_id = queue.put({"total": 12, "address": "here", "to": "ada"})

    await ended(queue, job_id)
    assert world.did == [
        ("charge", f"{job_id}:charge", 12),
        ("ship", "here"),
        ("confirm", "ada", "charge", "ship"),
    ]


async def test_an_invoice_is_booked_once(guide: Any, jobs: Collection[Any]) -> None:
    jobs.database.accounts.insert_one({"_id": "ada", "due": 0})
    queue = MongoQueue(jobs, name="invoices")

    for _ in range(5):
        queue.put({"account": "ada", "total": 2})

    await ended(queue, "all")
    assert jobs.database.accounts.find_one() == {"_id": "ada", "due": 10}


async def test_each_address_has_one_mail_though_one_fails(
    guide: Any, world: World, jobs: Collection[Any]
) -> None:
    queue = MongoQueue(jobs, name="newsletters")
    world.fails["mail"] = 2

    await ended(queue, queue.put({"to": ["ada", "bob", "carl"]}))

    assert world.did == [("mail", "ada"), ("mail", "bob"), ("mail", "carl")]


async def test_what_is_done_is_shown_and_fresh_begins_again(
    guide: Any, world: World, jobs: Collection[Any]
) -> None:
    queue = MongoQueue(jobs, name="newsletters", max_attempts=1)
    queue.pause()
    job_id = queue.put({"to": ["ada"]}, max_attempts=1)
    guide.worker.stop()
    queue.resume()
    job = queue.next()
    assert job is not None
    job.step("mail-0", world.send, "ada")
    job.error("broken")

    assert guide.done(queue, job_id) == ["mail-0"]
    guide.begin_again(queue, job_id)

    assert guide.done(queue, job_id) == []
