"""Waiting: for the end of jobs, and for their changes; the flows of both shells, and their calls.

However many wait, a queue object has one stream for all of them. One of those that wait has the
turn and reads it; the others sleep until they are told, or until the turn is theirs. A call first
marks its job and looks at it. The stream begins at a moment before that look, also when it is
opened after it: so no end comes between the two, and for what has ended none is opened.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from ... import plain
from ...clock import monotonic
from ...driver import known_cluster_time
from ...durations import seconds
from ...errors import JobNotFound, StreamQueueError
from ...options import MAX_BATCH
from ...outage import LoggedOutage
from ...protocol import operations
from ...protocol.document import CODEC, ids_meant
from ...protocol.foreign import read
from ...store.collection import UNAUTHORIZED
from ...stream.doorbell import MAX_AWAIT
from ...stream.verdict import (
    READ_ERRORS,
    Pace,
    classify,
    is_final,
    limit_is_over,
    limit_left,
    passes,
    within,
)
from ..info import RAW_JOBS, JobInfo, value_of
from .waits import KEEP_IT, Wait, Waits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from ...protocol.put import Put
    from ...store.asynchronous import AsyncStore
    from ...store.blocking import Store
    from ...stream.async_ends import AsyncEndStream
    from ...stream.ends import EndStream
    from ..flow import Flow

logger = plain.logger("streamqueue.ends")

IDLE = 30.0
"""Seconds after which the stream is shut when nobody waits: a program that asks for one answer
after the other opens it once."""
LONGEST_SLEEP = 30.0
"""Seconds after which one that sleeps looks up all the same."""
MARK_SECONDS = 1.0
"""How long a job may take to be marked again, as one that is in somebody's open transaction."""


