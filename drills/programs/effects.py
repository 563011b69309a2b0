"""The work that a handler or producer does in a transaction: an entry in a ledger.

Written once for both drivers: a call of the blocking one has its answer already, one of the async
driver is awaited.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from bson import ObjectId
from pymongo import WriteConcern
from pymongo.errors import PyMongoError

from drills.history import History
from drills.transactions import LEDGER

MAJORITY = WriteConcern("majority", wtimeout=10_000)
ABORT_SECONDS = 2.0


async def answered(value: Any) -> Any:
    """Return the answer of a call, whichever driver it was made by."""
    return await value if inspect.isawaitable(value) else value


@dataclass(frozen=True)
class Work:
    """A transaction under way.

    Attributes:
        session: what joins it.
        number: what the history calls it.
    """

    session: Any
    number: int


class Effects:
    """Does work in transactions, and writes down how they ended."""

    def __init__(self, history: History, database: Any) -> None:
        self._history = history
        self.database = database
        self._client = database.client
        self._ledger = database[LEDGER]

    @asynccontextmanager
    async def work(self, what: str, job: ObjectId, token: str | None = None) -> AsyncIterator[Work]:
        """Leave an entry for a job; the block asks for the queue's part of the transaction.

        `token` is that of the attempt at work. What the block raises aborts the transaction; a
        commit whose outcome is unknown is tried again by the driver, and then raised.
        """
        session = self._client.start_session()
        said = {} if token is None else {"token": token}
        work = Work(session, self._history.begin(job=str(job), **said))
        entry = {
            "_id": {"job": job, "what": what, "token": token},
            "job": str(job),
            "what": what,
            "process": self._history.path.stem,
            "transaction": work.number,
        }
        try:
            try:
                await answered(session.start_transaction(write_concern=MAJORITY))
                await answered(self._ledger.insert_one(entry, session=session))
                yield work
            except BaseException:
                # Its commit was never sent: whatever becomes of the abort, it is undone.
                self._history.over(work.number, "aborted")
                await self._abort(session)
                raise
            try:
                await answered(session.commit_transaction())
            except BaseException:
                self._history.over(work.number, "unknown")
                raise
            self._history.over(work.number, "committed")
        finally:
            with anyio.move_on_after(ABORT_SECONDS, shield=True):
                await answered(session.end_session())

    async def _abort(self, session: Any) -> None:
        with anyio.move_on_after(ABORT_SECONDS, shield=True):
            try:
                await answered(session.abort_transaction())
            except PyMongoError:
                pass  # the server ends it by itself
