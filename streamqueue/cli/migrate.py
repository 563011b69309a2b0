"""``streamqueue migrate mongoqueue``: the jobs of the package mongoqueue become jobs here.

Each is moved by a transaction that takes it out of the one collection and puts it into the other.
So it is in one of the two at every moment, whenever this is broken off; its own consumers and ours
can both run meanwhile; and what is left is moved by the next call. A dry run does the same and
writes nothing.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from contextlib import nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any

import click
from pymongo import ReadPreference, WriteConcern
from pymongo.errors import BulkWriteError, DocumentTooLarge, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from ..backoff import Backoff
from ..errors import ConfigurationError
from ..options import max_attempts, queue_name
from ..protocol import foreign, operations
from ..protocol.document import CODEC, id_key, id_text
from ..protocol.mongoqueue import LOCKED, Left, Taken, Takeover
from ..store.blocking import Store
from ..store.collection import BESIDE, WRITE_TIMEOUT_MS, check_hello
from .command import Group, Options, command, option
from .connection import open_database
from .options import JSON, WHERE, at_least_one
from .tables import MOST_NAMED, show, some_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pymongo.synchronous.client_session import ClientSession
    from pymongo.synchronous.collection import Collection
    from pymongo.synchronous.database import Database

FINE, FAILED = 0, 1
PIECE = 1000
"""Documents that one transaction moves, at most."""
PIECE_BYTES = 8 * 1024 * 1024
"""Bytes of documents that one transaction moves, unless one alone has more."""
AGAIN = Backoff(initial=0.005, maximum=1, factor=2, jitter=0.5)
"""The wait between two tries of a transaction that met another one. That of a call which was killed
is there for a minute: then the server gives it up."""

migrate = Group(
    "migrate",
    help="Take over the jobs of another library.",
    example="streamqueue migrate mongoqueue old_jobs --to emails --apply",
    subcommand_metavar="LIBRARY ...",
    options_metavar="",
)


@migrate.add_command
@command(
    click.Argument(["source"], metavar="COLLECTION"),
    *WHERE,
    JSON,
    option("--to", "the queue that gets them; default: default", metavar="QUEUE"),
    option(
        "--max-attempts",
        "how often the old consumers tried a job: one that failed as often is dead; default 3",
        type=at_least_one,
        metavar="COUNT",
        default=3,
    ),
    option(
        "--consumers-stopped",
        "the old consumers run no more: also take what they have locked, whose attempts count",
        is_flag=True,
    ),
    option("--apply", "move the jobs; without this, only say what would be moved", is_flag=True),
    example="streamqueue migrate mongoqueue old_jobs --to emails --apply",
)
def mongoqueue(options: Options) -> int:
    """Move the jobs of the package mongoqueue, in COLLECTION, into a queue; first only count them.

    What its consumers have locked stays with them. Broken off, it is simply called again.
    """
    queue = queue_name(options.to or "default")
    limit = max_attempts(options.max_attempts)
    _check_source(options)
    with open_database(options) as database:
        hello = database.client.admin.command("hello", codec_options=CODEC)
        check_hello(hello)
        _check_there(options.source, database)
        store = Store(database[options.collection])
        if options.apply:
            store.prepare()
        takeover = Takeover(queue, limit, hello["localTime"], options.consumers_stopped)
        tally = _run(_Move(database[options.source], store.jobs, takeover, options.apply))
    show(options, tally.content(options), tally.lines(options, database.name, queue))
    return FAILED if options.apply and tally.left else FINE


def _check_source(options: Options) -> None:
    jobs = options.collection
    if options.source in (jobs, *(f"{jobs}{ending}" for ending in BESIDE)):
        raise ConfigurationError(
            f"the jobs of {options.source} would be moved to where they are, where consumers of "
            "mongoqueue would take ours for theirs: name another collection for them with "
            "--collection, or rename that of mongoqueue"
        )


def _check_there(source: str, database: Database[Any]) -> None:
    try:
        command = operations.describe_collection(source, WRITE_TIMEOUT_MS)
        found = database.command(command)["cursor"]["firstBatch"]
    except OperationFailure as error:
        if error.code not in operations.NOT_ALLOWED:
            raise
        return
    if not found:
        raise ConfigurationError(
            f"there is no collection {source} in the database {database.name}: the name of the "
            "database is in the URI"
        )


class _Tally:
    """What was found: how many jobs by their state, and what stays, by reason."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.holders: Counter[str] = Counter()

    def add(self, found: Sequence[Taken | Left]) -> None:
        for one in found:
            if isinstance(one, Taken):
                self.taken[one.document["state"]] += 1
                continue
            self.left[one.reason] += 1
            self.examples.setdefault(one.reason, id_text(one.id))
            if one.holder is not None and (
                one.holder in self.holders or len(self.holders) <= MOST_NAMED
            ):
                self.holders[one.holder] += 1

    def content(self, options: Options) -> dict[str, Any]:
        return {
            "applied": options.apply,
            "ready": self.taken["ready"],
            "dead": self.taken["dead"],
            "stay": dict(self.left),
        }

    def lines(self, options: Options, database: str, queue: str) -> Iterator[str]:
        ready, dead = self.taken["ready"], self.taken["dead"]
        place = f"queue {queue} of {database}.{options.collection}"
        done = "moved" if options.apply else "would be moved"
        yield f"{ready:,} ready and {dead:,} dead jobs {done} to {place}"
        for reason, number in self.left.items():
            stay = "stays" if number == 1 else "stay"
            example = f"such as {self.examples[reason]}"
            yield f"{number:,} {stay} in {options.source}, {example}: {reason}"
        if self.left[LOCKED]:
            names = list(self.holders)
            yield (
                f"locked by {some_of(names)}: let these consumers end, stop "
                "them, and call this again with --consumers-stopped"
            )
        if not options.apply:
            yield "nothing was changed: --apply moves them"


