"""Rates: how many jobs may start in a time, over all processes; the arithmetic of it.

What is known of a rate is a *bucket*, a document among the settings of the queues, one for each of
whom the rate is for (the queue, a task, a group)::

    _id              "rate:", the queue, a colon, and whose it is; no queue's name has a colon
    kind             "rate"
    last             when the last start is planned that was reserved: nanoseconds since 1970
    taken            the last few reservations: [{by, first, count, at}], times as in ``last``
    full_at          from when on it says no more than no document would, and is removed

Starts are *planned*, by the server's clock, at least an interval ``I`` from one another. Whoever
wants to start jobs reserves the next *n* of them, in one update of the bucket::

    first = max(last + I, now - (burst - 1) * I)        last = first + (n - 1) * I

but none that would be planned more than ``AHEAD`` from now: what a process holds when it dies, or
has no job for, is lost, so nobody holds much. A reserved start is a *token*. It is good from its
planned time on (or, where that was before its reservation, from that on) for the time ``late``, and
void after that.

The promise: in any half-open window of ``seconds``, at most ``count + burst`` starts, however they
are spread over processes. A start at ``s`` has a token planned at ``p``, where ``p <= s``, and
``s < max(p, at) + late`` for one that was reserved at ``at``. No ``p`` is before
``at - (burst - 1) * I``, so ``s < p + (burst - 1) * I + late``. All starts in a window of
``seconds`` from ``a`` on are thus planned in the open interval from
``a - (burst - 1) * I - late`` to ``a + seconds``. Planned times are ``I`` apart, so of an open
interval that is no longer than ``(count + burst) * I`` they have at most ``count + burst``. It is
no longer if::

    seconds + late <= (count + 1) * I

and so ``I`` is ``(seconds + late) / (count + 1)``. The time that a start may be late is an interval
of the rate, ``seconds / count``: then ``I`` is exactly that. A claim takes the server some
milliseconds, so it is never less than ``LEAST_LATE``, and where intervals are shorter they are
longer by as little as keeps the promise: by no more than ``late / seconds`` of themselves. That is
2 % for so many in a second, and more than 10 % only for rates whose ``seconds`` are below 0.2.

All times are whole nanoseconds, rounded so that no rate becomes faster; the server's dates have
milliseconds, rounded down.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .limits import Rate

PREFIX = "rate:"
KIND = "rate"

SECOND = 1_000_000_000
MILLISECOND = 1_000_000

AHEAD = 50 * MILLISECOND
"""From now, how far away a start may be planned for somebody to have it reserved."""
LEAST_LATE = 20 * MILLISECOND
"""How late a start may at least be: less would be over before a claim has reached the server."""
LIMIT = 10.0
"""Seconds that a reservation may take. ``$$NOW`` is the time at which a command has begun, and one
that had to wait writes after others that began later: its time goes back by as much."""
OTHER_CLOCK = 30 * SECOND
"""A start that is planned so far from now was so by another clock, as before a failover: no command
is as late as that."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def bucket_id(queue: str, scope: str) -> str:
    """Return the ``_id`` of the bucket of a rate: of a queue, and whose it is there."""
    return f"{PREFIX}{queue}:{scope}"


class Pace(NamedTuple):
    """How a rate is kept; in nanoseconds.

    Attributes:
        interval: from one planned start to the next, at least.
        late: how late a start may be.
        burst: how many may be planned at once after a pause.
    """

    interval: int
    late: int
    burst: int

    @property
    def to_fill(self) -> int:
        """How long after the last planned start a bucket is full again."""
        return self.interval * self.burst


@lru_cache(maxsize=1024)
def pace_of(rate: Rate) -> Pace:
    """Return how a rate is kept."""
    span = ceil(rate.seconds * SECOND)
    late = max(-(-span // rate.count), LEAST_LATE)
    return Pace(-(-(span + late) // (rate.count + 1)), late, rate.burst)


class Token(NamedTuple):
    """The right to start one job, once; server time, in nanoseconds.

    Attributes:
        planned: from when on.
        until: it is void from then on.
    """

    planned: int
    until: int


class Reservation(NamedTuple):
    """What came of the wish for starts.

    Attributes:
        tokens: those that were reserved, in their order; none if the next one is too far away.
        following: when the next start can be planned after them, in nanoseconds.
    """

    tokens: tuple[Token, ...]
    following: int

    @classmethod
    def of(cls, pace: Pace, last: int, first: int = 0, count: int = 0, at: int = 0) -> Reservation:
        """Return one of so many starts, the first of which is planned then.

        Args:
            last: what the bucket has as that, afterwards.
            at: when they were reserved, by the server.
        """
        planned = [first + number * pace.interval for number in range(count)]
        tokens = (Token(start, _until(max(start, at) + pace.late)) for start in planned)
        return cls(tuple(tokens), last + pace.interval)


def _until(moment: int) -> int:
    """Return it in whole milliseconds: the server's clock, which has no other, is below it only
    while the time is."""
    return moment - moment % MILLISECOND


def nanoseconds(moment: datetime) -> int:
    """Return a moment as nanoseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND * 1000


def date(moment: int) -> datetime:
    """Return a moment in nanoseconds as a date of whole milliseconds, rounded up."""
    return _EPOCH + timedelta(milliseconds=-(-moment // MILLISECOND))


def span_of(tokens: Iterable[Token]) -> tuple[datetime, datetime]:
    """Return from when on one claim may start jobs by all of these tokens, and from when on no
    more: the server's clock has to be neither before the one nor at the other or after it.

    There may be no such time; then the second is not after the first.
    """
    times = list(tokens)
    first, until = max(one.planned for one in times), min(one.until for one in times)
    return date(first), date(until)
