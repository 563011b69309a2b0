"""Random BSON beside good jobs, with every program of ours at work on the same collection.

What a run inserts follows from its seed alone; a run that fails says how to repeat it.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import BulkWriteError
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests import programs
from tests.strange import random_job
from tests.waiting import free_port, wait_until

QUEUE = "fuzz"
TASKS = """
import os
from pymongo import AsyncMongoClient
from streamqueue import Backoff, Worker

jobs = AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database().jobs
worker = Worker(
    jobs, timeout=5, reap_interval=0.2, sweep_interval=1, max_attempts=2,
    backoff=Backoff(initial=0.1, maximum=0.1),
)

@worker.handler("fuzz")
async def handle(job):
    str(job.data), str(job.id), str(job.last_error)
"""
BATCH = 50
MOST_MEMORY = 250 * 2**20
"""Bytes a process may hold, whatever was inserted."""
MOST_METRICS = 500_000
"""Bytes of a scrape of any of them."""
WITHIN = 60.0
LAST_SUCCESS = b"streamqueue_state_last_success_timestamp_seconds"
CONTROL = re.compile(r"[^\n\t -~\u00a0-\u2027\u202f-\u2065\u2070-\ufdff\ufe00-\U0001ffff]")
"""What must not reach a terminal: control characters, also those that turn text around."""


@dataclass
class Program:
    """A process of ours, in a session of its own; what it prints and logs goes into one file."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    ports: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.output.read_bytes().decode("utf-8", "replace")

    def memory(self) -> int:
        """Return the bytes that the largest of its processes holds."""
        largest = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError, ProcessLookupError):
                if os.getsid(int(status.parent.name)) == self.process.pid:
                    resident = re.search(r"VmRSS:\s+(\d+)", status.read_text())
                    largest = max(largest, 1024 * int(resident[1]) if resident else 0)
        return largest

    def scrapes(self) -> Iterator[bytes]:
        for port in self.ports:
            address = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(address, timeout=10) as answer:
                yield answer.read()

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)


