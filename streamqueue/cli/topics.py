"""``streamqueue topic``: who subscribes to what, and messages published."""

from __future__ import annotations

import click

from ..errors import ConfigurationError
from ..protocol.put import check_put
from ..queue.flow import run
from ..queue.publisher import all_topics
from ..queue.topic import Topic
from ..store.blocking import Store
from .command import Group, Options, command, option
from .connection import open_database
from .given import read_payloads
from .jobs import PUT, TASK, as_calls, key_settings, put_settings
from .options import JSON, WHERE, time_limit
from .tables import columns, show

MOST_TOPICS = 10_000
"""Topics that are listed."""

TOPIC = click.Argument(["topic"], metavar="TOPIC")
SUBSCRIBER = click.Argument(["queue"], metavar="QUEUE")

topic = Group(
    "topic",
    help="Say which queues get the messages of a topic, and publish to them.",
    example="streamqueue topic subscribe orders billing",
    subcommand_metavar="ACTION ...",
    options_metavar="",
)


@topic.add_command
@command(*WHERE, JSON, name="list", example="streamqueue topic list")
def list_topics(options: Options) -> None:
    """List the topics, with the queues that subscribe to each."""
    with open_database(options) as database:
        found = run(all_topics(Store(database[options.collection]), MOST_TOPICS))
    content = [
        {
            "topic": name,
            "subscribers": [
                {"queue": one.queue, "expires_at": one.expires_at} for one in subscribers
            ],
        }
        for name, subscribers in found.items()
    ]
    rows = [("TOPIC", "QUEUE", "UNTIL")]
    for name, subscribers in found.items():
        for one in subscribers:
            end = "-" if one.expires_at is None else f"{one.expires_at:%Y-%m-%d %H:%M:%S}"
            rows.append((name, one.queue, end))
        if not subscribers:
            rows.append((name, "(nobody)", "-"))
    show(options, content, columns(rows) if found else ["no topics"])


@topic.add_command
@command(
    TOPIC,
    SUBSCRIBER,
    *WHERE,
    JSON,
    option(
        "--expires",
        "when it ceases to: seconds, or such as 2026-03-01T14:30:00Z; default: never",
        type=time_limit,
        metavar="TIME",
    ),
    example="streamqueue topic subscribe orders billing",
)
def subscribe(options: Options) -> None:
    """Let the QUEUE have every message that is published to the TOPIC from now on."""
    with open_database(options) as database:
        found = Topic(database[options.collection], options.topic)
        found.subscribe(options.queue, expires=options.expires)
    _changed(options, True)


@topic.add_command
@command(TOPIC, SUBSCRIBER, *WHERE, JSON, example="streamqueue topic unsubscribe orders billing")
def unsubscribe(options: Options) -> None:
    """Let the QUEUE have no more messages of the TOPIC; those that it has stay."""
    with open_database(options) as database:
        Topic(database[options.collection], options.topic).unsubscribe(options.queue)
    _changed(options, False)


def _changed(options: Options, subscribed: bool) -> None:
    said = "subscribes" if subscribed else "does not subscribe"
    content = {"topic": options.topic, "queue": options.queue, "subscribed": subscribed}
    show(options, content, [f"queue {options.queue} {said} to {options.topic}"])


@topic.add_command
@command(
    TOPIC,
    click.Argument(["payload"], nargs=-1),
    *WHERE,
    JSON,
    TASK,
    *PUT,
    example="streamqueue topic publish orders '{\"order\": 17}'",
)
def publish(options: Options) -> None:
    """Put jobs into the queue of every subscriber of the TOPIC.

    Each PAYLOAD is a JSON object; with none, or with '-', one is read per line from standard input.
    Each goes to all of them or to none.
    """
    payloads = as_calls(options, read_payloads(list(options.payload)))
    if options.key is not None and len(payloads) != 1:
        raise ConfigurationError("--key goes with one message: no two hold the same")
    settings = {**key_settings(options), **put_settings(options)}
    for payload in payloads:  # all are checked before the first is published
        check_put(payload, run_at=None, **settings)
    with open_database(options) as database:
        found = Topic(database[options.collection], options.topic)
        ids = [found.publish(payload, **settings) for payload in payloads]
    content = [[str(job_id) for job_id in some] for some in ids]
    lines = content[0] if len(content) == 1 else []
    if len(content) > 1:
        lines = [f"published {len(ids):,} messages, {sum(map(len, ids)):,} jobs"]
    elif not lines:
        lines = [f"nobody subscribes to {options.topic}"]
    show(options, content, lines)
