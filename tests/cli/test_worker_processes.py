"""``worker --processes``: real consumer processes under one supervisor, signalled and killed."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests.certified import Identity, client_context
from tests.cli.supervised import Start, Supervisor, put
from tests.waiting import free_port, wait_until

COMPUTES = """
import os
from pymongo import AsyncMongoClient
from streamqueue import Worker

def square(payload):
    return payload["n"] ** 2

jobs = AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database().jobs
worker = Worker(jobs, max_attempts=1)
worker.handler("default", run_in="process")(square)
"""


def read(port: int, path: str, tls: ssl.SSLContext | None = None) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    if tls is not None:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=tls)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_the_processes_share_a_backlog(start: Start, queue: MongoQueue) -> None:
    supervisor = start("--processes", "3", concurrency=2)
    pids = supervisor.until_ready(3)

    put(queue, 60, seconds=0.05)
    supervisor.until_said("finished", times=60)

    assert {line["pid"] for line in supervisor.said("finished")} == set(pids.values())
    assert sorted(line["n"] for line in supervisor.said("started")) == list(range(60))
    wait_until(lambda: queue.size() == 0, "all are complete")


def test_a_handler_in_a_child_process_runs_under_a_supervisor(
    start: Start, queue: MongoQueue, tmp_path: Path
) -> None:
    (tmp_path / "computes.py").write_text(COMPUTES)
    start("--processes", "1", name="computes:worker")

    assert queue.request({"n": 3}, timeout=30) == 9


def test_a_killed_process_is_started_again_and_its_jobs_are_completed(
    start: Start, queue: MongoQueue
) -> None:
    supervisor = start("--processes", "2", concurrency=5)
    before = supervisor.until_ready(2)
    put(queue, 10, seconds=2)
    supervisor.until_said("started", times=10)

    os.kill(before[1], signal.SIGKILL)
    after = supervisor.until_ready(3)

    assert after[0] == before[0]
    assert after[1] != before[1]
    wait_until(lambda: queue.size() == 0, "all are complete", within=20)
    assert {line["n"] for line in supervisor.said("finished")} == set(range(10))
    [line] = supervisor.logged(rf"(Process 1 \(pid {before[1]}\) was killed.*)")
    assert re.search(r"was killed by SIGKILL; it is started again in [01]\.\d s", line)


@pytest.mark.few(1)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_stop_drains_all_and_exits_with_0(
    start: Start, queue: MongoQueue, how: signal.Signals
) -> None:
    supervisor = start("--processes", "2", concurrency=3)
    supervisor.until_ready(2)
    put(queue, 6, seconds=1)
    supervisor.until_said("started", times=6)

    supervisor.process.send_signal(how)

    assert supervisor.exit_code() == 0
    assert len(supervisor.said("finished")) == 6
    assert queue.size() == 0
    assert "Traceback" not in supervisor.log


def test_ctrl_c_in_the_terminal_counts_once(start: Start, queue: MongoQueue) -> None:
    supervisor = start("--processes", "2", concurrency=3)
    supervisor.until_ready(2)
    put(queue, 6, seconds=1)
    supervisor.until_said("started", times=6)

    os.killpg(supervisor.process.pid, signal.SIGINT)

    assert supervisor.exit_code() == 0
    assert len(supervisor.said("finished")) == 6
    assert len(supervisor.logged("(Received SIGINT)")) == 1


@pytest.mark.few(1)
@pytest.mark.parametrize("last", [False, True], ids=["supervisor first", "supervisor last"])
def test_a_stop_sent_to_every_process_counts_once(
    start: Start, queue: MongoQueue, last: bool
) -> None:
    # As systemd does it by default.
    supervisor = start("--processes", "2", concurrency=3)
    pids = supervisor.until_ready(2)
    put(queue, 6, seconds=1)
    supervisor.until_said("started", times=6)

    for pid in sorted([supervisor.process.pid, *pids.values()], reverse=last):
        os.kill(pid, signal.SIGTERM)

    assert supervisor.exit_code() == 0
    assert len(supervisor.said("finished")) == 6


@pytest.mark.slow
def test_a_second_signal_hurries_them_all(
    start: Start, queue: MongoQueue, jobs: Collection[Any]
) -> None:
    supervisor = start("--processes", "2", concurrency=1, drain_timeout=60)
    supervisor.until_ready(2)
    put(queue, 2, seconds=60)
    supervisor.until_said("started", times=2)

    supervisor.process.send_signal(signal.SIGTERM)
    # A second one sent at once may arrive as one with the first.
    wait_until(lambda: "2 processes drain" in supervisor.log, "the first has arrived")
    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=10) == 0
    assert [(job["state"], job["attempts"]) for job in jobs.find()] == [("ready", 0)] * 2


def test_a_stop_before_they_are_ready_ends_them(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text('print(\'{"what": "here"}\', flush=True)\ninput()')
    (tmp_path / "slow.py").write_text(
        'import threading\nprint(\'{"what": "here"}\', flush=True)\nthreading.Event().wait()'
    )
    supervisor = start("--processes", "2", name="slow:worker")
    supervisor.until_said("here", times=1)

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=5) == 0


def test_a_supervisor_killed_with_9_leaves_nobody_behind_and_its_jobs_are_finished(
    start: Start, queue: MongoQueue
) -> None:
    supervisor = start("--processes", "2", concurrency=3)
    supervisor.until_ready(2)
    put(queue, 6, seconds=1)
    supervisor.until_said("started", times=6)

    supervisor.process.kill()

    supervisor.until_nobody_is_left(within=10)
    assert len(supervisor.said("finished")) == 6
    assert queue.size() == 0


@pytest.mark.slow
def test_a_process_that_was_told_to_stop_is_not_started_again(start: Start) -> None:
    supervisor = start("--processes", "2")
    pids = supervisor.until_ready(2)

    os.kill(pids[0], signal.SIGTERM)
    wait_until(lambda: "it is not started again" in supervisor.log, "the end of process 0")
    os.kill(pids[1], signal.SIGTERM)

    assert supervisor.exit_code() == 0
    assert supervisor.logged(r"Process (\d+) \(pid \d+\) is ready") == ["0", "1"]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("no_such_module:worker", "no module"),
        ("tasks:nobody", "has no 'nobody'"),
        ("tasks:no_handler", "no handler"),
        ("tasks", "MODULE:WORKER"),
    ],
)
def test_a_worker_named_wrongly_is_one_sentence_and_wrong_usage(
    start: Start, name: str, word: str
) -> None:
    supervisor = start("--processes", "3", name=name)

    assert supervisor.exit_code() == 2
    *before, sentence = supervisor.log.splitlines()
    assert all(" INFO " in line for line in before)
    assert sentence.startswith("streamqueue: ")
    assert word in sentence


def test_without_a_server_it_fails_with_one_sentence(start: Start) -> None:
    nowhere = f"mongodb://127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=300"
    supervisor = start("--processes", "3", env={"STREAMQUEUE_URI": nowhere})

    assert supervisor.exit_code() == 1
    [sentence] = supervisor.log.splitlines()
    assert "no MongoDB server answers" in sentence


def test_each_process_serves_its_own_metrics(start: Start, queue: MongoQueue) -> None:
    port = free_port(following=3)
    supervisor = start("--processes", "2", "--metrics-port", str(port), concurrency=1)
    supervisor.until_ready(2)
    put(queue, 2, seconds=0.5)
    supervisor.until_said("finished", times=2)
    wait_until(lambda: queue.size() == 0, "both are complete")

    completed = re.compile(
        r'^streamqueue_attempts_total\{.*outcome="completed".*\} 1\.0$', re.MULTILINE
    )
    assert completed.search(read(port, "/metrics"))
    assert completed.search(read(port + 1, "/metrics"))


@pytest.mark.slow
def test_the_ports_are_as_far_apart_as_asked_for_also_from_a_port_of_the_workers_own(
    start: Start,
) -> None:
    port = free_port(following=7)
    supervisor = start(
        env={"STREAMQUEUE_PROCESSES": "2", "STREAMQUEUE_PORT_OFFSET": "7"}, metrics_port=port
    )

    supervisor.until_ready(2)

    assert read(port, "/healthz") == read(port + 7, "/healthz") == "ok"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def identity(tmp_path: Path, authority: trustme.CA) -> Identity:
    return Identity(tmp_path, authority)


@pytest.mark.slow
def test_each_process_serves_its_metrics_over_tls_with_what_was_given(
    start: Start, identity: Identity, authority: trustme.CA
) -> None:
    port = free_port(following=3)
    supervisor = start(
        *("--processes", "2", "--metrics-port", str(port)),
        *("--metrics-cert", identity.cert.name, "--metrics-key", str(identity.key)),
        *("--metrics-client-ca", str(identity.client_ca)),
    )
    supervisor.until_ready(2)

    for each in (port, port + 1):
        assert read(each, "/healthz", client_context(authority, authority)) == "ok"
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            read(each, "/healthz", client_context(authority))


def test_the_certificate_can_be_given_as_variables_for_a_port_of_the_workers_own(
    start: Start, identity: Identity, authority: trustme.CA
) -> None:
    port = free_port(following=3)
    start(
        env={
            "STREAMQUEUE_METRICS_CERT": str(identity.cert),
            "STREAMQUEUE_METRICS_KEY": str(identity.key),
        },
        metrics_port=port,
    )

    def answer() -> str:
        try:
            return read(port, "/healthz", client_context(authority))
        except ConnectionRefusedError:
            return ""

    assert wait_until(answer, "it serves", within=20) == "ok"


@pytest.mark.slow
def test_a_port_on_the_command_line_leaves_the_workers_own_certificate_in_use(
    start: Start, identity: Identity, authority: trustme.CA
) -> None:
    port = free_port(following=3)
    supervisor = start(
        *("--processes", "2", "--metrics-port", str(port)),
        metrics_port=0,
        metrics_cert=str(identity.cert),
        metrics_key=str(identity.key),
    )
    supervisor.until_ready(2)

    assert read(port + 1, "/healthz", client_context(authority)) == "ok"


@pytest.mark.few(3)
@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--metrics-cert", "server.pem"], "--metrics-cert is for --metrics-port"),
        (["--metrics-client-ca", "clients.pem"], "--metrics-client-ca is for --metrics-port"),
        (["--metrics-port", "0", "--metrics-key", "server.key"], "--metrics-cert"),
        (["--metrics-port", "0", "--metrics-cert", "server.pem"], "no private key in server.pem"),
        (["--metrics-port", "0", "--metrics-cert", "nowhere.pem"], "no such file or directory"),
        (["--metrics-port", "0", "--metrics-cert", ""], "cannot read the certificate ''"),
    ],
)
def test_wrong_certificates_are_refused_in_one_sentence(
    start: Start, identity: Identity, options: list[str], word: str, processes: str
) -> None:
    supervisor = start("--processes", processes, *options)

    assert supervisor.exit_code() == 2
    *before, sentence = supervisor.log.splitlines()
    assert all(" INFO " in line for line in before)
    assert sentence.startswith("streamqueue: ")
    assert word in sentence


def test_a_port_in_use_stops_them_all(start: Start) -> None:
    port = free_port(following=1)
    with socket.create_server(("127.0.0.1", port + 1)):
        supervisor = start("--processes", "2", "--metrics-port", str(port))

        assert supervisor.exit_code() == 2
    assert f"127.0.0.1:{port + 1}" in supervisor.log
    assert len(supervisor.logged(r"(ended with exit code 2 and was never ready)")) == 1
    assert "Traceback" not in supervisor.log


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--metrics-port", "65535"], "65536"),
        (["--metrics-port", "60000", "--port-offset", "6000"], "66000"),
        (["--metrics-port", "9100", "--port-offset", "0"], "--port-offset 0"),
    ],
)
def test_ports_that_cannot_be_are_refused(start: Start, options: list[str], word: str) -> None:
    supervisor = start("--processes", "2", *options)

    assert supervisor.exit_code() == 2
    *before, sentence = supervisor.log.splitlines()
    assert all(" INFO " in line for line in before)
    assert word in sentence


def test_no_process_at_all_is_wrong_usage(start: Start) -> None:
    supervisor = start("--processes", "0")

    assert supervisor.exit_code() == 2
    assert "at least 1" in supervisor.log


def test_one_process_has_no_supervisor(start: Start) -> None:
    supervisor = start("--processes", "1")

    wait_until(lambda: "Working on queues" in supervisor.log, "it works", within=20)

    children = Path(f"/proc/{supervisor.process.pid}/task/{supervisor.process.pid}/children")
    assert children.read_text() == ""


# deaths without a database: a process that says that it is ready, and then does as it is told

SUPERVISE = """
import json, logging, os, sys, anyio
from streamqueue import Backoff
from streamqueue.processes import process
from streamqueue.processes.supervisor import Processes
logging.basicConfig(level="INFO")
code, settings = sys.argv[1], json.loads(sys.argv[2])
process.GRACE = process.CLOSING = process.SLACK = 0.1
child = "import os, sys, signal; "
if not settings.get("silent"):
    child += "os.write(int(sys.argv[1]), b'r'); "
