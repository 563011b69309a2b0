"""A clock for a whole process that can be made fast: what waits a day waits a minute and a half.

``faketime`` does not do for this: it leaves the waits of Python's locks as they are, and those end
at a time of the clock that it has changed. So the time is injected where Python reads it and waits.
"""

from __future__ import annotations

import selectors
import threading
import time
from typing import Any


class FastClock:
    """Every monotonic clock of this process, and all that waits by it, from now on."""

    def __init__(self) -> None:
        self._read = time.monotonic
        self._real_from = self._read()
        self._shown_from = self._real_from
        self._speed = 1.0
        self._wait = threading.Condition.wait
        self._select = selectors.DefaultSelector.select
        time.monotonic = self.now
        time.clock_gettime = lambda _clock: self.now()
        vars(time)["sleep"] = self._sleep  # pyright: ignore[reportIndexIssue]
        clock = self

        def wait(condition: threading.Condition, timeout: float | None = None) -> bool:
            return clock._wait(condition, clock._real(timeout))

        def select(selector: Any, timeout: float | None = None) -> Any:
            return clock._select(selector, clock._real(timeout))

        threading.Condition.wait = wait  # type: ignore[assignment, method-assign]
        selectors.DefaultSelector.select = select  # type: ignore[assignment, method-assign]

    def now(self) -> float:
        """Return the seconds that it shows."""
        return self._shown_from + (self._read() - self._real_from) * self._speed

    def run_at(self, speed: float) -> None:
        """Go on from here at that many times the speed of time."""
        real = self._read()
        self._shown_from += (real - self._real_from) * self._speed
        self._real_from, self._speed = real, speed

    def _sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def _real(self, seconds: float | None) -> float | None:
        # Never for long: the speed may change, and no wait may be deaf to that.
        return seconds if seconds is None or seconds <= 0 else max(1e-4, seconds / self._speed)
