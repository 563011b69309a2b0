"""examples/poller.py: the partner is called as he allows it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue.testing import advance, run_until_empty

CUSTOMERS = ["ada", "bob", "eve"]


class Partner:
    """Notes who calls him, and when."""

    def __init__(self, seconds: float = 0) -> None:
        self._seconds = seconds
        self._present: Counter[str] = Counter()
        self.asked: list[tuple[str, str]] = []
        self.at: list[float] = []
        self.most = 0
        self.most_of_one = 0

    async def ask(self, customer: str, about: str) -> str:
        """Answer, after some time."""
        self.asked.append((customer, about))
        self.at.append(time.monotonic())
        self._present[customer] += 1
        self.most = max(self.most, self._present.total())
        self.most_of_one = max(self.most_of_one, *self._present.values())
        await anyio.sleep(self._seconds)
        self._present[customer] -= 1
        return "yes"


@pytest.fixture
async def poller(load: Callable[[str], Any]) -> AsyncIterator[Any]:
    poller = load("poller")
    yield poller
    await poller.calls.close()
    await poller.webhooks.close()
    await poller.database.client.close()


async def test_each_customer_is_asked_about_at_each_tick(
    poller: Any, async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    jobs.database.customers.insert_many([{"_id": each} for each in CUSTOMERS])
    await run_until_empty(poller.worker)
    before = jobs.database.answers.count_documents({})

    await advance(async_jobs, 10)
    await run_until_empty(poller.worker)

    answers = [each["answer"] for each in jobs.database.answers.find()][before:]
    assert sorted(answers) == [f"orders of {each}" for each in CUSTOMERS]


async def test_two_customers_are_served_at_a_time_and_each_in_order(
    poller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    partner = Partner(seconds=0.15)
    monkeypatch.setattr(poller, "ask", partner.ask)
    for number in range(3):
        for customer in CUSTOMERS:
            about = {"customer": customer, "about": f"{customer}-{number}"}
            await poller.calls.put(about, group=customer)

    await run_until_empty(poller.worker)

    assert (partner.most, partner.most_of_one) == (2, 1)
    for customer in CUSTOMERS:
        events = [about for whose, about in partner.asked if whose == customer]
        assert events == [f"{customer}-{number}" for number in range(3)]


async def test_calls_are_spread_as_the_rate_says(
    poller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    partner = Partner()
    monkeypatch.setattr(poller, "ask", partner.ask)
    await poller.calls.put_many([{"customer": "ada", "about": "orders"}] * 15)

    await run_until_empty(poller.worker)

    assert len(partner.at) == 15
    assert partner.at[-1] - partner.at[0] > 0.5  # 13 of 50 ms, but for a start that came late


async def test_a_webhook_that_comes_again_is_another_job_only_after_a_day(
    poller: Any, async_jobs: AsyncCollection[Any]
) -> None:
    first = await poller.webhook("ada", "evt_17")
    assert await poller.webhook("ada", "evt_17") == first
    await run_until_empty(poller.worker)
    assert await poller.webhook("ada", "evt_17") == first

    await advance(async_jobs, timedelta(hours=24))

    assert await poller.webhook("ada", "evt_17") != first


async def test_it_runs_as_its_first_lines_say(follow: Callable[[str], Any]) -> None:
    await follow("poller")
