"""How long a write for many may take, and how many a claim is for: learnt from how writes go."""

from __future__ import annotations

import pytest
from pymongo.errors import AutoReconnect, ExecutionTimeout, NetworkTimeout, WriteConcernError

from streamqueue.options import MAX_BATCH
from streamqueue.store.write_limit import LONGEST, ClaimSize, WriteLimit

LATE = WriteConcernError("the majority is late", 50)


def test_a_late_majority_is_given_more_time_until_nobody_waits_longer() -> None:
    limit = WriteLimit()

    tries = 0
    while limit.cut_short(LATE):
        tries += 1

    assert limit.seconds == LONGEST
    assert tries == 5


@pytest.mark.parametrize("error", [ExecutionTimeout("", 50), WriteConcernError("", 91)])
def test_another_error_says_nothing_of_the_majority(error: Exception) -> None:
    assert not WriteLimit().cut_short(error)


@pytest.mark.parametrize("error", [NetworkTimeout("late"), ExecutionTimeout("too large", 292)])
def test_a_claim_that_was_too_large_makes_the_next_one_smaller(error: Exception) -> None:
    size = ClaimSize()
    size.failed(20, error)

    assert size.most == 5


def test_a_cut_connection_says_nothing_of_the_size() -> None:
    size = ClaimSize()
    size.failed(20, AutoReconnect())

    assert size.most == MAX_BATCH


def test_a_claim_is_for_as_many_as_fitted_into_the_last_reply() -> None:
    size = ClaimSize()
    size.fitted(20, 16, 20)

    assert size.most == 16


def test_claims_grow_again() -> None:
    size = ClaimSize()
    size.failed(4, NetworkTimeout("late"))
    while size.most < MAX_BATCH:
        size.fitted(size.most, size.most, size.most)

    assert size.most == MAX_BATCH