class _Refused(Exception):
    """The server does not take a job."""

    def __init__(self, job_id: Any, reason: str) -> None:
        super().__init__(reason)
        self.job_id = job_id
        self.reason = reason


class _Move:
    """Takes documents out of one collection, and puts what they are here into the other.

    Args:
        source: the one that they are in.
        jobs: the other.
        takeover: says what they are.
        applies: whether anything is written.
    """

    def __init__(
        self, source: Collection[Any], jobs: Collection[Any], takeover: Takeover, applies: bool
    ) -> None:
        self._client = jobs.database.client
        self._source: Collection[Any] = source.with_options(
            codec_options=foreign.RAW_CODEC,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("local"),
        )
        self._jobs = jobs
        self._takeover = takeover
        self.applies = applies

    def about(self) -> int:
        """Return about how many documents there are."""
        return self._source.estimated_document_count()

    def pieces(self) -> Iterator[list[Any]]:
        """Yield the ids of all documents in their order, which is that of the puts: as many at a
        time as one transaction may take."""
        some: list[Any] = []
        size = 0
        fields = {"size": {"$bsonSize": "$$ROOT"}}
        with self._source.find({}, fields, sort=[("_id", 1)], batch_size=PIECE) as cursor:
            for raw in cursor:
                found = foreign.read(raw, any_id=True)
                if some and (len(some) == PIECE or size + found["size"] > PIECE_BYTES):
                    yield some
                    some, size = [], 0
                some.append(found["_id"])
                size += found["size"]
        if some:
            yield some

    def take(self, ids: list[Any]) -> list[Taken | Left]:
        """Move those of these that are jobs; return what became of each that is still there."""
        if not self.applies:
            return self._look(ids, None)
        refused: list[Taken | Left] = []
        while True:
            try:
                return refused + self._moved(ids)
            except _Refused as error:
                refused.append(Left(error.job_id, error.reason))
                ids = [one for one in ids if id_key(one) != id_key(error.job_id)]

    def _moved(self, ids: list[Any]) -> list[Taken | Left]:
        tries = count()

        def move(session: ClientSession) -> list[Taken | Left]:
            if (failed := next(tries)) > 0:  # nothing is sent yet of the transaction
                threading.Event().wait(AGAIN.delay(failed))
            return self._move(ids, session)

        with self._client.start_session() as session:
            return session.with_transaction(
                move,
                read_concern=ReadConcern("snapshot"),
                write_concern=WriteConcern("majority", wtimeout=WRITE_TIMEOUT_MS),
                read_preference=ReadPreference.PRIMARY,
            )

    def _move(self, ids: list[Any], session: ClientSession) -> list[Taken | Left]:
        # Read again inside: a job that a consumer has locked since is its own, and one that it
        # locks from now on fails this transaction, which is then tried again.
        found = self._look(ids, session)
        taken = [one for one in found if isinstance(one, Taken)]
        if taken:
            self._insert(taken, session)
            gone = {"_id": foreign.among(one.id for one in taken)}
            self._source.delete_many(gone, session=session)
        return found

    def _look(self, ids: list[Any], session: ClientSession | None) -> list[Taken | Left]:
        wanted = {"_id": foreign.among(ids)}
        with self._source.find(
            wanted, sort=[("_id", 1)], batch_size=PIECE, session=session
        ) as cursor:
            return [self._takeover.job_of(raw) for raw in cursor]

    def _insert(self, taken: Sequence[Taken], session: ClientSession) -> None:
        try:
            self._jobs.insert_many([one.document for one in taken], session=session)
        except BulkWriteError as error:
            errors = (error.details or {}).get("writeErrors")
            if not errors:
                raise
            one, code = taken[errors[0]["index"]], errors[0]["code"]
            reason = f"the server does not take it (error {code})"
            if code == operations.DUPLICATE_KEY:
                reason = "a job with its id is there already"
            raise _Refused(one.id, reason) from None
        except DocumentTooLarge:
            largest = max(taken, key=lambda one: len(one.document["payload"].raw))
            raise _Refused(largest.id, "it is too large for a job") from None


def _run(move: _Move) -> _Tally:
    """Move all, or look at all, and show on the terminal how far it has come."""
    tally = _Tally()
    bar: Any = nullcontext()
    if sys.stderr is not None and sys.stderr.isatty():
        label = "moved" if move.applies else "counted"
        bar = click.progressbar(length=move.about(), label=label, file=sys.stderr)
    try:
        with bar as shown:
            for ids in move.pieces():
                tally.add(move.take(ids))
                if shown is not None:
                    shown.update(len(ids))
    except (KeyboardInterrupt, PyMongoError):
        if move.applies:
            print(
                f"streamqueue: {tally.taken.total():,} jobs were moved for certain, then it broke "
                "off: call it again for the rest",
                file=sys.stderr,
            )
        raise
    return tally
