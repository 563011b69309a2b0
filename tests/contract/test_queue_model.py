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

from streamqueue import Job, JobCancelled, JobNotFound, LeaseLost, MongoQueue, PayloadError
from streamqueue.protocol.schema import EXPIRES_INDEX
from streamqueue.protocol.settings import BELL
from streamqueue.queue.flow import run
from streamqueue.store import known_settings

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
    keep: bool = False
    result: object = None
    asked: bool = False  # while it runs: somebody has asked to cancel it
    known: bool = False  # its holder has learned of that


class QueueMachine(RuleBasedStateMachine):
    """Two consumers of one queue."""

    servers: list[MongoClient[dict[str, Any]]]  # in a list: the machine looks into its attributes

    def __init__(self) -> None:
        super().__init__()
        self.database = f"test_model_{secrets.token_hex(6)}"
        jobs = self.servers[0][self.database].jobs
        jobs.database.command("createIndexes", jobs.name, indexes=[EXPIRES_INDEX])
        self.documents = [jobs]
        self.consumers = [MongoQueue(jobs, f"c{n}", max_attempts=MAX_ATTEMPTS) for n in range(2)]
        self.expected: dict[ObjectId, Expected] = {}
        self.places = 0
        self.paused = False

    def teardown(self) -> None:
        self.servers[0].drop_database(self.database)

    held = Bundle("held")
    over = Bundle("over")

    def next_place(self) -> int:
        self.places += 1
        return self.places

    def end(self, job_id: ObjectId, state: str) -> None:
        """A job is done or cancelled: it stays if it is kept."""
        job = self.expected[job_id]
        job.state, job.holder, job.asked, job.known = state, None, False, False
        if not job.keep:
            del self.expected[job_id]

    @rule(priority=st.integers(-1, 1), keep=st.booleans())
    def put(self, priority: int, keep: bool) -> None:
        job_id = self.consumers[0].put({}, priority=priority, keep=600 if keep else None)
        self.expected[job_id] = Expected(priority, self.next_place(), keep=keep)

    @rule(target=held, consumer=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, consumer: int, limit: int) -> Any:
        ready = {id_: job for id_, job in self.expected.items() if job.state == "ready"}
        urgent = sorted(ready, key=lambda id_: (-ready[id_].priority, ready[id_].place))[:limit]
        if self.paused:
            urgent = []

        jobs = self.consumers[consumer].claim(limit)

        assert [job.id for job in jobs] == urgent
        for job in jobs:
            expected = self.expected[job.id]
            expected.state, expected.holder = "running", job
            expected.attempts += 1
            assert job.attempts == expected.attempts
        return multiple(*jobs)

    @rule(target=over, job=consumes(held), result=st.sampled_from([None, 5, {"$a": "$$ROOT"}]))
    def complete(self, job: Job, result: object) -> Job:
        if self.is_stopped(job, lambda: job.complete(result)):
            return job
        if self.holds(job):
            job.complete(result)  # though somebody has asked to cancel it: nobody knew
            self.expected[job.id].result = result
            self.end(job.id, "done")
        else:
            self.refused(job.complete)
        return job

    @rule(target=over, job=consumes(held))
    def complete_with_what_cannot_be_stored(self, job: Job) -> Job:
        if self.is_stopped(job, lambda: job.complete(object())):
            return job
        if not self.holds(job):
            self.refused(job.complete)
        elif self.expected[job.id].keep:
            with pytest.raises(PayloadError) as raised:
                job.complete(object())
            self.expected[job.id].errors.append(str(raised.value))
            self.failed(job, "dead")
        else:
            job.complete(object())
            self.end(job.id, "done")
        return job

    def failed(self, job: Job, state: str) -> None:
        """An attempt has failed: the job goes where it should, unless it was to be cancelled."""
        expected = self.expected[job.id]
        if expected.asked:
            self.end(job.id, "cancelled")
            self.remove_what_the_server_would()
        else:
            expected.state, expected.holder, expected.place = state, None, self.next_place()

    def remove_what_the_server_would(self) -> None:
        """Remove cancelled jobs that nobody keeps, as the server does within a minute."""
        over = {"state": "cancelled", "$expr": {"$lte": ["$removed_at", "$$NOW"]}}
        self.documents[0].delete_many(over)

    @rule(target=over, job=consumes(held), message=st.sampled_from(["$$ROOT", "no", ""]))
    def error(self, job: Job, message: str) -> Job:
        if self.is_stopped(job, lambda: job.error(message)):
            return job
        if self.holds(job):
            job.error(message, delay=0)
            expected = self.expected[job.id]
            expected.errors.append(message)
            self.failed(job, "dead" if expected.attempts >= MAX_ATTEMPTS else "ready")
        else:
            self.refused(lambda: job.error(message, delay=0))
        return job

    @rule(target=over, job=consumes(held))
    def release(self, job: Job) -> Job:
        if self.is_stopped(job, job.release):
            return job
        if self.holds(job):
            job.release()
            expected = self.expected[job.id]
            if expected.asked:
                self.end(job.id, "cancelled")
                self.remove_what_the_server_would()
            else:
                expected.state, expected.holder = "ready", None
                expected.attempts -= 1
        else:
            self.refused(job.release)
        return job

    @rule(job=held, count=st.integers(0, 100))
    def progress(self, job: Job, count: int) -> None:
        if self.is_stopped(job, job.progress):
            return
        if self.holds(job):
            job.progress()
            self.expected[job.id].known = self.expected[job.id].asked
            if not self.expected[job.id].known:
                job.progress(count)  # within the same second: kept for the next write
        else:
            self.refused(job.progress)

    def is_stopped(self, job: Job, call: Any) -> bool:
        """Whether a call of a job ends it as cancelled, since its holder knows of the request."""
        if not (self.holds(job) and self.expected[job.id].known):
            return False
        with pytest.raises(JobCancelled):
            call()
        self.end(job.id, "cancelled")
        return True

    @rule(job=over)
    def a_job_that_is_over_is_not_held(self, job: Job) -> None:
        for call in (job.complete, job.error, job.progress, job.release):
            self.refused(call)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.expected:
            return
        job_id = data.draw(st.sampled_from(list(self.expected)))
        job = self.expected[job_id]
        state = job.state

        said = self.consumers[1].cancel(job_id)

        assert said == {"ready": "cancelled", "running": "asked"}.get(state)
        if state == "ready":
            self.end(job_id, "cancelled")
        elif state == "running":
            job.asked = True

    @rule()
    def leases_run_out_and_are_repaired(self) -> None:
        stale = {id_: job for id_, job in self.expected.items() if job.state == "running"}
        past = [{"$set": {"locked_until": {"$subtract": ["$$NOW", 1]}}}]
        self.documents[0].update_many({"state": "running"}, past)

        assert self.consumers[1].repair() == len(stale)

        for job_id, job in stale.items():
            if job.asked:
                self.end(job_id, "cancelled")
            else:
                job.state = "dead" if job.attempts >= MAX_ATTEMPTS else "ready"
                job.holder = None

    @rule(consumer=st.integers(0, 1))
    def pause(self, consumer: int) -> None:
        self.consumers[consumer].pause()
        self.paused = True

    @rule(consumer=st.integers(0, 1))
    def resume(self, consumer: int) -> None:
        self.consumers[consumer].resume()
        self.paused = False

    @rule(data=st.data())
    def a_job_that_waits_is_too_late(self, data: st.DataObject) -> None:
        waiting = [job_id for job_id, job in self.expected.items() if job.state == "ready"]
        if not waiting:
            return
        job_id = data.draw(st.sampled_from(waiting))
        past = [{"$set": {"expires_at": {"$subtract": ["$$NOW", 1]}}}]
        self.documents[0].update_one({"_id": job_id}, past)

        assert run(self.consumers[1]._consumer._expire()) == 1

        self.end(job_id, "cancelled")

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
        if job.state in ("dead", "cancelled"):
            assert self.consumers[1].requeue(job_id) == 1
            job.state, job.attempts, job.place = "ready", 0, self.next_place()
        else:
            with pytest.raises(JobNotFound):
                self.consumers[1].requeue(job_id)

    @rule(data=st.data(), priority=st.integers(-1, 1), now=st.booleans())
    def reschedule(self, data: st.DataObject, priority: int, now: bool) -> None:
        if not self.expected:
            return
        job_id = data.draw(st.sampled_from(list(self.expected)))
        job, when = self.expected[job_id], 0 if now else None
        if job.state == "ready":
            self.consumers[1].reschedule(job_id, priority=priority, delay=when)
            job.priority = priority
            job.place = self.next_place() if now else job.place
        else:
            with pytest.raises(JobNotFound):
                self.consumers[1].reschedule(job_id, priority=priority, delay=when)

    @rule()
    def drop_the_dead(self) -> None:
        dead = [job_id for job_id, job in self.expected.items() if job.state == "dead"]

        assert self.consumers[0].drop_max_attempts() == len(dead)

        for job_id in dead:
            del self.expected[job_id]

    @invariant()
    def everybody_knows_whether_it_is_paused(self) -> None:
        assert [consumer.is_paused() for consumer in self.consumers] == [self.paused] * 2

    @invariant()
    def the_counts_agree(self) -> None:
        states = [job.state for job in self.expected.values()]

        counted = {
            "available": states.count("ready"),
            "scheduled": 0,
            "locked": states.count("running"),
            "errors": states.count("dead"),
            "total": len(states),
        }
        assert counted.items() <= self.consumers[0].stats().items()

    @invariant()
    def nothing_is_lost_and_nothing_comes_from_nothing(self) -> None:
        stored = {job["_id"]: job for job in self.documents[0].find({"_id": {"$ne": BELL}})}

        assert stored.keys() == self.expected.keys()
        for job_id, job in self.expected.items():
            assert stored[job_id]["attempts"] == job.attempts
            assert stored[job_id]["state"] == job.state
            assert ("lease" in stored[job_id]) == (job.state == "running")
            assert ("removed_at" in stored[job_id]) == (job.state in ("done", "cancelled"))
            if job.state == "done":
                assert stored[job_id].get("result") == job.result
            if job.errors:
                assert job.errors[-1] in [e["message"] for e in stored[job_id]["errors"]]

    def holds(self, job: Job) -> bool:
        expected = self.expected.get(job.id)
        return expected is not None and expected.holder is job

    def refused(self, call: Any) -> None:
        with pytest.raises((LeaseLost, JobCancelled)):  # the latter again and again
            call()

    def take_over_places(self) -> None:
        order = self.documents[0].find({"state": "ready"}, sort=[("run_at", 1), ("_id", 1)])
        for document in order:
            self.expected[document["_id"]].place = self.next_place()


def test_the_queue_agrees_with_its_model(
    client: MongoClient[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_settings, "SURE_FOR", 0.0)  # a pause holds at once
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
