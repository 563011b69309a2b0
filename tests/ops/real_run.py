"""Workers, a producer, an exporter and a Prometheus that watches them, while all kinds of things
happen: everything real, on free ports of the loopback address.

For tests; and for a look at the boards, with some minutes of data::

    python -m tests.ops.real_run --minutes 4 --keep
    make pictures PROMETHEUS=http://...   # in another terminal, with the address it prints
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from pymongo import MongoClient

from streamqueue import MongoQueue
from streamqueue.embedded import EmbeddedServer
from tests import programs
from tests.ops.programs import clerk, shop
from tests.ops.prometheus import Monitoring, hasten
from tests.waiting import free_port, wait_until
from tests.worker.faults import CONNECTION_CUT, INTERRUPTED, TIME_LIMIT, failing
from tests.worker.started import STREAM_APP

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "streamqueue.rules.yml"
EXPORTER_APP = "streamqueue-exporter"
DRILLED = {
    "StreamqueueQueueStalled": ("max[5m]) > 60", "max[5m]) > 10"),
    "StreamqueueNoConsumers": ("> 15", "> 5"),
}
"""Alerts that are also evaluated with all their seconds shorter: the age and what it is here."""
CLAIM_ERROR = re.compile(r'^streamqueue_mongodb_errors_total\{.*operation="claim"', re.MULTILINE)
"""How a scrape says that a claim of a worker failed; there is no such line before the first one."""
WORKERS = 3
PATIENCE_SECONDS = 60.0
PAUSE_SECONDS = 3.0
"""Between two things that happen, so that each is a place of its own in a graph."""
LEASE = timedelta(seconds=shop.LEASE_SECONDS)
HELD_SECONDS = 10.0
"""Of the jobs whose holders are stopped or killed."""


def drill_rules() -> str:
    """Return the drilled alerts in seconds, told from the real ones by a label."""
    text = hasten(RULES.read_text(), 120, dict(DRILLED.values()))
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    drilled = [rule for rule in rules if rule.get("alert") in DRILLED]
    for rule in drilled:
        rule["labels"]["drill"] = "yes"
    return str(yaml.safe_dump({"groups": [{"name": "drill", "rules": drilled}]}))


class Program:
    """A process that serves metrics, whose output goes to a file."""

    def __init__(self, folder: Path, name: str, uri: str, port: int, *arguments: str) -> None:
        self.name = name
        self.address = f"127.0.0.1:{port}"
        self._log = folder / f"{name}.log"
        self._asked = False
        kept = {key: value for key, value in os.environ.items() if not key.startswith("STREAMQ")}
        with self._log.open("ab") as output:
            self.process = programs.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env={**kept, "STREAMQUEUE_URI": uri},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def metrics(self) -> str:
        """Return what a scrape gets."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def wait_until_up(self) -> None:
        """Return when it serves and is ready, or fail with what it said."""
        wait_until(self._is_up, f"{self.name} is ready", 30)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, f"{self.name} ended: {self.log()}"
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is not ready
            return False

    def log(self) -> str:
        """Return the end of what it has said."""
        return self._log.read_text()[-3000:]

    def ask_to_end(self) -> None:
        """Send it SIGTERM, once: a second one would kill it when it has all but ended."""
        if not self._asked and self.process.poll() is None:
            self._asked = True
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()

    def stop(self) -> int:
        """Ask it to end, and return its exit code."""
        self.ask_to_end()
        try:
            return self.process.wait(15)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class RealRun:
    """All of it, in a ``with`` block.

    Args:
        folder: for data, configuration and logs; an existing one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._ports = [free_port() for _ in range(WORKERS)]
        self.workers: list[Program] = []
        self.exporter: Program
        self.producer: Program
        self.monitoring: Monitoring

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            server = opened.enter_context(EmbeddedServer(test_commands=True))
            self._uri = server.uri.replace("/?", "/shop?")
            self._client = opened.enter_context(MongoClient[dict[str, Any]](self._uri))
            self._jobs = self._client.get_default_database()["jobs"]
            self._queue = opened.enter_context(MongoQueue(self._jobs, name="emails"))
            opened.callback(self.stop_workers)
            self.start_workers()
            self.exporter = self._start(
                opened, "exporter", "streamqueue", "exporter", "--interval", "1", "--metrics-port"
            )
            self.producer = self._start(opened, "producer", clerk.__name__)
            quick = self._folder / "drill.yml"
            quick.write_text(drill_rules())
            targets = {
                "workers": [worker.address for worker in self.workers],
                "exporter": [self.exporter.address],
                "producer": [self.producer.address],
            }
            monitoring = Monitoring(self._folder, targets, [RULES, quick])
            self.monitoring = opened.enter_context(monitoring)
            self.monitoring.wait_until_up()
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def _start(self, opened: ExitStack, name: str, *arguments: str) -> Program:
        port = free_port()
        program = Program(self._folder, name, self._uri, port, *arguments, str(port))
        opened.callback(program.stop)
        program.wait_until_up()
        return program

    def _start_worker(self, number: int) -> Program:
        port = self._ports[number]
        what = ("streamqueue", "worker", f"{shop.__name__}:worker", "--metrics-port", str(port))
        return Program(self._folder, f"worker-{number}", self._uri, port, *what)

    def start_workers(self) -> None:
        """Start all workers; return when they are ready."""
        self.workers = [self._start_worker(number) for number in range(WORKERS)]
        for worker in self.workers:
            worker.wait_until_up()

    def stop_workers(self) -> list[int]:
        """Tell all workers to end; return their exit codes."""
        for worker in self.workers:
            worker.ask_to_end()
        codes = [worker.stop() for worker in self.workers]
        self.workers = []
        return codes

    # what happens

    def happen(self) -> None:
        """Let everything happen once."""
        for event in (
            self.server_refuses,
            self.worker_stands_still,
            self.worker_is_killed,
            self.stream_is_cut,
        ):
            event()
            pause(PAUSE_SECONDS)

    def server_refuses(self) -> None:
        """Some operations of everybody fail."""
        self._refuse(clerk.APP, ["insert"], 3, TIME_LIMIT)
        # (A claim whose time limit is met is taken to meet a document that is locked.)
        # What else the workers send takes its share of the errors: until a claim has had one.
        ends_at = time.monotonic() + PATIENCE_SECONDS
        while not any(CLAIM_ERROR.search(worker.metrics()) for worker in self.workers):
            assert time.monotonic() < ends_at, "no claim of the workers has met an error"
            self._refuse(shop.APP, ["update", "findAndModify"], 4, INTERRUPTED)
        # One is enough: an exporter on a busy machine does not ask again for a while.
        self._refuse(EXPORTER_APP, ["aggregate", "find"], 1, TIME_LIMIT)

    def _refuse(self, app: str, commands: list[str], times: int, what: dict[str, Any]) -> None:
        with failing(self._client, *commands, app=app, times=times, **what) as fault:
            wait_until(lambda: fault.hits() >= times, f"{app} has met errors", PATIENCE_SECONDS)

    def worker_stands_still(self) -> None:
        """A worker is stopped until its jobs are another's, and comes back."""
        worker, job_id = self._holder(max_attempts=3)
        with self._stopped(worker):
            [holder] = self._jobs.distinct("locked_by", {"_id": job_id})
            wait_until(
                lambda: (self._jobs.find_one({"_id": job_id}) or {}).get("locked_by") != holder,
                "its job is returned",
                PATIENCE_SECONDS,
            )

    def _stopped(self, worker: Program) -> ExitStack:
        worker.process.send_signal(signal.SIGSTOP)
        stack = ExitStack()
        stack.callback(worker.process.send_signal, signal.SIGCONT)
        return stack

    def worker_is_killed(self) -> None:
        """A worker is killed with a job on its last attempt, and is started again."""
        worker, job_id = self._holder(max_attempts=1)
        worker.kill()
        wait_until(
            lambda: self._jobs.find_one({"_id": job_id, "state": "dead"}),
            "its job is dead",
            PATIENCE_SECONDS,
        )
        number = self.workers.index(worker)
        self.workers[number] = self._start_worker(number)
        self.workers[number].wait_until_up()

    def stream_is_cut(self) -> None:
        """The change streams lose their connections, until the driver has failed to resume one."""
        commands = ("getMore", "aggregate")
        with failing(self._client, *commands, app=STREAM_APP, **CONNECTION_CUT):
            wait_until(
                lambda: not all(map(self._hears, self.workers)),
                "a stream is cut",
                PATIENCE_SECONDS,
            )
        wait_until(
            lambda: all(map(self._hears, self.workers)), "the streams are back", PATIENCE_SECONDS
        )

    @staticmethod
    def _hears(worker: Program) -> bool:
        return "\nstreamqueue_stream_connected 1.0\n" in worker.metrics()

    def _holder(self, max_attempts: int) -> tuple[Program, Any]:
        """Put a job that takes long; return who has begun it: a claim whose answer comes too late,
        because its worker was stopped before, is given back and is no lost lease."""
        job_id = self._queue.put({"seconds": HELD_SECONDS}, max_attempts=max_attempts)

        def holder() -> Program | None:
            job = self._jobs.find_one({"_id": job_id, "state": "running"})
            if job is None or job["locked_until"] - job["locked_at"] <= LEASE:  # never renewed
                return None
            pid = job["locked_by"].split(":")[1]
            return next((w for w in self.workers if str(w.process.pid) == pid), None)

        worker = wait_until(holder, "a worker has taken it", PATIENCE_SECONDS)
        assert worker is not None
        return worker, job_id


def pause(seconds: float) -> None:
    """Let time pass in which things happen elsewhere."""
    threading.Event().wait(seconds)


def main() -> None:
    """Run for some minutes, and keep it all running if asked to."""
    parser = argparse.ArgumentParser(description="Run everything for a look at the boards.")
    parser.add_argument("--minutes", type=float, default=4, help="default 4")
    parser.add_argument("--keep", action="store_true", help="then go on until Ctrl-C")
    options = parser.parse_args()
    for ending in (signal.SIGINT, signal.SIGTERM):  # one started in the background ignores Ctrl-C
        signal.signal(ending, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder, RealRun(Path(folder)) as run:
        address = f"http://{run.monitoring.address}"
        sys.stderr.write(f"Prometheus is {address}; {options.minutes:g} minutes of load begin.\n")
        ends = time.monotonic() + 60 * options.minutes
        try:
            while time.monotonic() < ends:
                run.happen()
            if options.keep:
                sys.stderr.write(f"make pictures PROMETHEUS={address}; Ctrl-C ends it.\n")
                while True:
                    run.happen()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
