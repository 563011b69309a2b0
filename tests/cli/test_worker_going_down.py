"""``streamqueue worker`` told to stop, whatever its handlers, its module or the server do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests.cli.supervised import Start, Supervisor
from tests.waiting import wait_until
from tests.worker.faults import failing

CUT_SHORT = 3
"""The exit code of a worker that was told to stop and left something behind."""

HANDLERS = """
import asyncio, concurrent.futures, json, os, signal, threading, time, atexit
from pymongo import AsyncMongoClient
import streamqueue.signals, streamqueue.worker.drain
from streamqueue import Worker

# Or the tests take their time.
streamqueue.worker.drain.GRACE = streamqueue.signals.GRACE = 0.5
streamqueue.signals.CLOSING = streamqueue.signals.AT_EXIT = 0.5
jobs = AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database().jobs
worker = Worker(jobs, **{"max_await": 0.1, "timeout": 2, "drain_timeout": 0.2,
                         **json.loads(os.environ.get("WORKER_SETTINGS", "{}"))})

def say(what, **more):
    os.write(1, json.dumps({"what": what, "pid": os.getpid(), **more}).encode() + b"\\n")

for_ever = threading.Event().wait
kept = []

@worker.handler("default")
async def swallows(job):
    say("started")
    while True:
        try:
            await asyncio.sleep(.2)
        except asyncio.CancelledError:
            pass

@worker.handler("waits")
async def waits(job):
    say("started")
    await asyncio.sleep(60)

@worker.handler("blocks")
def blocks(job):
    say("started")
    for_ever()

@worker.handler("spins")
async def spins(job):
    say("started")
    while True:
        pass

async def stray():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

@worker.handler("holds")
async def holds(job):
    kept.append(asyncio.create_task(stray()))
    asyncio.get_running_loop().run_in_executor(None, for_ever)
    kept.append(concurrent.futures.ThreadPoolExecutor(1))
    kept[-1].submit(for_ever)
    threading.Thread(target=for_ever, name="theirs").start()
    atexit.register(for_ever)
    await asyncio.sleep(0.1)
    say("started")
