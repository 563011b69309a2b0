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

from drills import dependency_laws, key_laws, limit_laws
from drills.account import ENDS, Account, Attempt, Call, Finding, Job, payload_digest
from drills.copies import published_in_part
from drills.ends import ENDED, completed_after_cancelled, hung, started_while_paused, told_wrong
from drills.versions import current, versions

SLACK = 0.005
"""Seconds: the server keeps whole milliseconds, and its clock may be slewed against ours."""
DUE_SLACK = 0.25
"""Seconds: a put knows the server's time to half a round trip, long on a machine under load."""
GRACE = 0.25
"""Seconds a handler may take to end once it was cancelled, on a machine under load."""
LINES_SHOWN = 40

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
    """A put was acknowledged, and the job is neither there nor possibly completed or cancelled; one
    that is kept is not there, whatever became of it."""
    for job in account.jobs.values():
        if not job.put or job.document is not None or account.cleared(job):
            continue
        if not (job.maybe_completed or job.maybe_cancelled):
            yield job, "it was put, nobody completed it, and it is not in the collection"
        elif job.kept:
            yield job, "it was put to be kept, and is not in the collection"


def unexpected(account: Account) -> Iterator[Finding]:
    """A job was seen that nobody put."""
    for job in account.jobs.values():
        seen = job.attempts or job.document is not None
        if seen and not any(call.maybe_applied for call in job.puts):
            yield job, "it was seen, and nobody put it"


def completed_twice(account: Account) -> Iterator[Finding]:
    """Two completes of one job were acknowledged."""
    for job in account.jobs.values():
        done = [
            attempt
            for attempt, call in job.completes()
            if call.acknowledged and not _disturbed(job, attempt, call)
        ]
        if len(done) > 1 and not job.revived:
            numbers = ", ".join(str(attempt.number) for attempt in done)
            yield job, f"{len(done)} completes were acknowledged, of attempts {numbers}"


def _disturbed(job: Job, attempt: Attempt, end: Call) -> bool:
    """Whether an operator took the job from an attempt, and another had it, before this answer.

    Who asks again takes a job that is gone for one that it ended itself: its lease has kept
    everybody else away, as far as it can know. That answer says nothing then.
    """
    taken = any(edit.invoked <= end.answered for edit in attempt.disturbed(job.edits))
    others = any(o is not attempt and o.started <= end.answered for o in job.attempts)
    return end.what in ENDS and taken and others


def overlapping(account: Account) -> Iterator[Finding]:
    """Two attempts held one job for certain at the same time, or share a token."""
    for job in account.jobs.values():
        for one, two in itertools.combinations(job.attempts, 2):
            if one.token == two.token:
                yield job, f"attempts {one.number} and {two.number} have the same token"
            first, second = sorted((one, two), key=lambda attempt: attempt.started)
            until = min(first.certain_until(job.edits), second.certain_until(job.edits))
            both = until - second.started
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
                accepted = call.accepted and not _disturbed(job, old, call)
                if accepted and call.invoked > new.started:
                    yield (
                        job,
                        (
                            f"{call.what} of attempt {old.number} was accepted although attempt "
                            f"{new.number} had started"
                        ),
                    )


def held_after_requeue(account: Account) -> Iterator[Finding]:
    """A call of an attempt was acknowledged although an operator had made its job ready since."""
    for job in account.jobs.values():
        for attempt, requeue in itertools.product(job.attempts, job.requeues):
            if not requeue.acknowledged or attempt.started > requeue.invoked:
                continue
            for call in attempt.calls:
                accepted = call.accepted and not _disturbed(job, attempt, call)
                if accepted and call.invoked > requeue.answered:
                    yield job, f"{call.what} of attempt {attempt.number} was accepted after it"


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
        for attempt in job.attempts:
            if attempt.number > attempt.limit:
                yield job, f"attempt {attempt.number} of {attempt.limit}"
            claims = sum(1 for sent in job.claims.values() if sent <= attempt.started)
            if attempt.claimed is not None and attempt.number > claims:
                yield job, f"attempt {attempt.number} has only {claims} claims to account for it"
        for one, two in itertools.permutations(job.attempts, 2):
            if one.maybe_uncounted() or _claimed(one) < _counted_since(job, two):
                continue
            # A claim may take effect long after it was sent, and long before its handler starts.
            if one.started <= _claimed(two) and two.number <= one.number:
                yield job, f"attempt {two.number} came after attempt {one.number}, which counts"
        yield from _same_number(job)
        yield from _buried_early(job)


