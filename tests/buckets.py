"""The bucket of a rate as it should be, without a server; and processes that start jobs by it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from streamqueue.protocol.limits import Rate
from streamqueue.protocol.rates import (
    AHEAD,
    MILLISECOND,
    OTHER_CLOCK,
    SECOND,
    Answered,
    Pace,
    Reservation,
    moment_of,
    pace_of,
    reservation,
)
from streamqueue.store.starts import Starts

BEGIN = 1_800_000_000 * SECOND


def local(moment: int) -> float:
    """What the clock of every process shows then."""
    return (moment - BEGIN) / SECOND


@dataclass
class Bucket:
    """One, by the server's clock of whole milliseconds."""

    last: int | None = None

    def reserve(
        self,
        pace: Pace,
        count: int,
        now: int,
        sent: float | None = None,
        received: float | None = None,
    ) -> Reservation:
        """Reserve so many starts, as one update would, sent and answered then."""
        sent = local(now) if sent is None else sent
        received = local(now) if received is None else received
        now -= now % MILLISECOND
        first = now - (pace.burst - 1) * pace.interval
        if self.last is not None:
            known = now + AHEAD if self.last > now + OTHER_CLOCK else self.last
            first = max(known + pace.interval, first)
        granted = max(0, min(count, (now + AHEAD - first) // pace.interval + 1))
        self.last = first + (granted - 1) * pace.interval
        answered = Answered(now, sent, received)
        return reservation(pace, answered, self.last, first, granted, now)


def most_in_a_window(starts: Sequence[int], length: int) -> int:
    """The most starts in any half-open window of that length; `starts` in their order."""
    most, first = 0, 0
    for number, start in enumerate(starts):
        while starts[first] <= start - length:
            first += 1
        most = max(most, number - first + 1)
    return most


@dataclass
class Run:
    """What came of starting jobs for a while.

    Attributes:
        starts: when, in nanoseconds.
        asked: how many reservations were sent.
    """

    starts: list[int] = field(default_factory=list)
    asked: int = 0


def run(rate: Rate, processes: int, seconds: float, trip: float, free: int = 1000) -> Run:
    """Let processes start jobs, of which there are always enough, for so many seconds.

    Args:
        trip: seconds that a round trip takes, give or take half.
        free: how many one could start at once.
    """
    bucket, pace, result = Bucket(), pace_of(rate), Run()
    holders = [Starts() for _ in range(processes)]
    turns = [(BEGIN, process) for process in range(processes)]
    end = BEGIN + int(seconds * SECOND)
    half = trip / 2 * SECOND
    while turns:
        now, process = heapq.heappop(turns)
        if now >= end:
            continue
        held = holders[process]
        count = held.wants("", rate, free, local(now))
        if count:  # a process does one thing at a time
            result.asked += 1
            sent = local(now)
            at = now + int(half * random.uniform(0.5, 1.5))
            now = at + int(half * random.uniform(0.5, 1.5))
            held.add("", rate, bucket.reserve(pace, count, at, sent, local(now)), local(now))
        claimed = []
        while len(claimed) < free and (start := held.take("", rate, local(now))):
            claimed.append(start)
        if claimed:
            at = now + int(half * random.uniform(0.5, 1.5))
            for start in claimed:
                assert start.planned <= at, "no claim is early"
                if at < moment_of(start.until):
                    result.starts.append(at)
            now = at + int(half * random.uniform(0.5, 1.5))
        wait = held.next_at("", rate, free, local(now)) - local(now)
        heapq.heappush(turns, (now + max(int(wait * SECOND), MILLISECOND // 10), process))
    result.starts.sort()
    return result
