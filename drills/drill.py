"""Drills: break something on purpose, often enough, while jobs flow; then drain and account.

A drill is a function that is given a :class:`Stage`, starts processes there, breaks things, and
counts what it hit. What comes after is the same for all: every job that is left is done by
consumers nobody disturbs, and the checker reads what everybody wrote. A drill that broke no law has
shown nothing unless it hit what it meant to, so each names how often it must.
"""

from __future__ import annotations

import random
import secrets
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self, TypeVar

from pymongo import MongoClient, ReadPreference
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.synchronous.collection import Collection

from drills import copies, dependency_laws, ends
from drills.checker import LAWS, Law, check
from drills.history import History
from drills.nursery import Child, Nursery
from drills.reading import read_account
from drills.report import Report
from drills.transactions import LEDGER, STEP_LEDGER
from streamqueue.clock import monotonic
from streamqueue.embedded import EmbeddedServer
from streamqueue.protocol.settings import BELL
from streamqueue.store.collection import BESIDE

Kept = TypeVar("Kept")

LIVE = ("scheduled", "ready", "waiting", "running")
BLOCKING_CONSUMER = "drills.programs.blocking"
CONSUMER = "drills.programs.consumer"
PRODUCER = "drills.programs.producer"
DRAIN_SECONDS = 90.0
LOOK_SECONDS = 0.05


class Scale(IntEnum):
    """How much a drill does: a part of ``make test``, of ``make faults``, or of a long run."""

    SHORT = 0
    DEFAULT = 1
    LONG = 2


@dataclass(frozen=True)
class Drill:
    """Something to break.

    Attributes:
        name: as the command line calls it.
        about: one line on what it does.
        hits: how often it must hit what, at each scale. What the drill does not count itself is
            taken from the account.
        run: breaks things on a stage. What it leaves running is killed before the drain, except
            consumers, which are stopped in order.
        laws: what the account is judged by.
    """

    name: str
    about: str
    hits: Mapping[str, tuple[int, int, int]]
    run: Callable[[Stage], None]
    laws: tuple[Law, ...] = LAWS


def drill(
    name: str, *, laws: tuple[Law, ...] = LAWS, **hits: tuple[int, int, int]
) -> Callable[[Callable[[Stage], None]], Drill]:
    """Make a drill of a function; its docstring's first line says what it is about."""

    def make(run: Callable[[Stage], None]) -> Drill:
        about = (run.__doc__ or "").strip().partition("\n")[0]
        return Drill(name, about, {hit.replace("_", " "): n for hit, n in hits.items()}, run, laws)

    return make


class Arena:
    """What drills share: a server of one member, started when one is asked for, and a nursery."""

    def __init__(self, uri: str | None = None) -> None:
        self._given = uri
        self._server: EmbeddedServer | None = None
        self.nursery = Nursery()

    @property
    def uri(self) -> str:
        """The address of a replica set of one member whose failpoints work."""
        if self._given is not None:
            return self._given
        if self._server is None:
            self._server = EmbeddedServer(test_commands=True).start()
        return self._server.uri

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.nursery.close()
        if self._server is not None:
            self._server.stop()


