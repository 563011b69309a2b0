"""A worker that is run by its module, whoever loads that: its child processes do, too."""

import json
import os
from typing import Any

import anyio
from pymongo import AsyncMongoClient

from streamqueue import Worker
from tests.worker.programs import in_child


async def main(uri: str, database: str, collection: str) -> None:
    client: AsyncMongoClient[Any]
    async with AsyncMongoClient(uri) as client:
        worker = Worker(client[database][collection])
        worker.handler("default", run_in="process")(in_child.notes)
        await worker.run()


anyio.run(main, *json.loads(os.environ["ARGUMENTS"]))
