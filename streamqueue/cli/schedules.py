"""``streamqueue schedule list``, ``add``, ``remove``, ``pause``, ``resume`` and ``run``."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import click

from ..errors import ConfigurationError
from ..plain import as_json
from ..protocol.document import id_text
from ..protocol.schedules import CatchUp
from ..queue.schedules.schedules import Schedules
from .command import Group, Options, command, option
from .connection import open_database
from .given import read_payloads
from .jobs import as_calls
from .options import JSON, QUEUE, WHERE, at_least_one, duration, integer
from .tables import columns, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..queue.schedules.info import ScheduleInfo

CATCH_UP = click.Choice(list(get_args(CatchUp)))
NAME = click.Argument(["name"], metavar="NAME")

schedule = Group(
    "schedule",
    help="List, add, remove, pause, resume or run schedules: rules that put jobs by themselves.",
    example="streamqueue schedule add report --cron '0 3 * * *' --queue reports",
    subcommand_metavar="ACTION ...",
    options_metavar="",
)


@contextmanager
def _open(options: Options) -> Iterator[Schedules]:
    with open_database(options) as database:
        yield Schedules(database[options.collection])


@schedule.add_command
@command(*WHERE, JSON, name="list", example="streamqueue schedule list")
def list_schedules(options: Options) -> None:
    """List all schedules, those of code and those that are stored, with their next ticks."""
    with _open(options) as schedules:
        found = schedules.list()
    content = [_facts(info) for info in found]
    header = ("NAME", "QUEUE", "RULE", "NEXT", "LAST JOB", "BY")
    rows = [
        (
            info.name,
            info.queue,
            _rule(info),
            "paused" if info.paused else as_json(info.next[0]).strip('"') if info.next else "-",
            "-" if info.last_job is None else id_text(info.last_job),
            f"{info.source} {info.declared_by or ''}".rstrip(),
        )
        for info in found
    ]
    show(options, content, columns([header, *rows]) if rows else ["no schedules"])


def _facts(info: ScheduleInfo) -> dict[str, Any]:
    facts = {**asdict(info), "next": list(info.next)}
    return {**facts, "last_job": None if info.last_job is None else id_text(info.last_job)}


def _rule(info: ScheduleInfo) -> str:
    if info.cron is not None:
        return info.cron if info.timezone == "UTC" else f"{info.cron} {info.timezone}"
    if info.every is None:
        return "(cannot be read here)"
    return f"every {info.every:g} s" + (f" + {info.offset:g} s" if info.offset else "")


@schedule.add_command
@command(
    NAME,
    click.Argument(["payload"], required=False),
    *WHERE,
    QUEUE,
    JSON,
    option("--cron", "five fields, or @hourly, @daily, @weekly, @monthly, @yearly", metavar="LINE"),
    option("--every", "in its place: each so many", type=duration, metavar="TIME"),
    option("--offset", "of --every, from its grid; default 0", type=duration, metavar="TIME"),
    option("--timezone", "that --cron is read in; default UTC", metavar="ZONE", default="UTC"),
    option("--catch-up", "what becomes of missed ticks; default one", type=CATCH_UP, default="one"),
    option(
        "--catch-up-limit",
        "how many missed ones --catch-up all puts; default 1000",
        type=at_least_one,
        metavar="COUNT",
        default=1000,
    ),
    option("--spread", "over which to begin, by its name", type=duration, metavar="TIME"),
    option("--task", "its jobs are calls of this task, with the payload", metavar="NAME"),
    option("--priority", "of its jobs: higher runs first; default 0", type=integer),
    option("--key", "of its jobs: a tick is skipped while a job has it"),
    option("--group", "that its jobs belong to"),
    option("--max-attempts", "of its jobs; default: as their handler says", type=integer),
    option("--expires", "after which a job is not begun any more", type=duration, metavar="TIME"),
    option("--keep", "how long a job stays when done", type=duration, metavar="TIME"),
    example="streamqueue schedule add report '{\"days\": 1}' --cron '0 3 * * *' --queue reports",
)
def add(options: Options) -> None:
    """Store a schedule of this NAME, or change it: at each tick a job with the PAYLOAD is put.

    The PAYLOAD is a JSON object; default: an empty one.
    """
    payload = None
    if options.payload is not None:
        payloads = read_payloads([options.payload])
        if len(payloads) != 1:
            raise ConfigurationError("one payload, please: a JSON object")
        [payload] = payloads
    if options.task is not None:
        [payload] = as_calls(options, [payload or {}])
    with _open(options) as schedules:
        schedules.add(
            options.name,
            cron=options.cron,
            every=options.every,
            offset=options.offset or 0,
            timezone=options.timezone,
            queue=options.queue,
            payload=payload,
            catch_up=options.catch_up,
            catch_up_limit=options.catch_up_limit,
            spread=options.spread or 0,
            priority=options.priority,
            key=options.key,
            group=options.group,
            max_attempts=options.max_attempts,
            expires=options.expires,
            keep=options.keep,
        )
    _say(options, {"added": True}, f"schedule {options.name} is stored")


@schedule.add_command
@command(NAME, *WHERE, JSON, example="streamqueue schedule remove report")
def remove(options: Options) -> None:
    """Take the schedule of this NAME away; jobs that it has put stay."""
    with _open(options) as schedules:
        schedules.remove(options.name)
    _say(options, {"removed": True}, f"schedule {options.name} is gone")


@schedule.add_command
@command(NAME, *WHERE, JSON, example="streamqueue schedule pause report")
def pause(options: Options) -> None:
    """Let the schedule of this NAME fire no more, until it is resumed."""
    with _open(options) as schedules:
        schedules.pause(options.name)
    _say(options, {"paused": True}, f"schedule {options.name} is paused")


@schedule.add_command
@command(
    NAME,
    *WHERE,
    JSON,
    option("--catch-up", "which ticks of the pause are put; default none", type=CATCH_UP),
    example="streamqueue schedule resume report",
)
def resume(options: Options) -> None:
    """Let the paused schedule of this NAME fire again, from its next tick on."""
    with _open(options) as schedules:
        schedules.resume(options.name, catch_up=options.catch_up)
    _say(options, {"paused": False}, f"schedule {options.name} is not paused")


@schedule.add_command
@command(NAME, *WHERE, JSON, example="streamqueue schedule run report")
def run(options: Options) -> None:
    """Put a job of the schedule of this NAME now; its ticks stay as they are."""
    with _open(options) as schedules:
        job_id = id_text(schedules.run_now(options.name))
    _say(options, {"id": job_id}, job_id)


def _say(options: Options, facts: dict[str, Any], line: str) -> None:
    show(options, {"schedule": options.name, **facts}, [line])
