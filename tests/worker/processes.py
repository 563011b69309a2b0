"""Worker processes: started, listened to, and stopped or killed with real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests import programs
from tests.waiting import wait_until

PROGRAM = Path(__file__).with_name("programs") / "worker.py"


class WorkerProcess:
    """A process that runs ``programs/worker.py``, or another program of that folder."""

    def __init__(
        self, uri: str, database: str, collection: str, *, program: Path = PROGRAM, **settings: Any
    ) -> None:
        arguments = {"uri": uri, "database": database, "collection": collection, **settings}
        self._process = programs.Popen(
            [sys.executable, str(program), json.dumps({"handler": "waits", **arguments})],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(json.loads(line))

    @property
    def pid(self) -> int:
        return self._process.pid

    def said(self, what: str) -> list[dict[str, Any]]:
        """Return what it has said of one kind so far."""
        return [line for line in list(self._said) if line["what"] == what]

    def until_said(self, what: str, times: int = 1, within: float = 10) -> None:
        """Wait until it has said something so often."""
        wait_until(
            lambda: len(self.said(what)) >= times or self._process.poll() is not None,
            f"{times} times {what!r}",
            within,
        )
        assert len(self.said(what)) >= times, f"ended with {self._process.returncode}"

    def send(self, what: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(what)

    def exit_code(self, within: float = 10) -> int:
        """Wait for its end."""
        code = self._process.wait(within)
        self._reader.join()
        return code

    def stop(self, within: float = 10) -> tuple[int, float]:
        """Send SIGTERM and wait; return its exit code and how many seconds that took."""
        asked_at = time.monotonic()
        self.send(signal.SIGTERM)
        return self.exit_code(within), time.monotonic() - asked_at

    def outcomes(self) -> dict[str, int]:
        """Return what it counted, after an end in order."""
        [stopped] = self.said("stopped")
        outcomes: dict[str, int] = stopped["outcomes"]
        return outcomes

    def end(self) -> None:
        """Kill it if it still lives, stopped or not."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
