"""The account of a drill: every job, with all that any process did to it and saw of it.

Built from the histories and the documents left at the end by ``reading.py``; judged by
``checker.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drills.history import Line, digest_of
from drills.transactions import Transaction

LATE = 2.0
"""Seconds after which a write whose outcome nobody learned has been applied, or never will be;
where messages are held back, so much after the longest of these times."""

ENDS = frozenset({"complete", "error", "release", "cancel"})
"""The calls after which an attempt holds its job no longer."""


@dataclass
class Call:
    """Something that was asked for.

    Attributes:
        outcome: ``acknowledged``, ``refused``, ``failed`` or ``unknown``.
        answered: when the outcome was known; infinity while it is not.
        by_return: the handler left the call to its worker.
        late: seconds after which it has been applied, or never will be.
        answer: what was answered besides.
    """

    what: str
    invoked: float
    process: str
    said: Mapping[str, Any]
    outcome: str = "unknown"
    answered: float = math.inf
    late: float = LATE
    answer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> str | None:
        """What was answered to one who asked about a job; None if nothing was."""
        return self.answer.get("told")

    @property
    def accepted(self) -> bool:
        """Whether the server has done it for certain. Progress with a count may not have been sent:
        many calls share a write."""
        return self.acknowledged and "count" not in self.said

    @property
    def renews(self) -> bool:
        """Whether it has renewed a lease for certain."""
        return self.what == "progress" and self.accepted

    @property
    def asks(self) -> bool:
        """Whether it may have cancelled a job, or asked whoever runs it."""
        return self.told in (None, "cancelled", "asked")

    @property
    def by_return(self) -> bool:
        return self.said.get("by") == "return"

    @property
    def acknowledged(self) -> bool:
        return self.outcome == "acknowledged"

    @property
    def maybe_applied(self) -> bool:
        return self.outcome in ("acknowledged", "unknown")

    @property
    def over(self) -> float:
        """The time after which it changes nothing any more."""
        if self.acknowledged:
            return self.answered
        return (self.invoked if math.isinf(self.answered) else self.answered) + self.late


@dataclass
class Attempt:
    """One start of a handler.

    Attributes:
        claimed: when its claim was sent; None when nobody noted that.
        renewals: when its acknowledged renewals were sent.
        tried: when renewals of it were sent, whatever became of them.
        cancelled: when its handler was cancelled, or infinity.
        undone: when the transaction it worked in was aborted, or infinity: the handler ends by it.
        kept: its handler is cancelled when the lease ends.
        queue: the queue whose handler it is; None when nobody noted that.
        locked: when the server took the job for it, in milliseconds; None likewise.
        saw: how many of the job's parents it has seen in which state; None when it did not look.
    """

    job: str
    token: str
    number: int
    limit: int
    digest: str
    process: str
    started: float
    claimed: float | None = None
    lease: float = 0.0
    renewals: list[float] = field(default_factory=list)
    tried: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    cancelled: float = math.inf
    undone: float = math.inf
    kept: bool = False
    queue: str | None = None
    locked: int | None = None
    saw: Mapping[str, int] | None = None

    def certain_until(self, edits: Sequence[Call] = ()) -> float:
        """Return until when the job was this attempt's for certain, whatever operators did to it.

        A lease that one of them has ended by hand is certain again once a renewal sent after that
        was acknowledged; a job that one has buried is nobody's.
        """
        if self.claimed is None:
            return self.started
        sent = max([self.claimed, *self.renewals, *(c.invoked for c in self.calls if c.renews)])
        taken = [
            edit.invoked
            for edit in self.disturbed(edits)
            if edit.said["field"] == "state" or sent <= edit.over
        ]
        return min([sent + self.lease, self.over, *taken])

    def may_last(self, slack: float) -> float:
        """Return until when its own process can have believed that it holds the job.

        By the renewals it sent, were they all acknowledged: one sent when the lease was over (and
        `slack` beyond) cannot have been of this attempt's doing.
        """
        until = (self.started if self.claimed is None else self.claimed) + self.lease
        for sent in self.tried:
            if sent > until + slack:
                break
            until = max(until, sent + self.lease)
        return until

    def disturbed(self, edits: Sequence[Call]) -> list[Call]:
        """Return the edits that may have taken its job away while it held it."""
        return [
            edit
            for edit in edits
            if edit.said["field"] in ("locked_until", "state")
            and edit.maybe_applied
            and edit.over >= (self.started if self.claimed is None else self.claimed)
        ]

    @property
    def over(self) -> float:
        """When its handler was over, or had said how it ends; infinity when nobody noted that."""
        return min(
            [
                self.cancelled,
                self.undone,
                *(call.invoked for call in self.calls if call.what in ENDS),
            ]
        )

    def completes(self) -> list[Call]:
        return [call for call in self.calls if call.what == "complete"]

    def cut_short(self) -> bool:
        """Whether its process died before the handler came to an end."""
        return math.isinf(self.cancelled) and not any(call.what in ENDS for call in self.calls)

    def maybe_uncounted(self) -> bool:
        """Whether it may have been given back without counting."""
        if not math.isinf(self.cancelled):
            return True  # by the end of the drain time, perhaps
        return any(call.what == "release" and call.maybe_applied for call in self.calls)


@dataclass
class Job:
    """Everything known of one job; puts, attempts, edits and lines in the order of time.

    Attributes:
        doubtful: attempts of which nobody can say whether they were at this job or at one that had
            its id before.
        edits: what operators changed by hand.
        requeues: when they made it ready from dead.
        cancels: when somebody cancelled it.
        waits: when somebody asked what becomes of it.
    """

    id: str
    puts: list[Call] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    doubtful: list[Attempt] = field(default_factory=list)
    edits: list[Call] = field(default_factory=list)
    requeues: list[Call] = field(default_factory=list)
    cancels: list[Call] = field(default_factory=list)
    waits: list[Call] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    claims: dict[str, float] = field(default_factory=dict)
    document: Mapping[str, Any] | None = None
    lines: list[Line] = field(default_factory=list)

    @property
    def put(self) -> bool:
        """Whether a put of it was acknowledged."""
        return any(call.acknowledged for call in self.puts)

    @property
    def kept(self) -> bool:
        """Whether it was put to be kept, longer than any drill takes."""
        return any(call.said.get("keep") for call in self.puts)

    @property
    def stays(self) -> bool:
        """Whether it is there for a while when it has ended: kept, or waited for from its put."""
        return self.kept or any(call.said.get("awaited") for call in self.puts)

    @property
    def maybe_cancelled(self) -> bool:
        """Whether it may have ended as cancelled: by somebody, by its handler, or as expired."""
        return self.maybe_cancelled_since < math.inf

    @property
    def maybe_cancelled_since(self) -> float:
        """Since when it may have; infinity if it cannot. Whether a parent of a dependent has failed
        is left to the laws about those."""
        follows = [c for c in self.puts if c.said.get("after")]
        since = [c.invoked for c in follows if c.said.get("if_parent_fails") != "run"]
        return min([*since, self.maybe_ended_by_request_since])

    @property
    def maybe_ended_by_request_since(self) -> float:
        """The same, but for what becomes of it because of its parents."""
        attempts = (*self.attempts, *self.doubtful)
        by_handlers = [c for attempt in attempts for c in attempt.calls if c.what == "cancel"]
        cancels = [call for call in self.cancels if call.asks]
        since = [call.invoked for call in (*by_handlers, *cancels)]
        # One that lets go of its key when it is claimed ends so if another has that when it is to
        # wait again.
        since += [call.invoked for call in self.puts if call.said.get("key_until") == "start"]
        limits = [(call.invoked, call.said.get("expires")) for call in self.puts]
        return min(
            [*since, *(put + limit for put, limit in limits if limit is not None)],
            default=math.inf,
        )

    def completes(self) -> list[tuple[Attempt, Call]]:
        return [(attempt, call) for attempt in self.attempts for call in attempt.completes()]

    @property
    def maybe_completed(self) -> bool:
        """Whether anybody may have completed it."""
        return any(
            call.maybe_applied
            for attempt in (*self.attempts, *self.doubtful)
            for call in attempt.completes()
        )

    @property
    def revived(self) -> bool:
        """Whether a repeated put may have come after the job had ended and was gone.

        With its document gone nothing tells the server that this put is a repetition, so the job
        may live twice. Nobody promises more: repeating is safe while the job is in the queue. Also
        a complete that was refused may have been applied, by a try whose reply was lost: asked for
        afterwards, the job of the repeated put stands there.
        """
        if self.stays:
            return False  # its document is still there
        ended = min((call.invoked for _, call in self.completes()), default=math.inf)
        ended = min(ended, self.maybe_cancelled_since)
        return len(self.puts) > 1 and any(call.over > ended for call in self.puts)


@dataclass
class Pause:
    """A time in which a queue was paused for certain.

    Attributes:
        since: when ``pause()`` had returned.
        until: when ``resume()`` was called; infinity while nobody has.
    """

    queue: str
    since: float
    until: float = math.inf


@dataclass
class Account:
    """All jobs of a drill, and when operators removed everything.

    Attributes:
        strange: entries of the ledger that no transaction accounts for.
        late: when the event loop of which process had stood still, and for how many seconds.
        ledger: whether the drill has one.
        pauses: when which queue was paused.
        limits: the calls that set limits of queues, in the order of time.
        ordered: the queues whose groups are.
    """

    jobs: dict[str, Job]
    clears: list[Call]
    lines: list[Line]
    strange: list[Mapping[str, Any]] = field(default_factory=list)
    late: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    ledger: bool = False
    pauses: list[Pause] = field(default_factory=list)
    limits: list[Call] = field(default_factory=list)
    ordered: set[str] = field(default_factory=set)

    def stood_still(self, attempt: Attempt) -> float:
        """Return for how long its process stood still, from its claim to right after its end."""
        since = attempt.started if attempt.claimed is None else attempt.claimed
        return sum(
            seconds
            for until, seconds in self.late.get(attempt.process, ())
            if until >= since and until - seconds <= attempt.over + LATE
        )

    def cleared(self, job: Job) -> bool:
        """Whether an operator may have removed the job."""
        first_put = min((call.invoked for call in job.puts), default=math.inf)
        return any(clear.maybe_applied and first_put < clear.over for clear in self.clears)

    def counts(self) -> Counter[str]:
        """Return how much there was of everything, for the report."""
        counts: Counter[str] = Counter(pauses=len(self.pauses))
        for job in self.jobs.values():
            counts["jobs"] += 1
            counts["puts of unknown outcome"] += any(call.outcome == "unknown" for call in job.puts)
            counts["attempts"] += len(job.attempts)
            counts["jobs attempted again"] += len(job.attempts) > 1
            counts["revived by a late put"] += job.revived
            for edit in job.edits:
                counts[f"{edit.said['field']} edited"] += edit.acknowledged
            counts["requeued by hand"] += sum(call.acknowledged for call in job.requeues)
            counts["put again"] += any(call.said.get("again") for call in job.puts)
            for call in job.waits:
                counts[f"told {call.told or 'nothing'}"] += 1
            for call in job.cancels:
                counts[f"cancels told {call.told or 'nothing'}"] += 1
            for transaction in job.transactions:
                counts[f"transactions {transaction.outcome}"] += 1
            counts["dead"] += job.document is not None and job.document.get("state") == "dead"
            for attempt in job.attempts:
                counts["handlers cancelled"] += not math.isinf(attempt.cancelled)
                counts["attempts cut short"] += attempt.cut_short()
                for call in attempt.calls:
                    if not call.by_return:
                        counts[f"{call.what} {call.outcome}"] += 1
        return counts


Finding = tuple[Job, str]
"""A job that breaks a law, and how."""


def payload_digest(document: Mapping[str, Any]) -> str | None:
    """Return the digest of a document's payload, or None if that is no mapping."""
    payload = document.get("payload")
    return digest_of(payload) if isinstance(payload, Mapping) else None
