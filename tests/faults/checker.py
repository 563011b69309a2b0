"""The laws that every drill is held to, whatever it broke.

A law is a function that looks at the account and names the jobs that break it; adding one is
adding it to ``LAWS``. What nobody can know is never held against anybody: a call without an answer
may have been applied or not, and only what is certain under both is a violation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.faults.account import Account, Attempt, Job, payload_digest

SLACK = 0.005
"""Seconds: the server keeps whole milliseconds, and its clock may be slewed against ours."""
DUE_SLACK = 0.25
"""Seconds: a put knows the server's time to half a round trip, long on a machine under load."""
LINES_SHOWN = 40

Finding = tuple[Job, str]
Law = Callable[[Account], Iterator[Finding]]


@dataclass(frozen=True)
class Verdict:
    """A law that was broken, for which job, and the lines that show it."""

    law: str
    job: str
    why: str
    lines: Sequence[str]

    def __str__(self) -> str:
        shown = [f"    {line}" for line in self.lines[:LINES_SHOWN]]
        if len(self.lines) > LINES_SHOWN:
            shown.append(f"    … and {len(self.lines) - LINES_SHOWN} more")
        return "\n".join([f"{self.law}: job {self.job}: {self.why}", *shown])


def lost(account: Account) -> Iterator[Finding]:
    """A put was acknowledged, and the job is neither there nor possibly completed."""
    for job in account.jobs.values():
        if not job.put or job.document is not None or account.cleared(job):
            continue
        if not any(call.maybe_applied for _, call in job.completes()):
            yield job, "it was put, nobody completed it, and it is not in the collection"


def unexpected(account: Account) -> Iterator[Finding]:
    """A job was seen that nobody put."""
    for job in account.jobs.values():
        seen = job.attempts or job.document is not None
        if seen and not any(call.maybe_applied for call in job.puts):
            yield job, "it was seen, and nobody put it"


def completed_twice(account: Account) -> Iterator[Finding]:
    """Two completes of one job were acknowledged."""
    for job in account.jobs.values():
        done = [attempt for attempt, call in job.completes() if call.acknowledged]
        if len(done) > 1 and not job.revived:
            numbers = ", ".join(str(attempt.number) for attempt in done)
            yield job, f"{len(done)} completes were acknowledged, of attempts {numbers}"


def overlapping(account: Account) -> Iterator[Finding]:
    """Two attempts held one job for certain at the same time, or share a token."""
    for job in account.jobs.values():
        for one, two in itertools.combinations(job.attempts, 2):
            if one.token == two.token:
                yield job, f"attempts {one.number} and {two.number} have the same token"
            first, second = sorted((one, two), key=lambda attempt: attempt.started)
            both = min(first.certain_until(), second.certain_until()) - second.started
            if both > SLACK:
                yield (
                    job,
                    (
                        f"attempts {first.number} and {second.number} both held it for certain, "
                        f"for {both:.3f} s"
                    ),
                )


def stale_write(account: Account) -> Iterator[Finding]:
    """A call of an attempt was acknowledged although a later attempt held the job by then."""
    for job in account.jobs.values():
        if job.revived:
            continue
        for old, new in itertools.permutations(job.attempts, 2):
            if new.claimed is None or new.claimed < old.started:
                continue
            for call in old.calls:
                if call.acknowledged and call.invoked > new.started:
                    yield (
                        job,
                        (
                            f"{call.what} of attempt {old.number} was accepted although attempt "
                            f"{new.number} had started"
                        ),
                    )


def redelivered(account: Account) -> Iterator[Finding]:
    """An attempt comes from a claim that was sent after a complete was acknowledged."""
    for job in account.jobs.values():
        done = min(
            (call.answered for _, call in job.completes() if call.acknowledged), default=math.inf
        )
        for attempt in job.attempts:
            if attempt.claimed is not None and attempt.claimed > done and not job.revived:
                later = attempt.claimed - done
                yield job, f"attempt {attempt.number} was claimed {later:.3f} s after its complete"


