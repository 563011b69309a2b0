"""What dependencies promise: laws of the checker. Nobody runs before its parents have ended as its
rule wants it, nor before it can see that; and nobody is cancelled unless one of them has failed.

That one runs at all when its parents have ended is what ``stuck`` is about: what a parent's end did
not come to waits when the drill is over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from drills.account import Account, Attempt, Finding, Job
from drills.ends import ENDED

GONE = "gone"
"""What a handler saw of a parent that was not there."""


def parents_of(account: Account, job: Job) -> list[Job]:
    """Return the jobs that one was put after; one that nobody knows of has no puts."""
    ids = [str(one) for put in job.puts[:1] for one in put.said.get("after") or ()]
    return [account.jobs.get(one) or Job(one) for one in ids]


def rule_of(job: Job) -> str:
    """Return what becomes of a dependent when a parent fails."""
    return str(job.puts[0].said.get("if_parent_fails") or "hold")


def dependents(account: Account) -> Iterator[tuple[Job, list[Job]]]:
    """Yield the jobs that come after others, with those."""
    for job in account.jobs.values():
        if (parents := parents_of(account, job)) and not account.cleared(job):
            yield job, parents


class Ends:
    """Since when the jobs of an account may have ended, and how; infinity if they cannot have."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._cancelled: dict[str, float] = {}

    def done(self, job: Job) -> float:
        """Return since when it may be done."""
        calls = [c for a in (*job.attempts, *job.doubtful) for c in a.completes()]
        return min((call.invoked for call in calls if call.maybe_applied), default=math.inf)

    def dead(self, job: Job) -> float:
        """Return since when it may have been dead: discarded, or with no attempts left."""
        since = [math.inf]
        for attempt in (*job.attempts, *job.doubtful):
            last = attempt.number >= attempt.limit
            errors = [call for call in attempt.calls if call.what == "error"]
            since += [call.invoked for call in errors if last or call.said.get("discard")]
            since += [attempt.certain_until(job.edits)] * last
        for put in job.puts:
            # A claim whose process was killed before it noted a start has counted too.
            limit = int(put.said.get("max_attempts") or 1)
            since += sorted(job.claims.values())[limit - 1 :][:1]
        return min(since)

    def cancelled(self, job: Job) -> float:
        """Return since when it may have been cancelled, or not have been there."""
        if job.id not in self._cancelled:
            there = job.put and not self._account.cleared(job)
            since = [job.maybe_ended_by_request_since if there else -math.inf]
            if there and rule_of(job) != "run":
                parents = parents_of(self._account, job)
                since += [self.fails(parent, rule_of(job)) for parent in parents]
            self._cancelled[job.id] = min(since)
        return self._cancelled[job.id]

    def fails(self, parent: Job, rule: str) -> float:
        """Return since when a parent may have failed so that a dependent by this rule is over."""
        since = self.cancelled(parent)
        return min(since, self.dead(parent)) if rule == "cancel" else since

    def lets_run(self, parent: Job, rule: str) -> float:
        """Return since when a parent may not have kept a dependent by this rule from running."""
        done = self.done(parent)
        return min(done, self.dead(parent), self.cancelled(parent)) if rule == "run" else done


def ran_before_its_parents(account: Account) -> Iterator[Finding]:
    """An attempt at a dependent was started before one of its parents can have ended as its rule
    wants it."""
    ends = Ends(account)
    for job, parents in dependents(account):
        started = min((attempt.started for attempt in job.attempts), default=math.inf)
        for parent in parents:
            if started < ends.lets_run(parent, rule_of(job)):
                yield (
                    job,
                    f"it was started, by {rule_of(job)}, and parent {parent.id} had not ended",
                )
                break


def parents_not_visible(account: Account) -> Iterator[Finding]:
    """A handler of a dependent has seen a parent that had not ended, or by ``hold`` and ``cancel``
    one that was not done; or that one was gone, though it was needed."""
    for job, parents in dependents(account):
        rule = rule_of(job)
        fine = {"done"} if rule != "run" else {*ENDED, GONE}
        if any(parent.requeues for parent in parents) and rule == "run":
            continue  # a dead one has let it run, and may live again
        for attempt in job.attempts:
            for state in sorted((attempt.saw or {}).keys() - fine):
                yield job, f"attempt {attempt.number} saw a parent that was {state}, by {rule}"


def cancelled_for_nothing(account: Account) -> Iterator[Finding]:
    """A dependent was cancelled, and nobody had asked for that, and no parent can have failed."""
    ends = Ends(account)
    for job, parents in dependents(account):
        state = None if job.document is None else job.document.get("state")
        over = state == "cancelled" or (state is None and job.put and not job.attempts)
        if not over or job.maybe_ended_by_request_since < math.inf:
            continue
        rule = rule_of(job)
        if rule == "run" or all(math.isinf(max(0.0, ends.fails(p, rule))) for p in parents):
            yield job, f"it was cancelled, by {rule}, and none of its parents has failed"


LAWS = (ran_before_its_parents, parents_not_visible, cancelled_for_nothing)


def notes(account: Account) -> list[str]:
    """Return figures of it for the report."""
    ends = Ends(account)
    waited, counts = list[float](), {"run": 0, "cancelled": 0}
    largest = 0
    for job, parents in dependents(account):
        counts["run"] += bool(job.attempts)
        counts["cancelled"] += not job.attempts and job.put
        largest = max(largest, len(parents))
        first: Attempt | None = job.attempts[0] if job.attempts else None
        last = max(_ended(parent, ends) for parent in parents)
        if first is not None and last < first.started:
            waited.append(first.started - last)
    if not waited:
        return []
    ran = f"{counts['run']} dependents run, {counts['cancelled']} cancelled"
    return [f"{ran}, the largest after {largest:,} others; {_shown(waited)}"]


def _ended(parent: Job, ends: Ends) -> float:
    """Return when a parent was done, as its last attempt has it; infinity for one that failed."""
    calls = [call.invoked for _, call in parent.completes() if call.maybe_applied]
    return max(calls, default=math.inf) if not math.isinf(ends.done(parent)) else math.inf


def _shown(waited: Sequence[float]) -> str:
    ordered = sorted(waited)
    median, most, longest = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99, 1))
    return (
        f"started {1000 * median:.0f} ms after the last of those was done (median), "
        f"{1000 * most:.0f} ms (99 %), {1000 * longest:.0f} ms at the latest"
    )
