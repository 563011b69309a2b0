"""How the limits of a queue stand: how many jobs run under each, and whether it holds some back.

A limit that has no room is *saturated* where jobs are ready that it holds back. Whoever claims
knows it from slots and reservations; here the running jobs and the buckets are counted, for whoever
looks from outside. Of a queue without rules nothing is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from ..protocol.document import BARE_CODEC
from ..protocol.limits import Rule
from ..store.collection import UNAUTHORIZED
from . import limit_queries as queries
from .counts import LimitCensus, RulesCensus
from .discovery import NO_SUCH_INDEX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..protocol.limits import Rules
    from ..protocol.operations import Pipeline
    from ..queue.flow import Flow
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store

MOST_LIMITS = 20
"""Limits of a queue that are counted."""
LONGEST_TASK = 64


def limits_shown(rules: Rules) -> list[Rule]:
    """Return the limits of a queue that are counted. The order of groups is one: of each group one
    job at a time."""
    shown = [rule for rule in rules.limits if _may_be_shown(rule.task)]
    if rules.ordered:
        whole = [rule for rule in shown if (rule.per, rule.task) == ("group", None)]
        rate = whole[0].rate if whole else None
        others = [rule for rule in shown if rule not in whole]
        shown = [*others, Rule("group", None, 1, rate)]
    return shown[-MOST_LIMITS:]


def _may_be_shown(task: str | None) -> bool:
    # Whoever may set limits may have stored any text.
    return task is None or (0 < len(task) <= LONGEST_TASK and task.isprintable())


def count_rules(
    store: Store | AsyncStore,
    queue: str,
    rules: Rules,
    *,
    running: int,
    ready: int,
    dead: int,
    rates: bool = True,
) -> Flow[RulesCensus]:
    """Count how the limits of a queue stand, and the groups that a dead job holds.

    Args:
        running, ready, dead: its jobs in these states, as they were just counted. What these make
            superfluous is not asked.
        rates: whether this user may read, as far as is known, what is stored of rates.
    """
    count = _Count(store, queue, limits_shown(rules))
    yield from count.look_at_running(running)
    held = None
    if ready:
        count.rates_refused = not rates
        yield from count.look_at_buckets()
        yield from count.look_at_ready()
    if rules.ordered == "strict":
        held = 0
        if ready and dead:
            held = yield from count.held_groups()
    return RulesCensus(count.limits, held, count.rates_refused)


class _Count:
    """One count of one queue."""

    def __init__(self, store: Store | AsyncStore, queue: str, rules: Sequence[Rule]) -> None:
        self._store = store
        self._queue = queue
        self._rules = rules
        self.limits = [LimitCensus(rule.per, rule.task, rule.running, rule.rate) for rule in rules]
        self.rates_refused = False
        self._full: list[set[str]] = [set() for _ in rules]  # the tasks or groups without room

    def look_at_running(self, running: int) -> Flow[None]:
        """Count what runs under the limits of running jobs, and note which are full."""
        apart: list[int] = []
        for place, rule in enumerate(self._rules):
            if rule.running is None:
                continue
            if rule.for_all:
                self._note_running(place, "", running)
            elif running:
                apart.append(place)
            else:
                self.limits[place].running = 0
        if not apart:
            return
        for place in apart:
            self.limits[place].running = 0
        some = [self._rules[place] for place in apart]
        collection = self._store.jobs.name
        for row in (yield from self._rows(queries.running_under(self._queue, collection, some))):
            self._note_running(apart[row["rule"]], row["of"], row["running"])

    def _note_running(self, place: int, of: str, running: int) -> None:
        limit = self.limits[place]
        limit.running = max(limit.running or 0, running)
        if limit.limit is not None and running >= limit.limit:
            self._full[place].add(of)

    def look_at_buckets(self) -> Flow[None]:
        """Note which rates have no start left for now."""
        for place, rule in enumerate(self._rules):
            if rule.rate is not None and not self.rates_refused:
                command = queries.empty_buckets(self._queue, rule, rule.rate)
                try:
                    found = yield self._store.read_buckets(command)
                except OperationFailure as error:
                    if error.code != UNAUTHORIZED:
                        raise
                    self.rates_refused = True
                    continue
                prefix = queries.bucket_prefix(self._queue, rule)
                self._full[place] |= {bucket["_id"].removeprefix(prefix) for bucket in found}

    def look_at_ready(self) -> Flow[None]:
        """Count those without room that have a ready job."""
        tasks: set[str] | None = None
        for place, rule in enumerate(self._rules):
            full = self._full[place]
            if not full:
                if rule.rate is not None and self.rates_refused:
                    self.limits[place].saturated = None
                continue
            if rule.per == "group":
                with_ready = yield from self._with_ready(full, rule.task)
                self.limits[place].saturated = len(with_ready)
            elif rule.for_all:
                self.limits[place].saturated = 1
            else:
                if tasks is None:
                    pipeline = queries.ready_tasks(self._queue)
                    rows = yield from self._rows(pipeline, queries.BY_TASK)
                    tasks = {row["_id"] for row in rows if isinstance(row["_id"], str)}
                wanted = full if rule.task is None else {rule.task}
                self.limits[place].saturated = len(wanted & tasks)

    def held_groups(self) -> Flow[int]:
        """Count the groups that have a dead job, and a ready one."""
        pipeline = queries.dead_groups(self._queue)
        rows = yield from self._rows(pipeline, queries.BY_DEAD_GROUP)
        names = {row["_id"] for row in rows if isinstance(row["_id"], str)}
        return len((yield from self._with_ready(names, None))) if names else 0

    def _with_ready(self, groups: set[str], task: str | None) -> Flow[list[Any]]:
        some = sorted(groups)[: queries.MOST_GROUPS]
        collection = self._store.jobs.name
        pipeline = queries.ready_in_groups(self._queue, collection, some, task)
        return (yield from self._rows(pipeline, queries.BY_GROUP))

    def _rows(self, pipeline: Pipeline, hint: Any = None) -> Flow[list[dict[str, Any]]]:
        """Return the rows of an answer; none where the index that is named is not there."""
        options = {} if hint is None else {"hint": hint}
        try:
            found: list[dict[str, Any]] = yield self._store.aggregate(
                pipeline, codec=BARE_CODEC, **options
            )
        except OperationFailure as error:
            if error.code != NO_SUCH_INDEX:
                raise
            return []
        return found
