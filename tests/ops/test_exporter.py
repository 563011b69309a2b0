"""The state of the queues as series: from one place, on a timer, and gone when it is old."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue, Rate
from streamqueue.exporter import exporter
from streamqueue.exporter.exporter import Exporter
from streamqueue.health.health import Health
from streamqueue.store.asynchronous import AsyncStore
from tests import programs
from tests.waiting import free_port, wait_until, wait_until_async
from tests.worker.faults import failing
from tests.worker.started import Commands

APP = "test-exporter"


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    with MongoQueue(jobs, name="emails") as queue:
        yield queue


class Shown:
    """A registry, and what it shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"streamqueue_{name}", labels)

    def names(self) -> set[str]:
        return {
            sample.name.removeprefix("streamqueue_")
            for family in self.registry.collect()
            for sample in family.samples
        }


@pytest.fixture
def shown() -> Shown:
    return Shown()


Export = Callable[..., Any]


@pytest.fixture
def commands() -> Commands:
    """What the exporter of the test sends."""
    return Commands()


@pytest.fixture
def export(uri: str, jobs: Collection[Any], shown: Shown, commands: Commands) -> Export:
    """Runs an exporter: ``async with export(interval=0.1): ...``."""

    @asynccontextmanager
    async def export(**settings: Any) -> AsyncIterator[Exporter]:
        settings = {"interval": 0.1, **settings}
        async with AsyncMongoClient(uri, appname=APP, event_listeners=[commands]) as client:
            store = AsyncStore(client[jobs.database.name][jobs.name])
            running = Exporter(store, shown.registry, **settings)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(running.run)
                yield running
                tasks.cancel_scope.cancel()

    return export


def censuses(shown: Shown) -> float:
    return shown("state_collection_duration_seconds_count") or 0.0


# what is shown


async def test_the_state_of_a_queue_is_shown(
    export: Export, shown: Shown, queue: MongoQueue
) -> None:
    queue.put_many([{}] * 3)
    queue.next()

    async with export():
        await wait_until_async(lambda: censuses(shown) >= 1, "a census")

        assert shown("queue_jobs", queue="emails", state="ready") == 2
        assert shown("queue_jobs", queue="emails", state="running") == 1
        assert shown("queue_jobs", queue="emails", state="scheduled") == 0
        assert shown("queue_jobs", queue="emails", state="waiting") == 0
        assert shown("queue_jobs", queue="emails", state="dead") == 0
        assert shown("queue_consumers", queue="emails") == 0
        assert shown("queue_slots", queue="emails") == 0
        assert shown("paused", queue="emails") == 0
        assert shown("queue_subscriptions", queue="emails") == 0
        assert shown("queue_expired_leases", queue="emails") == 0
        assert 0 < (shown("queue_oldest_running_age_seconds", queue="emails") or 0) < 600
        assert shown("queue_overdue_jobs", queue="emails") == 0
        assert shown("foreign_documents") == 0
        assert shown("queues_left_out") == 0
        assert shown("leader") == 1
        assert shown("oplog_window_seconds") is not None
        assert (shown("state_last_success_timestamp_seconds") or 0) > 1.7e9


async def test_the_limits_of_a_queue_are_shown(
    export: Export, shown: Shown, queue: MongoQueue
) -> None:
    queue.put_many([{}] * 3)
    queue.limit(running=1, rate=Rate(90, 60))
    assert queue.next() is not None

    async with export():
        await wait_until_async(lambda: censuses(shown) >= 1, "a census")

        of_queue = {"queue": "emails", "per": "queue", "task": ""}
        assert shown("queue_limit", **of_queue) == 1
        assert shown("queue_limit_running", **of_queue) == 1
        assert shown("queue_limit_starts_per_second", **of_queue) == 1.5
        assert shown("queue_limit_saturated", **of_queue) == 1
        assert shown("queue_held_groups", queue="emails") is None
        assert shown("queue_held_dependents", queue="emails") == 0


