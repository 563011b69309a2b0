"""Puts of one key that meet: one job, whoever comes first."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from anyio import create_task_group
from pymongo.synchronous.collection import Collection

from streamqueue import DuplicateJob
from tests.contract.shells import Shell
from tests.contract.test_queue_unique import ALL

PROCESSES = 8
PUTS = 1000

PROGRAM = """
import sys
from pymongo import MongoClient
from streamqueue import DuplicateJob, MongoQueue

uri, database, puts = sys.argv[1:]
ids = {}
with MongoClient(uri) as client:
    queue = MongoQueue(client[database].jobs)
    queue.size()
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(int(puts)):
        for how in ("raise", "skip", "replace", "earlier"):
            try:
                job_id = queue.put({"n": n}, key=how, on_conflict=how)
            except DuplicateJob as error:
                job_id = error.job_id
            ids.setdefault(how, set()).add(str(job_id))
print(*(f"{how}:{job_id}" for how, found in ids.items() for job_id in found), flush=True)
"""


@pytest.mark.parametrize("on_conflict", ALL)
async def test_of_puts_that_meet_one_is_there(
    shell: Shell, jobs: Collection[Any], on_conflict: str
) -> None:
    queues = [shell.queue() for _ in range(8)]
    await queues[0].put({}, key="other")
    ids: set[Any] = set()

    async def put(queue: Any) -> None:
        for _ in range(3):
            try:
                ids.add(await queue.put({}, key="k", on_conflict=on_conflict))
            except DuplicateJob as error:
                ids.add(error.job_id)

    async with create_task_group() as tasks:
        for queue in queues:
            tasks.start_soon(put, queue)

    assert [job["_id"] for job in jobs.find({"key": "k"})] == list(ids)


@pytest.mark.parametrize("on_conflict", ALL)
async def test_of_many_puts_that_meet_there_is_one_a_key(
    shell: Shell, jobs: Collection[Any], on_conflict: str
) -> None:
    queues = [shell.queue() for _ in range(4)]
    await queues[0].put({}, key="other")
    keys = [str(n) for n in range(20)]

    async def put(queue: Any) -> None:
        try:
            await queue.put_many([{}] * len(keys), keys=keys, on_conflict=on_conflict)
        except DuplicateJob:
            pass

    async with create_task_group() as tasks:
        for queue in queues:
            tasks.start_soon(put, queue)

    assert sorted(job["key"] for job in jobs.find({"key": {"$ne": "other"}})) == sorted(keys)


@pytest.mark.slow
def test_a_thousand_puts_of_eight_processes_are_one_job(jobs: Collection[Any], uri: str) -> None:
    arguments = [sys.executable, "-c", PROGRAM, uri, jobs.database.name, str(PUTS // PROCESSES)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    programs: list[Any] = [subprocess.Popen(arguments, **pipes) for _ in range(PROCESSES)]
    try:
        for program in programs:
            assert program.stdout.readline() == "ready\n"
        said = [program.communicate("go\n", timeout=300)[0] for program in programs]
    finally:
        for program in programs:
            program.kill()

    there = {f"{job['key']}:{job['_id']}" for job in jobs.find()}
    assert len(there) == len(ALL)
    assert {word for words in said for word in words.split()} == there
