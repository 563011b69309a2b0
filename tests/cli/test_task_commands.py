"""Tasks on the command line, as people say them and see them."""

from __future__ import annotations

import json

import pytest

from streamqueue import MongoQueue, Schedules, Task, Topic
from tests.cli.conftest import Command

RESIZE = Task("resize")


def test_jobs_are_put_as_calls_of_a_task(command: Command, queue: MongoQueue) -> None:
    command("put", '{"n": 1, "priority": 7}', '{"n": 2}', "--task", "resize")

    found = queue.list(data=True)
    assert [(info.task, info.priority) for info in found] == [("resize", 0), ("resize", 0)]
    assert [info.data for info in found] == [{"n": 1, "priority": 7}, {"n": 2}]


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_a_job_shows_its_task(
    command: Command, queue: MongoQueue, options: tuple[str, ...]
) -> None:
    job_id = str(queue.put(RESIZE.call(n=1)))

    shown = command("get", job_id, *options)
    if options:
        assert json.loads(shown)["task"] == "resize"
    else:
        assert "task         resize" in shown.splitlines()


def test_a_list_shows_tasks_where_there_are_some(command: Command, queue: MongoQueue) -> None:
    queue.put({})
    assert "TASK" not in command("list")

    queue.put(RESIZE.call(n=1))
    head, plain, call = command("list").splitlines()

    place = head.index("TASK")
    assert plain[place:].split() == ["-", "-"]
    assert call[place:].split() == ["resize", "-"]
    assert [one["task"] for one in json.loads(command("list", "--json"))] == [None, "resize"]


def test_a_dead_job_shows_its_queue_and_its_task(command: Command, queue: MongoQueue) -> None:
    queue.put(RESIZE.call(n=1), max_attempts=1)
    job = queue.next()
    assert job is not None
    job.error("no")

    (found,) = json.loads(command("dead", "list", "--json"))

    assert (found["queue"], found["task"]) == ("default", "resize")


def test_a_message_is_published_as_a_call(command: Command, queue: MongoQueue) -> None:
    Topic(queue._store.jobs, "orders").subscribe("default")

    command("topic", "publish", "orders", '{"n": 1}', "--task", "resize")

    assert [info.task for info in queue.list()] == ["resize"]


@pytest.mark.parametrize("payload", [(), ('{"n": 1}',)], ids=["no payload", "a payload"])
def test_a_schedule_puts_calls(
    command: Command, queue: MongoQueue, payload: tuple[str, ...]
) -> None:
    command("schedule", "add", "nightly", *payload, "--every", "3600", "--task", "resize")

    [info] = Schedules(queue._store.jobs).list()
    assert (info.task, info.payload) == ("resize", {"n": 1} if payload else {})
