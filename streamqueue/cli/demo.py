"""``streamqueue demo``: jobs flow, a consumer is killed with -9, and every job is accounted for.

Three consumer processes on a real replica set, in three acts:

1. *Wake*: lone jobs at random moments, to consumers asleep on their change streams.
2. *Flow*: a backlog, of which some jobs fail once.
3. *Kill*: every slot is filled with long jobs, and one consumer gets SIGKILL while it holds its
   share. When its leases run out, the others do them.

What happened is not asked of the queue alone: each consumer writes a line when a handler starts and
when a complete was acknowledged, and the account is made from those lines and the collection.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import anyio
from pymongo import AsyncMongoClient, MongoClient

from ..embedded import EmbeddedServer
from ..errors import Retry, StreamQueueError
from ..interpreter import python
from ..queue.blocking import MongoQueue
from ..worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..queue.job import AsyncJob

CONSUMERS = 3
SLOTS = 20
LEASE_SECONDS = 3.0
LONE_JOBS = 100
LONG_SECONDS = 1.0
FAIL_ONE_IN = 100
PATIENCE_SECONDS = 60.0
"""For everything to be done; the whole demo takes about 20 seconds."""
DATABASE = "streamqueue_demo"


def consumer() -> Worker:
    """Return the worker of one consumer process, as ``streamqueue worker`` runs it."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(os.environ["STREAMQUEUE_URI"])
    worker = Worker(
        client[DATABASE].jobs, concurrency=SLOTS, timeout=LEASE_SECONDS, reap_interval=1.0
    )

    @worker.handler("demo")
    async def handle(job: AsyncJob) -> None:
        _say("started", job)
        if job.data.get("fails_once") and job.attempts == 1:
            _say("failed", job)
            raise Retry(delay=0.5)
        await anyio.sleep(job.data.get("seconds", 0))
        await job.complete()
        _say("completed", job)

    return worker


def _say(what: str, job: AsyncJob) -> None:
    # One unbuffered write a line: a consumer that is killed leaves whole lines.
    line = {"what": what, "id": str(job.id), "attempt": job.attempts, "at": time.monotonic()}
    os.write(1, json.dumps(line).encode() + b"\n")


def run(uri: str | None, *, jobs: int, as_json: bool) -> int:
    """Run the demo and print its account; return 0 if nothing was lost or doubled, else 1."""
    with ExitStack() as stack:
        screen = _Screen(quiet=as_json)
        if uri is None:
            screen.say("Starting a local replica set …")
            uri = stack.enter_context(EmbeddedServer()).uri
        client: MongoClient[dict[str, Any]] = stack.enter_context(MongoClient(uri))
        client.drop_database(DATABASE)
        stack.callback(client.drop_database, DATABASE)
        queue = MongoQueue(client[DATABASE].jobs, name="demo")
        ledger = _Ledger()
        team = [_Consumer(number, uri, ledger) for number in range(1, CONSUMERS + 1)]
        for member in team:
            stack.callback(member.stop)
        for member in team:
            member.wait_until_ready()
            screen.say(
                f"Consumer {member.number} (pid {member.pid}) sleeps on its change stream;"
                f" {member.url}/metrics"
            )
        stage = _Stage(queue, ledger, team, screen)
        stage.wake()
        stage.flow(jobs)
        stage.kill()
        stage.finish()
        for line in _story(team):
            screen.say(line)
        account = ledger.account(queue)
        if as_json:
            print(json.dumps(account))
        else:
            for name, value in account.items():
                print(f"{name} {value}")
        return 0 if account["lost"] == 0 and account["doubled"] == 0 else 1


class _Ledger:
    """What was put, and what the consumers said. Written by their reading threads."""

    def __init__(self) -> None:
        self.put: dict[str, float] = {}
        self.lone: set[str] = set()
        self.started: dict[str, float] = {}
        self.attempts: Counter[str] = Counter()
        self.completed: Counter[str] = Counter()

    def note(self, line: bytes, running: set[str]) -> None:
        said = json.loads(line)
        job = said["id"]
        if said["what"] == "started":
            self.started.setdefault(job, said["at"])
            self.attempts[job] += 1
            running.add(job)
        else:
            running.discard(job)
            self.completed[job] += said["what"] == "completed"

    def account(self, queue: MongoQueue) -> dict[str, Any]:
        """Return the account: every job that was put is completed, still there, or lost."""
        left = queue.size()
        waits = sorted(
            self.started[job] - self.put[job] for job in self.lone if job in self.started
        )
        done = self.put.keys() & self.completed.keys()
        return {
            "put": len(self.put),
            "completed": len(done),
            "lost": len(self.put) - len(done) - left,
            "left in the queue": left,
            "doubled": sum(1 for count in self.completed.values() if count > 1),
            "retried": sum(1 for count in self.attempts.values() if count > 1),
            "wake-up p50 ms": _quantile(waits, 0.50),
            "wake-up p99 ms": _quantile(waits, 0.99),
        }


