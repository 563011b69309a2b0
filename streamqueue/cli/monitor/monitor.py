"""``streamqueue consumers`` and ``top``: who works, and how the queues stand."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import anyio

from ...errors import StreamQueueError
from ...exporter.census import Surveyor
from ...store.asynchronous import AsyncStore
from .. import tables
from ..command import Options, command, option, setting
from ..connection import open_async_jobs, run_in_loop
from ..options import JSON, WHERE, seconds

if TYPE_CHECKING:
    from ...exporter.counts import Census


@command(*WHERE, JSON, example="streamqueue consumers --json")
def consumers(options: Options) -> None:
    """List the live consumers, of all queues, and what they hold."""

    async def count() -> Census:
        async with open_async_jobs(options, "streamqueue-cli") as jobs:
            store = AsyncStore(jobs)
            await store.prepare()
            return await Surveyor(store, holders=True).take()

    census = anyio.run(count)
    if census.consumers is None:
        raise StreamQueueError(
            f"this user has no right to read the list of consumers: give it find on "
            f"{options.collection}.consumers"
        )
    found = sorted(census.consumers.values(), key=lambda consumer: consumer.name)
    tables.show(options, [asdict(consumer) for consumer in found], tables.consumers(found))


@command(
    *WHERE,
    JSON,
    setting("--interval", "between two looks; default 1", type=seconds, default=1.0),
    option("--once", "look once, and end", is_flag=True),
    example="streamqueue top --interval 5",
)
def top(options: Options) -> None:
    """Watch the queues live: depth, rates, consumers, failures."""
    from .top import run

    async def watch() -> None:
        async with open_async_jobs(options, "streamqueue-top") as jobs:
            await run(jobs, interval=options.interval, once=options.once, as_json=options.json)

    run_in_loop(watch)