async def test_the_age_is_an_explicit_zero_when_nothing_waits(
    export: Export, shown: Shown, queue: MongoQueue
) -> None:
    queue.put({})
    async with export():
        await wait_until_async(
            lambda: (shown("queue_oldest_ready_age_seconds", queue="emails") or 0) > 0, "it waits"
        )

        assert queue.next() is not None

        await wait_until_async(
            lambda: shown("queue_oldest_ready_age_seconds", queue="emails") == 0, "none waits"
        )


async def test_nothing_is_left_on_the_registry_at_the_end(
    export: Export, shown: Shown, queue: MongoQueue
) -> None:
    queue.put({})
    async with export():
        await wait_until_async(lambda: censuses(shown) >= 1, "a census")

    assert shown.names() == set()


# what it costs


async def test_the_database_is_read_per_interval_and_never_per_scrape(
    export: Export, shown: Shown, queue: MongoQueue, commands: Commands
) -> None:
    queue.put({})
    async with export(interval=30):
        await wait_until_async(lambda: censuses(shown) == 1, "a census")
        commands.forget()

        for _ in range(100):
            generate_latest(shown.registry)

        assert commands.all == []


async def test_each_census_sends_the_same_few_reads(
    export: Export, shown: Shown, queue: MongoQueue, commands: Commands
) -> None:
    queue.put_many([{}] * 500)
    async with export():
        await wait_until_async(lambda: censuses(shown) >= 2, "two censuses")
        counted, sent = censuses(shown), len(commands.named("find", "aggregate"))
        await wait_until_async(lambda: censuses(shown) >= counted + 5, "five more")

        reads = (len(commands.named("find", "aggregate")) - sent) / (censuses(shown) - counted)

    # Which queues there are (2 + 1 + 1 + 1), consumers, pauses, schedules, subscriptions, running,
    # the one queue, what is no queue, the oplog's two ends.
    assert reads == pytest.approx(13, abs=2)
    assert commands.named("insert", "update", "delete", "findAndModify") == []


async def test_after_a_census_that_took_long_the_pause_is_long(
    export: Export, jobs: Collection[Any], queue: MongoQueue, commands: Commands
) -> None:
    queue.put({})
    slow = {"blockConnection": True, "blockTimeMS": 100}

    with failing(jobs.database.client, "aggregate", app=APP, **slow):
        async with export() as running:
            pause = await running.take()

    assert pause >= exporter.BUSY_SHARE * 0.2


