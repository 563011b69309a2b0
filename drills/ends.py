"""What people are told of the ends of jobs, and what pauses hold back: laws of the checker.

Whoever asks about a job is told one end, the same as everybody else: the collection at the end of
the drill is one more of those who say it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from drills.account import Account, Attempt, Call, Finding, Job, Pause

ENDED = ("dead", "done", "cancelled")
LONGEST_WAIT = 15.0
"""Seconds after which somebody who waits for a job that has ended hangs: time for an election, a
silent connection and a slow machine."""
PAUSE_HEEDED = 2.0
"""Seconds in which everybody obeys a pause, also who has no stream, or has lost it."""
PAUSE_SLACK = 1.0
"""Seconds by which what is read of a primary just elected may be older than what was acknowledged;
and between the decision to claim and its sending, on a machine under load."""


@dataclass(frozen=True)
class Told:
    """What somebody said of a job.

    Attributes:
        asked: when the question was sent.
        at: when the answer was there.
        result: of a done job: the token of the attempt that completed it.
    """

    by: str
    state: str
    asked: float
    at: float
    result: Any = None

    def __str__(self) -> str:
        return f"{self.state} with the result {self.result}" if self.result else self.state

    def agrees(self, other: Told) -> bool:
        """Whether both can be true."""
        return (self.state, self.result) == (other.state, other.result)


def told(job: Job) -> list[Told]:
    """Return what people were told of a job, in the order of the answers."""
    calls = [call for call in (*job.waits, *job.cancels) if call.told is not None]
    return sorted((_told(call) for call in calls), key=lambda told: told.at)


def _told(call: Call) -> Told:
    by = call.said.get("by", call.what)
    result = call.answer.get("result")
    return Told(by, str(call.told), call.invoked, call.answered, result)


def ends_told(job: Job) -> list[Told]:
    """Return the ends that people were told, and the one that the collection has."""
    ends = [each for each in told(job) if each.state in ENDED]
    document = job.document
    if document is not None and document.get("state") in ENDED:
        state, result = str(document["state"]), document.get("result")
        ends.append(Told("the collection", state, math.inf, math.inf, result))
    return ends


def _asked_about(account: Account) -> Iterator[Job]:
    """Yield the jobs that somebody asked about, of those that have one life and one end."""
    for job in account.jobs.values():
        if not (job.waits or job.cancels) or job.revived or account.cleared(job):
            continue
        if not job.requeues and not job.edits:
            yield job


def told_wrong(account: Account) -> Iterator[Finding]:
    """Somebody was told of an end that the job did not have, or of none when it had one."""
    for job in _asked_about(account):
        ends = ends_told(job)
        for one, other in itertools.pairwise(ends):
            if not one.agrees(other):
                yield job, f"{one.by} said {one}, and {other.by} said {other}"
        if ends:
            yield from _impossible(job, ends[0])
        yield from _not_found(job)
        yield from _old_news(job, ends)


def _impossible(job: Job, end: Told) -> Iterator[Finding]:
    """Look at an end by what the attempts and those who cancel have done until then."""
    by = {a.token: call for a, call in job.completes() if call.invoked <= end.at}
    acknowledged = [token for token, call in by.items() if call.acknowledged]
    if end.state != "done":
        if acknowledged:
            yield job, f"{end.by} said {end}, and a complete was acknowledged"
        if end.state == "cancelled" and job.maybe_cancelled_since > end.at:
            yield job, f"{end.by} said {end}, and nobody had cancelled it"
        return
    if not any(call.maybe_applied for call in by.values()) and not job.doubtful:
        yield job, f"{end.by} said {end}, and nobody had completed it"
    if not any(put.said["payload"].get("answers") for put in job.puts if "payload" in put.said):
        return
    if end.result not in by or not by[end.result].maybe_applied:
        yield job, f"{end.by} said {end}, which no complete had"
    elif acknowledged and end.result not in acknowledged:
        yield job, f"{end.by} said {end}, and the complete of {acknowledged[0]} was acknowledged"


def _not_found(job: Job) -> Iterator[Finding]:
    """A job that had been put was not found, though it is kept or nobody may have ended it."""
    there = min((put.answered for put in job.puts if put.acknowledged), default=math.inf)
    for each in told(job):
        if each.state != "not found" or each.asked < there:
            continue
        if job.stays:
            yield job, f"{each.by} did not find it, and it is kept"
        elif each.at < min([job.maybe_cancelled_since, *_completed(job)]):
            yield job, f"{each.by} did not find it before its end"


def _completed(job: Job) -> list[float]:
    """Return when somebody may have completed it."""
    return [call.invoked for _, call in job.completes() if call.maybe_applied]


def _old_news(job: Job, ends: list[Told]) -> Iterator[Finding]:
    """Somebody was told that a job lives when another knew of its end, or that it had ended and it
    was claimed later."""
    known = min((end.at for end in ends), default=math.inf)
    for each in told(job):
        lives = each.by in ("get", "cancel") and each.state not in (*ENDED, "not found", "ended")
        if lives and each.state not in ("late", "error") and each.asked > known:
            late = each.asked - known
            yield job, f"{each.by} said {each} {late:.3f} s after its end was known"
        if each.state in (*ENDED, "ended") and each.state != "cancelled":
            for attempt in _claimed_after(job, each.at):
                yield job, f"attempt {attempt.number} was claimed after {each.by} said {each}"


def _claimed_after(job: Job, at: float) -> list[Attempt]:
    return [a for a in job.attempts if a.claimed is not None and a.claimed > at]


def hung(account: Account) -> Iterator[Finding]:
    """Somebody waited on for a job that had ended, or still does when the drill is over."""
    for job in account.jobs.values():
        for call in job.waits:
            if math.isinf(call.answered):
                yield job, f"{call.said['by']} has no answer at the end of the drill"
            elif (waited := waited_after_end(job, call)) > LONGEST_WAIT:
                yield job, f"{call.said['by']} was told {call.told} {waited:.1f} s after its end"


def waited_after_end(job: Job, call: Call) -> float:
    """Return how long somebody waited for an answer when the job had ended for certain."""
    ends = [end.at for end in ends_told(job)]
    ends += [each.answered for _, each in job.completes() if each.acknowledged]
    ended = min(ends, default=math.inf)
    return call.answered - max(ended, call.invoked)


def completed_after_cancelled(account: Account) -> Iterator[Finding]:
    """A complete was acknowledged of a job that had ended as cancelled, or that was started after
    somebody knew of that, or had been told that it is asked to end."""
    for job in _asked_about(account):
        cancelled = [end for end in ends_told(job) if end.state == "cancelled"]
        seen = min((end.at for end in cancelled), default=math.inf)
        for attempt, call in job.completes():
            if call.acknowledged and (call.answered > seen or job_is_cancelled(job)):
                yield job, f"attempt {attempt.number} completed it, and it was cancelled"
        asked = [call.answered for call in job.cancels if call.told == "asked"]
        for attempt in _claimed_after(job, min([seen, *asked])):
            yield job, f"attempt {attempt.number} was claimed after it was cancelled"


def job_is_cancelled(job: Job) -> bool:
    """Whether the collection says so at the end of the drill."""
    return job.document is not None and job.document.get("state") == "cancelled"


def started_while_paused(account: Account) -> Iterator[Finding]:
    """A claim was sent when its queue had been paused for long enough to know."""
    for job, attempt, late in claims_in_pauses(account):
        if late > PAUSE_HEEDED + PAUSE_SLACK + account.stood_still(attempt):
            yield job, f"attempt {attempt.number} was claimed {late:.3f} s after its queue's pause"


def claims_in_pauses(account: Account) -> Iterator[tuple[Job, Attempt, float]]:
    """Yield the attempts whose claim was sent in a pause, and how long after its beginning."""
    for job in account.jobs.values():
        for attempt in job.attempts:
            pause = _pause_at(account, attempt)
            if pause is not None:
                yield job, attempt, (attempt.claimed or 0.0) - pause.since


def _pause_at(account: Account, attempt: Attempt) -> Pause | None:
    if attempt.claimed is None or attempt.queue is None:
        return None
    for pause in account.pauses:
        if pause.queue == attempt.queue and pause.since < attempt.claimed < pause.until:
            return pause
    return None


def notes(account: Account) -> list[str]:
    """Return figures of it for the report."""
    waits = sorted(
        waited
        for job in account.jobs.values()
        for call in job.waits
        if call.told in ENDED and 0 < (waited := waited_after_end(job, call)) < math.inf
    )
    found = []
    if waits:
        median, longest = 1000 * waits[len(waits) // 2], 1000 * waits[-1]
        found.append(f"told {median:.0f} ms after the end (median), {longest:.0f} ms at the latest")
    if account.pauses:
        late = [late for *_, late in claims_in_pauses(account)]
        latest = f", the latest {1000 * max(late):.0f} ms after its begin" if late else ""
        found.append(f"{len(late)} attempts claimed in {len(account.pauses)} pauses{latest}")
    return found
