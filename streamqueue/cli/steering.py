"""``streamqueue cancel``, ``requeue`` and ``reschedule``: what becomes of jobs is changed."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigurationError, JobNotFound, StreamQueueError
from ..names import is_name
from ..protocol import operations
from ..protocol.document import ids_of_text
from ..queue.blocking import MongoQueue
from ..store.blocking import Store
from .command import Options, command, option, setting
from .connection import open_database
from .options import FRESH, JSON, WHERE, duration, instant, integer
from .tables import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.synchronous.database import Database

SAID = {
    "cancelled": "cancelled",
    "asked": "asked: it runs, and whoever holds it stops it",
    None: "it had ended before",
}

QUEUE = setting("--queue", "default: that of the ID, else default", metavar="NAME")


@command(
    click.Argument(["job_id"], metavar="ID"),
    *WHERE,
    JSON,
    option("--dependents", "and all that comes after it, in whatever queue", is_flag=True),
    example="streamqueue cancel 69f0c0ffee15900d5ea51de5",
)
def cancel(options: Options) -> None:
    """End the job with this ID, of any queue: at once if it waits; one that runs is stopped."""
    with open_database(options) as database:
        result = _cancel(database, options)
    show(options, {"id": options.job_id, "cancel": result}, [SAID[result]])


def _cancel(database: Database[Any], options: Options) -> str | None:
    collection, text = options.collection, options.job_id
    for job_id in ids_of_text(text):
        find = operations.Find({"_id": {"$eq": job_id}}, {"queue": 1}, None, 1)
        for job in Store(database[collection]).find(find):
            if is_name(job.get("queue")):
                try:
                    queue = MongoQueue(database[collection], name=job["queue"])
                    return queue.cancel(job_id, dependents=options.dependents)
                except JobNotFound:
                    pass  # it has ended since, and is gone
    raise StreamQueueError(f"no job {text}")


@command(
    click.Argument(["job_id"], metavar="[ID]", required=False),
    *WHERE,
    QUEUE,
    JSON,
    option("--error", "those whose last error begins so, or the last line of its traceback"),
    option("--older-than", "those that died so long ago", type=duration, metavar="TIME"),
    option("--spread", "ready one after the other, over so long", type=duration, metavar="TIME"),
    option("--all", "all dead jobs of the queue", is_flag=True),
    FRESH,
    example="streamqueue requeue --queue emails --error ConnectError --spread 600",
)
def requeue(options: Options) -> None:
    """Make dead jobs ready again, with all their attempts: that with the ID, or many.

    `streamqueue dead requeue` does the same, and asks before it does.
    """
    filters = {
        "error": options.error,
        "older_than": options.older_than,
        "spread": options.spread,
    }
    if options.job_id is None:
        if not (options.all or options.error or options.older_than is not None):
            raise ConfigurationError("which dead jobs? give an ID, --error, --older-than or --all")
        with open_database(options) as database:
            name = options.queue or "default"
            count = MongoQueue(database[options.collection], name=name).requeue(
                fresh=options.fresh, **filters
            )
    else:
        if options.all or any(given is not None for given in filters.values()):
            raise ConfigurationError(
                "--error, --older-than, --spread and --all are for many jobs: leave out the ID"
            )
        with open_queue_of(options, "dead") as (queue, ids):
            count = change_first(partial(queue.requeue, fresh=options.fresh), ids, options, "dead")
    show(options, {"requeued": count}, [f"{count:,} requeued"])


@command(
    click.Argument(["job_id"], metavar="ID"),
    *WHERE,
    QUEUE,
    JSON,
    option("--delay", "ready so long from now; 0: now", type=duration, metavar="TIME"),
    option("--run-at", "ready then, such as 2026-03-01T14:30:00Z", type=instant, metavar="TIME"),
    option("--priority", "higher runs first", type=integer),
    example="streamqueue reschedule 692f0c3e8b5d7a0001a1b2c3 --delay 3600",
)
def reschedule(options: Options) -> None:
    """Let a job that waits do so until another time, or with another priority."""

    def change(job_id: Any) -> None:
        queue.reschedule(
            job_id, delay=options.delay, run_at=options.run_at, priority=options.priority
        )

    with open_queue_of(options, "waiting") as (queue, ids):
        change_first(change, ids, options, "waiting")
    show(options, {"rescheduled": 1}, ["1 rescheduled"])


@contextmanager
def open_queue_of(options: Options, state: str) -> Iterator[tuple[MongoQueue, list[Any]]]:
    """Open the queue of a job, which its id is enough for, and return what the id may mean."""
    ids = ids_of_text(options.job_id)
    with open_database(options) as database:
        jobs = database[options.collection]
        name: Any = options.queue
        if name is None:
            store = Store(jobs)
            store.prepare()
            found = store.find(operations.queue_of(ids))
            if not found:
                raise StreamQueueError(f"no {state} job {options.job_id}")
            name = found[0].get("queue")
        yield MongoQueue(jobs, name=name), ids


def change_first(
    change: Callable[[Any], int | None], ids: list[Any], options: Options, state: str
) -> int:
    """Change the job with the first of these ids that one in this state has."""
    for job_id in ids:
        try:
            return change(job_id) or 1
        except JobNotFound:
            pass
    raise StreamQueueError(f"no {state} job {options.job_id}")
