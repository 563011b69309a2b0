"""Lanes: what is taken of the jobs of queues that have only some of the slots."""

from __future__ import annotations

from collections import deque
from typing import Any

from bson import ObjectId, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from streamqueue.protocol import operations
from streamqueue.worker.lanes import Lanes

QUEUES = ("one", "two", "plain")


class Room:
    def __init__(self, room: int) -> None:
        self.room = room


def job(queue: str, priority: int, number: int) -> dict[str, Any]:
    seq = Timestamp(1, number + 1)
    return {"_id": ObjectId(), "queue": queue, "priority": priority, "seq": seq}


@given(
    st.lists(st.tuples(st.sampled_from(QUEUES), st.integers(0, 2)), max_size=30),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 40),
)
def test_jobs_are_taken_in_the_order_of_claims_as_far_as_there_is_room(
    put: list[tuple[str, int]], one: int, two: int, count: int
) -> None:
    jobs = [job(queue, priority, n) for n, (queue, priority) in enumerate(put)]
    jobs.sort(key=operations.claim_order_of)
    lanes = Lanes({"one": Room(one), "two": Room(two)})
    others = deque(lanes.sort(jobs))
    room = {"one": one, "two": two, "plain": len(jobs)}
    expected = []
    for each in jobs:
        if room[each["queue"]] > 0 and len(expected) < count:
            room[each["queue"]] -= 1
            expected.append(each)

    taken = lanes.take(others, count, lanes.room())

    assert taken == expected
    assert len(taken) + len(others) + len(lanes) == len(jobs)


def test_what_a_lane_has_no_room_for_is_given_up_once_and_not_what_it_has_room_for() -> None:
    lanes = Lanes({"one": Room(0), "two": Room(1)})
    lanes.handed([job("one", 0, 1), job("two", 0, 2)])

    assert (lanes.give_up(), lanes.give_up(), len(lanes)) == (True, False, 1)


def test_a_chunk_that_was_dropped_is_given_up_too() -> None:
    lanes = Lanes({"one": Room(1)})
    lanes.handed([job("one", 0, 1)])

    lanes.drop()

    assert (lanes.give_up(), lanes.give_up()) == (True, False)


def test_a_lane_without_room_is_not_read_and_waits_for_nobody() -> None:
    room = Room(0)
    lanes = Lanes({"one": room})
    before = (lanes.waits, lanes.to_read())

    room.room = 1

    assert before == (False, [])
    assert (lanes.waits, [queue for queue, _ in lanes.to_read()]) == (True, ["one"])
