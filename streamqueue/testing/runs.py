"""Running a worker in a test, until it has nothing left to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry

from ..durations import shown
from ..errors import AttemptOutcome, ConfigurationError, JobNotFound, StreamQueueError, text_of
from ..health.server import MetricsAddress
from ..options import MAX_BATCH, whole_number
from ..queue.asynchronous import AsyncMongoQueue
from ..store.asynchronous import AsyncStore
from ..tracebacks import describe, last_line, whole
from ..worker.worker import PATIENCE, copied, settings_of
from .passing_time import make_due, say_if_time_is_patched

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pymongo.asynchronous.collection import AsyncCollection

    from ..worker import Worker
    from ..worker.execution.attempt import Attempt

FAILURES = (AttemptOutcome.RETRIED, AttemptOutcome.DEAD)
MAX_AWAIT = 0.05
"""Seconds that the stream may stay silent: so long may the end of a run take."""


class AttemptFailed(StreamQueueError):
    """An attempt has failed of which there is no exception to raise: its handler called
    ``job.error()``, ran in a child process, raised no ``Exception``, or its result cannot be
    stored.

    Attributes:
        failed: the attempt (:class:`FailedAttempt`).
    """

    def __init__(self, failed: FailedAttempt) -> None:
        super().__init__(f"{failed}: {last_line(failed.message)}")
        self.failed = failed


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that failed.

    Attributes:
        job_id: the id of its job.
        queue: the queue of that.
        data: the payload.
        attempt: the number of the attempt, from 1.
        max_attempts: how many the job may have.
        dead: whether it was the last one.
        error: what its handler raised, with its traceback; None where nothing was raised here.
        message: what is stored of it: a traceback, or the message.
    """

    job_id: Any
    queue: str
    data: dict[str, Any] = field(repr=False, compare=False)
    attempt: int
    max_attempts: int
    dead: bool
    error: BaseException | None = field(repr=False)
    message: str = field(repr=False)

    def __str__(self) -> str:
        which = f"attempt {self.attempt} of {self.max_attempts}"
        return f"{which} of job {self.job_id} in queue {self.queue} failed"


@dataclass(slots=True)
class Report:
    """What a run has done, and what is left in the worker's queues.

    Attributes:
        done: jobs that were completed.
        failed: attempts that failed, in order.
        outcomes: how many attempts ended in each way: ``completed``, ``retried``, ``dead``,
            ``released`` (snoozed, or given back), ``cancelled``, ``expired``, ``lease_lost``.
        ready: jobs left to be done; none unless it ended by a failure or by its limit.
        scheduled: jobs that are to run later, retries among them.
        waiting: jobs that wait for another one.
        paused: ready jobs of paused queues.
    """

    done: int = 0
    failed: list[FailedAttempt] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    ready: int = 0
    scheduled: int = 0
    waiting: int = 0
    paused: int = 0


class Observed:
    """Notes what becomes of each attempt, and stops the worker when that is enough.

    Args:
        stop: stops it.
        limit: attempts after which it is stopped; None for any number.
        to_failure: whether the first failure stops it.
    """

    def __init__(self, stop: Callable[[], None], limit: int | None, to_failure: bool) -> None:
        self._stop = stop
        self._limit = limit
        self._to_failure = to_failure
        self._begun = 0
        self._raised: dict[int, tuple[BaseException, str, Callable[[], None]]] = {}
        self.stopped = False
        self.outcomes: Counter[str] = Counter()
        self.failed: list[tuple[FailedAttempt, Callable[[], None]]] = []

    def begins(self, attempt: Attempt) -> None:
        """Count it."""
        self._begun += 1
        if self._begun == self._limit:
            self._enough()

    def raised(self, attempt: Attempt, error: BaseException) -> None:
        """Keep what was raised, with the tracebacks that are about to be taken from it."""
        self._raised[id(attempt)] = (error, describe(error), whole(error))

    def ended(self, attempt: Attempt) -> None:
        """Note how it ended."""
        outcome = attempt.result()
        self.outcomes[str(outcome)] += 1
        raised = self._raised.pop(id(attempt), None)
        if outcome not in FAILURES:
            return
        record = attempt.record
        error, message, restore = raised or (None, text_of(attempt.unstorable or ""), _nothing)
        failed = FailedAttempt(
            record.id,
            record.queue,
            record.data,
            record.attempts,
            record.max_attempts,
            outcome is AttemptOutcome.DEAD,
            error,
            message,
        )
        self.failed.append((failed, restore))
        if self._to_failure:
            self._enough()

    def _enough(self) -> None:
        if not self.stopped:
            self.stopped = True
            self._stop()


