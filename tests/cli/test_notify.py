"""What the service manager is told, by a process's health and at last by real workers.

The workers are started with the command line and the environment of the systemd unit.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from streamqueue import MongoQueue
from streamqueue.embedded import EmbeddedServer
from streamqueue.health.health import Health
from streamqueue.health.systemd import EXTENSION, Notifier
from tests.notified import NotifiedProcess, NotifySocket, notified
from tests.ops.units import EXAMPLE, WORKER, Unit
from tests.waiting import wait_until

# the protocol


@pytest.fixture
def manager() -> Iterator[NotifySocket]:
    with NotifySocket() as manager:
        yield manager


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def starting() -> Health:
    health = Health(clock=lambda: 0.0)
    health.not_ready("start", "nothing is open yet")
    return health


@pytest.mark.parametrize("abstract", [True, False], ids=["abstract", "path"])
def test_it_is_ready_when_no_reason_is_left_and_says_so_once(
    tmp_path: Path, abstract: bool
) -> None:
    with NotifySocket(None if abstract else str(tmp_path / "notify")) as manager:
        health = starting()
        Notifier(manager.address).follow(health, "Doing it")
        health.beat()
        health.clear("start")
        health.not_ready("stream", "it broke")
        health.clear("stream")
        wait_until(lambda: len(manager.messages) == 4, "all has arrived")

    assert [message.lines for message in manager.messages] == [
        ("STATUS=Not ready: nothing is open yet",),
        ("READY=1", "STATUS=Doing it"),
        ("STATUS=Not ready: it broke",),
        ("STATUS=Doing it",),
    ]


def test_a_status_is_one_line_whatever_it_is_made_of(manager: NotifySocket) -> None:
    Notifier(manager.address).follow(Health(), "Doing\nMAINPID=1\n that\x1b[2J")

    manager.until("STATUS=Doing MAINPID=1 that·[2J")


def test_signs_of_life_come_with_beats_in_time_and_no_oftener(manager: NotifySocket) -> None:
    clock, health = Clock(), starting()
    Notifier(manager.address, watchdog=30, clock=clock).follow(health, "Doing it")

    for _ in range(120):
        clock.now += 0.5
        health.beat()

    manager.until("WATCHDOG=1", times=7)  # at the start, and every 10 s
    manager.until("STATUS=Not ready: nothing is open yet")
    assert len(manager.said("WATCHDOG=1")) == 7


def test_without_a_watchdog_there_are_none(manager: NotifySocket) -> None:
    clock, health = Clock(), starting()
    Notifier(manager.address, clock=clock).follow(health, "Doing it")

    clock.now += 1000
    health.beat()
    health.clear("start")

    manager.until("READY=1")
    assert manager.said("WATCHDOG=1") == []


def test_a_drain_asks_for_time_as_long_as_the_loop_turns(manager: NotifySocket) -> None:
    clock, health = Clock(), starting()
    health.clear("start")
    Notifier(manager.address, clock=clock).follow(health, "Doing it")

    health.draining()
    extension = f"EXTEND_TIMEOUT_USEC={int(EXTENSION * 1e6)}"
    first = manager.until(extension)
    for _ in range(40):
        clock.now += 0.5
        health.beat()

    assert first.lines[0] == "STOPPING=1"
    manager.until(extension, times=3)  # and every 10 s, for 30 s each
    assert manager.status == "Stopping: finishing what runs and taking nothing new"


def test_what_is_told_to_stop_before_it_is_ready_never_says_that_it_is(
    manager: NotifySocket,
) -> None:
    health = starting()
    Notifier(manager.address).follow(health, "Doing it")

    health.draining()
    health.clear("start")

    manager.until("STOPPING=1")
    assert manager.said("READY=1") == []


def test_what_nobody_took_is_said_again_and_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health, path = starting(), str(tmp_path / "notify")
    Notifier(path).follow(health, "Doing it")
    health.clear("start")
    health.beat()

    with NotifySocket(path) as manager:
        health.beat()
        assert manager.until("READY=1").lines == ("READY=1", "STATUS=Doing it")

    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_service_manager_that_does_not_listen_blocks_nobody() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(f"\0streamqueue-deaf-{os.getpid()}")
        health = starting()
        address = f"@streamqueue-deaf-{os.getpid()}"
        clock = Clock()
        Notifier(address, watchdog=3, clock=clock).follow(health, "Doing it")

        began = time.monotonic()
        for _ in range(2000):
            clock.now += 1
            health.beat()
            assert time.monotonic() - began < 5

        received = deaf.recv(4096)
    assert received.startswith(b"STATUS=")


def test_without_a_service_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket, "socket", refuse)
    health = starting()
    Notifier.from_environment({"WATCHDOG_USEC": "3000000"}).follow(health, "Doing it")

    health.clear("start")
    health.beat()
    health.draining()


@pytest.mark.parametrize(
    ("environment", "watchdog"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_is_taken_from_the_environment(
    environment: dict[str, str], watchdog: float | None
) -> None:
    variables = {"NOTIFY_SOCKET": "@x", "HOME": "/", **environment}

    assert Notifier.from_environment(variables).watchdog == watchdog
    assert variables == {"HOME": "/"}


# workers

TASKS = """
import json, mmap, os, socket, threading, anyio
from pathlib import Path
from pymongo import AsyncMongoClient
from streamqueue import Worker

