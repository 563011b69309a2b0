"""Many processes that want the starts of one rate, on a real server.

Laws: a limit is a limit; an unknown outcome is not a failure.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue.clock import monotonic
from streamqueue.protocol.limits import Rate
from streamqueue.protocol.rates import SECOND, Reservation, bucket_id, moment_of
from streamqueue.store.blocking import Store
from streamqueue.store.collection import rates_beside
from streamqueue.store.starts import Starts
from tests.buckets import most_in_a_window
from tests.waiting import wait_until

RATE = Rate(50)

pytestmark = pytest.mark.slow


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """As everywhere, with no bucket left behind."""
    buckets = jobs.database[rates_beside(jobs.name)]
    buckets.drop()
    yield jobs
    buckets.drop()


@pytest.mark.parametrize("count", [1, 20])
def test_a_bucket_that_somebody_else_makes_at_the_same_moment_fails_nobody(
    uri: str, jobs: Collection[Any], count: int
) -> None:
    with MongoClient[Any](uri, tz_aware=True) as client:
        stores = [Store(client[jobs.database.name][jobs.name]) for _ in range(8)]
        for round_ in range(10):
            wanted = {bucket_id(f"r{round_}", f"g:{number}"): (RATE, 1) for number in range(count)}
            together = threading.Barrier(len(stores))

            def at_once(
                store: Store, together: Any = together, wanted: Any = wanted
            ) -> dict[str, Reservation]:
                together.wait()
                return store.reserve(wanted)

            with ThreadPoolExecutor(len(stores)) as threads:
                found = list(threads.map(at_once, stores))
            planned = Counter(
                (bucket, start.planned)
                for one in found
                for bucket, reservation in one.items()
                for start in reservation.starts
            )
            assert set(planned.values()) == {1}


@pytest.mark.parametrize(
    ("rate", "groups"),
    [(RATE, 1), (Rate(50, 0.5, 20), 1), (Rate(1000, 0.5), 1), (Rate(20), 5)],
    ids=str,
)
def test_no_window_has_more_starts_of_many_processes_than_the_rate_and_its_burst(
    uri: str, jobs: Collection[Any], rate: Rate, groups: int
) -> None:
    scopes = [f"g:{number}" for number in range(groups)]
    ends_at = monotonic() + 1.3
    starts: dict[str, list[int]] = {scope: [] for scope in scopes}
    with MongoClient[Any](uri, tz_aware=True) as client, ThreadPoolExecutor(8) as threads:
        for result in threads.map(
            lambda process: start_jobs(client, jobs, rate, scopes, process, ends_at), range(8)
        ):
            for scope, some in result.items():
                starts[scope] += some
    for some in starts.values():
        assert most_in_a_window(sorted(some), int(rate.seconds * SECOND)) <= rate.count + rate.burst
        assert len(some) > 5  # (how many there are at the most, when eight share a core, varies)


def start_jobs(
    client: MongoClient[Any],
    jobs: Collection[Any],
    rate: Rate,
    scopes: list[str],
    process: int,
    ends_at: float,
) -> dict[str, list[int]]:
    """Start jobs of these scopes for a while as a process would; return when, by the server."""
    store = Store(client[jobs.database.name][jobs.name])
    held = Starts()
    claims = client[jobs.database.name].claims
    claims.update_one({"_id": process}, {"$set": {"at": None}}, upsert=True)
    starts: dict[str, list[int]] = {scope: [] for scope in scopes}
    while monotonic() < ends_at:
        wanted = {
            bucket_id("default", scope): (rate, count)
            for scope in scopes
            if (count := held.wants(scope, rate, 100, monotonic()))
        }
        for bucket, found in (store.reserve(wanted) if wanted else {}).items():
            scope = bucket.removeprefix(bucket_id("default", ""))
            held.add(scope, rate, found, monotonic())
        for scope in random.sample(scopes, len(scopes)):
            taken = []
            while start := held.take(scope, rate, monotonic()):
                taken.append(start)
            if taken:
                until = min(start.until for start in taken)
                document = claims.find_one_and_update(
                    {"_id": process, "$expr": {"$lt": ["$$NOW", until]}},
                    [{"$set": {"at": "$$NOW"}}],
                    return_document=True,
                )
                if document is not None:
                    at = moment_of(document["at"])
                    assert at >= max(start.planned for start in taken), "no start is early"
                    starts[scope] += [at] * len(taken)
        again = min(held.next_at(scope, rate, 100, monotonic()) for scope in scopes)
        wait_until(lambda again=again: monotonic() >= again, "it is time", 5)
    return starts
