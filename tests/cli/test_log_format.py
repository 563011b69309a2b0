"""``--log-format json``: what a worker process writes when things happen to it, line by line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.logs import EVENTS, FIELDS
from tests import programs
from tests.waiting import free_port, wait_until
from tests.worker.faults import failing
from tests.worker.started import STREAM_APP

CANARY = "4111-1111-1111-1111"
PASSWORD = "hunter2"
ALWAYS = {"time", "level", "logger", "message"}

WORKER = """
import json, logging, os, sys, threading, warnings, anyio
from pymongo import AsyncMongoClient
from streamqueue import Backoff, Discard, Worker

client = AsyncMongoClient(os.environ["STREAMQUEUE_URI"], appname="test-logs")
jobs = client.get_default_database().jobs
settings = {"max_await": 0.1, "reap_interval": 0.1, "consumer_id": "consumer-1"}
settings |= json.loads(os.environ.get("WORKER_SETTINGS", "{}"))
worker = Worker(jobs, backoff=Backoff(initial=60), **settings)

@worker.handler("default")
async def handle(job):
    card = job.data["card"]
    match job.data["how"]:
        case "fails":
            try:
                raise KeyError(card)
            except KeyError as error:
                raise ValueError(f"card {card}") from error
        case "says so":
            await job.error(card)
        case "discards":
            raise Discard(card)
        case "waits":
            logging.getLogger("shop").info("waiting")
            await anyio.sleep_forever()
        case "logs":
            address = "mongodb://shop:hunter2@db.example/shop"
            logging.getLogger("shop").warning("Using %s", address, extra={"where": [address]})
            try:
                raise OSError(address)
            except OSError:
                logging.getLogger("shop").exception("Lost")
        case "warns":
            warnings.warn("careful")
        case "loses a thread":
            thread = threading.Thread(target=broken, name="helper")
            thread.start()
            thread.join()

def broken():
    raise RuntimeError("mongodb://shop:hunter2@db.example/shop is no good")
"""


class Running:
    """A worker process, and the lines it has written so far."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.process = programs.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self.text: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.text.extend(lines)

    def lines(self) -> list[dict[str, Any]]:
        """Return every line so far; each must be an object."""
        return [json.loads(line) for line in list(self.text)]

    def named(self, event: str, **wanted: Any) -> list[dict[str, Any]]:
        """Return the lines of an event with these fields."""
        return [
            line
            for line in self.lines()
            if line.get("event") == event and wanted.items() <= line.items()
        ]

    def said(self, message: str) -> list[dict[str, Any]]:
        """Return the lines of the handlers with this message."""
        return [line for line in self.lines() if line["message"] == message]

    def until(self, event: str, times: int = 1, **wanted: Any) -> dict[str, Any]:
        """Wait for so many lines of an event; return the last."""
        wait_until(
            lambda: len(self.named(event, **wanted)) >= times, f"{times} times {event}", within=20
        )
        return self.named(event, **wanted)[-1]

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.exit_code()

    def exit_code(self) -> int:
        code = self.process.wait(20)
        self._reader.join(5)
        return code

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)


Start = Callable[..., Running]


