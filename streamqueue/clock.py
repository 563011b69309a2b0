"""The server's clock, as far as a client can know it.

Updates stamp times with ``$$NOW``, which is exact. An insert cannot, so what a put stores is the
server's time as last observed (in the reply to ``hello``) plus the time that has passed here since.
The client's own wall clock is never used, so one that is an hour off changes nothing.
"""

from __future__ import annotations

import math
import time
from datetime import datetime, timedelta

STALE_AFTER = 60.0
"""Seconds until the server is asked again: crystals drift by up to about 50 ppm (3 ms a minute)."""
LONGEST_SLEEP = 60.0
"""Seconds after which whoever waits for a time looks at the clock, and at what it waits for, again.
A wait may be longer than it seems, because timers of the event loop stand still while a machine is
suspended; and what it was set by, a date that anybody may have stored, may be wrong."""
ASK_AGAIN_AFTER = 5.0
"""Seconds until it is asked again when it did not answer: whoever asks has other things to do."""

DOUBT_AFTER = 5.0
"""Seconds for which what it said is good in any case."""

# CLOCK_MONOTONIC stands still while a machine is suspended; CLOCK_BOOTTIME, where there is one,
# goes on, and a lease runs out in the server's time, which goes on as well.
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


def monotonic() -> float:
    """Return seconds that never jump back and count suspended time, for deadlines and waits."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


async def sleep_until(due: float) -> None:
    """Return at this :func:`monotonic` time, or within a minute of it after a suspension."""
    import anyio  # a tenth of what importing the blocking shell would take
    from anyio.lowlevel import checkpoint

    while True:
        left = due - monotonic()
        if left <= 0:
            await checkpoint()
            return
        await anyio.sleep(min(left, LONGEST_SLEEP))


class ServerClock:
    """An estimate of the server's time, off by at most half a round trip plus drift."""

    __slots__ = ("_ask_again_at", "_doubted", "_observed_at", "_server_time")

    def __init__(self) -> None:
        self._server_time: datetime | None = None
        self._observed_at = 0.0
        self._doubted = False
        self._ask_again_at = -math.inf

    def observe(self, server_time: datetime, sent: float, received: float) -> None:
        """Note what the server said between two readings of :func:`monotonic`."""
        self._server_time = server_time
        self._observed_at = (sent + received) / 2
        self._doubted = False

    def doubt(self) -> None:
        """Note that something happened which would if the server's time had changed, as with
        another primary: it should be asked again, unless that was done a moment ago."""
        if monotonic() - self._observed_at > DOUBT_AFTER:
            self._doubted = True

    def unanswered(self) -> None:
        """Note that the server did not say: the last estimate is good enough for a while."""
        self._ask_again_at = monotonic() + ASK_AGAIN_AFTER

    @property
    def known(self) -> bool:
        """Whether the server was ever asked."""
        return self._server_time is not None

    @property
    def stale(self) -> bool:
        """Whether the server should be asked again."""
        if self._server_time is None:
            return True
        now = monotonic()
        asked = not self._doubted and now - self._observed_at <= STALE_AFTER
        return not asked and now >= self._ask_again_at

    def now(self) -> datetime:
        """Return the server's time; it must have been observed once."""
        if self._server_time is None:
            raise RuntimeError("the server's time was never observed")
        return self._server_time + timedelta(seconds=monotonic() - self._observed_at)
