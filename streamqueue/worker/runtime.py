"""Worker: one task group that holds all the parts of a consumer process.

Start: check the server → open the stream → then look at what is waiting (what comes in between is
an event) → serve. Stop: claim nothing more and keep renewing → let handlers finish → after
``drain_timeout`` release the rest → close the stream.
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import TASK_STATUS_IGNORED, CancelScope

from .. import options as checks
from ..async_store import AsyncStore
from ..backoff import Backoff
from ..clock import monotonic
from ..errors import ConfigurationError, only_one
from ..exporter import Exporter
from ..health import Health
from ..health_app import HealthApp
from ..health_server import HealthServer, MetricsAddress
from ..metrics import AttemptOutcome, Metrics
from ..options import WorkerOptions
from ..stream import changed_state
from ..watcher import Watcher
from .claimer import Claimer
from .completer import Completer
from .execution import Execution
from .handler import Handler, RegisteredHandler, is_async
from .lease import Attempt, Leases
from .peers import Peers
from .reaper import Reaper
from .slots import Slots
from .timers import Sweep, Timers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

    from anyio.abc import TaskStatus
    from prometheus_client import CollectorRegistry
    from pymongo.asynchronous.collection import AsyncCollection

    from ..certificates import StrPath

logger = logging.getLogger("streamqueue.worker")

Function = TypeVar("Function", bound="Callable[..., Any]")

PATIENCE = 10.0
"""Seconds a command of the worker may take before its connection counts as wedged. What fails is
tried again, so an election that takes longer costs nothing but a line in the log."""
EXPORT_STATE = ("off", "leader")
LOOP_TICK = 0.5
"""Seconds between two beats of the event loop, for its lag and ``/healthz``."""
NOT_RUNNING = "the worker does not run"
NOT_OPEN = "the change stream is not open yet"


class Worker:
    """Runs the handlers of one or more queues until told to stop.

    Args:
        collection: a pymongo ``AsyncCollection`` (or ``AsyncDatabase``: its ``jobs`` collection).
        concurrency: handlers that run at the same time. Default 20.
        timeout: the lease, in seconds or a timedelta: how long a dead process keeps its jobs. It is
            renewed while a handler runs, so it does not limit handlers. Default 30.
        max_attempts: claims a job may use up, unless it was put with its own. Default 3.
        drain_timeout: seconds running handlers get after a stop. Default 30.
        backoff: the wait after a failed attempt.
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

    Raises:
        ConfigurationError: an argument outside its range.

    ::

        worker = Worker(AsyncMongoClient(uri).shop.jobs)

        @worker.handler("emails")
        async def send(job):
            await smtp.send(job.data["to"])

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
        registry: CollectorRegistry | None = None,
        metrics_port: int | None = None,
        metrics_host: str = "127.0.0.1",
        export_state: str = "off",
        metrics_cert: StrPath | None = None,
        metrics_key: StrPath | None = None,
        metrics_client_ca: StrPath | None = None,
        **settings: Any,
    ) -> None:
        try:
            self.options = WorkerOptions(
                concurrency=concurrency,
                timeout=timeout,
                max_attempts=max_attempts,
                drain_timeout=drain_timeout,
                backoff=backoff or Backoff(),
                **settings,
            )
        except TypeError as error:
            raise ConfigurationError(f"Worker() does not know that setting: {error}") from error
        self._store = AsyncStore(collection, patience=PATIENCE)
        self._registry = registry
        self.metrics_address = MetricsAddress(
            metrics_port, metrics_host, metrics_cert, metrics_key, metrics_client_ca
        )
        self.export_state = export_state
        self._handlers: dict[str, Handler] = {}
        self._stop: anyio.Event | None = None
        self._hurry: anyio.Event | None = None
        self.health = Health()
        self.health.not_ready("worker", NOT_RUNNING)
        self.server: HealthServer | None = None

    @property
    def export_state(self) -> str:
        """Who exports how the queues stand: ``"leader"`` or ``"off"``."""
        return self._export_state

    @export_state.setter
    def export_state(self, value: str) -> None:
        if value not in EXPORT_STATE:
            raise ConfigurationError(f"export_state must be 'off' or 'leader', not {value!r}")
        self._export_state = value

    def handler(
        self,
        queue: str,
        *,
        backoff: Backoff | None = None,
        max_attempts: int | None = None,
    ) -> Callable[[Function], Function]:
        """Register the function that runs the jobs of a queue; one per queue.

        It takes the job: an :class:`AsyncJob` for ``async def``, a :class:`Job` for ``def``, which
        runs in a thread. Returning completes the job; an exception fails the attempt, with its
        traceback stored; ``Retry``, ``Snooze`` and ``Discard`` say it more exactly. An async
        handler is cancelled when the lease is lost; a blocking one learns it from its next call.

        Args:
            queue: the queue's name.
            backoff: the wait after a failed attempt; default the worker's.
            max_attempts: for jobs that were put without; default the worker's.
        """
        name = checks.queue_name(queue)
        if name in self._handlers:
            raise ConfigurationError(f"queue {name!r} has a handler already: one per queue")
        attempts = self.options.max_attempts
        if max_attempts is not None:
            attempts = checks.max_attempts(max_attempts)

        def register(function: Function) -> Function:
            self._handlers[name] = Handler(
                queue=name,
                function=function,
                backoff=backoff or self.options.backoff,
                max_attempts=attempts,
                is_async=is_async(function),
            )
            return function

        return register

    @property
    def queues(self) -> list[str]:
        """The queues that have a handler."""
        return list(self._handlers)

    def health_app(self) -> HealthApp:
        """Return ``/metrics``, ``/healthz`` and ``/readyz`` for a server of the program's own.

        For a worker that runs inside a web application, in place of `metrics_port`. Until it runs
        and after it has ended it is not ready; and not alive, once that has been so for 10 seconds.
        """
        return HealthApp(self._registry, self.health)

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
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(
        self, *, handle_signals: bool = True, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Work until stopped; as a task, started once the change stream is open.

        Args:
            handle_signals: let SIGTERM and SIGINT stop it (in the main thread).

        Raises:
            ConfigurationError: no handler is registered, it runs already, or the metrics cannot be
                served as they should be.
            ReplicaSetRequired: a standalone server.
            PyMongoError: no server, or a privilege is missing. Only at the start: what happens
                later is retried, logged and counted.
        """
        if not self._handlers:
            raise ConfigurationError("this worker has no handler: register one per queue first")
        if self._stop is not None:
            raise ConfigurationError("this worker is running already")
        self._stop, self._hurry = anyio.Event(), anyio.Event()
        self.health.not_ready("stream", NOT_OPEN)  # first: it must not look ready in between
        self.health.clear("worker")
        self.health.clear("draining")
        try:
            await self._store.prepare()
            metrics = Metrics.of(self._registry)
            self.server = self.metrics_address.serve(metrics.registry, self.health)
            await _Run(self, metrics).serve(
                self._stop, self._hurry, handle_signals=handle_signals, task_status=task_status
            )
        except BaseExceptionGroup as group:
            # A missing privilege, found by the first stream: nobody should have to unwrap it.
            raise only_one(group) from None
        finally:
            self._stop = self._hurry = None
            self.health.not_ready("worker", NOT_RUNNING)
            if self.server is not None:
                self.server.stop()
                self.server = None


class _Run:
    """One run of a worker: its parts, made in its event loop and gone with it.

    Also the watcher's listener: an event is passed to whoever has use for it.
    """

    def __init__(self, worker: Worker, metrics: Metrics) -> None:
        options, store = worker.options, worker._store
        timeout = float(options.timeout)  # type: ignore[arg-type]
        self._drain_timeout = float(options.drain_timeout)  # type: ignore[arg-type]
        self._store = store
        self._health = worker.health
        self._metrics = metrics
        self._consumer = str(options.consumer_id)
        self._ready = False
        self._began = monotonic()
        self._stopping_at: float | None = None
        self._given_back = 0
        self._opened_before = False
        self._handlers: Mapping[str, RegisteredHandler] = {
            queue: RegisteredHandler(handler, metrics.consumer(queue, handler.task))
            for queue, handler in worker._handlers.items()
        }
        for registered in self._handlers.values():
            registered.metrics.limit.set(options.concurrency)
        self._slots = Slots(options.concurrency)
        self._leases = Leases(store, timeout, metrics)
        self._execution = Execution(store, self._leases, self._slots)
        self._completer = Completer(store, timeout, metrics, self._execution.ended)
        self._execution.completer = self._completer
        self._peers = Peers(store, self._consumer, worker.queues, options.concurrency)
        self._claimer = Claimer(
            store,
            self._handlers,
            self._completer,
            self._slots,
            self._peers,
            options,
            metrics,
            self._start,
        )
        self._timers = Timers(store, worker.queues, metrics)
        self._reaper = Reaper(
            store,
            self._handlers,
            options.max_attempts,
            float(options.reap_interval),  # type: ignore[arg-type]
            self._peers,
            metrics,
        )
        self._sweep: Sweep | None = None
        if options.sweep_interval is not None:
            interval = float(options.sweep_interval)  # type: ignore[arg-type]
            self._sweep = Sweep(
                store,
                self._handlers,
                self._claimer,
                [self._timers, self._reaper],
                interval,
                float(options.max_await),  # type: ignore[arg-type]
                metrics,
                lambda: self._watcher.signs,
            )
        self._exporter: Exporter | None = None
        if worker.export_state == "leader":
            candidate = str(options.consumer_id)
            self._exporter = Exporter(store, metrics.registry, candidate=candidate)
        self._watcher = Watcher(
            store.jobs,
            worker.queues,
            self,
            max_await=float(options.max_await),  # type: ignore[arg-type]
            metrics=metrics.stream,
            health=worker.health,
        )

    async def serve(
        self,
        stop: anyio.Event,
        hurry: anyio.Event,
        *,
        handle_signals: bool,
        task_status: TaskStatus[None],
    ) -> None:
        logger.info(
            "Starting consumer %s: %d jobs at a time of queues: %s",
            self._consumer,
            self._slots.concurrency,
            ", ".join(self._handlers),
            extra={
                "event": "worker_started",
                "consumer": self._consumer,
                "queues": list(self._handlers),
                "concurrency": self._slots.concurrency,
            },
        )
        try:
            await self._serve(stop, hurry, handle_signals, task_status)
        finally:
            self._given_back += await self._leases.give_back()
            if self._ready:
                self._log_stopped()

    async def _serve(
        self,
        stop: anyio.Event,
        hurry: anyio.Event,
        handle_signals: bool,
        task_status: TaskStatus[None],
    ) -> None:
        async with anyio.create_task_group() as parts:
            if handle_signals and threading.current_thread() is threading.main_thread():
                await parts.start(_stop_on_signal, stop, hurry)
            parts.start_soon(self._beat)
            async with anyio.create_task_group() as runners:
                self._execution.open(runners)
                await parts.start(self._watcher.run)
                await self._peers.join()
                parts.start_soon(self._peers.run)
                parts.start_soon(self._leases.run)
                parts.start_soon(self._completer.run)
                parts.start_soon(self._timers.run)
                parts.start_soon(self._reaper.run)
                if self._sweep is not None:
                    parts.start_soon(self._sweep.run)
                if self._exporter is not None:
                    parts.start_soon(self._exporter.run)
                parts.start_soon(self._claimer.run)
                logger.info(
                    "Working on queues: %s",
                    ", ".join(self._handlers),
                    extra={
                        "event": "worker_ready",
                        "consumer": self._consumer,
                        "queues": list(self._handlers),
                        "seconds": round(monotonic() - self._began, 3),
                    },
                )
                self._ready = True
                task_status.started()
                try:
                    await stop.wait()
                finally:
                    # Also when this task was cancelled: a claim under way is shielded, and what it
                    # brings must not go to runners that are gone.
                    self._claimer.stop()
                await self._drain(hurry)
            parts.cancel_scope.cancel()

    async def _drain(self, hurry: anyio.Event) -> None:
        self._stopping_at = monotonic()
        logger.info(
            "Stopping: claiming nothing more, %d jobs are running",
            len(self._leases),
            extra={
                "event": "worker_stopping",
                "consumer": self._consumer,
                "count": len(self._leases),
            },
        )
        self._health.draining()
        self._claimer.stop()
        self._watcher.stop()
        with CancelScope(shield=True):
            await self._claimer.stopped.wait()
        await self._peers.leave()
        async with anyio.create_task_group() as patience:

            async def give_up() -> None:
                with anyio.move_on_after(self._drain_timeout):
                    await hurry.wait()
                patience.cancel_scope.cancel()

            patience.start_soon(give_up)
            await self._until_nothing_is_held()
            patience.cancel_scope.cancel()
        self._completer.hurry()
        left = self._leases.held()
        for attempt in left:
            for scope in (attempt.scope, attempt.abandon):
                if scope is not None:
                    scope.cancel()
        with CancelScope(shield=True):
            await self._until_nothing_is_held()
        self._given_back = sum(attempt.outcome is AttemptOutcome.RELEASED for attempt in left)
        self._execution.close()

    def _log_stopped(self) -> None:
        now = monotonic()
        drained = now - (now if self._stopping_at is None else self._stopping_at)
        logger.info(
            "Stopped: drained for %.1f s, gave %d jobs back",
            drained,
            self._given_back,
            extra={
                "event": "worker_stopped",
                "consumer": self._consumer,
                "seconds": round(drained, 3),
                "count": self._given_back,
            },
        )

    async def _until_nothing_is_held(self) -> None:
        while self._slots.held:
            await self._slots.wait_for_change()

    def _start(self, attempt: Attempt) -> None:
        """Run a claimed job."""
        self._reaper.activity()
        self._execution.start(attempt)

    async def _beat(self) -> None:
        """Note that the event loop turns, and how late it is."""
        while True:
            self._health.beat()
            due = anyio.current_time() + LOOP_TICK
            await anyio.sleep(LOOP_TICK)
            self._metrics.worker.event_loop_lag.observe(max(0.0, anyio.current_time() - due))

    # the watcher's listener

    def opened(self) -> None:
        if self._opened_before:
            self._store.recheck_indexes()  # a stream may break because its collection was dropped
        self._opened_before = True
        self._claimer.scan(adopt=True)
        self._timers.look()
        self._reaper.look()

    @property
    def loaded(self) -> bool:
        return self._claimer.loaded

    @property
    def leisure(self) -> float:
        return self._claimer.leisure

    async def until_unloaded(self) -> None:
        await self._claimer.until_unloaded()

    def event(self, event: Mapping[str, Any]) -> None:
        document = event.get("fullDocument")
        state = changed_state(event)
        if state == "scheduled":
            fields = document or event.get("updateDescription", {}).get("updatedFields", {})
            self._timers.note(fields.get("run_at"))
        elif state == "ready":
            self._reaper.activity()
            if document is None or document.get("queue") not in self._handlers:
                self._claimer.scan("stream")  # a plain update does not say whose job it was
            else:
                inserted = event["operationType"] == "insert"
                self._claimer.announce(document, inserted=inserted)


async def _stop_on_signal(
    stop: anyio.Event, hurry: anyio.Event, *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        again = False  # not whether it is stopping: it may have been told by something else
        async for received in signals:
            name = signal.Signals(received).name
            logger.info("Received %s", name, extra={"event": "signal_received", "signal": name})
            if again:
                hurry.set()
            stop.set()
            again = True