class Stage:
    """Where one drill takes place: a database of its own, its processes, and their histories.

    A drill that breaks servers brings its own: it says so with :meth:`play_on` before all else.

    Attributes:
        scale: how much to do.
        hits: what was broken, and how often. The drill counts.
        notes: figures for the report that no law is about.
        random: for all chances of a drill.
        of_drainers: settings of the consumers that do what is left.
    """

    def __init__(self, arena: Arena, drill: Drill, scale: Scale, say: Callable[[str], None]):
        self._arena = arena
        self._drill = drill
        self._say = say
        self._uri: str | None = None
        self._client: MongoClient[dict[str, Any]] | None = None
        self._environments: list[Nursery] = []
        self._kept = ExitStack()
        self.scale = scale
        self.hits: Counter[str] = Counter()
        self.notes: list[str] = []
        self.random = random.Random()
        self.database = f"drill_{secrets.token_hex(6)}"
        self.directory = Path(tempfile.mkdtemp(prefix=f"streamqueue-{drill.name}-"))
        self.history = History(self.directory, "drill")
        self.consumers: list[Child] = []
        self.others: list[Child] = []
        self.of_drainers: dict[str, Any] = {}

    # where

    def play_on(self, uri: str) -> None:
        """Use these servers for everything that starts from now on."""
        self._uri = uri
        if self._client is not None:
            self._client.close()
            self._client = None

    def keep(self, context: AbstractContextManager[Kept]) -> Kept:
        """Enter it, and leave it when the account is done: servers, for one, are needed so long."""
        return self._kept.enter_context(context)

    @property
    def uri(self) -> str:
        return self._arena.uri if self._uri is None else self._uri

    @property
    def client(self) -> MongoClient[dict[str, Any]]:
        if self._client is None:
            self._client = MongoClient(self.uri, tz_aware=True)
        return self._client

    @property
    def jobs(self) -> Collection[dict[str, Any]]:
        """The collection, read as the majority of the members has it."""
        return self.client[self.database].get_collection(
            "jobs",
            read_concern=ReadConcern("majority"),
            read_preference=ReadPreference.PRIMARY,
        )

    # who

    def consumer(
        self, nursery: Nursery | None = None, *, ends: Iterable[int] = (), **settings: Any
    ) -> Child:
        """Start a consumer; see ``programs/consumer.py`` for the settings.

        One by ``blocking`` is of the blocking shell (``programs/blocking.py``).

        `ends` are exit codes that are no surprise.
        """
        blocks = settings.get("by") == "blocking"
        if blocks:
            settings.pop("by")
        child = self._fork(nursery, BLOCKING_CONSUMER if blocks else CONSUMER, settings)
        child.expected.update(ends)
        self.consumers.append(child)
        return child

    def keep_crowd(self, size: int, nursery: Nursery | None = None, **settings: Any) -> list[Child]:
        """Start as many consumers as are missing, and return those that live."""
        while len(crowd := [child for child in self.consumers if child.alive]) < size:
            self.consumer(nursery, **settings)
        return crowd

    def feed(self, backlog: int, nursery: Nursery | None = None, **settings: Any) -> None:
        """Have a producer put so many jobs when fewer are left and nobody is at it."""
        if not any(child.alive for child in self.others) and self.live() < backlog:
            self.producer(nursery, jobs=backlog, **settings)

    def producer(self, nursery: Nursery | None = None, **settings: Any) -> Child:
        """Start a producer; see ``programs/producer.py`` for the settings."""
        return self.other(PRODUCER, nursery, **settings)

    def other(self, program: str, nursery: Nursery | None = None, **settings: Any) -> Child:
        """Start a process that the drain does not need: it is killed before."""
        child = self._fork(nursery, program, settings)
        self.others.append(child)
        return child

    def _fork(self, nursery: Nursery | None, program: str, settings: Mapping[str, Any]) -> Child:
        settings = {"uri": self.uri, "database": self.database, **settings}
        return (nursery or self._arena.nursery).fork(program, self.directory, **settings)

    @contextmanager
    def environment(self, **variables: str) -> Iterator[Nursery]:
        """A nursery whose children have these environment variables."""
        with Nursery(variables) as nursery:
            self._environments.append(nursery)
            yield nursery

    def history_of(self, child: Child) -> Path | None:
        """Return the file a process writes, once there is one."""
        return next(self.directory.glob(f"*-{child.pid}-*.jsonl"), None)

    def said(self, child: Child, state: str) -> int:
        """Return how often a process has written that it is in some state."""
        path = self.history_of(child)
        return 0 if path is None else path.read_bytes().count(f'"is":"{state}"'.encode())

    def is_ready(self, child: Child) -> bool:
        """Whether a consumer has opened its stream."""
        return self.said(child, "ready") > 0

    # how much

    def wanted(self, hit: str) -> int:
        """Return how often the drill must hit something, at this scale."""
        return self._drill.hits[hit][self.scale]

    def short_of(self, hit: str) -> bool:
        """Whether it must be hit more often; also shows how far the drill is."""
        self.say(", ".join(f"{n} {name}" for name, n in self.hits.items()) or "starting")
        return self.hits[hit] < self.wanted(hit)

    def say(self, what: str) -> None:
        """Show how far the drill is."""
        self._say(f"{self._drill.name}: {what}")

    def note(self, what: str) -> None:
        """Add a figure to the report."""
        self.notes.append(what)

    # what is left

    def documents(self) -> Iterator[dict[str, Any]]:
        """Yield every job of the drill's database, whichever collection it is in."""
        database = self.jobs.database
        for name in database.list_collection_names():
            if name.endswith(BESIDE) or name in (LEDGER, STEP_LEDGER):
                continue
            jobs = database.get_collection(name, read_concern=ReadConcern("majority"))
            yield from jobs.find({"_id": {"$ne": BELL}})

    def effects(self) -> list[dict[str, Any]]:
        """Return what transactions left in the ledger."""
        database = self.jobs.database
        ledger = database.get_collection(LEDGER, read_concern=ReadConcern("majority"))
        return list(ledger.find())

    def live(self) -> int:
        """Return how many jobs have not ended."""
        return self.jobs.count_documents({"state": {"$in": LIVE}})

    def wait_for(self, condition: Callable[..., Any], what: str, within: float = 30.0) -> Any:
        """Return the first true answer, or raise TimeoutError. An error of the server is none."""
        deadline = monotonic() + within
        while True:
            try:
                if value := condition():
                    return value
            except PyMongoError:
                pass
            if monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {within} s")
            pause(LOOK_SECONDS)

    def drain(self, within: float = DRAIN_SECONDS) -> None:
        """Let consumers that nobody disturbs do what is left; those there are go on too."""
        self.say("draining")
        for child in self.others:
            child.kill()
        for child in self.consumers:
            child.send(signal.SIGCONT)
        drainers = [self.consumer(concurrency=20, **self.of_drainers) for _ in range(2)]
        for child in drainers:
            self.wait_for(lambda child=child: self.is_ready(child), "a consumer", within)
        self.wait_for(lambda: self.live() == 0, "the drain", within)

    def stop_all(self) -> None:
        """Stop the consumers in order, and kill everything else."""
        for child in self.others:
            child.kill()
        for child in self.consumers:
            child.send(signal.SIGCONT)
            # One that is about to start would die of a SIGTERM, as any process.
            child.send(signal.SIGTERM if self.is_ready(child) else signal.SIGKILL)
        try:
            for child in [*self.consumers, *self.others]:
                child.wait()
        finally:
            for child in self.consumers:
                child.kill()

    def close(self) -> None:
        self.history.close()
        if self._client is not None:
            self._client.close()
        self._kept.close()


