"""The metrics of a registry as text, rendered once for all who ask within a second.

Whoever may scrape decides how often and in which form, so neither may cost much: there are a few
forms, one is rendered at a time, and what nobody asked for lately is dropped.
"""

from __future__ import annotations

import gzip
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

KEPT_SECONDS = 0.9
"""How long the metrics answer further scrapes as they were rendered for one: several Prometheus
servers, or an impatient one, cost the jobs no more than a scrape a second."""
WAIT_SECONDS = 5.0
"""How long a scrape waits for the rendering of another. A collector that hangs holds on to one
thread, and not to one for every scrape."""
PAUSE_SECONDS = 50e-6
"""Long enough for a waiting thread to get the interpreter; none at all is not."""


def rendered(registry: CollectorRegistry, accept: str, *, packed: bool) -> tuple[str, bytes] | None:
    """Return the metrics' content type and body, not older than a second.

    Args:
        registry: what is rendered.
        accept: the header, which chooses between Prometheus text and OpenMetrics.
        packed: whether the body is gzipped.

    Returns:
        None when the rendering for another scrape has not ended within 5 seconds.

    Raises:
        Exception: whatever a collector raises.
    """
    encode, content_type = choose_encoder(_known(accept))
    renderings = _renderings.setdefault(registry, _Renderings())
    body = renderings.body(content_type, lambda: encode(_InPieces(registry)), packed=packed)
    return None if body is None else (content_type, body)


# The versions that a Prometheus asks for. The encoders take any number of three digits, say it back
# and, for anything else, raise TypeError (0.26): every version would be a form of its own.
_UNKNOWN_VERSION = re.compile(r"version=(?!(0\.0\.1|0\.0\.4|1\.0\.0)\s*(;|$))", re.ASCII)


def _known(accept: str) -> str:
    """Leave out what is accepted in a version that nobody speaks.

    What is left names ten forms: Prometheus text 0.0.4, OpenMetrics, and each in version 1.0.0 with
    four ways to escape a name.
    """
    return ",".join(part for part in accept.split(",") if not _UNKNOWN_VERSION.search(part))


@dataclass(frozen=True, slots=True)
class _Rendering:
    began_at: float
    ended_at: float
    body: bytes


class _Renderings:
    """The latest renderings of a registry, by their form."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._kept: dict[tuple[str, bool], _Rendering] = {}

    def body(self, form: str, render: Callable[[], bytes], *, packed: bool) -> bytes | None:
        asked_at = time.monotonic()
        kept = self._good(form, packed, asked_at)
        if kept is None:
            if not self._turn.acquire(timeout=WAIT_SECONDS):
                return None
            try:
                kept = self._good(form, packed, asked_at) or self._render(
                    form, render, packed, asked_at
                )
            finally:
                self._turn.release()
        return kept.body

    def _good(self, form: str, packed: bool, asked_at: float) -> _Rendering | None:
        kept = self._kept.get((form, packed))
        if kept is None:
            return None
        # However long it took: those who waited for it must not each take as long once more.
        waited_for = kept.ended_at >= asked_at
        return kept if waited_for or time.monotonic() - kept.began_at < KEPT_SECONDS else None

    def _render(
        self, form: str, render: Callable[[], bytes], packed: bool, asked_at: float
    ) -> _Rendering:
        plain = self._good(form, False, asked_at)
        if plain is None:
            began_at = time.monotonic()
            body = render()
            plain = self._keep(form, False, began_at, body)
        if not packed:
            return plain
        return self._keep(form, True, plain.began_at, gzip.compress(plain.body, mtime=0))

    def _keep(self, form: str, packed: bool, began_at: float, body: bytes) -> _Rendering:
        now = time.monotonic()
        rendering = _Rendering(began_at, now, body)
        # Replaced and never changed: who finds one good does not wait for the turn.
        self._kept = {
            **{key: kept for key, kept in self._kept.items() if now - kept.ended_at < KEPT_SECONDS},
            (form, packed): rendering,
        }
        return rendering


_renderings: WeakKeyDictionary[CollectorRegistry, _Renderings] = WeakKeyDictionary()
# Of a thread that is rendering now, a forked child has the turn and not the thread.
os.register_at_fork(after_in_child=_renderings.clear)


class _InPieces(CollectorRegistry):
    """A registry that is read with a pause after every family.

    To render a worker's takes 4 to 8 ms, and a thread that waits for the interpreter gets it after
    5 ms: without the pauses a job that comes meanwhile waits as long.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._whole = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._whole.collect():
            yield family
            time.sleep(PAUSE_SECONDS)  # noqa: TID251  there is no condition to wait for
