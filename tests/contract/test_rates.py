"""Starts reserved on a real server: what it makes of a bucket, and of many who want its starts.

Laws: a limit is a limit; an unknown outcome is not a failure; bounded; setting up never stands in
front of the work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from anyio.to_thread import run_sync
from bson import Int64
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure, PyMongoError, WTimeoutError
from pymongo.monitoring import CommandListener
from pymongo.synchronous.collection import Collection

from streamqueue.protocol.limits import Rate
from streamqueue.protocol.rates import (
    AHEAD,
    MILLISECOND,
    SECOND,
    Reservation,
    bucket_id,
    moment_of,
    pace_of,
)
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.store.blocking import Store
from streamqueue.store.collection import rates_beside
from tests.buckets import Bucket
from tests.contract.looks import server_time
from tests.waiting import wait_until_async
from tests.worker.faults import (
    APPLIED_THEN_SHUTTING_DOWN,
    CONNECTION_CUT,
    REPLICATION_TIMED_OUT,
    failing,
)

APP = "rates"
BUCKET = bucket_id("default", "q:")
RATE = Rate(50)

Reserve = Callable[[Mapping[str, tuple[Rate, int]]], Coroutine[Any, Any, dict[str, Reservation]]]


class Commands(CommandListener):
    """Counts the commands of a client.

    Attributes:
        then: what to do when the first of a name was answered, before its client hears of it.
    """

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.then: dict[str, Callable[[], object]] = {}

    def started(self, event: Any) -> None:
        self.count[event.command_name] += 1

    def succeeded(self, event: Any) -> None:
        self.then.pop(event.command_name, lambda: None)()

    def failed(self, event: Any) -> None: ...


@pytest.fixture
def buckets(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """The collection that has the buckets, left empty."""
    buckets = jobs.database[rates_beside(jobs.name)]
    buckets.drop()
    yield buckets
    buckets.drop()


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture(params=["blocking", "async"])
async def reserve(
    request: pytest.FixtureRequest,
    uri: str,
    jobs: Collection[Any],
    buckets: Collection[Any],
    commands: Commands,
) -> AsyncIterator[Reserve]:
    """What reserves starts, by one of the two stores."""
    where: dict[str, Any] = {"tz_aware": True, "appname": APP, "event_listeners": [commands]}
    if request.param == "async":
        async with AsyncMongoClient(uri, **where) as client:
            yield AsyncStore(client[jobs.database.name][jobs.name]).reserve
    else:
        with MongoClient[Any](uri, **where) as client:
            store = Store(client[jobs.database.name][jobs.name])
            yield lambda wanted: run_sync(partial(store.reserve, wanted))


async def reserve_one(reserve: Reserve, rate: Rate = RATE, count: int = 1) -> Reservation:
    return (await reserve({BUCKET: (rate, count)}))[BUCKET]


# what the server makes of it


@pytest.mark.few(9)
@pytest.mark.parametrize(
    "rate",
    [RATE, Rate(50, 1, 10), Rate(3000), Rate(1, 3600), Rate(100_000, 1, 40), Rate(7, 60, 7)],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 5, 1000])
async def test_the_server_reserves_what_the_arithmetic_says(
    reserve: Reserve, buckets: Collection[Any], rate: Rate, count: int
) -> None:
    model, pace = Bucket(), pace_of(rate)
    for _ in range(3):
        found = await reserve_one(reserve, rate, count)
        [stored] = buckets.find()
        if found.starts:  # (when none are, nobody says at which moment)
            at = stored["taken"][-1]["at"]
            right = model.reserve(pace, count, at)
            assert [one[2:] for one in found.starts] == [one[2:] for one in right.starts]
            assert found.following == right.following
        assert stored["last"] == model.last


@pytest.mark.parametrize("off", [3600, -3600])
async def test_a_wrong_clock_of_a_process_changes_nothing(
    reserve: Reserve, buckets: Collection[Any], monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + off)
    now = moment_of(server_time(buckets))

    found = await reserve_one(reserve)

    assert now <= found.starts[0].planned <= now + 5 * SECOND


@pytest.mark.parametrize("ago", [0.1, 3600, 10**9])
async def test_after_a_pause_a_start_is_planned_at_once(
    reserve: Reserve, buckets: Collection[Any], ago: float
) -> None:
    now = moment_of(server_time(buckets))
    buckets.insert_one({"_id": BUCKET, "last": Int64(now - int(ago * SECOND))})

    found = await reserve_one(reserve)

    assert now <= found.starts[0].planned <= now + 5 * SECOND


async def test_a_last_start_that_is_ahead_of_the_clock_is_believed_as_of_a_late_command(
    reserve: Reserve, buckets: Collection[Any]
) -> None:
    last = Int64(moment_of(server_time(buckets)) + 20 * SECOND)
    buckets.insert_one({"_id": BUCKET, "last": last})

    assert (await reserve_one(reserve))[:2] == ((), last + pace_of(RATE).interval)


async def test_a_last_start_that_is_far_ahead_was_of_another_clock_and_holds_up_nobody(
    reserve: Reserve, buckets: Collection[Any]
) -> None:
    now = moment_of(server_time(buckets))
    buckets.insert_one({"_id": BUCKET, "last": Int64(now + 3600 * SECOND)})

    found = await reserve_one(reserve)

    assert not found.starts
    assert found.following <= now + AHEAD + pace_of(RATE).interval + 5 * SECOND


@pytest.mark.parametrize(
    "damage",
    [
        {"last": "tomorrow"},
        {"last": 1.5, "taken": "all"},
        {"last": None, "taken": [1, {"by": None}, [], {}]},
        {"last": Int64(-(2**63)), "full_at": "never"},
        {"last": Int64(2**63 - 1), "taken": {"by": 1}},
        {"last": datetime(2020, 1, 1), "full_at": []},
    ],
    ids=str,
)
async def test_a_damaged_bucket_is_as_good_as_none(
    reserve: Reserve, buckets: Collection[Any], damage: dict[str, Any]
) -> None:
    buckets.insert_one({"_id": BUCKET, **damage})

    await reserve_one(reserve)

    async def started() -> Any:
        return (await reserve_one(reserve)).starts

    await wait_until_async(started, "a start is planned", 2)


async def test_what_a_later_version_stores_in_a_bucket_stays(
    reserve: Reserve, buckets: Collection[Any]
) -> None:
    buckets.insert_one({"_id": BUCKET, "of_a_later_version": {"$a": 1}})

    await reserve_one(reserve)

    assert buckets.find_one()["of_a_later_version"] == {"$a": 1}  # type: ignore[index]


async def test_the_name_of_a_group_is_only_a_name(reserve: Reserve) -> None:
    wanted = {bucket_id("default", f"g:{name}"): (RATE, 1) for name in ("$$ROOT", "$last", "a.b")}

    found = await reserve(wanted)

    assert set(found) == set(wanted)


async def test_when_none_is_near_nothing_is_written(
    reserve: Reserve, buckets: Collection[Any]
) -> None:
    await reserve_one(reserve, Rate(1, 3600))
    before = list(buckets.find())

    assert (await reserve_one(reserve, Rate(1, 3600))).starts == ()
    assert list(buckets.find()) == before


async def test_a_bucket_is_kept_until_it_would_give_what_none_gives(
    reserve: Reserve, buckets: Collection[Any]
) -> None:
    rate = Rate(10, burst=3)
    for _ in range(20):  # (at some moments a double is too small)
        buckets.delete_many({})
        full = (await reserve_one(reserve, rate, 3)).starts[-1].planned + pace_of(rate).to_fill

        [stored] = buckets.find()

        assert full < moment_of(stored["full_at"]) <= full + 2 * MILLISECOND


async def test_what_another_reserves_before_the_answer_is_read_is_its_own(
    reserve: Reserve, jobs: Collection[Any], commands: Commands
) -> None:
    wanted = {bucket_id("default", f"g:{number}"): (RATE, 2) for number in range(3)}
    others: list[dict[str, Reservation]] = []
    commands.then["update"] = lambda: others.append(Store(jobs).reserve(wanted))

    mine = await reserve(wanted)

    [theirs] = others
    for bucket in wanted:
        assert len(mine[bucket].starts) == 2
        assert theirs[bucket].starts[0].planned > mine[bucket].starts[-1].planned


# what it costs


async def test_one_bucket_takes_one_round_trip(reserve: Reserve, commands: Commands) -> None:
    await reserve_one(reserve)
    commands.count.clear()

    await reserve_one(reserve)

    assert commands.count == {"findAndModify": 1}


async def test_fifty_buckets_take_two_round_trips(reserve: Reserve, commands: Commands) -> None:
    wanted = {bucket_id("default", f"g:{number}"): (RATE, 2) for number in range(50)}
    await reserve_one(reserve)
    commands.count.clear()

    found = await reserve(wanted)

    assert commands.count == {"update": 1, "find": 1}
    assert {len(one.starts) for one in found.values()} == {2}


async def test_nothing_is_asked_of_the_server_for_no_bucket(
    reserve: Reserve, commands: Commands
) -> None:
    assert await reserve({}) == {}

    assert commands.count == {}


# doubts


@pytest.mark.parametrize("count", [1, 5])
async def test_a_server_whose_connection_is_cut_is_asked_once_more(
    reserve: Reserve, client: MongoClient[Any], count: int
) -> None:
    wanted = {bucket_id("default", f"g:{number}"): (RATE, 1) for number in range(count)}

    with failing(client, "findAndModify", "update", app=APP, times=1, **CONNECTION_CUT):
        found = await reserve(wanted)

    assert [len(one.starts) for one in found.values()] == [1] * count


@pytest.mark.parametrize("fault", [REPLICATION_TIMED_OUT, APPLIED_THEN_SHUTTING_DOWN], ids=str)
@pytest.mark.parametrize("count", [1, 5])
async def test_starts_whose_reservation_is_in_doubt_are_nobodys(
    reserve: Reserve,
    client: MongoClient[Any],
    buckets: Collection[Any],
    fault: dict[str, Any],
    count: int,
) -> None:
    wanted = {bucket_id("default", f"g:{number}"): (RATE, 1) for number in range(count)}
    begun = moment_of(server_time(buckets))

    with (
        failing(client, "findAndModify", "update", app=APP, **fault),
        pytest.raises(PyMongoError),
    ):
        await reserve(wanted)

    found = await reserve(wanted)
    assert all(one.starts[0].planned >= begun + pace_of(RATE).interval for one in found.values())


async def test_a_majority_that_does_not_answer_is_said(
    reserve: Reserve, client: MongoClient[Any]
) -> None:
    with (
        failing(client, "findAndModify", app=APP, **REPLICATION_TIMED_OUT),
        pytest.raises(WTimeoutError),
    ):
        await reserve_one(reserve)


# what is left of it


async def test_the_server_is_told_to_remove_full_buckets(
    reserve: Reserve, buckets: Collection[Any]
) -> None:
    await reserve_one(reserve)

    index = buckets.index_information()["streamqueue_buckets"]

    assert index["key"] == [("full_at", 1)]
    assert index["expireAfterSeconds"] == 0
    assert "partialFilterExpression" not in index


async def test_a_user_who_may_make_no_index_reserves_all_the_same_and_is_told_once(
    reserve: Reserve, client: MongoClient[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with failing(client, "createIndexes", app=APP, errorCode=13) as fault:
        assert (await reserve_one(reserve)).starts
        await reserve_one(reserve)

        assert fault.hits() == 1
    assert events(caplog) == ["buckets_stay"]


async def test_a_user_who_may_not_write_to_the_buckets_is_told_once(
    reserve: Reserve, client: MongoClient[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with failing(client, "findAndModify", app=APP, errorCode=13):
        for _ in range(2):
            with pytest.raises(OperationFailure):
                await reserve_one(reserve)

    assert events(caplog) == ["rates_refused"]


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(line)["event"] for line in caplog.records if hasattr(line, "event")]