async def test_however_long_a_census_takes_the_counts_are_no_older_than_a_minute(
    export: Export, queue: MongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put({})
    monkeypatch.setattr(exporter, "BUSY_SHARE", 10**9)

    async with export() as running:
        assert await running.take() == exporter.LONGEST_PAUSE


@pytest.mark.slow
async def test_a_census_is_shown_until_the_next_however_long_they_take(
    export: Export,
    shown: Shown,
    jobs: Collection[Any],
    queue: MongoQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pause after it is longer than one that took no time would be shown."""
    monkeypatch.setattr(exporter, "STALE_AFTER", 0.2)
    monkeypatch.setattr(exporter, "BUSY_SHARE", 8)
    queue.put({})
    gone = False

    def is_second() -> bool:
        nonlocal gone
        count = censuses(shown)
        gone = gone or (count > 0 and shown("queue_jobs", queue="emails", state="ready") is None)
        return count >= 2

    slow = {"blockConnection": True, "blockTimeMS": 100}
    with failing(jobs.database.client, "aggregate", app=APP, **slow):
        async with export(interval=0.1):
            await wait_until_async(is_second, "two censuses")

    assert not gone


# when it fails


@pytest.mark.slow
async def test_a_census_is_gone_when_it_has_grown_old(
    export: Export,
    shown: Shown,
    jobs: Collection[Any],
    queue: MongoQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporter, "STALE_AFTER", 0.8)
    queue.put({})
    health = Health()
    async with export(health=health):
        await wait_until_async(lambda: censuses(shown) >= 1, "a census")
        assert health.reasons() == {}

        with failing(jobs.database.client, "aggregate", app=APP, errorCode=50):
            await wait_until_async(lambda: "queue_jobs" not in shown.names(), "it is gone")
            await wait_until_async(lambda: "state" in health.reasons(), "not ready")

            assert shown("leader") == 1
            assert (shown("state_collection_errors_total") or 0) > 0

        await wait_until_async(lambda: "queue_jobs" in shown.names(), "it is back")
        assert health.reasons() == {}


@pytest.mark.slow
async def test_it_is_not_ready_when_a_census_neither_ends_nor_fails(
    export: Export, shown: Shown, queue: MongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "STALE_AFTER", 0.8)
    queue.put({})
    health = Health()
    async with export(health=health) as running:
        await wait_until_async(lambda: censuses(shown) >= 1, "a census")
        assert health.reasons() == {}

        with monkeypatch.context() as hanging:
            hanging.setattr(running._surveyor, "take", anyio.sleep_forever)
            await wait_until_async(lambda: "state" in health.reasons(), "not ready")


async def test_whatever_is_in_the_documents_does_not_end_it(
    export: Export, shown: Shown, queue: MongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put({})
    async with export() as running:
        await wait_until_async(lambda: censuses(shown) >= 1, "a census")

        async def raise_key_error() -> None:
            raise KeyError("count")

        monkeypatch.setattr(running._surveyor, "take", raise_key_error)
        await wait_until_async(
            lambda: (shown("state_collection_errors_total") or 0) >= 2, "two failures"
        )


async def test_before_the_first_census_it_is_not_ready(
    jobs: Collection[Any], uri: str, shown: Shown
) -> None:
    health = Health()
    async with AsyncMongoClient(uri) as client:
        store = AsyncStore(client[jobs.database.name][jobs.name])
        Exporter(store, shown.registry, health=health)

    assert health.reasons() == {"state": "no census has been taken yet"}


# the command


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``streamqueue`` with some arguments."""
    processes: list[subprocess.Popen[str]] = []

    def spawn(*arguments: str) -> subprocess.Popen[str]:
        processes.append(
            programs.Popen(
                [sys.executable, "-m", "streamqueue", *arguments],
                stderr=subprocess.PIPE,
                text=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("STREAMQUEUE_")},
            )
        )
        return processes[-1]

    yield spawn
    for process in processes:
        process.kill()
        process.communicate()


def get(port: int, path: str) -> tuple[int, str] | None:
    """Return the status and body, or None when nobody answers yet."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionError:
        return None
    finally:
        connection.close()


def address_of(uri: str, jobs: Collection[Any]) -> str:
    return uri.replace("/?", f"/{jobs.database.name}?")


def test_the_command_serves_the_state_until_it_is_told_to_stop(
    spawn: Callable[..., subprocess.Popen[str]],
    uri: str,
    jobs: Collection[Any],
    queue: MongoQueue,
) -> None:
    queue.put_many([{}] * 3)
    port = free_port()

    process = spawn(
        "exporter", "--uri", address_of(uri, jobs), "--metrics-port", str(port), "--interval", "0.2"
    )

    answer = wait_until(lambda: get(port, "/metrics"), "it serves")
    assert answer is not None
    assert 'streamqueue_queue_jobs{queue="emails",state="ready"} 3.0' in answer[1]
    assert "streamqueue_build_info" in answer[1]
    assert get(port, "/readyz") == (200, '{"ready": true}')
    assert get(port, "/healthz") == (200, "ok")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--uri", "mongodb://127.0.0.1:1/test"], 1, "no MongoDB server answers"),
        ([], 2, "which MongoDB?"),
        (["--uri", "mongodb://127.0.0.1:1/"], 2, "names no database"),
        (["--uri", "mongodb://127.0.0.1:1/test", "--interval", "0"], 2, "0.1 to 3600 seconds"),
    ],
    ids=["no server", "no address", "no database", "no interval"],
)
def test_a_command_that_cannot_serve_says_why_in_a_sentence(
    spawn: Callable[..., subprocess.Popen[str]], arguments: list[str], code: int, sentence: str
) -> None:
    process = spawn("exporter", *arguments)

    said = process.communicate(timeout=30)[1]

    assert process.returncode == code
    assert sentence in said
    assert "Traceback" not in said
