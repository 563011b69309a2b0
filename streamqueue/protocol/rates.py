"""Rates: how many jobs may start in a time, over all processes; the arithmetic of it.

What is known of a rate is a *bucket*, a document in a collection beside the jobs, ``<jobs>.rates``:
one for each of whom the rate is for (the queue, a task, a group). It is not among the settings of
the queues, because whoever starts jobs writes it, and need not be allowed to change those::

    _id              the queue, a colon, and whose it is; no queue's name has a colon
    last             when the last start is planned that was reserved: nanoseconds since 1970
    taken            the last few reservations: [{by, first, count, at}], times as in ``last``
    full_at          from when on it says no more than no document would, and is removed

Starts are *planned*, by the server's clock, at least an interval ``I`` from one another. Whoever
wants to start jobs reserves the next *n* of them, in one update of the bucket::

    first = max(last + I, now - (burst - 1) * I)        last = first + (n - 1) * I

but none that would be planned more than ``AHEAD`` from now: what a process holds when it dies, or
has no job for, is lost, so nobody holds much. A reserved start is good from its planned time on
(or, where that was before its reservation, from that on) for the time ``late``, and void after it.

The promise: in any half-open window of ``seconds``, at most ``count + burst`` jobs start, however
they are spread over processes. The start of a job at ``s`` was planned at some ``p <= s``, and
``s < max(p, at) + late`` where it was reserved at ``at``. No ``p`` is before
``at - (burst - 1) * I``, so ``s < p + (burst - 1) * I + late``. All starts in a window of
``seconds`` from ``a`` on are thus planned in the open interval from
``a - (burst - 1) * I - late`` to ``a + seconds``. Planned times are ``I`` apart, so of an open
interval that is no longer than ``(count + burst) * I`` they have at most ``count + burst``. It is
no longer if::

    seconds + late <= (count + 1) * I

and so ``I`` is ``(seconds + late) / (count + 1)``. The time that a start may be late is an interval
of the rate, ``seconds / count``: then ``I`` is exactly that. A claim takes some milliseconds, and
more where machines are busy, so it is never less than ``LEAST_LATE``, nor than a twentieth of the
``seconds`` (or ``MOST_LATE``), and where intervals are shorter they are longer by as little as
keeps the promise: by no more than ``late / seconds`` of themselves. That is 5 %, and more than 10 %
only for rates whose ``seconds`` are below 0.2.

The server holds a claim to the end of that time, by its own clock. That none begins too early is
for the process: it counts from the answer to its reservation, which says what the server's clock
showed then or before.

All times are whole nanoseconds, rounded so that no rate becomes faster; the server's dates have
milliseconds, rounded down.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .limits import Rate

SECOND = 1_000_000_000
MILLISECOND = 1_000_000

AHEAD = 50 * MILLISECOND
"""From now, how far away a start may be planned for somebody to have it reserved."""
LEAST_LATE = 20 * MILLISECOND
"""How late a start may at least be: less would be over before a claim has reached the server."""
MOST_LATE = 200 * MILLISECOND
"""How late it may be where a longer time would make the rate slower than need be."""
LIMIT = 10.0
"""Seconds that a reservation may take. ``$$NOW`` is the time at which a command has begun, and one
that had to wait writes after others that began later: its time goes back by as much."""
OTHER_CLOCK = 30 * SECOND
"""A start that is planned so far from now was so by another clock, as before a failover: no command
is as late as that."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def bucket_id(queue: str, scope: str) -> str:
    """Return the ``_id`` of the bucket of a rate: of a queue, and whose it is there."""
    return f"{queue}:{scope}"


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
    def at_once(self) -> int:
        """How many starts may be reserved at once."""
        return self.burst + AHEAD // self.interval

    @property
    def to_fill(self) -> int:
        """How long after the last planned start a bucket is full again."""
        return self.interval * self.burst


@lru_cache(maxsize=1024)
def pace_of(rate: Rate) -> Pace:
    """Return how a rate is kept."""
    span = ceil(rate.seconds * SECOND)
    late = max(-(-span // rate.count), LEAST_LATE, min(span // 20, MOST_LATE))
    return Pace(-(-(span + late) // (rate.count + 1)), late, rate.burst)


class Start(NamedTuple):
    """The right to start one job, once.

    Attributes:
        due: from when on, by the caller's clock, which counts seconds.
        void: from when on it may not be good any more, likewise.
        planned: from when on by the server's clock, in nanoseconds.
        until: from when on it is void by that: a claim by it changes nothing then.
    """

    due: float
    void: float
    planned: int
    until: datetime


class Reservation(NamedTuple):
    """What came of the wish for starts.

    Attributes:
        starts: those that were reserved, in their order; none if the next one is too far away.
        following: when the next start can be planned after them, in nanoseconds of the server.
        following_due: the same by the caller's clock.
    """

    starts: tuple[Start, ...]
    following: int
    following_due: float


class Answered(NamedTuple):
    """A moment by two clocks: what the server said, and between which times of the caller's.

    The server's clock showed it at some time from `sent` to `received`, and nobody knows when: an
    answer may have waited for others that wrote before it.
    """

    now: int
    sent: float
    received: float

    def earliest(self, moment: int) -> float:
        """Return the time before which a moment of the server's, in nanoseconds, has not come."""
        return self.sent + (moment - self.now) / SECOND

    def latest(self, moment: int) -> float:
        """Return the time from which on it certainly has."""
        return self.received + (moment - self.now) / SECOND


def reservation(
    pace: Pace, answered: Answered, last: int, first: int = 0, count: int = 0, at: int = 0
) -> Reservation:
    """Return what a bucket says of a reservation of so many starts, the first planned then.

    Args:
        last: what the bucket has as that, afterwards.
        at: when they were reserved.
    """
    starts = []
    for number in range(count):
        planned = first + number * pace.interval
        until = (max(planned, at) + pace.late) // MILLISECOND * MILLISECOND
        # The server's clock shows milliseconds that have begun: it is there with the next one.
        due = answered.latest(-(-planned // MILLISECOND) * MILLISECOND)
        starts.append(Start(due, answered.earliest(until), planned, date(until)))
    following = last + pace.interval
    return Reservation(tuple(starts), following, answered.latest(following))


def date(moment: int) -> datetime:
    """Return a moment in nanoseconds as a date, of whole milliseconds that have begun."""
    return _EPOCH + timedelta(milliseconds=moment // MILLISECOND)


def moment_of(date: datetime) -> int:
    """Return a date of the server's in nanoseconds."""
    return (date - _EPOCH) // timedelta(microseconds=1) * 1000