def _same_number(job: Job) -> Iterator[Finding]:
    """Of two attempts that count one was the second, whichever that was."""
    for one, two in itertools.combinations(job.attempts, 2):
        counts = not one.maybe_uncounted() and not two.maybe_uncounted()
        since = max(_counted_since(job, one), _counted_since(job, two))
        if counts and one.number == two.number and since <= min(_claimed(one), _claimed(two)):
            yield job, f"two attempts have the number {one.number}, and both count"


def _counted_since(job: Job, attempt: Attempt) -> float:
    """Return since when attempts count: an operator's requeue gives a job all of them back."""
    requeues = [call.invoked for call in job.requeues if call.maybe_applied]
    return max((at for at in requeues if at <= attempt.started), default=-math.inf)


def _claimed(attempt: Attempt) -> float:
    return attempt.started if attempt.claimed is None else attempt.claimed


def _buried_early(job: Job) -> Iterator[Finding]:
    """A dead job has used up its attempts, unless a handler discarded it."""
    document = job.document
    if document is None or document.get("state") != "dead":
        return
    discarded = any(_discards(attempt) for attempt in (*job.attempts, *job.doubtful))
    discarded |= any(edit.said["field"] == "state" and edit.maybe_applied for edit in job.edits)
    if document["attempts"] < document["max_attempts"] and not discarded:
        yield job, f"dead after {document['attempts']} of {document['max_attempts']} attempts"


def _discards(attempt: Attempt) -> bool:
    return any(call.what == "error" and call.said.get("discard") for call in attempt.calls)


def payload_changed(account: Account) -> Iterator[Finding]:
    """A handler, or the collection at the end, has another payload than was put or edited.

    A handler sees one that was the job's at some time between the sending of its claim and its
    start: operators edit what waits.
    """
    for job in account.jobs.values():
        if not job.puts:
            continue
        stored = versions(job, "digest")
        for attempt in job.attempts:
            if attempt.digest not in current(stored, *_taken(attempt)):
                yield job, f"attempt {attempt.number} saw another payload than the job had"
        last = current(stored, math.inf, math.inf)
        if job.document is not None and payload_digest(job.document) not in last:
            yield job, "the stored payload is not the one that was put, or edited last"


def misplaced(account: Account) -> Iterator[Finding]:
    """A job was run by the handler of a queue that it was not in."""
    for job in account.jobs.values():
        queues = versions(job, "queue")
        for attempt in job.attempts:
            if attempt.queue is None or not queues or any(v.value is None for v in queues):
                continue
            if attempt.queue not in current(queues, *_taken(attempt)):
                yield job, f"attempt {attempt.number} was run by the handler of {attempt.queue}"


def _taken(attempt: Attempt) -> tuple[float, float]:
    """Return between which times it was decided what the attempt gets."""
    return -math.inf if attempt.claimed is None else attempt.claimed, attempt.started


def early(account: Account) -> Iterator[Finding]:
    """A delayed job was started before it was due."""
    for job in account.jobs.values():
        if not job.puts or not job.attempts:
            continue
        first = job.attempts[0]
        due = current(versions(job, "due"), *_taken(first))
        ahead = min(due, default=-math.inf) - first.started
        if ahead > DUE_SLACK:
            yield job, f"it was started {ahead:.3f} s before it was due"


def stuck(account: Account) -> Iterator[Finding]:
    """After the drain, with consumers there and time enough, nothing waits and nothing runs."""
    for job in account.jobs.values():
        if job.document is not None and job.document.get("state") not in ENDED:
            yield job, f"it is still {job.document.get('state')} at the end"


