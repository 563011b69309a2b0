"""``streamqueue dead list``, ``requeue`` and ``purge``.

What is for many jobs is done in pieces: it takes those that were counted before, and no others.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import click
from pymongo.errors import PyMongoError

from ..clock import monotonic
from ..errors import ConfigurationError
from ..exporter.discovery import Walk
from ..plain import printable
from ..protocol import operations
from ..protocol.document import State, id_text
from ..protocol.operations import Deaths
from ..queue.blocking import MongoQueue
from ..store.asynchronous import AsyncStore
from ..store.blocking import Store
from ..store.lines import why_it_stays_dead
from ..tracebacks import last_line
from .command import Group, Options, command, option
from .connection import open_async_jobs, open_database
from .options import FRESH, JSON, QUEUE, WHERE, moment, whole
from .steering import QUEUE as QUEUE_OR_THAT_OF_THE_ID
from .steering import change_first, open_queue_of
from .tables import show, some_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.synchronous.database import Database

FINE, FAILED = 0, 1
LOOKING = 1.0
"""Seconds of looking for other queues with dead jobs."""
LONGEST_MATCH = 1000
"""Characters of a text to look for: the server's own limit for a pattern is 32,764 bytes."""


CHOICE = (
    option(
        "--since",
        "those that died since: 90s, 15m, 2h or 3d ago, or a time such as 2026-03-01T14:30:00Z",
        type=moment,
        metavar="TIME",
    ),
    option("--match", "those with this text in their last error"),
)
MANY = (
    option(
        "--limit",
        "at most so many, those that died first; default, and 0: all",
        type=whole,
        metavar="COUNT",
        default=0,
    ),
    option("--yes", "do not ask; needed where there is no terminal", is_flag=True),
)

dead = Group(
    "dead",
    help="List, requeue or purge the dead jobs of the queue.",
    example="streamqueue dead list --queue emails",
    subcommand_metavar="ACTION ...",
    options_metavar="",
)


@dead.add_command
@command(
    *WHERE,
    QUEUE,
    JSON,
    *CHOICE,
    option("--limit", "default 20; 0 lists all", type=whole, metavar="COUNT", default=20),
    name="list",
    example="streamqueue dead list --queue emails --since 2h",
)
def list_dead(options: Options) -> None:
    """List the dead jobs, latest first."""
    with open_database(options) as database:
        store, deaths = _chosen(options, database)
        command = operations.dead(deaths, options.limit)
        found = [job for some in store.pieces(command) for job in some]
        nothing = "" if found else _no_dead(options, store, deaths)
    content = [
        {
            "id": id_text(job["_id"]),
            "queue": job.get("queue"),
            "task": job.get("task"),
            "key": job.get("key"),
            "group": job.get("group"),
            "created_at": job.get("created_at"),
            "attempts": job.get("attempts"),
            "finished_at": job.get("finished_at"),
            "last_error": job.get("last_error"),
        }
        for job in found
    ]
    lines = (f"{row['id']}  {_when(row['finished_at'])}  {_last_line(row)}" for row in content)
    show(options, content, lines if content else [nothing])


def _chosen(options: Options, database: Database[Any]) -> tuple[Store, Deaths]:
    """Return which dead jobs are meant: of those there are now, by the server's clock."""
    match = options.match
    if match is not None and not 0 < len(match) <= LONGEST_MATCH:
        raise ConfigurationError(f"--match must have 1 to {LONGEST_MATCH:,} characters")
    store = Store(database[options.collection])
    name = MongoQueue(store.jobs, name=options.queue).name
    store.prepare()
    now = database.client.admin.command("hello")["localTime"]
    since = options.since
    if since is not None and not isinstance(since, datetime):
        since = now - since
    return store, Deaths(name, now, since, match)


def _no_dead(options: Options, store: Store, deaths: Deaths) -> str:
    """Say that a queue has no such dead jobs, and which others have dead ones."""
    if store.find(operations.dead(Deaths(deaths.queue), 1)):
        return f"no dead jobs in queue {deaths.queue} that --since and --match ask for"
    others = anyio.run(_others_with_dead, options)
    if not others:
        return f"no dead jobs in queue {deaths.queue}, nor in any other"
    named = some_of(others)
    return f"no dead jobs in queue {deaths.queue} (there are some in {named}: --queue {others[0]})"


async def _others_with_dead(options: Options) -> list[str]:
    async with open_async_jobs(options, "streamqueue-cli") as jobs:
        walk = Walk(AsyncStore(jobs), State.DEAD)
        await walk.go_on(frozenset(), monotonic() + LOOKING)
    return sorted(walk.names - {options.queue})


