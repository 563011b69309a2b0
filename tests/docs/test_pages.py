"""Each block of Python, and each console, of the README and of the pages in ``docs/`` runs.

From the first line of a page to its last, in one folder and with one database, as a reader would
do it. What a guide has a test of its own for, which names it, is left to that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, Limit, MongoQueue, Worker
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of, has_its_own_test, name_of
from tests.docs.session import Session, Surroundings
from tests.waiting import wait_until_async

LANGUAGES = {"python", "console"}
AN_ID = ObjectId("6b05640f5d3001cc2b552327")
EMAILS = next(block.text for block in blocks_of(ROOT / "README.md") if block.file == "tasks.py")
PRICES = """
from pymongo import AsyncMongoClient
from streamqueue import Worker, connection_uri

worker = Worker(AsyncMongoClient(connection_uri()).get_default_database().jobs, keep=600)

@worker.handler("prices")
async def price(job):
    return 3

@worker.handler("orders")
async def order(job):
    await job.progress(40, "packing")
"""
FEW = {"for job in emails:": "for job in __import__('itertools').islice(emails, 2):"}

SURROUNDINGS = {
    "docs/guides/handlers.md": Surroundings(
        before="""
from pymongo import AsyncMongoClient
from streamqueue import AsyncJob, Worker
worker = Worker(AsyncMongoClient("mongodb://localhost/?replicaSet=rs0").shop.jobs)
""",
        afresh=True,
    ),
    "docs/guides/operating.md": Surroundings(files={"tasks.py": EMAILS}),
    "docs/guides/commands.md": Surroundings(files={"tasks.py": EMAILS}),
    "docs/guides/celery.md": Surroundings(files={"shop.py": PRICES}),
    "docs/guides/testing.md": Surroundings(files={"shop.py": PRICES}),
    "docs/guides/queues.md": Surroundings(edits=FEW),
    "docs/guides/results.md": Surroundings(
        files={"tasks.py": PRICES}, worker="streamqueue worker tasks:worker"
    ),
}
"""What a page takes for granted, besides a server."""


async def fill(page: str, uri: str, jobs: Collection[Any]) -> None:
    """Put the jobs that a page speaks of."""
    emails = MongoQueue(jobs, name="emails", max_attempts=1)
    if page == "docs/guides/pausing.md":
        emails.put_many([{}] * 42)
        emails.put_many([{}] * 3, delay=3600)
    elif page == "docs/guides/testing.md":
        MongoQueue(jobs, name="prices").put({}, delay=3600)
    elif page == "docs/guides/commands.md":
        emails.put_many([{}] * 3)
        while job := emails.next():
            job.error("ConnectError: away")
        emails.put({"to": "ada@example.org"}, job_id=AN_ID)
    elif page == "docs/guides/limits.md":
        await declare(uri, jobs, Limit(running=5, rate=50))
        polls = MongoQueue(jobs, name="polls")
        polls.put_many([{}] * 43)
        assert len([polls.next(), polls.next()]) == 2
    elif page == "docs/guides/from-polling.md":
        tasks = jobs.database.tasks
        tasks.insert_many([{"status": "new", "what": what, "created": what} for what in "abc"])


async def declare(uri: str, jobs: Collection[Any], limit: Limit) -> None:
    """Have a worker say of the queue `polls` what the guide's code says."""
    async with AsyncMongoClient(uri) as client, anyio.create_task_group() as tasks:
        worker = Worker(client[jobs.database.name].jobs)

        @worker.handler("polls", limits=limit)
        async def poll(job: AsyncJob) -> None: ...

        await tasks.start(partial(worker.run, handle_signals=False))
        worker.stop()


RUN = [page for page in PAGES if LANGUAGES & {block.language for block in blocks_of(page)}]
TESTED_BELOW = {"transactions.md", "from-polling.md", "web-applications.md", "cpu-bound.md"}


@pytest.fixture
async def session(
    request: pytest.FixtureRequest, tmp_path: Path, uri: str, jobs: Collection[Any]
) -> AsyncIterator[Session]:
    """Whoever follows the page that the test is about, and has not begun."""
    page = name_of(request.param)
    address = uri.replace("/?", f"/{jobs.database.name}?")
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("STREAMQUEUE_URI", address)
        session = Session(tmp_path, address, SURROUNDINGS.get(page, Surroundings()))
        await fill(page, uri, jobs)
        await session.begin()
        try:
            yield session
        finally:
            await session.end()


