"""The room that a worker makes for others under a limit: taken here, or told of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from streamqueue.store.flows.ruled import Chosen
from streamqueue.store.ruled import RuledQueue
from streamqueue.worker.rules import queues
from streamqueue.worker.rules.queues import RuledQueues
from streamqueue.worker.slots import Slots
from tests.waiting import wait_until_async


class Store:
    """One whose every choice is what the test says."""

    def __init__(self) -> None:
        self.ruled = {"q": RuledQueue()}
        self.waiting = 0
        self.said = 0

    async def choose(self, queue: str, most: int) -> Chosen:
        jobs: list[dict[str, Any]] = [{"_id": n} for n in range(min(most, self.waiting))]
        return Chosen(jobs, held_back=not jobs)

    def makes_room(self, queue: str, slots: Sequence[str]) -> bool:
        return bool(slots)

    async def say_room(self) -> None:
        self.said += 1

    def claim(self, count: int) -> None:
        """Have so many of the chosen ones claimed."""
        self.ruled["q"].room = max(0, self.ruled["q"].room - count)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def ruled(store: Store, monkeypatch: pytest.MonkeyPatch) -> RuledQueues:
    monkeypatch.setattr(queues, "CHOSEN_GRACE", 0.05)
    ruled = RuledQueues(store, Slots(10), 30.0)  # type: ignore[arg-type]
    for _ in range(3):
        ruled.ended("q", ["q#1"])
    return ruled


async def said_by(ruled: RuledQueues, store: Store) -> bool:
    """Whether others are told, of all that is to be told of within a while."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ruled.run)
        await wait_until_async(lambda: not ruled._unsaid, "nothing is left to be told")
        tasks.cancel_scope.cancel()
    return store.said > 0


async def test_others_are_told_of_room_for_which_nothing_was_chosen_here(
    ruled: RuledQueues, store: Store
) -> None:
    assert await said_by(ruled, store)


async def test_nobody_is_told_of_places_that_were_taken_here(
    ruled: RuledQueues, store: Store
) -> None:
    store.waiting = 5
    await ruled.choose("q", 3)
    store.claim(3)

    assert not await said_by(ruled, store)


async def test_nobody_is_told_where_nothing_may_start(ruled: RuledQueues, store: Store) -> None:
    await ruled.choose("q", 3)

    assert not await said_by(ruled, store)


async def test_others_are_told_of_the_places_that_this_process_has_no_slots_for(
    ruled: RuledQueues, store: Store
) -> None:
    store.waiting = 5
    await ruled.choose("q", 1)
    store.claim(1)

    assert await said_by(ruled, store)


async def test_others_are_told_of_places_whose_chosen_jobs_were_not_claimed(
    ruled: RuledQueues, store: Store
) -> None:
    store.waiting = 5
    await ruled.choose("q", 3)
    store.claim(2)

    assert await said_by(ruled, store)


async def test_what_is_left_to_be_told_is_told_at_the_end(ruled: RuledQueues, store: Store) -> None:
    store.waiting = 5
    await ruled.choose("q", 3)

    await ruled.say_room()

    assert store.said == 1
