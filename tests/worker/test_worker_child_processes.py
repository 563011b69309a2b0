"""Handlers in child processes: what they get and return, and what ends them.

Laws: one holder; going down is graceful, and it does go down; a handler cannot reach its
neighbours.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, ConfigurationError, JobFailed
from streamqueue.worker.execution import processes
from tests import programs
from tests.waiting import wait_until, wait_until_async
from tests.worker.programs import in_child, writes_at_import
from tests.worker.started import StartedWorker, WorkerStarter

AT_ONCE = Backoff(initial=0.001, maximum=0.001)
LONG = 60.0
"""Seconds that a child may take to start on a machine that does much else."""


@pytest.fixture
def run(start: WorkerStarter) -> Any:
    """Starts a worker whose handler runs in child processes."""

    async def begin(
        handler: Any, time_limit: float | None = None, **settings: Any
    ) -> StartedWorker:
        worker = start.prepare(**{"backoff": AT_ONCE, **settings})
        worker.worker.handler("default", time_limit=time_limit, run_in="process")(handler)
        await start.begin(worker)
        return worker

    return begin


class File:
    """Where handlers in other processes write what they have seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    async def until_lines(self, count: int) -> list[str]:
        await wait_until_async(lambda: len(self.lines()) >= count, f"{count} lines", LONG)
        return self.lines()


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "seen")


