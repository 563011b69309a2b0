"""Whatever happens between any two commands: no dependent is left behind, none comes too early.

Each test does something just before one of the commands that a call sends, and that for each of
them; or has the call end there, as if its process was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)
from pymongo.synchronous.collection import Collection

from streamqueue import Discard, Job, JobNotFound, LeaseLost, MongoQueue, NewJob
from tests.contract.looks import document, let_lease_run_out

MOST = 9
"""Commands that a call sends, at the most: beyond its last one nothing happens in between."""


class Between(CommandListener):
    """Does something before the command of that number, of those on the jobs."""

    def __init__(self) -> None:
        self.at = 0
        self.act: Callable[[], object] | None = None
        self.sent: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        if self.act is None or event.command_name in ("hello", "listIndexes", "createIndexes"):
            return
        self.sent.append(event.command_name)
        if len(self.sent) - 1 == self.at:
            act, self.act = self.act, None
            act()

    def succeeded(self, event: CommandSucceededEvent) -> None: ...

    def failed(self, event: CommandFailedEvent) -> None: ...


class Race:
    """Two processes: what happens in the one is put between two commands of the other."""

    def __init__(self, jobs: Collection[Any], watched: Collection[Any], between: Between) -> None:
        self.jobs = jobs
        self.other = MongoQueue(jobs, "other")
        self.watched = MongoQueue(watched, "watched")
        self.between = between

    def before(self, number: int, act: Callable[[], object]) -> None:
        """Do that before the command of this number, from now on."""
        self.between.at, self.between.act, self.between.sent = number, act, []


@pytest.fixture(scope="module")
def between(uri: str) -> Iterator[tuple[Between, MongoClient[Any]]]:
    listener = Between()
    with MongoClient(uri, tz_aware=True, event_listeners=[listener]) as client:
        yield listener, client


@pytest.fixture
def race(jobs: Collection[Any], between: tuple[Between, MongoClient[Any]]) -> Race:
    listener, client = between
    race = Race(jobs, client[jobs.database.name][jobs.name], listener)
    # What a first call asks for is known, and the indexes are there.
    for queue in (race.other, race.watched):
        queue.put({}, after=[queue.put({}, keep=60)])
    race.watched.clear()
    return race


def take(queue: MongoQueue) -> Job:
    job = queue.next()
    assert job is not None
    return job


def state(jobs: Collection[Any], job_id: Any) -> str | None:
    found = jobs.find_one({"_id": job_id})
    return None if found is None else str(found["state"])


def complete(job: Job) -> None:
    job.complete("result")


def discard(job: Job) -> None:
    with pytest.raises(Discard), job:
        raise Discard("never")


EVERY = pytest.mark.parametrize("number", range(MOST))


@pytest.mark.few(5)
@EVERY
@pytest.mark.parametrize("keep", [None, 60])
def test_a_parent_that_is_done_while_its_dependent_is_put(
    race: Race, number: int, keep: float | None
) -> None:
    parent, dependent = race.other.put({}, keep=keep), ObjectId()
    job = take(race.other)
    race.before(number, lambda: complete(job))

    try:
        race.watched.put({}, after=[parent], job_id=dependent)
    except JobNotFound:
        assert (keep, state(race.jobs, dependent)) == (None, None)
        return

    if race.between.act is not None:
        complete(job)
    assert state(race.jobs, dependent) == "ready"
    assert list(take(race.other).parents) == ["result"]


@pytest.mark.few(7)
@EVERY
@pytest.mark.parametrize("rule", ["hold", "cancel", "run"])
def test_a_parent_that_dies_while_its_dependent_is_put(race: Race, number: int, rule: Any) -> None:
    parent = race.other.put({})
    job = take(race.other)
    race.before(number, lambda: discard(job))

    dependent = race.watched.put({}, after=[parent], if_parent_fails=rule, keep=60)

    if race.between.act is not None:
        discard(job)
    wanted = {"hold": "waiting", "cancel": "cancelled", "run": "ready"}[rule]
    assert state(race.jobs, dependent) == wanted
    if rule == "hold":
        assert document(race.jobs, dependent)["waits_for"] == {"parents": parent, "failed": True}


@pytest.mark.few(3)
@EVERY
def test_both_parents_end_while_a_dependent_is_put(race: Race, number: int) -> None:
    parents = race.other.put_many([{}, {}], keep=60)
    both = [take(race.other), take(race.other)]

    def complete_both() -> None:
        for job in both:
            complete(job)

    race.before(number, complete_both)

    dependent = race.watched.put({}, after=parents)

    if race.between.act is not None:
        complete_both()
    assert state(race.jobs, dependent) == "ready"


@pytest.mark.few(9)
@EVERY
@pytest.mark.parametrize("keep", [None, 60])
@pytest.mark.parametrize("end", [complete, discard], ids=lambda end: str(end.__name__))
def test_a_dependent_that_is_put_while_its_parent_ends(
    race: Race, number: int, keep: float | None, end: Callable[[Job], None]
) -> None:
    parent, dependent = race.other.put({}, keep=keep), ObjectId()
    job = take(race.watched)

    def put() -> None:
        try:
            race.other.put({}, after=[parent], job_id=dependent, if_parent_fails="run")
        except JobNotFound:
            assert (keep, end) == (None, complete)

    race.before(number, put)
    end(job)

    if race.between.act is not None:
        put()
    assert state(race.jobs, dependent) in ("ready", None)


@EVERY
def test_the_other_parent_ends_while_one_ends(race: Race, number: int) -> None:
    parents = [ObjectId(), ObjectId()]
    dependent = ObjectId()
    race.other.put_many(
        [*(NewJob({}, job_id=one) for one in parents), NewJob({}, job_id=dependent, after=parents)]
    )
    first, second = take(race.other), take(race.watched)
    race.before(number, lambda: complete(first))

    complete(second)

    if race.between.act is not None:
        complete(first)
    assert state(race.jobs, dependent) == "ready"


@EVERY
def test_a_parent_is_requeued_while_the_other_one_ends(race: Race, number: int) -> None:
    parents = [ObjectId(), ObjectId()]
    dependent = ObjectId()
    race.other.put_many(
        [*(NewJob({}, job_id=one) for one in parents), NewJob({}, job_id=dependent, after=parents)]
    )
    discard(take(race.other))
    last = take(race.watched)
    race.before(number, lambda: race.other.requeue(parents[0]))

    complete(last)

    if race.between.act is not None:
        race.other.requeue(parents[0])
    complete(take(race.other))
    assert state(race.jobs, dependent) == "ready"


@EVERY
def test_another_dependent_is_put_while_the_only_one_ends(race: Race, number: int) -> None:
    parent = race.other.put({}, keep=60)
    complete(take(race.other))
    race.other.put({}, after=[parent])
    job = take(race.watched)
    race.before(number, lambda: race.other.put({}, after=[parent]))

    complete(job)

    if race.between.act is not None:
        race.other.put({}, after=[parent])
    stored = document(race.jobs, parent)
    assert ("needed" in stored, "removed_at" in stored) == (True, False)


@EVERY
def test_the_only_dependent_ends_while_another_one_is_put(race: Race, number: int) -> None:
    parent = race.other.put({}, keep=60)
    complete(take(race.other))
    race.other.put({}, after=[parent])
    job = take(race.other)
    race.before(number, lambda: complete(job))

    dependent = race.watched.put({}, after=[parent])

    stored = document(race.jobs, parent)
    assert ("needed" in stored, "removed_at" in stored) == (True, False)
    assert state(race.jobs, dependent) == "ready"


class Killed(BaseException):
    """The process ends here: nothing that it was about to send is sent."""


def kill() -> None:
    raise Killed


def left_by(race: Race, call: Callable[[], object]) -> MongoQueue:
    """Make a call that may be killed; return a queue of a process that knows of nothing."""
    with suppress(Killed):
        call()
    race.between.act = None
    return MongoQueue(race.jobs, "another")


@EVERY
def test_a_dependent_runs_though_whoever_put_it_was_killed(race: Race, number: int) -> None:
    parent, dependent = race.other.put({}, keep=60), ObjectId()
    job = take(race.other)

    def end_and_kill() -> None:
        complete(job)
        kill()

    race.before(number, end_and_kill)
    another = left_by(race, lambda: race.watched.put({}, after=[parent], job_id=dependent))
    with suppress(LeaseLost):
        complete(job)

    there = state(race.jobs, dependent) is not None
    found = another.next()
    assert (found and found.id) == (dependent if there else None)


@pytest.mark.few(5)
@EVERY
@pytest.mark.parametrize("end", [complete, discard], ids=lambda end: str(end.__name__))
def test_a_dependent_runs_though_whoever_ended_its_parent_was_killed(
    race: Race, number: int, end: Callable[[Job], None]
) -> None:
    parent, dependent = ObjectId(), ObjectId()
    after = NewJob({}, job_id=dependent, after=[parent], if_parent_fails="run")
    race.other.put_many([NewJob({}, job_id=parent, max_attempts=1), after])
    job = take(race.watched)
    race.before(number, kill)

    another = left_by(race, lambda: end(job))

    if state(race.jobs, parent) == "running":
        let_lease_run_out(race.jobs, parent)
    found = another.next()
    assert found is not None
    assert found.id == dependent


@pytest.mark.few(6)
@pytest.mark.parametrize("number", range(24))
def test_what_comes_after_a_cancelled_dependent_is_told_though_the_teller_was_killed(
    race: Race, number: int
) -> None:
    ids = [ObjectId() for _ in range(3)]
    race.other.put_many(
        [
            NewJob({}, job_id=ids[0]),
            NewJob({}, job_id=ids[1], after=[ids[0]]),
            NewJob({}, job_id=ids[2], after=[ids[1]], keep=60),
        ]
    )
    race.before(number, kill)

    another = left_by(race, lambda: race.watched.cancel(ids[0]))

    if state(race.jobs, ids[0]) == "ready":
        another.cancel(ids[0])
    another.next()
    assert state(race.jobs, ids[2]) == "cancelled"


@EVERY
def test_a_parent_is_let_go_though_whoever_ended_its_dependent_was_killed(
    race: Race, number: int
) -> None:
    parent = race.other.put({}, keep=60)
    complete(take(race.other))
    race.other.put({}, after=[parent])
    job = take(race.watched)
    race.before(number, kill)

    another = left_by(race, lambda: complete(job))

    if state(race.jobs, job.id) == "running":
        let_lease_run_out(race.jobs, job.id)
        complete(take(another))
    earlier = {"$set": {"needed": {"$subtract": ["$needed", 100_000]}}}
    race.jobs.update_one({"_id": parent, "needed": {"$exists": True}}, [earlier])
    MongoQueue(race.jobs).next()
    stored = document(race.jobs, parent)
    assert ("needed" in stored, "removed_at" in stored) == (False, True)
