"""Which queue the next free slot goes to: weights are shares of the slots that are held.

Of the slots of a process each queue with work is due its share by weight; what a queue has no jobs
for is lent to the others, by their weights as well. A share is rarely a whole number of slots. So a
free slot goes first to the queues that hold less than the whole part of theirs, then to those that
hold less than all of it, by turns: with a share of half a slot a queue has one half of the times.
Nobody gives a slot back before its job ends, so that a queue that comes later may have to wait for
that, and no longer while each queue is due a slot or more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

EXACT = 1e-9
"""What a share may be off by its arithmetic."""

Rank = tuple[int, float, int]


class Holder(Protocol):
    """A process whose slots are shared.

    Attributes:
        held: the slots that each queue holds, of those that hold any.
        ahead: how many more jobs of each queue may be claimed for slots that are about to be free.
        room: how many jobs may be taken of each queue that may not have all slots.
    """

    @property
    def held(self) -> Mapping[str, int]: ...

    @property
    def ahead(self) -> Mapping[str, int]: ...

    @property
    def room(self) -> Mapping[str, int]: ...


class Fairness:
    """Shares slots among queues by their weights.

    Args:
        slots: how many each process has.
        weights: of all the queues.

    Attributes:
        shares: the slots that each queue with work was due in the last plan, or nothing if that was
            of one queue alone.
    """

    def __init__(self, slots: int, weights: Mapping[str, int]) -> None:
        self._slots = slots
        self._weights = weights
        # The later a queue was given a slot, the higher.
        self._turns: defaultdict[str, int] = defaultdict(int)
        self._last_turn = 0
        self.shares: Mapping[str, float] = {}

    @property
    def queues(self) -> Collection[str]:
        """The names of the queues."""
        return self._weights.keys()

    def shares_of(self, held: Mapping[str, int], waiting: Mapping[str, float]) -> dict[str, float]:
        """Return the slots that each queue with work is due: by weight, and never more than it has
        jobs for; what is left of that is shared by the others in the same way.

        Args:
            held: slots, by queue.
            waiting: jobs that could be started, by queue.
        """
        wanted = dict(waiting)
        for queue, count in held.items():
            wanted[queue] = wanted.get(queue, 0) + count
        weights = {queue: self._weights.get(queue, 1) for queue in wanted}
        left, weight_left = float(self._slots), sum(weights.values())
        shares: dict[str, float] = {}
        while wanted:
            level = left / weight_left
            least = [queue for queue, count in wanted.items() if count <= level * weights[queue]]
            if not least:
                shares |= {queue: level * weights[queue] for queue in wanted}
                break
            for queue in least:  # the others have more than `level` then
                share = shares[queue] = wanted.pop(queue)
                left -= share
                weight_left -= weights[queue]
        return shares

    def plan(
        self,
        count: int,
        holder: Holder,
        waiting: Mapping[str, float],
        known: Mapping[str, int] | None = None,
    ) -> list[str]:
        """Return the queues to take the next jobs from, one for each job, in this order.

        Args:
            count: how many jobs are wanted.
            waiting: how many could be had of each queue that has some.
            known: how many of those can be had at once; None: all of them.
        """
        if len(waiting) == 1 and not holder.held.keys() - waiting.keys():  # it may have all
            self.shares = {}
            ((queue, most),) = waiting.items()
            return [queue] * int(min(count, most if known is None else known[queue]))
        shares = self.shares = self.shares_of(holder.held, waiting)
        held = dict(holder.held)
        left = dict(waiting if known is None else known)
        ahead, turns, turn = holder.ahead, self._turns, self._last_turn

        def rank(queue: str, turn: int) -> Rank | None:
            return _rank(held.get(queue, 0), shares[queue], ahead.get(queue, 0), turn)

        next_ones: Collection[str] = waiting
        if max(map(shares.__getitem__, waiting), default=0) < 1 - EXACT:
            # Thousands of queues, maybe: one slot each, by turns, for those that hold none.
            without = [queue for queue in waiting if queue not in held and left[queue]]
            without.sort(key=turns.__getitem__)
            next_ones = {*without[:count], *(ahead.keys() & waiting.keys())}
        ranked = [(rank(queue, turns[queue]), queue) for queue in next_ones if left[queue]]
        ranks = [(place, queue) for place, queue in ranked if place is not None]
        heapify(ranks)
        plan: list[str] = []
        while ranks and len(plan) < count:
            queue = ranks[0][1]
            plan.append(queue)
            held[queue] = held.get(queue, 0) + 1
            left[queue] -= 1
            turn += 1
            place = rank(queue, turn)
            if place is not None and left[queue]:
                heapreplace(ranks, (place, queue))
            else:
                heappop(ranks)
        return plan

    def given(self, queues: Iterable[str]) -> None:
        """Note the queues that were given a slot each, in this order: others have their turn."""
        for queue in queues:
            self._last_turn += 1
            self._turns[queue] = self._last_turn


def _rank(held: int, share: float, ahead: int, turn: int) -> Rank | None:
    """Return what sorts the queues, the first of which is given the next slot; None if it must not
    have one."""
    whole = math.floor(share + EXACT)
    if held < whole:
        return 0, held / share, turn
    if held < share - EXACT:
        return 1, turn, 0
    if held < share + ahead - EXACT:
        return 2, turn, 0
    return None
