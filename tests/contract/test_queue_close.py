"""Closing a queue ends what waits on it, whatever that is doing.

Law: going down is graceful.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from tests.contract.looks import open_streams
from tests.contract.waiters import WAIT, Waiter, waiting
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import STREAM_APP

SLOW = {"blockConnection": True, "blockTimeMS": 400}


@pytest.fixture(scope="module")
def contract_collection(client: MongoClient[Any]) -> Iterator[Collection[Any]]:
    """One of its own: the driver believes that a read which failed has closed the server's cursor,
    but a failpoint has not."""
    name = f"test_{secrets.token_hex(6)}"
    yield client[name].jobs
    client.drop_database(name)


async def iterate(queue: Any) -> list[Any]:
    """Take all jobs there are until the queue is closed."""
    async with aclosing(aiter(queue)) as jobs:
        try:
            return [job async for job in jobs]
        except RuntimeError as stopped:  # how a thread says that an iterator is at its end
            assert isinstance(stopped.__cause__, StopIteration)  # noqa: PT017
            return []


WAITS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "next": lambda queue: queue.next(wait=WAIT),
    "claim": lambda queue: queue.claim(3, wait=WAIT),
    "iteration": iterate,
}
every_wait = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)


@every_wait
async def test_a_close_during_the_first_look_of_a_wait_ends_it(
    queue: Any, client: MongoClient[Any], wait: Callable[[Any], Awaitable[Any]]
) -> None:
    await queue.size()
    waiter = Waiter()

    async with anyio.create_task_group() as tasks:
        with failing(client, "find", app=None, **SLOW) as slow:
            tasks.start_soon(waiter.run, lambda: wait(queue))
            await wait_until_async(slow.hits, "it looks")
            await queue.close()
        assert not await waiter.soon()


async def test_a_close_during_the_opening_of_the_stream_ends_the_wait_and_leaves_no_stream(
    queue: Any, client: MongoClient[Any], jobs: Collection[Any]
) -> None:
    waiter = Waiter()

    async with anyio.create_task_group() as tasks:
        with failing(client, "aggregate", app=STREAM_APP, **SLOW) as slow:
            tasks.start_soon(waiter.run, lambda: queue.next(wait=WAIT))
            await wait_until_async(slow.hits, "it opens the stream")
            await queue.close()
            assert await waiter.soon() is None

    await wait_until_async(lambda: open_streams(jobs) == 0, "the server closed the stream")


async def test_a_close_during_a_pause_between_two_tries_ends_the_wait(
    queue: Any, client: MongoClient[Any]
) -> None:
    """Without the rights somebody has to give them back: that pause is half a minute."""
    await queue.next(wait=0.05)
    waiter = Waiter()

    async with anyio.create_task_group() as tasks:
        with failing(client, "getMore", "aggregate", app=STREAM_APP, errorCode=13):
            tasks.start_soon(waiter.run, lambda: queue.next(wait=WAIT))
            await wait_until_async(lambda: queue._doorbell.broken, "it was refused")
            await queue.close()
            assert await waiter.soon() is None


async def test_a_close_ends_all_who_wait_and_the_next_ones_wait_again(
    queue: Any, jobs: Collection[Any]
) -> None:
    async with waiting(jobs, *[lambda: queue.next(wait=WAIT)] * 3) as waiters:
        await queue.close()
        assert [await waiter.soon() for waiter in waiters] == [None] * 3

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        await queue.put({"n": 1})
        job = await waiter.soon()

    assert job.data == {"n": 1}


async def test_two_closes_at_once_both_return_and_leave_no_stream(
    queue: Any, jobs: Collection[Any]
) -> None:
    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        async with anyio.create_task_group() as closing:
            closing.start_soon(queue.close)
            closing.start_soon(queue.close)
        await waiter.soon()

    await wait_until_async(lambda: open_streams(jobs) == 0, "the server closed the stream")


async def test_a_wait_that_is_cancelled_leaves_a_stream_that_others_can_use(
    async_client: AsyncMongoClient[Any], jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    queue = AsyncMongoQueue(async_client[jobs.database.name].jobs)
    async with queue, waiting(jobs, lambda: queue.next(wait=WAIT)) as [other]:
        for _ in range(5):  # whoever of the two has the turn
            with anyio.move_on_after(0.1):
                await queue.next(wait=WAIT)
        await queue.put({"n": 1})
        job = await other.soon()

    assert job.data == {"n": 1}
    assert not caplog.records


# In processes of their own: what interrupts the main thread, and forks.

PROGRAM = """
import os, signal, sys, threading
from pymongo import MongoClient
from streamqueue import ForkedProcess, MongoQueue

