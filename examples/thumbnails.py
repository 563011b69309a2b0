"""Thumbnails of two hundred pictures, made in child processes, and whoever asked is told the end.

It shows work that computes (`run_in="process"`) with a time limit, several processes, one job after
many others (`after=`) and waiting for it. A process that is killed loses nothing: its lease ends
after five seconds, and another one makes the thumbnail.

To run it:

    $ export STREAMQUEUE_URI='mongodb://localhost/shop?replicaSet=rs0'    # in each terminal
    $ streamqueue worker examples.thumbnails:worker --processes 2
    $ python -m examples.thumbnails /tmp/pictures
"""

import os
import sys
from pathlib import Path
from typing import Any

from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient

from streamqueue import AsyncJob, MongoQueue, NewJob, Worker, connection_uri

SIDE = 64  # of a picture: a square of grey pixels, as a PGM file has them

jobs = AsyncMongoClient[dict[str, Any]](connection_uri()).get_default_database().jobs
worker = Worker(jobs, timeout=5, keep=3600)


@worker.task("pictures", run_in="process", time_limit=30, concurrency=1)
def shrink(path: str, factor: int = 4) -> str:
    """Write the picture's thumbnail beside it, all or nothing, and return its path."""
    header, pixels = Path(path).read_bytes().split(b"\n255\n", 1)
    width, height = (int(word) for word in header.split()[1:])
    small = bytearray()
    for y in range(0, height, factor):
        for x in range(0, width, factor):
            square = [
                pixels[(y + j) * width + x : (y + j) * width + x + factor] for j in range(factor)
            ]
            small.append(sum(map(sum, square)) // factor**2)
    thumbnail = Path(path).with_suffix(".thumbnail")
    unfinished = thumbnail.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(b"P5 %d %d\n255\n" % (width // factor, height // factor) + small)
    unfinished.replace(thumbnail)
    return str(thumbnail)


@worker.task("pictures")
async def album(job: AsyncJob, title: str) -> dict[str, Any]:
    """Runs when none of the thumbnails is left to be made, and says which there are."""
    made = [path async for path in job.parents if path is not None]
    return {"title": title, "thumbnails": made}


def put(queue: MongoQueue, pictures: list[Path]) -> Any:
    """Put a job for each picture and one after them, whose id is returned."""
    ids = [ObjectId() for _ in pictures]
    calls = [shrink.call(str(path)) for path in pictures]
    each = [NewJob(call, job_id=one) for call, one in zip(calls, ids, strict=True)]
    last = NewJob(album.call("holidays"), after=ids, if_parent_fails="run")
    return queue.put_many([*each, last])[-1]


def draw(folder: Path, count: int = 200) -> list[Path]:
    """Make pictures to try it with."""
    folder.mkdir(exist_ok=True)
    pictures = [folder / f"{number:03}.pgm" for number in range(count)]
    for number, path in enumerate(pictures):
        path.write_bytes(b"P5 %d %d\n255\n" % (SIDE, SIDE) + bytes([number]) * SIDE**2)
    return pictures


if __name__ == "__main__":
    with MongoClient[dict[str, Any]](connection_uri()) as client:
        pictures = MongoQueue(client.get_default_database().jobs, name="pictures")
        made = pictures.wait(put(pictures, draw(Path(sys.argv[1])))).result["thumbnails"]
        print(len(made), "thumbnails, the last one is", made[-1])
