"""The queue against a model of it: whatever is called in whatever order, they agree.

The model is a dictionary of what each job should be. Time does not pass by itself: a lease runs out
when the machine says so, by moving its end into the past.
"""

from __future__ import annotations

import secrets
from collections import Counter
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

from streamqueue import (
    DuplicateJob,
    Job,
    JobCancelled,
    JobNotFound,
    LeaseLost,
    MongoQueue,
    PayloadError,
)
from streamqueue.protocol.schema import EXPIRES_INDEX, KEY_INDEX, RUNNING_KEY_INDEX
from streamqueue.protocol.settings import BELL
from streamqueue.queue.flow import run
from streamqueue.store import known_settings

MAX_ATTEMPTS = 2
WAITING = ("ready", "waiting", "scheduled")


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
    key: str | None = None
    holds: bool = False  # its key
    until_start: bool = False
    holds_on: bool = False  # to its key, until a time that is said to be over


class QueueMachine(RuleBasedStateMachine):
    """Two consumers of one queue."""

    servers: list[MongoClient[dict[str, Any]]]  # in a list: the machine looks into its attributes

    def __init__(self) -> None:
        super().__init__()
        self.database = f"test_model_{secrets.token_hex(6)}"
        jobs = self.servers[0][self.database].jobs
        indexes = [EXPIRES_INDEX, KEY_INDEX, RUNNING_KEY_INDEX]
        jobs.database.command("createIndexes", jobs.name, indexes=indexes)
        self.documents = [jobs]
        self.consumers = [MongoQueue(jobs, f"c{n}", max_attempts=MAX_ATTEMPTS) for n in range(2)]
        self.expected: dict[ObjectId, Expected] = {}
        self.places = 0
        self.bare: dict[ObjectId, str] = {}  # what only holds a key, and which
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
        ran = job.state == "running"
        job.state, job.holder, job.asked, job.known = state, None, False, False
        job.holds = job.holds and job.holds_on
        if not job.keep:
            del self.expected[job_id]
            if job.holds:
                self.bare[job_id] = str(job.key)
        if ran:
            self.let_through(job)

    def let_through(self, ended: Expected) -> None:
        """Whoever waits for the job that ran until now can be claimed."""
        for job in self.expected.values():
            if ended.key is not None and job.key == ended.key and job.state == "waiting":
                job.state = "ready"

    def holder_of(self, key: str | None) -> ObjectId | None:
        """Who holds a key."""
        for job_id, job in self.expected.items():
            if key is not None and job.key == key and job.holds:
                return job_id
        return next((job_id for job_id, held in self.bare.items() if held == key), None)

    def runs(self, key: str | None) -> bool:
        """Whether a job of the key runs."""
        with_key = [job for job in self.expected.values() if key is not None and job.key == key]
        return any(job.state == "running" for job in with_key)

    def wait_again(self, job_id: ObjectId) -> None:
        """A job that ran is ready again, or is superseded."""
        job = self.expected[job_id]
        if job.until_start and not job.holds and self.holder_of(job.key) is not None:
            self.end(job_id, "cancelled")
            return
        job.state, job.holder = "ready", None
        job.holds = job.key is not None

    def die(self, job_id: ObjectId) -> None:
        """A job that ran is dead."""
        job = self.expected[job_id]
        job.state, job.holder = "dead", None
        job.holds = job.holds and job.holds_on
        self.let_through(job)

    @rule(priority=st.integers(-1, 1), keep=st.booleans())
    def put(self, priority: int, keep: bool) -> None:
        job_id = self.consumers[0].put({}, priority=priority, keep=600 if keep else None)
        self.expected[job_id] = Expected(priority, self.next_place(), keep=keep)

    @rule(
        key=st.sampled_from("ab"),
        priority=st.integers(-1, 1),
        on_conflict=st.sampled_from(["raise", "skip", "replace", "earlier"]),
        until_start=st.booleans(),
        holds_on=st.booleans(),
        keep=st.booleans(),
    )
    def put_with_a_key(
        self,
        key: str,
        priority: int,
        on_conflict: Any,
        until_start: bool,
        holds_on: bool,
        keep: bool,
    ) -> None:
        there = self.holder_of(key)
        settings: dict[str, Any] = {
            "priority": priority,
            "keep": 600 if keep else None,
            "key_until": "start" if until_start else "end",
            "unique_for": 3600 if holds_on else None,
        }
        job = None if there is None else self.expected.get(there)

        def put() -> ObjectId:
            return self.consumers[0].put({}, key=key, on_conflict=on_conflict, **settings)

        if there is None:
            self.expected[put()] = Expected(
                priority,
                self.next_place(),
                keep=keep,
                key=key,
                holds=True,
                until_start=until_start,
                holds_on=holds_on,
            )
        elif on_conflict == "skip":
            assert put() == there
        elif on_conflict == "replace" and job is not None and job.state in WAITING:
            assert put() == there
            self.is_due(job)
            job.priority, job.keep, job.until_start = priority, keep, until_start
            job.holds_on = job.holds_on or holds_on
            job.attempts, job.errors = 0, []
        elif on_conflict == "earlier" and job is not None and job.state in WAITING:
            assert put() == there
            self.is_due(job)
            job.priority = max(job.priority, priority)
        else:
            with pytest.raises(DuplicateJob):
                put()

    def is_due(self, job: Expected) -> None:
        """A job that was to run later is to run now."""
        if job.state == "scheduled":
            job.state, job.place = "ready", self.next_place()

    @rule()
    def keys_have_been_held_for_long_enough(self) -> None:
        past = [{"$set": {"unique_until": {"$subtract": ["$$NOW", 1]}}}]
        self.documents[0].update_many({"unique_until": {"$exists": True}}, past)
        self.documents[0].delete_many({"state": {"$exists": False}, "_id": {"$ne": BELL}})
        self.bare.clear()
        for job in self.expected.values():
            if job.holds_on:
                job.holds_on = False
                ended = job.state in ("done", "dead", "cancelled")
                job.holds = job.holds and not ended
                job.holds = job.holds and not (job.state == "running" and job.until_start)

    @rule(target=held, consumer=st.integers(0, 1), limit=st.integers(1, 3))
    def claim(self, consumer: int, limit: int) -> Any:
        ready = {id_: job for id_, job in self.expected.items() if job.state == "ready"}
        order = sorted(ready, key=lambda id_: (-ready[id_].priority, ready[id_].place))
        # A claim looks at so many, and at others when it has got none of those.
        urgent: list[ObjectId] = []
        while order and not urgent and not self.paused:
            some, order = order[:limit], order[limit:]
            urgent = [id_ for id_ in some if not self.runs(ready[id_].key)]
            for id_ in set(some) - set(urgent):
                ready[id_].state = "waiting"

        jobs = self.consumers[consumer].claim(limit)

        assert [job.id for job in jobs] == urgent
        for job in jobs:
            expected = self.expected[job.id]
            expected.holds = expected.holds and (expected.holds_on or not expected.until_start)
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
            expected.place = self.next_place()
            if state == "dead":
                self.die(job.id)
            else:
                self.wait_again(job.id)
                self.remove_what_the_server_would()

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
                before = expected.attempts
                self.wait_again(job.id)
                self.remove_what_the_server_would()
                expected.attempts = before - (expected.state == "ready")
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

        assert said == {"running": "asked"}.get(state, "cancelled" if state in WAITING else None)
        if state in WAITING:
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
            elif job.attempts >= MAX_ATTEMPTS:
                self.die(job_id)
            else:
                self.wait_again(job_id)
        self.remove_what_the_server_would()

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
        waiting = [job_id for job_id, job in self.expected.items() if job.state in WAITING]
        if not waiting:
            return
        job_id = data.draw(st.sampled_from(waiting))
        past = [{"$set": {"expires_at": {"$subtract": ["$$NOW", 1]}}}]
        self.documents[0].update_one({"_id": job_id}, past)

        assert run(self.consumers[1]._consumer._expire()) == 1

        self.end(job_id, "cancelled")

    @rule()
    def requeue_all(self) -> None:
        order = self.documents[0].find({"state": "dead"}, sort=[("finished_at", 1), ("_id", 1)])
        dead = [self.expected[document["_id"]] for document in order]
        keys = Counter(job.key for job in dead if job.key is not None)
        if any(count > 1 for count in keys.values()):
            return  # which of them has the key then depends on who died first
        free = [job for job in dead if job.holds or self.holder_of(job.key) is None]

        assert self.consumers[0].requeue() == len(free)

        for job in free:  # in no order among themselves, so the model takes the stored one
            job.state, job.attempts, job.holds = "ready", 0, job.key is not None
        self.take_over_places()

    @rule(data=st.data())
    def requeue_one(self, data: st.DataObject) -> None:
        if not self.expected:
            return
        job_id = data.draw(st.sampled_from(list(self.expected)))
        job = self.expected[job_id]
        taken = not job.holds and self.holder_of(job.key) is not None
        if job.state in ("dead", "cancelled") and taken:
            with pytest.raises(DuplicateJob):
                self.consumers[1].requeue(job_id)
        elif job.state in ("dead", "cancelled"):
            assert self.consumers[1].requeue(job_id) == 1
            job.state, job.attempts, job.place = "ready", 0, self.next_place()
            job.holds = job.key is not None
        else:
            with pytest.raises(JobNotFound):
                self.consumers[1].requeue(job_id)

    @rule(data=st.data(), priority=st.integers(-1, 1), when=st.sampled_from([None, 0, 3600]))
    def reschedule(self, data: st.DataObject, priority: int, when: int | None) -> None:
        if not self.expected:
            return
        job_id = data.draw(st.sampled_from(list(self.expected)))
        job = self.expected[job_id]
        if job.state in WAITING:
            self.consumers[1].reschedule(job_id, priority=priority, delay=when)
            job.priority = priority
            if when == 0:
                job.state, job.place = "ready", self.next_place()
            elif when is not None:
                job.state = "scheduled"
        else:
            with pytest.raises(JobNotFound):
                self.consumers[1].reschedule(job_id, priority=priority, delay=when)

    @rule()
    def drop_the_dead(self) -> None:
        dead = [job_id for job_id, job in self.expected.items() if job.state == "dead"]

        assert self.consumers[0].drop_max_attempts() == len(dead)

        for job_id in dead:
            job = self.expected.pop(job_id)
            if job.holds:
                self.bare[job_id] = str(job.key)

    @invariant()
    def everybody_knows_whether_it_is_paused(self) -> None:
        assert [consumer.is_paused() for consumer in self.consumers] == [self.paused] * 2

    @invariant()
    def the_counts_agree(self) -> None:
        states = [job.state for job in self.expected.values()]

        counted = {
            "waiting": states.count("waiting"),
            "available": states.count("ready"),
            "scheduled": states.count("scheduled"),
            "locked": states.count("running"),
            "errors": states.count("dead"),
            "total": len(states),
        }
        assert counted.items() <= self.consumers[0].stats().items()

    @invariant()
    def nothing_is_lost_and_nothing_comes_from_nothing(self) -> None:
        stored = {job["_id"]: job for job in self.documents[0].find({"_id": {"$ne": BELL}})}

        assert stored.keys() == self.expected.keys() | self.bare.keys()
        held = {
            job_id: job["held_key"]
            for job_id, job in stored.items()
            # What was held for a time is let go of by whoever wants it.
            if "held_key" in job and (job_id not in self.expected or self.keeps_hold(job_id, job))
        }
        holding = {job_id: job.key for job_id, job in self.expected.items() if job.holds}
        assert held == {**holding, **self.bare}
        for job_id, job in self.expected.items():
            assert stored[job_id]["attempts"] == job.attempts
            assert stored[job_id]["state"] == job.state
            assert ("lease" in stored[job_id]) == (job.state == "running")
            assert ("removed_at" in stored[job_id]) == (job.state in ("done", "cancelled"))
            if job.state == "done":
                assert stored[job_id].get("result") == job.result
            if job.errors:
                assert job.errors[-1] in [e["message"] for e in stored[job_id]["errors"]]

    @invariant()
    def no_two_of_a_key_wait_or_run(self) -> None:
        for states in (["ready", "waiting", "scheduled"], ["running"]):
            wanted = {"state": {"$in": states}, "key": {"$exists": True}}
            keys = [job["key"] for job in self.documents[0].find(wanted)]
            assert len(keys) == len(set(keys))

    def keeps_hold(self, job_id: ObjectId, stored: dict[str, Any]) -> bool:
        return self.expected[job_id].holds or "unique_until" not in stored

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


@pytest.mark.parametrize("examples", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_the_queue_agrees_with_its_model(
    client: MongoClient[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    monkeypatch.setattr(known_settings, "SURE_FOR", 0.0)  # a pause holds at once
    QueueMachine.servers = [client]

    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
