"""A transaction of our own: a flow that is run again until all of it has happened, once."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from pymongo import ReadPreference
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from ..backoff import Backoff
from ..clock import monotonic
from ..store.collection import WRITE_TIMEOUT_MS, another_limit, has_own_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from .flow import Flow, Result

PATIENCE = 30.0
"""Seconds after whose end nothing is sent again: as long as the driver looks for a server."""
ABORT_SECONDS = 2.0
"""How long an abort may take. What is not aborted then the server does away with in a minute."""
BACKOFF = Backoff(initial=0.02, maximum=1.0)


class Transactions:
    """Runs flows, each in a transaction.

    What such a flow reads is one state of all documents, which the majority has by the time of the
    commit; what it writes is there as a whole, and the majority has it, or none of it is.

    Args:
        client: what sessions are made of.
        pause: waits for so many seconds.
    """

    def __init__(self, client: Any, pause: Callable[[float], Any]) -> None:
        self._client = client
        self._pause = pause

    def run(self, flow: Callable[[Any], Flow[Result]], session: Any = None) -> Flow[Result]:
        """Run a flow in a transaction, and return its result.

        It is begun anew where the server has aborted it, for an election or another's write; a
        commit whose outcome is not known is asked for again until it is. So what it writes must
        have ids that were made before.

        Args:
            flow: given the session.
            session: one of the caller's, which has no transaction open.

        Raises:
            PyMongoError: the server, for longer than half a minute. With the label
                UnknownTransactionCommitResult all of it may be there, or nothing.
        """
        given, ends_at = session is not None, monotonic() + PATIENCE
        session = session if given else self._client.start_session()
        try:
            for attempt in count(1):
                try:
                    yield session.start_transaction(
                        ReadConcern("snapshot"),
                        WriteConcern("majority", wtimeout=WRITE_TIMEOUT_MS),
                        ReadPreference.PRIMARY,
                    )
                    result = yield from flow(session)
                    yield from commit(session, ends_at, self._pause)
                    return result
                except BaseException as error:
                    if session.in_transaction:
                        # Left open it would be in everybody's way for a minute: of who publishes
                        # the same again, and of who drops the collection.
                        with another_limit(ABORT_SECONDS):
                            yield session.abort_transaction()
                    if not _may_begin_anew(error) or _is_over(error, ends_at):
                        raise
                yield self._pause(BACKOFF.delay(attempt))
            raise AssertionError  # it counts for ever
        finally:
            if not given:
                yield session.end_session()


def commit(session: Any, ends_at: float, pause: Callable[[float], Any]) -> Flow[None]:
    """Commit; return when the majority has it, or raise.

    Again while it is not known whether that was done: a transaction that is left open is in
    everybody's way until the server ends it, a minute later.

    Args:
        ends_at: the :func:`monotonic` time after which it is not sent again.
        pause: waits for so many seconds.
    """
    for attempt in count(1):
        try:
            yield session.commit_transaction()
            return
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            if _is_over(error, ends_at):
                raise
        yield pause(BACKOFF.delay(attempt))


def _may_begin_anew(error: BaseException) -> bool:
    """Whether it says that nothing has happened, and that another try may succeed."""
    return (
        isinstance(error, PyMongoError)
        and error.has_error_label("TransientTransactionError")
        and not error.has_error_label("UnknownTransactionCommitResult")
    )


def _is_over(error: BaseException, ends_at: float) -> bool:
    """Whether there is no time for another try: ours, or that of the caller's own limit."""
    timed_out = isinstance(error, PyMongoError) and error.timeout and has_own_limit()
    return timed_out or monotonic() >= ends_at
