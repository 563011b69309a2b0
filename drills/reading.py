"""Reads what all processes wrote into an account: every job, with all that was done to it."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from drills.account import LATE, Account, Attempt, Call, Job, Pause
from drills.history import Line, read_histories
from drills.transactions import Transaction, settle

Documents = Iterable[Mapping[str, Any]]


def read_account(
    directory: Path, documents: Documents, entries: Documents | None = None
) -> Account:
    """Read what all processes wrote, what is left in the collection, and the ledger if any."""
    return account_of(read_histories(directory), documents, entries)


def account_of(
    lines: list[Line], documents: Documents, entries: Documents | None = None
) -> Account:
    """Bring lines (in the order of their times), documents and entries together by job."""
    reader = _Reader(lines)
    for line in lines:
        reader.read(line)
    strange = settle(reader.transactions, entries)
    for document in documents:
        if "state" in document or "unique_until" not in document:  # what only holds a key is no job
            reader.job(str(document["_id"])).document = document
    jobs = {
        f"{job.id}, life {number}" if number > 1 else job.id: life
        for job in reader.jobs.values()
        for number, life in enumerate(lives(job), 1)
    }
    return Account(
        jobs, reader.clears, lines, strange, reader.late,
        ledger=entries is not None, pauses=reader.pauses,
        limits=reader.limits, ordered=reader.ordered,
    )  # fmt: skip


class _Reader:
    """Takes lines, one after the other."""

    def __init__(self, lines: list[Line]) -> None:
        self.jobs: dict[str, Job] = {}
        self.clears: list[Call] = []
        self.pauses: list[Pause] = []
        self.limits: list[Call] = []
        self.ordered: set[str] = set()
        self.transactions: dict[tuple[str, int], Transaction] = {}
        self.late: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._calls: dict[tuple[str, int], Call] = {}
        # A claim is noted by the process that sends it, so a token in another's mouth is another's.
        self._claimed: dict[tuple[str, str], tuple[float, float]] = {}
        self._renewals: dict[tuple[str, int], tuple[float, Line]] = {}
        # Of jobs whose claim was answered late: renewed before their handlers have noted a start.
        self._early: dict[tuple[str, str, str], list[tuple[str, float]]] = defaultdict(list)
        self._held: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
        holds = [line.said["seconds"] for line in lines if line.said["what"] == "hold"]
        self._late_by = LATE + max(holds, default=0.0)

    def job(self, name: str) -> Job:
        return self.jobs.setdefault(name, Job(name))

    def read(self, line: Line) -> None:
        what = line.said["what"]
        if "call" in line.said:
            self._call(line)
        elif what in ("claim", "renew", "attempt", "transaction"):
            getattr(self, f"_{what}")(line)
        elif what == "order":
            self.ordered.add(line.said["queue"])
        elif what == "process" and line.said["is"] == "late":
            self.late[line.process].append((line.at, line.said["seconds"]))

    def _of(self, line: Line) -> Job:
        job = self.job(line.said["job"])
        job.lines.append(line)
        return job

    def _claim(self, line: Line) -> None:
        said = line.said
        self._claimed.setdefault((line.process, said["token"]), (line.at, said["lease"]))
        for name in said["jobs"]:
            self.job(name).claims.setdefault(said["token"], line.at)

    def _renew(self, line: Line) -> None:
        said, name = line.said, (line.process, line.said["renewal"])
        if said["is"] == "invoked":
            self._renewals[name] = line.at, line
            self._note(line, "tried", line.at)
        elif name in self._renewals:
            sent, invoked = self._renewals.pop(name)
            self._note(invoked, "renewals", sent)

    def _note(self, renewal: Line, what: str, at: float) -> None:
        """Note a renewal with all attempts that it was for, those to come included."""
        for token in renewal.said["tokens"]:
            held = self._held[renewal.process, token]
            for job in renewal.said["jobs"]:
                started = [attempt for attempt in held if attempt.job == job]
                for attempt in started:
                    getattr(attempt, what).append(at)
                if not started:
                    self._early[renewal.process, token, job].append((what, at))

    def _attempt(self, line: Line) -> None:
        said, name = line.said, (line.process, line.said["token"])
        job = self._of(line)
        if said["is"] == "started":
            sent, lease = self._claimed.get(name, (None, 0.0))
            attempt = Attempt(
                job.id, said["token"], said["number"], said["limit"], said["digest"],
                line.process, line.at, sent, lease,
                kept=bool(said.get("kept")), queue=said.get("queue"),
                locked=said.get("locked"),
            )  # fmt: skip
            for what, at in self._early.pop((*name, job.id), ()):
                getattr(attempt, what).append(at)
            job.attempts.append(attempt)
            self._held[name].append(attempt)
            return
        for attempt in self._held[name]:
            if attempt.job == job.id and said["is"] == "cancelled":
                attempt.cancelled = min(attempt.cancelled, line.at)
            elif attempt.job == job.id and said["is"] == "saw":
                attempt.saw = said["parents"]

    def _transaction(self, line: Line) -> None:
        name = line.process, line.said["transaction"]
        if line.said["is"] == "begun":
            job = self._of(line)
            held = self._held[line.process, line.said.get("token", "")]
            attempts = [attempt for attempt in held if attempt.job == job.id]
            self.transactions[name] = Transaction(job.id, name, line.at, attempts)
            job.transactions.append(self.transactions[name])
            return
        transaction = self.transactions[name]
        transaction.outcome = line.said["is"]
        if transaction.outcome == "committed":
            transaction.ended = line.at
        elif transaction.outcome == "aborted":
            for attempt in transaction.attempts:
                attempt.undone = min(attempt.undone, line.at)
        self.jobs[transaction.job].lines.append(line)

    def _call(self, line: Line) -> None:
        said, name = line.said, (line.process, line.said["call"])
        if said["is"] != "invoked":
            call = self._calls[name]
            call.outcome, call.answered, call.answer = said["is"], line.at, said
            if call.what == "pause" and call.acknowledged:
                self.pauses.append(Pause(call.said["queue"], line.at))
            if "job" in call.said:
                self.jobs[call.said["job"]].lines.append(line)
            return
        call = Call(said["what"], line.at, line.process, said, late=self._late_by)
        self._calls[name] = call
        if "transaction" in said:
            self.transactions[line.process, said["transaction"]].calls.append(call)
        if call.what == "clear":
            self.clears.append(call)
            return
        if call.what in ("pause", "resume"):
            self._resume(call)
            return
        if call.what == "limit":
            self.limits.append(call)
            return
        job = self._of(line)
        if call.what == "put":
            job.puts.append(call)
        elif call.what == "edit":
            job.edits.append(call)
        elif call.what == "requeue":
            job.requeues.append(call)
        elif call.what == "wait":
            job.waits.append(call)
        elif call.what == "cancel" and "token" not in said:
            job.cancels.append(call)
        else:
            for attempt in self._held[line.process, said["token"]]:
                if attempt.job == job.id:
                    attempt.calls.append(call)

    def _resume(self, call: Call) -> None:
        """End the pause of a queue, if there is one: a call that changes it is under way."""
        for pause in self.pauses:
            if pause.queue == call.said["queue"]:
                pause.until = min(pause.until, call.invoked)


def _doubt_refusals(attempt: Attempt, end: float) -> None:
    """Take no refusal for certain that came when another job had the id of this one.

    To one who asks again, its complete of before looks as if it had never been made.
    """
    for call in attempt.completes():
        if call.outcome == "refused" and call.invoked < end < call.answered:
            call.outcome = "unknown"


def lives(job: Job) -> list[Job]:
    """Return the jobs that had one id, one after the other.

    A document that was inserted again after it had been seen to be gone is another job. An attempt
    whose claim was sent before that and whose handler started after it may be at either.
    """
    births = sorted(put.invoked for put in job.puts if put.said.get("again") and put.acknowledged)
    if not births:
        return [job]
    bounds = [-math.inf, *births, math.inf]
    found = []
    for begin, end in itertools.pairwise(bounds):
        life = Job(job.id, claims=job.claims, lines=job.lines)
        life.puts = [put for put in job.puts if begin <= put.invoked < end]
        life.edits = [edit for edit in job.edits if begin <= edit.invoked < end]
        life.requeues = [call for call in job.requeues if begin <= call.invoked < end]
        life.cancels = [call for call in job.cancels if begin <= call.invoked < end]
        life.waits = [call for call in job.waits if begin <= call.invoked < end]
        for attempt in job.attempts:
            claimed = attempt.started if attempt.claimed is None else attempt.claimed
            if begin <= claimed and attempt.started < end:
                life.attempts.append(attempt)
            elif claimed < end and attempt.started >= begin:
                life.doubtful.append(attempt)
        for attempt in life.attempts:
            _doubt_refusals(attempt, end)
        life.transactions = [done for done in job.transactions if begin <= done.begun < end]
        found.append(life)
    found[-1].document = job.document
    return found
