"""Worker: its settings and handlers, and the runs of it that are begun and stopped."""

from __future__ import annotations

import difflib
import inspect
import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import TASK_STATUS_IGNORED

from .. import options as checks
from ..async_store import AsyncStore
from ..backoff import Backoff
from ..errors import ConfigurationError, only_one
from ..health import Health
from ..health_app import HealthApp
from ..health_server import HealthServer, MetricsAddress
from ..metrics import Metrics
from ..options import WorkerOptions
from .dealer import Dealer
from .hand import Invitations
from .handler import Handler, is_async
from .run import Run

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from datetime import timedelta

    from anyio.abc import TaskStatus
    from prometheus_client import CollectorRegistry
    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.collection import AsyncCollection

    from ..certificates import StrPath

logger = logging.getLogger("streamqueue.worker")

Function = TypeVar("Function", bound="Callable[..., Any]")

PATIENCE = 10.0
"""Seconds a command of the worker may take before its connection counts as wedged. What fails is
tried again, so an election that takes longer costs nothing but a line in the log."""
EXPORT_STATE = ("off", "leader")
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
        _refuse_unknown(settings)
        self.options = WorkerOptions(
            concurrency=concurrency,
            timeout=timeout,
            max_attempts=max_attempts,
            drain_timeout=drain_timeout,
            backoff=backoff or Backoff(),
            **settings,
        )
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
        self._invitations = Invitations()

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

    def join(self, channel: socket.socket) -> None:
        """Be dealt jobs by the dealer at the other end, when this worker runs.

        For the supervisor of several. Without a dealer a worker listens to a stream of its own, and
        so does one that runs again, until it is given another connection.
        """
        self._invitations.bring(channel)

    def dealer(self) -> Dealer:
        """Return what deals out the jobs of its queues to several workers like this one.

        Raises:
            ConfigurationError: no handler is registered.
        """
        self._check_handlers()
        max_await = float(self.options.max_await)  # type: ignore[arg-type]
        return Dealer(self._store, list(self._handlers), max_await=max_await)

    def _check_handlers(self) -> None:
        if not self._handlers:
            raise ConfigurationError("this worker has no handler: register one per queue first")

    @property
    def client(self) -> AsyncMongoClient[Any]:
        """The client of the collection, as it was given."""
        return self._store.jobs.database.client

    @property
    def queues(self) -> list[str]:
        """The queues that have a handler."""
        return list(self._handlers)

    def handles(self, function: object) -> bool:
        """Whether the function is the handler of one of its queues."""
        return any(handler.function is function for handler in self._handlers.values())

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
        self._check_handlers()
        if self._stop is not None:
            raise ConfigurationError("this worker is running already")
        self._stop, self._hurry = anyio.Event(), anyio.Event()
        self.health.not_ready("stream", NOT_OPEN)  # first: it must not look ready in between
        self.health.clear("worker")
        self.health.clear("draining")
        try:
            self.metrics_address.check()
            await self._store.prepare()
            await self._store.check_rights()
            metrics = Metrics.of(self._registry)
            self.server = self.metrics_address.serve(metrics.registry, self.health)
            if self.server is not None:
                logger.info(
                    "Serving metrics and health on %s",
                    self.server.url,
                    extra={"event": "metrics_served"},
                )
            run = Run(
                self.options,
                self._store,
                self._handlers,
                self.health,
                metrics,
                exports=self.export_state == "leader",
                invitations=self._invitations,
            )
            await run.serve(
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


def _refuse_unknown(settings: dict[str, Any]) -> None:
    """Raise if one of the settings is none, with the one that was probably meant."""
    rarer = {field.name for field in fields(WorkerOptions)}
    for name in settings.keys() - rarer:
        arguments = [*rarer, *inspect.signature(Worker).parameters]
        close = difflib.get_close_matches(name, sorted({*arguments} - {"settings"}), n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise ConfigurationError(f"Worker() has no setting {name!r}{hint}")
