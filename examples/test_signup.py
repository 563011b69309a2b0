"""The tests of signup.py, on a real server that pytest starts by itself: `streamqueue.testing`.

Outside of this repository `anyio_mode = auto` belongs into the settings of pytest.
"""

from typing import Any

import pytest
from pymongo.asynchronous.collection import AsyncCollection

from examples import signup
from streamqueue import AsyncMongoQueue, JobCancelled
from streamqueue.testing import make_job, run_until_empty

Jobs = AsyncCollection[dict[str, Any]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # pymongo runs on nothing else


@pytest.fixture(autouse=True)
def outbox(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    sent: list[str] = []
    monkeypatch.setattr(signup, "outbox", sent)
    return sent


async def test_who_signs_up_is_welcomed_by_name(streamqueue_jobs: Jobs, outbox: list[str]) -> None:
    job_id = await signup.sign_up(streamqueue_jobs, "ada@example.org")

    report = await run_until_empty(signup.worker, streamqueue_jobs)

    assert report.done == 3
    assert outbox == ["ada@example.org: Welcome, Ada"]
    result = await AsyncMongoQueue(streamqueue_jobs).result(job_id)
    assert result == "Ada, with a picture of 4096 pixels"


async def test_a_mail_server_that_is_away_is_tried_again(
    streamqueue_jobs: Jobs, outbox: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver, times = signup.deliver, iter(range(9))

    def away_at_first(to: str, text: str) -> None:
        if next(times) < 2:
            raise ConnectionError("the mail server is away")
        deliver(to, text)

    monkeypatch.setattr(signup, "deliver", away_at_first)
    await signup.sign_up(streamqueue_jobs, "ada@example.org")

    report = await run_until_empty(signup.worker, streamqueue_jobs, due=True, failures="collect")

    assert [failed.attempt for failed in report.failed] == [1, 2]
    assert outbox == ["ada@example.org: Welcome, Ada"]


async def test_who_has_no_address_is_not_tried_again_and_gets_no_mail(
    streamqueue_jobs: Jobs, outbox: list[str]
) -> None:
    job_id = await signup.sign_up(streamqueue_jobs, "ada")

    report = await run_until_empty(signup.worker, streamqueue_jobs, failures="collect")

    [failed] = report.failed
    assert isinstance(failed.error, signup.NotAnAddress)
    assert failed.dead
    assert outbox == []
    with pytest.raises(JobCancelled):
        await AsyncMongoQueue(streamqueue_jobs).result(job_id)


def test_a_picture_says_what_it_is_at() -> None:
    job = make_job({}, blocking=True)

    assert signup.draw(job, "ada@example.org", size=8) == 64

    assert job.calls == [("progress", {"count": None, "note": "drawing the initials"})]


async def test_a_name_is_made_of_the_address() -> None:
    assert await signup.register("ada@example.org") == "Ada"
