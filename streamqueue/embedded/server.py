"""EmbeddedServer: a port and a folder for a mongod, its start and its stop."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..errors import ConfigurationError, EmbeddedServerError
from .binary import find_mongod
from .causes import HOST, PortTaken
from .mongod import SET_NAME, START_SECONDS, Mongod
from .replica_set import make_primary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

PORT_TRIES = 3


class EmbeddedServer:
    """A mongod that belongs to this program: a one-node replica set on a loopback port.

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
        self._mongod: Mongod | None = None

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
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                self._start_once(program)
            except PortTaken:
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
        deadline = time.monotonic() + START_SECONDS
        with _reserved(self._wanted_port) as port:
            self._mongod = Mongod(
                program, port, folder, self._arguments(), temporary=self._kept_dir is None
            )
            try:
                self._mongod.wait_until_listening(deadline)
                make_primary(self._mongod, deadline)
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
        """The address to give to a MongoClient."""
        return f"mongodb://{HOST}:{self.port}/?replicaSet={SET_NAME}"

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

    def _running(self) -> Mongod:
        if self._mongod is None:
            raise EmbeddedServerError(
                "the embedded server is not running: call start(), or use it in a with statement"
            )
        return self._mongod


@contextmanager
def _reserved(wanted: int | None) -> Iterator[int]:
    """Hold a port, a free one for None, while mongod takes it over."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((HOST, wanted or 0))
        except OSError as error:
            if wanted is None:
                raise EmbeddedServerError(f"{HOST} has no free port ({error.strerror})") from error
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(wanted) from error
            raise EmbeddedServerError(
                f"port {wanted} on {HOST} cannot be used ({error.strerror}): ask for another one"
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
