"""A client whose commands were cancelled is as good as before."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import anyio
from pymongo import AsyncMongoClient
from pymongo.errors import ServerSelectionTimeoutError
from streamqueue import AsyncMongoQueue

NOBODY = "mongodb://127.0.0.1:1/?replicaSet=rs0&serverSelectionTimeoutMS=500"
AT_ONCE = 20  # with fewer the driver's lock is seldom lost

async def main():
    async with AsyncMongoClient(NOBODY) as client:
        queue = AsyncMongoQueue(client.shop.jobs)
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(AT_ONCE):
                    tasks.start_soon(queue.size)
                await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()
        try:
            await queue.size()
        except ServerSelectionTimeoutError:
            print("as good as before")

anyio.run(main)
"""


def test_commands_cancelled_while_there_is_no_server_stop_no_later_one() -> None:
    # In a process of its own: what waits for a lock that is lost cannot be cancelled.
    try:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        said = "a command waits for ever"
    else:
        said = ended.stdout.strip() or ended.stderr

    assert said == "as good as before"