class Waiting:
    """Waits for the jobs of one queue.

    Args:
        stream: the stream of ends, which is opened when somebody waits.
        drive: runs a flow the way that the shell does, to its end or as a coroutine.
    """

    def __init__(
        self,
        store: Store | AsyncStore,
        name: str,
        stream: EndStream | AsyncEndStream,
        drive: Callable[[Flow[None]], Any],
    ) -> None:
        self._store = store
        self._name = name
        self._stream = stream
        self._drive = drive
        self._waits = Waits()
        self._looking = LoggedOutage(logger, "wait", "Looking for the ends of jobs")
        self._pace = Pace()
        self._idle_since = -math.inf

    # what the calls are made of

    def wait(self, job_id: Any, timeout: float | timedelta | None) -> Flow[JobInfo]:
        """Return a job when it has ended."""
        ids, deadline, closings = ids_meant(job_id), _deadline(timeout), self._stream.closings
        yield from self._know_the_time()
        wait = self._begin(ids)
        try:
            info = yield from self._look_first(wait, deadline, closings)
            if info.ended:
                return info
            return (yield from self._end_of(wait, deadline, closings))
        finally:
            self.leave(wait)

    def request(
        self, put: Put, insert: Callable[[], Any], timeout: float | timedelta | None
    ) -> Flow[Any]:
        """Insert a job that is marked as waited for, and return its result."""
        _deadline(timeout)  # refused before anything is put
        closings = self._stream.closings
        yield from self._set_up("request()")
        wait = self._begin([put.id])
        try:
            job_id = yield insert()
            if job_id != put.id:  # of the one that was there, and has the key
                return value_of((yield from self.wait(job_id, timeout)))
            deadline = _deadline(timeout)
            if put.may_exist:  # and may have ended long ago
                info = yield from self._look_first(wait, deadline, closings)
                if info.ended:
                    return value_of(info)
            else:
                self._waits.found(wait, put.id, None)
            return value_of((yield from self._end_of(wait, deadline, closings)))
        finally:
            self.leave(wait)

    def result(self, job_id: Any, patience: float | timedelta | None) -> Flow[Any]:
        """Return the result of a job that has ended, or does so in time."""
        if patience is not None:
            return value_of((yield from self.wait(job_id, patience)))
        ids = ids_meant(job_id)
        yield self._store.prepare()
        command = operations.by_id(self._name, ids)
        found = yield self._store.find(command, RAW_JOBS)
        if found and JobInfo.from_raw(found[0]).ended:
            # An end that the majority does not have yet could be undone.
            found = yield self._store.find(command, RAW_JOBS, committed=True)
        if not found:
            raise JobNotFound(ids[-1], hint=KEEP_IT)
        info = JobInfo.from_raw(found[0])
        if not info.ended:
            raise TimeoutError(f"job {info.id} has not ended: it is {info.state}")
        return value_of(info)

    def watching(self, job_id: Any) -> Wait:
        """Return what :meth:`next_change` is asked with, until it is told to :meth:`leave`."""
        return self._begin(ids_meant(job_id), watches=True)

    def next_change(self, wait: Wait, closings: int) -> Flow[JobInfo | None]:
        """Return what a job is, the first time; then what it is after its next change; None when
        its end was returned."""
        before = wait.returned
        if before is None:
            yield from self._know_the_time()
            info = yield from self._look_first(wait, math.inf, closings)
        elif before.ended:
            return None
        else:
            yield from self._follow(wait, math.inf, closings)
            info = wait.outcome(0)
            wait.take_info()
        wait.returned = info
        return info

    def leave(self, wait: Wait) -> None:
        """Let a call go: if it was to read the stream another one is, and with none it is shut in a
        while."""
        self._waits.leave(wait)
        if not self._stream.ours:
            return
        if not self._stream.taken:
            self._wake_another()
        if not len(self._waits):
            self._idle_since = monotonic()
            if self._stream.in_use:
                self._shut_later(IDLE)

    def _shut_later(self, pause: float) -> None:
        self._stream.later(pause, lambda: self._drive(self._shut_idle()))

    def _wake_another(self) -> None:
        other = self._waits.another()
        if other is not None:
            other.signal.set()

    @property
    def closings(self) -> int:
        """How often it was closed; what waits when that changes stops waiting."""
        return self._stream.closings

    def close(self) -> Flow[None]:
        """End the waits under way, and shut the stream: now, or by whoever reads it."""
        stream = self._stream
        stream.not_later()
        stream.count_closing()
        for wait in self._waits.everybody():
            wait.signal.set()
        while stream.ours and stream.to_be_shut and stream.take_turn():
            yield from self._pass_turn()

    # the first look

    def _know_the_time(self) -> Flow[None]:
        """Have heard from a server: a stream that is opened later can begin at that moment."""
        if not self._store.clock.known:
            yield self._store.prepare()

    def _set_up(self, call: str) -> Flow[None]:
        """Have the index by which the server removes what was kept for those who waited."""
        yield self._store.prepare()
        yield self._store.require_index("keep", call)

    def _begin(self, ids: Sequence[Any], *, watches: bool = False) -> Wait:
        """Take in a call that waits, before anything is sent for it."""
        since = known_cluster_time(self._store.jobs.database.client)
        wait = Wait(ids, since, self._stream.signal(), watches=watches)
        self._waits.enter(wait)
        return wait

    def _look_first(self, wait: Wait, deadline: float, closings: int) -> Flow[JobInfo]:
        """Mark a job as one that somebody waits for, and return what it is, or raise JobNotFound.

        Raises:
            PyMongoError: of the first contact, or still at the deadline.
        """
        pace = Pace()
        while True:
            try:
                yield from self._set_up("wait()")
                with within(deadline - monotonic()):
                    info = yield from self._mark(wait)
            except READ_ERRORS as error:
                if not passes(error) or is_final(error) or monotonic() >= deadline:
                    raise
                pace.failed(classify(error))
                self._looking.failed(error, "Looking for a job failed, trying again: %s")
                while (left := min(pace.again_at, deadline) - monotonic()) > 0:
                    self._check_open(closings)
                    yield wait.signal.sleep(left)
            else:
                self._looking.succeeded()
                return info

    def _mark(self, wait: Wait) -> Flow[JobInfo]:
        ids = list(wait.ids)
        for meant in ids:
            command = operations.await_end(self._name, meant)
            try:
                raw, at = yield self._store.change_one(command, operations.NOT_SHOWN, RAW_JOBS)
            except OperationFailure as error:
                if not operations.is_refusal(error) and error.code != UNAUTHORIZED:
                    raise
                raw, at = (yield from self._look_unmarked(wait, meant)), None
            if raw is not None:
                info = JobInfo.from_raw(raw)
                wait.last = wait.last or info
                self._waits.found(wait, info.id, at)
                return info
        raise JobNotFound(ids[-1], hint=KEEP_IT)

    def _look_unmarked(self, wait: Wait, job_id: Any) -> Flow[Any]:
        """Look at a job that cannot be marked, as one that has no room for it, or by a user who may
        not: all that happens to it is asked for instead, its removal too."""
        self._waits.ask_for_all(wait)
        found = yield self._store.find(operations.by_id(self._name, [job_id]), RAW_JOBS)
        return found[0] if found else None

    # what comes after it

    def _end_of(self, wait: Wait, deadline: float, closings: int) -> Flow[JobInfo]:
        began = monotonic()
        yield from self._follow(wait, deadline, closings)
        return wait.outcome(monotonic() - began)

    def _follow(self, wait: Wait, deadline: float, closings: int) -> Flow[None]:
        """Return when a call has been told something, or its time is over.

        Raises:
            StreamQueueError: the queue was closed.
        """
        while not wait.told:
            self._check_open(closings)
            left = deadline - monotonic()
            if left <= 0 or limit_is_over():
                return
            if not self._stream.take_turn():
                with self._waits.asleep(wait):
                    # Whoever gives up the turn after this wakes one of those that sleep.
                    if self._stream.taken and not wait.told:
                        yield wait.signal.sleep(limit_left(min(left, LONGEST_SLEEP)))
                continue
            try:
                yield from self._read(wait, deadline, closings)
            finally:
                yield from self._pass_turn()
                self._wake_another()

    def _read(self, wait: Wait, deadline: float, closings: int) -> Flow[None]:
        """Read for all, until the call that has the turn can return."""
        while not wait.told and self._stream.closings == closings:
            left = deadline - monotonic()
            if left <= 0 or limit_is_over():
                return
            yield from self._read_once(wait, left)

    def _check_open(self, closings: int) -> None:
        if self._stream.closings != closings:
            raise StreamQueueError("the queue was closed while this call waited for a job")

    def _pass_turn(self) -> Flow[None]:
        try:
            while self._stream.to_be_shut:
                yield self._stream.shut()
        finally:
            self._stream.pass_turn()

    def _read_once(self, wait: Wait, left: float) -> Flow[None]:
        """Do what is next for all that wait: open the stream, look at jobs again, or read."""
        self._store.check_place()
        stream, waits = self._stream, self._waits
        watched = waits.watched()
        if not stream.open_now or not waits.streamed.issuperset(watched):
            pause = stream.pace.again_at - monotonic()
            if pause > 0 and not stream.open_now:
                if stream.refused is not None:
                    waits.fail(stream.refused)
                    return
                yield wait.signal.sleep(min(pause, left, MAX_AWAIT))
                return
            pipeline = operations.ends_pipeline(list(watched.values()))
            yield stream.open(pipeline, waits.since(), left)
            if stream.refused is not None:
                waits.fail(stream.refused)
            if not stream.open_now:
                return
            waits.streams(watched)
        if stream.lost:
            waits.look_at_all()
            stream.lost = False
        yield from self._look_again()
        look_at = max(waits.next_look(), self._pace.again_at)
        longest = min(left, MAX_AWAIT, max(0.001, look_at - monotonic()))
        events = yield stream.read(longest)
        try:
            waits.take(events)
        except BaseException:  # an interruption: the rest of them will not come again
            stream.lost = True
            raise
        yield from self._look_again()
        yield stream.checkpoint()

    def _look_again(self) -> Flow[None]:
        """Look at the jobs of those who asked for it, or have waited long, all in one query."""
        if self._pace.again_at > monotonic():
            return
        due = self._waits.to_look_at(MAX_BATCH)
        if not due:
            return
        try:
            with within(math.inf):
                command = operations.by_id(self._name, [wait.ids[0] for wait in due])
                found = yield self._store.find(command, RAW_JOBS, committed=True)
                documents = [read(raw, any_id=True, codec=CODEC) for raw in found]
                for unmarked in self._waits.saw(due, documents):
                    yield from self._mark_again(unmarked)
        except BaseException as error:
            self._waits.look_at(due)
            if not isinstance(error, READ_ERRORS) or is_final(error):
                raise
            self._pace.failed(classify(error))
            self._looking.failed(error, "Looking for ends failed, trying again: %s")
        else:
            self._pace.worked()
            self._looking.succeeded()

    def _mark_again(self, wait: Wait) -> Flow[None]:
        """Mark a job that lost its mark, as one does that was requeued."""
        try:
            with within(MARK_SECONDS):  # all others wait for it
                info = yield from self._mark(wait)
            wait.tell(info)
        except JobNotFound:
            wait.be_gone()

    def _shut_idle(self) -> Flow[None]:
        """Shut the stream if nobody has waited for a while."""
        if len(self._waits) or not self._stream.take_turn():
            return  # who waits comes here when it leaves
        try:
            left = self._idle_since + IDLE - monotonic()
            if left > 0:
                self._shut_later(left)
            elif not len(self._waits):
                yield self._stream.shut()
        finally:
            yield from self._pass_turn()
            self._wake_another()  # one that came meanwhile


def _deadline(timeout: float | timedelta | None) -> float:
    return monotonic() + (math.inf if timeout is None else seconds(timeout, "timeout"))
