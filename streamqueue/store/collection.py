"""What the server and its client must be like, checked before the first job.

Works with the two kinds of pymongo collections alike: nothing here sends anything.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pymongo import ReadPreference, _csot
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.synchronous.collection import Collection
from pymongo.synchronous.database import Database
from pymongo.write_concern import WriteConcern

from ..errors import ConfigurationError, ReplicaSetRequired
from ..protocol.document import BARE_CODEC, CODEC

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextvars import ContextVar

DEFAULT_COLLECTION = "jobs"
WRITE_TIMEOUT_MS = 10_000
"""Without a majority a write would wait for ever; after this it raises WTimeoutError, which means
that the outcome is unknown."""

HELLO_SECONDS = 5.0
"""How long the server may take to say its time once it is known: then nothing waits for it."""

UNAUTHORIZED = 13

CONSUMERS, RATES, SETTINGS = ".consumers", ".rates", ".settings"
BESIDE = (CONSUMERS, RATES, SETTINGS)
"""What follows the name of the jobs' collection in those of the collections that are kept beside
it. Whoever looks for jobs in a whole database leaves these out."""

AnyCollection = TypeVar("AnyCollection", Collection[Any], AsyncCollection[Any])


def jobs_collection(given: object, kind: type[AnyCollection]) -> AnyCollection:
    """Return the collection with the concerns and types the queue's promises rest on.

    A database stands for its ``jobs`` collection. The client's own defaults are not inherited:
    writes wait for the majority (a claim at w:1 can be rolled back and handed out twice; and only a
    majority write is seen by change streams at once), reads are local on the primary (a majority
    read may miss a put that was acknowledged just before).

    Raises:
        ConfigurationError: not a collection of this kind, or a client with ``retryWrites=false``.
    """
    if isinstance(given, (Database, AsyncDatabase)):
        given = given[DEFAULT_COLLECTION]
    if not isinstance(given, kind):
        other = AsyncCollection if kind is Collection else Collection
        hint = ""
        if isinstance(given, other):
            hint = (
                "; for an AsyncCollection use AsyncMongoQueue"
                if kind is Collection
                else "; for a blocking Collection use MongoQueue"
            )
        raise ConfigurationError(
            f"the queue needs a pymongo {kind.__name__}, not {type(given).__name__}{hint}"
        )
    if not given.database.client.options.retry_writes:
        raise ConfigurationError(
            "streamqueue needs retryable writes (they turn a lost reply into one outcome): remove "
            "retryWrites=false from the connection string"
        )
    return given.with_options(
        codec_options=CODEC,
        read_preference=ReadPreference.PRIMARY,
        write_concern=WriteConcern("majority", wtimeout=WRITE_TIMEOUT_MS),
        read_concern=ReadConcern("local"),
    )


def oplog_of(jobs: AsyncCollection[Any]) -> AsyncCollection[Any]:
    """Return the oplog of the primary, which every stream is made of."""
    return jobs.database.client.local.get_collection(
        "oplog.rs", read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("local")
    )


def has_own_limit() -> bool:
    """Return whether the caller stands inside of a ``pymongo.timeout()``: what it sends is to take
    no longer, and what others send may.

    pymongo keeps it in a variable of the context and shows it nowhere. (A client's timeoutMS is no
    such thing: it is everybody's, and pymongo applies it to each operation anew.)
    """
    return _csot.TIMEOUT.get() is not None


@contextmanager
def another_limit(seconds: float) -> Iterator[None]:
    """Within this, what is sent may take so long, though the caller's own time is over.

    A ``pymongo.timeout()`` inside of another one can only shorten it.
    """
    limit: list[tuple[ContextVar[Any], float]] = [
        (_csot.TIMEOUT, seconds),
        (_csot.DEADLINE, time.monotonic() + seconds),  # pymongo's clock
        (_csot.RTT, 0.0),
    ]
    tokens = [(variable, variable.set(value)) for variable, value in limit]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


def consumers_of(jobs: AsyncCollection[Any]) -> AsyncCollection[Any]:
    """Return the list of live consumers that is kept beside the jobs.

    It is advice, so not worth waiting for a majority.
    """
    return jobs.database.get_collection(
        f"{jobs.name}{CONSUMERS}",
        codec_options=BARE_CODEC,  # anybody may have written it
        read_preference=ReadPreference.PRIMARY,
        write_concern=WriteConcern(1),
        read_concern=ReadConcern("local"),
    )


def settings_of(jobs: AnyCollection) -> AnyCollection:
    """Return the settings of the queues, which are kept beside the jobs.

    Read by majority: what a primary has that is about to be replaced is nobody's decision.
    """
    return jobs.database.get_collection(
        f"{jobs.name}{SETTINGS}",
        codec_options=BARE_CODEC,  # anybody may have written it
        read_preference=ReadPreference.PRIMARY,
        write_concern=WriteConcern("majority", wtimeout=WRITE_TIMEOUT_MS),
        read_concern=ReadConcern("majority"),
    )


def rates_beside(jobs: str) -> str:
    """Return the name of the collection that has the buckets of rates, by that of the jobs'.

    Its documents are written by majority, in single commands.
    """
    return f"{jobs}{RATES}"


def check_hello(hello: Mapping[str, Any]) -> None:
    """Raise ReplicaSetRequired unless this reply to ``hello`` is from a replica set or mongos."""
    if hello.get("setName") or hello.get("msg") == "isdbgrid":
        return
    if hello.get("isreplicaset"):
        raise ReplicaSetRequired("this member was never initiated")
    raise ReplicaSetRequired
