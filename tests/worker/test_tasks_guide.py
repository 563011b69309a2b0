"""The guides on tasks, and on moving from Celery: their code, as it stands there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import Backoff, Job, MongoQueue, Retry, Worker
from tests.waiting import wait_until_async

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
SOON = 10.0


def code_of(guide: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (GUIDES / guide).read_text(), re.M | re.S)


WORK, PUTS, STUBS, ALIASES, AT_TIMES = code_of("tasks.md")
SHOP, WEB = code_of("celery.md")


class Work:
    """What the functions of the guides do."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.fails = 0

    def note(self, *given: Any) -> Any:
        self.seen.append(given)
        return given

    async def send_mail(self, name: str, text: str) -> None:
        self.note("mail", name, text)

    def send_mail_once_it_can(self, name: str) -> None:
        self.note("mail", name)
        if self.fails:
            self.fails -= 1
            raise ConnectionError

    async def remove_older_than(self, days: int) -> None:
        self.note("tidy", days)

    async def until_seen(self, *wanted: tuple[Any, ...]) -> None:
        def all_are() -> bool:
            return all(one in self.seen for one in wanted)

        await wait_until_async(all_are, f"{wanted} are among {self.seen}", SOON)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def names(uri: str, jobs: Collection[Any], work: Work) -> AsyncIterator[dict[str, Any]]:
    """What the guides import, and call, on the test's collection."""
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        here = client[jobs.database.name][jobs.name]
        yield {
            "uri": uri,
            "AsyncMongoClient": lambda _uri: SimpleNamespace(shop=SimpleNamespace(jobs=here)),
            "MongoClient": lambda _uri: SimpleNamespace(shop=SimpleNamespace(jobs=jobs)),
            "here": here,
            "MongoQueue": MongoQueue,
            "Worker": lambda collection, **settings: Worker(
                collection, backoff=Backoff(initial=0.01), **settings
            ),
            "Job": Job,
            "Retry": Retry,
            "emails": MongoQueue(jobs),
            "send_mail": work.send_mail,
            "remove_older_than": work.remove_older_than,
            "shrink": lambda path, width: work.note(path, width)[0] + f".{width}",
            "write_report": lambda days: work.note("report", days),
            "print": work.note,
        }


@asynccontextmanager
async def running(names: dict[str, Any]) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await names["worker"].run(handle_signals=False, task_status=task_status)

        await tasks.start(run)
        yield
        names["worker"].stop()


async def run_here(code: str, names: dict[str, Any]) -> None:
    await anyio.to_thread.run_sync(exec, code, names)


@pytest.fixture
def of_tasks(names: dict[str, Any]) -> dict[str, Any]:
    """What the guide on tasks defines."""
    there = "AsyncMongoClient(connection_uri()).get_default_database().jobs"
    assert there in WORK
    for code in (WORK.replace(there, "here"), ALIASES, AT_TIMES.replace("every=3600", "every=1")):
        exec(code, names)
    return names


async def test_the_calls_of_the_guide_run(of_tasks: dict[str, Any], work: Work) -> None:
    async with running(of_tasks):
        await run_here(PUTS, of_tasks)
        await run_here(STUBS, of_tasks)

        assert of_tasks["small"] == "d.png.20"
        await work.until_seen(
            ("mail", "ada", "welcome_fr.txt"),
            *(("b.png", 100), ("c.png", 100), ("d.png", 20), ("f.png", 100), ("e.png", 300)),
            ("tidy", 30),
        )


async def test_jobs_of_the_former_names_of_the_guide_run(
    of_tasks: dict[str, Any], work: Work
) -> None:
    exec("from streamqueue import Task", of_tasks)
    async with running(of_tasks):
        await run_here('emails.put(Task("hello").call(name="bob"))', of_tasks)

        await work.until_seen(("mail", "bob", "salute.txt"))


async def test_the_application_that_was_celerys_runs(names: dict[str, Any], work: Work) -> None:
    names["send_mail"] = work.send_mail_once_it_can
    work.fails = 1
    shop = SHOP.replace('"0 3 * * *", timezone="Europe/Berlin"', "every=1")
    exec(shop.replace("Retry(10,", "Retry(0.01,"), names)
    async with running(names):
        await run_here(WEB.replace("delay=5", "delay=0.1"), names)

        await work.until_seen(("a.png", 300), ("b.png.100",), ("report", 30))
        await wait_until_async(lambda: work.seen.count(("mail", "ada")) == 2, "a second try", SOON)


def test_the_rule_of_the_guide_is_one() -> None:
    assert '"0 3 * * *", timezone="Europe/Berlin"' in SHOP


@pytest.mark.parametrize("word", ["resize", "welcome", "report"])
def test_each_task_stands_in_both_applications(word: str) -> None:
    was, _, is_ = (GUIDES / "celery.md").read_text().partition("## As it is")

    assert f"def {word}(" in was
    assert f"def {word}(" in is_