def effect_lost(account: Account) -> Iterator[Finding]:
    """A transaction was committed, and its effect is not there."""
    for job in account.jobs.values():
        for transaction in job.transactions:
            undone = account.ledger and not transaction.entries
            if transaction.outcome == "committed" and undone:
                yield job, f"transaction {transaction.name[1]} was committed and left nothing"


def effect_doubled(account: Account) -> Iterator[Finding]:
    """The work of a job was done twice: it has two effects."""
    for job in account.jobs.values():
        done = [entry for work in job.transactions for entry in work.entries]
        for what in {entry["what"] for entry in done}:
            count = sum(entry["what"] == what for entry in done)
            if count > 1 and not job.revived:
                yield job, f"it has {count} effects of {what}"


def effect_unexpected(account: Account) -> Iterator[Finding]:
    """An effect is there whose transaction was undone, or whose job is still in the queue."""
    for job in account.jobs.values():
        for transaction in job.transactions:
            if transaction.entries and transaction.outcome == "aborted":
                yield job, f"transaction {transaction.name[1]} was aborted and left an effect"
            for entry in transaction.entries:
                if entry["what"] == "complete" and job.document is not None and not job.revived:
                    yield job, f"its work is done, and it is {job.document.get('state')}"
    for entry in account.strange:
        name = str(entry.get("job"))
        yield account.jobs.get(name, Job(name)), "an effect that nobody's transaction left"


LAWS: tuple[Law, ...] = (
    lost,
    unexpected,
    completed_twice,
    overlapping,
    stale_write,
    held_after_requeue,
    redelivered,
    attempts_miscounted,
    payload_changed,
    misplaced,
    early,
    stuck,
    told_wrong,
    hung,
    completed_after_cancelled,
    started_while_paused,
    published_in_part,
    *key_laws.LAWS,
    *limit_laws.LAWS,
    *dependency_laws.LAWS,
    effect_lost,
    effect_doubled,
    effect_unexpected,
)


def held_by_two(account: Account) -> Iterator[Finding]:
    """A worker's handler ran on although another attempt at its job had started.

    Not one of ``LAWS``, as the next two: they are for drills that neither freeze a process nor
    block its event loop. For how long a process stood still all the same it has noted itself.
    """
    for job in account.jobs.values():
        for first, second in itertools.permutations(job.attempts, 2):
            later = second.claimed is not None and second.claimed >= first.started
            if not (first.kept and later) or math.isinf(first.over):
                continue
            if any(edit.invoked <= second.started for edit in first.disturbed(job.edits)):
                continue  # nobody tells a worker; it learns of it by its next renewal
            ran_on = first.over - second.started
            if ran_on > GRACE + account.stood_still(first):
                yield (
                    job,
                    (
                        f"the handler of attempt {first.number} ran on for {ran_on:.3f} s after "
                        f"attempt {second.number} had started"
                    ),
                )


def ran_on(account: Account) -> Iterator[Finding]:
    """A worker's handler ran on when its lease was over by the clock of its own process."""
    for job in account.jobs.values():
        for attempt in job.attempts:
            if not attempt.kept or attempt.claimed is None or math.isinf(attempt.over):
                continue
            slack = GRACE + account.stood_still(attempt)
            without = attempt.over - attempt.may_last(slack)
            if without > slack:
                yield job, f"attempt {attempt.number} ran on for {without:.3f} s without a lease"


def started_late(account: Account) -> Iterator[Finding]:
    """An attempt was started when the lease of its claim was over."""
    for job in account.jobs.values():
        for attempt in job.attempts:
            if attempt.claimed is None or attempt.renewals:
                continue
            late = attempt.started - attempt.claimed - attempt.lease
            if late > GRACE + account.stood_still(attempt):
                yield job, f"attempt {attempt.number} was started {late:.3f} s after its lease"


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
    for jobs in lanes.values():
        jobs.sort(key=lambda job: job.puts[0].invoked)
        latest: Job | None = None
        for job in jobs:
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
