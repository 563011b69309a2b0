"""Worker: its settings and handlers, and the runs of it that are begun and stopped."""

from __future__ import annotations

import copy
import difflib
import inspect
import signal
import threading
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import anyio
from anyio import TASK_STATUS_IGNORED

from .. import plain, signals
from ..backoff import Backoff
from ..clock import monotonic
from ..durations import shown
from ..errors import ConfigurationError, StreamQueueError, only_one
from ..health.app import HealthApp
from ..health.health import Health
from ..health.server import HealthServer, MetricsAddress
from ..metrics.series import Metrics
from ..options import WorkerOptions
from ..signals import CUT_SHORT, END, HURRY, STOP
from ..store import first_answer
from ..store.asynchronous import AsyncStore
from ..store.rights import check_rights
from .deaths import check_on_dead
from .execution.middleware import check_middleware
from .execution.processes import check_not_in_child
from .lifespan import check_lifespan, open_lifespan
from .run import NOT_TOLD, Run
from .settings import Settings
from .tasks.tasking import Tasking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from typing import Unpack

    from anyio.abc import TaskStatus
    from prometheus_client import CollectorRegistry
    from pymongo.asynchronous.collection import AsyncCollection

    from ..health.certificates import StrPath
    from ..options import RarerSettings
    from .execution.middleware import Middleware
    from .handler import OnDead
    from .lifespan import Factory
    from .until_empty import Remaining

logger = plain.logger("streamqueue.worker")

PATIENCE = 10.0
"""Seconds a command of the worker may take before its connection counts as wedged. What fails is
tried again, so an election that takes longer costs nothing but a line in the log."""
ExportState = Literal["off", "leader"]
NOT_RUNNING = "the worker does not run"
NOT_OPEN = "the change stream is not open yet"
SAME_STOP = 0.5
"""Seconds in which a signal that follows another order to stop is that same order: service managers
send theirs to every process of a service, and a supervisor passes it on."""


