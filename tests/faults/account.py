"""The account of a drill: every job, with all that any process did to it and saw of it.

Built from the histories and the documents left at the end; judged by ``checker.py``.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.history import Line, digest_of, read_histories

LATE = 2.0
"""Seconds after which a write whose outcome nobody learned has been applied, or never will be."""

ENDS = frozenset({"complete", "error", "release"})
"""The calls after which an attempt holds its job no longer."""


@dataclass
class Call:
    """Something that was asked for.

    Attributes:
        outcome: ``acknowledged``, ``refused``, ``failed`` or ``unknown``.
        answered: when the outcome was known; infinity while it is not.
        by_return: the handler left the call to its worker.
    """

    what: str
    invoked: float
    process: str
    said: Mapping[str, Any]
    outcome: str = "unknown"
    answered: float = math.inf

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
        return (self.invoked if math.isinf(self.answered) else self.answered) + LATE


@dataclass
class Attempt:
    """One start of a handler.

    Attributes:
        claimed: when its claim was sent; None when nobody noted that.
        renewals: when its acknowledged renewals were sent.
        cancelled: when its handler was cancelled, or infinity.
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
    calls: list[Call] = field(default_factory=list)
    cancelled: float = math.inf

    def certain_until(self) -> float:
        """Return until when the job was this attempt's for certain."""
        if self.claimed is None:
            return self.started
        progress = [c.invoked for c in self.calls if c.what == "progress" and c.acknowledged]
        sent = max([self.claimed, *self.renewals, *progress])
        ends = [call.invoked for call in self.calls if call.what in ENDS]
        return min([sent + self.lease, self.cancelled, *ends])

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
    """Everything known of one job; puts, attempts and lines in the order of time."""

    id: str
    puts: list[Call] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    claims: dict[str, float] = field(default_factory=dict)
    document: Mapping[str, Any] | None = None
    lines: list[Line] = field(default_factory=list)

    @property
    def put(self) -> bool:
        """Whether a put of it was acknowledged."""
        return any(call.acknowledged for call in self.puts)

    def completes(self) -> list[tuple[Attempt, Call]]:
        return [(attempt, call) for attempt in self.attempts for call in attempt.completes()]

    @property
    def revived(self) -> bool:
        """Whether a repeated put may have come after the job had ended and was gone.

        With its document gone nothing tells the server that this put is a repetition, so the job
        may live twice. Nobody promises more: repeating is safe while the job is in the queue.
        """
        ended = min(
            (call.invoked for _, call in self.completes() if call.maybe_applied), default=math.inf
        )
        return len(self.puts) > 1 and any(call.over > ended for call in self.puts)


@dataclass
class Account:
    """All jobs of a drill, and when operators removed everything."""

    jobs: dict[str, Job]
    clears: list[Call]
    lines: list[Line]

    def cleared(self, job: Job) -> bool:
        """Whether an operator may have removed the job."""
        first_put = min((call.invoked for call in job.puts), default=math.inf)
        return any(clear.maybe_applied and first_put < clear.over for clear in self.clears)

    def counts(self) -> Counter[str]:
        """Return how much there was of everything, for the report."""
        counts: Counter[str] = Counter()
        for job in self.jobs.values():
            counts["jobs"] += 1
            counts["puts of unknown outcome"] += any(call.outcome == "unknown" for call in job.puts)
            counts["attempts"] += len(job.attempts)
            counts["jobs attempted again"] += len(job.attempts) > 1
            counts["revived by a late put"] += job.revived
            counts["dead"] += job.document is not None and job.document.get("state") == "dead"
            for attempt in job.attempts:
                counts["attempts cut short"] += attempt.cut_short()
                for call in attempt.calls:
                    if not call.by_return:
                        counts[f"{call.what} {call.outcome}"] += 1
        return counts


def read_account(directory: Path, documents: Iterable[Mapping[str, Any]]) -> Account:
    """Read what all processes wrote, and what is left in the collection."""
    return account_of(read_histories(directory), documents)


def account_of(lines: list[Line], documents: Iterable[Mapping[str, Any]]) -> Account:
    """Bring lines (in the order of their times) and documents together by job."""
    jobs: dict[str, Job] = {}
    calls: dict[tuple[str, int], Call] = {}
    clears: list[Call] = []
    # A claim is noted by the process that sends it, so a token in another's mouth is another's.
    claimed: dict[tuple[str, str], tuple[float, float]] = {}
    renewals: dict[tuple[str, int], list[Attempt]] = {}
    renewed_at: dict[tuple[str, int], float] = {}
    held: dict[tuple[str, str], list[Attempt]] = defaultdict(list)  # by process and token

    def job_of(line: Line) -> Job:
        job = jobs.setdefault(line.said["job"], Job(line.said["job"]))
        job.lines.append(line)
        return job

    for line in lines:
        said, process = line.said, line.process
        what, state = said["what"], said["is"]
        if what == "claim":
            claimed.setdefault((process, said["token"]), (line.at, said["lease"]))
            for name in said["jobs"]:
                jobs.setdefault(name, Job(name)).claims.setdefault(said["token"], line.at)
        elif what == "renew":
            name = (process, said["renewal"])
            if state == "invoked":
                renewals[name] = [
                    attempt
                    for token in said["tokens"]
                    for attempt in held[process, token]
                    if attempt.job in said["jobs"]
                ]
                renewed_at[name] = line.at
            else:
                for attempt in renewals.pop(name, ()):
                    attempt.renewals.append(renewed_at[name])
        elif what == "attempt" and state == "started":
            sent, lease = claimed.get((process, said["token"]), (None, 0.0))
            attempt = Attempt(
                said["job"], said["token"], said["number"], said["limit"], said["digest"],
                process, line.at, sent, lease,
            )  # fmt: skip
            job_of(line).attempts.append(attempt)
            held[process, said["token"]].append(attempt)
        elif what == "attempt":
            job_of(line)
            for attempt in held[process, said["token"]]:
                if attempt.job == said["job"] and state == "cancelled":
                    attempt.cancelled = min(attempt.cancelled, line.at)
        elif "call" in said:
            if state != "invoked":
                call = calls[process, said["call"]]
                call.outcome, call.answered = state, line.at
                if "job" in call.said:
                    jobs[call.said["job"]].lines.append(line)
                continue
            call = calls[process, said["call"]] = Call(what, line.at, process, said)
            if what == "put":
                job_of(line).puts.append(call)
            elif what == "clear":
                clears.append(call)
            else:
                job_of(line)
                for attempt in held[process, said["token"]]:
                    if attempt.job == said["job"]:
                        attempt.calls.append(call)
    for document in documents:
        name = str(document["_id"])
        jobs.setdefault(name, Job(name)).document = document
    return Account(jobs, clears, lines)


def payload_digest(document: Mapping[str, Any]) -> str | None:
    """Return the digest of a document's payload, or None if that is no mapping."""
    payload = document.get("payload")
    return digest_of(payload) if isinstance(payload, Mapping) else None
