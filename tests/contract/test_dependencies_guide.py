"""The recipes of the guide on jobs that come after others, as they stand there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import Discard, Job, MongoQueue
from tests.guides import recipes_of


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    with MongoQueue(jobs) as queue:
        yield queue


@pytest.fixture
def guide(queue: MongoQueue) -> Any:
    return recipes_of("dependencies.md", queue)


def take(queue: MongoQueue) -> Job:
    job = queue.next()
    assert job is not None
    return job


def test_a_chain_runs_in_its_order(guide: Any, queue: MongoQueue) -> None:
    guide.publish("v")

    done = []
    while job := queue.next():
        done.append(job.data["do"])
        job.complete()

    assert done == ["cut", "encode", "announce"]


def test_a_gallery_is_made_of_the_thumbnails_that_could_be_made(
    guide: Any, queue: MongoQueue
) -> None:
    guide.thumbnails(["a", "b", "c"])
    for _ in range(2):
        job = take(queue)
        job.complete(job.data["thumbnail"].upper())
    with pytest.raises(Discard), take(queue):
        raise Discard("no image")

    job = take(queue)

    assert (job.data, guide.gallery(job)) == ({"gallery": 3}, ["A", "B"])
    assert sorted(guide.report(job).values()) == ["dead", "done", "done"]


def test_a_gallery_of_nothing_is_made_at_once(guide: Any, queue: MongoQueue) -> None:
    gallery = guide.thumbnails([])

    assert take(queue).id == gallery


def test_a_chain_can_be_called_off_as_a_whole(guide: Any, queue: MongoQueue) -> None:
    guide.publish("v")
    [first] = queue.list("ready")

    assert guide.call_off(first.id) == "cancelled"

    stats = queue.stats()
    assert (stats["waiting"], stats["available"]) == (0, 0)