"""


@pytest.fixture
def hell(start: Start, tmp_path: Path) -> Callable[..., Supervisor]:
    """Run the worker above; keywords are its settings."""
    (tmp_path / "hell.py").write_text(HANDLERS)

    def hell(*options: str, **settings: Any) -> Supervisor:
        return start(*options, name="hell:worker", **settings)

    return hell


def give(jobs: Collection[Any], worker: Supervisor, queue: str, **payload: Any) -> None:
    """Have the worker run a job of this queue."""
    MongoQueue(jobs, name=queue).put(payload)
    worker.until_said("started", times=1)


ALONE_AND_SUPERVISED = pytest.mark.parametrize(
    "options", [(), ("--processes", "2")], ids=["alone", "supervised"]
)


@pytest.mark.few(1)
@ALONE_AND_SUPERVISED
def test_a_handler_that_swallows_its_cancellation_is_named_and_left(
    hell: Callable[..., Supervisor], jobs: Collection[Any], options: tuple[str, ...]
) -> None:
    worker = hell(*options)
    give(jobs, worker, "default")

    worker.process.send_signal(signal.SIGTERM)

    assert worker.exit_code() == CUT_SHORT
    [job] = jobs.find()
    assert f"The handler swallows of job {job['_id']} does not end" in worker.log
    assert (job["state"], job["attempts"]) == ("ready", 0)


@pytest.mark.parametrize("lost", [False, True], ids=["held", "lost"])
def test_a_blocking_handler_is_left_also_when_its_lease_is_lost(
    hell: Callable[..., Supervisor], jobs: Collection[Any], lost: bool
) -> None:
    worker = hell()
    give(jobs, worker, "blocks")
    if lost:
        jobs.update_one({}, {"$set": {"lease": "another's"}})
        wait_until(lambda: worker.logged("(Lost the lease)"), "the lease is lost")

    worker.process.send_signal(signal.SIGTERM)

    assert worker.exit_code() == CUT_SHORT


def test_a_handler_that_blocks_the_loop_does_not_outlast_its_drain(
    hell: Callable[..., Supervisor], jobs: Collection[Any]
) -> None:
    worker = hell(drain_timeout=0)
    give(jobs, worker, "spins")

    worker.process.send_signal(signal.SIGTERM)

    assert worker.exit_code() == CUT_SHORT
    assert worker.logged("(The process did not end by itself; held by the handler spins)")


def test_tasks_threads_and_exit_functions_that_do_not_end_do_not_hold_the_process(
    hell: Callable[..., Supervisor], jobs: Collection[Any]
) -> None:
    worker = hell()
    give(jobs, worker, "holds")
    wait_until(lambda: jobs.count_documents({}) == 0, "the job is complete")

    worker.process.send_signal(signal.SIGTERM)

    assert worker.exit_code(within=10) == 0
    assert worker.logged("(The process did not end by itself; held by .*the thread 'theirs')")


def test_a_third_signal_ends_it_now(hell: Callable[..., Supervisor], jobs: Collection[Any]) -> None:
    worker = hell(drain_timeout=60)
    give(jobs, worker, "spins")

    for _ in range(3):
        worker.process.send_signal(signal.SIGTERM)
        if worker.process.poll() is None:  # two at once may arrive as one
            time_for_one()

    assert worker.exit_code(within=5) == CUT_SHORT
    assert "for the third time: ended now" in worker.log


def time_for_one() -> None:
    """Let a signal arrive."""
    pause = subprocess.run([sys.executable, "-c", ""], check=True)
    assert pause.returncode == 0


def test_a_third_signal_kills_the_processes_of_a_supervisor(
    hell: Callable[..., Supervisor], jobs: Collection[Any]
) -> None:
    worker = hell("--processes", "2", drain_timeout=60)
    give(jobs, worker, "spins")

    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: worker.logged("(processes drain)"), "the first has arrived")
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: worker.logged("(processes hurry)"), "the second has arrived")
    worker.process.send_signal(signal.SIGTERM)

    assert worker.exit_code(within=10) == CUT_SHORT


def test_sighup_drains(hell: Callable[..., Supervisor], jobs: Collection[Any]) -> None:
    worker = hell()
    give(jobs, worker, "waits")

    worker.process.send_signal(signal.SIGHUP)

    assert worker.exit_code() == 0
    assert worker.logged("(Received SIGHUP)")
    assert [(job["state"], job["attempts"]) for job in jobs.find()] == [("ready", 0)]


@pytest.mark.slow
def test_a_signal_after_an_order_of_the_supervisor_hurries(
    hell: Callable[..., Supervisor], jobs: Collection[Any]
) -> None:
    worker = hell("--processes", "2", drain_timeout=60)
    pids = worker.until_ready(2)
    MongoQueue(jobs, name="waits").put_many([{} for _ in range(40)])
    worker.until_said("started", times=40)

    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: len(worker.logged("(Stopping: claiming)")) >= 2, "they drain")
    # What comes within half a second is the same order, sent to every process.
    ordered = time.monotonic()
    wait_until(lambda: time.monotonic() - ordered > 1, "it is another order")
    for pid in pids.values():
        os.kill(pid, signal.SIGTERM)

    assert worker.exit_code(within=10) == 0


# before it is ready

IMPORTS = 'print(\'{"what": "here"}\', flush=True)\nimport threading\nthreading.Event().wait()'


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_stop_while_the_module_is_imported_ends_it(
    start: Start, tmp_path: Path, how: signal.Signals
) -> None:
    (tmp_path / "slow.py").write_text(IMPORTS)
    worker = start(name="slow:worker")
    worker.until_said("here", times=1)

    worker.process.send_signal(how)

    assert worker.exit_code(within=5) == 0


def test_a_stop_while_it_waits_for_the_server_ends_it(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"mongodb://127.0.0.1:{silent.getsockname()[1]}/shop?replicaSet=rs0"
        worker = start(env={"STREAMQUEUE_URI": uri})
        silent.accept()[0].close()
        wait_until(lambda: worker.logged("(Waiting for MongoDB)"), "it waits")

        worker.process.send_signal(signal.SIGTERM)

        assert worker.exit_code(within=5) == 0


@pytest.mark.slow
def test_a_stop_while_the_stream_is_being_opened_ends_it(
    hell: Callable[..., Supervisor], client: MongoClient[Any]
) -> None:
    slow = {"blockConnection": True, "blockTimeMS": 9000}
    with failing(client, "aggregate", app="streamqueue-stream", times=1, **slow) as fault:
        worker = hell()
        wait_until(fault.hits, "the stream is being opened")

        worker.process.send_signal(signal.SIGTERM)

        assert worker.exit_code(within=5) == 0


def test_the_wait_for_a_missing_server_is_said_at_once(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    uri = f"mongodb://127.0.0.1:{port}/shop?replicaSet=rs0&serverSelectionTimeoutMS=3000"

    worker = start(env={"STREAMQUEUE_URI": uri})

    assert worker.exit_code() == 1
    waits = worker.logged(rf"(Waiting for MongoDB at 127.0.0.1:{port} for [01] s)")
    assert len(waits) == 1
    assert f"no MongoDB server answers at 127.0.0.1:{port}" in worker.log


def test_as_process_1_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    can = [unshare or "", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "true"]
    if unshare is None or subprocess.run(can, capture_output=True).returncode:
        pytest.skip("no PID namespaces here")
    (tmp_path / "slow.py").write_text(IMPORTS)
    command = [*can[:-1], sys.executable, "-m", "streamqueue", "worker", "slow:worker"]
    worker = Supervisor(command, tmp_path, {})
    try:
        worker.until_said("here", times=1)
        unshared = worker.process.pid
        [child] = Path(f"/proc/{unshared}/task/{unshared}/children").read_text().split()

        os.kill(int(child), signal.SIGTERM)

        assert worker.exit_code(within=5) == 0
    finally:
        worker.end()
