"""Keeping the state of the queues on show: a census on a timer, in one place, never per scrape.

Depth, age and consumers are facts of the collection and not of a process: exported by each of
twenty workers they would be read twenty times and be twenty series each. So one process has them:
``streamqueue exporter``, or, in a small set-up, the worker that leads.

The leader holds a lease, as a consumer holds a job: it counts its time from before it asked, so it
stops showing before another may begin.
"""

from __future__ import annotations

import math
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import anyio
import pymongo
from anyio import TASK_STATUS_IGNORED, CancelScope
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from .. import plain
from ..backoff import Backoff
from ..clock import monotonic, sleep_until
from ..durations import seconds
from ..errors import ConfigurationError, only_one
from ..failures import failure_name
from ..metrics.series import Metrics
from ..outage import LoggedOutage
from ..protocol import operations
from ..signals import stop_signals
from ..store.asynchronous import AsyncStore
from ..store.collection import consumers_of
from .census import Surveyor
from .collector import StateMetrics

if TYPE_CHECKING:
    from datetime import timedelta

    from anyio.abc import TaskStatus
    from prometheus_client import CollectorRegistry
    from pymongo.asynchronous.collection import AsyncCollection

    from ..health.health import Health
    from ..health.server import MetricsAddress

logger = plain.logger("streamqueue.exporter")

PATIENCE = 10.0
"""Seconds one read may take before its connection counts as wedged."""
RESIGN_SECONDS = 1.0
"""How long the end of a leader may wait for a server that is away."""
INTERVAL = 5.0
AGAIN = Backoff(initial=1, maximum=5, jitter=0.5)
"""The pause after censuses that failed in a row, where the interval is longer."""
LOOK_AT_AGE = 0.5
"""Seconds between two looks at how old the last census is."""
BUSY_SHARE = 20
"""The pause after a census is at least so many times as long as it took: counting a deep queue may
not cost the server more than a twentieth of a core ..."""
LONGEST_PAUSE = 60.0
"""... unless the counts would be older than a minute by that: alerts are to notice an outage."""
STALE_INTERVALS, STALE_AFTER = 4, 30.0
"""A census expires after the largest of so many intervals, half a minute, and twice the pause that
follows it. A silent leader is replaced after the larger of the first two."""


