"""How long to wait between two attempts: attempt number in, seconds out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .durations import seconds
from .errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with a cap and full jitter.

    The wait after attempt *n* (counted from 1) is ``min(maximum, initial * factor ** (n - 1))``
    seconds, of which ``jitter`` is left to chance: with the default 1.0 ("full jitter") it is
    uniform between 0 and that value, so jobs that failed together do not come back together.

    Args:
        initial: seconds (or a timedelta) after the first attempt. Default 1.
        maximum: the longest wait, in seconds (or a timedelta). Default 300.
        factor: how much longer each wait is than the one before, at least 1. Default 2.
        jitter: the share of the wait that is random, 0 to 1. Default 1.

    Raises:
        ConfigurationError: a value outside its range.
    """

    initial: float | timedelta = 1.0
    maximum: float | timedelta = 300.0
    factor: float = 2.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "initial", seconds(self.initial, "Backoff(initial=)"))
        object.__setattr__(self, "maximum", seconds(self.maximum, "Backoff(maximum=)"))
        if not _is_number(self.factor) or not 1 <= self.factor <= 1000:
            raise ConfigurationError(f"Backoff(factor=) must be 1 to 1000, not {self.factor!r}")
        object.__setattr__(self, "factor", float(self.factor))  # a huge int power never ends
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"Backoff(jitter=) must be 0 to 1, not {self.jitter!r}")

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after this attempt (the first is 1)."""
        initial, maximum = float(self.initial), float(self.maximum)  # type: ignore[arg-type]
        try:
            wait = min(maximum, initial * self.factor ** max(0, attempt - 1))
        except OverflowError:
            wait = maximum if initial else 0.0
        return wait * (1 - self.jitter * random.random())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
