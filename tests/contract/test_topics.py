"""Topics: a message goes to every queue that subscribes, or to none.

Laws: nothing is lost; an unknown outcome is not a failure; the document is the truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo.errors import DuplicateKeyError
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob
from streamqueue.protocol.document import CODEC
from streamqueue.protocol.topics import MAX_SUBSCRIBERS
from streamqueue.queue import publisher
from tests.contract.shells import Shell
from tests.contract.waiters import WAIT
from tests.waiting import wait_until_async


@pytest.fixture
def settings(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """The collection that has the subscriptions, empty before and after."""
    found = jobs.database[f"{jobs.name}.settings"]
    found.delete_many({})
    yield found
    found.delete_many({})


@pytest.fixture
def topic(shell: Shell, settings: Collection[Any]) -> Any:
    """The topic ``orders``, to which nobody subscribes."""
    return shell.topic("orders")


@pytest.fixture
async def read(topic: Any) -> Any:
    """The same, with the subscribers ``billing`` and ``mails``."""
    await topic.subscribe("mails")
    await topic.subscribe("billing")
    return topic


def payloads(jobs: Collection[Any], queue: str) -> list[Any]:
    return [job["payload"] for job in jobs.find({"queue": queue}).sort("seq", 1)]


async def test_every_subscriber_gets_a_job_of_its_own(read: Any, shell: Shell) -> None:
    await read.publish({"n": 1})

    for name in ("billing", "mails"):
        queue = shell.queue(name=name)
        job = await queue.next()
        assert job.data == {"n": 1}
        await job.complete()
        assert await queue.size() == 0


async def test_the_ids_are_in_the_order_of_the_subscribers(
    read: Any, jobs: Collection[Any]
) -> None:
    ids = await read.publish({"n": 1})

    stored = {job["_id"]: job["queue"] for job in jobs.find()}
    assert [stored[job_id] for job_id in ids] == await read.subscribers() == ["billing", "mails"]


async def test_consumers_of_one_queue_share_and_two_queues_get_each(
    read: Any, shell: Shell
) -> None:
    first, second, other = (shell.queue(name=name) for name in ("mails", "mails", "billing"))
    for n in range(4):
        await read.publish({"n": n})

    shared = [await queue.claim(2) for queue in (first, second)]
    alone = await other.claim(10)

    assert [[job.data["n"] for job in jobs] for jobs in shared] == [[0, 1], [2, 3]]
    assert [job.data["n"] for job in alone] == [0, 1, 2, 3]


async def test_what_nobody_reads_is_nowhere_and_counted(
    shell: Shell, settings: Collection[Any], jobs: Collection[Any]
) -> None:
    registry = CollectorRegistry()
    topic = shell.topic("orders", registry=registry)

    assert await topic.publish({"n": 1}) == []
    await topic.subscribe("mails")
    await topic.publish({"n": 2})
    await topic.publish({"n": 3})

    def counted(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    published = "streamqueue_topic_published_total"
    assert counted(published, topic="orders", result="unread") == 1
    assert counted(published, topic="orders", result="delivered") == 2
    assert counted("streamqueue_jobs_put_total", queue="mails", result="inserted") == 2
    assert payloads(jobs, "mails") == [{"n": 2}, {"n": 3}]


async def test_a_subscription_holds_for_a_publisher_that_has_published_before(
    read: Any, shell: Shell, jobs: Collection[Any]
) -> None:
    await read.publish({"n": 1})

    await shell.topic("orders").subscribe("audit")
    await read.publish({"n": 2})

    assert payloads(jobs, "audit") == [{"n": 2}]
    assert payloads(jobs, "mails") == [{"n": 1}, {"n": 2}]


async def test_who_is_unsubscribed_keeps_what_it_has_and_gets_no_more(
    read: Any, shell: Shell, jobs: Collection[Any]
) -> None:
    await read.publish({"n": 1})

    await shell.topic("orders").unsubscribe("mails")
    await read.publish({"n": 2})

    assert payloads(jobs, "mails") == [{"n": 1}]
    assert payloads(jobs, "billing") == [{"n": 1}, {"n": 2}]


async def test_to_take_back_what_is_not_there_changes_nothing(topic: Any) -> None:
    await topic.unsubscribe("mails")

    assert await topic.subscribers() == []


async def test_topics_have_subscribers_of_their_own(read: Any, shell: Shell) -> None:
    other = shell.topic("orders.paid")
    await other.subscribe("shipping")

    assert await other.subscribers() == ["shipping"]
    assert await read.subscribers() == ["billing", "mails"]


async def test_a_queue_that_subscribes_twice_does_so_once(
    read: Any, settings: Collection[Any]
) -> None:
    before = settings.find_one()

    await read.subscribe("billing")

    assert await read.subscribers() == ["billing", "mails"]
    assert settings.find_one() == before


async def test_a_subscription_ends_when_its_time_is_over(
    topic: Any, settings: Collection[Any]
) -> None:
    await topic.subscribe("audit", expires=0.2)
    await topic.subscribe("mails", expires=timedelta(hours=1))
    await topic.subscribe("billing", expires=datetime(2020, 1, 1, tzinfo=UTC))

    async def over() -> Any:
        return await topic.subscribers() == ["mails"]

    await wait_until_async(over, "it is over")
    assert len(await topic.publish({})) == 1

    await topic.subscribe("shipping")
    (document,) = settings.find()
    assert [one["queue"] for one in document["subscribers"]] == ["mails", "shipping"]


async def test_to_subscribe_again_sets_its_time_anew(topic: Any) -> None:
    await topic.subscribe("mails", expires=0.0)
    assert await topic.subscribers() == []

    await topic.subscribe("mails")

    assert await topic.subscribers() == ["mails"]


SETTINGS: dict[str, dict[str, Any]] = {
    "delayed": {"delay": 60, "priority": 3, "max_attempts": 7},
    "at a time": {"run_at": datetime(2040, 1, 1, tzinfo=UTC)},
    "kept": {"keep": 60, "expires": datetime(2040, 1, 1, tzinfo=UTC)},
    "of a key": {"key": "k"},
}


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
async def test_a_job_of_a_topic_is_as_if_it_had_been_put(
    given: dict[str, Any], read: Any, shell: Shell, jobs: Collection[Any]
) -> None:
    await shell.queue(name="put").put({"priority": 2, "n": 1}, **given)

    await read.publish({"priority": 2, "n": 1}, **given)

    dates = ("run_at", "created_at") if "run_at" not in given else ("created_at",)
    found = list(jobs.with_options(codec_options=CODEC).find().sort("seq", 1))
    for job in found:
        for name in ("_id", "queue", "seq", *dates):
            del job[name]
    assert found[0] == found[1] == found[2]


async def test_with_a_delay_it_is_ready_later(read: Any, jobs: Collection[Any]) -> None:
    await read.publish({}, delay=60)

    waits = [(job["state"], job["run_at"] - job["created_at"]) for job in jobs.find()]
    assert waits == [("scheduled", timedelta(seconds=60))] * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"priority": "high"},
        {"delay": -1},
        {"delay": 1, "run_at": datetime(2040, 1, 1, tzinfo=UTC)},
        {"key": ""},
        {"job_id": 5},
        {"expires": "soon"},
    ],
    ids=lambda wrong: "+".join(wrong),
)
async def test_what_put_refuses_is_refused_and_nothing_is_there(
    wrong: dict[str, Any], read: Any, jobs: Collection[Any]
) -> None:
    with pytest.raises(ConfigurationError):
        await read.publish({}, **wrong)

    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("name", ["", "a:b", "$a", "-a", "a" * 65, 5, None, {"$ne": 1}], ids=str)
async def test_the_names_are_those_of_queues(name: Any, shell: Shell, topic: Any) -> None:
    with pytest.raises(ConfigurationError, match="a topic name is"):
        shell.topic(name)
    for call in (topic.subscribe, topic.unsubscribe):
        with pytest.raises(ConfigurationError, match="a queue name is"):
            await call(name)


# keys


async def test_a_key_is_one_of_each_queue(read: Any, jobs: Collection[Any]) -> None:
    await read.publish({"n": 1}, key="k")

    assert [job["key"] for job in jobs.find()] == ["k", "k"]


async def test_with_a_key_that_one_has_nobody_gets_it(
    shell: Shell, settings: Collection[Any], jobs: Collection[Any]
) -> None:
    registry = CollectorRegistry()
    topic = shell.topic("orders", registry=registry)
    for name in ("mails", "billing"):
        await topic.subscribe(name)
    taken = await shell.queue(name="mails").put({"n": 1}, key="k")

    with pytest.raises(DuplicateJob) as caught:
        await topic.publish({"n": 2}, key="k")

    assert (caught.value.key, caught.value.job_id) == ("k", taken)
    assert "transaction" not in str(caught.value)
    assert payloads(jobs, "billing") == []
    count = {"queue": "mails", "result": "duplicate"}
    assert registry.get_sample_value("streamqueue_jobs_put_total", count) == 1


# repeated


async def test_repeated_with_its_id_it_is_no_second_copy(read: Any, jobs: Collection[Any]) -> None:
    message = ObjectId()
    first = await read.publish({"n": 1}, job_id=message)

    again = await read.publish({"n": 1}, job_id=message)

    assert again == first
    assert jobs.count_documents({}) == 2


async def test_repeated_it_is_no_second_copy_for_who_was_quick_while_that_is_kept(
    read: Any, shell: Shell, jobs: Collection[Any]
) -> None:
    message = ObjectId()
    await read.publish({"n": 1}, job_id=message, keep=60)
    await (await shell.queue(name="mails").next()).complete()

    await read.publish({"n": 1}, job_id=message, keep=60)

    states = {job["queue"]: job["state"] for job in jobs.find()}
    assert states == {"mails": "done", "billing": "ready"}


async def test_repeated_it_is_new_where_it_has_ended_and_was_not_kept(
    read: Any, shell: Shell, jobs: Collection[Any]
) -> None:
    message = ObjectId()
    first = await read.publish({"n": 1}, job_id=message)
    await (await shell.queue(name="mails").next()).complete()

    again = await read.publish({"n": 1}, job_id=message)

    assert again == first
    assert payloads(jobs, "mails") == payloads(jobs, "billing") == [{"n": 1}]


async def test_repeated_it_comes_to_who_has_subscribed_since(
    read: Any, jobs: Collection[Any]
) -> None:
    message = ObjectId()
    await read.publish({"n": 1}, job_id=message)
    await read.subscribe("audit")

    ids = await read.publish({"n": 1}, job_id=message)

    assert len(ids) == 3
    assert jobs.count_documents({}) == 3
    assert payloads(jobs, "audit") == [{"n": 1}]


async def test_an_id_that_something_else_has_is_an_error_and_nobody_gets_it(
    read: Any, jobs: Collection[Any]
) -> None:
    message = ObjectId()
    ids = await read.publish({"n": 1}, job_id=message)
    jobs.delete_many({})
    jobs.insert_one({"_id": ids[1], "queue": "other", "state": "ready", "payload": {}})

    with pytest.raises(DuplicateKeyError):
        await read.publish({"n": 1}, job_id=message)

    assert payloads(jobs, "billing") == payloads(jobs, "mails") == []


# what others have stored


DAMAGED: dict[str, Any] = {
    "nothing": None,
    "a number": 5,
    "a text": "mails",
    "a document": {"queue": "mails"},
    "a list of no documents": [1, None, "mails", ["mails"], {}],
    "names that are none": [{"queue": 5}, {"queue": "$mails"}, {"queue": None}, {"queue": {}}],
}


@pytest.mark.parametrize("stored", DAMAGED.values(), ids=DAMAGED)
async def test_what_is_no_subscriber_is_none(
    stored: Any, topic: Any, settings: Collection[Any], jobs: Collection[Any]
) -> None:
    settings.insert_one({"_id": "topic:orders", "kind": 5, "subscribers": stored})

    assert await topic.subscribers() == []
    assert await topic.publish({"n": 1}) == []
    await topic.unsubscribe("mails")
    await topic.subscribe("mails")

    assert await topic.subscribers() == ["mails"]
    assert len(await topic.publish({"n": 2})) == 1


async def test_an_end_that_is_no_date_is_none_and_who_is_there_twice_is_one(
    topic: Any, settings: Collection[Any]
) -> None:
    subscribers = [
        {"queue": "mails", "expires_at": "soon"},
        {"queue": "mails"},
        {"queue": "billing", "expires_at": None},
        {"queue": "audit", "expires_at": [datetime(2020, 1, 1, tzinfo=UTC)]},
    ]
    settings.insert_one({"_id": "topic:orders", "subscribers": subscribers})

    assert await topic.subscribers() == ["audit", "billing", "mails"]
    assert len(await topic.publish({})) == 3


async def test_dates_that_python_has_not_are_ends_like_others(
    topic: Any, settings: Collection[Any]
) -> None:
    far = [{"$toDate": {"$toLong": number}} for number in (2**62, -(2**62))]
    settings.insert_one({"_id": "topic:orders"})
    ends = [{"queue": name, "expires_at": at} for name, at in zip("ab", far, strict=True)]
    settings.update_one({}, [{"$set": {"subscribers": ends}}])

    assert await topic.subscribers() == ["a"]
    await topic.subscribe("c")
    assert await topic.subscribers() == ["a", "c"]


async def test_what_else_is_stored_of_a_topic_stays(topic: Any, settings: Collection[Any]) -> None:
    settings.insert_one({"_id": "topic:orders", "of_a_later_version": 1})

    await topic.subscribe("mails")
    await topic.unsubscribe("mails")

    expected = {"_id": "topic:orders", "of_a_later_version": 1, "kind": "topic", "subscribers": []}
    assert settings.find_one() == expected


# how many, and how much


def many(count: int) -> list[dict[str, str]]:
    return [{"queue": f"q{number}"} for number in range(count)]


async def test_a_topic_has_up_to_a_thousand_subscribers(
    topic: Any, settings: Collection[Any], jobs: Collection[Any]
) -> None:
    settings.insert_one({"_id": "topic:orders", "subscribers": many(MAX_SUBSCRIBERS)})

    with pytest.raises(ConfigurationError, match="has 1,000 subscribers, and no topic has more"):
        await topic.subscribe("more")
    await topic.subscribe("q7", expires=60)
    ids = await topic.publish({"n": 1})

    assert len(ids) == jobs.count_documents({}) == 1000


async def test_more_subscribers_than_that_get_nothing(
    topic: Any, settings: Collection[Any], jobs: Collection[Any]
) -> None:
    settings.insert_one({"_id": "topic:orders", "subscribers": many(MAX_SUBSCRIBERS + 1)})

    with pytest.raises(ConfigurationError, match="has 1,001 subscribers"):
        await topic.publish({"n": 1})

    assert jobs.count_documents({}) == 0


async def test_all_copies_together_may_be_larger_than_a_document(
    read: Any, jobs: Collection[Any]
) -> None:
    await read.publish({"n": "x" * 10_000_000})

    assert jobs.count_documents({}) == 2


async def test_copies_that_are_too_large_together_are_refused(
    read: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "MAX_PUBLISHED_BYTES", 1000)

    with pytest.raises(ConfigurationError, match="for each of 2 subscribers"):
        await read.publish({"n": "x" * 600})

    assert jobs.count_documents({}) == 0


async def test_many_subscribers_work_side_by_side_and_none_loses_an_unread_message(
    topic: Any, shell: Shell, jobs: Collection[Any]
) -> None:
    names = [f"service-{number}" for number in range(8)]
    for name in names:
        await topic.subscribe(name)
    for n in range(20):
        await topic.publish({"n": n})

    # Some have read none when others have read all; one was killed with what it held.
    for name in names[:4]:
        for job in await shell.queue(name=name).claim(20):
            await job.complete()
    held = await shell.queue(name=names[4]).claim(7)
    jobs.update_many({"state": "running"}, [{"$set": {"locked_until": "$created_at"}}])
    await shell.queue().repair()

    assert len(held) == 7
    for name in names[4:]:
        queue, read = shell.queue(name=name), list[int]()
        while some := await queue.claim(50, wait=None if len(read) == 20 else WAIT):
            read += [job.data["n"] for job in some]
        assert sorted(read) == list(range(20))


@pytest.mark.parametrize("on_conflict", ["skip", "replace", "earlier"])
async def test_a_message_whose_key_one_queue_holds_is_that_job_there(
    shell: Shell, topic: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    await topic.subscribe("billing")
    await topic.subscribe("mails")
    taken = await shell.queue(name="mails").put({"n": 1}, key="k")

    billing, mails = await topic.publish({"n": 2}, key="k", on_conflict=on_conflict)

    assert mails == taken
    assert {job["_id"] for job in jobs.find({"key": "k"})} == {billing, mails}
