"""A replica set of real mongods, and everything that can be done to them.

Each member runs under the package's own supervisor, so all of them end with this process, however
that ends. Their ports stay reserved while they are down: nobody else can take one in between.

    with ReplicaSet(3, election_timeout=2) as servers:
        old = servers.primary()
        old.kill()
        new = servers.wait_for_primary(besides=old)
        old.start()
        servers.wait_until_healthy()

All methods block, and belong to one thread at a time.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pymongo
from pymongo import MongoClient, WriteConcern
from pymongo.errors import AutoReconnect, PyMongoError

import streamqueue
from drills.proxy import Proxies
from streamqueue.embedded import find_mongod
from tests.waiting import wait_until

HOST = "127.0.0.1"
SET_NAME = "rs0"
USER, PASSWORD = "root", "drill"

SMALL_OPLOG = (
    *("--oplogSize", "1", "--syncdelay", "1"),
    *("--setParameter", "minSnapshotHistoryWindowInSeconds=0"),
)
"""Options with which an oplog rolls over after tens of MB.

It is cut after checkpoints, once a minute by default, and keeps what snapshots may still ask for:
without the last two an oplog of 1 MB grew to 70 (6.0.5)."""

_SUPERVISOR = Path(streamqueue.__file__).parent / "embedded" / "_supervisor.py"
_READY = {"PRIMARY", "SECONDARY"}


class Member:
    """One mongod, started and ended many times on the same folder and port.

    Attributes:
        host: what the replica set knows it as: its own address, or that of a proxy before it.
        port: where it really listens.
    """

    def __init__(
        self, index: int, folder: Path, port: int, host: str, options: Sequence[str], auth: bool
    ) -> None:
        self.index = index
        self.port = port
        self.host = host
        self.log = folder / f"member-{index}.log"
        self.data = folder / f"member-{index}"
        self.data.mkdir(exist_ok=True)
        self._folder = folder
        self._options = list(options)
        self._runs = 0
        self._pid: int | None = None
        self._frozen = False
        self._ending = False
        self._mounted = False
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        user: dict[str, Any] = {"username": USER, "password": PASSWORD} if auth else {}
        self.client: MongoClient[dict[str, Any]] = MongoClient(
            HOST,
            port,
            directConnection=True,
            connect=False,
            serverMonitoringMode="poll",
            heartbeatFrequencyMS=500,
            connectTimeoutMS=1000,
            serverSelectionTimeoutMS=2000,
            socketTimeoutMS=30_000,
            appname="drill",
            **user,
        )

    def __repr__(self) -> str:
        return f"member {self.index}"

    @property
    def pid(self) -> int:
        """The process id of mongod."""
        assert self._pid is not None, f"{self} is not running"
        return self._pid

    @property
    def running(self) -> bool:
        """Whether it was started and neither killed nor shut down, frozen or not."""
        return self._pid is not None

    @property
    def ending(self) -> bool:
        """Whether its shutdown has begun and not been waited for."""
        return self._ending

    @property
    def answers(self) -> bool:
        """Whether it can be asked anything."""
        return self.running and not self._frozen and not self._ending

    def start(self, within: float = 60) -> None:
        """Start mongod; return once it listens."""
        assert self._pid is None, f"{self} is running"
        self._runs += 1
        # A folder for each run that the supervisor takes for its temporary data: it is deleted
        # with mongod, and mongod is then killed, not shut down, when this process is gone.
        mark = self._folder / f"run-{self.index}-{self._runs}"
        self._line, far_end = socket.socketpair()
        with far_end, (self._folder / f"output-{self.index}").open("ab") as output:
            self._supervisor = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_SUPERVISOR), str(os.getpid()), str(mark)),
                    *(str(find_mongod()), "--dbpath", str(self.data)),
                    *("--logpath", str(self.log), "--logappend", "--replSet", SET_NAME),
                    *("--bind_ip", HOST, "--port", str(self.port), "--nounixsocket", "--quiet"),
                    *("--setParameter", "enableTestCommands=1"),
                    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
                    *self._options,
                ],
                stdin=far_end.fileno(),
                stdout=far_end.fileno(),
                stderr=output,
                start_new_session=True,
            )
        self._line.settimeout(within)
        report = self._line.makefile("rb").readline().decode().split(" ", 1)
        assert report[0] == "pid", f"mongod cannot be run: {report}"
        self._pid = int(report[1])
        wait_until(self._listens, f"{self} listens", within)

    def _listens(self) -> bool:
        assert self._line is not None
        self._line.settimeout(0.01)
        try:
            report = self._line.recv(100)
        except TimeoutError:
            pass
        else:
            raise AssertionError(f"{self} ended as it started ({report!r}): {self.last_log()}")
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def last_log(self, lines: int = 5) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """kill -9."""
        self._signal(signal.SIGKILL)
        self._gone()

    def begin_shutdown(self) -> None:
        """Send SIGTERM, as an init system does; :meth:`wait_until_gone` waits for the end."""
        self._signal(signal.SIGTERM)
        self._ending = True

    def shut_down(self, within: float = 60) -> None:
        """End it in order, and wait."""
        self.begin_shutdown()
        self.wait_until_gone(within)

    def wait_until_gone(self, within: float = 60) -> None:
        """Wait for the end of a shutdown."""
        assert self._line is not None
        self._line.settimeout(within)
        assert self._line.recv(100).startswith(b"exit"), f"{self} did not end"
        self._gone()

    def freeze(self) -> None:
        """SIGSTOP: its kernel goes on answering, it does not."""
        self._signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self._frozen = False

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def _gone(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._supervisor is not None:
            self._supervisor.wait(30)
        self._line = self._supervisor = self._pid = None
        self._frozen = self._ending = False

    def mount(self, megabytes: int) -> None:
        """Put its data on a disk of that size."""
        size = f"size={megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(self.data)], check=True)
        self._mounted = True

    def fill_disk(self) -> None:
        """Leave no room on its disk."""
        with suppress(OSError), (self.data / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 16))

    def free_disk(self) -> None:
        """Give back what was filled."""
        (self.data / "filler").unlink()

    def ended_by_itself(self) -> bool:
        """Whether it has ended though nobody told it to; it can be started again then."""
        assert self._line is not None
        self._line.settimeout(0.01)
        try:
            report = self._line.recv(100)
        except TimeoutError:
            return False
        assert report.startswith(b"exit")
        self._gone()
        return True

    def end(self) -> None:
        """Kill it if it lives."""
        if self.running:
            self.kill()
        if self._mounted:
            subprocess.run(["umount", str(self.data)], check=True)
        self.client.close()

    def command(self, name: str | dict[str, Any], value: Any = 1, **arguments: Any) -> Any:
        """Run an admin command on this member, whatever it is."""
        return self.client.admin.command(name, value, **arguments)

    def hello(self) -> dict[str, Any]:
        """Return its own view, or {} if it does not answer at once."""
        if not self.answers:
            return {}
        try:
            with pymongo.timeout(1):
                return dict(self.command("hello"))
        except PyMongoError:
            return {}

    def rollback_id(self) -> int:
        """Return the number that changes with each rollback."""
        try:
            return int(self.command("replSetGetRBID")["rbid"])
        except AutoReconnect:  # a rollback closes all connections, also those made during it
            return int(self.command("replSetGetRBID")["rbid"])

    def last_rollback(self) -> dict[str, int]:
        """Return how many commands of which name its last rollback undid; {} if it had none."""
        counts: dict[str, int] = {}
        with self.log.open(errors="replace") as lines:
            for line in lines:
                if '"msg":"Rollback summary"' in line:
                    counts = json.loads(line)["attr"].get("rollbackCommandCounts", {})
        return {name: int(count) for name, count in counts.items()}


class ReplicaSet:
    """One or three mongods.

    Args:
        members: how many.
        election_timeout: seconds without a primary until the others elect one; the server's
            default is 10.
        proxied: put a proxy before each member, and make its address the member's.
        options: further arguments for every mongod.
        auth: whether clients must log in; :attr:`uri` has an administrator's name.
        settings: of the replica set configuration, besides the election timeout.
        disk: MB of a disk of its own for the first member, in memory; only root can mount one.

    Attributes:
        proxies: those before the members, when it is proxied.
    """

    def __init__(
        self,
        members: int = 3,
        *,
        election_timeout: float = 10,
        proxied: bool = False,
        options: Sequence[str] = (),
        auth: bool = False,
        settings: dict[str, Any] | None = None,
        disk: int | None = None,
    ) -> None:
        self.election_timeout = election_timeout
        self._size = members
        self._auth = auth
        self._settings = settings or {}
        self._disk = disk
        self._options = list(options)
        if not any(option.startswith("--oplogSize") for option in options):
            self._options += ["--oplogSize", "64"]
        self._options += ["--wiredTigerCacheSizeGB", "0.25"]
        self._holders = [_reserve_port() for _ in range(members)]
        self._proxied = proxied
        self._proxies: Proxies | None = None
        self.members: list[Member] = []
        self._keeper: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.gettempdir(), f"streamqueue-drill-{secrets.token_hex(6)}")

    @property
    def ports(self) -> list[int]:
        """Where the members listen; known before they are started."""
        return [int(holder.getsockname()[1]) for holder in self._holders]

    def start(self) -> Self:
        """Start all, make them a replica set, and wait until each is caught up."""
        self._keep_folder()
        options = list(self._options)
        if self._auth:
            key = self.folder / "key"
            key.write_text(secrets.token_hex(32))
            key.chmod(0o600)
            options += ["--auth", "--keyFile", str(key)]
        hosts = [f"{HOST}:{port}" for port in self.ports]
        if self._proxied:
            self._proxies = Proxies(self.ports).__enter__()
            hosts = self._proxies.hosts
        for index, (port, host) in enumerate(zip(self.ports, hosts, strict=True)):
            self.members.append(Member(index, self.folder, port, host, options, self._auth))
        if self._disk is not None:
            self.members[0].mount(self._disk)
        try:
            for member in self.members:
                member.start()
            self._initiate()
            self.wait_for_primary(within=60)
            self.wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def _keep_folder(self) -> None:
        """Have a supervisor make the folder and delete it when this process is gone."""
        self._keeper_line, far_end = socket.socketpair()
        with far_end:
            self._keeper = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_SUPERVISOR)),
                    *(str(os.getpid()), str(self.folder), "sleep", "infinity"),
                ],
                stdin=far_end.fileno(),
                stdout=far_end.fileno(),
                start_new_session=True,
            )
        assert self._keeper_line.recv(100).startswith(b"pid")

    def _initiate(self) -> None:
        config = {
            "_id": SET_NAME,
            "members": [{"_id": m.index, "host": m.host} for m in self.members],
            "settings": {
                "electionTimeoutMillis": round(1000 * self.election_timeout),
                "heartbeatIntervalMillis": min(2000, round(250 * self.election_timeout)),
                **self._settings,
            },
        }
        first = self.members[0]
        direct: MongoClient[dict[str, Any]] = MongoClient(HOST, first.port, directConnection=True)
        with direct as client:
            client.admin.command("replSetInitiate", config)
            if self._auth:
                wait_until(lambda: client.admin.command("hello")["isWritablePrimary"], "a primary")
                client.admin.command("createUser", USER, pwd=PASSWORD, roles=["root"])

    def stop(self) -> None:
        """Kill all and delete everything."""
        for member in self.members:
            member.end()
        if self._proxies is not None:
            self._proxies.__exit__()
            self._proxies = None
        if self._keeper is not None:
            self._keeper_line.close()
            self._keeper.wait(30)
            self._keeper = None
        shutil.rmtree(self.folder, ignore_errors=True)
        for holder in self._holders:
            holder.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """What to give to a MongoClient; further options can be appended with ``&``."""
        user = f"{USER}:{PASSWORD}@" if self._auth else ""
        hosts = ",".join(member.host for member in self.members)
        return f"mongodb://{user}{hosts}/?replicaSet={SET_NAME}"

    @property
    def proxies(self) -> Proxies:
        """The proxies before the members."""
        assert self._proxies is not None, "made without proxies"
        return self._proxies

    # who is who

    def primary(self) -> Member:
        """Return the primary there is now."""
        member = self._find_primary()
        assert member is not None, "there is no primary"
        return member

    def _find_primary(self) -> Member | None:
        leading = []
        for member in self.members:
            hello = member.hello()
            if hello.get("isWritablePrimary"):
                leading.append((hello["electionId"], member))
        return max(leading, key=lambda pair: pair[0])[1] if leading else None

    def secondaries(self) -> list[Member]:
        """Return the members that answer and are not the primary."""
        primary = self._find_primary()
        return [m for m in self.members if m.answers and m is not primary]

    def wait_for_primary(self, *, besides: Member | None = None, within: float = 60) -> Member:
        """Wait for a primary, another one than that, that accepts writes."""

        def another() -> Member | None:
            member = self._find_primary()
            return None if member is besides else member

        found = wait_until(another, f"a primary besides {besides}", within)
        assert found is not None
        return found

    def wait_until_healthy(self, within: float = 90) -> None:
        """Wait until every member is up and has everything."""
        deadline = time.monotonic() + within
        while True:
            try:
                states = {
                    m["stateStr"] for m in self.primary().command("replSetGetStatus")["members"]
                }
                if states <= _READY and all(m.answers for m in self.members):
                    everywhere = WriteConcern(len(self.members), wtimeout=5000, j=True)
                    marks = self.primary().client.get_database("drill", write_concern=everywhere)
                    marks.healthy.update_one({"_id": 0}, {"$inc": {"times": 1}}, upsert=True)
                    return
            except (PyMongoError, AssertionError):
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, f"not healthy within {within} s"
            wait_until(self._find_primary, "a primary", max(0.1, deadline - time.monotonic()))

    # what is done to them

    def step_down(self, seconds: int = 10) -> Member:
        """Make the primary step down; return it."""
        old = self.primary()
        try:
            old.command("replSetStepDown", seconds, secondaryCatchUpPeriodSecs=min(10, seconds))
        except AutoReconnect:
            pass  # servers before 4.2 close their connections as they step down
        return old

    def roll_oplog(self, within: float = 60) -> int:
        """Write until the primary has forgotten all that was written before; return how many MB.

        Needs servers with ``SMALL_OPLOG``.
        """
        client = self.primary().client
        oplog = client.local["oplog.rs"]
        noise = client.get_database("drill", write_concern=WriteConcern(1)).noise
        [newest] = oplog.find({}, {"ts": 1}).sort("$natural", -1).limit(1)
        piece, written = {"piece": os.urandom(1 << 20)}, 0

        def forgotten() -> bool:
            nonlocal written
            noise.insert_one(dict(piece))
            written += 1
            if written % 16 == 0:
                noise.delete_many({})
            [oldest] = oplog.find({}, {"ts": 1}).sort("$natural", 1).limit(1)
            return bool(oldest["ts"] > newest["ts"])

        wait_until(forgotten, "the oplog rolled over", within)
        noise.drop()
        return written

    @contextmanager
    def isolated_primary(self) -> Iterator[Member]:
        """While this lasts the primary stays one, takes writes, and nobody replicates them."""
        primary = self.primary()
        others = [m for m in self.members if m is not primary]
        for member in others:
            member.command("configureFailPoint", "stopReplProducer", mode="alwaysOn")
        # A fetch that is under way still brings what is written before it returns.
        for member in others:
            member.command("waitForFailPoint", "stopReplProducer", timesEntered=1, maxTimeMS=30_000)
        try:
            yield primary
        finally:
            for member in others:
                if member.answers:
                    member.command("configureFailPoint", "stopReplProducer", mode="off")


def _reserve_port() -> socket.socket:
    """Hold a free port for good; Linux lets mongod listen beside a socket that is only bound."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((HOST, 0))
    return holder