child += code
sys.exit(anyio.run(Processes(
    lambda number, descriptor: [settings["program"], "-c", child, str(descriptor)],
    1,
    pauses=Backoff(**settings["pauses"]),
    a_while=settings["a_while"],
).run))
"""

SHORT = {"initial": 0.1, "maximum": 0.4, "jitter": 0}
LONG = {"initial": 60, "jitter": 0}


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[Start]:
    """Supervise one process that becomes ready and then runs the code."""
    started: list[Supervisor] = []

    def dying(code: str, **settings: Any) -> Supervisor:
        settings = {"program": sys.executable, "pauses": LONG, "a_while": 60, **settings}
        command = [sys.executable, "-c", SUPERVISE, code, json.dumps(settings)]
        started.append(Supervisor(command, tmp_path, {"PYTHONPATH": os.pathsep.join(sys.path)}))
        return started[-1]

    yield dying
    for supervisor in started:
        supervisor.end()


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("os._exit(7)", "ended with exit code 7"),
        ("os._exit(2)", "ended with exit code 2"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
    ],
)
def test_who_keeps_dying_is_started_again_after_pauses_that_grow(
    dying: Start, code: str, how: str
) -> None:
    supervisor = dying(code, pauses=SHORT)

    again = rf"{how}; it is started again (.*)"
    wait_until(lambda: supervisor.logged(again)[4:], "it died five times", within=20)

    seconds = ["0.1", "0.2", "0.4", "0.4", "0.4"]
    assert supervisor.logged(again)[:5] == [f"in {each} s" for each in seconds]


def test_who_ran_for_a_while_is_started_again_at_once(dying: Start) -> None:
    supervisor = dying("os._exit(7)", a_while=0)

    again = r"exit code 7; it is started again (.*)"
    wait_until(lambda: supervisor.logged(again)[2:], "it died three times", within=20)

    assert supervisor.logged(again)[:3] == ["at once"] * 3


def test_a_stop_ends_a_pause(dying: Start) -> None:
    supervisor = dying("os._exit(7)")
    wait_until(lambda: "it is started again in 60.0 s" in supervisor.log, "the pause", 20)

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=5) == 0


def test_a_death_while_draining_is_a_failure(dying: Start) -> None:
    supervisor = dying("os.read(int(sys.argv[1]), 1); os._exit(7)")
    supervisor.until_ready(1)

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=5) == 1
    assert "ended with exit code 7 while it was draining" in supervisor.log


def test_a_process_that_does_not_end_when_its_time_is_over_is_killed(dying: Start) -> None:
    supervisor = dying("os.write(int(sys.argv[1]), b'l0;r'); signal.pause()", silent=True)
    supervisor.until_ready(1)

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.exit_code(within=10) == 1
    assert "is killed: it was told to stop, and did not end" in supervisor.log


def test_an_end_that_nobody_asked_for_is_none_in_order(dying: Start) -> None:
    supervisor = dying("os._exit(0)", pauses=SHORT)

    again = r"exit code 0; it is started again (.*)"
    wait_until(lambda: supervisor.logged(again)[1:], "it ended twice", within=20)


def test_an_end_of_a_process_that_was_never_ready_is_said_and_fails(dying: Start) -> None:
    supervisor = dying("", silent=True)

    assert supervisor.exit_code() == 1
    assert "ended with exit code 0 and was never ready" in supervisor.log


def test_a_process_that_cannot_be_made_is_said_and_fails(dying: Start) -> None:
    supervisor = dying("", program="/nowhere/python")

    assert supervisor.exit_code() == 1
    assert "Process 0 could not be made" in supervisor.log
    assert "Traceback" not in supervisor.log
