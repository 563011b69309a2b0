"""Claims that were given up: how long each is remembered, and when it is tried again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pymongo.errors import AutoReconnect, ExecutionTimeout

from streamqueue.backoff import Backoff
from streamqueue.store import given_up as module
from streamqueue.store.given_up import Claim, GivenUp, GivenUpClaims, merged, together

NOW = datetime(2026, 11, 29, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    monkeypatch.setattr(module, "AGAIN", Backoff(initial=1, maximum=1, jitter=0))
    return clock


def claim(clock: Clock, timeout: float = 30) -> Claim:
    jobs = [{"_id": 1, "queue": "a"}, {"_id": 2, "queue": "b"}, {"_id": 3, "queue": "a"}]
    claim = Claim.of(jobs, timeout, NOW, lambda _: 3)
    claim.sent = clock()
    return claim


def give_back(claims: GivenUpClaims, clock: Clock, *, answered: bool) -> int:
    """Try what is due; return how many that were."""
    due = claims.due()
    if due:
        claims.tried(due, clock(), due if answered else [])
    return len(due)


def test_a_claim_names_the_queues_of_its_jobs_and_has_a_token_of_its_own(clock: Clock) -> None:
    one, two = claim(clock), claim(clock)

    assert (one.ids, one.queues) == ([1, 2, 3], ["a", "b"])
    assert one.token != two.token


def test_a_claim_without_an_answer_is_undone_until_it_can_arrive_no_more(clock: Clock) -> None:
    claims = GivenUpClaims()
    claims.add(claim(clock).given_up(AutoReconnect()))

    tries = 0
    while claims:
        tries += give_back(claims, clock, answered=True)
        clock.now += 1

    assert tries > 10  # over the 15 seconds in which it may arrive


def test_a_claim_whose_answer_was_an_error_is_undone_once(clock: Clock) -> None:
    claims = GivenUpClaims()
    claims.add(claim(clock).given_up(ExecutionTimeout("", 50)))

    assert give_back(claims, clock, answered=True) == 1
    assert not claims


def test_what_was_not_acknowledged_is_tried_again_after_a_pause(clock: Clock) -> None:
    claims = GivenUpClaims()
    claims.add(GivenUp([1], {b"t"}, forget_at=clock() + 60))

    assert give_back(claims, clock, answered=False) == 1
    assert give_back(claims, clock, answered=False) == 0
    assert claims.wait() == 1
    clock.now += 1
    assert give_back(claims, clock, answered=True) == 1
    assert not claims


def test_what_comes_new_is_tried_at_once(clock: Clock) -> None:
    claims = GivenUpClaims()
    claims.add(GivenUp([1], {b"one"}))
    give_back(claims, clock, answered=False)

    claims.add(GivenUp([2], {b"two"}))

    assert merged(claims.due()) == ([1, 2], {b"one", b"two"})


def test_a_claim_is_forgotten_when_its_lease_has_ended_whatever_happened(clock: Clock) -> None:
    claims = GivenUpClaims()
    claims.add(claim(clock, timeout=30).given_up(AutoReconnect()))

    clock.now += 60
    give_back(claims, clock, answered=False)

    assert not claims


def test_no_more_claims_are_remembered_than_anybody_could_wait_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    claims = GivenUpClaims()

    for n in range(5):
        claims.add(GivenUp([n], {b"t"}))

    assert merged(claims.due())[0] == [2, 3, 4]


def test_with_nothing_given_up_there_is_no_time_to_wait_for() -> None:
    assert GivenUpClaims().wait() == float("inf")


def test_some_jobs_of_a_claim_are_given_back_by_themselves(clock: Clock) -> None:
    older, another = GivenUp([1, 2], {b"older"}), GivenUp([4], {b"another"})
    some = GivenUp.of([(3, b"newer")])  # of a claim that has 1 as well, which runs

    assert together([older, some, another]) == [[older, another], [some]]


def test_what_is_not_acknowledged_keeps_nothing_else_remembered(clock: Clock) -> None:
    claims = GivenUpClaims()
    refused, other = GivenUp.of([(1, b"one")]), GivenUp.of([(2, b"two")])
    claims.add(refused)
    claims.add(other)

    claims.tried([refused, other], clock(), [other])
    clock.now += 1

    assert claims.due() == [refused]
