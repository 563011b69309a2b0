"""An operator that pauses a queue and lets it go on all the time; after SIGTERM it goes on."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import anyio
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from drills.history import History
from drills.programs.consumer import QUEUE
from streamqueue import AsyncMongoQueue

BETWEEN = (0.2, 1.0)
SHORT = (0.2, 1.0)
LONG = (3.5, 4.5)
"""Seconds: longer than anybody may take to hear of it."""
AGAIN = 0.1


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    collection: str = "jobs",
    queue: str = QUEUE,
    long_ones: float = 0.2,
    client: dict[str, Any] | None = None,
) -> None:
    """Pause and resume until SIGTERM; `long_ones` is the share of the pauses that are long."""
    history = History(directory, "pauser")

    async def until_done(what: str, target: AsyncMongoQueue) -> None:
        while True:
            try:
                with history.call(what, queue=queue):
                    await (target.pause() if what == "pause" else target.resume())
                return
            except PyMongoError:
                await anyio.sleep(AGAIN)

    async def pause_and_resume(target: AsyncMongoQueue) -> None:
        while True:
            await anyio.sleep(random.uniform(*BETWEEN))
            await until_done("pause", target)
            await anyio.sleep(random.uniform(*(LONG if random.random() < long_ones else SHORT)))
            await until_done("resume", target)

    async def main() -> None:
        async with AsyncMongoClient(uri, **(client or {})) as own:
            target = AsyncMongoQueue(own[database][collection], name=queue)
            with anyio.open_signal_receiver(signal.SIGTERM) as stop:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(pause_and_resume, target)
                    async for _ in stop:
                        tasks.cancel_scope.cancel()
                        break
            await until_done("resume", target)
            await target.close()

    anyio.run(main)
    history.close()
