"""Times are the server's: a client whose clock is wrong changes nothing."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from tests.contract.looks import document, let_lease_run_out, server_time
from tests.contract.shells import Shell

NEARLY = timedelta(seconds=10)


@pytest.fixture(params=[3600, -3600], ids=["an hour fast", "an hour slow"])
def wrong_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock of this process is off."""
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + request.param)


pytestmark = pytest.mark.usefixtures("wrong_clock")


async def test_a_job_is_created_at_the_servers_time(queue: Any, jobs: Collection[Any]) -> None:
    stored = document(jobs, await queue.put({}))

    assert abs(stored["created_at"] - server_time(jobs)) < NEARLY
    assert stored["run_at"] == stored["created_at"]


async def test_a_delay_is_as_long_as_was_asked_for(queue: Any, jobs: Collection[Any]) -> None:
    stored = document(jobs, await queue.put({}, delay=60))

    assert abs(stored["run_at"] - server_time(jobs) - timedelta(seconds=60)) < NEARLY


async def test_a_moment_is_the_servers(queue: Any, jobs: Collection[Any]) -> None:
    now = server_time(jobs)
    await queue.put({"n": 1}, run_at=now + timedelta(minutes=30))
    await queue.put({"n": 2}, run_at=now - timedelta(minutes=30))

    job = await queue.next()

    assert job.data == {"n": 2}
    assert (await queue.stats())["scheduled"] == 1


async def test_a_lease_is_as_long_as_the_timeout(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({})

    stored = document(jobs, (await queue.next()).id)

    assert abs(stored["locked_at"] - server_time(jobs)) < NEARLY
    assert stored["locked_until"] - stored["locked_at"] == timedelta(seconds=300)


async def test_a_live_lock_is_not_taken_for_a_stale_one(queue: Any) -> None:
    await queue.put({})
    await queue.next()

    assert await queue.repair() == 0


async def test_a_stale_lock_is_not_taken_for_a_live_one(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({})
    await queue.next()
    let_lease_run_out(jobs)

    assert await queue.repair() == 1


async def test_a_backoff_is_the_servers(shell: Shell, jobs: Collection[Any]) -> None:
    queue = shell.queue()
    await queue.put({})
    job = await queue.next()

    await job.error("oops", delay=60)

    stored = document(jobs, job.id)
    assert abs(stored["run_at"] - server_time(jobs) - timedelta(seconds=60)) < NEARLY
    assert abs(stored["errors"][0]["at"] - server_time(jobs)) < NEARLY