def lives(pid: str | int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def children() -> list[str]:
    """Return the processes of this one's pool."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"\nPPid:\t{os.getpid()}\n" in (path / "status").read_text()
            if ours and b"anyio.to_process" in (path / "cmdline").read_bytes():
                found.append(path.name)
        except OSError:
            continue
    return found


def last_error(jobs: Collection[Any]) -> str:
    [job] = jobs.find()
    return str(job["last_error"])


async def test_a_function_gets_the_payload_alone_and_its_return_completes_the_job(
    run: Any, queue: AsyncMongoQueue, file: File
) -> None:
    kinds = {
        "id": ObjectId(),
        "many": [Int64(2**40), Decimal128("1.5"), b"bytes", None],
    }
    worker = await run(in_child.notes)
    await queue.put({"file": str(file.path), "n": kinds})

    await worker.until_outcomes(LONG, completed=1)
    [line] = file.lines()
    pid, _, seen = line.partition(" ")
    assert (pid != str(os.getpid()), seen) == (True, repr(kinds))


async def test_what_a_function_returns_is_the_result_of_its_job(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = await run(in_child.adds, keep=60)
    await queue.put({"numbers": [1, 2, 39]})

    await worker.until_outcomes(LONG, completed=1)
    [job] = jobs.find()
    assert (job["state"], job["result"]) == ("done", {"sum": 42})


async def test_what_a_function_raises_is_stored_with_its_traceback(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = await run(in_child.raises)
    await queue.put({}, max_attempts=1)

    await worker.until_outcomes(LONG, dead=1)
    assert "in raises" in last_error(jobs)
    assert last_error(jobs).splitlines()[-1] == "KeyError: 'no such thing'"


async def test_a_function_may_say_how_its_attempt_ends(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = await run(in_child.discards)
    await queue.put({})

    await worker.until_outcomes(LONG, dead=1)
    assert last_error(jobs) == "of no use"


@pytest.mark.few(1)
@pytest.mark.parametrize("function", [in_child.leaves_once, in_child.crashes_once])
async def test_a_child_that_ends_is_a_failed_attempt_and_the_next_one_runs(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any], file: File, function: Any
) -> None:
    worker = await run(function, backoff=Backoff(initial=LONG))
    await queue.put({"file": str(file.path)})

    await worker.until_outcomes(LONG, retried=1)
    assert "the child process ended before the handler" in last_error(jobs)
    jobs.update_many({}, {"$set": {"run_at": datetime(2026, 1, 1, tzinfo=UTC)}})
    await worker.until_outcomes(LONG, retried=1, completed=1)


async def test_a_child_that_ends_is_a_failed_attempt_whatever_it_has_forked_goes_on(
    run: Any, queue: AsyncMongoQueue, file: File
) -> None:
    worker = await run(in_child.forks_and_leaves, backoff=Backoff(initial=LONG))
    await queue.put({"file": str(file.path)})
    [forked] = await file.until_lines(1)

    try:
        await worker.until_outcomes(LONG, retried=1)
    finally:
        os.kill(int(forked), signal.SIGKILL)


async def test_a_forked_process_that_returns_too_does_not_answer_for_the_child(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any], file: File
) -> None:
    worker = await run(in_child.forks_and_both_return, keep=60, concurrency=1)
    await queue.put_many([{"file": str(file.path)}] * 2)

    await worker.until_outcomes(LONG, completed=2)
    assert [job["result"] for job in jobs.find()] == ["of the child"] * 2


async def test_what_a_function_writes_and_reads_does_not_come_between_worker_and_child(
    run: Any, queue: AsyncMongoQueue, file: File
) -> None:
    worker = await run(in_child.prints, concurrency=1)
    await queue.put_many([{"file": str(file.path)}] * 2)

    await worker.until_outcomes(LONG, completed=2)
    assert file.lines() == ["b''"] * 2


async def test_what_a_module_writes_while_it_is_imported_does_not_come_between_them_either(
    run: Any, queue: AsyncMongoQueue
) -> None:
    worker = await run(writes_at_import.returns)
    await queue.put({})

    await worker.until_outcomes(LONG, completed=1)


UNSTORABLE = [
    (in_child.returns_a_lock, "cannot be stored as BSON: it holds a _thread.lock, at result"),
    (in_child.returns_what_raises, "cannot be stored: RuntimeError: no values"),
]


@pytest.mark.few(1)
@pytest.mark.parametrize(("function", "why"), UNSTORABLE)
async def test_a_result_that_cannot_be_stored_makes_a_job_that_is_kept_dead_at_once(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any], function: Any, why: str
) -> None:
    worker = await run(function, keep=60)
    await queue.put({})

    await worker.until_outcomes(LONG, dead=1)
    assert last_error(jobs) == f"this result {why}"


@pytest.mark.few(1)
@pytest.mark.parametrize("function", [function for function, _ in UNSTORABLE])
async def test_a_result_that_cannot_be_stored_and_nobody_keeps_does_not_matter(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any], function: Any
) -> None:
    worker = await run(function)
    await queue.put({})

    await worker.until_outcomes(LONG, completed=1)
    assert jobs.count_documents({}) == 0


async def test_a_result_that_cannot_be_stored_makes_a_job_that_is_awaited_dead_at_once(
    run: Any, queue: AsyncMongoQueue
) -> None:
    await run(in_child.returns_a_lock)

    with pytest.raises(JobFailed, match=r"it holds a _thread\.lock, at result"):
        await queue.request({}, timeout=LONG)


async def test_jobs_run_beside_each_other_in_as_many_children_as_there_are_slots(
    run: Any, queue: AsyncMongoQueue, file: File
) -> None:
    worker = await run(in_child.sleeps, concurrency=2)
    await queue.put_many([{"file": str(file.path), "seconds": 0.5}] * 4)

    await worker.until_outcomes(LONG, completed=4)
    assert len(set(file.lines())) == 2


# what ends a child


async def test_a_time_limit_kills_the_child_and_the_next_attempt_runs(
    run: Any, queue: AsyncMongoQueue, file: File
) -> None:
    worker = await run(in_child.lasts_once, 0.5)
    await queue.put({"file": str(file.path)})

    await worker.until_outcomes(LONG, retried=1, completed=1)
    first, second = file.lines()
    assert (first != second, lives(first)) == (True, False)


async def test_a_limit_that_is_shorter_than_any_start_leaves_no_child_behind(
    run: Any, queue: AsyncMongoQueue, file: File
) -> None:
    worker = await run(in_child.lasts, 0.001, concurrency=1, max_attempts=1)
    await queue.put_many([{"file": str(file.path)}] * 4)

    await worker.until_outcomes(LONG, dead=4)
    await wait_until_async(lambda: not children(), "all are gone")


async def test_a_lost_lease_kills_the_child(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any], file: File
) -> None:
    worker = await run(in_child.lasts, timeout=1.5)
    await queue.put({"file": str(file.path)})
    [pid] = await file.until_lines(1)

    jobs.update_many({}, {"$set": {"lease": b"somebody else's"}})

    await worker.until_outcomes(lease_lost=1)
    assert not lives(pid)


async def test_the_end_of_the_drain_time_kills_the_child_and_releases_its_job(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any], file: File
) -> None:
    worker = await run(in_child.lasts, drain_timeout=0)
    await queue.put({"file": str(file.path)})
    [pid] = await file.until_lines(1)

    await worker.stop()

    [job] = jobs.find()
    assert (job["state"], job["attempts"], lives(pid), worker.worker.left) == ("ready", 0, False, 0)


class Program:
    """A worker in a process, and a group, of its own."""

    def __init__(self, file: str, arguments: list[Any]) -> None:
        told = json.dumps(arguments)
        self.process = programs.Popen(
            [sys.executable, str(Path(in_child.__file__).with_name(file)), told],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ARGUMENTS": told},
            start_new_session=True,
        )

    def signal_all(self, number: int) -> None:
        """Send a signal to it and its children, as a terminal and service managers do."""
        os.killpg(self.process.pid, number)


@pytest.fixture
def spawn_parent(uri: str, jobs: Collection[Any]) -> Any:
    programs = []

    def spawn(*arguments: Any, file: str = "parent.py") -> Program:
        programs.append(Program(file, [uri, jobs.database.name, jobs.name, *arguments]))
        return programs[-1]

    yield spawn
    for program in programs:
        try:
            program.signal_all(signal.SIGKILL)
        except ProcessLookupError:
            pass
        program.process.wait()


async def test_a_busy_child_dies_with_its_worker(
    spawn_parent: Callable[..., Program], queue: AsyncMongoQueue, file: File
) -> None:
    program = spawn_parent("lasts")
    await queue.put({"file": str(file.path)})
    [pid] = await file.until_lines(1)

    program.process.kill()

    await wait_until_async(lambda: not lives(pid), "it has ended")


async def test_a_signal_to_the_whole_group_lets_a_child_finish(
    spawn_parent: Callable[..., Program],
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    file: File,
) -> None:
    program = spawn_parent("sleeps")
    await queue.put({"file": str(file.path), "seconds": 1})
    await file.until_lines(1)

    program.signal_all(signal.SIGINT)

    assert program.process.wait(LONG) == 0
    assert jobs.count_documents({}) == 0


def test_a_child_notices_that_the_other_end_of_its_pipe_is_closed() -> None:
    """As it does where the system does not end it with its parent."""
    source = "from streamqueue.worker.execution.processes import end_with_pipe; end_with_pipe(0)"
    process = programs.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"what is sent is no reason to end")
    process.stdin.flush()

    process.stdin.close()

    assert wait_until(lambda: process.poll() is not None, "it ends", LONG)


# what keeps a child from getting ready


async def test_a_program_that_runs_its_worker_in_its_children_too_is_told_what_to_do(
    spawn_parent: Callable[..., Program], queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    spawn_parent(file="unguarded.py")
    await queue.put({}, max_attempts=1)

    await wait_until_async(lambda: bool(jobs.count_documents({"state": "dead"})), "", LONG)
    assert "a worker cannot run in the child process of a worker" in last_error(jobs)
    assert 'must stand below if __name__ == "__main__":' in last_error(jobs)


async def test_a_child_that_does_not_get_ready_in_time_is_killed_and_a_failed_attempt(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "prepare", in_child.never_gets_ready)
    monkeypatch.setattr(processes, "LONGEST_START", 3.0)
    worker = await run(in_child.notes)
    await queue.put({}, max_attempts=1)

    await worker.until_outcomes(30, dead=1)
    assert "the child process did not get ready: it was not within 3 s" in last_error(jobs)
    await wait_until_async(lambda: not children(), "all are gone", LONG)


async def test_a_key_that_interrupts_a_child_that_is_not_ready_interrupts_no_worker(
    run: Any, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patches:
        patches.setattr(processes, "prepare", in_child.is_interrupted)
        try:
            await processes.warm_up()
        except KeyboardInterrupt:  # which would end all tests
            pytest.fail("the worker is interrupted")
    worker = await run(in_child.adds)
    await queue.put({"numbers": [1]})

    await worker.until_outcomes(LONG, completed=1)


# what can run where


async def coroutine(job: AsyncJob) -> None:
    pass


class Callable_:
    def __call__(self, payload: Any) -> None:
        pass

    def method(self, payload: Any) -> None:
        pass


def register(start: WorkerStarter, function: Any, run_in: Any) -> StartedWorker:
    worker = start.prepare()
    worker.worker.handler("default", run_in=run_in)(function)
    return worker


@pytest.mark.parametrize("run_in", ["thread", "process"])
async def test_an_async_function_runs_in_the_loop_or_not_at_all(
    start: WorkerStarter, run_in: str
) -> None:
    with pytest.raises(ConfigurationError, match="is an async def, which runs in the event loop"):
        register(start, coroutine, run_in)


async def test_a_blocking_function_is_not_run_in_the_loop(start: WorkerStarter) -> None:
    with pytest.raises(ConfigurationError, match="would block the event loop"):
        register(start, in_child.notes, "loop")


@pytest.mark.parametrize(
    "function",
    [
        lambda payload: None,
        partial(in_child.notes),
        Callable_(),
        Callable_().method,
        [].append,
    ],
    ids=["lambda", "partial", "object", "method", "builtin method"],
)
async def test_a_child_must_be_able_to_import_the_function(
    start: WorkerStarter, function: Any
) -> None:
    with pytest.raises(ConfigurationError, match="at the top level of a module"):
        register(start, function, "process")


async def test_a_function_that_is_not_what_has_its_name_is_refused_at_the_start(
    start: WorkerStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = in_child.notes
    monkeypatch.setattr(in_child, "notes", in_child.lasts)
    worker = register(start, function, "process")

    with pytest.raises(ConfigurationError, match="at the top level of a module"):
        await worker.worker.run()


async def test_where_a_handler_runs_is_one_of_three(start: WorkerStarter) -> None:
    with pytest.raises(ConfigurationError, match="'loop', 'thread', 'process', not 'fork'"):
        register(start, in_child.notes, "fork")


async def test_a_cancelled_job_ends_its_process(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any], file: File
) -> None:
    worker = await run(in_child.lasts)
    job_id = await queue.put({"file": str(file.path)})
    [pid] = await file.until_lines(1)

    assert await queue.cancel(job_id) == "asked"
    await worker.until_outcomes(LONG, cancelled=1)

    await wait_until_async(lambda: not lives(pid), "its process has ended")
    assert jobs.count_documents({}) == 0


async def test_a_handler_in_a_child_may_cancel_its_job(
    run: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = await run(in_child.cancels, keep=60)
    await queue.put({})

    await worker.until_outcomes(LONG, cancelled=1)

    found = [(document["state"], document["last_error"]) for document in jobs.find()]
    assert found == [("cancelled", "of no use any more")]
