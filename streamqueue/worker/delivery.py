"""What becomes of the documents of a claim: handlers start, the rest is buried or released."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from pymongo.errors import PyMongoError

from .. import plain
from ..errors import type_name
from ..failures import failure_facts, failure_name
from ..metrics.series import AttemptOutcome
from ..protocol import operations
from ..protocol.document import JobRecord, id_key
from ..queue.lines import facts
from ..store.given_up import GivenUp
from .execution.attempt import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from bson import ObjectId

    from ..metrics.series import ClaimTrigger, Metrics
    from ..options import WorkerOptions
    from ..protocol.foreign import BuryReason
    from ..store.asynchronous import AsyncStore
    from ..store.present_settings import PresentSettings
    from .deaths import Deaths
    from .execution.attempt import Ender
    from .queues import RegisteredQueue

logger = plain.logger("streamqueue.claimer")

RECENT = 10_000
"""Claimed ids remembered, so that an insert event that comes after its job was found by a scan does
not cost a claim in vain, which is a write."""
MOST_STRAYS = 1000


class Delivery:
    """Starts attempts at claimed jobs.

    Args:
        settings: which queues are paused.
        ender: writes the ends of the attempts.
        start: runs an attempt; must not wait for it.
        expires: told of the time after which a job is not begun, of those that have one.
        deaths: told of jobs that are buried.

    Attributes:
        recent: the ids of the last claimed jobs, in the order of claims.
    """

    def __init__(
        self,
        store: AsyncStore,
        handlers: Mapping[str, RegisteredQueue],
        settings: PresentSettings,
        ender: Ender,
        start: Callable[[Attempt], None],
        expires: Callable[[datetime], None],
        deaths: Deaths,
        options: WorkerOptions,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._settings = settings
        self._ender = ender
        self._start = start
        self._expires = expires
        self._deaths = deaths
        self._timeout = options.timeout
        self._metrics = metrics
        self.recent: OrderedDict[ObjectId, None] = OrderedDict()
        self._strays: OrderedDict[object, None] = OrderedDict()

    async def deliver(
        self, trigger: ClaimTrigger, documents: Sequence[Mapping[str, Any]], sent: float
    ) -> None:
        """Start the handlers of jobs whose claim was sent at that time."""
        damaged: list[tuple[JobRecord, BuryReason]] = []
        others: list[Mapping[str, Any]] = []
        won: Counter[str] = Counter()
        for document in documents:
            queue = document.get("queue")
            if not (type(queue) is str and queue in self._handlers):
                # The claim names our queues, and the document was read after it: somebody has moved
                # the job in between, or it has two queues, of which the server sees the other one.
                if self._is_stray(document):
                    damaged.append((_bare_record(document, "it has two queues"), "queue"))
                else:
                    others.append(document)
                continue
            if queue in self._settings.paused:  # since the claim was sent
                others.append(document)
                continue
            task = document.get("task")
            registered = self._handlers[queue].of_task(task if type(task) is str else None)
            won[queue] += 1
            if registered is None:  # its task is not known here: somebody has moved the job
                self._store.left.add(document["_id"])
                others.append(document)
                continue
            try:
                limit = registered.handler.max_attempts
                record = JobRecord.from_document(document, max_attempts=limit)
                self._remember(record.id)
                if record.damage is not None:
                    damaged.append((record, "payload"))
                    continue
                if record.expires_at is not None:
                    self._expires(record.expires_at)  # it may wait for another attempt by then
                attempt = Attempt(record, registered, self._ender, sent=sent, timeout=self._timeout)
                self._store.keyed = self._store.keyed or record.lets_go
                if attempt.kept or record.holds_on:
                    self._store.indexes.want("keep")  # its producer may not have seen to it
            except Exception as error:  # whatever is in it, it ends nothing but itself
                text = f"it cannot be handed over: {type_name(error)}"
                damaged.append((_bare_record(document, text), "damaged"))
                continue
            self._start(attempt)
        for queue, count in won.items():
            self._handlers[queue].metrics.claims[trigger, "won"].inc(count)
        for record, reason in damaged:  # after the others are running
            await self._bury(record, reason)
        if others:
            await self.release(others)

    async def release(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Give claimed jobs back that are not to be run here."""
        with CancelScope(shield=True):
            await self._store.untake(GivenUp.of_documents(documents))

    def _is_stray(self, document: Mapping[str, Any]) -> bool:
        """Whether a job was given back before because its queue is none of ours."""
        name = id_key(document["_id"])
        if name in self._strays:
            del self._strays[name]
            return True
        if len(self._strays) >= MOST_STRAYS:
            self._strays.popitem(last=False)
        self._strays[name] = None
        return False

    async def _bury(self, record: JobRecord, kind: BuryReason) -> None:
        """Bury a claimed job that cannot be run; if that fails, its lease will return it."""
        reason = str(record.damage)
        logger.error(
            "Buried job %s of queue %s: %s",
            record.id,
            record.queue,
            reason,
            extra={"event": "job_dead", **facts(record), "reason": reason},
        )
        try:
            with CancelScope(shield=True), self._store.limit():
                command = operations.discard(record.id, record.token, reason)
                await self._store.jobs.update_one(*command)
                await self._store.let_through(operations.keys_let_go([record]))
                await self._store.tell_dependents([record.id])
            if self._store.makes_room(record.queue, record.slots):
                await self._store.say_room()
        except PyMongoError as error:
            logger.warning(
                "Job %s could not be buried: %s",
                record.id,
                failure_name(error),
                extra={"event": "claim_left", **facts(record), **failure_facts(error)},
            )
        else:
            self._metrics.buried(kind, 1)
            if record.queue in self._handlers:
                queue = self._handlers[record.queue]
                registered = queue.of_task(record.task)
                (registered or queue).metrics.outcome[AttemptOutcome.DEAD].inc()
                if registered is not None and registered.handler.on_dead is not None:
                    self._deaths.tell(registered.handler.on_dead, record, reason)

    def _remember(self, job_id: ObjectId) -> None:
        self.recent[job_id] = None
        if len(self.recent) > RECENT:
            self.recent.popitem(last=False)


def _bare_record(document: Mapping[str, Any], damage: str) -> JobRecord:
    """Return no more of a claimed job than it takes to bury it."""
    needed = {name: document.get(name) for name in ("_id", "queue", "lease", "locked_by")}
    record = JobRecord.from_document(needed, max_attempts=0)
    record.damage = damage
    return record