def say(**what):
    os.write(1, json.dumps(what).encode() + b"\\n")

uri = Path(os.environ["STREAMQUEUE_URI_FILE"]).read_text().strip()
jobs = AsyncMongoClient(uri).get_default_database().jobs
worker = Worker(jobs, max_await=0.1, concurrency=2)

@worker.handler("emails")
async def send(job):
    say(started=job.data, variables=sorted(os.environ))
    threading.Event().wait(job.data.get("block", 0))
    await anyio.sleep(job.data.get("seconds", 0))
    for attempt in job.data.get("attempts", ()):
        try:
            eval(attempt)
        except OSError as error:
            say(refused=attempt, errno=error.errno)
    say(finished=job.data)
"""

LINUX = [int(part) for part in re.findall(r"\d+", os.uname().release)[:2]]
REPOSITORY = Path(__file__).parents[2]
WATCHDOG = 3.0
COUNTS = pytest.mark.parametrize("count", [1, 2], ids=["one process", "two processes"])
Start = Callable[..., NotifiedProcess]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server of this file's own, to be frozen."""
    with EmbeddedServer(test_commands=True) as server:
        yield server


@pytest.fixture
def queue(server: EmbeddedServer) -> Iterator[MongoQueue]:
    with MongoClient[dict[str, Any]](server.uri) as client:
        client.drop_database("shop")
        yield MongoQueue(client.shop.jobs, name="emails")


