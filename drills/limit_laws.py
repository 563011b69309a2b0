"""What limits, ordered groups and rates promise: laws of the checker.

A limit may be exceeded for the two seconds in which not everybody knows of it. Whatever may have
been in force at a time is taken to have been, and the largest of it counts.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from drills.account import Account, Attempt, Call, Finding, Job

SLACK = 0.005
"""Seconds: the server keeps whole milliseconds, and its clock may be slewed against ours."""
HEEDED = 2.0
"""Seconds in which everybody obeys a limit, also who has no stream, or has lost it."""
HEEDED_SLACK = 1.0
"""Seconds between the decision to claim and the claim, on a machine under load; and by which what
is read of a primary just elected may be older than what was acknowledged."""

Scope = tuple[str, str | None]
"""A queue, and a group of it, or None for all of its jobs."""


@dataclass(frozen=True)
class InForce:
    """What a limit may have been, from a time to another.

    Attributes:
        since: when it was called for.
        until: when everybody knew of the next one.
    """

    value: Any
    since: float
    until: float


def in_force(calls: Sequence[Call], name: str) -> list[InForce]:
    """Return what holds of ``running`` or ``rate`` by these calls, for which times; from before the
    first one on, None."""
    found, until = [], math.inf
    for call in reversed(calls):
        if name in call.said and call.outcome != "failed":
            found.append(InForce(call.said[name], call.invoked, until))
            until = min(until, _known_by(call))  # one of unknown outcome may have changed nothing
    return [InForce(None, -math.inf, until), *reversed(found)]


def _known_by(call: Call) -> float:
    """Return by when everybody goes by what was called for; at once, if it was before all else."""
    if not call.acknowledged:
        return math.inf
    return call.answered + (0.0 if call.said.get("first") else HEEDED + HEEDED_SLACK)


def _scopes(account: Account, per: str) -> dict[Scope, list[Job]]:
    """Return the jobs that are counted together."""
    found: dict[Scope, list[Job]] = defaultdict(list)
    for job in account.jobs.values():
        group = group_of(job)
        if per == "queue" or group is not None:
            found[queue_of(job), group if per == "group" else None].append(job)
    return found


def queue_of(job: Job) -> str:
    """Return the queue that a job was put into."""
    return str(job.puts[0].said.get("queue")) if job.puts else ""


def group_of(job: Job) -> str | None:
    """Return the group that a job was put into."""
    return job.puts[0].said.get("group") if job.puts else None


def _set_limits(account: Account) -> Iterator[tuple[Scope, list[Job], list[Call]]]:
    """Yield, for each limit that was ever set, its jobs and the calls that set it."""
    for per in ("queue", "group"):
        of_queues: dict[str, list[Call]] = defaultdict(list)
        for call in account.limits:
            if call.said.get("per", "queue") == per:
                of_queues[call.said["queue"]].append(call)
        for scope, jobs in _scopes(account, per).items():
            if scope[0] in of_queues:
                yield scope, jobs, of_queues[scope[0]]


# how many run at once


def beyond_limit(account: Account) -> Iterator[Finding]:
    """A job was started while as many ran for certain as might.

    When an attempt starts, those that run then were all claimed, one of them last; and at that
    moment the others ran.
    """
    for (queue, group), jobs, calls in _set_limits(account):
        limits = in_force(calls, "running")
        edits = {job.id: job.edits for job in jobs}
        whose = f"group {group}" if group is not None else f"queue {queue}"
        running: list[tuple[float, Attempt]] = []
        for attempt in _in_order_of_starts(jobs):
            now = attempt.started
            running = [each for each in running if each[0] > now]
            running.append((attempt.certain_until(edits[attempt.job]) - SLACK, attempt))
            at_once = [each for until, each in running if until > now]
            last = max((_claimed(each) for each in at_once), default=now)
            most = _most(limits, last, now)
            if len(at_once) > most:
                others = ", ".join(each.job for each in at_once if each is not attempt)
                yield (
                    account.jobs[attempt.job],
                    (
                        f"it was started as one of {len(at_once)} of {whose} that ran, of {most:g} "
                        f"that might; the others were {others}"
                    ),
                )


def _in_order_of_starts(jobs: Iterable[Job]) -> list[Attempt]:
    attempts = [attempt for job in jobs for attempt in job.attempts]
    return sorted(attempts, key=attrgetter("started"))


def _claimed(attempt: Attempt) -> float:
    """Return a time before which it cannot have been claimed."""
    return -math.inf if attempt.claimed is None else attempt.claimed


def _most(limits: Iterable[InForce], first: float, last: float) -> float:
    """Return the highest limit that may have held at some moment between these two."""
    held = [each.value for each in limits if each.since <= last and each.until >= first]
    return max(math.inf if value is None else float(value) for value in held)


# the order of groups


def two_of_a_group(account: Account) -> Iterator[Finding]:
    """Two jobs of an ordered group ran for certain at the same time."""
    for (_, group), jobs in _ordered(account):
        edits = {job.id: job.edits for job in jobs}
        for first, second in itertools.pairwise(_in_order_of_starts(jobs)):
            ends = [each.certain_until(edits[each.job]) for each in (first, second)]
            both = min(ends) - second.started
            if first.job != second.job and both > SLACK:
                why = f"it and {first.job} of group {group} both ran, for {both:.3f} s"
                yield account.jobs[second.job], why


def group_out_of_order(account: Account) -> Iterator[Finding]:
    """A job of an ordered group was started while another one, whose put had returned before its
    own began, had not ended: while that one waited, or ran, or was to be tried again."""
    for (_, group), jobs in _ordered(account):
        earlier = [
            (min(put.answered for put in job.puts if put.acknowledged), may_have_ended(job), job)
            for job in jobs
            if job.put and not job.revived and not account.cleared(job) and _joins_at_once(job)
        ]
        earlier.sort(key=lambda each: each[0])
        for job in jobs:
            if not job.attempts or job.revived:
                continue
            began, started = min(put.invoked for put in job.puts), job.attempts[0].started
            for returned, ended, first in earlier:
                if returned >= began:
                    break
                if ended > started and first is not job:
                    late = "never" if math.isinf(ended) else f"{ended - started:.3f} s later"
                    yield job, f"it was started before {first.id} of group {group} ended ({late})"
                    break


def _ordered(account: Account) -> Iterator[tuple[Scope, list[Job]]]:
    for scope, jobs in _scopes(account, "group").items():
        if scope[0] in account.ordered:
            yield scope, jobs


def _joins_at_once(job: Job) -> bool:
    """Whether it has its place in its group from its put on."""
    return not any(put.said.get("delay") for put in job.puts) and not job.edits


def may_have_ended(job: Job) -> float:
    """Return the earliest time at which a job may have ended; infinity if it cannot have."""
    ends = [job.maybe_cancelled_since]
    limit = max((attempt.limit for attempt in job.attempts), default=math.inf)
    if len(job.claims) >= limit:  # those included of which no handler was started
        ends.append(min(job.claims.values()))
    for attempt in (*job.attempts, *job.doubtful):
        ends += [call.invoked for call in attempt.calls if _may_end(call, attempt)]
    return min(ends)


def _may_end(call: Call, attempt: Attempt) -> bool:
    if not call.maybe_applied:
        return False
    if call.what == "error":
        return bool(call.said.get("discard")) or attempt.number >= attempt.limit
    return call.what in ("complete", "cancel")


# rates


def beyond_rate(account: Account) -> Iterator[Finding]:
    """In some span of a rate's seconds more jobs were started than its count and its burst, by the
    server's clock."""
    for (queue, group), jobs, calls in _set_limits(account):
        whose = f"group {group}" if group is not None else f"queue {queue}"
        for rate in in_force(calls, "rate"):
            if rate.value is not None:
                yield from _too_many(account, whose, rate, jobs, in_force(calls, "rate"))


def _too_many(
    account: Account, whose: str, rate: InForce, jobs: Sequence[Job], all_rates: Sequence[InForce]
) -> Iterator[Finding]:
    since = max((each.until for each in all_rates if each.since < rate.since), default=-math.inf)
    until = min((each.since for each in all_rates if each.since > rate.since), default=math.inf)
    starts = sorted(
        (attempt.locked, attempt.job)
        for attempt in _in_order_of_starts(jobs)
        if attempt.locked is not None and _claimed(attempt) >= since and attempt.started < until
    )
    span = 1000 * float(rate.value["seconds"])
    most = int(rate.value["count"]) + int(rate.value.get("burst", 1))
    for first, last in zip(starts, starts[most:], strict=False):
        if last[0] - first[0] < span:
            within = (last[0] - first[0]) / 1000
            yield (
                account.jobs[last[1]],
                (
                    f"it was started as one of {most + 1} of {whose} within {within:.3f} s, "
                    f"of {most} that may be in {span / 1000:g} s"
                ),
            )


Law = Callable[[Account], Iterator[Finding]]
LAWS: tuple[Law, ...] = (beyond_limit, two_of_a_group, group_out_of_order, beyond_rate)