class Fuzz:
    """One run.

    Args:
        address: a database of its own, as a person would name it.
        folder: for what the programs say.
        seed: says what is inserted.
    """

    def __init__(self, address: str, folder: Path, seed: int) -> None:
        self._address = address
        self._folder = folder
        self._source = random.Random(seed)
        self.seed = seed
        self.programs: list[Program] = []
        self.problems: list[str] = []
        (folder / "fuzz_tasks.py").write_text(TASKS)

    @contextmanager
    def running(self) -> Iterator[None]:
        """All programs of ours, for as long as this lasts."""
        worker = ["worker", "fuzz_tasks:worker"]
        several = free_port(following=3)
        alone, exporter = free_port(), free_port()
        try:
            self._start("worker", [*worker, "--metrics-port", str(alone)], [alone])
            self._start(
                "dispatcher",
                [*worker, "--processes=2", "--port-offset=1", "--metrics-port", str(several)],
                [several, several + 1],
            )
            counting = ["exporter", "--interval=0.3", "--metrics-port", str(exporter)]
            self._start("exporter", counting, [exporter])
            self._start("top", ["top", "--interval=0.3"], [])
            for program, times in zip(self.programs, (1, 2), strict=False):
                wait_until(
                    lambda program=program, times=times: (
                        program.text.count("Working on queues") >= times
                    ),
                    f"the {program.name} is ready",
                    30,
                )
            yield
        finally:
            for program in self.programs:
                program.end()

    def _start(self, name: str, arguments: list[str], ports: list[int]) -> None:
        output = self._folder / f"{name}.out"
        with output.open("wb") as stream:
            process = programs.Popen(
                [sys.executable, "-m", "streamqueue", *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment(),
                start_new_session=True,
            )
        self.programs.append(Program(name, process, output, ports))

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "STREAMQUEUE_URI": self._address, "TERM": "xterm"}

    def insert(self, odd: int, good: int) -> None:
        """Insert so many of each, mixed."""
        with MongoClient(
            self._address,
            datetime_conversion="DATETIME_AUTO",
            unicode_decode_error_handler="replace",
        ) as client:
            jobs: Collection[Any] = client.get_default_database().jobs
            queue = MongoQueue(client.get_default_database().jobs, name=QUEUE)
            for start in range(0, max(odd, good), BATCH):
                documents = [
                    random_job(self._source, QUEUE) for _ in range(min(BATCH, odd - start))
                ]
                with suppress(BulkWriteError):  # of those that equal others
                    if documents:
                        jobs.insert_many(documents, ordered=False)
                count = min(BATCH, good - start)
                if count > 0:
                    queue.put_many([{"good": start + number} for number in range(count)])

    def run(self, odd: int, good: int) -> None:
        """Insert, wait for the good jobs, and judge.

        Raises:
            AssertionError: what was wrong, and how to do it again.
        """
        with self.running():
            self.insert(odd, good)
            self._wait_for_the_good()
            self._wait_for_a_count()
            commands = [["reap"], ["dead", "list", "--queue", QUEUE], ["consumers"]]
            with ThreadPoolExecutor() as threads:
                said = list(threads.map(self._command, commands))
            self._judge(said)
        assert not self.problems, (
            f"seed {self.seed} ({odd} odd, {good} good), kept in {self._folder}:\n"
            + "\n".join(self.problems)
        )

    def _wait_for_the_good(self) -> None:
        with MongoClient(self._address) as client:
            jobs: Collection[Any] = client.get_default_database().jobs
            left = {"payload.good": {"$exists": True}}
            try:
                wait_until(lambda: not jobs.count_documents(left), "every good job is done", WITHIN)
            except AssertionError as error:
                self.problems.append(f"{error}: {jobs.count_documents(left)} are left")

    def _wait_for_a_count(self) -> None:
        """Wait until the exporter has counted all that was inserted."""
        [exporter] = [program for program in self.programs if program.name == "exporter"]
        now = time.time()

        def counted() -> bool:
            [scrape] = exporter.scrapes()
            found = re.search(rb"^%s(?:{.*})? (\S+)$" % LAST_SUCCESS, scrape, re.MULTILINE)
            return found is not None and float(found[1]) > now

        try:
            wait_until(counted, "the exporter counts", WITHIN)
        except AssertionError as error:
            self.problems.append(str(error))

    def _command(self, arguments: list[str]) -> tuple[str, int, str]:
        name = " ".join(arguments)
        try:
            ended = programs.run(
                [sys.executable, "-m", "streamqueue", *arguments],
                capture_output=True,
                check=False,
                env=self._environment(),
                timeout=WITHIN,
            )
        except subprocess.TimeoutExpired:
            return name, -1, f"not within {WITHIN} s"
        return name, ended.returncode, (ended.stdout + ended.stderr).decode("utf-8", "replace")

    def _judge(self, said: list[tuple[str, int, str]]) -> None:
        for program in self.programs:
            self._judge_program(program)
        for name, code, text in said:
            if code or "Traceback" in text:
                self.problems.append(f"{name} ended with {code}: {text[-300:]!r}")
        for name, text in [
            *((name, text) for name, _, text in said),
            *((program.name, program.text) for program in self.programs),
        ]:
            if found := CONTROL.search(text):
                place = text[max(0, found.start() - 60) : found.end() + 20]
                self.problems.append(f"{name} printed {found[0]!r}: {place!r}")

    def _judge_program(self, program: Program) -> None:
        if program.process.poll() is not None:
            self.problems.append(f"{program.name} ended: {program.text[-1500:]}")
            return
        for word in ("Traceback", "starting it again", "No dispatcher any more"):
            if (at := program.text.find(word)) >= 0:
                self.problems.append(
                    f"{program.name}: {program.text[max(0, at - 200) : at + 1500]}"
                )
        if (memory := program.memory()) > MOST_MEMORY:
            self.problems.append(f"{program.name} holds {memory:,} bytes")
        for scrape in program.scrapes():
            if len(scrape) > MOST_METRICS:
                self.problems.append(f"{program.name} serves {len(scrape):,} bytes of metrics")


def fuzz(address: str, folder: Path, seed: int, *, odd: int, good: int) -> None:
    """Do one run in a database of its own.

    Raises:
        AssertionError: what was wrong, and with which seed.
    """
    Fuzz(address, folder, seed).run(odd, good)


def new_database(uri: str) -> str:
    """Return the address of a new database of the server at `uri`."""
    return uri.replace("/?", f"/fuzz_{ObjectId()}?")
