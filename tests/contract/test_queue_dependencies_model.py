"""Dependencies against a model of them: whatever is put, ended and put back, they agree."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pymongo import MongoClient

from streamqueue import Job, JobNotFound, MongoQueue, NewJob
from streamqueue.protocol.schema import FEATURE_INDEXES

LIVE = ("ready", "running", "waiting")
RULES = ("hold", "cancel", "run")


@dataclass
class Modelled:
    """A job as it should be."""

    after: list[ObjectId]
    rule: str
    state: str
    waited: bool = False  # when it was cancelled


class DependencyMachine(RuleBasedStateMachine):
    """One queue whose jobs come after one another; what has ended stays."""

    servers: list[MongoClient[dict[str, Any]]]  # in a list: the machine looks into its attributes

    def __init__(self) -> None:
        super().__init__()
        self.database = f"test_after_{secrets.token_hex(6)}"
        jobs = self.servers[0][self.database].jobs
        wanted = [*FEATURE_INDEXES["after"], *FEATURE_INDEXES["keep"]]
        jobs.database.command("createIndexes", jobs.name, indexes=wanted)
        self.documents = [jobs]
        self.queues = [MongoQueue(jobs, max_attempts=1)]
        self.jobs: dict[ObjectId, Modelled] = {}
        self.held: dict[ObjectId, Job] = {}

    def teardown(self) -> None:
        self.servers[0].drop_database(self.database)

    # the model

    def settle(self) -> None:
        """Have all that waits become what its parents say."""
        changed = True
        while changed:
            changed = False
            for job in self.jobs.values():
                if job.state == "waiting" and (state := self.decided(job)) != "waiting":
                    job.waited = state == "cancelled"
                    job.state, changed = state, True

    def decided(self, job: Modelled) -> str:
        states = [self.jobs[parent].state for parent in job.after]
        for_good = {"cancelled", "gone"} & set(states)
        if (job.rule != "run" and for_good) or (job.rule == "cancel" and "dead" in states):
            return "cancelled"
        lives = any(state in LIVE for state in states)
        return "waiting" if lives or (job.rule == "hold" and "dead" in states) else "ready"

    def one(self, number: int, *states: str) -> ObjectId | None:
        """One of the jobs in these states."""
        ids = [job_id for job_id, job in self.jobs.items() if job.state in states]
        return ids[number % len(ids)] if ids else None

    # what may happen

    @rule(numbers=st.lists(st.integers(0, 50), max_size=3), how=st.sampled_from(RULES))
    def put(self, numbers: list[int], how: Any) -> None:
        ids = list(self.jobs)
        after = list(dict.fromkeys(ids[n % len(ids)] for n in numbers)) if ids else []
        if any(self.jobs[one].state == "gone" for one in after):
            with pytest.raises(JobNotFound):
                self.queues[0].put({}, after=after)
            return
        new = self.queues[0].put({}, after=after, if_parent_fails=how, keep=3600)
        self.jobs[new] = Modelled(after, how, "waiting")
        self.settle()

    @rule(numbers=st.lists(st.integers(0, 5), min_size=1, max_size=4), how=st.sampled_from(RULES))
    def put_together(self, numbers: list[int], how: Any) -> None:
        ids = [ObjectId() for _ in numbers]
        after = [[ids[n] for n in {n % (at + 1) for n in numbers} - {at}] for at in range(len(ids))]
        new = [
            NewJob({}, job_id=one, after=its, if_parent_fails=how, keep=3600)
            for one, its in zip(ids, after, strict=True)
        ]
        self.queues[0].put_many(reversed(new))
        self.jobs |= {
            one: Modelled(its, how, "waiting") for one, its in zip(ids, after, strict=True)
        }
        self.settle()

    @rule()
    def take(self) -> None:
        job = self.queues[0].next()
        ready = {one for one, modelled in self.jobs.items() if modelled.state == "ready"}
        assert (job is None) is (not ready)
        if job is not None:
            assert job.id in ready
            self.held[job.id] = job
            self.jobs[job.id].state = "running"

    @rule(number=st.integers(0, 50), well=st.booleans())
    def end(self, number: int, well: bool) -> None:
        job_id = self.one(number, "running")
        if job_id is None:
            return
        job = self.held.pop(job_id)
        if well:
            job.complete({"id": job_id})
        else:
            job.error("no")
        self.jobs[job_id].state = "done" if well else "dead"
        self.settle()

    @rule(number=st.integers(0, 50), dependents=st.booleans())
    def cancel(self, number: int, dependents: bool) -> None:
        job_id = self.one(number, "ready", "waiting", "done")
        if job_id is None or (dependents and self.below(job_id, "running")):
            return
        said = self.queues[0].cancel(job_id, dependents=dependents)
        assert said == (None if self.jobs[job_id].state == "done" else "cancelled")
        meant = [job_id, *(self.below(job_id, *LIVE) if dependents else ())]
        for one in meant:
            job = self.jobs[one]
            if job.state in LIVE:
                job.waited = job.state == "waiting"
                job.state = "cancelled"
        self.settle()

    def below(self, root: ObjectId, *states: str) -> list[ObjectId]:
        """The live jobs below one, by way of live ones, that are in these states."""
        found, level = {root}, [root]
        while level:
            level = [
                one
                for one, job in self.jobs.items()
                if one not in found and job.state in LIVE and set(job.after) & set(level)
            ]
            found |= set(level)
        return [one for one in found - {root} if self.jobs[one].state in states]

    @rule(number=st.integers(0, 50))
    def requeue(self, number: int) -> None:
        job_id = self.one(number, "dead", "cancelled")
        if job_id is None:
            return
        self.queues[0].requeue(job_id)
        job = self.jobs[job_id]
        if job.waited:
            job.rule = "run"
        job.state, job.waited = "waiting" if job.waited else "ready", False
        self.settle()

    @rule()
    def purge(self) -> None:
        dead = [job for job in self.jobs.values() if job.state == "dead"]
        assert self.queues[0].drop_max_attempts() == len(dead)
        for job in dead:
            job.state = "gone"
        self.settle()

    # what must be so

    @invariant()
    def all_are_as_they_should_be(self) -> None:
        found = {job["_id"]: job for job in self.documents[0].find()}
        assert {one: job["state"] for one, job in found.items()} == {
            one: job.state for one, job in self.jobs.items() if job.state != "gone"
        }
        for one, job in self.jobs.items():
            if job.state == "waiting":
                witness = self.jobs[found[one]["waits_for"]["parents"]].state
                assert witness in (*LIVE, "dead")
                assert found[one]["waits_for"].get("failed", False) is (witness == "dead")
                for parent in job.after:
                    assert parent not in found or "needed" in found[parent]
                    assert "removed_at" not in found.get(parent, {})


def test_dependencies_do_what_the_model_does(client: MongoClient[Any]) -> None:
    class Machine(DependencyMachine):
        servers = [client]  # noqa: RUF012

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=8,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