def attempts_miscounted(account: Account) -> Iterator[Finding]:
    """Attempts are counted by claims: each is one more than all before it, up to the limit."""
    for job in account.jobs.values():
        if job.revived:
            continue
        counted = 0
        # As they were claimed: one that was frozen before its handler's first line starts late.
        for attempt in sorted(job.attempts, key=_claimed):
            if attempt.number > attempt.limit:
                yield job, f"attempt {attempt.number} of {attempt.limit}"
            if attempt.number <= counted:
                yield job, f"attempt {attempt.number} has {counted} before it that count"
            claims = sum(1 for sent in job.claims.values() if sent <= attempt.started)
            if attempt.claimed is not None and attempt.number > claims:
                yield job, f"attempt {attempt.number} has only {claims} claims to account for it"
            counted += not attempt.maybe_uncounted()
        yield from _buried_early(job)


def _claimed(attempt: Attempt) -> float:
    return attempt.started if attempt.claimed is None else attempt.claimed


def _buried_early(job: Job) -> Iterator[Finding]:
    """A dead job has used up its attempts, unless a handler discarded it."""
    document = job.document
    if document is None or document.get("state") != "dead":
        return
    discarded = any(_discards(attempt) for attempt in job.attempts)
    if document["attempts"] < document["max_attempts"] and not discarded:
        yield job, f"dead after {document['attempts']} of {document['max_attempts']} attempts"


def _discards(attempt: Attempt) -> bool:
    return any(call.what == "error" and call.said.get("discard") for call in attempt.calls)


def payload_changed(account: Account) -> Iterator[Finding]:
    """A handler, or the collection at the end, has another payload than was put."""
    for job in account.jobs.values():
        put = {call.said["digest"] for call in job.puts}
        if not put:
            continue
        for attempt in job.attempts:
            if attempt.digest not in put:
                yield job, f"attempt {attempt.number} saw another payload than was put"
        if job.document is not None and payload_digest(job.document) not in put:
            yield job, "the stored payload is not the one that was put"


def early(account: Account) -> Iterator[Finding]:
    """A delayed job was started before it was due."""
    for job in account.jobs.values():
        delays = [(call.invoked, call.said.get("delay") or 0.0) for call in job.puts]
        if not delays or not job.attempts:
            continue
        ahead = min(sent + delay for sent, delay in delays) - job.attempts[0].started
        if ahead > DUE_SLACK:
            yield job, f"it was started {ahead:.3f} s before it was due"


def stuck(account: Account) -> Iterator[Finding]:
    """After the drain, with consumers there and time enough, nothing waits and nothing runs."""
    for job in account.jobs.values():
        if job.document is not None and job.document.get("state") not in ("dead", "done"):
            yield job, f"it is still {job.document.get('state')} at the end"


LAWS: tuple[Law, ...] = (
    lost,
    unexpected,
    completed_twice,
    overlapping,
    stale_write,
    redelivered,
    attempts_miscounted,
    payload_changed,
    early,
    stuck,
)


def out_of_order(account: Account) -> Iterator[Finding]:
    """For one consumer with one slot: of what one producer put, one after the other and with one
    priority, the first attempts are in the order of the puts.

    Not one of ``LAWS``: with more than one slot, or with a delay, nobody promises it.
    """
    lanes: dict[tuple[str, str, int], list[Job]] = {}
    for job in account.jobs.values():
        if len(job.puts) == 1 and job.attempts and not job.puts[0].said.get("delay"):
            put = job.puts[0]
            lane = put.process, str(put.said.get("queue")), int(put.said.get("priority") or 0)
            lanes.setdefault(lane, []).append(job)
    for lane in lanes.values():
        lane.sort(key=lambda job: job.puts[0].invoked)
        latest: Job | None = None
        for job in lane:
            if latest is not None and latest.attempts[0].started > job.attempts[0].started:
                before = latest.puts[0].answered
                if before < job.puts[0].invoked:
                    yield job, f"it was put after job {latest.id} and started before it"
            if latest is None or job.attempts[0].started > latest.attempts[0].started:
                latest = job


def check(account: Account, laws: Iterable[Law] = LAWS) -> list[Verdict]:
    """Return every law that is broken, for every job that breaks it."""
    return [
        Verdict(law.__name__, job.id, why, [str(line) for line in job.lines])
        for law in laws
        for job, why in law(account)
    ]
