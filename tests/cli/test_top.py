"""``streamqueue top`` as it is run: on a terminal, in a pipe, and stopped."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue, Rate, Schedules
from tests import programs
from tests.waiting import wait_until

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    with MongoQueue(jobs, name="emails") as queue:
        yield queue


@pytest.fixture
def top(address: str) -> Iterator[Spawn]:
    """Starts ``streamqueue top``."""
    processes: list[subprocess.Popen[str]] = []

    def top(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
        processes.append(
            programs.Popen(
                [sys.executable, "-m", "streamqueue", "top", *arguments],
                text=True,
                env={**os.environ, "STREAMQUEUE_URI": address, "TERM": "xterm", "COLUMNS": "80"},
                **settings,
            )
        )
        return processes[-1]

    yield top
    for process in processes:
        process.kill()
        process.communicate()


def next_pulse(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_it_shows_depth_consumers_and_the_latest_dead(top: Spawn, queue: MongoQueue) -> None:
    queue.put({}, max_attempts=1)
    job = queue.next()
    assert job is not None
    job.error("boom")
    queue.put_many([{}] * 3)
    queue.claim(3)

    said = top("--once", "--interval", "0.2").communicate(timeout=30)[0]

    lines = said.splitlines()
    assert lines[0].endswith("stream open")
    assert lines[3].split()[:6] == ["emails", "0", "0", "0", "3/0", "1"]
    assert "(not on the list)" in said
    assert lines[-1].endswith("dead: boom")
    assert max(len(line) for line in lines) <= 80


def test_a_failure_that_cannot_be_decoded_is_shown_as_well_as_it_can_be(
    top: Spawn, jobs: Collection[Any]
) -> None:
    identity = UUID(int=7)
    dead = {"_id": Binary.from_uuid(identity), "queue": "emails", "state": "dead", "payload": {}}
    jobs.insert_one({**dead, "last_error": Binary(b"abc", 4)})

    said = top("--json", "--once", "--interval", "0.2").communicate(timeout=30)[0]

    assert [failure["job_id"] for failure in json.loads(said)["failures"]] == [str(identity)]


def test_paused_queues_are_named(top: Spawn, queue: MongoQueue) -> None:
    queue.put({})
    queue.pause()

    said = top("--once", "--interval", "0.2").communicate(timeout=30)[0]

    assert "PAUSED: emails" in said.splitlines()


def test_schedules_that_are_paused_or_late_are_named(
    top: Spawn, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    schedules = Schedules(jobs)
    for name in ("tidy", "weekly"):
        schedules.add(name, every=3600, queue="reports")
    schedules.pause("weekly")
    settings = jobs.database[f"{jobs.name}.settings"]
    hours_ago = datetime.now(UTC) - timedelta(hours=3)
    settings.update_one({"_id": "schedule:tidy"}, {"$set": {"next_tick": hours_ago}})

    said = top("--once", "--interval", "0.2").communicate(timeout=30)[0]

    assert "LATE SCHEDULES: tidy 3h" in said.splitlines()
    assert "PAUSED SCHEDULES: weekly" in said.splitlines()


def test_limits_are_shown_and_what_dead_jobs_hold(
    top: Spawn, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    queue.put_many([{}] * 3)
    queue.limit(running=1, rate=Rate(100, 60))
    assert queue.next() is not None
    with MongoQueue(jobs, name="reports") as reports:
        parent = reports.put({}, max_attempts=1)
        reports.put({}, after=[parent])
        (job,) = reports.claim(1)
        job.error("no")
    with MongoQueue(jobs, name="orders") as orders:
        orders.put_many([{}] * 2, group="ada", max_attempts=1)
        (job,) = orders.claim(1)
        job.error("no")
    settings = jobs.database[f"{jobs.name}.settings"]
    settings.insert_one({"_id": "orders", "declared": {"ordered": "strict"}})

    said = top("--once", "--interval", "0.2").communicate(timeout=30)[0].splitlines()
    scripted = json.loads(top("--json", "--once").communicate(timeout=30)[0])

    limits = [line for line in said if line.startswith("LIMIT: ")]
    assert limits == [
        "LIMIT: emails               queue running 1/1, rate 100 in 60 s (saturated)",
        "LIMIT: orders               group running 0/1",
    ]
    assert {"HELD GROUPS: orders 1", "HELD DEPENDENTS: reports 1"} <= set(said)
    queues = scripted["census"]["queues"]
    assert queues["emails"]["limits"] == [
        {
            "per": "queue",
            "task": None,
            "limit": 1,
            "running": 1,
            "saturated": 1,
            "rate": {"count": 100, "seconds": 60, "burst": 1},
        }
    ]
    assert (queues["orders"]["held_groups"], queues["reports"]["held_dependents"]) == (1, 1)


def test_the_bell_is_no_job_that_came(top: Spawn, queue: MongoQueue, jobs: Collection[Any]) -> None:
    jobs.insert_one({"queue": "no name", "state": "ready", "payload": {}})
    process = top("--json", "--interval", "0.5")
    next_pulse(process)

    queue.pause()
    pulses = [next_pulse(process) for _ in range(3)]

    assert [pulse["flows"]["(invalid)"]["came"] for pulse in pulses] == [0, 0, 0]


@pytest.mark.slow
def test_rates_come_from_the_stream(top: Spawn, queue: MongoQueue) -> None:
    queue.put({})
    process = top("--json", "--interval", "0.5")
    next_pulse(process)

    queue.put_many([{}] * 30)
    for job in queue.claim(10):
        job.complete()

    came = went = 0.0
    deadline = time.monotonic() + 10
    while (came, went) != (30, 10) and time.monotonic() < deadline:
        flow = next_pulse(process)["flows"].get("emails")
        if flow:
            # At half a second each, nearly.
            came, went = came + round(flow["came"] / 2), went + round(flow["went"] / 2)
    assert came == pytest.approx(30, abs=6)
    assert went == pytest.approx(10, abs=4)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "job_id", [ObjectId(), Binary.from_uuid(UUID(int=7)), "text", 7], ids=lambda each: type(each)
)
def test_a_failure_is_shown_when_it_happens(
    top: Spawn, queue: MongoQueue, jobs: Collection[Any], job_id: Any
) -> None:
    jobs.insert_one({"_id": job_id, "queue": queue.name, "state": "ready", "payload": {}})
    process = top("--json", "--interval", "0.2")
    next_pulse(process)

    job = queue.next()
    assert job is not None
    job.error("Traceback ...\nValueError: no such address", delay=60)

    failures: list[dict[str, Any]] = []
    deadline = time.monotonic() + 10
    while not failures and time.monotonic() < deadline:
        failures = next_pulse(process)["failures"]
    assert [failure["error"] for failure in failures] == ["ValueError: no such address"]
    assert failures[0]["queue"] == "emails"
    assert failures[0]["dead"] is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_when_it_is_told_to(
    top: Spawn, queue: MongoQueue, number: signal.Signals
) -> None:
    queue.put({})
    process = top("--json", "--interval", "0.1")
    next_pulse(process)

    process.send_signal(number)

    assert process.wait(10) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_reader_that_leaves_ends_it_without_a_traceback(top: Spawn, queue: MongoQueue) -> None:
    queue.put({})
    process = top("--json", "--interval", "0.1")
    next_pulse(process)

    assert process.stdout is not None
    process.stdout.close()

    assert process.wait(10) == 1
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


IN_THE_FOREGROUND: dict[str, Any] = {
    "start_new_session": True,
    "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
}
"""A session of its own, whose terminal is its standard input."""


def test_on_a_terminal_it_draws_anew_in_place(top: Spawn, queue: MongoQueue) -> None:
    queue.put({})
    ours, theirs = pty.openpty()
    process = top("--interval", "0.2", stdout=theirs, stdin=theirs)
    os.close(theirs)
    drawn = b""

    def draws_again() -> bool:
        nonlocal drawn
        if select.select([ours], [], [], 0.1)[0]:
            drawn += os.read(ours, 65536)
        return drawn.count(b"emails") >= 2

    try:
        wait_until(draws_again, "it draws twice", within=20)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        os.close(ours)

    assert b"\x1b[H" in drawn


def test_at_a_terminal_q_ends_it_and_gives_the_terminal_back(top: Spawn) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = top("--interval", "0.2", stdout=theirs, stdin=theirs, **IN_THE_FOREGROUND)

    try:
        wait_until(lambda: select.select([ours], [], [], 0.1)[0], "it draws", within=20)
        os.write(ours, b"q")
        assert process.wait(10) == 0
        after = termios.tcgetattr(theirs)
    finally:
        os.close(theirs)
        os.close(ours)

    assert after == before


def test_no_server_is_one_sentence(top: Spawn) -> None:
    process = top("--uri", "mongodb://127.0.0.1:1/test")

    said = process.communicate(timeout=30)[1]

    assert process.returncode == 1
    assert said.count("\n") == 1
    assert "no MongoDB server answers" in said