async def run_until_empty(
    worker: Worker,
    jobs: AsyncCollection[Any] | None = None,
    *,
    due: bool = False,
    failures: Literal["raise", "collect"] = "raise",
    limit: int | None = None,
) -> Report:
    """Run a worker as in production until no job of its queues is ready, due or running.

    It runs its handlers by its own settings, on a real server: but it serves no metrics, and counts
    in a registry of its own. Of the worker itself nothing is changed, so one that a module makes
    may be run in every test, each with its own event loop and its own `jobs`.

    Args:
        worker: the worker.
        jobs: the collection to run it on, such as the fixture ``streamqueue_jobs``; default: its
            own.
        due: have what is to run later be due at once, retries too. Default False: it is left, and
            counted in the report.
        failures: ``"raise"``, the default, ends the run by the first attempt that fails, and raises
            what its handler raised, with a note that names the job. (What runs beside it is let
            finish.) ``"collect"`` goes on, and leaves it to the report.
        limit: attempts after which the run ends, for jobs that put themselves again. What has begun
            by then is let finish. Default None: any number.

    Returns:
        What was done, and what is left (:class:`Report`).

    Raises:
        ConfigurationError: an argument that is none of these; or as of :meth:`Worker.run`.
        AttemptFailed: one failed without an exception that could be raised.
    """
    if failures not in ("raise", "collect"):
        raise ConfigurationError(f"failures must be 'raise' or 'collect', not {shown(failures)}")
    if limit is not None:
        limit = whole_number(limit, "limit", 1, MAX_BATCH)
    say_if_time_is_patched()
    settings = settings_of(worker)
    store = settings.store if jobs is None else AsyncStore(jobs, patience=PATIENCE)

    async def have_due(queues: Sequence[str]) -> bool:
        return await make_due(store, queues)

    observed = Observed(lambda: run.stop(), limit, failures == "raise")
    run = copied(
        worker,
        store=store,
        options=replace(settings.options, max_await=MAX_AWAIT),
        metrics_address=MetricsAddress(),
        registry=CollectorRegistry(),
        exports=False,
        observer=observed,
        make_due=have_due if due else None,
    )
    remaining = await run.run(until="empty", handle_signals=False)
    if observed.failed and failures == "raise":
        raise await _to_raise(store, *observed.failed[0])
    report = Report(observed.outcomes[AttemptOutcome.COMPLETED], outcomes=dict(observed.outcomes))
    for failed, restore in observed.failed:
        restore()
        report.failed.append(await _with_message(store, failed))
    if remaining is None:
        await _count_left(store, list(settings.handlers), report)
    else:
        report.scheduled, report.waiting, report.paused = remaining
    return report


async def _to_raise(
    store: AsyncStore, failed: FailedAttempt, restore: Callable[[], None]
) -> BaseException:
    restore()
    if isinstance(failed.error, Exception):
        failed.error.add_note(str(failed))
        return failed.error
    error = AttemptFailed(await _with_message(store, failed))
    error.__cause__ = failed.error
    return error


async def _with_message(store: AsyncStore, failed: FailedAttempt) -> FailedAttempt:
    """Return it with what is stored of it, where nothing was raised."""
    if failed.message:
        return failed
    try:
        async with AsyncMongoQueue(store.jobs, name=failed.queue) as queue:
            info = await queue.get(failed.job_id)
    except JobNotFound:
        return failed
    messages = {error.attempt: error.message for error in info.errors}
    return replace(failed, message=messages.get(failed.attempt) or info.last_error or "")


async def _count_left(store: AsyncStore, queues: Sequence[str], report: Report) -> None:
    for name in queues:
        async with AsyncMongoQueue(store.jobs, name=name) as queue:
            stats, paused = await queue.stats(), await queue.is_paused()
        report.scheduled += stats["scheduled"]
        report.waiting += stats["waiting"]
        if paused:
            report.paused += stats["available"]
        else:
            report.ready += stats["available"]


def _nothing() -> None:
    pass
