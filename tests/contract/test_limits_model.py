"""Limits and ordered groups against a model of them: whatever is done in whatever order, nothing is
started that may not be, and nothing is withheld that may.

The model is a dictionary of what each job should be. Each queue object goes by what it knows of the
running jobs, which may be old: then it may take fewer at a time, but never none.

Law: a limit is a limit.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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

from streamqueue import Job, MongoQueue
from streamqueue.protocol.schema import DEAD_GROUP_INDEX, GROUP_INDEX, SLOTS_INDEX
from streamqueue.queue.flow import run
from streamqueue.store import known_settings
from tests.contract.looks import let_lease_run_out

LIVE = ("ready", "scheduled", "running")


@dataclass
class Expected:
    """What a job should be; `place` is that in its group."""

    group: str | None
    place: int
    state: str = "ready"
    holder: object = None


class LimitsMachine(RuleBasedStateMachine):
    """Three consumers of one queue whose rules change."""

    servers: Sequence[MongoClient[dict[str, Any]]]  # in a list: the machine looks into it

    def __init__(self) -> None:
        super().__init__()
        self.database = f"test_limits_{secrets.token_hex(6)}"
        jobs = self.servers[0][self.database].jobs
        indexes = [GROUP_INDEX, DEAD_GROUP_INDEX, SLOTS_INDEX]
        jobs.database.command("createIndexes", jobs.name, indexes=indexes)
        self.documents = [jobs]
        self.queues = [MongoQueue(jobs, f"c{n}", max_attempts=100) for n in range(3)]
        self.expected: dict[ObjectId, Expected] = {}
        self.limits: dict[str, int | None] = {"queue": None, "group": None}
        self.ordered: Any = False
        self.places = 0

    def teardown(self) -> None:
        self.servers[0].drop_database(self.database)

    held = Bundle("held")

    # what may be

    def running(self, group: str | None = None) -> int:
        """How many run, of all or of a group."""
        jobs = self.expected.values()
        return sum(job.state == "running" and group in (None, job.group) for job in jobs)

    def may_start(self, job_id: ObjectId) -> bool:
        """Whether a job may start now."""
        job, most = self.expected[job_id], self.limits
        if job.state != "ready" or self.is_reached("queue", self.running()):
            return False
        if job.group is None:
            return True
        of_group = [each for each in self.expected.values() if each.group == job.group]
        running = self.running(job.group)
        if most["group"] is not None and running >= most["group"]:
            return False
        if not self.ordered:
            return True
        dead = any(each.state == "dead" for each in of_group)
        first = min(each.place for each in of_group if each.state in LIVE)
        return not (running or (self.ordered == "strict" and dead)) and job.place == first

    def is_reached(self, per: str, running: int) -> bool:
        limit = self.limits[per]
        return limit is not None and running >= limit

    # what is done

    @rule(groups=st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=4))
    def put(self, groups: list[str | None]) -> None:
        for group in groups:
            self.places += 1
            job_id = self.queues[0].put({}, group=group)
            self.expected[job_id] = Expected(group, self.places)

    @rule(target=held, consumer=st.integers(0, 2), limit=st.integers(1, 4))
    def claim(self, consumer: int, limit: int) -> Any:
        jobs = self.queues[consumer].claim(limit)

        assert jobs or not any(map(self.may_start, self.expected)), "one is withheld"
        for job in jobs:
            assert self.may_start(job.id), "one is started that may not be"
            self.expected[job.id].state, self.expected[job.id].holder = "running", job
        return multiple(*jobs)

    @rule(job=consumes(held), end=st.sampled_from(["complete", "release", "error", "later", "die"]))
    def end(self, job: Job, end: str) -> None:
        expected = self.expected.get(job.id)
        if expected is None or expected.state != "running" or expected.holder is not job:
            return  # its lease has run out
        if end == "complete":
            job.complete()
            del self.expected[job.id]
        elif end == "release":
            job.release()
            expected.state = "ready"
        elif end == "die":
            self.documents[0].update_one({"_id": job.id}, {"$set": {"max_attempts": 1}})
            job.error("no more")
            expected.state = "dead"
        else:
            job.error("again", delay=600 if end == "later" else 0)
            expected.state = "scheduled" if end == "later" else "ready"

    @rule()
    def leases_run_out(self) -> None:
        running = [job_id for job_id, job in self.expected.items() if job.state == "running"]
        if running:
            let_lease_run_out(self.documents[0])
            self.queues[2].repair()
            dead = {job["_id"] for job in self.documents[0].find({"state": "dead"}, {"_id": 1})}
            for job_id in running:
                self.expected[job_id].state = "dead" if job_id in dead else "ready"

    @rule()
    def backoffs_are_over(self) -> None:
        past = [{"$set": {"run_at": {"$subtract": ["$$NOW", 1]}}}]
        self.documents[0].update_many({"state": "scheduled"}, past)
        while self.queues[0]._store.promote(["default"]):
            pass
        for job in self.expected.values():
            if job.state == "scheduled":
                job.state = "ready"

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = [id_ for id_, job in self.expected.items() if job.state in ("ready", "scheduled")]
        if waiting:
            job_id = data.draw(st.sampled_from(waiting))
            assert self.queues[1].cancel(job_id) == "cancelled"
            del self.expected[job_id]

    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        dead = [job_id for job_id, job in self.expected.items() if job.state == "dead"]
        if dead:
            job_id = data.draw(st.sampled_from(dead))
            self.documents[0].update_one({"_id": job_id}, {"$set": {"max_attempts": 100}})
            assert self.queues[1].requeue(job_id) == 1
            self.expected[job_id].state = "ready"

    @rule(running=st.sampled_from([None, 1, 2, 3, 5]), per=st.sampled_from(["queue", "group"]))
    def limit(self, running: int | None, per: Any) -> None:
        self.queues[0].limit(running=running, per=per)
        self.limits[per] = running
        learn(self.queues)

    @rule(ordered=st.sampled_from([False, True, "strict"]))
    def order(self, ordered: Any) -> None:
        declared = {"$set": {"declared": {"ordered": ordered}}}
        documents = self.documents[0]
        settings = documents.database[f"{documents.name}.settings"]
        settings.update_one({"_id": "default"}, declared, upsert=True)
        self.ordered = ordered
        learn(self.queues)

    @invariant()
    def those_run_that_should_and_they_alone_have_slots(self) -> None:
        states = {"$in": [*LIVE, "dead"]}
        found = {job["_id"]: job for job in self.documents[0].find({"state": states})}

        assert {id_: job["state"] for id_, job in found.items()} == {
            id_: job.state for id_, job in self.expected.items()
        }
        assert all(job["state"] == "running" for job in found.values() if "slots" in job)


def learn(queues: Iterable[MongoQueue]) -> None:
    """Let them read the rules: what was changed and changed back, unseen, is what it was."""
    for queue in queues:
        run(queue._consumer._settings.paused())


def check(client: MongoClient[Any], examples: int, steps: int) -> None:
    class Machine(LimitsMachine):
        servers = (client,)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.fixture(autouse=True)
def _settings_hold_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_settings, "SURE_FOR", 0.0)


def test_limits_and_order_are_kept_and_nothing_is_withheld(client: MongoClient[Any]) -> None:
    check(client, examples=6, steps=20)


@pytest.mark.slow
def test_they_are_in_many_more_histories(client: MongoClient[Any]) -> None:
    check(client, examples=300, steps=50)


@pytest.mark.slow
def test_no_start_exceeds_a_limit_in_three_thousand_histories_of_its_changes(
    client: MongoClient[Any],
) -> None:
    """Set on a busy queue, raised, lowered and taken away, between claims of three processes."""
    database = f"test_limits_{secrets.token_hex(6)}"
    documents = client[database].jobs
    queues = [MongoQueue(documents, f"c{n}") for n in range(3)]
    for _ in range(3000):
        documents.delete_many({})
        queues[0].limit(running=None)
        learn(queues)
        queues[0].put_many([{}] * 60)
        held: list[Job] = []
        most: int | None = None
        for _ in range(random.randint(6, 12)):
            match random.choice(["claim", "claim", "claim", "end", "limit"]):
                case "claim":
                    started = random.choice(queues).claim(random.randint(1, 5))
                    room = len(started) if most is None else most - len(held)
                    assert len(started) <= max(room, 0)
                    assert started or room <= 0
                    held += started
                case "end" if held:
                    held.pop(random.randrange(len(held))).complete()
                case "limit":
                    most = random.choice([None, 1, 2, 4, 8])
                    random.choice(queues).limit(running=most)
                    learn(queues)
    client.drop_database(database)