@pytest.fixture
def start(server: EmbeddedServer, queue: MongoQueue, tmp_path: Path) -> Iterator[Start]:
    """Start the worker of the systemd unit; as many processes as asked for."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "uri").write_text(server.uri.replace("/?", "/shop?") + "\n")
    settings = tmp_path / "emails.env"

    with ExitStack() as stack:

        def start(count: int = 1, *, executes: list[str] | None = None) -> NotifiedProcess:
            changes = f"\nSTREAMQUEUE_METRICS_PORT=0\nSTREAMQUEUE_PROCESSES={count}\n"
            settings.write_text(EXAMPLE.read_text() + changes)
            unit = Unit(WORKER)
            environment = unit.environment(tmp_path, settings, instance="emails")
            command = unit.command(Path(sys.executable).parent, environment, instance="emails")
            service = notified(
                command, tmp_path, environment, watchdog=WATCHDOG, executes=executes or []
            )
            return stack.enter_context(service)

        yield start


def said(service: NotifiedProcess, what: str) -> list[dict[str, Any]]:
    lines = [line for line in service.log.splitlines() if line.startswith("{")]
    return [line for line in map(json.loads, lines) if what in line]


def until_said(service: NotifiedProcess, what: str, times: int = 1) -> None:
    wait_until(lambda: len(said(service, what)) >= times, f"{times} times {what}", within=20)


def pids_by_number(service: NotifiedProcess) -> dict[int, int]:
    found = re.findall(r"Process (\d+) \(pid (\d+)\) is ready", service.log)
    return {int(number): int(pid) for number, pid in found}


def still_gives_signs_of_life(service: NotifiedProcess, times: int = 3) -> bool:
    before = len(service.said("WATCHDOG=1"))
    service.until("WATCHDOG=1", times=before + times)
    return True


@pytest.mark.few(1)
@COUNTS
def test_it_is_ready_once_the_stream_is_open_and_not_before(
    start: Start, server: EmbeddedServer, queue: MongoQueue, count: int
) -> None:
    # Change streams are opened with an aggregate: the server takes its time over each.
    fail = {"failCommands": ["aggregate"], "blockConnection": True, "blockTimeMS": 1000}
    with MongoClient[dict[str, Any]](server.uri) as client:
        command = client.admin.command
        before = command("configureFailPoint", "failCommand", mode="alwaysOn", data=fail)["count"]
        try:
            service = start(count)
            command("waitForFailPoint", "failCommand", timesEntered=before + 1, maxTimeMS=20000)
            assert service.said("READY=1") == []
        finally:
            command("configureFailPoint", "failCommand", mode="off")

    service.until("READY=1")
    assert len(service.said("READY=1")) == 1


@pytest.mark.few(1)
@COUNTS
def test_it_waits_for_a_server_that_comes_up_late(start: Start, tmp_path: Path, count: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
        (tmp_path / "uri").write_text(f"mongodb://127.0.0.1:{port}/shop?replicaSet=rs0")
        service = start(count)
        nobody.settimeout(20)
        caller, _ = nobody.accept()
        caller.close()

    assert service.said("READY=1") == []
    with EmbeddedServer(port=port):
        service.until("READY=1")


def test_several_processes_are_ready_when_each_has_been(start: Start) -> None:
    service = start(2)

    service.until("READY=1")

    steps = [message.lines[-1] for message in service.manager.messages if len(message.lines) == 1]
    assert "STATUS=Not ready: 1 of 2 processes are ready" in steps
    assert len(pids_by_number(service)) == 2


@pytest.mark.parametrize(
    ("count", "status"), [(1, "Working on queues: emails"), (2, "2 processes work on tasks:worker")]
)
def test_the_status_says_what_it_does_and_what_it_waits_for(
    start: Start, server: EmbeddedServer, count: int, status: str
) -> None:
    service = start(count)

    service.until("READY=1")

    assert service.manager.status == status
    assert service.said("STATUS=Not ready: the change stream is not open yet") or count > 1


@pytest.mark.few(1)
@COUNTS
def test_only_the_main_process_speaks_and_what_it_starts_cannot(
    start: Start, queue: MongoQueue, count: int
) -> None:
    # NotifyAccess=main: the others are not listened to.
    service = start(count)
    service.until("READY=1")

    queue.put({"n": 1})
    until_said(service, "finished")

    [started] = said(service, "started")
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(started["variables"])
    assert "STREAMQUEUE_URI_FILE" in started["variables"]
    assert {message.pid for message in service.manager.messages} == {service.process.pid}


@pytest.mark.few(1)
@COUNTS
def test_an_outage_of_mongodb_takes_no_sign_of_life_away(
    start: Start, server: EmbeddedServer, count: int
) -> None:
    service = start(count)
    service.until("READY=1")
    pids = pids_by_number(service)

    os.kill(server.pid, signal.SIGSTOP)
    try:
        # Longer than the watchdog's time, three times over.
        service.until("WATCHDOG=1", times=len(service.said("WATCHDOG=1")) + 9, within=40)
        if count == 1:
            assert service.manager.status.startswith("Not ready: the change stream is being")
    finally:
        os.kill(server.pid, signal.SIGCONT)

    assert service.process.poll() is None
    assert pids_by_number(service) == pids
    assert "stood still" not in service.log


def test_a_blocked_event_loop_gives_no_sign_of_life(start: Start, queue: MongoQueue) -> None:
    service = start()
    service.until("READY=1")

    queue.put({"block": 60})
    until_said(service, "started")

    wait_until(lambda: service.silence() > 2 * WATCHDOG, "silence", within=20)


def test_what_systemd_then_sends_leaves_word_of_where_it_stood(
    start: Start, queue: MongoQueue
) -> None:
    service = start()
    service.until("READY=1")
    queue.put({"block": 60})
    until_said(service, "started")

    service.process.send_signal(signal.SIGABRT)  # WatchdogSignal=

    assert service.process.wait(10) == -signal.SIGABRT
    assert re.search(r'tasks.py", line \d+ in send', service.log)


@pytest.mark.slow
def test_one_of_several_processes_that_is_blocked_is_killed_and_started_again(
    start: Start, queue: MongoQueue
) -> None:
    service = start(2)
    service.until("READY=1")
    before = pids_by_number(service)

    queue.put({"block": 60}, max_attempts=1)
    until_said(service, "started")
    wait_until(lambda: pids_by_number(service) != before, "another is ready", within=30)

    [killed] = re.findall(r"Process (\d) \(pid \d+\) is killed: its event loop", service.log)
    after = pids_by_number(service)
    assert [number for number in before if before[number] != after[number]] == [int(killed)]
    assert f"(pid {before[int(killed)]}) was killed by SIGABRT" in service.log
    assert re.search(r'tasks.py", line \d+ in send', service.log)
    assert service.silence() < WATCHDOG
    service.until("STATUS=Not ready: 1 of 2 processes are ready", times=2)
    wait_until(lambda: service.manager.status.startswith("2 processes work"), "both work")


@pytest.mark.slow
def test_a_process_that_stands_still_entirely_is_killed_too(start: Start) -> None:
    service = start(2)
    service.until("READY=1")
    pid = pids_by_number(service)[1]

    os.kill(pid, signal.SIGSTOP)

    wait_until(lambda: f"(pid {pid}) was killed by SIGKILL" in service.log, "its end", within=30)


def test_a_dispatcher_that_stands_still_is_killed_and_another_takes_its_place(
    start: Start, queue: MongoQueue
) -> None:
    service = start(2)
    service.until("READY=1")
    pids, status = pids_by_number(service), service.manager.status
    [before] = dispatchers(service)

    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: len(dispatchers(service)) == 2, "another is ready", within=30)

    assert f"The dispatcher (pid {before}) was killed by SIGKILL" in service.log
    assert pids_by_number(service) == pids
    assert service.manager.status == status
    queue.put({"n": 1})
    until_said(service, "finished")


def dispatchers(service: NotifiedProcess) -> list[int]:
    return [int(pid) for pid in re.findall(r"The dispatcher \(pid (\d+)\) is ready", service.log)]


@pytest.mark.slow
def test_a_supervisor_that_stood_still_itself_kills_nobody(start: Start) -> None:
    service = start(2)
    service.until("READY=1")
    pids = pids_by_number(service)

    service.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: service.silence() > 2 * WATCHDOG, "silence", within=20)
    service.process.send_signal(signal.SIGCONT)

    assert still_gives_signs_of_life(service)
    assert pids_by_number(service) == pids
    assert "stood still" not in service.log


@pytest.mark.few(1)
@COUNTS
def test_a_stop_is_said_at_once_and_jobs_are_finished(
    start: Start, queue: MongoQueue, count: int
) -> None:
    service = start(count)
    service.until("READY=1")
    queue.put_many([{"n": n, "seconds": 3} for n in range(2)])
    until_said(service, "started", times=2)

    service.process.send_signal(signal.SIGTERM)

    stopping = service.until("STOPPING=1", within=2)
    assert "EXTEND_TIMEOUT_USEC=30000000" in stopping.lines
    assert said(service, "finished") == []
    assert still_gives_signs_of_life(service, times=1)
    assert service.process.wait(Unit(WORKER).seconds("TimeoutStopSec")) == 0
    assert len(said(service, "finished")) == 2
    assert queue.size() == 0
    assert len(service.said("STOPPING=1")) == 1


@pytest.mark.few(1)
@COUNTS
def test_a_worker_that_cannot_start_is_never_ready(
    start: Start, tmp_path: Path, count: int
) -> None:
    (tmp_path / "tasks.py").write_text("worker = None")
    service = start(count)

    assert service.process.wait(20) == 2
    assert service.said("READY=1") == []
    assert "Traceback" not in service.log


FORBIDDEN = [
    "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "os.chroot('/')",
    "os.setpriority(os.PRIO_PROCESS, 0, 1)",
]
if LINUX >= [6, 3]:  # where MemoryDenyWriteExecute= can be had without systemd
    FORBIDDEN.append("mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)")


@pytest.mark.few(1)
@COUNTS
def test_what_the_unit_allows_is_enough_for_a_worker(
    start: Start, queue: MongoQueue, count: int
) -> None:
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(REPOSITORY)])
    program = [sys.executable, "-m", "tests.ops.confined", str(WORKER)]
    service = start(count, executes=["/usr/bin/env", f"PYTHONPATH={path}", *program])
    service.until("READY=1")

    queue.put({"attempts": FORBIDDEN})
    queue.put({"block": 0.1, "seconds": 0.1})
    until_said(service, "finished", times=2)
    service.process.send_signal(signal.SIGTERM)

    assert service.process.wait(20) == 0
    assert [line["refused"] for line in said(service, "refused")] == FORBIDDEN
    assert queue.size() == 0
    assert "Traceback" not in service.log
