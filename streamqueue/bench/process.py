"""The benchmark's end of the pipes: a team of child processes, started together and always ended.

Each child is in a session of its own, so Ctrl-C in the terminal reaches the benchmark alone; it
ends by itself when its pipe is closed, so none stays behind even if the benchmark is killed.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ..errors import StreamQueueError
from ..interpreter import python

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .fleet import Fleet

PATIENCE_SECONDS = 60.0
"""Without any movement for this long, something is broken."""
STOP_SECONDS = 15.0
LOOK_SECONDS = 0.05
"""Between two reports while a backlog is drained; the times that count are the consumers' own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The account of one consumer, from its start until ``at`` (monotonic seconds).

    Attributes:
        cpu_before: what of its processor time it had used when its first handler was called.
    """

    at: float
    completed: int
    won: int
    lost: int
    commands: dict[str, int]
    command_seconds: dict[str, float]
    first_started_at: float | None
    last_write_at: float | None
    cpu_seconds: float
    cpu_before: float
    rss_bytes: int | None


class Child:
    """One child process; its `module` of this package speaks the lines of ``channel.py``."""

    def __init__(
        self,
        module: str,
        number: int,
        uri: str,
        settings: Mapping[str, Any],
        said_of_jobs: queue.SimpleQueue[dict[str, Any]],
        descriptors: Sequence[int] = (),
    ) -> None:
        self._name = f"{module} process {number}"
        self._said_of_jobs = said_of_jobs
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(  # noqa: S603 (our own program)
            python("-m", f"{__package__}.{module}", json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "STREAMQUEUE_URI": uri},
            start_new_session=True,
            pass_fds=descriptors,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for text in self._process.stdout or ():
            line = json.loads(text)
            (self._said_of_jobs if "number" in line else self._answers).put(line)

    def order(self, word: str) -> None:
        """Send an order.

        Raises:
            StreamQueueError: it is gone.
        """
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(word.encode() + b"\n")
                self._process.stdin.flush()
            except OSError:
                self.check()

    def expect(self, what: str) -> dict[str, Any]:
        """Wait for its next answer.

        Raises:
            StreamQueueError: it is gone, or says nothing.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = self._answers.get(timeout=0.5)
            except queue.Empty:
                self.check()
                continue
            if answer["what"] == what:
                return answer
        raise StreamQueueError(f"{self._name} did not say {what!r} in {PATIENCE_SECONDS:.0f} s")

    def check(self) -> None:
        """Raise StreamQueueError, with what it said last, if it has ended."""
        code = self._process.poll()
        if code is not None:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            said = lines[-1] if lines else "it said nothing"
            raise StreamQueueError(f"{self._name} ended with exit code {code}: {said}")

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        """Wait for its end, and see to it."""
        try:
            self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # an order that it did not read
        self._errors.close()


