"""A worker whose handler runs in child processes, to be killed."""

import json
import sys

import anyio
from pymongo import AsyncMongoClient

from streamqueue import Worker
from tests.worker.programs import in_child


async def main(uri: str, database: str, collection: str, handler: str) -> None:
    async with AsyncMongoClient(uri) as client:
        worker = Worker(client[database][collection])
        worker.handler("default", run_in="process")(getattr(in_child, handler))
        await worker.run()


if __name__ == "__main__":
    anyio.run(main, *json.loads(sys.argv[1]))
