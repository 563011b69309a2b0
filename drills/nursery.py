"""Processes that cost next to nothing to start: forked from one that has imported everything.

Starting Python and importing pymongo takes a good part of a second of CPU, a fork about ten
milliseconds. The parent makes no client and starts no thread, which a fork would not survive. It
ends, and its children with it, when whoever started it is gone, however that ended.

It is spoken to in JSON lines: ``fork`` and ``signal`` on its standard input, and on its standard
output which child was forked and which ended how. Only it sends signals, because only the parent
knows that a process id is still its child's.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.waiting import wait_until

PROGRAMS = (
    "drills.programs.blocking",
    "drills.programs.canceller",
    "drills.programs.consumer",
    "drills.programs.customers",
    "drills.programs.fleet",
    "drills.programs.lone",
    "drills.programs.pauser",
    "drills.programs.producer",
)
ROOT = Path(__file__).resolve().parents[1]
PR_SET_PDEATHSIG = 1


class Child:
    """A forked process.

    Attributes:
        pid: its process id.
        log: what it, and the queue's logger in it, wrote to standard error.
        code: how it ended: its exit code, minus the signal's number; None while it lives.
        expected: the codes that are no surprise; a kill adds to them.
    """

    def __init__(self, nursery: Nursery, log: Path) -> None:
        self._nursery = nursery
        self.log = log
        self.pid = 0
        self.code: int | None = None
        self.expected = {0}

    @property
    def alive(self) -> bool:
        return self.code is None

    def send(self, what: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        if what == signal.SIGKILL:
            self.expected.add(-signal.SIGKILL)
        if self.alive:
            self._nursery.say(signal=what, pid=self.pid)

    def kill(self) -> None:
        """``kill -9``."""
        self.send(signal.SIGKILL)

    def wait(self, within: float = 30.0) -> int:
        """Wait for its end and return how it ended."""
        wait_until(lambda: not self.alive, f"the end of process {self.pid}", within)
        assert self.code is not None
        return self.code


class Nursery:
    """Forks children.

    Args:
        environment: variables for all of them, such as ``LD_PRELOAD``.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._forked: dict[int, Child] = {}  # by number, until its process id is known
        self._children: dict[int, Child] = {}
        self.all: list[Child] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def fork(self, program: str, directory: Path, **settings: Any) -> Child:
        """Start ``run(directory=…, **settings)`` of a program; return at once."""
        with self._lock:
            number = next(self._numbers)
        log = directory / f"{program.rpartition('.')[2]}-{number}.log"
        child = self._forked[number] = Child(self, log)
        self.all.append(child)
        settings = {"directory": str(directory), **settings}
        self.say(fork=number, program=program, log=str(log), settings=settings)
        wait_until(lambda: child.pid, "a fork", 30)
        return child

    def say(self, **words: Any) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "fork" in said:
                child = self._forked.pop(said["fork"])
                self._children[said["pid"]] = child
                child.pid = said["pid"]
            else:
                self._children.pop(said["pid"]).code = said["code"]

    def surprises(self) -> list[str]:
        """Return how children ended that nobody killed, and forget about those that ended."""
        told = [
            f"process {child.pid} ended with {child.code}: {_last_line(child.log)}"
            for child in self.all
            if child.code is not None and child.code not in child.expected
        ]
        self.all = [child for child in self.all if child.alive]
        return told

    def close(self) -> None:
        """Kill all children and end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "(it said nothing)"


# in the parent


class _Parent:
    def __init__(self) -> None:
        self._living: set[int] = set()
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Its own: a write to the standard output of a child would look like ours.
        self._answers = os.dup(1)
        os.dup2(2, 1)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us

    def serve(self) -> None:
        ready = selectors.DefaultSelector()
        ready.register(0, selectors.EVENT_READ)
        ready.register(self._woken, selectors.EVENT_READ)
        rest = b""
        while True:
            for key, _ in ready.select():
                if key.fd == self._woken:
                    os.read(self._woken, 1024)
                    self._reap()
                    continue
                words = os.read(0, 65536)
                if not words:
                    self._end()
                    return
                *lines, rest = (rest + words).split(b"\n")
                for line in lines:
                    self._do(json.loads(line))

    def _do(self, words: dict[str, Any]) -> None:
        if "signal" in words:
            if words["pid"] in self._living:
                os.kill(words["pid"], words["signal"])
            return
        pid = os.fork()
        if pid == 0:
            _live(words, os.getppid())
        self._living.add(pid)
        self._answer(fork=words["fork"], pid=pid)

    def _reap(self) -> None:
        while self._living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._living.discard(pid)
            self._answer(pid=pid, code=os.waitstatus_to_exitcode(status))

    def _answer(self, **words: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._answers, json.dumps(words).encode() + b"\n")

    def _end(self) -> None:
        for pid in self._living:
            os.kill(pid, signal.SIGKILL)
        while self._living:
            pid, status = os.waitpid(-1, 0)
            self._living.discard(pid)
            self._answer(pid=pid, code=os.waitstatus_to_exitcode(status))


def _live(words: dict[str, Any], parent: int) -> None:
    """Be a child; never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        log = os.open(words["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        settings = words["settings"]
        settings["directory"] = Path(settings["directory"])
        code = importlib.import_module(words["program"]).run(**settings) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for program in PROGRAMS:
        importlib.import_module(program)
    gc.freeze()  # what is shared stays shared: a collection would write to it
    _Parent().serve()
