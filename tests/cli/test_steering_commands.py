"""``streamqueue requeue`` and ``reschedule``."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.cli.main import main
from tests.contract.looks import document, server_time

Command = Callable[..., dict[str, Any]]


@pytest.fixture
def command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command here, which does what it is told; return what it printed as JSON."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def command(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == 0
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return command


def bury(jobs: Collection[Any], **fields: Any) -> Any:
    now = server_time(jobs)
    dead = {"queue": "default", "state": "dead", "payload": {}, "priority": 0, "finished_at": now}
    return jobs.insert_one(dead | fields).inserted_id


def states(jobs: Collection[Any], *ids: Any) -> list[str]:
    return [document(jobs, job_id)["state"] for job_id in ids]


def test_a_dead_job_is_requeued_by_its_id_whatever_its_queue(
    command: Command, jobs: Collection[Any]
) -> None:
    ids = [bury(jobs), bury(jobs, queue="emails"), bury(jobs, _id=5)]

    for job_id in ids:
        assert command("requeue", str(job_id)) == {"requeued": 1}

    assert states(jobs, *ids) == ["ready"] * 3


def test_dead_jobs_are_requeued_by_their_error_and_age(
    command: Command, jobs: Collection[Any]
) -> None:
    old = server_time(jobs) - timedelta(hours=2)
    meant = bury(jobs, queue="emails", last_error="KeyError: 'a'", finished_at=old)
    others = [
        bury(jobs, queue="emails", last_error="KeyError: 'a'"),
        bury(jobs, queue="emails", last_error="no KeyError", finished_at=old),
        bury(jobs, last_error="KeyError: 'a'", finished_at=old),
    ]
    filters = ["--error", "KeyError", "--older-than", "3600", "--queue", "emails"]

    assert command("requeue", *filters) == {"requeued": 1}

    assert states(jobs, meant, *others) == ["ready", *["dead"] * 3]


def test_all_dead_jobs_are_requeued_over_a_time(command: Command, jobs: Collection[Any]) -> None:
    ids = [bury(jobs), bury(jobs)]

    assert command("requeue", "--all", "--spread", "60") == {"requeued": 2}

    assert states(jobs, *ids) == ["scheduled"] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["requeue"], "which dead jobs?"),
        (["requeue", "--spread", "5"], "which dead jobs?"),
        (["requeue", "5", "--all"], "for many jobs"),
        (["requeue", "5", "--error", "x"], "for many jobs"),
        (["reschedule", "5"], "give delay, run_at or priority"),
        (["reschedule", "5", "--delay", "1", "--run-at", "2030-01-01"], "not both"),
        (["reschedule", "5", "--run-at", "tomorrow"], "such as 2026-03-01T14:30:00Z"),
    ],
)
def test_what_cannot_be_meant_is_said_in_a_line(
    address: str,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)
    bury(jobs, _id=5)

    code = main(arguments)

    error = capsys.readouterr().err
    assert (code, states(jobs, 5)) == (2, ["dead"])
    assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["requeue", "5"], "no dead job 5"),
        (["reschedule", "6", "--delay", "5"], "no waiting job 6"),
        (["reschedule", "7", "--delay", "5"], "no waiting job 7"),
    ],
)
def test_a_job_that_is_not_there_is_named(
    address: str,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)
    bury(jobs, _id=6)

    assert main(arguments) == 1

    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "when", [["--delay", "3600"], ["--run-at", "2126-03-01T14:30:00Z"]], ids=["delay", "moment"]
)
def test_a_job_is_rescheduled_by_its_id(
    command: Command, jobs: Collection[Any], when: list[str]
) -> None:
    job_id = MongoQueue(jobs, name="emails").put({})

    command("reschedule", str(job_id), *when, "--priority", "7")

    assert (document(jobs, job_id)["state"], document(jobs, job_id)["priority"]) == (
        "scheduled",
        7,
    )


def test_a_job_is_put_after_others_of_whatever_id_and_queue(
    command: Any, jobs: Collection[Any]
) -> None:
    parents = [MongoQueue(jobs, name="emails").put({}), 7]
    jobs.insert_one({"_id": 7, "queue": "default", "state": "ready", "payload": {}})
    after = [word for parent in parents for word in ("--after", str(parent))]

    [put] = command("put", "{}", *after, "--if-parent-fails", "run")

    found = document(jobs, ObjectId(put))
    stored = (found["state"], found["after"], found["if_parent_fails"])
    assert stored == ("waiting", parents, "run")


def test_a_job_is_not_put_after_one_that_is_not_there(
    address: str, jobs: Collection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["put", "{}", "--uri", address, "--after", "nothing"]) == 1

    assert "no job nothing to come after" in capsys.readouterr().err
    assert jobs.count_documents({}) == 0


def test_a_job_is_cancelled_with_all_that_comes_after_it(
    command: Command, jobs: Collection[Any]
) -> None:
    queue, emails = MongoQueue(jobs), MongoQueue(jobs, name="emails")
    parent = queue.put({})
    dependent = emails.put({}, after=[parent], if_parent_fails="run", keep=60)

    said = command("cancel", str(parent), "--dependents")

    assert said["cancel"] == "cancelled"
    assert states(jobs, dependent) == ["cancelled"]


def test_purging_a_dead_parent_is_told_to_what_comes_after_it(
    command: Command, jobs: Collection[Any]
) -> None:
    queue = MongoQueue(jobs)
    parent = queue.put({}, max_attempts=1)
    dependent = queue.put({}, after=[parent], keep=60)
    job: Any = queue.next()
    job.error("oops")
    held = states(jobs, dependent)

    command("dead", "purge", "--yes")

    assert (held, states(jobs, dependent)) == (["waiting"], ["cancelled"])


def test_requeueing_a_dead_parent_is_told_to_what_comes_after_it(
    command: Command, jobs: Collection[Any]
) -> None:
    queue = MongoQueue(jobs)
    parent = queue.put({}, max_attempts=1)
    dependent = queue.put({}, after=[parent])
    job: Any = queue.next()
    job.error("oops")

    command("dead", "requeue", "--yes")

    assert document(jobs, dependent)["waits_for"] == {"parents": parent}


DONE = [{"name": "charge", "result": 1}]


@pytest.mark.parametrize("dead", [False, True], ids=["requeue", "dead requeue"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("fresh", [False, True], ids=["on", "fresh"])
def test_a_requeued_job_goes_on_where_it_died_or_begins_anew(
    command: Command, jobs: Collection[Any], dead: bool, many: bool, fresh: bool
) -> None:
    job_id = bury(jobs, steps=DONE)
    which = [str(job_id)] if not many else ["--yes"] if dead else ["--all"]

    command(*["dead"] * dead, "requeue", *which, *["--fresh"] * fresh)

    stored = document(jobs, job_id)
    assert stored["state"] == "ready"
    assert ("steps" in stored) is not fresh


def test_get_shows_the_steps_that_are_done_and_when(
    command: Command, jobs: Collection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    at = server_time(jobs)
    steps = [{"name": "charge", "at": at, "result": "secret"}, {"name": "gone", "result": 1}]
    job_id = bury(jobs, steps=steps)

    shown = command("get", str(job_id))
    assert main(["get", str(job_id)]) == 0

    assert [step["name"] for step in shown["steps"]] == ["charge", "gone"]
    said = capsys.readouterr().out
    assert f"steps        charge  {at:%Y-%m-%d %H:%M:%S}\n             gone  ?\n" in said
    assert "secret" not in said
