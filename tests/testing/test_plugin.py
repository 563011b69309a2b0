"""The pytest plugin, in the tests of somebody's project."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from pymongo import MongoClient

from tests.testing.users import Project

NO_ASYNCIO = ("-p", "no:asyncio")

PLAIN = """
import asyncio
from streamqueue import AsyncMongoQueue, MongoQueue

def test_blocking(streamqueue_collection):
    queue = MongoQueue(streamqueue_collection)
    queue.put({"n": 1})
    assert queue.next().data == {"n": 1}

def test_both_are_one_collection(streamqueue_collection, streamqueue_jobs):
    async def put():
        async with AsyncMongoQueue(streamqueue_jobs) as queue:
            await queue.put({"n": 2})
    asyncio.run(put())
    assert MongoQueue(streamqueue_collection).next().data == {"n": 2}

def test_of_another_test_nothing_is_left(streamqueue_collection):
    assert MongoQueue(streamqueue_collection).size() == 0

def test_one_that_is_not_used(streamqueue_jobs):
    assert streamqueue_jobs.name == "jobs"
"""

ASYNC = """
import gc
import pytest
from streamqueue import AsyncMongoQueue, Worker
from streamqueue.testing import run_until_empty
from pymongo import AsyncMongoClient

worker = Worker(AsyncMongoClient("mongodb://localhost/").shop.jobs)
seen = []

@worker.handler("default")
async def handle(job):
    seen.append(job.data["n"])

@pytest.fixture
async def queue(streamqueue_jobs):
    async with AsyncMongoQueue(streamqueue_jobs) as queue:
        yield queue
    assert await streamqueue_jobs.count_documents({"state": "ready"}) == 0

@pytest.mark.parametrize("n", range(3))
async def test_a_job_runs(streamqueue_jobs, queue, n):
    await queue.put({"n": n})
    assert (await run_until_empty(worker, streamqueue_jobs)).done == 1
    assert seen[-1] == n

class TestClass:
    async def test_without_a_fixture_between(self, streamqueue_jobs):
        async with AsyncMongoQueue(streamqueue_jobs) as queue:
            await queue.put({"n": 7})
        assert (await run_until_empty(worker, streamqueue_jobs)).done == 1

def test_nothing_is_left_open():
    gc.collect()
"""


def passed(done: subprocess.CompletedProcess[str], count: int) -> bool:
    assert f"{count} passed" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
    return "warning" not in done.stdout


def test_plain_tests_have_a_collection_each(project: Project) -> None:
    project.write("test_plain.py", PLAIN)

    assert passed(project.test(*NO_ASYNCIO), 4)


@pytest.mark.slow
def test_async_tests_run_with_anyio(project: Project) -> None:
    project.write("pytest.ini", "[pytest]\nanyio_mode = auto\n")
    project.write(
        "conftest.py",
        "import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n",
    )
    project.write("test_async.py", ASYNC)

    assert passed(project.test(*NO_ASYNCIO), 5)


@pytest.mark.few(1)
@pytest.mark.parametrize("scope", ["function", "session"])
def test_async_tests_run_with_pytest_asyncio(project: Project, scope: str) -> None:
    pytest.importorskip("pytest_asyncio")
    project.write(
        "pytest.ini",
        "[pytest]\nasyncio_mode = auto\n"
        f"asyncio_default_fixture_loop_scope = {scope}\n"
        f"asyncio_default_test_loop_scope = {scope}\n",
    )
    project.write("test_async.py", ASYNC)

    assert passed(project.test(), 5)


@pytest.mark.slow
def test_tests_run_in_parallel(project: Project) -> None:
    project.write("test_plain.py", PLAIN)
    project.write("test_more.py", PLAIN)

    assert passed(project.test(*NO_ASYNCIO, "-n", "2"), 8)


def test_the_database_of_a_test_is_dropped(
    project: Project, client: MongoClient[dict[str, Any]]
) -> None:
    project.write(
        "test_name.py",
        "import pathlib\ndef test_name(streamqueue_jobs, streamqueue_collection):\n"
        "    streamqueue_collection.insert_one({})\n"
        "    pathlib.Path('name').write_text(streamqueue_jobs.database.name)\n",
    )

    assert passed(project.test(*NO_ASYNCIO), 1)

    name = (project.folder / "name").read_text()
    assert name.startswith("streamqueue_test_")
    assert name not in client.list_database_names()


@pytest.mark.slow
def test_a_server_is_started_when_none_is_named(project: Project) -> None:
    project.write("test_plain.py", PLAIN)

    assert passed(project.test(*NO_ASYNCIO, STREAMQUEUE_TEST_URI=""), 4)


@pytest.mark.slow
def test_where_no_server_can_be_started_a_sentence_says_what_to_do(project: Project) -> None:
    project.write("test_plain.py", PLAIN)

    done = project.test(
        *NO_ASYNCIO, "-k", "blocking", STREAMQUEUE_TEST_URI="", STREAMQUEUE_MONGOD="/no/such/mongod"
    )

    assert "Or name a replica set in STREAMQUEUE_TEST_URI" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_a_run_that_asks_for_no_fixture_loads_neither_pymongo_nor_a_worker(
    project: Project,
) -> None:
    project.write(
        "test_other.py",
        "import sys\n"
        "def test_loaded():\n"
        "    assert 'streamqueue.testing.plugin' in sys.modules\n"
        "    loaded = {'pymongo', 'bson', 'prometheus_client', 'streamqueue.worker'}\n"
        "    assert not loaded & sys.modules.keys()\n",
    )

    assert passed(project.test(*NO_ASYNCIO, "-p", "no:anyio"), 1)


@pytest.mark.slow
def test_the_plugin_can_be_left_out_by_its_name(project: Project) -> None:
    project.write("test_plain.py", PLAIN)

    done = project.test(*NO_ASYNCIO, "-p", "no:streamqueue")

    assert "fixture 'streamqueue_collection' not found" in done.stdout
