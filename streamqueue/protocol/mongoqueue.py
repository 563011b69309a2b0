"""What mongoqueue, the package of that name, has stored: which jobs its documents are here.

It keeps no state. A job that waits is locked by nobody; one that failed as often as its consumers
allow (a number that they have, and no document) is never taken again; all have four fields::

    attempts, locked_by, locked_at, last_error           null, but for the attempts, until set
    priority, payload                                    from 0.6 on
    priority, and the keys of what was put               before 0.6
    progress                                             since a consumer has noted some
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import bson
from bson import ObjectId
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from ..errors import PayloadError
from ..options import MAX_PRIORITY
from .document import CODEC, cut_error, fields_of
from .foreign import BAD_ID, ODDITIES, RAW_CODEC, is_plain_id, read
from .payload import encode_payload, split_priority
from .stored import whole_of

if TYPE_CHECKING:
    from datetime import datetime

ITS_FIELDS = frozenset({"attempts", "locked_by", "locked_at", "last_error"})
"""Those that every document of mongoqueue has, and no other library's has all of them by chance."""
ALL_FIELDS = ITS_FIELDS | {"_id", "priority", "payload", "progress"}

NOT_ITS_OWN = "mongoqueue has not stored it"
MORE_FIELDS = "it has fields of which mongoqueue knows nothing"
LOCKED = "a consumer has locked it"
BAD_PAYLOAD = "its payload is none that a put takes"
UNREADABLE = "it cannot be decoded"

NOT_ENDED = "the consumer that had locked it has not ended its attempt"
"""The error of a job that was locked and had none before."""


MOST_CHARACTERS = 100
"""Of the name of a consumer, which is for a person."""


class Taken(NamedTuple):
    """A document that is a job here: its id, and what is stored of it from now on."""

    id: Any
    document: dict[str, Any]


class Left(NamedTuple):
    """A document that stays where it is: its id, why, and who has locked it if that is why."""

    id: Any
    reason: str
    holder: str | None = None


@dataclass(frozen=True)
class Takeover:
    """How the documents of mongoqueue are read.

    Attributes:
        queue: where its jobs are put.
        max_attempts: how often its consumers tried a job; one that failed as often is dead.
        now: the server's time.
        locked_too: nobody is at the jobs that are locked: their attempts are over.
    """

    queue: str
    max_attempts: int
    now: datetime
    locked_too: bool = False

    def job_of(self, raw: RawBSONDocument) -> Taken | Left:
        """Return the job that a document is here, or why it stays where it is."""
        try:
            return self._job_of(raw)
        except BSONError:
            return Left(read(raw, any_id=True)["_id"], UNREADABLE)

    def _job_of(self, raw: RawBSONDocument) -> Taken | Left:
        found = dict(raw)  # its own look-ups take twice as long
        job_id = found["_id"]
        if type(job_id) is not ObjectId:
            job_id = read(raw, any_id=True)["_id"]
        if not found.keys() >= ITS_FIELDS:
            return Left(job_id, NOT_ITS_OWN)
        if not is_plain_id(job_id):
            return Left(job_id, ODDITIES[BAD_ID])
        if "payload" in found and not found.keys() <= ALL_FIELDS:
            return Left(job_id, MORE_FIELDS)
        locked = found["locked_by"] is not None or found["locked_at"] is not None
        if locked and not self.locked_too:
            return Left(job_id, LOCKED, str(found["locked_by"])[:MOST_CHARACTERS])
        payload, priority = _payload_of(found)
        try:
            # What a put refuses, as a payload that is nested too deeply, nobody could run.
            encode_payload(bson.decode(payload.raw, CODEC) if payload is not None else None)
        except PayloadError:
            return Left(job_id, BAD_PAYLOAD)
        attempts = max(0, whole_of(found["attempts"], 0)) + locked
        error = found["last_error"]
        if locked and error is None:
            error = NOT_ENDED
        fields = self._fields(job_id, priority, attempts, error)
        return Taken(job_id, {"_id": job_id, **fields, "payload": payload})

    def _fields(self, job_id: Any, priority: int, attempts: int, error: Any) -> dict[str, Any]:
        put_at = job_id.generation_time if isinstance(job_id, ObjectId) else self.now
        settings: dict[str, Any] = {
            "created_at": min(put_at, self.now),
            "attempts": attempts,
            "last_error": None if error is None else cut_error(str(error)),
        }
        if attempts >= self.max_attempts:
            settings |= {"state": "dead", "finished_at": self.now}
        return fields_of(self.queue, self.now, priority, **settings)


def _payload_of(found: dict[str, Any]) -> tuple[RawBSONDocument | None, int]:
    """Return what was put, as it is stored, and its priority. None is for what is no mapping."""
    if "payload" in found:
        payload, priority = found["payload"], found.get("priority")
    else:
        given = {name: value for name, value in found.items() if name not in ITS_FIELDS | {"_id"}}
        rest, priority = split_priority(given)
        payload = bson.decode(bson.encode({"": rest}, codec_options=CODEC), RAW_CODEC)[""]
    number = min(max(-MAX_PRIORITY, whole_of(priority, 0)), MAX_PRIORITY)
    return payload if isinstance(payload, RawBSONDocument) else None, number
