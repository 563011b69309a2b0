"""Any date that BSON can hold is a date: arithmetic on it stops nobody.

Law: server time.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue.protocol import operations
from tests.contract.dates import EXTREMES, GOOD, LONG_AGO, a_job, good_jobs, odd_jobs
from tests.contract.waiters import SOON, WAIT

every_extreme = pytest.mark.parametrize("name", EXTREMES)


@pytest.mark.few(3)
@every_extreme
async def test_good_jobs_beside_it_are_promoted_reaped_and_given_to_who_waits(
    queue: Any, jobs: Collection[Any], name: str
) -> None:
    await queue.size()
    jobs.insert_many(odd_jobs("default", EXTREMES[name]))
    jobs.insert_many(good_jobs("default"))

    left = set(GOOD)
    with anyio.fail_after(2 * SOON):
        while left:
            job = await queue.next(wait=WAIT)
            left.discard(job.data.get("good"))
            await job.complete()


@every_extreme
async def test_it_is_before_now_or_after_it_like_any_other(
    queue: Any, jobs: Collection[Any], name: str
) -> None:
    date = EXTREMES[name]
    scheduled, held = a_job("default", "scheduled", run_at=date), a_job("default", "running")
    jobs.insert_many([scheduled, held | {"locked_until": date}])

    claimed = await queue.claim(10)
    await queue.repair()

    assert len(claimed) == (2 if name in LONG_AGO else 0)


@pytest.mark.parametrize(
    ("state", "field", "look"),
    [
        ("scheduled", "run_at", operations.next_due),
        ("running", "locked_until", operations.next_expiry),
    ],
    ids=["scheduled", "running"],
)
@every_extreme
def test_the_time_until_it_has_the_right_sign_and_is_within_reach(
    jobs: Collection[Any], name: str, state: str, field: str, look: Any
) -> None:
    jobs.insert_one({"queue": "default", "state": state, field: EXTREMES[name]})
    command = look(["default"])

    [found] = jobs.find(command.filter, command.projection)

    assert (found["due_in"] < 0) == (name in LONG_AGO)
    assert abs(found["due_in"]) < 10_000 * 366 * 86_400_000