@pytest.fixture
def start(address: str, tmp_path: Path) -> Iterator[Start]:
    """Run ``streamqueue worker tasks:worker``, by default until it is ready."""
    (tmp_path / "tasks.py").write_text(WORKER)
    started: list[Running] = []

    def start(
        *options: str,
        name: str = "tasks:worker",
        ready: bool = True,
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> Running:
        environment = {"STREAMQUEUE_URI": address, "WORKER_SETTINGS": json.dumps(settings)}
        command = [sys.executable, "-m", "streamqueue", "worker", name, *options]
        started.append(Running(command, tmp_path, environment | (env or {})))
        if ready:
            started[-1].until("worker_ready")
        return started[-1]

    yield start
    for running in started:
        running.end()


@pytest.fixture
def queue(jobs: Collection[Any]) -> MongoQueue:
    return MongoQueue(jobs)


def put(queue: MongoQueue, how: str, **settings: Any) -> str:
    """Put a job whose payload must not be seen; return its id as the log has it."""
    return str(queue.put({"how": how, "card": CANARY}, **settings))


def check_every_line(running: Running) -> None:
    """Every line is an object with known events and fields, and tells no secrets."""
    for line in running.lines():
        assert line.keys() >= ALWAYS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        datetime.fromisoformat(line["time"])
        if line["logger"].startswith("streamqueue"):
            assert line["event"] in EVENTS
            assert line.keys() - ALWAYS <= FIELDS.keys() | {"process", "traceback"}
    assert CANARY not in "".join(running.text)
    assert PASSWORD not in "".join(running.text)


def test_a_worker_says_when_it_starts_is_ready_stops_and_has_stopped(
    start: Start,
) -> None:
    worker = start("--log-format", "json", concurrency=4)

    assert worker.stop() == 0

    events = [line["event"] for line in worker.lines()]
    assert [event for event in events if event != "indexes_created"] == [
        "worker_started",
        "stream_opened",
        "worker_ready",
        "signal_received",
        "worker_stopping",
        "worker_stopped",
    ]
    [began] = worker.named("worker_started")
    assert (began["queues"], began["concurrency"]) == (["default"], 4)
    assert began["loop"] in ("asyncio", "uvloop")
    assert {line["consumer"] for line in worker.lines() if "consumer" in line} == {"consumer-1"}
    assert worker.named("signal_received", signal="SIGTERM", level="INFO")
    assert worker.named("worker_stopping", count=0)
    [stopped] = worker.named("worker_stopped", count=0)
    assert 0 <= stopped["seconds"] < 5
    check_every_line(worker)


def test_a_job_that_is_completed_is_no_line(start: Start, queue: MongoQueue) -> None:
    worker = start("--log-format", "json", "--log-level", "DEBUG")
    put(queue, "completes")
    wait_until(lambda: queue.size() == 0, "the job is complete")

    worker.stop()

    said = [line for line in worker.lines() if line["logger"].startswith("streamqueue")]
    assert [line for line in said if "job_id" in line or "queue" in line] == []
    assert len(said) <= 7


def test_the_first_on_a_collection_says_that_it_made_the_indexes(start: Start) -> None:
    first = start("--log-format", "json")
    second = start("--log-format", "json")

    assert first.named("indexes_created")[0]["count"] >= 4
    assert second.named("indexes_created") == []


def test_a_failed_attempt_is_one_line(start: Start, queue: MongoQueue) -> None:
    worker = start("--log-format", "json")
    job_id = put(queue, "fails")

    line = worker.until("attempt_failed")

    assert line["level"] == "WARNING"
    assert {name: line[name] for name in line.keys() - ALWAYS} == {
        "event": "attempt_failed",
        "queue": "default",
        "job_id": job_id,
        "attempt": 1,
        "max_attempts": 3,
        "consumer": "consumer-1",
        "error": "ValueError",
    }
    worker.stop()
    assert len(worker.named("attempt_failed")) == 1
    assert worker.named("job_dead") == []
    check_every_line(worker)


@pytest.mark.parametrize(
    ("how", "reason", "failed"),
    [
        ("fails", "its attempts are used up", 1),
        ("says so", "its attempts are used up", 1),
        ("discards", "discarded by its handler", 0),
    ],
)
def test_a_dead_job_is_an_error(
    start: Start, queue: MongoQueue, how: str, reason: str, failed: int
) -> None:
    worker = start("--log-format", "json")
    job_id = put(queue, how, max_attempts=1)

    line = worker.until("job_dead")
    worker.stop()

    assert (line["level"], line["job_id"], line["reason"]) == ("ERROR", job_id, reason)
    assert (line["queue"], line["attempt"], line["max_attempts"]) == ("default", 1, 1)
    assert len(worker.named("job_dead")) == 1
    assert len(worker.named("attempt_failed", job_id=job_id)) == failed
    check_every_line(worker)


@pytest.mark.parametrize(
    ("attempts", "result", "level"), [(3, "requeued", "WARNING"), (1, "dead", "ERROR")]
)
def test_what_a_killed_consumer_held_is_reaped_in_its_name(
    start: Start, queue: MongoQueue, attempts: int, result: str, level: str
) -> None:
    victim = start("--log-format", "json", consumer_id="victim", timeout=1)
    for _ in range(3):
        put(queue, "waits", max_attempts=attempts)
    wait_until(lambda: len(victim.said("waiting")) == 3, "the victim holds them")
    victim.process.kill()
    worker = start("--log-format", "json", timeout=1)

    wait_until(
        lambda: sum(line["count"] for line in worker.named("jobs_reaped")) == 3, "all are reaped"
    )

    lines = worker.named("jobs_reaped")
    assert {(line["queue"], line["result"], line["level"]) for line in lines} == {
        ("default", result, level)
    }
    assert {tuple(line["consumers"]) for line in lines} == {("victim",)}
    worker.end()
    check_every_line(worker)


def test_a_lost_lease_is_one_line(start: Start, queue: MongoQueue, jobs: Collection[Any]) -> None:
    worker = start("--log-format", "json", timeout=1)
    job_id = put(queue, "waits")
    wait_until(lambda: worker.said("waiting"), "it runs")

    jobs.delete_one({})
    line = worker.until("lease_lost")
    worker.stop()

    assert (line["level"], line["job_id"], line["reason"]) == ("WARNING", job_id, "taken")
    assert len(worker.named("lease_lost")) == 1
    check_every_line(worker)


def test_what_is_given_back_at_the_end_of_the_drain_time_is_named_and_counted(
    start: Start, queue: MongoQueue
) -> None:
    worker = start("--log-format", "json", drain_timeout=0.2)
    ids = {put(queue, "waits") for _ in range(3)}
    wait_until(lambda: len(worker.said("waiting")) == 3, "they run")

    assert worker.stop() == 0

    assert worker.named("worker_stopping")[0]["count"] == 3
    assert {line["job_id"] for line in worker.named("claim_given_back")} == ids
    [stopped] = worker.named("worker_stopped")
    assert stopped["count"] == 3
    assert 0.2 <= stopped["seconds"] < 5
    check_every_line(worker)


def test_a_stream_that_breaks_is_a_line_and_one_when_it_is_back(
    start: Start, client: MongoClient[Any]
) -> None:
    worker = start("--log-format", "json")

    with failing(client, "getMore", "aggregate", app=STREAM_APP, errorCode=11600) as fault:
        broken = worker.until("stream_broken")
        wait_until(lambda: fault.hits() >= 3, "it could not be opened either, twice")
    back = worker.until("stream_reopened")
    worker.stop()

    assert (broken["level"], broken["reason"]) == ("WARNING", "election")
    assert back["level"] == "INFO"
    assert back["seconds"] > 0
    assert len(worker.named("stream_broken")) == len(worker.named("stream_reopened")) == 1
    check_every_line(worker)


def test_a_server_that_refuses_claims_for_a_while_is_two_lines(
    start: Start, client: MongoClient[Any], queue: MongoQueue
) -> None:
    worker = start("--log-format", "json")

    with failing(client, "findAndModify", app="test-logs", errorCode=262) as fault:
        put(queue, "completes")
        failing_line = worker.until("operation_failing", operation="claim")
        wait_until(lambda: fault.hits() >= 8, "it was tried three times, each twice by the driver")
    recovered = worker.until("operation_recovered", operation="claim")
    worker.stop()

    assert (failing_line["level"], recovered["level"]) == ("WARNING", "INFO")
    assert (failing_line["code"], failing_line["code_name"]) == (262, "ExceededTimeLimit")
    assert "ExceededTimeLimit (262)" in failing_line["message"]
    assert recovered["count"] >= 3
    assert recovered["seconds"] > 0
    for event in ("operation_failing", "operation_recovered"):
        assert len(worker.named(event, operation="claim")) == 1
    assert len(worker.named("claim_left")) <= 1
    check_every_line(worker)


def test_every_process_says_which_it_is_and_its_supervisor_says_what_becomes_of_it(
    start: Start,
) -> None:
    supervisor = start("--log-format", "json", "--processes", "2")
    supervisor.until("process_started", times=2)
    supervisor.until("worker_ready", times=2)
    pid = supervisor.named("process_started", process=1)[0]["pid"]

    os.kill(pid, signal.SIGKILL)
    died, again = supervisor.until("process_died"), supervisor.until("process_restarted")
    assert supervisor.stop() == 0

    assert (died["process"], died["pid"], died["signal"]) == (1, pid, "SIGKILL")
    assert (again["process"], again["level"]) == (1, "INFO")
    assert again["pid"] != pid
    assert sorted(line["process"] for line in supervisor.named("worker_ready")) == [0, 1, 1]
    assert supervisor.named("supervisor_stopped", count=2, exit_code=0)
    check_every_line(supervisor)


def test_lines_of_the_handlers_are_objects_too_and_passwords_in_them_are_masked(
    start: Start, queue: MongoQueue
) -> None:
    worker = start("--log-format", "json")
    put(queue, "logs")
    put(queue, "warns")
    wait_until(lambda: queue.size() == 0, "both are complete")
    worker.stop()

    masked = "mongodb://shop:***@db.example/shop"
    using, lost = (line for line in worker.lines() if line["logger"] == "shop")
    assert using["message"] == f"Using {masked}"
    assert using["where"] == [masked]
    assert (lost["message"], lost["error"]) == ("Lost", "OSError")
    assert lost["traceback"].endswith(f"OSError: {masked}")
    assert [line for line in worker.lines() if line["logger"] == "py.warnings"]
    check_every_line(worker)


def test_a_line_of_a_handler_names_its_job(start: Start, queue: MongoQueue) -> None:
    worker = start("--log-format", "json")
    job_id = put(queue, "logs")
    wait_until(lambda: queue.size() == 0, "it is complete")
    worker.stop()

    lines = [line for line in worker.lines() if line["logger"] == "shop"]
    assert {(line["job_id"], line["queue"], line["attempt"]) for line in lines} == {
        (job_id, "default", 1)
    }


def test_a_failure_is_logged_with_its_traceback_where_that_is_asked_for(
    start: Start, queue: MongoQueue
) -> None:
    worker = start("--log-format", "json", "--log-tracebacks")
    put(queue, "fails")

    failed = worker.until("attempt_failed")

    assert failed["traceback"].endswith(f"ValueError: card {CANARY}")
    assert "KeyError" in failed["traceback"]


@pytest.mark.parametrize("asked_for", [False, True])
def test_the_end_of_a_thread_is_an_object_and_its_traceback_where_that_is_asked_for(
    start: Start, queue: MongoQueue, asked_for: bool
) -> None:
    worker = start("--log-format", "json", *(["--log-tracebacks"] if asked_for else []))
    put(queue, "loses a thread")

    ended = worker.until("thread_failed")

    assert (ended["task"], ended["error"]) == ("helper", "RuntimeError")
    assert ended["message"].startswith("The thread helper was ended by RuntimeError (")
    assert ("traceback" in ended) is asked_for
    assert PASSWORD not in "".join(worker.text)
    check_every_line(worker)


CONFIGURES = """
import logging.config
logging.config.dictConfig({"version": 1, %s})
"""
QUIET = '"root": {"level": "ERROR"}'


def test_our_loggers_speak_again_after_the_module_has_configured_logging(
    start: Start, queue: MongoQueue, tmp_path: Path
) -> None:
    (tmp_path / "sets.py").write_text(CONFIGURES % "" + WORKER)

    worker = start("--log-format", "json", name="sets:worker")
    put(queue, "discards")

    assert worker.until("job_dead")


def test_what_the_module_hides_of_our_lines_is_said_in_one(start: Start, tmp_path: Path) -> None:
    (tmp_path / "quiet.py").write_text(CONFIGURES % QUIET + WORKER)

    worker = start(name="quiet:worker", ready=False)
    wait_until(lambda: worker.text, "a line", within=20)

    [line] = worker.text
    assert "hides those below ERROR" in line


def test_an_end_without_a_server_is_an_object(start: Start) -> None:
    nowhere = f"mongodb://shop:{PASSWORD}@127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=300"
    worker = start("--log-format", "json", env={"STREAMQUEUE_URI": nowhere}, ready=False)

    assert worker.exit_code() == 1

    [line] = worker.lines()
    assert (line["event"], line["level"]) == ("command_failed", "ERROR")
    assert "no MongoDB server answers" in line["message"]
    check_every_line(worker)


def test_a_function_that_makes_no_worker_is_an_object(start: Start) -> None:
    worker = start("--log-format", "json", name="tasks:broken", ready=False)

    assert worker.exit_code() == 2

    [line] = worker.lines()
    assert line["event"] == "command_failed"
    assert "it raised RuntimeError: mongodb://shop:***@db.example" in line["message"]
    check_every_line(worker)


def test_an_error_of_the_users_module_is_an_object(start: Start, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(WORKER + "\nbroken()\n")
    worker = start("--log-format", "json", name="failing:worker", ready=False)

    assert worker.exit_code() == 1

    [line] = worker.lines()
    assert (line["event"], line["level"]) == ("command_failed", "CRITICAL")
    assert line["error"] == "RuntimeError"
    assert "mongodb://shop:***@db.example" in line["traceback"]
    check_every_line(worker)


def test_the_format_can_be_a_variable(start: Start) -> None:
    worker = start(env={"STREAMQUEUE_LOG_FORMAT": "json"})

    assert worker.named("worker_ready")


def test_text_is_as_it_was(start: Start, queue: MongoQueue) -> None:
    worker = start(ready=False)
    wait_until(lambda: "Working on queues: default" in "".join(worker.text), "it is ready", 20)
    job_id = put(queue, "fails")
    put(queue, "logs")
    wait_until(lambda: "OSError" in "".join(worker.text), "both have run")

    assert worker.stop() == 0

    log = "".join(worker.text)
    time = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    attempt = f"Attempt 1 of 3 of job {job_id} in queue default failed: ValueError"
    assert re.search(f"{time} WARNING streamqueue.execution: {attempt}$", log, re.MULTILINE)
    assert re.search(f"{time} INFO streamqueue.worker: Received SIGTERM$", log, re.MULTILINE)
    assert "Using mongodb://shop:***@db.example/shop [queue=default job_id=" in log
    assert CANARY not in log
    assert PASSWORD not in log
