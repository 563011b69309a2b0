"""Claims that were given up, and are undone until it is certain that they took nothing.

A claim without an answer may have been applied, or be applied yet: a message can be held up for
longer than anybody waited for it. Then nobody holds the job, its lease runs, and its attempt
counts. So the token of such a claim is remembered, and what carries it is given back, again and
again, until the server has said so at a moment from which on the claim can change nothing more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from bson.errors import BSONError
from pymongo.errors import OperationFailure

from ..backoff import Backoff
from ..clock import monotonic
from ..protocol import operations
from ..protocol.document import id_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from ..protocol.terms import KeepOf, LimitOf

AGAIN = Backoff(initial=0.25, maximum=2, factor=2, jitter=0.5)
"""The wait between two tries: many of them fit into a lease, after which the job would be returned
as from a consumer that died."""
LONGEST_JOURNEY = 15.0
"""Seconds after which a claim that has not reached the server changes nothing more. Nobody waits
for it as long: a command has ten."""
CLOCK_ERROR = 1.0
"""Seconds by which the server's time may be off, as a client knows it."""
MOST = 1000
"""Claims remembered. In an outage they are given up at the pace of the tries, so that is hours."""


@dataclass(slots=True)
class Claim:
    """One command that claims: what it is for, and what must be known to undo it.

    Attributes:
        ids: of the jobs that it is to take.
        queues: that they are to be in.
        timeout: the lease, in seconds.
        now: the server's time, as far as it is known.
        limit_of: says, for a queue, how many attempts a job has that does not say.
        keep_of: says, for a queue, how long a job stays that does not say.
        token: of this command, and of no other.
        sent: :func:`monotonic` time from before it is sent.
        slots: those that each of them is to have, if they have rules.
        void_at: from when on it must change nothing, by the server's clock, for the sake of a rate.
    """

    ids: Sequence[Any]
    queues: Sequence[str]
    timeout: float
    now: datetime
    limit_of: LimitOf
    keep_of: KeepOf = operations.not_kept
    token: bytes = field(default_factory=operations.new_token)
    sent: float = field(default_factory=monotonic)
    slots: Sequence[Sequence[str]] | None = None
    void_at: datetime | None = None

    @classmethod
    def of(
        cls,
        jobs: Sequence[Mapping[str, Any]],
        timeout: float,
        now: datetime,
        limit_of: LimitOf,
        keep_of: KeepOf = operations.not_kept,
    ) -> Claim:
        """Return a claim of these jobs."""
        queues = sorted({job["queue"] for job in jobs})
        claim = cls([job["_id"] for job in jobs], queues, timeout, now, limit_of, keep_of)
        if jobs and "slots" in jobs[0]:
            # (One beside it has none where rules were taken away since it was chosen.)
            claim.slots = [job.get("slots", ()) for job in jobs]
            claim.void_at = _void_at(jobs)
        return claim

    def each(self, jobs: Sequence[Mapping[str, Any]], consumer: str) -> list[operations.Update]:
        """Return what is sent to claim each of its jobs by itself, with the token of all."""
        parts = []
        for job in jobs:
            part = replace(self, ids=[job["_id"]], slots=[job.get("slots", ())])
            part.void_at = _void_at([job])
            parts.append(part.update(consumer))
        return parts

    def update(self, consumer: str) -> operations.Update:
        """Return what is sent."""
        until = self.now + timedelta(seconds=self._journey)
        if self.void_at is not None:
            until = min(until, self.void_at)
        slots = None if self.slots is None else operations.slots_of(self.ids, self.slots)
        terms = (until, self.limit_of, self.keep_of, slots)
        return operations.claim(self.ids, self.queues, consumer, self.token, self.timeout, *terms)

    @property
    def _journey(self) -> float:
        # One that takes longer than its lease is given back in any case.
        return min(self.timeout, LONGEST_JOURNEY) + CLOCK_ERROR

    def without(self, documents: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the ids of those that are not among these documents."""
        there = {id_key(document["_id"]) for document in documents}
        return [job_id for job_id in self.ids if id_key(job_id) not in there]

    def in_order(self, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return them in the order that was asked for."""
        # (One that was removed and came again may have its id in another form: 5.0 is 5.)
        place = {id_key(job_id): number for number, job_id in enumerate(self.ids)}
        return sorted(documents, key=lambda document: place.get(id_key(document["_id"]), 0))

    def given_up(self, error: BaseException) -> GivenUp:
        """Return what is remembered of it when it failed like that."""
        if isinstance(error, (OperationFailure, BSONError)):  # it was answered: it is over
            return GivenUp(self.ids, {self.token})
        over = self.sent + self._journey + CLOCK_ERROR
        return GivenUp(self.ids, {self.token}, over, over + self.timeout)


def _void_at(jobs: Iterable[Mapping[str, Any]]) -> datetime | None:
    """Return when the first of the starts is void that some jobs were chosen with, if they were."""
    voids = [start.until for job in jobs for _, _, start in job.get("starts", ())]
    return min(voids, default=None)


@dataclass(slots=True, eq=False)
class GivenUp:
    """Jobs to be given back, if they carry one of these tokens.

    Attributes:
        certain_from: :func:`monotonic` time from which on one answer is enough; before, the claim
            may still be applied.
        forget_at: when their leases have ended, whatever became of them.
        partial: other jobs may have been claimed with these tokens, and run.
    """

    ids: Sequence[Any]
    tokens: Collection[bytes]
    certain_from: float = -math.inf
    forget_at: float = math.inf
    partial: bool = False

    @classmethod
    def of(cls, pairs: Iterable[tuple[Any, bytes]]) -> Self:
        """Return what gives back these jobs, each with the token that it was claimed with."""
        claimed = list(pairs)
        ids, tokens = [job_id for job_id, _ in claimed], {token for _, token in claimed}
        return cls(ids, tokens, partial=True)

    @classmethod
    def of_documents(cls, documents: Iterable[Mapping[str, Any]]) -> Self:
        """The same for jobs as a claim has returned them."""
        return cls.of((document["_id"], document["lease"]) for document in documents)


class GivenUpClaims:
    """What is to be given back, and when it is tried again."""

    def __init__(self) -> None:
        self._claims: list[GivenUp] = []
        self._tries = 0
        self._again_at = -math.inf

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, claim: GivenUp) -> None:
        """Remember one; it is tried at once."""
        self._claims = [*self._claims[1 - MOST :], claim]
        self._tries = 0
        self._again_at = -math.inf

    def wait(self) -> float:
        """Return the seconds until the next try; infinity with none to come."""
        return max(0.0, self._again_at - monotonic()) if self._claims else math.inf

    def due(self) -> list[GivenUp]:
        """Return those that are to be tried now."""
        return list(self._claims) if self._again_at <= monotonic() else []

    def tried(
        self, claims: Collection[GivenUp], sent: float, answered: Collection[GivenUp]
    ) -> None:
        """Note a try, sent at that time, and those of them that the server has acknowledged."""
        done = [
            claim
            for claim in claims
            if claim.forget_at <= sent or (claim in answered and claim.certain_from <= sent)
        ]
        self._claims = [claim for claim in self._claims if claim not in done]
        self._tries += 1
        self._again_at = monotonic() + AGAIN.delay(self._tries)


def together(claims: Sequence[GivenUp]) -> list[list[GivenUp]]:
    """Return the same in groups, each of which one command gives back, as few as are exact.

    A command pairs each job with each token. Of claims that were given up as a whole no job runs,
    so they share one. Where only some jobs of a claim are given back, another of its jobs may stand
    in another of these, with an older token: together they would give back what runs.
    """
    whole = [claim for claim in claims if not claim.partial]
    groups = [whole] if whole else []
    return groups + [[claim] for claim in claims if claim.partial]


def merged(claims: Sequence[GivenUp]) -> tuple[list[Any], set[bytes]]:
    """Return the jobs and the tokens of all of these."""
    ids = [job_id for claim in claims for job_id in claim.ids]
    return ids, {token for claim in claims for token in claim.tokens}
