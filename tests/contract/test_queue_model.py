"""The queue against a model of it: whatever is called in whatever order, they agree.

The model is a dictionary of what each job should be. Time does not pass by itself: a lease runs out
when the machine says so, by moving its end into the past.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from pymongo import MongoClient

from streamqueue import Job, JobNotFound, LeaseLost, MongoQueue

MAX_ATTEMPTS = 2


@dataclass
class Expected:
    """What a job should be."""

    priority: int
    place: int  # in the order of the puts, and of the ends that sent it to the back
    state: str = "ready"
    attempts: int = 0
    holder: object = None
    errors: list[str] = field(default_factory=list)


class QueueMachine(RuleBasedStateMachine):
    """Two consumers of one queue."""

    servers: list[MongoClient[dict[str, Any]]]  # in a list: the machine looks into its attributes

    def __init__(self) -> None:
        super().__init__()
        self.database = f"test_model_{secrets.token_hex(6)}"
        jobs = self.servers[0][self.database].jobs
        self.documents = [jobs]
        self.consumers = [MongoQueue(jobs, f"c{n}", max_attempts=MAX_ATTEMPTS) for n in range(2)]
        self.expected: dict[ObjectId, Expected] = {}
        self.places = 0

    def teardown(self) -> None:
        self.servers[0].drop_database(self.database)

    held = Bundle("held")
    over = Bundle("over")

    def next_place(self) -> int:
        self.places += 1
        return self.places

    @rule(priority=st.integers(-1, 1))
    def put(self, priority: int) -> None:
        job_id = self.consumers[0].put({}, priority=priority)
        self.expected[job_id] = Expected(priority, self.next_place())

    @rule(target=held, consumer=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, consumer: int, limit: int) -> Any:
        ready = {id_: job for id_, job in self.expected.items() if job.state == "ready"}
        urgent = sorted(ready, key=lambda id_: (-ready[id_].priority, ready[id_].place))[:limit]

        jobs = self.consumers[consumer].claim(limit)

        assert [job.id for job in jobs] == urgent
        for job in jobs:
            expected = self.expected[job.id]
            expected.state, expected.holder = "running", job
            expected.attempts += 1
            assert job.attempts == expected.attempts
        return multiple(*jobs)

    @rule(target=over, job=consumes(held))
    def complete(self, job: Job) -> Job:
        if self.holds(job):
            job.complete()
            del self.expected[job.id]
        else:
            self.refused(job.complete)
        return job

    @rule(target=over, job=consumes(held), message=st.sampled_from(["$$ROOT", "no", ""]))
    def error(self, job: Job, message: str) -> Job:
        if self.holds(job):
            job.error(message, delay=0)
            expected = self.expected[job.id]
            expected.errors.append(message)
            expected.state = "dead" if expected.attempts >= MAX_ATTEMPTS else "ready"
            expected.holder, expected.place = None, self.next_place()
        else:
            self.refused(lambda: job.error(message, delay=0))
        return job

    @rule(target=over, job=consumes(held))
    def release(self, job: Job) -> Job:
        if self.holds(job):
            job.release()
            expected = self.expected[job.id]
            expected.state, expected.holder = "ready", None
            expected.attempts -= 1
        else:
            self.refused(job.release)
        return job

    @rule(job=held, count=st.integers(0, 100))
    def progress(self, job: Job, count: int) -> None:
        if self.holds(job):
            job.progress(count)
        else:
            self.refused(job.progress)  # one with a count may wait, to be written with others

    @rule(job=over)
    def a_job_that_is_over_is_not_held(self, job: Job) -> None:
        for call in (job.complete, job.error, job.progress, job.release):
            self.refused(call)

    @rule()
    def leases_run_out_and_are_repaired(self) -> None:
        stale = [job for job in self.expected.values() if job.state == "running"]
        past = [{"$set": {"locked_until": {"$subtract": ["$$NOW", 1]}}}]
        self.documents[0].update_many({"state": "running"}, past)

        assert self.consumers[1].repair() == len(stale)

        for job in stale:
            job.state = "dead" if job.attempts >= MAX_ATTEMPTS else "ready"
            job.holder = None

    @rule()
    def requeue_all(self) -> None:
        dead = [job for job in self.expected.values() if job.state == "dead"]

        assert self.consumers[0].requeue() == len(dead)

        for job in dead:  # in no order among themselves, so the model takes the stored one
            job.state, job.attempts = "ready", 0
        self.take_over_places()

    @rule(data=st.data())
    def requeue_one(self, data: st.DataObject) -> None:
        if not self.expected:
            return
        job_id = data.draw(st.sampled_from(list(self.expected)))
        job = self.expected[job_id]
        if job.state == "dead":
            assert self.consumers[1].requeue(job_id) == 1
            job.state, job.attempts, job.place = "ready", 0, self.next_place()
        else:
            with pytest.raises(JobNotFound):
                self.consumers[1].requeue(job_id)

    @rule()
    def drop_the_dead(self) -> None:
        dead = [job_id for job_id, job in self.expected.items() if job.state == "dead"]

        assert self.consumers[0].drop_max_attempts() == len(dead)

        for job_id in dead:
            del self.expected[job_id]

    @invariant()
    def the_counts_agree(self) -> None:
        states = [job.state for job in self.expected.values()]

        assert self.consumers[0].stats() == {
            "available": states.count("ready"),
            "scheduled": 0,
            "locked": states.count("running"),
            "errors": states.count("dead"),
            "total": len(states),
        }

    @invariant()
    def nothing_is_lost_and_nothing_comes_from_nothing(self) -> None:
        stored = {job["_id"]: job for job in self.documents[0].find()}

        assert stored.keys() == self.expected.keys()
        for job_id, job in self.expected.items():
            assert stored[job_id]["attempts"] == job.attempts
            assert ("lease" in stored[job_id]) == (job.state == "running")
            if job.errors:
                assert job.errors[-1] in [e["message"] for e in stored[job_id]["errors"]]

    def holds(self, job: Job) -> bool:
        expected = self.expected.get(job.id)
        return expected is not None and expected.holder is job

    def refused(self, call: Any) -> None:
        with pytest.raises(LeaseLost):
            call()

    def take_over_places(self) -> None:
        order = self.documents[0].find({"state": "ready"}, sort=[("run_at", 1), ("_id", 1)])
        for document in order:
            self.expected[document["_id"]].place = self.next_place()


def test_the_queue_agrees_with_its_model(client: MongoClient[dict[str, Any]]) -> None:
    QueueMachine.servers = [client]

    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