def perform(
    drill: Drill, arena: Arena, scale: Scale, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Run a drill to its end, drain and account for every job."""
    report = Report(drill.name, wanted={hit: n[scale] for hit, n in drill.hits.items()})
    stage = Stage(arena, drill, scale, say)
    started = monotonic()
    try:
        _act(stage, drill, report)
    finally:
        report.seconds = monotonic() - started
        report.hits, report.notes = stage.hits, stage.notes
        stage.close()
        if report.passed:
            shutil.rmtree(stage.directory, ignore_errors=True)
        else:
            report.kept = stage.directory
    return report


def _act(stage: Stage, drill: Drill, report: Report) -> None:
    try:
        drill.run(stage)
        stage.drain()
    except (TimeoutError, AssertionError) as error:
        report.surprises.append(str(error) or type(error).__name__)
    try:
        stage.stop_all()
    except AssertionError as error:
        report.surprises.append(f"a consumer did not stop: {error}")
    report.surprises += stage._arena.nursery.surprises()
    for nursery in stage._environments:
        report.surprises += nursery.surprises()
    stage.say("accounting")
    account = read_account(stage.directory, stage.documents(), stage.effects())
    report.counts = account.counts()
    for hit in report.wanted:  # those that only the histories can tell
        if hit not in stage.hits:
            stage.hits[hit] = report.counts[hit]
    stage.notes += ends.notes(account) + copies.notes(account) + dependency_laws.notes(account)
    report.verdicts = check(account, drill.laws)
    stage.client.drop_database(stage.database)


def pause(seconds: float) -> None:
    """Let time pass: between two looks, or to a random moment."""
    threading.Event().wait(seconds)
