"""``@worker.handler``: how a program registers what runs its jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from .. import options as checks
from ..durations import seconds
from ..errors import ConfigurationError
from ..protocol.fitting.readers import reader_of
from ..protocol.limits import check_rules
from .annotations import check_kind_of_job
from .deaths import check_on_dead
from .failing import backoff_of, failing
from .handler import Handler, where_to_run
from .queues import QueueHandlers
from .schedules.declaring import Scheduling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta
    from typing import Unpack

    from ..backoff import Backoff
    from ..protocol.fitting.kinds import Reader
    from ..protocol.limits import Limit, Ordered
    from .failing import Classes, Failing, Wait
    from .handler import OnDead, RunIn
    from .handler_types import (
        HandlerSettings,
        Payload,
        RegistersBatchHandler,
        RegistersFunction,
        RegistersHandler,
        RegistersTypedBatchHandler,
        RegistersTypedFunction,
        RegistersTypedHandler,
    )
    from .settings import Settings

Function = TypeVar("Function", bound="Callable[..., Any]")

NOT_IN_A_CHILD = (
    "run_in='process': the child process gets the payload alone, and nothing of the lifespan that "
    "this worker has; open there what the function needs, or give its queue a worker without one"
)
NOT_A_BATCH = (
    "run_in='process': the child process gets the payload of one job and returns its result, so it "
    "takes no batch=; leave one of them out"
)
BATCH_WAIT = 0.05
"""Seconds for which the first job of a batch waits: long enough for what is put at the same time,
and to be claimed."""


class Handling(Scheduling):
    """What :class:`~streamqueue.Worker` has to register handlers with."""

    @overload
    def handler(
        self,
        queue: str,
        *,
        run_in: Literal["loop", "thread"] | None = None,
        payload: None = None,
        **settings: Unpack[HandlerSettings],
    ) -> RegistersHandler: ...

    @overload
    def handler(
        self,
        queue: str,
        *,
        run_in: Literal["loop", "thread"] | None = None,
        payload: type[Payload],
        **settings: Unpack[HandlerSettings],
    ) -> RegistersTypedHandler[Payload]: ...

    @overload
    def handler(
        self,
        queue: str,
        *,
        run_in: Literal["process"],
        payload: None = None,
        **settings: Unpack[HandlerSettings],
    ) -> RegistersFunction: ...

    @overload
    def handler(
        self,
        queue: str,
        *,
        run_in: Literal["process"],
        payload: type[Payload],
        **settings: Unpack[HandlerSettings],
    ) -> RegistersTypedFunction[Payload]: ...

    @overload
    def handler(
        self,
        queue: str,
        *,
        batch: int,
        batch_wait: float | timedelta = BATCH_WAIT,
        run_in: Literal["loop", "thread"] | None = None,
        payload: None = None,
        **settings: Unpack[HandlerSettings],
    ) -> RegistersBatchHandler: ...

    @overload
    def handler(
        self,
        queue: str,
        *,
        batch: int,
        batch_wait: float | timedelta = BATCH_WAIT,
        run_in: Literal["loop", "thread"] | None = None,
        payload: type[Payload],
        **settings: Unpack[HandlerSettings],
    ) -> RegistersTypedBatchHandler[Payload]: ...

    def handler(
        self,
        queue: str,
        *,
        concurrency: int | None = None,
        weight: int = 1,
        max_attempts: int | None = None,
        backoff: Backoff | Wait | None = None,
        retry_on: Classes | None = None,
        discard_on: Classes = (),
        on_dead: OnDead | None = None,
        time_limit: float | timedelta | None = None,
        keep: float | timedelta | None = None,
        ordered: Ordered = False,
        fair: bool = False,
        limits: Limit | Sequence[Limit] = (),
        run_in: RunIn | None = None,
        payload: type[Any] | None = None,
        batch: int | None = None,
        batch_wait: float | timedelta = BATCH_WAIT,
    ) -> Callable[[Function], Function]:
        """Register the function that runs the jobs of a queue; one per queue.

        Where the queue has tasks in this worker (:meth:`task`), it runs those jobs that have none.

        It takes the job: an :class:`AsyncJob` for ``async def``, a :class:`Job` for ``def``, which
        runs in a thread. Returning completes the job, with what is returned as its result, if the
        job is kept or somebody waits for its end; what cannot be stored then (no BSON value, over
        1 MiB) makes it dead at once, since another attempt would come to the same. An exception
        fails the attempt, with its traceback stored; ``Retry``, ``Snooze`` and ``Discard`` say it
        more exactly. An async handler is cancelled when the lease is lost; a blocking one learns it
        from its next call.

        Args:
            queue: the queue's name.
            concurrency: how many of its jobs may run at a time in this process, so that a slow
                queue leaves slots to the others; default None: as many as the worker runs, which is
                also the most. Jobs beyond it are left alone, for other processes or until a slot of
                the queue is free.
            weight: the queue's share of the slots, beside the other queues of the worker that have
                jobs waiting: a whole number from 1, the default, to 1000. With weights of 3 and 1
                they hold three quarters and one quarter of the slots, give or take one, however
                long their jobs take. What a queue has no jobs for is lent to the others, and comes
                back as their jobs end. A priority counts within its queue alone.
            max_attempts: for jobs that were put without; default the worker's.
            backoff: the wait after a failed attempt; default the worker's. Or a ``def`` that takes
                the number of the attempt, from 1, and its exception, and returns seconds (or a
                timedelta). If that raises, or returns anything else, it is logged, and the
                worker's backoff holds, as it does for ``job.error()``, which has no exception. Not
                with ``run_in="process"``, which the exception does not leave.
            retry_on: the exception's class, or a tuple of such, that another attempt may help
                against: any other makes the job dead at once. Default None: all are retried.
            discard_on: the class, or classes, that make the job dead at once; this comes first.
                Both match as ``except`` does, and each exception in a group counts. A time limit
                is a ``TimeoutError``. What a handler asks for (``Retry``, ``job.error()``, ...) is
                left as it is, and so is a child process that has ended.
            on_dead: called with the job and the exception when one of the queue's jobs is dead;
                default the worker's.
            time_limit: seconds (or a timedelta) an attempt may take; default None, no limit. Then
                an async handler is cancelled, a child process is killed, and the attempt has
                failed, whatever the handler still returns or raises. A thread cannot be stopped: it
                is named in the log, keeps its slot and its lease, so that no other attempt runs
                beside it, and its attempt has failed when it returns.
            keep: seconds (or a timedelta) that jobs which were put without stay when they are done,
                with their results; 0 removes them at once. Default the worker's.
            ordered: run the jobs of each group (``put(group=)``) one at a time, first in first out,
                over all processes; one that failed, or lost its lease, holds its group until it
                runs again. One that is dead lets the others pass with True, and holds them with
                ``"strict"``. Priorities count between groups. Default False: as they come.
            fair: let groups take turns, before priorities, so that one with many jobs does not keep
                others waiting; each process has turns of its own. Default False.
            limits: a :class:`Limit`, or several for different jobs: how many of the queue's may run
                at once, or start in a time, over all processes; default none. ``queue.limit()``
                wins. These three need indexes. They are stored when the worker starts, before it
                claims, and hold for whoever claims from the queue; the last start holds for all.
            payload: a dataclass, a ``TypedDict``, a pydantic model or a msgspec struct: what the
                payload is made into, as ``job.data``; default None, the dict that was put. A
                payload that does not fit it uses no attempt: the job is left to other workers for
                the worker's ``misfit_grace``, and then dead, with the field named.
            run_in: ``"loop"`` for ``async def``, ``"thread"`` for ``def``, each the default of its
                kind; or ``"process"``: a child process calls the function with the payload alone.
                It must be a ``def`` at the top level of a module; payload, result and exceptions
                are copied. The child is killed by the time limit, a lost lease and the end of the
                drain time, and ends with this process. What it prints goes nowhere.
            batch: call the function with a list of jobs, of at most so many. Each has an attempt
                and a slot of its own (so `batch` is no more than `concurrency`), and can be ended
                by itself; returning, with None, completes the others, and an exception fails them,
                each by its own attempts. One that is lost or cancelled meanwhile stays in the list,
                and its calls raise; the function is cancelled once that is so of all that it has
                not ended. The time limit is that of the call. Not with ``run_in="process"``.
                Default None: one job a call, and no list.
            batch_wait: seconds (or a timedelta) for which the first job of a batch waits for
                others; a full batch does not wait. Default 0.05.

        Raises:
            ConfigurationError: the queue has a handler, an argument is outside its range, or
                `payload` is no such class, or has a field that no payload can have; for a function
                that cannot run there, takes no single argument, or says that it takes the other
                kind of job, when it is registered or when the worker starts. So it is then if
                limits or order cannot be stored.
        """
        name = checks.queue_name(queue)
        handlers = self._settings.handlers
        known = handlers.get(name) or QueueHandlers(name)
        if known.handler is not None:
            raise ConfigurationError(
                f"queue {name!r} has a handler already: one per queue. For jobs of several kinds "
                "there are tasks: @worker.task"
            )
        terms = check_terms(
            self._settings, max_attempts, backoff, time_limit, keep, retry_on, discard_on, on_dead
        )
        rules = check_rules(limits, ordered, fair)
        share = check_share(concurrency, weight)
        known.joined(*share, rules)  # what does not go together is said here, where it stands
        reader: Reader | None = None if payload is None else reader_of(cast("Any", payload))
        terms["batch"], terms["batch_wait"] = check_batch(batch, batch_wait)

        def register(function: Function) -> Function:
            known = handlers.get(name) or QueueHandlers(name)
            place = where_to_run(function, run_in)
            check_kind_of_job(function, place, batch=batch is not None)
            check_place(self._settings, terms, place)
            joined = known.joined(*share, rules)
            joined.handler = Handler(name, function, function, run_in=place, read=reader, **terms)
            joined.check_batch(self._settings.options.concurrency)
            handlers[name] = joined
            return function

        return register


def check_terms(
    settings: Settings,
    max_attempts: int | None,
    backoff: Backoff | Wait | None,
    time_limit: float | timedelta | None,
    keep: float | timedelta | None,
    retry_on: Classes | None,
    discard_on: Classes,
    on_dead: OnDead | None,
) -> dict[str, Any]:
    """Return what holds for each attempt of a handler, or task, as :class:`Handler` has it.

    Raises:
        ConfigurationError: one is outside its range.
    """
    options = settings.options
    attempts = options.max_attempts
    if max_attempts is not None:
        attempts = checks.max_attempts(max_attempts)
    kept = options.keep if keep is None else checks.keep(keep)
    if kept:
        settings.store.indexes.want("keep")
    limit = None
    if time_limit is not None:
        limit = seconds(time_limit, "time_limit", minimum=0.001)
    standing, wait = backoff_of(backoff, options.backoff)
    return {
        "backoff": standing,
        "max_attempts": attempts,
        "keep": kept,
        "time_limit": limit,
        "failing": failing(retry_on, discard_on, wait),
        "on_dead": settings.on_dead if on_dead is None else check_on_dead(on_dead),
    }


def check_place(settings: Settings, terms: dict[str, Any], place: RunIn) -> None:
    """Raise ConfigurationError for what a worker gives its handlers, and not those in a process."""
    if place == "process" and settings.lifespan is not None:
        raise ConfigurationError(NOT_IN_A_CHILD)
    if place == "process" and terms.get("batch") is not None:
        raise ConfigurationError(NOT_A_BATCH)
    rule: Failing | None = terms["failing"]
    if place == "process" and rule is not None and rule.wait is not None:
        raise ConfigurationError(
            "backoff=, as a function, takes the error, which does not leave the child process of "
            "run_in='process': give a Backoff"
        )


def check_batch(batch: int | None, batch_wait: float | timedelta) -> tuple[int | None, float]:
    """Return both, or raise ConfigurationError."""
    wait = seconds(batch_wait, "batch_wait")
    if batch is not None:
        return checks.whole_number(batch, "batch", 1, checks.MAX_BATCH), wait
    if wait != BATCH_WAIT:
        raise ConfigurationError(
            "batch_wait= is how long the first job of a batch waits for others: say with batch= "
            "how many there may be"
        )
    return None, wait


def check_share(concurrency: int | None, weight: int) -> tuple[int | None, int]:
    """Return both, or raise ConfigurationError."""
    if concurrency is not None:
        checks.whole_number(concurrency, "concurrency", 1, checks.MAX_BATCH)
    return concurrency, checks.weight(weight)
