"""The shares of the queues in the slots of a process, as a pure function of what they hold.

Weights are shares of the slots that are held, and no slot stays free while jobs wait.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamqueue.worker.sharing.fairness import EXACT, Fairness
from streamqueue.worker.sharing.shares import LAST_ENDS, Shares
from streamqueue.worker.slots import Slots

NEVER_LESS = math.inf


@dataclass
class Process:
    """Slots, and what is held of them."""

    slots: int
    weights: dict[str, int]
    held: Counter[str] = field(default_factory=Counter)
    ahead: dict[str, int] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fairness = Fairness(self.slots, self.weights)

    def fill(self, waiting: dict[str, float]) -> list[str]:
        """Give the free slots to those who are due them; return whose jobs were taken."""
        self.held = +self.held
        waiting = {queue: count for queue, count in waiting.items() if count}
        plan = self.fairness.plan(self.slots - self.held.total(), self, waiting)
        self.fairness.given(plan)
        self.held.update(plan)
        return plan

    def shares(self, waiting: dict[str, float]) -> dict[str, float]:
        return self.fairness.shares_of(+self.held, waiting)


processes = st.builds(
    Process,
    st.integers(1, 40),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 20), min_size=1),
)


@given(processes, st.randoms())
def test_while_all_have_work_each_holds_its_share_give_or_take_less_than_one_slot(
    process: Process, chance: Any
) -> None:
    endless = dict.fromkeys(process.weights, NEVER_LESS)
    of_all = sum(process.weights.values())

    for _ in range(10):
        process.fill(endless)
        for queue, weight in process.weights.items():
            assert abs(process.held[queue] - process.slots * weight / of_all) < 1
        for queue in chance.sample(
            list(process.held.elements()), chance.randint(1, 3) % process.slots
        ):
            process.held[queue] -= 1


@given(processes, st.randoms())
def test_no_slot_stays_free_while_jobs_wait_and_none_is_given_beyond_a_share(
    process: Process, chance: Any
) -> None:
    for _ in range(10):
        waiting = {queue: chance.choice((0, 1, 3, 100)) for queue in process.weights}
        taken = Counter(process.fill(waiting))

        free = process.slots - process.held.total()
        assert free == 0 or taken == +Counter(waiting)
        left = {queue: count - taken[queue] for queue, count in waiting.items()}
        shares = process.shares({queue: count for queue, count in left.items() if count})
        for queue in taken:
            assert process.held[queue] < shares[queue] + 1
        for queue in list(process.held.elements()):
            process.held[queue] -= chance.random() < 0.3


@given(processes, st.randoms())
def test_what_is_lent_comes_back_with_the_next_slot_that_ends_above_a_share(
    process: Process, chance: Any
) -> None:
    queues = sorted(process.weights)
    lender, others = queues[0], queues[1:]
    assume(others)
    for _ in range(5):
        process.fill(dict.fromkeys(others, NEVER_LESS))
        for queue in chance.sample(list(process.held.elements()), process.held.total() // 2):
            process.held[queue] -= 1
    process.fill(dict.fromkeys(others, NEVER_LESS))
    shares = process.shares(dict.fromkeys(queues, NEVER_LESS))
    due = math.floor(shares[lender] + EXACT)

    while process.held[lender] < due:
        lent = [queue for queue in others if process.held[queue] > shares[queue] + EXACT]
        process.held[chance.choice(lent)] -= 1
        assert process.fill(dict.fromkeys(queues, NEVER_LESS)) == [lender]


@given(processes)
def test_a_newcomer_has_the_next_slot_that_ends_while_each_is_due_one_or_more(
    process: Process,
) -> None:
    queues = sorted(process.weights)
    newcomer, others = queues[0], queues[1:]
    endless = dict.fromkeys(others, NEVER_LESS)
    process.fill(endless)
    shares = process.shares(dict.fromkeys(queues, NEVER_LESS))
    if others and min(shares.values()) >= 1:
        process.held[max(others, key=lambda queue: process.held[queue] - shares[queue])] -= 1

        assert process.fill({**endless, newcomer: 1}) == [newcomer]


def test_one_alone_holds_all() -> None:
    process = Process(20, {"a": 1, "b": 1000})

    assert Counter(process.fill({"a": 100})) == {"a": 20}


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_with_fewer_slots_than_queues_all_have_their_turns(slots: int) -> None:
    process = Process(slots, {"a": 100, "b": 1, "c": 1, "d": 1, "e": 1})
    endless = dict.fromkeys(process.weights, NEVER_LESS)
    served = set()

    for _ in range(30):
        served.update(process.fill(endless))
        process.held.clear()

    assert served == set(process.weights)


def test_what_a_queue_may_not_have_is_lent() -> None:
    process = Process(12, {"a": 1, "b": 1, "c": 1})

    assert Counter(process.fill({"a": 2, "b": 100, "c": 100})) == {"a": 2, "b": 5, "c": 5}


def test_no_more_is_taken_of_a_queue_than_is_known_of_it() -> None:
    fairness = Fairness(10, {"a": 1, "b": 1})
    process = Process(10, {"a": 1, "b": 1})

    plan = fairness.plan(10, process, {"a": NEVER_LESS, "b": NEVER_LESS}, {"a": 2, "b": 9})

    assert Counter(plan) == {"a": 2, "b": 5}


def test_what_is_claimed_ahead_is_of_the_queues_whose_handlers_return() -> None:
    slots = Slots(10)
    slots._ahead = 8
    shares = Shares(slots, {"few": 2})
    quick, slow, few = (shares.share(queue) for queue in ("quick", "slow", "few"))
    for _ in range(5):
        slow.take()
    for _ in range(2 * LAST_ENDS):
        for share in (quick, few):
            share.take()
            share.start()
            share.over()

    ahead = dict(shares.ahead)

    assert (shares.held, ahead.get("slow", 0), ahead.get("few", 0)) == ({"slow": 5}, 0, 0)
    assert ahead["quick"] == 4
    plan = Fairness(10, {"quick": 1, "slow": 1}).plan(
        20, shares, {"quick": NEVER_LESS, "slow": NEVER_LESS}
    )
    assert Counter(plan) == {"quick": 9}
