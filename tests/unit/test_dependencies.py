"""What becomes of a job that comes after others, and in which order jobs are put."""

from __future__ import annotations

from typing import Any

import pytest
from bson import Decimal128, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from streamqueue import NewJob
from streamqueue.errors import ConfigurationError
from streamqueue.protocol.dependencies import (
    MAX_PARENTS,
    IfParentFails,
    Parents,
    Standing,
    check_parents,
    decide,
    parents_first,
    read_look,
)
from streamqueue.protocol.puts import Puts, check_puts


@pytest.mark.parametrize(
    ("parents", "run", "cancel", "hold"),
    [
        (Standing(done=2), "run", "run", "run"),
        (Standing(done=1, live=1), "wait", "wait", "wait"),
        (Standing(done=1, dead=1), "run", "cancel", "wait"),
        (Standing(live=1, dead=1), "wait", "cancel", "wait"),
        (Standing(done=1, cancelled=1), "run", "cancel", "cancel"),
        (Standing(live=1, missing=1), "wait", "cancel", "cancel"),
    ],
    ids=str,
)
def test_what_becomes_of_a_job_is_said_by_its_rule_and_by_how_its_parents_stand(
    parents: Standing, run: str, cancel: str, hold: str
) -> None:
    assert decide("run", parents) == run
    assert decide("cancel", parents) == cancel
    assert decide("hold", parents) == hold


COUNTS = st.integers(0, 2)
STANDINGS = st.builds(Standing, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
RULES: st.SearchStrategy[IfParentFails] = st.sampled_from(["hold", "cancel", "run"])


@given(RULES, STANDINGS)
def test_nothing_runs_while_a_parent_lives(rule: IfParentFails, parents: Standing) -> None:
    if decide(rule, parents) == "run":
        assert not parents.live


@given(STANDINGS)
def test_what_runs_whatever_happens_waits_for_those_that_live_alone(parents: Standing) -> None:
    assert decide("run", parents) == ("wait" if parents.live else "run")


@given(STANDINGS)
def test_what_is_cancelled_with_a_parent_runs_after_done_ones_alone(parents: Standing) -> None:
    failed = parents.dead + parents.cancelled + parents.missing

    assert decide("cancel", parents) == ("cancel" if failed else "wait" if parents.live else "run")


@given(STANDINGS)
def test_what_holds_waits_for_a_dead_parent_and_for_none_that_will_never_be_done(
    parents: Standing,
) -> None:
    never = parents.cancelled + parents.missing

    assert decide("hold", parents) == (
        "cancel" if never else "wait" if parents.live + parents.dead else "run"
    )


@given(RULES, STANDINGS)
def test_who_waits_has_somebody_to_wait_for(rule: IfParentFails, parents: Standing) -> None:
    if decide(rule, parents) == "wait":
        assert parents.live or parents.dead


@given(RULES, STANDINGS)
def test_a_parent_that_ends_well_makes_nothing_wait_for_longer(
    rule: IfParentFails, parents: Standing
) -> None:
    if parents.live and decide(rule, parents) != "wait":
        fewer = parents._replace(live=parents.live - 1, done=parents.done + 1)
        assert decide(rule, fewer) == decide(rule, parents)


def a_look(**states: int) -> dict[str, Any]:
    """A row of a look; each parent has its own id, and those of a state are next to one another."""
    groups, first = [], 1
    for state, count in states.items():
        if state != "missing" and count:
            last = ObjectId(first.to_bytes(12, "big"))
            groups.append({"_id": state, "count": count, "last": last, "unmarked": 0})
            first += count
    row = {"_id": 1, "count": sum(states.values()), "parents": groups}
    return {**row, "waits_for": {"parents": None}}


@given(st.dictionaries(st.sampled_from(["ready", "running", "scheduled", "waiting"]), COUNTS))
def test_every_state_of_one_that_lives_is_waited_for(states: dict[str, int]) -> None:
    looked = read_look(a_look(**states, done=1))

    lives = any(states.values())
    assert looked.decision == ("wait" if lives else "run")
    assert (looked.witness is not None, looked.witness_failed) == (lives, not lives)


def test_a_parent_that_is_not_there_is_missing() -> None:
    assert read_look(a_look(ready=1, missing=1)).decision == "cancel"


def test_a_dead_parent_is_waited_for_when_none_lives() -> None:
    looked = read_look(a_look(dead=2, done=1))

    assert (looked.decision, looked.witness_failed) == ("wait", True)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=40))
