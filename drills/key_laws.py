"""What keys promise: laws of the checker. Never two running jobs of one key, nor two that wait; and
no key is held by nobody."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from drills.account import Account, Attempt, Call, Finding, Job
from drills.ends import ENDED

SLACK = 0.005
"""Seconds: the server keeps whole milliseconds, and its clock may be slewed against ours."""
HELD_SLACK = 0.5
"""Seconds by which a key may be held longer than it was put for: a put learns of the server's time
when it was inserted, on a machine under load."""

Scope = tuple[str, str]


def by_key(account: Account) -> dict[Scope, list[Job]]:
    """Return the jobs that were put with a key, by queue and key."""
    found: dict[Scope, list[Job]] = {}
    for job in account.jobs.values():
        for put in job.puts[:1]:
            if put.said.get("key") is not None:
                found.setdefault((str(put.said["queue"]), str(put.said["key"])), []).append(job)
    return found


def two_of_a_key(account: Account) -> Iterator[Finding]:
    """Two jobs of one key ran for certain at the same time, or wait at the end."""
    for (_, key), jobs in by_key(account).items():
        attempts = sorted((a for job in jobs for a in job.attempts), key=lambda a: a.started)
        for first, second in itertools.pairwise(attempts):
            both = min(first.certain_until(), second.certain_until()) - second.started
            if first.job != second.job and both > SLACK:
                job = account.jobs[second.job]
                yield job, f"it and {first.job} ran with the key {key}, for {both:.3f} s"
        waiting = [job for job in jobs if _state(job) in ("ready", "scheduled", "waiting")]
        for job in waiting[1:]:
            yield job, f"it and {waiting[0].id} wait with the key {key}"


def key_leaked(account: Account) -> Iterator[Finding]:
    """A put was refused for its key when all jobs that had it had ended for certain; or what has
    ended still has its key, which was to be held for no time."""
    for (_, key), jobs in by_key(account).items():
        for job in jobs:
            held = job.document is not None and "held_key" in job.document
            if held and _state(job) in ENDED and "unique_until" not in (job.document or {}):
                yield job, f"it is {_state(job)}, and holds the key {key}"
            for put in job.puts:
                if put.outcome == "failed" and put.said.get("key") is not None:
                    yield from _refused(job, put, jobs)


LAWS = (two_of_a_key, key_leaked)


def _refused(job: Job, put: Call, jobs: Sequence[Job]) -> Iterator[Finding]:
    others = [other for other in jobs if other is not job]
    if not any(_may_hold(other, put.invoked, put.answered) for other in others):
        yield job, f"its put was refused, and nobody had the key {put.said['key']}"


def _may_hold(job: Job, since: float, until: float) -> bool:
    """Whether a job may have held its key at a moment between these two."""
    puts = [put for put in job.puts if put.maybe_applied and put.invoked <= until]
    if not puts:
        return False
    held_for = max(put.said.get("unique_for") or 0 for put in puts)
    if held_for and max(put.over for put in puts) + held_for + HELD_SLACK >= since:
        return True
    ended = min((_ended(attempt) for attempt in job.attempts), default=math.inf)
    return ended >= since


def _ended(attempt: Attempt) -> float:
    """Return when an attempt had ended its job for certain."""
    return min((c.answered for c in attempt.completes() if c.acknowledged), default=math.inf)


def _state(job: Job) -> str | None:
    state = None if job.document is None else job.document.get("state")
    return state if isinstance(state, str) else None
