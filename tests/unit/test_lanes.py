"""Lanes: what is known to wait in the queues that share slots, and what is taken of it."""

from __future__ import annotations

import math
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import ANY

from bson import ObjectId, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from streamqueue.protocol import operations
from streamqueue.worker.sharing.fairness import Fairness
from streamqueue.worker.sharing.lanes import Lanes

QUEUES = ("one", "two", "three")
NOBODY: Any = SimpleNamespace(paused=(), has_rules=lambda _queue: False)


class Room:
    def __init__(self, room: float) -> None:
        self.room = room


class Idle:
    """A process that holds nothing."""

    held = ahead = MappingProxyType[str, int]({})

    def __init__(self, **room: int) -> None:
        self.room = room


def lanes_of(**rooms: float) -> Lanes:
    fairness = Fairness(10, dict.fromkeys(rooms, 1))
    return Lanes({queue: Room(room) for queue, room in rooms.items()}, NOBODY, fairness)


def job(queue: str, priority: int = 0, number: int = 0) -> dict[str, Any]:
    seq = Timestamp(1, number + 1)
    return {"_id": ObjectId(), "queue": queue, "priority": priority, "seq": seq}


@given(
    st.lists(st.tuples(st.sampled_from(QUEUES), st.integers(0, 2)), max_size=30),
    st.integers(0, 5),
    st.integers(0, 40),
)
def test_jobs_of_a_queue_are_taken_in_the_order_of_claims_as_far_as_there_is_room(
    put: list[tuple[str, int]], one: int, count: int
) -> None:
    jobs = [job(queue, priority, n) for n, (queue, priority) in enumerate(put)]
    jobs.sort(key=operations.claim_order_of)
    lanes = lanes_of(one=one, two=100, three=100)
    lanes.sort(jobs)

    taken = lanes.take(lanes.plan(count, Idle(one=one), known=True), count)

    for queue in QUEUES:
        there = [each for each in jobs if each["queue"] == queue]
        ours = [each for each in taken if each["queue"] == queue]
        assert ours == there[: len(ours)]
        assert queue != "one" or len(ours) <= one
    assert len(taken) + len(lanes) == len(jobs)


def test_a_job_that_is_more_urgent_than_what_is_known_of_its_queue_is_read_first() -> None:
    lanes = lanes_of(one=5, two=5)
    lanes.sort([job("one", 1), job("two", 1)])

    for queue, priority in (("one", 2), ("two", 1)):
        lane = lanes.get(queue)
        assert lane is not None
        lane.heard(job(queue, priority))

    assert lanes.short(lanes.plan(2, Idle())) == {"one": 1}


def test_what_is_planned_is_the_same_when_it_has_been_read() -> None:
    queues = [f"q{number}" for number in range(30)]
    lanes = lanes_of(**dict.fromkeys(queues, math.inf))
    lanes.look(queues)
    plan = lanes.plan(10, Idle())

    lanes.begin_read(plan.queues)
    lanes.were_read(plan.queues, [job(queue) for queue in plan.queues])

    assert lanes.plan(10, Idle()) == plan._replace(holder=ANY, shares=ANY)
    assert lanes.short(lanes.plan(10, Idle())) == {}


def test_a_job_that_comes_while_its_queue_is_read_is_read_next() -> None:
    lanes = lanes_of(one=5)
    lane = lanes.get("one")
    assert lane is not None
    lanes.begin_read(["one"])
    lane.heard(job("one"))

    lanes.were_read(["one"], [])

    assert lanes.short(lanes.plan(1, Idle())) == {"one": 1}


def test_a_job_that_was_read_and_told_of_is_known_once() -> None:
    lanes = lanes_of(one=5)
    read = job("one")
    lanes.sort([read])

    lanes.sort([read])

    assert len(lanes) == 1


def test_what_a_lane_has_no_room_for_is_given_up_once_and_not_what_it_has_room_for() -> None:
    lanes = lanes_of(one=0, two=1)
    lanes.handed([job("one", 0, 1), job("two", 0, 2)])

    assert (lanes.give_up(), lanes.give_up(), len(lanes)) == (True, False, 1)


def test_a_chunk_that_was_dropped_is_given_up_too() -> None:
    lanes = lanes_of(one=1)
    lanes.handed([job("one", 0, 1)])

    lanes.drop()

    assert (lanes.give_up(), lanes.give_up()) == (True, False)


def test_a_lane_without_room_is_not_read_and_waits_for_nobody() -> None:
    room = Room(0)
    lanes = Lanes({"one": room}, NOBODY, Fairness(10, {"one": 1}))
    lanes.look(["one"])
    before = (lanes.waits, lanes.plan(1, Idle(one=0)).queues)

    room.room = 1

    assert before == (False, [])
    assert (lanes.waits, lanes.plan(1, Idle(one=1)).queues) == (True, ["one"])


def test_a_backlog_is_read_in_fewer_and_larger_chunks_while_they_are_used_up() -> None:
    lane = lanes_of(one=100).get("one")
    assert lane is not None

    sizes = []
    for _ in range(5):
        sizes.append(lane.begin_read(2))
        lane.was_read([job("one")], more=True)
        lane.take()

    assert sizes == [16, 64, 256, 1000, 1000]