class Worker(Tasking):
    """Runs the handlers and tasks of one or more queues until told to stop.

    Args:
        collection: a pymongo ``AsyncCollection`` (or ``AsyncDatabase``: its ``jobs`` collection).
        concurrency: handlers that run at the same time. Default 20.
        timeout: the lease, in seconds or a timedelta: how long a dead process keeps its jobs. It is
            renewed while a handler runs, so it does not limit handlers. Default 30.
        max_attempts: claims a job may use up, unless it was put with its own. Default 3.
        drain_timeout: seconds running handlers get after a stop. Default 30.
        backoff: the wait after a failed attempt.
        keep: seconds (or a timedelta) that a job stays when it is done, with its result, unless its
            put or its handler says. None, the default, removes it at once.
        lifespan: an async context manager factory, called with the worker: what all handlers of
            a process share, such as a client. It is opened once in each process, before the first
            claim, and closed after the last handler has ended (or was left behind), also when the
            run ends by an error. The mapping that it yields is ``job.context``; default: empty.
            If opening it raises, the worker does not start; if closing it does, or takes more than
            5 seconds, that is logged and :meth:`run` raises.
        middleware: async functions that are called for every attempt around its handler, the first
            outermost: ``async def around(job, call_next): return await call_next(job)``. See the
            guide on what stands around handlers. Default none, which costs nothing.
        on_dead: called with the job (a :class:`JobInfo`) and the exception of its handler, or None,
            once this worker has made a job dead; a ``def`` in a thread. Once at most: not if the
            process dies in between. Not for jobs whose consumer died: those a reaper ends. A
            handler may have another.
        misfit_grace: seconds (or a timedelta) that a job whose payload does not fit its handler's
            ``payload=`` is left to other workers, without an attempt, before it is dead. Default
            3600: longer than a rolling deployment takes. 0: dead at once.
        registry: where the metrics are registered; None is prometheus_client's own.
        metrics_port: serve ``/metrics``, ``/healthz`` and ``/readyz`` there (0: any free port).
            None, the default, does not serve.
        metrics_host: the address to serve on. Default 127.0.0.1: not reachable from outside.
        export_state: ``"leader"`` also exports how the queues stand (depth, age, consumers), from
            one of the workers that are told so: the one that leads. ``"off"``, the default, leaves
            it to ``streamqueue exporter``.
        metrics_cert: serve HTTPS there, with the certificate in this PEM file. It and the two below
            are read again when they change. Default: plain HTTP.
        metrics_key: its private key, a PEM file, unless `metrics_cert` has it too.
        metrics_client_ca: serve only clients with a certificate of an authority in this PEM file.
        settings: the rarer ones, see :class:`~streamqueue.options.WorkerOptions`.

    Attributes:
        left: how many handlers were still at it when the last run had ended: they swallow their
            cancellation, or block a thread. It is for the program to end without them.

    Raises:
        ConfigurationError: an argument outside its range.

    ::

        worker = Worker(AsyncMongoClient(uri).shop.jobs)

        @worker.handler("emails")
        async def send(job):
            await smtp.send(job.data["to"])

        @worker.task("emails")
        async def welcome(to, lang="en"):      # await queue.put(welcome.call("ada@example.org"))
            await smtp.send(to, texts[lang])

        anyio.run(worker.run)
    """

    def __init__(
        self,
        collection: AsyncCollection[Any],
        *,
        concurrency: int = 20,
        timeout: float | timedelta = 30,
        max_attempts: int = 3,
        drain_timeout: float | timedelta = 30,
        backoff: Backoff | None = None,
        keep: float | timedelta | None = None,
        lifespan: Factory | None = None,
        middleware: Sequence[Middleware] = (),
        on_dead: OnDead | None = None,
        misfit_grace: float | timedelta = 3600,
        registry: CollectorRegistry | None = None,
        metrics_port: int | None = None,
        metrics_host: str = "127.0.0.1",
        export_state: ExportState = "off",
        metrics_cert: StrPath | None = None,
        metrics_key: StrPath | None = None,
        metrics_client_ca: StrPath | None = None,
        **settings: Unpack[RarerSettings],
    ) -> None:
        _refuse_unknown(settings)
        options = WorkerOptions(
            concurrency=concurrency,
            timeout=timeout,
            max_attempts=max_attempts,
            drain_timeout=drain_timeout,
            backoff=backoff or Backoff(),
            keep=keep,
            misfit_grace=misfit_grace,
            **settings,
        )
        if export_state not in get_args(ExportState):
            raise ConfigurationError(
                f"export_state must be 'off' or 'leader', not {export_state!r}"
            )
        self._settings = Settings(
            AsyncStore(collection, patience=PATIENCE),
            options,
            MetricsAddress(
                metrics_port, metrics_host, metrics_cert, metrics_key, metrics_client_ca
            ),
            registry,
            exports=export_state == "leader",
            lifespan=check_lifespan(lifespan),
            middleware=check_middleware(middleware),
            on_dead=check_on_dead(on_dead),
        )
        self._has_not_run()

    def _has_not_run(self) -> None:
        self._stop: anyio.Event | None = None
        self._hurry: anyio.Event | None = None
        self._told_at = 0.0
        self._remaining: Remaining | None = None
        self.left = 0
        self.health = Health()
        self.health.not_ready("worker", NOT_RUNNING)
        self.server: HealthServer | None = None

    def health_app(self) -> HealthApp:
        """Return ``/metrics``, ``/healthz`` and ``/readyz`` for a server of the program's own.

        For a worker that runs inside a web application, in place of `metrics_port`. Until it runs
        and after it has ended it is not ready; and not alive, once that has been so for 10 seconds.
        """
        return HealthApp(self._settings.registry, self.health)

    @property
    def stopping(self) -> bool:
        """Whether it runs and was told to stop."""
        return self._stop is not None and self._stop.is_set()

    def stop(self) -> None:
        """Stop gracefully: :meth:`run` returns once handlers have finished, or were released when
        the drain time was over. A second call ends the drain time now. Call it in the event loop.
        """
        if self._stop is None or self._hurry is None:
            raise ConfigurationError("this worker is not running")
        self._tell(STOP if not self._stop.is_set() else HURRY)

    def _tell(self, order: int) -> None:
        if self._stop is None or self._hurry is None:
            return
        if order >= HURRY:
            self._hurry.set()
        if not self._stop.is_set():
            self._told_at = monotonic()
            self._stop.set()
        ending = signals.ending()
        if ending is not None:
            ending.told(order)

    async def run(
        self,
        *,
        until: Literal["empty"] | None = None,
        handle_signals: bool = True,
        task_status: TaskStatus[None] = TASK_STATUS_IGNORED,
    ) -> Remaining | None:
        """Work until stopped; as a task, started once the change stream is open, or it was stopped.

        A handler that does not end within 5 seconds of its cancellation is named in the log and
        left: see `left`.

        Args:
            until: ``"empty"`` also ends it, in order, when no job of its queues is ready, due or
                running, be it here or elsewhere; those that a limit or their group holds back are
                waited for. Paused queues, jobs that are to run later (retries among them) and jobs
                that wait for others are not: it returns how many there are. Default None: only a
                stop ends it.
            handle_signals: let SIGTERM, SIGINT and SIGHUP stop it (in the main thread); a second
                one ends the drain time, and a third the process.

        Returns:
            What is left, of ``until="empty"``; None when it was stopped before.

        Raises:
            ConfigurationError: no handler is registered, it runs already, the metrics cannot be
                served as they should be, or it is a child process that should only load the module.
            ReplicaSetRequired: a standalone server.
            PyMongoError: no server, or a privilege is missing. Only at the start: what happens
                later is retried, logged and counted.
            StreamQueueError: it ended though nobody told it to stop, or its lifespan failed.
        """
        check_not_in_child()
        self._settings.check_handlers()
        if until not in (None, "empty"):
            raise ConfigurationError(f"until must be 'empty' or None, not {shown(until)}")
        if self._stop is not None:
            raise ConfigurationError("this worker is running already")
        self._stop, self._hurry = anyio.Event(), anyio.Event()
        self.left = 0
        self._remaining = None
        self.health.not_ready("stream", NOT_OPEN)  # first: it must not look ready in between
        self.health.clear("worker")
        self.health.clear("draining")
        try:
            async with anyio.create_task_group() as listening:
                if handle_signals and threading.current_thread() is threading.main_thread():
                    await listening.start(self._obey_signals)
                await self._run(self._stop, self._hurry, until, task_status)
                listening.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # A missing privilege, found by the first stream: nobody should have to unwrap it.
            error = only_one(group)
            raise error from error.__cause__
        finally:
            self._stop = self._hurry = None
            self.health.not_ready("worker", NOT_RUNNING)
            if self.server is not None:
                self.server.stop()
                self.server = None
        return self._remaining

    def _emptied(self, remaining: Remaining) -> None:
        self._remaining = remaining
        self._tell(STOP)

    async def _run(
        self,
        stop: anyio.Event,
        hurry: anyio.Event,
        until: str | None,
        task_status: TaskStatus[None],
    ) -> None:
        run: Run | None = None

        async def give_up_starting() -> None:
            await stop.wait()
            if run is None or not run.ready:
                starting.cancel_scope.cancel()

        async with anyio.create_task_group() as starting:
            starting.start_soon(give_up_starting)
            address, store = self._settings.metrics_address, self._settings.store
            address.check()
            await first_answer.prepare(store)
            await check_rights(store)
            metrics = Metrics.of(self._settings.registry)
            self.server = address.serve(metrics.registry, self.health)
            if self.server is not None:
                logger.info(
                    "Serving metrics and health on %s",
                    self.server.url,
                    extra={"event": "metrics_served"},
                )
            async with open_lifespan(self._settings.lifespan, self, self.health) as context:
                empty = self._emptied if until else None
                run = Run(self._settings, self.health, metrics, context, empty)
                try:
                    await run.serve(stop, hurry, task_status=task_status)
                finally:
                    self.left = run.left
            starting.cancel_scope.cancel()
        if not stop.is_set():
            raise StreamQueueError(NOT_TOLD)
        if run is None or not run.ready:
            logger.info("Stopped before it was ready", extra={"event": "worker_stopped"})
            task_status.started()  # or whoever waits for that would be told of an error

    async def _obey_signals(self, *, task_status: TaskStatus[None]) -> None:
        with signals.stop_signals() as received:
            task_status.started()
            count = 0
            async for number in received:
                count += 1
                name = signal.Signals(number).name
                logger.info("Received %s", name, extra={"event": "signal_received", "signal": name})
                if count >= END:
                    signals.end(CUT_SHORT, f"Received {name} for the third time: ended now")
                again = self.stopping and monotonic() - self._told_at > SAME_STOP
                self._tell(HURRY if again or count > 1 else STOP)


def settings_of(worker: Worker) -> Settings:
    """Return what a worker was made with, for the command line and for other processes' sake."""
    return worker._settings


def copied(worker: Worker, *, store: AsyncStore, **settings: Any) -> Worker:
    """Return a worker with the handlers and settings of another one, but for these, and runs of its
    own."""
    made = copy.copy(worker)
    made._settings = replace(worker._settings, store=store, **settings)
    made._has_not_run()
    if any(handler.keep for queue in made._settings.handlers.values() for handler in queue):
        store.indexes.want("keep")
    return made


def _refuse_unknown(settings: Mapping[str, object]) -> None:
    """Raise if one of the settings is none, with the one that was probably meant."""
    rarer = {field.name for field in fields(WorkerOptions)}
    for name in settings.keys() - rarer:
        arguments = [*rarer, *inspect.signature(Worker).parameters]
        close = difflib.get_close_matches(name, sorted({*arguments} - {"settings"}), n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise ConfigurationError(f"Worker() has no setting {name!r}{hint}")
