"""Histories that never happened, for tests of the checker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bson import ObjectId

from drills.account import Account
from drills.history import History, digest_of
from drills.reading import read_account
from streamqueue import DuplicateJob, LeaseLost

LEASE = 2.0
QUEUE = "drill"
PAYLOAD = {"n": 1, "text": "ä"}
JOB = ObjectId("0123456789abcdef01234567")
OTHER = ObjectId("0123456789abcdef01234568")

Broken = Callable[..., set[str]]
Entry = dict[str, Any]


class Planted:
    """A history that never happened, told by a process whose clock the test sets."""

    def __init__(self, directory: Path, program: str = "planted") -> None:
        self.at = 0.0
        self._history = History(directory, program, now=lambda: self.at)
        self.path = self._history.path

    def put(
        self, at: float, outcome: str = "acknowledged", job: ObjectId = JOB, **more: Any
    ) -> None:
        more = {"digest": digest_of(PAYLOAD), "priority": 0, "max_attempts": 3, **more}
        self._call("put", at, outcome, job=str(job), **more)

    def claim(self, at: float, token: str, job: ObjectId = JOB) -> None:
        self._note("claim", "invoked", at, token=token, jobs=[str(job)], lease=LEASE)

    def start(
        self,
        at: float,
        token: str,
        number: int = 1,
        job: ObjectId = JOB,
        claimed: float | None = None,
        **more: Any,
    ) -> None:
        """Claim, 0.1 s before or when it is said, and start the handler."""
        self.claim(at - 0.1 if claimed is None else claimed, token, job)
        more = {"limit": 3, "digest": digest_of(PAYLOAD), **more}
        self._note("attempt", "started", at, job=str(job), token=token, number=number, **more)

    def cancelled(self, at: float, token: str) -> None:
        self._note("attempt", "cancelled", at, job=str(JOB), token=token)

    def saw(self, at: float, token: str, parents: Mapping[str, int], job: ObjectId = JOB) -> None:
        """Note how many parents a handler has seen in which state."""
        self._note("attempt", "saw", at, job=str(job), token=token, parents=dict(parents))

    def step(self, at: float, state: str, name: str = "a", *, since: float, **more: Any) -> None:
        """Note that a step runs or is stored, in an attempt that began then; or its effect."""
        self._note("step", state, at, job=str(JOB), name=name, since=since, **more)

    def end(
        self,
        at: float,
        what: str,
        token: str,
        outcome: str = "acknowledged",
        job: ObjectId = JOB,
        **more: Any,
    ) -> None:
        """Complete, error, release or progress; the answer comes 0.1 s later."""
        self._call(what, at, outcome, job=str(job), token=token, **more)

    def renew(self, at: float, token: str, job: ObjectId = JOB) -> None:
        self._note("renew", "invoked", at, renewal=1, jobs=[str(job)], tokens=[token])
        self._note("renew", "acknowledged", at + 0.1, renewal=1)

    def begin(self, at: float, job: ObjectId = JOB, **more: Any) -> int:
        """Begin a transaction; return its number."""
        self.at = at
        return self._history.begin(job=str(job), **more)

    def over(self, at: float, transaction: int, state: str) -> None:
        """Commit it, abort it, or learn nothing of its end."""
        self.at = at
        self._history.over(transaction, state)

    def entry(self, transaction: int, what: str = "complete", job: ObjectId = JOB) -> Entry:
        """Return what a transaction leaves in the ledger."""
        return {
            "job": str(job), "what": what,
            "process": self.path.stem, "transaction": transaction,
        }  # fmt: skip

    def edit(
        self,
        at: float,
        field: str,
        outcome: str = "acknowledged",
        job: ObjectId = JOB,
        **more: Any,
    ) -> None:
        """Change a document by hand; the answer comes 0.1 s later."""
        self._call("edit", at, outcome, job=str(job), field=field, **more)

    def requeue(self, at: float, outcome: str = "acknowledged") -> None:
        self._call("requeue", at, outcome, job=str(JOB))

    def cancel(self, at: float, told: str, outcome: str = "acknowledged") -> None:
        """Cancel the job; the answer comes 0.1 s later."""
        self._call("cancel", at, outcome, {"told": told}, job=str(JOB))

    def wait(
        self, at: float, told: str, result: str | None = None, by: str = "wait", takes: float = 0.1
    ) -> None:
        """Ask what becomes of the job, and be told so much later."""
        answer = {"told": told, "result": result}
        self._call("wait", at, "acknowledged", answer, takes, job=str(JOB), by=by)

    def wait_in_vain(self, at: float) -> None:
        """Ask what becomes of the job, and get no answer."""
        self._note("wait", "invoked", at, call=0, job=str(JOB), by="wait")

    def pause(self, at: float, what: str = "pause", queue: str = QUEUE) -> None:
        """Pause the queue, or resume it; the answer comes 0.1 s later."""
        self._call(what, at, "acknowledged", queue=queue)

    def limit(
        self, at: float, outcome: str = "acknowledged", queue: str = QUEUE, **more: Any
    ) -> None:
        """Set a limit of the queue; the answer comes 0.1 s later."""
        self._call("limit", at, outcome, queue=queue, **more)

    def orders(self, queue: str = QUEUE) -> None:
        """Note that the groups of the queue are ordered."""
        self._note("order", "declared", 0, queue=queue)

    def stood_still(self, at: float, seconds: float) -> None:
        """Note that the process could not run until now."""
        self._note("process", "late", at, seconds=seconds)

    def holds(self, seconds: float) -> None:
        self._note("hold", "planned", 0, seconds=seconds)

    def clear(self, at: float) -> None:
        self._call("clear", at, "acknowledged")

    def _note(self, what: str, state: str, at: float, **more: Any) -> None:
        self.at = at
        self._history.note(what, state=state, **more)

    def _call(
        self,
        what: str,
        at: float,
        outcome: str,
        told: Mapping[str, Any] | None = None,
        takes: float = 0.1,
        **more: Any,
    ) -> None:
        self.at = at
        errors = {
            "refused": LeaseLost(JOB),
            "unknown": OSError(),
            "failed": LeaseLost(JOB),
            "taken": DuplicateJob("k", None),
        }
        if outcome == "killed":
            self._history.left_to_the_worker(what, **more)
            return
        try:
            with self._history.call(what, **more) as answer:
                self.at = at + takes
                answer.update(told or {})
                if outcome in errors:
                    raise errors[outcome]
        except (LeaseLost, DuplicateJob, OSError):
            pass


def document(state: str = "dead", **more: Any) -> dict[str, Any]:
    return {
        "_id": JOB, "state": state, "attempts": 3, "max_attempts": 3, "payload": PAYLOAD, **more,
    }  # fmt: skip


def read(
    directory: Path, *documents: dict[str, Any], entries: list[Entry] | None = None
) -> Account:
    return read_account(directory, documents, entries)
