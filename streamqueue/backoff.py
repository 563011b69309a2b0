"""How long to wait between two attempts: attempt number in, seconds out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from .durations import seconds
from .errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import timedelta


@dataclass(frozen=True, slots=True, init=False)
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

    initial: float
    maximum: float
    factor: float
    jitter: float

    def __init__(
        self,
        initial: float | timedelta = 1.0,
        maximum: float | timedelta = 300.0,
        factor: float = 2.0,
        jitter: float = 1.0,
    ) -> None:
        set_ = partial(object.__setattr__, self)
        set_("initial", seconds(initial, "Backoff(initial=)"))
        set_("maximum", seconds(maximum, "Backoff(maximum=)"))
        if not _is_number(factor) or not 1 <= factor <= 1000:
            raise ConfigurationError(f"Backoff(factor=) must be 1 to 1000, not {factor!r}")
        set_("factor", float(factor))  # a power of a huge int never ends
        if not _is_number(jitter) or not 0 <= jitter <= 1:
            raise ConfigurationError(f"Backoff(jitter=) must be 0 to 1, not {jitter!r}")
        set_("jitter", jitter)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after this attempt (the first is 1)."""
        try:
            # The exponent is a float too, for the same reason.
            growth: float = self.factor ** float(max(0, attempt - 1))
            wait = min(self.maximum, self.initial * growth)
        except OverflowError:
            grows = self.initial and self.factor > 1
            wait = self.maximum if grows else min(self.maximum, self.initial)
        return wait * (1 - self.jitter * random.random())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
