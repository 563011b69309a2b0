"""``streamqueue stats``: the jobs of queues by state, whether they are paused, and their limits."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from ...exporter.limits import count_rules
from ...protocol import operations
from ...protocol.operations import stats_of
from ...protocol.settings import UNSET, QueueSettings
from ...queue.blocking import MongoQueue
from ...queue.flow import run
from ...queue.looking import Looking
from ...store.blocking import Store
from ...store.collection import UNAUTHORIZED
from ..command import Options, command, setting
from ..connection import open_database
from ..options import JSON, WHERE
from ..tables import columns, limit_text, show, some_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...exporter.counts import RulesCensus

MOST_SET = 10_000
"""Queues whose settings are read; those that are paused are named with jobs or without."""


@command(
    *WHERE,
    setting("--queue", "default: every queue", metavar="NAME"),
    JSON,
    example="streamqueue stats --queue emails",
)
def stats(options: Options) -> None:
    """Count the jobs of every queue, or of one, and say which are paused, and how limits stand."""
    with open_database(options) as database:
        jobs = database[options.collection]
        if options.queue is None:
            _show_all(options, Store(jobs))
        else:
            counts = MongoQueue(jobs, name=options.queue).stats()
            store = Store(jobs)
            store.prepare()
            standing = _Standing(store, options.queue, counts, _settings(store, options))
            _show_one(options, standing)
            if not (options.json or counts["total"] or standing.paused or standing.limits()):
                say_other_queues(options.queue, run(Looking(store, None).counts()))


def say_other_queues(name: str, counts: Mapping[str, Any]) -> None:
    """Say of a queue without jobs which others have some: its name may be another one."""
    if counts:
        names = some_of(sorted(counts))
        sys.stderr.write(f"streamqueue: no jobs in queue {name} (there are some in {names})\n")


def _settings(store: Store, options: Options) -> QueueSettings | None:
    """Return the settings of the queue; None if this user may not know."""
    try:
        found = store.read_settings(operations.settings_of([options.queue]))
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return None
    return QueueSettings.from_document(found[0]) if found else UNSET


class _Standing:
    """How one queue stands.

    Args:
        counts: its jobs by state, as ``stats()`` has them.
        settings: None if they may not be known.
    """

    def __init__(
        self, store: Store, queue: str, counts: dict[str, int], settings: QueueSettings | None
    ) -> None:
        self.counts = counts
        self.paused = None if settings is None else settings.paused
        self.rules: RulesCensus | None = None
        if settings is not None and settings.rules:
            running, ready, dead = (counts[name] for name in ("locked", "available", "errors"))
            flow = count_rules(
                store, queue, settings.rules, running=running, ready=ready, dead=dead
            )
            self.rules = run(flow)

    def facts(self) -> dict[str, Any]:
        """Return it for JSON."""
        facts: dict[str, Any] = {**self.counts}
        if self.paused is not None:
            facts["paused"] = self.paused
        if self.rules is not None:
            facts["limits"] = [asdict(limit) for limit in self.rules.limits]
            if self.rules.held_groups is not None:
                facts["held_groups"] = self.rules.held_groups
        return facts

    def limits(self) -> list[str]:
        """Return how each of its limits stands, and the groups that a dead job holds."""
        if self.rules is None:
            return []
        limits = [limit_text(limit) for limit in self.rules.limits]
        if held := self.rules.held_groups:
            groups = "group" if held == 1 else "groups"
            limits.append(f"{held:,} {groups} held by a dead job")
        return limits


def _show_one(options: Options, standing: _Standing) -> None:
    lines = [f"{name:<10} {count:>10,}" for name, count in standing.counts.items()]
    if standing.paused:
        lines.append(f"{'paused':<10} {'yes':>10}")
    for limit in standing.limits():
        lines.append(f"{'limit':<10} {limit}")
    show(options, standing.facts(), lines)


def _show_all(options: Options, store: Store) -> None:
    counts = run(Looking(store, None).counts())
    settings = store.queues_with_settings(MOST_SET)
    paused = {name for name, one in (settings or {}).items() if one.paused}
    found: dict[str, _Standing] = {}
    for name in sorted({*counts, *paused}):
        one = None if settings is None else settings.get(name, UNSET)
        found[name] = _Standing(store, name, stats_of(counts.get(name, {})), one)
    content = {name: standing.facts() for name, standing in found.items()}
    show(options, content, columns([*_rows(found)]) if found else ["no jobs in any queue"])


def _rows(found: dict[str, _Standing]) -> Iterator[list[str]]:
    """Yield a row for each queue, under a header; limits are shown where there are some."""
    has_limits = any(standing.limits() for standing in found.values())
    first = next(iter(found.values()))
    pauses = [] if first.paused is None else ["PAUSED"]
    yield ["QUEUE", *map(str.upper, first.counts), *pauses, *["LIMITS"] * has_limits]
    for name, standing in found.items():
        counts = [f"{count:,}" for count in standing.counts.values()]
        paused = ["yes" if standing.paused else "-"] * len(pauses)
        limits = [", ".join(standing.limits()) or "-"] * has_limits
        yield [name, *counts, *paused, *limits]