class Team:
    """Some children of one kind, in a ``with`` block that ends them."""

    def __init__(
        self,
        module: str,
        fleet: Fleet,
        uri: str,
        settings: Mapping[str, Any],
    ) -> None:
        self._module, self._fleet, self._uri, self._settings = module, fleet, uri, settings
        self._dispatcher: Child | None = None
        self._children: list[Child] = []
        self._said_of_jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        try:
            if self._fleet.dispatched:
                self._start_dispatched()
            else:
                for number in range(1, self._fleet.size + 1):
                    self._children.append(self._child(number, self._settings))
            for child in self._everybody():
                child.expect("loaded")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _child(self, number: int, settings: Mapping[str, Any], *descriptors: int) -> Child:
        return Child(self._module, number, self._uri, settings, self._said_of_jobs, descriptors)

    def _start_dispatched(self) -> None:
        """Start them, each connected with a dispatcher, as a supervisor does."""
        with ExitStack() as ends:
            ours: list[int] = []
            for number in range(1, self._fleet.size + 1):
                one, other = socket.socketpair()
                ends.enter_context(one)
                ours.append(one.fileno())
                with other:
                    settings = {**self._settings, "dispatcher": other.fileno()}
                    self._children.append(self._child(number, settings, other.fileno()))
            self._dispatcher = self._child(0, {**self._settings, "members": ours}, *ours)

    def _everybody(self) -> list[Child]:
        return ([] if self._dispatcher is None else [self._dispatcher]) + self._children

    def _end(self) -> None:
        for child in self._everybody():
            child.terminate()
        for child in self._everybody():
            child.close()

    def go(self) -> list[dict[str, Any]]:
        """Let them all begin, and return what they say when they listen."""
        if self._dispatcher is not None:
            self._dispatcher.order("go")
            self._dispatcher.expect("ready")
        for child in self._children:
            child.order("go")
        return [child.expect("ready") for child in self._children]

    def wait_for_start(self, number: int) -> dict[str, Any]:
        """Return what was said when the job with this number was started."""
        return self.wait_for("started", number)

    def wait_for(self, what: str, number: int) -> dict[str, Any]:
        """Return the next line that says this of the job with this number."""
        return self._next(
            lambda line: line["what"] == what and line["number"] == number,
            f"job {number} was not {what} within {PATIENCE_SECONDS:.0f} s",
        )

    def starts_after(self, moment: float) -> dict[str, Any]:
        """Return the first start after a moment of the monotonic clock."""
        return self._next(
            lambda line: line["what"] == "started" and line["at"] > moment,
            f"no job was started for {PATIENCE_SECONDS:.0f} s",
        )

    def starts_so_far(self) -> list[dict[str, Any]]:
        """Return what was said of starts since somebody last asked."""
        lines = []
        while True:
            try:
                lines.append(self._said_of_jobs.get_nowait())
            except queue.Empty:
                return [line for line in lines if line["what"] == "started"]

    def next_lines(self, count: int) -> list[dict[str, Any]]:
        """Return the next so many lines that are said of jobs."""
        failure = f"no job was started or ended for {PATIENCE_SECONDS:.0f} s"
        return [self._next(lambda _line: True, failure) for _ in range(count)]

    def _next(self, wanted: Callable[[dict[str, Any]], bool], failure: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                line = self._said_of_jobs.get(timeout=0.5)
            except queue.Empty:
                for child in self._everybody():
                    child.check()
                continue
            if wanted(line):
                return line
        raise StreamQueueError(failure)

    def ask(self) -> list[dict[str, Any]]:
        """Ask them all, the dispatcher too, for a report, whatever it is in their module."""
        for child in self._everybody():
            child.order("report")
        return [child.expect("report") for child in self._everybody()]

    def reports(self) -> list[Report]:
        """Ask the consumers."""
        return [
            Report(**{key: value for key, value in answer.items() if key != "what"})
            for answer in self.ask()
        ]

    def wait_until_completed(
        self, jobs: int, meanwhile: Callable[[int], None] | None = None
    ) -> list[Report]:
        """Return the reports once this many jobs are complete.

        Args:
            meanwhile: called with how many are, between two looks.

        Raises:
            StreamQueueError: one of them died, or none has completed a job for a minute.
        """
        most, moved_at = -1, time.monotonic()
        while True:
            reports = self.reports()
            completed = completed_by(reports)
            if completed >= jobs:
                return reports
            if completed > most:
                most, moved_at = completed, time.monotonic()
            elif time.monotonic() - moved_at > PATIENCE_SECONDS:
                raise StreamQueueError(
                    f"{completed} of {jobs} jobs were completed, and then no more for "
                    f"{PATIENCE_SECONDS:.0f} s"
                )
            if meanwhile is not None:
                meanwhile(completed)
            pause(LOOK_SECONDS)


def completed_by(reports: Sequence[Report]) -> int:
    """Return how many jobs they have completed together."""
    return sum(report.completed for report in reports)


def pause(length: float) -> None:
    """Wait this many seconds."""
    threading.Event().wait(length)
