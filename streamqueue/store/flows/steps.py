"""What a flow asks of the store that drives it: what to send, on which handle, with what limit."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from bson.codec_options import CodecOptions
    from pymongo import UpdateOne

    from ...protocol.operations import Document, Find, Pipeline, Update

Result = TypeVar("Result")
Flow = Generator[NamedTuple, Any, Result]


class Read(NamedTuple):
    """Send a read; the answer is all of its documents.

    Attributes:
        codec: what they are decoded with, if not as jobs are.
        committed: only what the majority has.
        session: of a transaction that it is part of; None for none.
    """

    command: Find
    codec: CodecOptions[Any] | None = None
    committed: bool = False
    session: Any = None


class Aggregate(NamedTuple):
    """Send an aggregation of what the majority has; the answer is all of its documents, read so
    that none can fail it.

    Attributes:
        session: of a transaction that it is part of; None for none.
    """

    pipeline: Pipeline
    session: Any = None


class UpdateIn(NamedTuple):
    """Update the documents of a filter as part of a transaction."""

    command: Update
    session: Any


class Command(NamedTuple):
    """Send a command to the database; the answer is its reply.

    Attributes:
        limited: it takes no longer than any other; else it has a limit of its own.
    """

    document: Document
    limited: bool = True


class Hello(NamedTuple):
    """Ask the server for its time and its kind, in so many seconds; the answer is its reply."""

    limit: float | None


class ReadSettings(NamedTuple):
    """Read the settings of queues, by majority; the answer is all of their documents."""

    command: Find


class Upsert(NamedTuple):
    """Update one document, or make it; by majority.

    Attributes:
        settings: among the settings of queues, and not among the jobs.
    """

    command: Update
    settings: bool


class UpdateMany(NamedTuple):
    """Update the documents of a filter within the server's `limit`, in seconds; the answer is how
    many matched, and how many were changed."""

    command: Update
    limit: float


class TryEach(NamedTuple):
    """Update one document each within the server's `limit`, whichever of them fail; the answer is
    how many were changed, and what went wrong for each, if anything."""

    updates: Sequence[Update]
    limit: float


class DeleteMany(NamedTuple):
    """Delete the documents of a filter likewise; the answer is how many."""

    wanted: Document
    limit: float


class UpdateAndGet(NamedTuple):
    """Update one document likewise; the answer is what it is then, or None.

    Attributes:
        shown: which fields of that; None is all.
        session: of a transaction that it is part of; None for none.
    """

    command: Update
    limit: float
    shown: Document | None = None
    session: Any = None


class UpdateWithoutLimit(NamedTuple):
    """Update one document, with no limit of the server's."""

    command: Update


class UpdateEach(NamedTuple):
    """Send many updates of one document each, whichever of them fail; the answer is how many
    documents were changed."""

    changes: Sequence[UpdateOne]


class Pause(NamedTuple):
    """Wait for so many seconds."""

    seconds: float


class InTurn(NamedTuple):
    """Drive another flow, nobody else's of its kind at the same time; the answer is its result.

    Attributes:
        wait: wait until somebody else's has ended; else it is left out, and the answer is None.
    """

    flow: Flow[Any]
    wait: bool


class Shielded(NamedTuple):
    """Drive another flow to its end, though who asked for it is cancelled; the answer is its
    result."""

    flow: Flow[Any]
