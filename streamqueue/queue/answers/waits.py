"""Waits: who waits for the end of which job, or watches it, and what an event means to them.

No I/O: ``waiting.py`` opens the stream, looks at documents, and puts to sleep and wakes.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol

from bson import Int64, ObjectId
from bson.timestamp import Timestamp

from ...backoff import Backoff
from ...clock import monotonic
from ...errors import JobNotFound
from ...protocol.document import CODEC, ENDED_STATES, id_key
from ...protocol.foreign import read
from ..info import JobInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bson.raw_bson import RawBSONDocument

LOOK_AGAIN = Backoff(initial=30, maximum=30, jitter=0.5)
"""How long somebody waits until the document is looked at all the same. Only a job that was deleted
by hand has no event that says so."""
TOGETHER = 5.0
"""Seconds within which such looks are made together: a thousand that wait cost one every now and
then."""
MOST_EARLY = 100
"""Events that are kept of a job while its first look is under way."""

KEEP_IT = (
    "it has ended and was not kept, or never was there; put it with keep=, or ask with request(), "
    "to learn what becomes of a job however quickly it ends"
)

_PLAIN = (ObjectId, str, int, Int64, float)


class Signal(Protocol):
    """What a call sleeps on: a thread, or a task."""

    def set(self) -> None:
        """Wake it."""

    def sleep(self, seconds: float) -> Any:
        """Sleep until it is set, or for so many seconds."""


class Wait:
    """A call that waits for the end of a job, or watches it.

    Attributes:
        ids: those that its job may have; one, once the job was found.
        watches: it is told of every change, and not of the end alone.
        by_id: all events of its job are asked for: it watches, or no mark can be made.
        since: a moment before its first look.
        seen_at: a moment before its first look; older events are old news. None until that has
            been.
        seen_until: a moment after it. Whether events between the two are news, nobody knows: when
            the driver has sent a look twice the reply has the moment of the second time, and what
            was found the first time (6.0.5).
        gone: its job is not there any more.
        error: why nothing will be known.
        look_at: when its job is looked at again, though nothing asks for it.
    """

    def __init__(
        self, ids: Sequence[Any], since: Timestamp | None, signal: Signal, *, watches: bool
    ) -> None:
        self.ids = list(ids)
        self.since = since
        self.signal = signal
        self.watches = self.by_id = watches
        self.seen_at: Timestamp | None = None
        self.seen_until = Timestamp(0, 0)
        self._news: deque[JobInfo] = deque(maxlen=1)
        self.gone = False
        self.error: Exception | None = None
        self.look_at = math.inf
        self.early: list[Mapping[str, Any]] = []
        self.last: JobInfo | None = None
        self.returned: JobInfo | None = None

    @property
    def info(self) -> JobInfo | None:
        """The newest that it has not taken yet."""
        return self._news[0] if self._news else None

    def take_info(self) -> None:
        """Have taken that; another may have come since, by another thread that reads for all."""
        self._news.popleft()

    @property
    def told(self) -> bool:
        """Whether there is something to return, or to raise."""
        return bool(self._news) or self.gone or self.error is not None

    def outcome(self, waited: float) -> JobInfo:
        """Return what it was told, or raise it."""
        if self.info is not None:
            return self.info
        if self.error is not None:
            raise self.error
        if self.gone:
            raise JobNotFound(self.ids[-1], hint=KEEP_IT)
        raise TimeoutError(f"job {self.ids[-1]} has not ended in {waited:.1f} s")

    def tell(self, info: JobInfo) -> None:
        """Hand it what its job is now, unless it knows; of the end alone, if it waits for that."""
        if (info.ended or self.watches) and info != self.last:
            self.last = info
            self._news.append(info)
            self.signal.set()

    def be_gone(self) -> None:
        """Tell it that its job is gone."""
        self.gone = True
        self.signal.set()

    def fail(self, error: Exception) -> None:
        """Tell it that nothing will be known."""
        self.error = error
        self.signal.set()


class Waits:
    """Those of one queue object that wait. Threads may change it at the same time.

    Attributes:
        streamed: the jobs all events of which the stream has, by their keys.
    """

    def __init__(self) -> None:
        self._lock = RLock()  # what closes a queue may interrupt a thread that has it
        self._by_key: dict[object, list[Wait]] = {}
        self._all: dict[Wait, None] = {}
        self._by_id: dict[Wait, None] = {}
        self._asked: dict[Wait, None] = {}
        self._asleep: dict[Wait, None] = {}
        self._next_look = math.inf  # or somewhat later, when some have left
        self.streamed: frozenset[object] = frozenset()

    def __len__(self) -> int:
        return len(self._all)

    def everybody(self) -> list[Wait]:
        """Return all that wait."""
        with self._lock:
            return list(self._all)

    def enter(self, wait: Wait) -> None:
        """Take one in, before its first look: what happens to its job from now on is kept."""
        with self._lock:
            self._all[wait] = None
            if wait.by_id:
                self._by_id[wait] = None
            for job_id in wait.ids:
                self._by_key.setdefault(job_key(job_id), []).append(wait)

    def leave(self, wait: Wait) -> None:
        """Let one go; it may have gone before."""
        with self._lock:
            if self._all.pop(wait, self) is self:
                return
            self._by_id.pop(wait, None)
            self._asked.pop(wait, None)
            for job_id in wait.ids:
                others = self._by_key.get(job_key(job_id), [])
                if wait in others:
                    others.remove(wait)
                if not others:
                    self._by_key.pop(job_key(job_id), None)

    def found(self, wait: Wait, job_id: Any, at: Timestamp | None) -> None:
        """Note what the first look found: which id the job has, and when that was at the latest;
        and take in what happened to it since then."""
        with self._lock:
            if wait not in self._all:
                return  # it has left while the reply was on its way
            asked = wait in self._asked  # of what has happened while it looked there is no event
            self.leave(wait)
            wait.ids = [job_id]
            wait.seen_at = wait.since or Timestamp(0, 0)
            wait.seen_until = at or wait.seen_at
            self.enter(wait)
            self._looked(wait)
            if asked:
                self._asked[wait] = None
            early, wait.early = wait.early, []
        for event in early:
            self._take_in(wait, event)

    def streams(self, watched: Iterable[object]) -> None:
        """Note that from now on the stream has all events of these jobs. What happened to those
        that it did not have before is to be looked at."""
        with self._lock:
            new = [
                wait for wait in self._by_id if not self.streamed.issuperset(map(job_key, wait.ids))
            ]
            self._asked.update(dict.fromkeys(new))
            self.streamed = frozenset(watched)

    def fail(self, error: Exception) -> None:
        """Tell all that nothing will be known."""
        for wait in self.everybody():
            wait.fail(error)

    def since(self) -> Timestamp | None:
        """Return a moment before all first looks; None if that is not known."""
        with self._lock:
            moments = [wait.since for wait in self._all]
        known = [moment for moment in moments if moment is not None]
        return min(known) if known and len(known) == len(moments) else None

    def watched(self) -> dict[object, Any]:
        """Return the ids of the jobs all events of which are asked for, by their keys."""
        with self._lock:
            return {job_key(each): each for wait in self._by_id for each in wait.ids}

    def ask_for_all(self, wait: Wait) -> None:
        """Ask for all events of a job, which no mark can be made of."""
        with self._lock:
            wait.by_id = True
            if wait in self._all:
                self._by_id[wait] = self._asked[wait] = None

    @contextmanager
    def asleep(self, wait: Wait) -> Iterator[None]:
        """Within this a call sleeps until it is told, or woken to read the stream."""
        with self._lock:
            self._asleep[wait] = None
        try:
            yield
        finally:
            with self._lock:
                self._asleep.pop(wait, None)

    def another(self) -> Wait | None:
        """Return one that can read the stream: it sleeps. (A call that is under way with something
        else, as whoever watches between two changes, would not.)"""
        with self._lock:
            while self._asleep:
                wait = next(iter(self._asleep))
                if not wait.told:
                    return wait
                del self._asleep[wait]  # it wakes by itself
        return None

    def look_at_all(self) -> None:
        """Have the jobs of all looked at again: events may have been lost."""
        with self._lock:
            self._asked.update(self._all)

    def look_at(self, waits: Iterable[Wait]) -> None:
        """Have the jobs of some looked at again."""
        with self._lock:
            self._asked.update((wait, None) for wait in waits if wait in self._all)

    def to_look_at(self, limit: int) -> list[Wait]:
        """Return those whose jobs are to be looked at now. Those whose first look is under way are
        none: what is read before it would be old news after it."""
        now = monotonic()
        with self._lock:
            if self._next_look <= now:
                soon = now + TOGETHER
                self._asked.update((wait, None) for wait in self._all if wait.look_at <= soon)
                later = (wait.look_at for wait in self._all if wait.look_at > soon)
                self._next_look = min(later, default=math.inf)
            due = [wait for wait in self._asked if wait.seen_at is not None][:limit]
            for wait in due:
                del self._asked[wait]
        return due

    def next_look(self) -> float:
        """Return the :func:`monotonic` time of the next look that nobody asked for."""
        return self._next_look

    def _looked(self, wait: Wait) -> None:
        wait.look_at = monotonic() + LOOK_AGAIN.delay(1)
        self._next_look = min(self._next_look, wait.look_at)

    def take(self, events: Iterable[RawBSONDocument]) -> None:
        """Tell those who wait what the events say."""
        for raw in events:
            event = read_event(raw)
            with self._lock:
                waits = list(self._by_key.get(job_key(event["id"]), ()))
            for wait in waits:
                if wait.seen_at is None:
                    if len(wait.early) < MOST_EARLY:
                        wait.early.append(event)
                    else:
                        self.look_at([wait])
                else:
                    self._take_in(wait, event)

    def _take_in(self, wait: Wait, event: Mapping[str, Any]) -> None:
        if wait.seen_at is not None and event["at"] <= wait.seen_at:
            return
        info: JobInfo | None = event["info"]
        if event["at"] <= wait.seen_until:
            if info is None or info != wait.last:
                self.look_at([wait])
        elif event["gone"]:
            wait.be_gone()
        elif info is not None and info.ended:
            wait.tell(info)
        else:
            # It has changed. What the event has of it may be older than what another one had
            # looked up, and one that has ended may have been requeued meanwhile.
            self.look_at([wait])

    def saw(self, looked_at: Sequence[Wait], documents: Iterable[dict[str, Any]]) -> list[Wait]:
        """Tell some what their jobs are now, as it was just read; return those whose jobs live and
        have no mark that anybody waits."""
        by_key = {job_key(document["_id"]): document for document in documents}
        unmarked = []
        for wait in looked_at:
            document = by_key.get(job_key(wait.ids[0]))
            self._looked(wait)
            if document is None or was_removed(document):
                wait.be_gone()
                continue
            info = JobInfo.from_document(document)
            wait.tell(info)
            can_be_marked = wait.watches or not wait.by_id
            if can_be_marked and not info.ended and document.get("awaited") is not True:
                unmarked.append(wait)
        return unmarked


def read_event(raw: RawBSONDocument) -> dict[str, Any]:
    """Return what an event says: of which job (`id`), and when (`at`); what the job is (`info`, if
    it could be read), or that it is gone."""
    full = raw.get("fullDocument")
    document = None if full is None else read(full, any_id=True, codec=CODEC)
    key: Any = raw.get("documentKey")
    job_id = read(key, any_id=True, codec=CODEC)["_id"]
    gone = raw.get("operationType") == "delete"
    if document is not None and was_removed(document):
        document, gone = None, True
    info = None if document is None else JobInfo.from_document(document)
    return {"id": job_id, "at": raw.get("clusterTime"), "info": info, "gone": gone}


def was_removed(document: Mapping[str, Any]) -> bool:
    """Whether a job was ended only to be removed, by ``clear``: such a one is kept no moment,
    though somebody waits for it. Or there is left of it what holds its key."""
    if "state" not in document:
        return True
    if document.get("awaited") is not False or document.get("state") not in ENDED_STATES:
        return False
    ended, removed = document.get("finished_at"), document.get("removed_at")
    return ended is not None and ended == removed


def job_key(job_id: Any) -> object:
    """Return what an id can be looked up by, equal for what the server takes for equal."""
    return job_id if type(job_id) in _PLAIN else (id_key(job_id),)
