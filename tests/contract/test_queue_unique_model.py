"""Keys against a model of them: whatever is put and taken in whatever order, they agree.

The model is a dictionary of who holds each key. Time does not pass by itself: what is due, or held
no longer, is so because the machine has moved all that is stored back in time.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pymongo import MongoClient

from streamqueue import DuplicateJob, Job, MongoQueue
from streamqueue.protocol.schema import KEY_INDEX, RUNNING_KEY_INDEX
from tests.contract.test_unique_guide import let_time_pass

KEYS = ["a", "b"]
HOURS = 3600.0


@dataclass
class Holder:
    """Who holds a key, and what it should be."""

    id: ObjectId
    n: int
    due: float  # in hours of the machine, as are the others
    priority: int
    until: float
    state: str = "waits"
    first: float = field(default=0.0)


class KeyMachine(RuleBasedStateMachine):
    """One queue, and jobs whose keys are held to their ends."""

    servers: list[MongoClient[dict[str, Any]]]  # in a list: the machine looks into its attributes

    def __init__(self) -> None:
        super().__init__()
        self.database = f"test_keys_{secrets.token_hex(6)}"
        jobs = self.servers[0][self.database].jobs
        jobs.database.command("createIndexes", jobs.name, indexes=[KEY_INDEX, RUNNING_KEY_INDEX])
        self.documents = [jobs]
        self.queues = [MongoQueue(jobs, max_attempts=1)]
        self.holders: dict[str, Holder] = {}
        self.held: dict[ObjectId, Job] = {}
        self.now = 0.0
        self.count = 0

    def teardown(self) -> None:
        self.servers[0].drop_database(self.database)

    def holder_of(self, key: str) -> Holder | None:
        holder = self.holders.get(key)
        if holder is not None and holder.state == "ended" and holder.until <= self.now:
            return None
        return holder

    @rule(
        key=st.sampled_from(KEYS),
        on_conflict=st.sampled_from(["raise", "skip", "replace", "earlier"]),
        delay=st.sampled_from([0.0, 1.0, 3.0]),
        priority=st.integers(0, 2),
        unique_for=st.sampled_from([None, 2.0]),
        longest=st.sampled_from([None, 2.0]),
        many=st.booleans(),
    )
    def put(
        self,
        key: str,
        on_conflict: str,
        delay: float,
        priority: int,
        unique_for: float | None,
        longest: float | None,
        many: bool,
    ) -> None:
        self.count += 1
        given: dict[str, Any] = {
            "on_conflict": on_conflict,
            "key_until": "end",
            "delay": delay * HOURS,
            "priority": priority,
            "unique_for": None if unique_for is None else unique_for * HOURS,
        }
        if on_conflict == "replace" and longest is not None:
            given["max_delay"] = longest * HOURS
        before = self.holder_of(key)
        payload = {"n": self.count}
        try:
            if many:
                (taken,) = self.queues[0].put_many([payload], keys=[key], **given)
            else:
                taken = self.queues[0].put(payload, key=key, **given)
            missed, refused = None, False
        except DuplicateJob as error:
            missed, refused = error.job_id, True

        found: Any = missed if refused else taken
        if before is None:
            assert not refused
            self.holders[key] = before = Holder(found, self.count, self.now, 0, 0.0, first=self.now)
        elif on_conflict == "raise" or before.state != "waits":
            assert refused is (on_conflict != "skip")
            assert found == before.id
            return
        assert (found, refused) == (before.id, False)
        due = self.now + delay
        if "max_delay" in given and longest is not None:
            due = min(due, max(self.now, before.first + longest))
        if before.n == self.count or on_conflict == "replace":
            before.n, before.priority, before.due = self.count, priority, due
            if unique_for is not None:
                before.until = self.now + unique_for
        elif on_conflict == "earlier":
            before.due, before.priority = min(before.due, due), max(before.priority, priority)

    @rule()
    def take(self) -> None:
        due = [
            each for each in self.holders.values() if each.state == "waits" and each.due <= self.now
        ]
        job = self.queues[0].next()
        assert (job is None) is (not due)
        if job is not None:
            (taken,) = [each for each in due if each.id == job.id]
            assert (job.data, job.priority) == ({"n": taken.n}, taken.priority)
            taken.state = "runs"
            self.held[job.id] = job

    @rule(dead=st.booleans())
    def end(self, dead: bool) -> None:
        for key, holder in list(self.holders.items()):
            if holder.state == "runs":
                job = self.held.pop(holder.id)
                if dead or holder.until > self.now:  # (what is removed has no more to hold it by)
                    job.error("no")
                    holder.state = "ended"
                else:
                    job.complete()
                    del self.holders[key]
                return

    @rule(hours=st.sampled_from([1.0, 2.0]))
    def pass_time(self, hours: float) -> None:
        let_time_pass(self.documents[0], hours * HOURS)
        self.now += hours

    @invariant()
    def one_waits_and_one_runs(self) -> None:
        live = [
            (job["key"], job["state"] == "running")
            for job in self.documents[0].find({"state": {"$gte": "ready"}})
        ]
        assert len(live) == len(set(live))


@pytest.mark.parametrize("examples", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_keys_do_what_the_model_does(client: MongoClient[Any], examples: int) -> None:
    class Machine(KeyMachine):
        servers = [client]  # noqa: RUF012

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