async def follow(session: Session, page: Path) -> None:
    """Do all that the page says."""
    left_out = {language for language in LANGUAGES if has_its_own_test(page, language)}
    for block in blocks_of(page):
        if block.language in LANGUAGES - left_out:
            try:
                await session.follow(block)
            except BaseException as error:
                error.add_note(f"{name_of(page)}:{block.line}")
                raise


def following(*pages: Path) -> pytest.MarkDecorator:
    """Run a test with a session for each page."""
    given = [(page, page) for page in pages]
    return pytest.mark.parametrize(
        ("session", "page"), given, ids=map(name_of, pages), indirect=["session"]
    )


GUIDES = ROOT / "docs" / "guides"


@following(*(page for page in RUN if page.name not in TESTED_BELOW | {"start.md"}))
async def test_a_page_does_what_it_says(session: Session, page: Path) -> None:
    await follow(session, page)


@following(ROOT / "docs" / "start.md")
async def test_who_starts_is_greeted(session: Session, page: Path) -> None:
    await follow(session, page)

    assert session.printed == ["Hello ada"]


@following(GUIDES / "cpu-bound.md")
async def test_what_computes_is_done_in_a_child(session: Session, page: Path) -> None:
    await follow(session, page)

    assert session.printed == ["120 bytes"]
    assert await session.names["handle"](SimpleNamespace(data={"text": "abc"}), len) == 3


@following(GUIDES / "transactions.md")
async def test_an_order_has_its_invoice_once(
    session: Session, page: Path, jobs: Collection[Any]
) -> None:
    await follow(session, page)

    shop, queue = jobs.database, MongoQueue(jobs, name="invoices")
    assert (shop.orders.count_documents({}), shop.invoices.count_documents({})) == (1, 1)
    assert queue.size() == 0

    await anyio.to_thread.run_sync(session.names["order"], ["a hat"])  # for the worker

    await wait_until_async(lambda: shop.invoices.count_documents({}) == 2, "the invoice", 30)
    await wait_until_async(lambda: queue.size() == 0, "the job is completed")


@following(GUIDES / "transactions.md")
async def test_an_attempt_that_comes_again_pays_under_the_same_key_and_reminds_once(
    session: Session, page: Path, jobs: Collection[Any]
) -> None:
    for block in blocks_of(page):
        if block.language == "python" and not block.file:
            await session.follow(block)
    queue = MongoQueue(jobs, name="reminders")
    queue.put({"to": "ada", "amount": 3})
    paid, reminded = [], []

    for _ in range(2):
        [job] = queue.claim(1)
        session.names["pay"](job, lambda path, body, headers: paid.append(headers))
        session.names["remind"](job, reminded.append)
        job.release()

    assert paid[0] == paid[1] == {"Idempotency-Key": str(job.id)}
    assert reminded == ["ada"]


@following(GUIDES / "from-polling.md")
async def test_what_waited_in_the_old_collection_is_moved_and_done(
    session: Session, page: Path, jobs: Collection[Any]
) -> None:
    await follow(session, page)

    assert session.printed == ["3 tasks were moved"]
    queue = MongoQueue(jobs, name="tasks")
    await wait_until_async(lambda: queue.size() == 0, "the worker has done all", 30)
    assert session.names["move"](jobs.database.tasks, queue) == 0


@following(GUIDES / "web-applications.md")
async def test_an_order_that_comes_over_http_is_a_job(
    session: Session, page: Path, jobs: Collection[Any]
) -> None:
    await follow(session, page)

    command = 'python -c \'import views; print(views.order({"items": []})["order"])\''
    await session.follow(Block("console", f"$ {command}\n{AN_ID}\n", 0))

    orders = MongoQueue(jobs, name="orders")  # the worker inside small.py serves it
    assert await anyio.to_thread.run_sync(session.names["price"], orders, 17) is None
    await wait_until_async(lambda: orders.counts()["orders"].get("ready", 0) == 0, "all are done")