def test_every_job_is_put_behind_its_parents(edges: list[tuple[int, int]]) -> None:
    parents: dict[int, list[int]] = {n: [] for n in range(21)}
    for one, other in edges:
        if one != other:
            parents[max(one, other)].append(min(one, other))

    depths = parents_first(parents)

    assert all(depths[parent] < depths[job] for job, its in parents.items() for parent in its)


def test_a_job_with_several_parents_is_put_behind_the_deepest_of_them() -> None:
    assert parents_first({1: [], 2: [1], 3: [1, 2], 4: []}) == {1: 0, 4: 0, 2: 1, 3: 2}


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        ({1: [], 2: [2]}, "job 2 comes after itself"),
        ({1: [], 2: [3], 3: [2]}, "jobs come after one another in a circle, job 2 among them"),
    ],
    ids=["itself", "a circle"],
)
def test_of_a_circle_one_job_is_named(parents: dict[int, list[int]], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parents_first(parents)


@given(st.permutations(list(range(6))), st.integers(1, 6))
def test_a_circle_is_found_wherever_it_is(order: list[int], length: int) -> None:
    parents: dict[int, list[int]] = {n: [] for n in order}
    for at in range(length):
        parents[order[at]].append(order[(at + 1) % length])

    with pytest.raises(ConfigurationError):
        parents_first(parents)


def checked(jobs: list[Any], **settings: Any) -> Puts:
    """Many jobs, as they are put by one call."""
    plain = dict.fromkeys(("priority", "delay", "run_at", "max_attempts"))
    puts = check_puts(jobs, queue="default", **{**plain, **settings})
    assert puts is not None
    return puts


def test_jobs_of_one_call_are_sent_behind_their_parents() -> None:
    a, b, c = (ObjectId() for _ in range(3))
    jobs = [
        NewJob({}, job_id=c, after=[b]),
        NewJob({}, job_id=b, after=[a]),
        NewJob({}),
        NewJob({}, job_id=a),
    ]

    assert [list(run.positions) for run in checked(jobs).runs()] == [[2, 3, 1, 0]]


def test_jobs_that_come_after_one_of_the_same_call_are_sent_behind_it_wherever_it_stands() -> None:
    first = ObjectId()

    puts = checked([{}, NewJob({}, job_id=first, after=[]), {}], after=[first])

    assert [list(run.positions) for run in puts.runs()] == [[1, 0, 2]]
    assert puts.all_parents() == [first]


def test_a_job_of_one_call_may_say_alone_what_becomes_of_it_when_a_parent_fails() -> None:
    parent = ObjectId()

    puts = checked(
        [{}, NewJob({}, if_parent_fails="run")], after=[parent], if_parent_fails="cancel"
    )

    assert puts.own[1].parents == Parents((parent,), "run")
    assert puts.shared.parents == Parents((parent,), "cancel")


@pytest.mark.parametrize("on_conflict", ["skip", "replace", "earlier"])
def test_a_parent_in_whose_place_another_job_may_be_kept_is_refused(on_conflict: Any) -> None:
    parent = ObjectId()
    jobs = [
        NewJob({}, job_id=parent, key="k", on_conflict=on_conflict),
        NewJob({}, after=[parent]),
    ]

    with pytest.raises(ConfigurationError, match=f"on_conflict='{on_conflict}' does not go with"):
        checked(jobs)


def test_many_jobs_may_come_after_one_of_another_program_whose_id_is_a_decimal() -> None:
    parent = Decimal128("1")

    assert checked([{}, NewJob({}, after=[parent])], after=[parent]).all_parents() == [parent]


def test_a_long_chain_is_no_deep_recursion() -> None:
    chain = {n: [n - 1] if n else [] for n in range(100_000)}

    assert parents_first(chain)[99_999] == 99_999


def test_each_parent_counts_once() -> None:
    a, b = ObjectId(), ObjectId()

    assert check_parents([a, b, str(a)], "hold").ids == (a, b)


def test_too_many_parents_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="50,000 others at the most"):
        check_parents(range(MAX_PARENTS + 1), "hold")
