"""What processes did and saw, line by line, in files that survive their being killed.

Every process has a file of its own. A line is a JSON object; it is written before something is
asked for and again when the answer is there, in one ``write`` to a file opened for appending, so a
``kill -9`` tears the last line at most. Times are :func:`streamqueue.clock.monotonic`, the clock of
leases, which the processes of one machine share.

Every line has ``what``, ``at``, ``pid``. The others by ``what``:

====================== =============================================================================
process                ``is`` started, stopped; ``program``. Killed: written by the one who kills.
                       late: its event loop stood still for so many ``seconds`` until now
put                    a call; ``job digest payload priority delay max_attempts queue group``.
                       ``again``: inserted after a job with this id had been seen to be gone;
                       ``after if_parent_fails``, where it comes after others
claim                  ``is`` invoked; ``token jobs lease``: what the consumer sent to the server
attempt                ``is`` started (``job token number limit digest queue``), cancelled.
                       ``kept``: its handler is cancelled when the lease ends; ``queue``: the one
                       whose handler it is; ``locked``: when the server took the job for it, in
                       milliseconds. saw: its parents, how many in which state
progress complete      calls of an attempt; ``job token``. ``by``: ``call``, or ``return`` when the
error release          handler left it to the worker, and nobody is told the outcome;
                       ``discard``: the job is dead after it; ``count``: of progress that may
                       be written later, together with more
cancel                 a call: somebody cancels a ``job``, and was ``told`` cancelled, asked, ended
                       or not found; with a ``token``, its handler asks for that end
wait                   a call: somebody asks what becomes of a ``job``, ``by`` wait, request, watch,
                       result or get; and was ``told`` its state, and the ``result`` if that is
                       done, or: not found, late (not in time), error
pause resume           calls: an operator stops a ``queue``, and lets it go on
limit                  a call: how many jobs of a ``queue``, ``per`` queue or group, may be
                       ``running`` from then on (None: as many as want to), or start by a ``rate``
                       (``count seconds burst``); what is not said stays as it is. ``first``:
                       there is nobody yet who could go by what was before
order                  ``is`` declared: the groups of a ``queue`` are ordered from the beginning
renew                  ``is`` invoked, acknowledged; ``jobs tokens``: as it was sent. The jobs of
                       one claim share its token
transaction            ``is`` begun, committed, aborted (certainly undone), unknown; ``transaction``
                       is its number, which the calls made in it have too; ``job``, and ``token``
                       of the attempt that works in it
edit                   a call: an operator changes a document by hand; ``job field``, and what it is
                       from then on: ``digest``, ``queue``, ``delay`` (until it is due)
requeue                a call: an operator makes a dead ``job`` ready
clear                  a call: an operator removes all jobs there are
hold                   ``is`` planned: from now on messages may be late by so many ``seconds``
====================== =============================================================================

A call has a number; ``is`` is first ``invoked``, then ``acknowledged``, ``refused`` (LeaseLost),
``failed`` (certainly not done) or ``unknown``. With no second line the outcome is unknown as well.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bson
from bson.codec_options import CodecOptions
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from drills.commands import values, writes
from streamqueue import LeaseLost, StreamQueueError
from streamqueue.clock import monotonic


def digest_of(payload: Mapping[str, Any]) -> str:
    """Return what tells one payload from another, however it is stored."""
    plain: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)
    return hashlib.sha256(bson.encode(payload, codec_options=plain)).hexdigest()[:16]


class History:
    """The file of this process. Make it after a fork, not before.

    Args:
        directory: where the histories of one drill are.
        program: what this process is, for the file's name.
        now: its clock; planted histories bring their own.
    """

    def __init__(self, directory: Path, program: str, now: Callable[[], float] = monotonic) -> None:
        self.path = directory / f"{program}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._now = now
        self._calls = itertools.count(1)
        self._transactions = itertools.count(1)
        self.note("process", state="started", program=program)

    def note(self, what: str, *, state: str, **more: Any) -> None:
        """Append one line."""
        line = {"what": what, "is": state, "at": self._now(), "pid": os.getpid(), **more}
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    @contextmanager
    def call(self, what: str, **more: Any) -> Iterator[dict[str, Any]]:
        """Note that something is asked for, and how it went; also what was answered, which the
        block puts into the given dict."""
        answer: dict[str, Any] = {}
        number = next(self._calls)
        self.note(what, state="invoked", call=number, **more)
        try:
            yield answer
        except LeaseLost:
            self.note(what, state="refused", call=number)
            raise
        except StreamQueueError as error:
            self.note(what, state="failed", call=number, error=type(error).__name__)
            raise
        except BaseException as error:
            self.note(what, state="unknown", call=number, error=type(error).__name__)
            raise
        self.note(what, state="acknowledged", call=number, **answer)

    def left_to_the_worker(self, what: str, **more: Any) -> None:
        """Note a call that the worker will make for the handler, and whose outcome it keeps."""
        self.note(what, state="invoked", call=next(self._calls), by="return", **more)

    def begin(self, **more: Any) -> int:
        """Note that a transaction begins; return its number, for the calls made in it."""
        number = next(self._transactions)
        self.note("transaction", state="begun", transaction=number, **more)
        return number

    def over(self, transaction: int, state: str) -> None:
        """Note how a transaction ended: committed, aborted or unknown."""
        self.note("transaction", state=state, transaction=transaction)

    def close(self) -> None:
        """Note that the process ends in order."""
        self.note("process", state="stopped")
        os.close(self._file)


class Wire(CommandListener):
    """Notes the claims and renewals that a consumer's client sends.

    A handler learns of its claim when it was acknowledged; the lease runs from an earlier moment,
    and the last one that is certain is that before the claim was sent. The token (the stored field
    ``lease``) says which attempt it was.
    """

    def __init__(self, history: History, lease: float) -> None:
        self._history = history
        self._lease = lease
        self._renewals: dict[int, int] = {}  # how many jobs, by request
        self._latest: dict[bytes, int] = {}  # the number of a retryable write, by session

    def started(self, event: CommandStartedEvent) -> None:
        if self._is_second_try(event.command):
            # It may be answered with what the first one did: a lease that runs from then. (A
            # claim's second try has its token, so only the first one counts already.)
            return
        for write in writes(event.command):
            jobs = [str(job) for job in values(write.wanted.get("_id"))]
            if write.token is not None:
                self._history.note(
                    "claim", state="invoked", token=write.token.hex(), jobs=jobs, lease=self._lease
                )
            elif write.renews:
                tokens = [token.hex() for token in values(write.wanted.get("lease"))]
                self._renewals[event.request_id] = len(jobs)
                self._history.note(
                    "renew", state="invoked", renewal=event.request_id, jobs=jobs, tokens=tokens
                )

    def _is_second_try(self, command: Mapping[str, Any]) -> bool:
        number = command.get("txnNumber")
        if number is None:
            return False
        session = bytes(command["lsid"]["id"])
        before, self._latest[session] = self._latest.get(session), number
        return before == number

    def succeeded(self, event: CommandSucceededEvent) -> None:
        jobs = self._renewals.pop(event.request_id, None)
        # When some were not renewed the reply does not say which: then none is certain.
        certain = jobs is not None and event.reply.get("n") == jobs
        if certain and "writeConcernError" not in event.reply:
            self._history.note("renew", state="acknowledged", renewal=event.request_id)

    def failed(self, event: CommandFailedEvent) -> None:
        self._renewals.pop(event.request_id, None)


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was read."""

    process: str
    number: int
    said: Mapping[str, Any]
    text: str

    @property
    def at(self) -> float:
        return float(self.said["at"])

    def __str__(self) -> str:
        return f"{self.process}:{self.number} {self.text}"


def read_history(path: Path) -> list[Line]:
    """Return the lines of one process. A torn last line is not one.

    Raises:
        ValueError: a line before the last cannot be read.
    """
    whole, _, _torn = path.read_bytes().rpartition(b"\n")
    lines = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            lines.append(Line(path.stem, number, json.loads(text), text.decode()))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {text!r}") from error
    return lines


def read_histories(directory: Path) -> list[Line]:
    """Return the lines of all processes in the order of their times."""
    lines = [line for path in directory.glob("*.jsonl") for line in read_history(path)]
    return sorted(lines, key=lambda line: line.at)  # stable: one process's order is kept
