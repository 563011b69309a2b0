"""The reserved starts that a process holds: when to reserve more, how many, and whose turn it is.

Nothing here sends anything, and there is no clock: `now` is always a time of :func:`monotonic`, by
which those of a reservation are dated.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import OrderedDict
from typing import TYPE_CHECKING

from ..backoff import Backoff
from ..protocol.rates import AHEAD, SECOND, pace_of

if TYPE_CHECKING:
    from ..protocol.limits import Rate
    from ..protocol.rates import Pace, Reservation, Start

NEAR = AHEAD / SECOND
IN_TIME = 0.02
"""How many seconds before the next start could be planned it is asked for: so that the answer is
there by then."""
REFUSED = Backoff(initial=0.04, maximum=0.32, factor=2, jitter=1)
"""The wait until starts are asked for again, from when on the next one is near, after others had
all that were. Of many processes that wait few ask, and those that get some go on asking in time."""
MOST_SCOPES = 10_000
"""Scopes of which something is known at most: those that were looked at last."""


class Starts:
    """The reserved starts that a process holds for one queue, by scope: whom a rate is for.

    A scope is any text. One whose rate has changed since holds nothing. One that is quiet is
    forgotten, which at the worst loses some, and asks once more than need be.
    """

    def __init__(self) -> None:
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scopes)

    def wants(self, scope: str, rate: Rate, jobs: int, now: float) -> int:
        """Return how many starts to reserve now; 0 if that would be none, or there are enough.

        Enough are those of the next 50 ms, with the burst, or as many as there are jobs. They are
        asked for when those that are held end, and so in few, larger reservations. Whoever is told
        a number is to ask: nobody else here is told one until there is an answer, or so much time
        has passed that there was an error.

        Args:
            jobs: how many could be started here, if only the rate allowed.
        """
        known = self._of(scope, rate, now)
        if now < known.ask_at:
            return 0
        count = max(0, min(jobs, known.pace.at_once) - len(known.starts))
        if count:
            known.ask_at = now + NEAR
        return count

    def add(self, scope: str, rate: Rate, reservation: Reservation, now: float) -> None:
        """Hold what was reserved under this rate.

        None if others had all that were near: then some time passes until more are asked for.
        """
        self._of(scope, rate, now).add(reservation)

    def take(self, scope: str, rate: Rate, now: float) -> Start | None:
        """Return a start that is due, which is nobody else's then; None if there is none."""
        known = self._of(scope, rate, now)
        if known.starts and known.starts[0].due <= now:
            return known.starts.pop(0)
        return None

    def give_back(self, scope: str, rate: Rate, start: Start, now: float) -> None:
        """Hold a start again by which certainly nothing was started: not one of a claim whose
        outcome is unknown."""
        insort(self._of(scope, rate, now).starts, start)

    def next_at(self, scope: str, rate: Rate, jobs: int, now: float) -> float:
        """Return when to look again for the sake of so many jobs: a start is due then, or it
        is time to ask for more. It is not after `now` if either can be done at once."""
        known = self._of(scope, rate, now)
        due = known.starts[0].due if known.starts else known.ask_at
        return due if len(known.starts) >= jobs else min(due, known.ask_at)

    def _of(self, scope: str, rate: Rate, now: float) -> _Scope:
        """Return what is known of a scope, without what is void or of another rate."""
        known = self._scopes.get(scope)
        pace = pace_of(rate)
        if known is None or known.pace != pace:
            self._forget_quiet(now)
            known = self._scopes[scope] = _Scope(pace)
        self._scopes.move_to_end(scope)
        known.drop_void(now)
        return known

    def _forget_quiet(self, now: float) -> None:
        while self._scopes:
            scope, known = next(iter(self._scopes.items()))
            if len(self._scopes) < MOST_SCOPES and not known.is_quiet(now):
                break
            del self._scopes[scope]


class _Scope:
    """What is known of one.

    Attributes:
        starts: in the order in which they are due.
        ask_at: before that it is no use to ask for more.
    """

    __slots__ = ("_refused", "ask_at", "pace", "starts")

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.starts: list[Start] = []
        self.ask_at = -math.inf
        self._refused = 0

    def add(self, reservation: Reservation) -> None:
        if reservation.starts:
            for start in reservation.starts:
                insort(self.starts, start)
            self._refused = 0
            self.ask_at = reservation.following_due - IN_TIME
        else:
            self._refused += 1
            near_at = reservation.following_due - NEAR
            self.ask_at = near_at + REFUSED.delay(self._refused)

    def drop_void(self, now: float) -> None:
        while self.starts and self.starts[0].void <= now:
            del self.starts[0]

    def is_quiet(self, now: float) -> bool:
        """Whether nothing is known that matters."""
        return self.ask_at <= now and (not self.starts or self.starts[-1].void <= now)
