"""Many puts with keys: a conflict never fails the rest, and says where it was."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob, NewJob
from tests.contract.looks import document
from tests.contract.shells import Shell
from tests.contract.test_queue_unique import ALL, UPSERTS


def payloads(*numbers: int) -> list[dict[str, Any]]:
    return [{"n": number} for number in numbers]


async def stored(queue: Any) -> list[int]:
    """What can be claimed, in order."""
    return [job.data["n"] for job in await queue.claim(100)]


@pytest.mark.parametrize("on_conflict", UPSERTS)
async def test_those_whose_key_is_taken_are_named_and_the_rest_is_put(
    queue: Any, on_conflict: str
) -> None:
    taken = await queue.put({"n": 0}, key="k")

    ids = await queue.put_many(payloads(1, 2, 3), keys=[None, "k", "l"], on_conflict=on_conflict)

    assert ids.existing == [1]
    assert ids[1] == taken
    assert await stored(queue) == [2 if on_conflict == "replace" else 0, 1, 3]


async def test_a_key_that_is_taken_is_refused_once_the_rest_is_put(queue: Any) -> None:
    taken = await queue.put({"n": 0}, key="k")

    with pytest.raises(DuplicateJob) as refused:
        await queue.put_many(payloads(1, 2, 3), keys=["l", "k", None])

    assert (refused.value.key, refused.value.job_id) == ("k", taken)
    assert refused.value.existing == [1]
    assert refused.value.ids[1] == taken
    assert [job.id for job in await queue.claim(9)] == [taken, *refused.value.ids[::2]]


@pytest.mark.parametrize("on_conflict", ["replace", "earlier"])
async def test_one_that_has_begun_is_refused_once_the_rest_is_put(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    taken = await queue.put({"n": 0}, key="k")
    jobs.update_one({"_id": taken}, {"$set": {"state": "running"}})

    with pytest.raises(DuplicateJob) as refused:
        await queue.put_many(payloads(1, 2, 3), keys=["l", "k", None], on_conflict=on_conflict)

    assert (refused.value.job_id, refused.value.existing) == (taken, [1])
    assert document(jobs, taken)["payload"] == {"n": 0}
    assert await stored(queue) == [3, 1]


@pytest.mark.parametrize("on_conflict", ALL)
async def test_of_two_with_one_key_the_first_is_the_job(queue: Any, on_conflict: str) -> None:
    try:
        ids = await queue.put_many(payloads(1, 2, 3), keys=["k", "k", "l"], on_conflict=on_conflict)
        (first, second, third), existing = ids, ids.existing
    except DuplicateJob as error:
        (first, second, third), existing = error.ids, error.existing

    assert existing == [1]
    assert first == second != third
    assert await stored(queue) == [2 if on_conflict == "replace" else 1, 3]


async def test_each_may_say_for_itself_what_becomes_of_it(queue: Any) -> None:
    await queue.put_many(payloads(1, 2, 3), keys=["a", "b", "c"])

    with pytest.raises(DuplicateJob) as refused:
        await queue.put_many(
            [
                NewJob({"n": 4}, key="a", on_conflict="skip"),
                NewJob({"n": 5}, on_conflict="replace"),
                NewJob({"n": 6}),
                NewJob({"n": 7}, key="d", delay=60, key_until="start", unique_for=60),
                {"n": 8},
            ],
            keys=["z", "b", "c", None, None],
        )

    assert (refused.value.key, refused.value.existing) == ("c", [0, 1, 2])
    assert await stored(queue) == [1, 5, 3, 8]


async def test_what_is_said_of_all_bounds_the_delay_of_those_that_are_replaced(
    queue: Any, jobs: Collection[Any]
) -> None:
    batch = [NewJob({}, key="a", on_conflict="skip"), NewJob({}, key="b")]

    ids = await queue.put_many(batch, on_conflict="replace", delay=60, max_delay=5)

    first, second = (document(jobs, job_id) for job_id in ids)
    assert first["run_at"] - first["created_at"] == timedelta(seconds=60)
    assert second["run_at"] - second["created_at"] == timedelta(seconds=5)


@pytest.mark.parametrize("numbers", [(), (1, 2)])
async def test_what_is_said_of_keys_holds_for_none_where_none_of_a_batch_has_one(
    queue: Any, numbers: tuple[int, ...]
) -> None:
    rule = {"on_conflict": "replace", "unique_for": 60, "max_delay": 5}

    await queue.put_many(payloads(*numbers), keys=[None for _ in numbers], **rule)
    await queue.put_many([NewJob(payload) for payload in payloads(*numbers)], **rule)

    assert await stored(queue) == [*numbers, *numbers]


@pytest.mark.parametrize("first", ["raise", "skip"])
async def test_the_first_of_a_batch_has_the_key_whatever_each_is_to_do(
    queue: Any, first: Any
) -> None:
    other: Any = {"raise": "skip", "skip": "raise"}[first]
    batch = [NewJob({"n": n}, key="k", on_conflict=how) for n, how in enumerate([first, other])]

    try:
        ids = await queue.put_many(batch)
        existing = ids.existing
    except DuplicateJob as error:
        existing = error.existing

    assert existing == [1]
    assert await stored(queue) == [0]


@pytest.mark.parametrize("on_conflict", ALL)
async def test_what_was_put_can_be_put_again_by_its_id(queue: Any, on_conflict: Any) -> None:
    ids = await queue.put_many(payloads(1, 2), keys=["k", "l"])
    batch = [
        NewJob({"n": n}, job_id=job_id, key=key, on_conflict=on_conflict)
        for n, job_id, key in zip((1, 2), ids, "kl", strict=True)
    ]

    again = await queue.put_many(batch)

    assert again == ids
    assert again.existing == [0, 1]
    assert await stored(queue) == [1, 2]


@pytest.mark.parametrize("in_transaction", [False, True], ids=["alone", "in a transaction"])
@pytest.mark.parametrize("on_conflict", UPSERTS)
async def test_a_put_that_is_repeated_by_its_id_does_nothing_to_a_newer_job_of_its_key(
    shell: Shell, queue: Any, on_conflict: Any, in_transaction: bool
) -> None:
    given = {"key": "k", "job_id": ObjectId(), "on_conflict": on_conflict, "delay": 0}
    first = await queue.put({"n": 1}, key_until="start", **given)
    running = await queue.next()
    newer = await queue.put({"n": 2}, key="k", delay=60)

    async def repeat(session: Any = None) -> list[Any]:
        many = await queue.put_many([NewJob({"n": 1}, **given)], session=session)
        return [await queue.put({"n": 1}, session=session, **given), *many, many.existing]

    if in_transaction:
        async with shell.transaction() as session:
            again = await repeat(session)
    else:
        again = await repeat()

    assert again == [first, first, [0]]
    assert running.id == first
    info = await queue.get(newer)
    assert (info.state, info.data) == ("scheduled", {"n": 2})


@pytest.mark.parametrize("on_conflict", UPSERTS)
async def test_in_a_transaction_many_are_put_that_are_there_already(
    shell: Shell, queue: Any, on_conflict: str
) -> None:
    taken = await queue.put({"n": 0}, key="k")

    async with shell.transaction() as session:
        ids = await queue.put_many(
            payloads(1, 2), keys=["l", "k"], on_conflict=on_conflict, session=session
        )

    assert (ids.existing, ids[1]) == ([1], taken)
    assert await queue.size() == 2


async def test_one_in_a_transaction_that_ends_it_says_so(shell: Shell, queue: Any) -> None:
    taken = await queue.put({"n": 0}, key="k")

    async with shell.transaction() as session:
        with pytest.raises(DuplicateJob, match="ended the transaction") as refused:
            await queue.put_many(payloads(1, 2), keys=["l", "k"], session=session)
        await session.abort_transaction() if shell.is_async else session.abort_transaction()

    assert refused.value.job_id == taken
    assert await queue.size() == 1


@pytest.mark.parametrize("on_conflict", ALL)
async def test_what_holds_several_keys_because_somebody_stored_a_list_is_the_job_that_has_each(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    holder = await queue.put({}, key="k")
    jobs.update_one({"_id": holder}, {"$set": {"held_key": ["k", "l", None]}})

    found = set()
    for key in "kl":
        try:
            found.add(await queue.put({}, key=key, on_conflict=on_conflict))
            found.update(await queue.put_many([{}], keys=[key], on_conflict=on_conflict))
        except DuplicateJob as error:
            found.add(error.job_id)

    assert found == {holder}


@pytest.mark.parametrize("on_conflict", ALL)
async def test_ten_thousand_and_more_are_put_in_their_order(
    queue: Any, monkeypatch: pytest.MonkeyPatch, on_conflict: str
) -> None:
    for module in ("unique", "producer"):
        monkeypatch.setattr(f"streamqueue.queue.{module}.MAX_BATCH", 3)
    await queue.put({"n": 0}, key="4")

    batch = {"keys": [str(n) for n in range(1, 8)], "on_conflict": on_conflict}
    try:
        existing = (await queue.put_many(payloads(*range(1, 8)), **batch)).existing
    except DuplicateJob as error:
        existing = error.existing

    assert existing == [3]
    fourth = 4 if on_conflict == "replace" else 0
    assert await stored(queue) == [fourth, 1, 2, 3, 5, 6, 7]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keys": ["k"]}, "keys has 1 and there are 2 payloads"),
        ({"keys": ["k", "l", "m"]}, "keys has 3 and there are 2 payloads"),
        ({"keys": "kl"}, "keys is a list"),
        ({"keys": 5}, "keys is a list"),
        ({"keys": ["k", 5]}, "1 to 256 bytes"),
        ({"on_conflict": "skip"}, "give key= too"),
        ({"keys": ["k", None], "max_delay": 5}, 'on_conflict="replace"'),
    ],
    ids=str,
)
async def test_keys_that_do_not_go_with_the_rest_are_refused_in_a_sentence(
    queue: Any, jobs: Collection[Any], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        await queue.put_many(payloads(1, 2), **settings)

    assert jobs.count_documents({}) == 0
