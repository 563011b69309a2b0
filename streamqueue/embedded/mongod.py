"""One run of mongod: started by a supervisor that ends it with this program, and stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EmbeddedServerError
from .binary import GET_ANOTHER
from .causes import HOST, Log, cause_of_exit, last_line

if TYPE_CHECKING:
    from collections.abc import Sequence

SET_NAME = "rs0"
LOG_NAME = "mongod.log"
SUPERVISOR = Path(__file__).with_name("_supervisor.py")

START_SECONDS = 60.0
POLL_SECONDS = 0.01
ORPHAN_SECONDS = 10.0


class Mongod:
    """One run of mongod and of its supervisor.

    Raises:
        EmbeddedServerError: the program cannot be run at all.
    """

    def __init__(
        self, program: Path, port: int, folder: Path, arguments: Sequence[str], *, temporary: bool
    ) -> None:
        self.owner = os.getpid()
        self.port = port
        self.folder = folder
        self._program = program
        self._temporary = temporary
        self._log = folder / LOG_NAME
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._reports = b""
        # What mongod writes before it opens its log, and a traceback of the supervisor. It has no
        # name, so it cannot stay behind.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed by end()
        self._line, far_end = socket.socketpair()
        try:
            with far_end:
                self._supervisor = self._start_supervisor(far_end, arguments)
        except OSError as error:
            self._line.close()
            self._output.close()
            raise EmbeddedServerError(
                f"the supervisor of mongod cannot be run with {sys.executable!r} "
                f"({error.strerror}): start the server from an ordinary Python"
            ) from error
        try:
            self.pid = self._read_pid()
        except BaseException:
            self.end()
            raise

    def _start_supervisor(
        self, line: socket.socket, arguments: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        # -I: what lies beside the script, or in PYTHONPATH, replaces no module of the standard
        # library. A new session: Ctrl-C in the terminal is for the program alone.
        return subprocess.Popen(  # noqa: S603  our own program
            [
                *(sys.executable, "-I", "-S", str(SUPERVISOR)),
                *(str(self.owner), str(self.folder) if self._temporary else ""),
                *(str(self._program), "--dbpath", str(self.folder)),
                *("--logpath", str(self._log), "--logappend"),
                *("--replSet", SET_NAME, "--bind_ip", HOST, "--port", str(self.port)),
                *("--nounixsocket", "--quiet"),
                *("--setParameter", "diagnosticDataCollectionEnabled=false"),
                *arguments,
            ],
            stdin=line.fileno(),
            stdout=line.fileno(),
            stderr=self._output,
            start_new_session=True,
        )

    def _read_pid(self) -> int:
        match self._next_report(START_SECONDS).split(" ", 1):
            case ["pid", pid]:
                return int(pid)
            case ["unusable", why]:
                raise EmbeddedServerError(
                    f"{self._program} cannot be run here ({why}): {GET_ANOTHER}"
                )
            case _:
                raise EmbeddedServerError(
                    f"the supervisor of mongod cannot work here: {last_line(self._printed())}"
                )

    def _next_report(self, timeout: float) -> str:
        """Wait for a line of the supervisor; "" if none came in time or it is gone."""
        self._line.settimeout(timeout)
        while b"\n" not in self._reports:
            try:
                received = self._line.recv(4096)
            except OSError:
                return ""
            if not received:
                return ""
            self._reports += received
        line, _, self._reports = self._reports.partition(b"\n")
        return line.decode()

    def wait_until_listening(self, deadline: float) -> None:
        """Wait until the port accepts connections.

        Raises:
            EmbeddedServerError: mongod ended instead, or the deadline (monotonic seconds) passed.
        """
        while time.monotonic() < deadline:
            self.check_alive(POLL_SECONDS)
            try:
                socket.create_connection((HOST, self.port), timeout=1).close()
            except OSError:
                continue
            return
        raise EmbeddedServerError(
            f"mongod did not listen within {START_SECONDS:.0f} s: try again when the machine or "
            f"its disk is less busy{self.where_is_the_log()}"
        )

    def check_alive(self, timeout: float) -> None:
        """Give mongod some seconds to end, and raise why if it did."""
        match self._next_report(timeout).split(" ", 1):
            case ["exit", code]:
                raise cause_of_exit(
                    int(code),
                    self._printed(),
                    Log(self._log, self._log_start),
                    program=self._program,
                    port=self.port,
                    folder=self.folder,
                    where_is_the_log=self.where_is_the_log(),
                )
            case _:
                if self._supervisor.poll() is not None:
                    raise EmbeddedServerError(
                        "the supervisor of mongod was ended while mongod started: start it again"
                    )

    def end(self) -> None:
        """Have the supervisor end mongod and delete the folder, and wait for it. Idempotent."""
        try:
            # Unlike close(), this also works while a fork of this process has the socket open.
            self._line.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the supervisor is gone
        if self._supervisor.wait() != 0:
            self._wait_for_orphan()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._line.close()
        self._output.close()

    def _wait_for_orphan(self) -> None:
        """Wait until mongod is gone though its supervisor was killed: it has the socket open."""
        if sys.platform != "linux" and hasattr(self, "pid"):
            os.killpg(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + ORPHAN_SECONDS
        try:
            while (left := deadline - time.monotonic()) > 0:
                self._line.settimeout(left)
                if not self._line.recv(4096):
                    return
        except OSError:
            return

    def _printed(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def where_is_the_log(self) -> str:
        """Return the end of a sentence that says where the log is, or how to keep it."""
        if self._temporary:
            return " (give a data folder to keep its log)"
        return f" (its log is {self._log})"
