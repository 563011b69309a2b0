"""``streamqueue worker --processes`` as a process, and the worker that it runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from streamqueue import MongoQueue
from tests import programs
from tests.waiting import wait_until

WORKER = """
import json, os, anyio
from pymongo import AsyncMongoClient
from streamqueue import Worker

def say(what, **more):
    os.write(1, json.dumps({"what": what, "pid": os.getpid(), **more}).encode() + b"\\n")

jobs = AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database().jobs
worker = Worker(
    jobs,
    **{"max_await": 0.1, "timeout": 1, "reap_interval": 0.1,
       **json.loads(os.environ.get("WORKER_SETTINGS", "{}"))},
)
no_handler = Worker(jobs)

@worker.handler("default")
async def handle(job):
    say("started", n=job.data["n"])
    await anyio.sleep(job.data["seconds"])
    say("finished", n=job.data["n"])
"""


class Supervisor:
    """The command in a process and a session of its own, and what it and its processes say."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.process = programs.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self._said: list[str] = []
        self._log: list[str] = []
        # Each reader ends when nobody is left who could write: no process of it lives on.
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self._said), (self.process.stderr, self._log))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            lines.extend(stream)

    def said(self, what: str) -> list[dict[str, Any]]:
        """Return what the handlers have said of one kind so far."""
        lines = [json.loads(line) for line in list(self._said)]
        return [line for line in lines if line["what"] == what]

    def until_said(self, what: str, times: int) -> list[dict[str, Any]]:
        """Wait until the handlers have said something so often."""
        wait_until(lambda: len(self.said(what)) >= times, f"{times} times {what}", within=20)
        return self.said(what)

    def logged(self, pattern: str) -> list[str]:
        """Return what the lines of the log that match have in their first group."""
        found = [re.search(pattern, line) for line in list(self._log)]
        return [match[1] for match in found if match]

    def until_ready(self, count: int) -> dict[int, int]:
        """Wait until so many starts were successful; return the latest process id by number."""
        pattern = r"Process (\d+ \(pid \d+)\) is ready"
        wait_until(
            lambda: len(self.logged(pattern)) >= count, f"{count} processes are ready", within=30
        )
        pairs = [re.findall(r"\d+", line) for line in self.logged(pattern)]
        return {int(number): int(pid) for number, pid in pairs}

    @property
    def lines(self) -> list[str]:
        """What was written on standard output."""
        return list(self._said)

    @property
    def log(self) -> str:
        return "".join(list(self._log))

    def until_nobody_is_left(self, within: float = 20) -> None:
        """Wait until neither the supervisor nor any process it started is there."""
        wait_until(
            lambda: not any(reader.is_alive() for reader in self._readers),
            "all processes have ended",
            within,
        )

    def exit_code(self, within: float = 20) -> int:
        """Wait for the end of it and of all its processes."""
        code = self.process.wait(within)
        self.until_nobody_is_left(within=1)
        return code

    def end(self) -> None:
        """Kill what still lives."""
        self.process.kill()
        self.process.wait()
        try:
            self.until_nobody_is_left()
        finally:
            for pid in self.logged(r"\(pid (\d+)\) is ready"):
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass


Start = Callable[..., Supervisor]


def put(queue: MongoQueue, count: int, seconds: float) -> None:
    queue.put_many([{"n": n, "seconds": seconds} for n in range(count)])
