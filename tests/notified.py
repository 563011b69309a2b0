"""A command started as a service manager starts it, and what it tells the service manager.

::

    with notified(["streamqueue", "worker", "tasks:worker"], folder, environment) as service:
        service.until("READY=1")
        service.process.send_signal(signal.SIGTERM)
        service.until("STOPPING=1")
        assert service.process.wait(10) == 0
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.waiting import wait_until

_CREDENTIALS = struct.Struct("3i")

# WATCHDOG_PID is the process id of the command, which nobody knows before: the shell becomes it.
_WITH_ITS_PID = ("/bin/sh", "-c", 'export WATCHDOG_PID=$$; exec "$@"', "sh")


@dataclass(frozen=True)
class Message:
    """What was said at once, by which process, and when (monotonic)."""

    at: float
    pid: int
    lines: tuple[str, ...]


class NotifySocket:
    """The service manager's end: notes what arrives, and from whom.

    Args:
        address: a path, or ``@`` and a name for an abstract one. None: a free abstract one.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address or f"@streamqueue-test-{secrets.token_hex(8)}"
        self.messages: list[Message] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(self.address.replace("@", "\0", 1))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            room = socket.CMSG_SPACE(_CREDENTIALS.size)
            data, [(_, _, sender)], _, _ = self._socket.recvmsg(65536, room)
            if not data:
                return
            lines = tuple(data.decode().split("\n"))
            self.messages.append(Message(time.monotonic(), _CREDENTIALS.unpack(sender)[0], lines))

    def said(self, line: str) -> list[Message]:
        """Return the messages so far that have this line."""
        return [message for message in list(self.messages) if line in message.lines]

    def until(self, line: str, times: int = 1, within: float = 30) -> Message:
        """Wait until a line was said so often; return that message."""
        wait_until(lambda: len(self.said(line)) >= times, f"{times} times {line}", within)
        return self.said(line)[times - 1]

    @property
    def status(self) -> str:
        """What stands in ``systemctl status`` now."""
        said = (line for message in list(self.messages) for line in message.lines)
        return ([""] + [line for line in said if line.startswith("STATUS=")])[-1][len("STATUS=") :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address.replace("@", "\0", 1))
        self._reader.join()
        self._socket.close()


class NotifiedProcess:
    """A command that runs, its notify socket, and what it wrote.

    Attributes:
        process: with the process id of the command itself.
    """

    def __init__(self, process: subprocess.Popen[bytes], manager: NotifySocket, log: Path) -> None:
        self.process = process
        self.manager = manager
        self._log = log
        self.until = manager.until
        self.said = manager.said

    @property
    def log(self) -> str:
        """What it and its children wrote on standard output and standard error."""
        return self._log.read_text()

    def silence(self) -> float:
        """Return the seconds since it last gave a sign of life."""
        return time.monotonic() - self.said("WATCHDOG=1")[-1].at


@contextmanager
def notified(
    command: Sequence[str | Path],
    folder: Path,
    environment: Mapping[str, str],
    *,
    watchdog: float | None = None,
    executes: Sequence[str | Path] = (),
) -> Iterator[NotifiedProcess]:
    """Run a command with a notify socket, in a session of its own; kill it at the end.

    Args:
        folder: where it runs, and writes ``notified.log``.
        environment: all of it, as for a service; PATH and HOME are added.
        watchdog: WatchdogSec=, in seconds.
        executes: a program and its arguments that become the command, to change what it may do.
    """
    log = folder / "notified.log"
    surroundings = {"PATH": os.defpath, "HOME": "/nonexistent", **environment}
    if "PYTHONPATH" in os.environ:  # where a copy of the package is, if one is to be tested
        surroundings["PYTHONPATH"] = os.environ["PYTHONPATH"]
    prefix = _WITH_ITS_PID if watchdog else ()
    with NotifySocket() as manager, log.open("wb") as output:
        surroundings["NOTIFY_SOCKET"] = manager.address
        if watchdog:
            surroundings["WATCHDOG_USEC"] = str(int(watchdog * 1_000_000))
        process = subprocess.Popen(
            [*prefix, *executes, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=surroundings,
            start_new_session=True,
        )
        try:
            yield NotifiedProcess(process, manager, log)
        except BaseException:
            # Of a test that fails, pytest shows this.
            sys.stderr.write(f"{log.read_text()}\n{manager.messages}\n")
            raise
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # What it started has sessions of its own, and ends when it is gone, but for what is blocked.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()] if process.poll() is None else []
    process.kill()
    process.wait()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