queue = MongoQueue(MongoClient(sys.argv[1])[sys.argv[2]].jobs)

def interrupt(handler, seconds):
    signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds)

"""
INTERRUPTED = {
    "iteration": "for job in queue: pass",
    "next": "assert queue.next(wait=60) is None",
    "in a pause": "queue._doorbell.pace._again_at = float('inf')\nassert not queue.next(wait=60)",
}


def run_program(uri: str, jobs: Collection[Any], program: str) -> None:
    # (From 3.12 on Python warns of a fork beside threads, and pymongo always has some.)
    python = [sys.executable, "-W", "ignore::DeprecationWarning"]
    finished = subprocess.run(
        [*python, "-c", PROGRAM + program, uri, jobs.database.name],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("wait", INTERRUPTED.values(), ids=INTERRUPTED)
def test_a_signal_handler_may_close_the_queue_whose_wait_it_interrupts(
    uri: str, jobs: Collection[Any], wait: str
) -> None:
    run_program(uri, jobs, f"queue.size()\ninterrupt(queue.close, 0.4)\n{wait}\nos._exit(0)")


def test_a_signal_handler_may_close_a_queue_that_another_thread_waits_on(
    uri: str, jobs: Collection[Any]
) -> None:
    run_program(
        uri,
        jobs,
        "waiter = threading.Thread(target=queue.next, args=(60,))\n"
        "waiter.start()\n"
        "interrupt(queue.close, 0.4)\n"
        "assert queue.next(60) is None\n"
        "waiter.join(5)\n"
        "os._exit(waiter.is_alive())",
    )


def test_a_wait_that_ctrl_c_interrupted_can_be_repeated(uri: str, jobs: Collection[Any]) -> None:
    run_program(
        uri,
        jobs,
        "def ctrl_c(): raise KeyboardInterrupt\n"
        "interrupt(ctrl_c, 0.4)\n"
        "try: queue.next(wait=60)\n"
        "except KeyboardInterrupt: pass\n"
        "queue.put({'n': 1}, delay=0.1)\n"
        "assert queue.next(wait=5).data == {'n': 1}\n"
        "queue.close()\n"
        "os._exit(0)",
    )


def test_a_forked_child_may_close_the_queue_on_which_a_thread_of_its_parent_waits(
    uri: str, jobs: Collection[Any]
) -> None:
    run_program(
        uri,
        jobs,
        "found = []\n"
        "waiter = threading.Thread(target=lambda: found.append(queue.next(10)))\n"
        "waiter.start()\n"
        "waiter.join(0.4)  # it waits by now\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(5)\n"
        "    queue.close()\n"
        "    try: queue.next(wait=60)\n"
        "    except ForkedProcess: os._exit(0)\n"
        "    os._exit(1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "queue.put({'n': 1})\n"
        "waiter.join(5)\n"
        "assert found[0].data == {'n': 1}\n"
        "os._exit(0)",
    )


def test_a_forked_child_that_closes_the_queue_leaves_its_parent_the_stream(
    uri: str, jobs: Collection[Any]
) -> None:
    """The child could not even tell the server from whom it is that it takes the stream away."""
    run_program(
        uri,
        jobs,
        "queue.next(wait=0.1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    queue.close()\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "queue.put({'n': 1}, delay=0.1)\n"
        "assert queue.next(wait=5).data == {'n': 1}\n"
        "os._exit(0)  # and nothing was logged",
    )
