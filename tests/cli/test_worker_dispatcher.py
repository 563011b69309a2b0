"""The dispatcher of ``worker --processes``, and what is left of its work when it is signalled,
killed and kept from running. No safety sweep: what nobody is told of stays where it is."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from drills.drill import pause
from streamqueue import MongoQueue
from tests.cli.supervised import Start, Supervisor, put
from tests.ops.secured import role, secured
from tests.waiting import free_port, wait_until

SOON = 2.0
"""Seconds in which a lone job is started whatever has become of the process it was sent to; long,
because these tests share their machine."""
SILENCE = 8.0
"""The same when it is the dispatcher that says nothing: three seconds, and a stream to open."""


@pytest.fixture
def crew(start: Start) -> Callable[..., Supervisor]:
    """Start so many processes, and wait until all of them, and their dispatcher, are ready."""

    def crew(count: int, **settings: Any) -> Supervisor:
        supervisor = start(
            "--processes", str(count), **{"sweep_interval": None, "timeout": 10, **settings}
        )
        supervisor.until_ready(count)
        return supervisor

    return crew


Crew = Callable[..., Supervisor]


@pytest.fixture
def frozen() -> Iterator[Callable[[int], None]]:
    """Stop processes with SIGSTOP; let them go on at the end, or they could not end."""
    pids: list[int] = []

    def freeze(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: _state(pid) == "T", f"{pid} stands still")

    yield freeze
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


def is_there(pid: int) -> bool:
    return _state(pid) not in ("gone", "Z")


def dispatchers(supervisor: Supervisor) -> list[int]:
    """Return the process ids of all dispatchers that were ready."""
    return [int(pid) for pid in supervisor.logged(r"The dispatcher \(pid (\d+)\) is ready")]


def children(supervisor: Supervisor) -> list[int]:
    pid = supervisor.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def streams(jobs: Collection[Any]) -> int:
    """Return how many change streams somebody has read in the last half second."""
    look: list[dict[str, Any]] = [
        {"$currentOp": {"allUsers": True}},
        {"$match": {"ns": jobs.full_name, "op": "getmore", "cursor.tailable": True}},
    ]
    cursors: set[int] = set()
    for _ in range(20):
        cursors |= {
            operation["cursor"]["cursorId"]
            for operation in jobs.database.client.admin.aggregate(look)
        }
        pause(0.025)
    return len(cursors)


class Lone:
    """Puts jobs one by one, each when the one before it was started."""

    def __init__(self, supervisor: Supervisor, queue: MongoQueue) -> None:
        self._supervisor = supervisor
        self._queue = queue
        self.count = 0

    def put(self, seconds: float = 0.0) -> None:
        self._queue.put({"n": 1000 + self.count, "seconds": seconds})
        self.count += 1

    def started(self) -> list[dict[str, Any]]:
        return [line for line in self._supervisor.said("started") if line["n"] >= 1000]

    def run(self, within: float, seconds: float = 0.0) -> None:
        """Put one and wait for its start."""
        self.put(seconds)
        wait_until(lambda: len(self.started()) >= self.count, "it is started", within)


def each_was_started_once(supervisor: Supervisor, count: int) -> bool:
    return sorted(line["n"] for line in supervisor.said("started")) == list(range(count))


def test_idle_processes_and_their_dispatcher_hold_one_stream(
    crew: Crew, jobs: Collection[Any]
) -> None:
    supervisor = crew(3)

    [dispatcher] = dispatchers(supervisor)

    assert sorted(children(supervisor)) == sorted([dispatcher, *supervisor.until_ready(3).values()])
    assert streams(jobs) == 1


def test_lone_jobs_are_shared_by_all(crew: Crew, queue: MongoQueue) -> None:
    supervisor = crew(3, concurrency=1)
    lone = Lone(supervisor, queue)

    for _ in range(30):
        lone.run(within=SOON)

    assert {line["pid"] for line in lone.started()} == set(supervisor.until_ready(3).values())


def test_a_dispatcher_killed_amid_jobs_costs_none_and_another_takes_its_place(
    crew: Crew, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    supervisor = crew(3, concurrency=2)
    [dispatcher] = dispatchers(supervisor)
    put(queue, 200, seconds=0.02)
    supervisor.until_said("started", times=50)

    os.kill(dispatcher, signal.SIGKILL)

    supervisor.until_said("finished", times=200)
    wait_until(lambda: queue.size() == 0, "all are complete")
    assert each_was_started_once(supervisor, 200)
    wait_until(lambda: len(dispatchers(supervisor)) == 2, "another dispatcher", within=20)
    assert supervisor.logged(
        rf"(The dispatcher \(pid {dispatcher}\) was killed by SIGKILL; .* again)"
    )
    wait_until(lambda: streams(jobs) == 1, "one stream for all", within=20)
    assert len(supervisor.until_ready(3)) == 3  # and nobody else was started again


def test_a_job_put_when_the_dispatcher_has_just_been_killed_is_started_soon(
    crew: Crew, queue: MongoQueue
) -> None:
    supervisor = crew(2)
    lone = Lone(supervisor, queue)
    for number in range(3):
        lone.run(within=SOON)

        os.kill(dispatchers(supervisor)[number], signal.SIGKILL)

        lone.run(within=SOON)
        wait_until(lambda: len(dispatchers(supervisor)) == number + 2, "another", within=20)  # noqa: B023


@pytest.mark.slow
def test_a_dispatcher_that_stands_still_keeps_no_job_waiting_for_long(
    crew: Crew, queue: MongoQueue, jobs: Collection[Any], frozen: Callable[[int], None]
) -> None:
    supervisor = crew(2)
    [dispatcher] = dispatchers(supervisor)
    lone = Lone(supervisor, queue)

    frozen(dispatcher)
    lone.run(within=SILENCE)
    wait_until(lambda: streams(jobs) == 2, "each listens for itself", within=SILENCE)
    for _ in range(5):
        lone.run(within=SOON)

    os.kill(dispatcher, signal.SIGCONT)
    for _ in range(10):
        lone.run(within=SOON)
    wait_until(lambda: streams(jobs) == 1, "one stream for all again")
    for _ in range(10):
        lone.run(within=SOON)
    assert len(lone.started()) == lone.count
    assert dispatchers(supervisor) == [dispatcher]


@pytest.mark.slow
def test_what_waits_is_taken_while_the_dispatcher_stands_still(
    crew: Crew, queue: MongoQueue, frozen: Callable[[int], None]
) -> None:
    supervisor = crew(2, concurrency=2)
    [dispatcher] = dispatchers(supervisor)
    put(queue, 100, seconds=0.05)
    supervisor.until_said("started", times=20)

    frozen(dispatcher)
    supervisor.until_said("finished", times=100)
    os.kill(dispatcher, signal.SIGCONT)

    wait_until(lambda: queue.size() == 0, "all are complete")
    assert each_was_started_once(supervisor, 100)


@pytest.mark.slow
def test_a_process_that_stands_still_keeps_no_job_that_it_was_sent(
    crew: Crew, queue: MongoQueue, frozen: Callable[[int], None]
) -> None:
    supervisor = crew(2)
    pids = supervisor.until_ready(2)
    lone = Lone(supervisor, queue)

    frozen(pids[0])
    for _ in range(20):
        lone.run(within=SOON)

    assert {line["pid"] for line in lone.started()} == {pids[1]}
    os.kill(pids[0], signal.SIGCONT)
    for _ in range(20):
        lone.run(within=SOON)
    assert len(lone.started()) == lone.count


def test_a_process_killed_with_a_job_just_sent_to_it_does_not_take_it_along(
    crew: Crew, queue: MongoQueue, frozen: Callable[[int], None]
) -> None:
    supervisor = crew(2)
    victim = supervisor.until_ready(2)[0]
    lone = Lone(supervisor, queue)

    frozen(victim)  # so that it does nothing with it
    put_at = time.monotonic()
    while len(lone.started()) == lone.count:
        lone.put()
        put_at = time.monotonic()
        while len(lone.started()) < lone.count and time.monotonic() < put_at + 0.03:
            pause(0.001)
    os.kill(victim, signal.SIGKILL)

    # Sooner than the process that takes its place, which is not even begun before that.
    wait_until(lambda: len(lone.started()) == lone.count, "it is started", 0.7)


def test_the_dispatcher_is_the_last_to_end(crew: Crew, queue: MongoQueue) -> None:
    supervisor = crew(2, concurrency=2)
    [dispatcher] = dispatchers(supervisor)
    pids = list(supervisor.until_ready(2).values())
    put(queue, 4, seconds=1)
    supervisor.until_said("started", times=4)

    supervisor.process.send_signal(signal.SIGTERM)
    while any(is_there(pid) for pid in pids):
        assert is_there(dispatcher) or not any(is_there(pid) for pid in pids)
        pause(0.005)

    assert supervisor.exit_code() == 0
    assert len(supervisor.said("finished")) == 4
    assert not is_there(dispatcher)
    assert "No dispatcher any more" not in supervisor.log
    assert " ERROR " not in supervisor.log
    assert " WARNING " not in supervisor.log


@pytest.mark.few(1)
@pytest.mark.parametrize("last", [False, True], ids=["dispatcher first", "dispatcher last"])
def test_a_stop_sent_to_the_dispatcher_as_well_is_a_stop_in_order(
    crew: Crew, queue: MongoQueue, last: bool
) -> None:
    # As systemd does it by default, and `kill 0` in a container.
    supervisor = crew(2, concurrency=3)
    pids = [*dispatchers(supervisor), *supervisor.until_ready(2).values()]
    put(queue, 6, seconds=1)
    supervisor.until_said("started", times=6)

    pids = [*pids, supervisor.process.pid]
    for pid in reversed(pids) if last else pids:
        os.kill(pid, signal.SIGTERM)

    assert supervisor.exit_code() == 0
    assert len(supervisor.said("finished")) == 6
    assert "Traceback" not in supervisor.log
    assert "was killed by" not in supervisor.log


@pytest.mark.slow
def test_a_dispatcher_that_is_sent_the_signal_deals_until_its_processes_have_left(
    crew: Crew, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    supervisor = crew(2)
    [dispatcher] = dispatchers(supervisor)
    lone = Lone(supervisor, queue)

    os.kill(dispatcher, signal.SIGTERM)

    for _ in range(10):
        lone.run(within=SOON)
    assert streams(jobs) == 1
    for pid in supervisor.until_ready(2).values():
        os.kill(pid, signal.SIGTERM)
    assert supervisor.exit_code() == 0
    assert not is_there(dispatcher)
    assert "was killed by" not in supervisor.log
    assert "No dispatcher any more" not in supervisor.log


@pytest.mark.slow
def test_a_second_signal_hurries_the_processes_and_the_dispatcher_ends(
    crew: Crew, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    supervisor = crew(2, concurrency=1, drain_timeout=60)
    [dispatcher] = dispatchers(supervisor)
    put(queue, 2, seconds=60)
    supervisor.until_said("started", times=2)

    supervisor.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "2 processes drain" in supervisor.log, "the first has arrived")
    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=10) == 0
    assert not is_there(dispatcher)
    assert [(job["state"], job["attempts"]) for job in jobs.find()] == [("ready", 0)] * 2


@pytest.mark.slow
def test_a_dispatcher_that_stands_still_does_not_keep_the_supervisor_from_ending(
    crew: Crew, frozen: Callable[[int], None]
) -> None:
    supervisor = crew(2)
    [dispatcher] = dispatchers(supervisor)
    frozen(dispatcher)

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=20) == 0
    assert not is_there(dispatcher)


def test_a_stop_when_only_the_dispatcher_is_ready_ends_all(start: Start, tmp_path: Path) -> None:
    # The first to import the module is the dispatcher, the next waits in it.
    (tmp_path / "slow.py").write_text(
        "import threading\n"
        "from pathlib import Path\n"
        "from tasks import say, worker\n"
        "first = Path('first')\n"
        "if first.exists():\n"
        "    say('waits')\n"
        "    threading.Event().wait()\n"
        "first.touch()\n"
    )
    supervisor = start("--processes", "2", name="slow:worker")
    supervisor.until_said("waits", times=1)
    [dispatcher] = dispatchers(supervisor)

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=10) == 0
    assert not is_there(dispatcher)


def test_processes_start_without_a_dispatcher_that_dies_before_it_is_ready(
    start: Start, queue: MongoQueue, tmp_path: Path
) -> None:
    module = tmp_path / "tasks.py"
    module.write_text(
        "import os, sys\nif '-1' in sys.argv: os.kill(os.getpid(), 9)\n" + module.read_text()
    )

    supervisor = start("--processes", "2", sweep_interval=None)

    supervisor.until_ready(2)
    assert not dispatchers(supervisor)
    Lone(supervisor, queue).run(within=SOON)


def test_a_stop_while_the_dispatcher_looks_for_a_server_ends_it(start: Start) -> None:
    nowhere = f"mongodb://127.0.0.1:{free_port()}/x"
    supervisor = start("--processes", "2", env={"STREAMQUEUE_URI": nowhere})
    wait_until(lambda: len(children(supervisor)) == 1, "the dispatcher", within=10)
    [dispatcher] = children(supervisor)
    wait_until(lambda: _sockets(dispatcher) > 1, "it looks for the server", within=20)

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=5) == 0
    assert not is_there(dispatcher)


def _sockets(pid: int) -> int:
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(link).startswith("socket:")
    return count


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("action", "word"), [("changeStream", "changeStream"), ("remove", "to delete")]
)
def test_a_missing_privilege_is_said_once(
    start: Start, tmp_path: Path, action: str, word: str
) -> None:
    with secured(tmp_path) as server:
        consumer = role("consumer", "shop")
        for privilege in consumer["privileges"]:
            privilege["actions"] = [each for each in privilege["actions"] if each != action]
        supervisor = start(
            "--processes", "3", env={"STREAMQUEUE_URI": server.user("shop", consumer)}
        )

        assert supervisor.exit_code(within=30) == 1
    sentences = [line for line in supervisor.log.splitlines() if " INFO " not in line]
    assert len(sentences) == 1, sentences
    assert word in sentences[0]


def test_a_supervisor_killed_with_9_takes_the_dispatcher_along(
    crew: Crew, queue: MongoQueue
) -> None:
    supervisor = crew(2, concurrency=3)
    [dispatcher] = dispatchers(supervisor)
    pids = supervisor.until_ready(2)
    put(queue, 6, seconds=1)
    supervisor.until_said("started", times=6)

    supervisor.process.kill()

    supervisor.until_nobody_is_left(within=10)
    wait_until(lambda: not any(map(is_there, [dispatcher, *pids.values()])), "all have ended")
    assert len(supervisor.said("finished")) == 6
    assert queue.size() == 0


def test_the_dispatcher_says_who_it_is_in_the_log(crew: Crew) -> None:
    supervisor = crew(2)

    assert re.search(r"The dispatcher \(pid \d+\) is ready", supervisor.log)
    assert "Process -1" not in supervisor.log
