"""The server's clock, as far as a client can know it.

Updates stamp times with ``$$NOW``, which is exact. An insert cannot, so what a put stores is the
server's time as last observed (in the reply to ``hello``) plus the time that has passed here since.
The client's own wall clock is never used, so one that is an hour off changes nothing.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

STALE_AFTER = 60.0
"""Seconds until the server is asked again: crystals drift by up to about 50 ppm (3 ms a minute)."""

# CLOCK_MONOTONIC stands still while a machine is suspended; CLOCK_BOOTTIME, where there is one,
# goes on, and a lease runs out in the server's time, which goes on as well.
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


def monotonic() -> float:
    """Return seconds that never jump back and count suspended time, for deadlines and waits."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class ServerClock:
    """An estimate of the server's time, off by at most half a round trip plus drift."""

    __slots__ = ("_observed_at", "_server_time")

    def __init__(self) -> None:
        self._server_time: datetime | None = None
        self._observed_at = 0.0

    def observe(self, server_time: datetime, sent: float, received: float) -> None:
        """Note what the server said between two readings of :func:`monotonic`."""
        self._server_time = server_time
        self._observed_at = (sent + received) / 2

    @property
    def known(self) -> bool:
        """Whether the server was ever asked."""
        return self._server_time is not None

    @property
    def stale(self) -> bool:
        """Whether the server should be asked again."""
        return self._server_time is None or monotonic() - self._observed_at > STALE_AFTER

    def now(self) -> datetime:
        """Return the server's time; it must have been observed once."""
        if self._server_time is None:
            raise RuntimeError("the server's time was never observed")
        return self._server_time + timedelta(seconds=monotonic() - self._observed_at)