class Exporter:
    """Takes a census at intervals and shows it on a registry while it runs.

    Args:
        store: the jobs.
        registry: where the series are while :meth:`run` runs.
        interval: seconds (or a timedelta) from one census to the next, jittered by a tenth; longer
            after one that took long. Default 5.
        candidate: None to export without asking; else this consumer's name, and of all candidates
            of the collection only the one that leads exports.
        health: told when there is no good census. A worker has better reasons not to be ready.

    Raises:
        ConfigurationError: `interval` outside its range.
    """

    def __init__(
        self,
        store: AsyncStore,
        registry: CollectorRegistry,
        *,
        interval: float | timedelta | None = None,
        candidate: str | None = None,
        health: Health | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._interval = seconds(
            INTERVAL if interval is None else interval, "interval", minimum=0.1
        )
        self._stale_after = max(STALE_AFTER, STALE_INTERVALS * self._interval)
        self._surveyor = Surveyor(store)
        self._consumers = consumers_of(store.jobs)
        self._candidate = candidate
        self._health = health
        self._metrics = StateMetrics()
        self._leads_until = math.inf if candidate is None else -math.inf
        self._next_at = -math.inf  # when the next census is due
        self._outage = LoggedOutage(logger, "census", "Counting the queues")
        self._failures = 0
        self._not_ready("no census has been taken yet")

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Export for ever; as a task, started once the registry has the series.

        Raises:
            ConfigurationError: another one exports on the same registry.
        """
        self._metrics.lead(self._leads_until)
        try:
            self._registry.register(self._metrics)
        except ValueError as error:
            raise ConfigurationError(
                "the state of the queues is on this registry already: of the workers of a process "
                "that share one, give export_state='leader' to one, or each a registry of its own"
            ) from error
        task_status.started()
        try:
            async with anyio.create_task_group() as tasks:
                if self._health is not None:
                    tasks.start_soon(self._watch_age, self._health)
                while True:
                    pause = await self._step()
                    await sleep_until(monotonic() + pause * random.uniform(0.9, 1.1))
        finally:
            self._registry.unregister(self._metrics)
            await self._resign()

    async def _step(self) -> float:
        """Take a census if it is due and ours to take; return the seconds to pause."""
        try:
            if self._candidate is None:
                return await self.take()
            # In between, too: the pause after a long census is longer than a leader may be silent.
            look_in = self._stale_after / 3
            if not await self._lead(self._candidate):
                return look_in
            if monotonic() >= self._next_at:
                self._next_at = monotonic() + await self.take()
            return min(look_in, max(0.0, self._next_at - monotonic()))
        except Exception as error:  # whatever is in the documents, it must not end the worker
            self._failed(error)
            self._failures += 1
            return min(self._interval, AGAIN.delay(self._failures))

    async def take(self) -> float:
        """Take a census and show it; return the seconds to pause.

        Raises:
            PyMongoError: the server.
        """
        started = monotonic()
        await self._store.prepare()
        census = await self._surveyor.take()
        took = monotonic() - started
        pause = max(self._interval, min(BUSY_SHARE * took, LONGEST_PAUSE))
        # At the least until the next one is there.
        self._metrics.show(census, started + max(self._stale_after, took + 2 * pause))
        self._metrics.duration.observe(took)
        self._metrics.last_success.set(time.time())
        self._outage.succeeded()
        self._failures = 0
        if self._health is not None:
            self._health.clear("state")
        return pause

    async def _watch_age(self, health: Health) -> None:
        """Be not ready without a good census, also when the next one neither ends nor fails."""
        while True:
            if not self._metrics.shows and "state" not in health.reasons():
                self._not_ready("the last census of the queues is too long ago")
            await anyio.sleep(LOOK_AT_AGE)

    def _failed(self, error: Exception) -> None:
        self._metrics.errors.inc()
        name = failure_name(error)
        self._outage.failed(error, "The queues could not be counted: %s")
        if self._failures == 0 and not isinstance(error, PyMongoError):  # a mistake of ours
            logger.error(
                "A fault in the counting of the queues",
                exc_info=error,
                extra={"event": "census_failed"},
            )
        if not self._metrics.shows:
            self._not_ready(f"the queues could not be counted for a while: {name}")

    def _not_ready(self, reason: str) -> None:
        if self._health is not None:
            self._health.not_ready("state", reason)

    # who leads

    async def _lead(self, candidate: str) -> bool:
        """Stay the leader, or become it when there is none."""
        led = self._metrics.leads
        sent = monotonic()
        if self._leads_until - sent > self._stale_after / 2:
            return True
        try:
            with CancelScope(shield=True), self._store.limit():
                command = operations.lead(candidate, self._stale_after)
                found = await self._consumers.find_one_and_update(
                    *command, upsert=True, return_document=ReturnDocument.AFTER
                )
            ours = found is not None and found["holder"] == candidate
        except DuplicateKeyError:  # another one became the first leader at the same moment
            ours = False
        self._leads_until = sent + self._stale_after if ours else -math.inf
        self._metrics.lead(self._leads_until)
        if self._metrics.leads and not led:
            self._next_at = -math.inf
            logger.info(
                "This process exports the state of the queues now",
                extra={"event": "leading", "consumer": candidate},
            )
        elif led and not self._metrics.leads:
            logger.warning(
                "Another process exports the state of the queues now",
                extra={"event": "leading_no_more", "consumer": candidate},
            )
        return self._metrics.leads

    async def _resign(self) -> None:
        """Make way, so that the next leader need not wait for the lease to end."""
        if self._candidate is None or not self._metrics.leads:
            return
        self._metrics.lead(-math.inf)
        try:
            with CancelScope(shield=True), pymongo.timeout(RESIGN_SECONDS):
                await self._consumers.delete_one(operations.resign(self._candidate))
        except PyMongoError:
            pass  # its lease will end


async def serve_state(
    jobs: AsyncCollection[Any],
    address: MetricsAddress,
    health: Health,
    *,
    interval: float | timedelta = INTERVAL,
) -> None:
    """Export the state of the queues of a collection over HTTP until SIGTERM or SIGINT.

    The first census is taken before anything is served, and `health` is ready once it is.

    Raises:
        ConfigurationError: `interval` out of its range, or an address nobody can listen on.
        ReplicaSetRequired: a standalone server.
        PyMongoError: the first census could not be taken. Later ones are tried again.
    """
    address.check()
    health.not_ready("start", "nothing is served yet")
    registry = Metrics.of(None).registry
    exporter = Exporter(
        AsyncStore(jobs, patience=PATIENCE), registry, interval=interval, health=health
    )
    await exporter.take()
    server = None
    try:
        async with anyio.create_task_group() as tasks:
            with stop_signals() as signals:
                await tasks.start(exporter.run)  # the first scrape sees it all
                server = address.serve(registry, health)
                tasks.start_soon(health.keep_beating)
                health.clear("start")
                if server is not None:
                    logger.info(
                        "Serving the state of the queues on %s",
                        server.url,
                        extra={"event": "exporter_ready"},
                    )
                async for received in signals:
                    name = signal.Signals(received).name
                    logger.info(
                        "Received %s", name, extra={"event": "signal_received", "signal": name}
                    )
                    break
                health.draining()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only_one(group) from None
    finally:
        if server is not None:
            server.stop()
    logger.info("Stopped", extra={"event": "exporter_stopped"})
