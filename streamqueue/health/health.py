"""What a process says about itself: whether it lives, whether it is ready, and its metrics.

Here is what is said. ``server`` carries it over HTTP, ``app`` gives it to a server
that the program has already.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import anyio

from .. import plain
from ..durations import seconds
from .renderings import rendered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

    from prometheus_client import CollectorRegistry

logger = plain.logger("streamqueue.health")

PATHS = ("/healthz", "/metrics", "/readyz")


class Health:
    """What a worker reports about itself: whether its event loop turns, and why it is not ready.

    Ready is the absence of reasons::

        health.not_ready("stream", "the change stream is closed")
        health.clear("stream")

    Written by the event loop, readable from any thread. Reasons are served to whoever reaches the
    port, so they name no user, host or payload.

    Args:
        stall_after: seconds (or a timedelta) without a tick after which the loop counts as stuck.
            Default 10, far above any pause of a loop that is only busy. Until the first tick it
            counts from the making of this object.
        clock: a monotonic clock, in seconds.

    Raises:
        ConfigurationError: `stall_after` outside its range.
    """

    def __init__(
        self,
        *,
        stall_after: float | timedelta = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_after = seconds(stall_after, "Health(stall_after=)")
        self._clock = clock
        self._ticked_at = clock()
        # One writer, the event loop. Replaced and never changed, so that a reader in another thread
        # needs no lock.
        self._reasons: dict[str, str] = {}
        self._observers: list[Callable[[], None]] = []

    def observe(self, observer: Callable[[], None]) -> None:
        """Have `observer` called at every beat and every change of the reasons, in the event loop.

        It must neither block nor raise.
        """
        self._observers.append(observer)

    def _tell(self) -> None:
        for observer in self._observers:
            observer()

    def beat(self) -> None:
        """Note that the event loop turned. Call it at least every few seconds."""
        self._ticked_at = self._clock()
        self._tell()

    async def keep_beating(self, every: float = 0.5) -> None:
        """Beat for ever, from the event loop this runs in."""
        while True:
            self.beat()
            await anyio.sleep(every)

    def alive(self) -> bool:
        """Whether the event loop turned within `stall_after` seconds. Asks no database.

        An outage of MongoDB must not make an orchestrator restart every worker.
        """
        return self.seconds_since_tick() <= self._stall_after

    def seconds_since_tick(self) -> float:
        """Return the seconds since the event loop last turned."""
        return self._clock() - self._ticked_at

    def not_ready(self, key: str, reason: str) -> None:
        """Store a reason not to be ready; the same key again replaces it."""
        self._reasons = {**self._reasons, key: reason}
        self._tell()

    def clear(self, key: str) -> None:
        """Take a reason back; one that was never given is fine."""
        self._reasons = {name: reason for name, reason in self._reasons.items() if name != key}
        self._tell()

    def draining(self) -> None:
        """Not ready any more: what runs is finished, nothing new is taken."""
        self.not_ready("draining", "finishing what runs and taking nothing new")

    def ready(self) -> bool:
        """Whether there is no reason not to be ready."""
        return not self.reasons()

    def reasons(self) -> dict[str, str]:
        """Return why this process is not ready, by key; empty when it is ready.

        A loop that is stuck cannot report anything, so that is always among the reasons.
        """
        reasons = dict(self._reasons)
        if not self.alive():
            reasons["event_loop"] = f"has not turned for {self.seconds_since_tick():.1f} seconds"
        return reasons


@dataclass(frozen=True, slots=True)
class Request:
    """A request, as far as an answer depends on it.

    Attributes:
        path: without the query.
        headers: by their names in lower case.
    """

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back to a request. After a HEAD the body is left out, and its length is not."""

    status: HTTPStatus
    content_type: str
    body: bytes
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers but those of the connection."""
        length = str(len(self.body))
        return [("Content-Type", self.content_type), ("Content-Length", length), *self.extra]


def answer(request: Request, registry: CollectorRegistry, health: Health | None) -> Answer:
    """Answer a request for ``/metrics``, ``/healthz`` or ``/readyz``, and refuse all others.

    Without a health, whoever can answer is alive and ready.
    """
    if request.path not in PATHS:
        return json_answer(HTTPStatus.NOT_FOUND, {"error": "not found", "paths": list(PATHS)})
    if request.method not in {"GET", "HEAD"}:
        return json_answer(
            HTTPStatus.METHOD_NOT_ALLOWED,
            {"error": "method not allowed"},
            (("Allow", "GET, HEAD"),),
        )
    match request.path:
        case "/metrics":
            return _metrics(request.headers, registry)
        case "/healthz":
            return _healthz(health)
        case _:
            return _readyz(health)


def json_answer(
    status: HTTPStatus, content: object, extra: tuple[tuple[str, str], ...] = ()
) -> Answer:
    """Answer with a JSON document."""
    return Answer(status, "application/json", json.dumps(content).encode(), extra)


def _healthz(health: Health | None) -> Answer:
    if health is None or health.alive():
        return Answer(HTTPStatus.OK, "text/plain; charset=utf-8", b"ok")
    silence = round(health.seconds_since_tick(), 3)
    return json_answer(
        HTTPStatus.SERVICE_UNAVAILABLE, {"alive": False, "seconds_since_tick": silence}
    )


def _readyz(health: Health | None) -> Answer:
    reasons = {} if health is None else health.reasons()
    if not reasons:
        return json_answer(HTTPStatus.OK, {"ready": True})
    return json_answer(HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False, "reasons": reasons})


def _metrics(headers: Mapping[str, str], registry: CollectorRegistry) -> Answer:
    packed = _wants_gzip(headers.get("accept-encoding", ""))
    try:
        metrics = rendered(registry, headers.get("accept", ""), packed=packed)
    except Exception:
        logger.exception("Failed to collect the metrics", extra={"event": "metrics_failed"})
        return json_answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "a collector failed"})
    if metrics is None:
        return json_answer(
            HTTPStatus.SERVICE_UNAVAILABLE,
            {"error": "the metrics are still being collected for an earlier scrape"},
        )
    content_type, body = metrics
    encoding = (("Content-Encoding", "gzip"),) if packed else ()
    return Answer(HTTPStatus.OK, content_type, body, encoding)


def _wants_gzip(accept_encoding: str) -> bool:
    for accepted in accept_encoding.lower().split(","):
        coding, *parameters = accepted.replace(" ", "").split(";")
        if coding == "gzip":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False