def _when(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if hasattr(moment, "strftime") else "?"


def _last_line(row: dict[str, Any]) -> str:
    attempts = "1 attempt" if row["attempts"] == 1 else f"{row['attempts']} attempts"
    return f"{attempts}: {last_line(row['last_error'])[:100]}"


@dead.add_command
@command(
    click.Argument(["job_id"], metavar="[ID]", required=False),
    *WHERE,
    QUEUE_OR_THAT_OF_THE_ID,
    JSON,
    *CHOICE,
    *MANY,
    FRESH,
    example="streamqueue dead requeue --queue emails --match ConnectError --limit 100",
)
def requeue(options: Options) -> int:
    """Make dead jobs ready again: that with the ID, in whatever queue, else all of a queue."""
    if options.job_id is None:
        options.queue = options.queue or "default"
        change = partial(_requeue_some, fresh=options.fresh)
        return _change_many(options, "requeue", "requeued", change)
    if options.since is not None or options.match is not None or options.limit:
        raise ConfigurationError("--since, --match and --limit are for many jobs: leave out the ID")
    with open_queue_of(options, "dead") as (queue, ids):
        count = change_first(partial(queue.requeue, fresh=options.fresh), ids, options, "dead")
    show(options, {"requeued": count}, [f"{count} requeued"])
    return FINE


def _requeue_some(
    store: Store, deaths: Deaths, died: list[dict[str, Any]], progress: _Progress, *, fresh: bool
) -> None:
    count, refused = store.requeue(deaths.queue, died, fresh=fresh)
    needed = [one["_id"] for one in died if one.get("needed") is not None]
    if needed:
        store.look_at_requeued(needed)
    progress.changed += count
    for job_id, error in refused:
        reason = why_it_stays_dead(error, key_taken=store.is_duplicate_job(error))
        progress.examples.setdefault(reason, id_text(job_id))
        progress.left[reason] += 1


@dead.add_command
@command(
    *WHERE,
    QUEUE,
    JSON,
    *CHOICE,
    *MANY,
    example="streamqueue dead purge --queue emails --since 2026-03-01",
)
def purge(options: Options) -> int:
    """Remove the dead jobs for good."""
    return _change_many(options, "purge", "purged", _purge_some)


def _purge_some(
    store: Store, deaths: Deaths, died: list[dict[str, Any]], progress: _Progress
) -> None:
    purged = store.jobs.delete_many(operations.purge(deaths, died)).deleted_count
    if purged < len(died):
        left = operations.purge_to_holders(deaths, died)
        purged += store.jobs.update_many(*left).modified_count
    store.say_room_in(deaths.queue)  # a group may have been held by one of them
    needed = [one["_id"] for one in died if one.get("needed") is not None]
    if needed:
        store.tell_dependents(needed, needed=True)
    progress.changed += purged


# many of them


class _Progress:
    """How many jobs have been changed, and how many could not be, by reason."""

    def __init__(self, participle: str, total: int) -> None:
        self.participle = participle
        self.total = total
        self.changed = 0
        self.left: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._shown = False

    def show(self) -> None:
        """Show on the terminal, if it is one, how far it has come."""
        if self._live:
            self._shown = True
            text = f"\r{self.participle} {self.changed:,} of {self.total:,}"
            print(text, end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Begin another line after that."""
        if self._shown:
            print(file=sys.stderr)

    @property
    def complete(self) -> bool:
        return self.changed + self.left.total() >= self.total


def _change_many(
    options: Options,
    verb: str,
    participle: str,
    change: Callable[[Store, Deaths, list[dict[str, Any]], _Progress], None],
) -> int:
    """Change the dead jobs that are asked for, once the user agrees to their number."""
    if not options.yes and not (sys.stdin is not None and sys.stdin.isatty()):
        raise ConfigurationError(
            f"`dead {verb}` asks before it changes many jobs, and here is no terminal to ask on: "
            "give --yes if you mean it"
        )
    with open_database(options) as database:
        store, deaths = _chosen(options, database)
        counted = store.jobs.aggregate(operations.count_dead(deaths, options.limit)).to_list()
        total = counted[0]["count"] if counted else 0
        progress, stopped = _Progress(participle, total), False
        what = f"{total:,} dead {'job' if total == 1 else 'jobs'} of queue {deaths.queue}"
        if total and not (options.yes or _agreed(f"{verb.capitalize()} {what}?")):
            stopped = True
        elif total:
            stopped = _change_in_pieces(store, deaths, options.limit, progress, change)
        line = f"{progress.changed:,} {participle}" if total else _no_dead(options, store, deaths)
    for reason, count in progress.left.items():
        line += f"; {count:,} stay dead, such as {progress.examples[reason]}: {reason}"
    if stopped:
        line = f"stopped: {line}, of {what}"
    left = progress.left.total()
    show(options, {participle: progress.changed, "stay_dead": left, "stopped": stopped}, [line])
    return FAILED if stopped else FINE


def _change_in_pieces(
    store: Store,
    deaths: Deaths,
    limit: int,
    progress: _Progress,
    change: Callable[[Store, Deaths, list[dict[str, Any]], _Progress], None],
) -> bool:
    """Change them, a thousand in a command; return whether the user stopped it before the end."""
    try:
        with _ctrl_c() as asked_to_stop:
            for some in store.pieces(operations.dead_by_now(deaths, limit)):
                change(store, deaths, some, progress)
                progress.show()
                if asked_to_stop() and not progress.complete:
                    return True
    except (KeyboardInterrupt, PyMongoError):
        progress.end()
        done = f"{progress.changed:,} of {progress.total:,} were {progress.participle} for certain"
        print(f"streamqueue: {done}, then it broke off", file=sys.stderr)
        raise
    progress.end()
    return False


def _agreed(question: str) -> bool:
    """Ask on the terminal; what is not clearly a yes is a no."""
    print(printable(question), "[y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except ValueError:  # not UTF-8
        return False


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Let it be asked for whether Ctrl-C was pressed, or SIGTERM sent, so that no piece is left
    half done. A second one breaks off at once."""
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
