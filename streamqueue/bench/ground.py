"""The ground a part measures on: the server, a database of its own, and consumers."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from ..embedded import EmbeddedServer
from ..protocol.schema import INDEXES
from . import floor
from .fleet import Fleet
from .process import Team

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pymongo.synchronous.collection import Collection
    from pymongo.synchronous.database import Database

    from .consumer import HandlerKind
    from .report import Progress
    from .scale import Scale

INSERT_BATCH = 5000
USER_TIME = 11
"""Where it stands in /proc/PID/stat after the program's name, with the system's time next to it."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What every part is given.

    Attributes:
        server: the local mongod, or None when it is somebody's cluster.
    """

    uri: str
    client: MongoClient[dict[str, Any]]
    database: Database[dict[str, Any]]
    server: EmbeddedServer | None
    scale: Scale
    progress: Progress

    def server_seconds(self) -> float | None:
        """Return the processor time that the server has used so far; None where it is not known:
        somebody's cluster, or no Linux."""
        if self.server is None:
            return None
        try:
            fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        ticks = int(fields[USER_TIME]) + int(fields[USER_TIME + 1])
        return ticks / os.sysconf("SC_CLK_TCK")

    def known_server_seconds(self) -> float:
        """The same, for who has seen that it is known."""
        return self.server_seconds() or 0.0

    @contextmanager
    def jobs(
        self, waiting: int = 0, *, queues: int = 1, groups: int = 0
    ) -> Iterator[Collection[dict[str, Any]]]:
        """Give a new collection with the queue's indexes and some waiting jobs; drop it after."""
        name = f"jobs_{secrets.token_hex(4)}"
        jobs = self.database.get_collection(name, write_concern=floor.MAJORITY)
        try:
            jobs.create_indexes(INDEXES)
            fill(jobs, waiting, queues=queues, groups=groups)
            yield jobs
        finally:
            _drop_quietly(jobs)

    def consumers(
        self,
        fleet: Fleet,
        jobs: Collection[dict[str, Any]],
        *,
        concurrency: int = 20,
        handler: HandlerKind = "passes",
        serve: bool = False,
        queues: int = 1,
        hold: float = 0.0,
        rules: Mapping[str, Any] | None = None,
    ) -> Team:
        """Return worker processes on this collection, to be entered; see ``consumer.py``."""
        settings = {
            "concurrency": concurrency,
            "handler": handler,
            "serve": serve,
            "queues": floor.queue_names(queues),
            "hold": hold,
            "rules": rules or {},
        }
        return Team("consumer", fleet, self.uri, settings | _place(jobs))

    def listener(self, jobs: Collection[dict[str, Any]]) -> Team:
        """Return the process that waits on a raw change stream, to be entered."""
        return Team("floor", Fleet(1), self.uri, _place(jobs))


def _place(jobs: Collection[dict[str, Any]]) -> dict[str, str]:
    return {"database": jobs.database.name, "collection": jobs.name}


def fill(
    jobs: Collection[dict[str, Any]],
    count: int,
    *,
    later: float = 0,
    queues: int = 1,
    groups: int = 0,
) -> None:
    """Insert this many jobs, ready or due `later` (seconds), as ours would be stored; in turns over
    the queues, and over the groups, of which there are none by default."""
    names = cycle(floor.queue_names(queues))
    members = cycle([f"group-{number}" for number in range(groups)] or [None])
    for start in range(0, count, INSERT_BATCH):
        numbers = range(start, min(start + INSERT_BATCH, count))
        jobs.insert_many(
            [
                floor.document({"number": n}, later=later, queue=next(names), group=next(members))
                for n in numbers
            ]
        )


def _drop_quietly(jobs: Collection[dict[str, Any]]) -> None:
    """Drop it now; if the server is gone, that is being reported already."""
    try:
        jobs.drop()
    except PyMongoError:
        pass


@contextmanager
def open_ground(uri: str | None, scale: Scale, progress: Progress) -> Iterator[Ground]:
    """Connect, or start a local replica set; drop the database at the end."""
    with ExitStack() as stack:
        server = None
        if uri is None:
            server = stack.enter_context(EmbeddedServer())
            uri = server.uri
        settings: dict[str, Any] = {"appname": "streamqueue-bench"}
        if "serverselectiontimeoutms" not in uri.lower():
            settings["serverSelectionTimeoutMS"] = 5000
        client = stack.enter_context(MongoClient[dict[str, Any]](uri, **settings))
        client.admin.command("ping")  # nothing to clean up if nobody answers
        name = f"streamqueue_bench_{secrets.token_hex(4)}"
        try:
            yield Ground(uri, client, client[name], server, scale, progress)
        finally:
            try:
                client.drop_database(name)
            except PyMongoError:
                sys.stderr.write(f"streamqueue: the database {name} could not be dropped\n")
