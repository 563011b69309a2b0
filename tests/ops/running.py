"""``streamqueue worker`` as a process, with a module that names its server as the README does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import programs
from tests.waiting import wait_until

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Spawn = Callable[..., "WorkerCommand"]

TASKS = """
from pymongo import AsyncMongoClient
from streamqueue import Discard, Retry, Worker, connection_uri

client = AsyncMongoClient(connection_uri())
worker = Worker(client.get_default_database().jobs, max_await=0.1, reap_interval=0.2)

@worker.handler("default")
async def handle(job):
    kind = job.data["kind"]
    print(kind, job.attempts, flush=True)
    if kind == "retried" and job.attempts == 1:
        raise Retry(delay=0.1)
    if kind == "discarded":
        raise Discard("as it was put")
"""


def says_one_sentence(text: str) -> bool:
    """Whether a person was told what is wrong, in one line and without a traceback."""
    lines = [line for line in text.strip().splitlines() if line.startswith("streamqueue: ")]
    return len(lines) == 1 and "Traceback" not in text


class WorkerCommand:
    """A started worker; what it prints and logs goes to files in its folder."""

    def __init__(
        self, folder: Path, uri: str | None, arguments: Sequence[str], env: dict[str, str]
    ) -> None:
        folder.mkdir()
        (folder / "tasks.py").write_text(TASKS)
        self._printed, self._logged = folder / "printed", folder / "logged"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMQUEUE_URI")}
        environment |= env
        if uri is not None:
            environment["STREAMQUEUE_URI"] = uri
        with self._printed.open("wb") as printed, self._logged.open("wb") as logged:
            self.process = programs.Popen(
                [sys.executable, "-m", "streamqueue", "worker", "tasks:worker", *arguments],
                stdout=printed,
                stderr=logged,
                cwd=folder,
                env=environment,
            )

    @property
    def handled(self) -> list[str]:
        """The kinds of jobs its handler was called for, and the attempt."""
        return self._printed.read_text().splitlines()

    @property
    def log(self) -> str:
        """All that it has logged and complained of."""
        return self._logged.read_text()

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self.process.poll() is not None

    def until_working(self) -> None:
        """Wait until its stream is open, or it has given up."""
        wait_until(lambda: "Working on queues" in self.log or self.ended, "the worker", 60)

    def stop(self) -> int:
        """Send SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def end(self) -> None:
        """Kill it if it still lives."""
        if not self.ended:
            self.process.kill()
        self.process.wait()
