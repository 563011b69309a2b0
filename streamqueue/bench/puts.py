"""Putting jobs: one after the other, 100 at a time, and in lists of 1,000; blocking and async.

Floor: a bare ``insert_one``, or ``insert_many`` of 1,000 documents made beforehand, by the same
kind of client (blocking or async), with the same indexes and majority writes. 100 at a time is
compared with one after the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from pymongo import AsyncMongoClient

from ..queue.asynchronous import AsyncMongoQueue
from ..queue.blocking import MongoQueue
from . import floor
from .environment import has_uvloop
from .report import Row, Table

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.synchronous.collection import Collection

    from .ground import Ground
    from .scale import Scale

MANY = 1000
IN_FLIGHT = 100
WARM_UP = 20
BLOCK = 25


@dataclass(slots=True)
class Rates:
    """Jobs per second, a figure a round."""

    one: list[float]
    one_floor: list[float]
    many: list[float]
    many_floor: list[float]
    in_flight: list[float]

    @classmethod
    def none(cls) -> Rates:
        return cls([], [], [], [], [])


def steps(scale: Scale) -> int:
    return 2 * scale.rounds


def measure(ground: Ground) -> Table:
    """Return jobs per second."""
    blocking, concurrent = Rates.none(), Rates.none()
    for _ in range(ground.scale.rounds):
        ground.progress.step("blocking")
        _blocking_round(ground, blocking)
        ground.progress.step("async")
        with ground.jobs() as jobs:
            place = (ground.uri, jobs.database.name, jobs.name)
            anyio.run(
                partial(_async_round, *place, ground.scale, concurrent),
                backend_options={"use_uvloop": has_uvloop()},
            )
    table = Table()
    for kind, rates in {"blocking": blocking, "async": concurrent}.items():
        table.rows += [
            Row.against(f"put, one at a time, {kind}", "jobs/s", rates.one, rates.one_floor),
            Row.against(f"put_many({MANY}), {kind}", "jobs/s", rates.many, rates.many_floor),
        ]
    name = f"put, {IN_FLIGHT} in flight, async"
    table.rows.append(
        Row.against(name, "jobs/s", concurrent.in_flight, concurrent.one, "one at a time")
    )
    return table


def _blocking_round(ground: Ground, rates: Rates) -> None:
    scale = ground.scale
    with ground.jobs() as jobs:
        queue = MongoQueue(jobs, name=floor.QUEUE)
        for number in range(WARM_UP):
            queue.put({"number": number})
            jobs.insert_one(floor.document({"number": number}))
        _blocking_one_at_a_time(jobs, queue, scale, rates)
        payloads = [{"number": number} for number in range(MANY)]
        lists = max(1, scale.puts // MANY)
        spent = spent_floor = 0.0
        for _ in range(lists):
            documents = [floor.document(payload) for payload in payloads]
            begun = time.monotonic()
            queue.put_many(payloads)
            between = time.monotonic()
            jobs.insert_many(documents)
            spent += between - begun
            spent_floor += time.monotonic() - between
        rates.many.append(lists * MANY / spent)
        rates.many_floor.append(lists * MANY / spent_floor)


def _blocking_one_at_a_time(
    jobs: Collection[dict[str, Any]], queue: MongoQueue, scale: Scale, rates: Rates
) -> None:
    spent = spent_floor = 0.0
    for numbers in _blocks(scale.lone_puts):
        documents = [floor.document({"number": number}) for number in numbers]
        begun = time.monotonic()
        for number in numbers:
            queue.put({"number": number})
        between = time.monotonic()
        for document in documents:
            jobs.insert_one(document)
        spent += between - begun
        spent_floor += time.monotonic() - between
    rates.one.append(scale.lone_puts / spent)
    rates.one_floor.append(scale.lone_puts / spent_floor)


def _blocks(count: int) -> list[range]:
    """Ours and the floor take turns in short blocks, so that a hiccup hits both alike."""
    return [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


async def _async_round(uri: str, database: str, name: str, scale: Scale, rates: Rates) -> None:
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        jobs = client[database].get_collection(name, write_concern=floor.MAJORITY)
        queue = AsyncMongoQueue(jobs, name=floor.QUEUE)
        for number in range(WARM_UP):
            await queue.put({"number": number})
            await jobs.insert_one(floor.document({"number": number}))
        await _async_one_at_a_time(jobs, queue, scale, rates)
        await _async_lists(jobs, queue, scale, rates)
        await _put_in_flight(queue, IN_FLIGHT)  # connections are opened before it counts
        begun = time.monotonic()
        await _put_in_flight(queue, scale.puts)
        rates.in_flight.append(scale.puts / (time.monotonic() - begun))


async def _async_one_at_a_time(
    jobs: AsyncCollection[dict[str, Any]], queue: AsyncMongoQueue, scale: Scale, rates: Rates
) -> None:
    spent = spent_floor = 0.0
    for numbers in _blocks(scale.lone_puts):
        documents = [floor.document({"number": number}) for number in numbers]
        begun = time.monotonic()
        for number in numbers:
            await queue.put({"number": number})
        between = time.monotonic()
        for document in documents:
            await jobs.insert_one(document)
        spent += between - begun
        spent_floor += time.monotonic() - between
    rates.one.append(scale.lone_puts / spent)
    rates.one_floor.append(scale.lone_puts / spent_floor)


async def _async_lists(
    jobs: AsyncCollection[dict[str, Any]], queue: AsyncMongoQueue, scale: Scale, rates: Rates
) -> None:
    payloads = [{"number": number} for number in range(MANY)]
    lists = max(1, scale.puts // MANY)
    spent = spent_floor = 0.0
    for _ in range(lists):
        documents = [floor.document(payload) for payload in payloads]
        begun = time.monotonic()
        await queue.put_many(payloads)
        between = time.monotonic()
        await jobs.insert_many(documents)
        spent += between - begun
        spent_floor += time.monotonic() - between
    rates.many.append(lists * MANY / spent)
    rates.many_floor.append(lists * MANY / spent_floor)


async def _put_in_flight(queue: AsyncMongoQueue, count: int) -> None:
    """Put this many jobs from 100 tasks, each of which waits for its own put."""
    numbers = iter(range(count))

    async def put_some() -> None:
        for number in numbers:
            await queue.put({"number": number})

    async with anyio.create_task_group() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.start_soon(put_some)
