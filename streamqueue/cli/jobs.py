"""``streamqueue put``, ``stats``, ``pause``, ``resume`` and ``reap``: a queue, from outside."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import click
from pymongo.errors import OperationFailure

from ..errors import ConfigurationError
from ..options import QueueOptions
from ..store.blocking import Store
from ..store.collection import UNAUTHORIZED
from .command import Options, command, option
from .connection import open_database, open_queue
from .given import read_payloads
from .options import JSON, QUEUE, WHERE, integer, number, time_limit
from .tables import show

if TYPE_CHECKING:
    from bson import ObjectId

    from ..queue.blocking import MongoQueue

PUT_BATCH = 1000


@command(
    click.Argument(["payload"], nargs=-1),
    *WHERE,
    QUEUE,
    JSON,
    option("--priority", "higher runs first; default 0", type=integer),
    option("--delay", "until it is ready; default 0", type=number, metavar="SECONDS"),
    option("--key", "at most one live job has it"),
    option("--max-attempts", "default: as its handler says", type=integer),
    option(
        "--expires",
        "after which it is not begun any more: seconds, or such as 2026-03-01T14:30:00Z",
        type=time_limit,
        metavar="TIME",
    ),
    option("--keep", "how long it stays when done", type=number, metavar="SECONDS"),
    example='streamqueue put \'{"to": "ada@example.org"}\' --queue emails --delay 60',
)
def put(options: Options) -> None:
    """Put jobs in the queue.

    Each PAYLOAD is a JSON object; with none, or with '-', one is read per line from standard input.
    """
    settings = {
        "priority": options.priority,
        "delay": options.delay,
        "max_attempts": options.max_attempts,
        "expires": options.expires,
        "keep": options.keep,
    }
    payloads = read_payloads(list(options.payload))
    if options.key is not None and len(payloads) != 1:
        raise ConfigurationError("--key goes with one job: no two live jobs have the same")
    ids: list[ObjectId] = []
    with open_queue(options) as queue:
        if len(payloads) == 1:
            ids.append(queue.put(payloads[0], key=options.key, **settings))
        for start in range(0, len(payloads) if len(payloads) > 1 else 0, PUT_BATCH):
            ids += queue.put_many(payloads[start : start + PUT_BATCH], **settings)
            if sys.stderr.isatty() and len(payloads) > PUT_BATCH:
                print(f"\rput {len(ids):,} of {len(payloads):,}", end="", file=sys.stderr)
    if sys.stderr.isatty() and len(payloads) > PUT_BATCH:
        print(file=sys.stderr)
    texts = [str(job_id) for job_id in ids]
    show(options, texts, texts if len(texts) <= PUT_BATCH else [f"put {len(texts):,} jobs"])


@command(*WHERE, QUEUE, JSON, example="streamqueue stats --queue emails")
def stats(options: Options) -> None:
    """Count the jobs of the queue, and say whether it is paused."""
    with open_queue(options) as queue:
        stats: dict[str, int | bool] = {**queue.stats()}
        lines = [f"{name:<10} {count:>10,}" for name, count in stats.items()]
        paused = _is_paused(queue)
    if paused is not None:
        stats["paused"] = paused
    if paused:
        lines.append(f"{'paused':<10} {'yes':>10}")
    show(options, stats, lines)


def _is_paused(queue: MongoQueue) -> bool | None:
    """Return whether a queue is paused; None if this user may not know."""
    try:
        return queue.is_paused()
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return None


@command(*WHERE, QUEUE, JSON, example="streamqueue pause --queue emails")
def pause(options: Options) -> None:
    """Let nobody claim a job of the queue, in any process, until it is resumed.

    What runs goes on to its end; jobs can be put, and wait.
    """
    with open_queue(options) as queue:
        queue.pause()
    show(options, {"queue": queue.name, "paused": True}, [f"queue {queue.name} is paused"])


@command(*WHERE, QUEUE, JSON, example="streamqueue resume --queue emails")
def resume(options: Options) -> None:
    """Let a paused queue go on, in all processes."""
    with open_queue(options) as queue:
        queue.resume()
    show(options, {"queue": queue.name, "paused": False}, [f"queue {queue.name} is not paused"])


@command(*WHERE, JSON, example="streamqueue reap")
def reap(options: Options) -> None:
    """Return every job whose lease has run out, of all queues."""
    with open_database(options) as database:
        store = Store(database[options.collection])
        store.prepare()
        reaped: Counter[tuple[str, str]] = Counter()
        while (some := store.reap(None, lambda _: QueueOptions().max_attempts)).total():
            reaped += some
    content = [
        {"queue": queue, "result": result, "jobs": count}
        for (queue, result), count in sorted(reaped.items())
    ]
    lines = [f"{row['queue']}: {row['jobs']} {row['result']}" for row in content]
    show(options, content, lines or ["nothing to reap"])
