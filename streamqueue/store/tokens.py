"""The reserved starts that a process holds: when to reserve more, how many, and whose turn it is.

Nothing here sends anything, and there is no clock: `now` is always the server's time, as the
store's ``clock.now()`` estimates it.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from typing import TYPE_CHECKING

from ..backoff import Backoff
from ..protocol.rates import AHEAD, MILLISECOND, OTHER_CLOCK, SECOND, date, nanoseconds, pace_of

if TYPE_CHECKING:
    from datetime import datetime

    from ..protocol.limits import Rate
    from ..protocol.rates import Pace, Reservation, Token

IN_TIME = 10 * MILLISECOND
"""How long before the next start could be planned it is asked for: so that the answer is there by
then."""
REFUSED = Backoff(initial=0.04, maximum=0.32, factor=2, jitter=1)
"""The wait until starts are asked for again, from when on the next one is near, after others had
all that were. Of many processes that wait few ask, and those that get some go on asking in time."""
MOST_SCOPES = 10_000
"""Scopes of which something is known at most: those that were looked at last."""


class Tokens:
    """The tokens that a process holds for one queue, by their scopes: whom a rate is for.

    A scope is any text. One whose rate has changed since holds nothing. One that is quiet is
    forgotten, which at the worst loses tokens, and asks once more than need be.
    """

    def __init__(self) -> None:
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scopes)

    def wants(self, scope: str, rate: Rate, jobs: int, now: datetime) -> int:
        """Return how many starts to reserve now; 0 if that would be none, or there are enough.

        Enough are those of the next 50 ms, with the burst, or as many as there are jobs. They are
        asked for when those that are held end, and so in few, larger reservations.

        Args:
            jobs: how many could be started here, if only they had tokens.
        """
        known = self._of(scope, rate, moment := nanoseconds(now))
        if moment < known.ask_at:
            return 0
        most = known.pace.burst + AHEAD // known.pace.interval
        return max(0, min(jobs, most) - len(known.tokens))

    def add(self, scope: str, rate: Rate, reservation: Reservation, now: datetime) -> None:
        """Hold what was reserved under this rate.

        None if others had all that were near: then some time passes until more are asked for.
        """
        self._of(scope, rate, nanoseconds(now)).add(reservation)

    def take(self, scope: str, rate: Rate, now: datetime) -> Token | None:
        """Return a token for a start now, which is used by that; None if there is none."""
        known = self._of(scope, rate, moment := nanoseconds(now))
        if known.tokens and known.tokens[0].planned <= moment:
            return known.tokens.pop(0)
        return None

    def give_back(self, scope: str, rate: Rate, token: Token, now: datetime) -> None:
        """Hold a token again by which certainly nothing was started: not one of a claim whose
        outcome is unknown."""
        insort(self._of(scope, rate, nanoseconds(now)).tokens, token)

    def next_at(self, scope: str, rate: Rate, jobs: int, now: datetime) -> datetime:
        """Return when to look again for the sake of so many jobs: a token becomes due then, or it
        is time to ask for more. It is not after `now` if either can be done at once."""
        known = self._of(scope, rate, nanoseconds(now))
        due = known.tokens[0].planned if known.tokens else known.ask_at
        return date(due if len(known.tokens) >= jobs else min(due, known.ask_at))

    def _of(self, scope: str, rate: Rate, now: int) -> _Scope:
        """Return what is known of a scope, without what is void or of another rate."""
        known = self._scopes.get(scope)
        pace = pace_of(rate)
        if known is None or known.pace != pace or known.ask_at > now + pace.interval + OTHER_CLOCK:
            self._forget_quiet(now)
            known = self._scopes[scope] = _Scope(pace)
        self._scopes.move_to_end(scope)
        known.drop_void(now)
        return known

    def _forget_quiet(self, now: int) -> None:
        while self._scopes:
            scope, known = next(iter(self._scopes.items()))
            if len(self._scopes) < MOST_SCOPES and not known.is_quiet(now):
                break
            del self._scopes[scope]


class _Scope:
    """What is known of one; in nanoseconds.

    Attributes:
        tokens: by their planned times.
        ask_at: before that it is no use to ask for more.
    """

    __slots__ = ("_refused", "ask_at", "pace", "tokens")

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.tokens: list[Token] = []
        self.ask_at = 0
        self._refused = 0

    def add(self, reservation: Reservation) -> None:
        following = reservation.following
        if reservation.tokens:
            for token in reservation.tokens:
                insort(self.tokens, token)
            self._refused = 0
            self.ask_at = following - IN_TIME
        else:
            self._refused += 1
            wait = REFUSED.delay(self._refused)
            self.ask_at = following - AHEAD + int(wait * SECOND)

    def drop_void(self, now: int) -> None:
        """Drop what is void, and what another clock has planned."""
        tokens = self.tokens
        if tokens and (tokens[0].until <= now or tokens[-1].planned > now + OTHER_CLOCK):
            self.tokens = [
                one for one in tokens if now < one.until and one.planned <= now + OTHER_CLOCK
            ]

    def is_quiet(self, now: int) -> bool:
        """Whether nothing is known that matters."""
        return self.ask_at <= now and (not self.tokens or self.tokens[-1].until <= now)