def _quantile(waits: list[float], share: float) -> float | None:
    if not waits:
        return None
    return round(waits[min(len(waits) - 1, int(share * len(waits)))] * 1000, 1)


class _Consumer:
    """One consumer process."""

    def __init__(self, number: int, uri: str, ledger: _Ledger) -> None:
        self.number = number
        self.running: set[str] = set()
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._ledger = ledger
        self._process = subprocess.Popen(  # noqa: S603 (our own program)
            python(
                *("-m", "streamqueue", "worker", "streamqueue.cli.demo:consumer"),
                *("--metrics-port", str(port), "--log-level", "ERROR"),
            ),
            stdout=subprocess.PIPE,
            env={**os.environ, "STREAMQUEUE_URI": uri},
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._ledger.note(line, self.running)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers("/readyz"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise StreamQueueError(f"consumer {self.number} did not start; see above")
            _pause(0.05)

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=2):  # noqa: S310 (loopback)
                return True
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """Return its series, scraped from its /metrics."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=5) as reply:  # noqa: S310
            lines = reply.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def stop(self) -> None:
        if self.alive:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


class _Stage:
    """The three acts."""

    def __init__(
        self, queue: MongoQueue, ledger: _Ledger, team: list[_Consumer], screen: _Screen
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._team = team
        self._screen = screen

    def wake(self) -> None:
        self._screen.say(f"Wake: {LONE_JOBS} lone jobs at random moments")
        for _ in range(LONE_JOBS):
            _pause(random.uniform(0.005, 0.03))
            at = time.monotonic()
            job = str(self._queue.put({"act": "wake"}))
            self._ledger.put[job] = at
            self._ledger.lone.add(job)
            self._progress()
        self._wait_for_all()

    def flow(self, jobs: int) -> None:
        self._screen.say(f"Flow: {jobs:,} jobs, one in {FAIL_ONE_IN} fails at first")
        for start in range(0, jobs, 100):
            numbers = range(start, min(start + 100, jobs))
            self._put_many([{"fails_once": number % FAIL_ONE_IN == 0} for number in numbers])
            self._progress()
        self._wait_for_all()

    def kill(self) -> None:
        long_jobs = CONSUMERS * SLOTS
        self._screen.say(f"Kill: {long_jobs} long jobs fill every slot")
        self._put_many([{"seconds": LONG_SECONDS}] * long_jobs)
        victim = self._team[0]
        self._wait(lambda: len(victim.running) >= SLOTS)
        victim.kill()
        self._screen.say(
            f"Consumer {victim.number} was killed with -9 while it held {len(victim.running)} jobs;"
            f" its leases run out in {LEASE_SECONDS:g} s"
        )

    def finish(self) -> None:
        self._wait_for_all()

    def _put_many(self, payloads: list[dict[str, Any]]) -> None:
        at = time.monotonic()
        for job in self._queue.put_many(payloads):
            self._ledger.put[str(job)] = at

    def _wait_for_all(self) -> None:
        self._wait(lambda: self._ledger.completed.total() >= len(self._ledger.put))

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait, with progress; not for ever, so that a job that is lost ends in the account."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition() and time.monotonic() < deadline:
            self._progress()
            _pause(0.02)
        self._progress(last=True)

    def _progress(self, *, last: bool = False) -> None:
        ledger = self._ledger
        running = sum(len(member.running) for member in self._team if member.alive)
        put, completed = len(ledger.put), ledger.completed.total()
        text = f"  put {put:,}   running {running}   completed {completed:,}"
        self._screen.progress(text, last=last)


def _story(team: list[_Consumer]) -> Iterator[str]:
    """What the survivors' /metrics say."""
    for member in team:
        if member.alive:
            found = member.metrics()
            completed = _total(found, "streamqueue_attempts_total", 'outcome="completed"')
            reaped = _total(found, "streamqueue_jobs_reaped_total", "")
            missed = _total(found, "streamqueue_missed_wakeups_total", "")
            yield (
                f"Consumer {member.number}'s /metrics: completed {completed:.0f}, "
                f"reaped {reaped:.0f}, missed wake-ups {missed:.0f}"
            )


def _total(series: dict[str, float], name: str, label: str) -> float:
    return sum(
        value for key, value in series.items() if key.startswith(name + "{") and label in key
    )


class _Screen:
    """One moving line on a terminal; elsewhere a plain line every now and then."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stdout.isatty()
        self._shown = ""
        self._shown_at = 0.0

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    def progress(self, text: str, *, last: bool) -> None:
        now = time.monotonic()
        if self._quiet or (not last and now - self._shown_at < (0.1 if self._live else 1.0)):
            return
        self._shown_at = now
        if text == self._shown and not (last and self._live):
            return
        self._shown = text
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            end = "\n" if last else ""
            print("\r" + text[:width].ljust(min(width, 78)), end=end, flush=True)
        else:
            print(text, flush=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _pause(length: float) -> None:
    threading.Event().wait(length)
