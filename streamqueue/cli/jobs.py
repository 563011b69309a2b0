"""``streamqueue put``, ``get``, ``list``, ``pause``, ``resume`` and ``reap``."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, get_args

import click

from ..errors import ConfigurationError, JobNotFound, StreamQueueError
from ..options import QueueOptions
from ..protocol.dependencies import IfParentFails
from ..protocol.document import ids_of_text
from ..protocol.operations import LISTED
from ..protocol.tasks import Task
from ..protocol.unique import KeyUntil, OnConflict, check_rule
from ..queue.flow import run
from ..queue.looking import Looking
from ..store.blocking import Store
from .command import Options, command, option
from .connection import open_database, open_queue
from .given import read_payloads
from .options import JSON, QUEUE, WHERE, at_least_one, duration, integer, time_limit
from .tables import columns, job_facts, job_lines, job_rows, show

if TYPE_CHECKING:
    from bson import ObjectId

    from ..queue.blocking import MongoQueue
    from ..queue.info import JobInfo

PUT_BATCH = 1000


PUT = (
    option("--priority", "higher runs first; default 0", type=integer),
    option(
        "--delay",
        "until it is ready: seconds, or such as 90s, 15m, 2h or 3d; default 0",
        type=duration,
        metavar="TIME",
    ),
    option("--key", "one job of the queue at most holds it"),
    option(
        "--on-conflict",
        "when another job holds the key; default raise",
        type=click.Choice(get_args(OnConflict)),
    ),
    option(
        "--key-until",
        "when the job lets go of its key; default end, or start with replace and earlier",
        type=click.Choice(get_args(KeyUntil)),
    ),
    option(
        "--unique-for",
        "how long the key stays taken at the least, whatever becomes of the job",
        type=duration,
        metavar="TIME",
    ),
    option(
        "--max-delay",
        "with --on-conflict replace: how long after the first put it is due at the latest",
        type=duration,
        metavar="TIME",
    ),
    option("--group", "what it belongs to, such as a customer: order and limits can be per group"),
    option("--max-attempts", "default: as its handler says", type=integer),
    option(
        "--expires",
        "after which it is not begun any more: seconds, or such as 2026-03-01T14:30:00Z",
        type=time_limit,
        metavar="TIME",
    ),
    option("--keep", "how long it stays when done", type=duration, metavar="TIME"),
)
"""How jobs are put; :func:`put_settings` hands it on, but for the key."""
TASK = option("--task", "they are calls of this task, with what is in each payload", metavar="NAME")
AFTER = (
    option(
        "--after",
        "the job with this ID ends first; may be repeated",
        multiple=True,
        metavar="ID",
    ),
    option(
        "--if-parent-fails",
        "when one of those is dead, cancelled or gone; default hold",
        type=click.Choice(get_args(IfParentFails)),
    ),
)


@command(
    click.Argument(["payload"], nargs=-1),
    *WHERE,
    QUEUE,
    JSON,
    TASK,
    *PUT,
    *AFTER,
    example='streamqueue put \'{"to": "ada@example.org"}\' --queue emails --delay 60',
)
def put(options: Options) -> None:
    """Put jobs in the queue.

    Each PAYLOAD is a JSON object; with none, or with '-', one is read per line from standard input.
    """
    settings = put_settings(options)
    payloads = as_calls(options, read_payloads(list(options.payload)))
    if options.key is not None and len(payloads) != 1:
        raise ConfigurationError("--key goes with one job: no two hold the same")
    of_key = key_settings(options)
    ids: list[ObjectId] = []
    with open_queue(options) as queue:
        if options.after or options.if_parent_fails:
            settings["after"] = _parents(queue, options) or None
            settings["if_parent_fails"] = options.if_parent_fails or "hold"
        if len(payloads) == 1:
            ids.append(queue.put(payloads[0], **of_key, **settings))
        for start in range(0, len(payloads) if len(payloads) > 1 else 0, PUT_BATCH):
            ids += queue.put_many(payloads[start : start + PUT_BATCH], **settings)
            if sys.stderr.isatty() and len(payloads) > PUT_BATCH:
                print(f"\rput {len(ids):,} of {len(payloads):,}", end="", file=sys.stderr)
    if sys.stderr.isatty() and len(payloads) > PUT_BATCH:
        print(file=sys.stderr)
    texts = [str(job_id) for job_id in ids]
    show(options, texts, texts if len(texts) <= PUT_BATCH else [f"put {len(texts):,} jobs"])


def as_calls(options: Options, payloads: list[Any]) -> list[Any]:
    """Return the payloads as calls of the task that was given, if one was."""
    if options.task is None:
        return payloads
    task = Task(options.task, queue=getattr(options, "queue", "default"))
    return [task.call(**one) if isinstance(one, dict) else one for one in payloads]


def _parents(queue: MongoQueue, options: Options) -> list[Any]:
    """Return the ids that are meant, of whatever kind, in whichever queue."""
    looking = Looking(queue._store, None)
    queue._store.prepare()
    found = []
    for text in options.after:
        try:
            found.append(run(looking.first_of(ids_of_text(text), data=False)).id)
        except JobNotFound:
            raise StreamQueueError(
                f"no job {text} to come after: it has ended and was not kept, or never was there"
            ) from None
    return found


def key_settings(options: Options) -> dict[str, Any]:
    """Return what of it was said of a key, as for ``put``, or raise if there is none."""
    said = (options.on_conflict, options.key_until, options.unique_for, options.max_delay)
    if options.key is None:
        check_rule(*said).need_key()
    names = ("on_conflict", "key_until", "unique_for", "max_delay")
    return {"key": options.key, **dict(zip(names, (said[0] or "raise", *said[1:]), strict=True))}


def put_settings(options: Options) -> dict[str, Any]:
    """Return what of :data:`PUT` was given, as for ``put_many``."""
    return {
        "priority": options.priority,
        "delay": options.delay,
        "group": options.group,
        "max_attempts": options.max_attempts,
        "expires": options.expires,
        "keep": options.keep,
    }


@command(
    click.Argument(["job_id"], metavar="ID"),
    *WHERE,
    JSON,
    example="streamqueue get 6b05640f5d3001cc2b552327 --json",
)
def get(options: Options) -> None:
    """Show the job with the ID, of whichever queue, with its payload and result."""
    with open_database(options) as database:
        info = _get(Store(database[options.collection]), options.job_id)
    show(options, job_facts(info, data=True), job_lines(info))


def _get(store: Store, text: str) -> JobInfo:
    store.any_id = True
    store.prepare()
    try:
        return run(Looking(store, None).first_of(ids_of_text(text)))
    except JobNotFound:
        raise StreamQueueError(
            f"no job {text}: it has ended and was not kept, or there never was one"
        ) from None


@command(
    *WHERE,
    QUEUE,
    JSON,
    option("--state", "default: each, one after the other", type=click.Choice(list(LISTED))),
    option("--group", "only those of this group"),
    option("--limit", "default 20", type=at_least_one, metavar="COUNT", default=20),
    option("--start-after", "begin behind this job: the last one of before", metavar="ID"),
    option("--data", "with payloads and results", is_flag=True),
    name="list",
    example="streamqueue list --queue emails --state running",
)
def list_jobs(options: Options) -> None:
    """List the jobs of the queue: those of a state in their order, or state after state."""
    with open_queue(options) as queue:
        start_after = None
        if options.start_after is not None:
            with open_database(options) as database:
                start_after = _get(Store(database[options.collection]), options.start_after)
        found = queue.list(
            options.state,
            group=options.group,
            limit=options.limit,
            start_after=start_after,
            data=options.data,
        )
    content = [job_facts(info, data=options.data) for info in found]
    rows = job_rows(found, data=options.data)
    which = "jobs" if options.state is None else f"{options.state} jobs"
    which += "" if options.group is None else f" of group {options.group}"
    behind = "" if options.start_after is None else " behind that one"
    nothing = f"no {which} in queue {options.queue}{behind}"
    show(options, content, columns(rows) if found else [nothing])


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
