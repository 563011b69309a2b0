"""Claims: sent, counted, and what they took handed over; when to send one is the claimer's part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..clock import monotonic
from .queues import keep_of, limit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..metrics.series import ClaimTrigger, Metrics
    from ..options import WorkerOptions
    from ..store.asynchronous import AsyncStore
    from .backlog import Backlog
    from .delivery import Delivery
    from .queues import RegisteredQueue
    from .slots import Slots

MOST_AT_ONCE = 250
"""Jobs in a claim: with many free slots, handlers run while the next claim is under way."""
FIRST_CLAIM = 16
"""Jobs in the first claim of a backlog: consumers that are started together all go for its head,
and learn of one another by what they lose."""

Lost = Literal["some", "stuck"]


class Claims:
    """Claims jobs into free slots.

    Args:
        backlog: is told how a claim went.
        delivery: takes what was claimed.
        stopping: returns whether what was claimed is to be given back.
    """

    def __init__(
        self,
        store: AsyncStore,
        handlers: Mapping[str, RegisteredQueue],
        slots: Slots,
        backlog: Backlog,
        delivery: Delivery,
        options: WorkerOptions,
        metrics: Metrics,
        stopping: Callable[[], bool],
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._slots = slots
        self._settings = backlog.settings
        self._partition = backlog.partition
        self._backlog = backlog
        self._delivery = delivery
        self._stopping = stopping
        self._consumer = str(options.consumer_id)
        self._timeout = options.timeout
        self._limit_of = limit_of(handlers, options.max_attempts)
        self._keep_of = keep_of(handlers, options.keep)
        self._metrics = metrics
        self._batch = metrics.worker.claim_batch
        self._most = FIRST_CLAIM

    def size(self, wanted: int) -> int:
        """Return for how many jobs the next claim may be, if so many are wanted."""
        return min(wanted, self._most, self._store.claim_size.most)

    async def take(self, trigger: ClaimTrigger, jobs: Sequence[Mapping[str, Any]]) -> Lost | None:
        """Claim jobs, and run them as they are then; but for those of queues that are paused.

        Returns what it means that some were lost: "some", that there is more to be had; "stuck",
        that all which can be read is refused, and is to be left until that is tried again.
        """
        if self._settings.paused and not (jobs := self._settings.of_open_queues(jobs)):
            return None
        if left := self._store.left:
            for job in jobs:
                if job["_id"] in left:
                    self._store.unclaimable.pass_on(job["_id"])
            if not (jobs := [job for job in jobs if job["_id"] not in left]):
                return None
        self._batch.observe(len(jobs))
        sent = monotonic()
        with self._metrics.timed("claim"):
            terms = (self._timeout, self._limit_of, self._keep_of)
            documents = await self._store.take(jobs, self._consumer, *terms)
        self._most = MOST_AT_ONCE
        lost = None
        if len(documents) < len(jobs):
            lost = self._note_lost(trigger, len(jobs), len(documents))
        self._slots.answered(monotonic() - sent)
        if not documents:
            return lost  # at once: what comes meanwhile is newer
        if not self._stopping():
            await self._delivery.deliver(trigger, documents, sent)
        else:
            await self._delivery.release(documents)
        return lost

    def _note_lost(self, trigger: ClaimTrigger, wanted: int, won: int) -> Lost | None:
        # The queue of a lost job is not known; with several queues the first one stands for it.
        metrics = next(iter(self._handlers.values())).metrics
        metrics.claims[trigger, "lost"].inc(wanted - won)
        self._partition.look()
        again = self._backlog.claimed(wanted, won)
        if not won and self._store.unclaimable.full:
            # More refused ones than can be left out: what is read next would be of them as well.
            # Look again when they are tried again; what is announced until then does not wait.
            self._backlog.drop()
            return "stuck"
        return "some" if again else None

    def note_empty(self, trigger: ClaimTrigger) -> None:
        """Count that there was nothing to claim."""
        for registered in self._handlers.values():
            registered.metrics.claims[trigger, "empty"].inc()
