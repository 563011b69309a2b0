"""A put, checked before anything is sent; the document follows when the server's time is known."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from .. import options
from ..durations import point_in_time, seconds
from ..errors import ConfigurationError, DuplicateJob
from .document import encode_fields, join_document, new_document, object_id
from .payload import encode_payload, split_priority
from .trace import current_traceparent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bson.raw_bson import RawBSONDocument


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job for ``put_many``, with settings of its own; what it leaves open, the call says.

    With a `job_id` it can be put again after an error that leaves open whether it is there: what is
    there already is not put a second time.

    Attributes:
        payload: as for ``put``, and so are the others.
    """

    payload: Mapping[str, Any] = field(repr=False)
    _: KW_ONLY
    job_id: ObjectId | None = None
    priority: int | None = None
    delay: float | timedelta | None = None
    run_at: datetime | None = None
    max_attempts: int | None = None
    key: str | None = None
    expires: float | timedelta | datetime | None = None
    keep: float | timedelta | None = None


class PutIds(list[ObjectId]):
    """The ids of many jobs, in the order of their payloads.

    Attributes:
        existing: the positions of those that were there already, by their ``job_id``.
    """

    __slots__ = ("existing",)

    def __init__(self, ids: Iterable[ObjectId], existing: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self.existing = list(existing)


@dataclass(slots=True)
class Put:
    """One job to be put, valid.

    Attributes:
        named: its id was given, so that it may be there already.
    """

    id: ObjectId
    named: bool
    payload: bytes
    priority: int
    delay: float | None
    run_at: datetime | None
    key: str | None
    max_attempts: int | None
    traceparent: str | None = None
    expires: float | datetime | None = None
    keep: float | None = None
    awaited: bool = False

    @property
    def features(self) -> set[str]:
        """What it uses that needs an index of its own, but for a key."""
        used = {"expires": self.expires is not None, "keep": bool(self.keep)}
        return {name for name, is_used in used.items() if is_used}

    @property
    def may_exist(self) -> bool:
        """Whether a job with its id or its key may be there already."""
        return self.named or self.key is not None

    def due(self, now: datetime) -> datetime | None:
        """Return when it is to run; None for now."""
        return now + timedelta(seconds=self.delay) if self.delay else self.run_at

    def expires_at(self, now: datetime) -> datetime | None:
        """Return from when on it is too late to run; None for never."""
        if self.expires is None or isinstance(self.expires, datetime):
            return self.expires
        return now + timedelta(seconds=self.expires)

    def document(self, queue: str, now: datetime) -> RawBSONDocument:
        """Return what is inserted; `now` is the server's time."""
        return new_document(
            self.payload,
            queue=queue,
            now=now,
            priority=self.priority,
            max_attempts=self.max_attempts,
            run_at=self.due(now),
            key=self.key,
            held_key=self.key,
            job_id=self.id,
            traceparent=self.traceparent,
            expires_at=self.expires_at(now),
            keep=self.keep,
            awaited=self.awaited or None,
        )


@dataclass(slots=True)
class Puts:
    """Many jobs to be put, valid, with the same settings but for the priority, or with their own.

    Attributes:
        shared: the one whose settings are those of all that have none of their own.
        own: those that have, by their position.
        keys: the keys, by position.
        named: some of their ids were given.
    """

    shared: Put
    ids: list[ObjectId]
    payloads: list[bytes]
    priorities: list[int]
    own: dict[int, Put]
    keys: dict[int, str]
    named: bool

    @property
    def features(self) -> set[str]:
        """What they use that needs an index of its own, but for keys."""
        return self.shared.features.union(*(put.features for put in self.own.values()))

    @property
    def may_exist(self) -> bool:
        """Whether a job with the id or the key of one of them may be there already."""
        return self.named or bool(self.keys)

    def duplicates(
        self,
        existing: Sequence[int],
        taken: Sequence[int],
        holders: Mapping[str, ObjectId],
        *,
        ended_transaction: bool,
    ) -> DuplicateJob:
        """Return what is raised when the keys of those positions were taken, by these jobs.

        `existing` are the positions of those that were there already, by their id.
        """
        ids: list[ObjectId | None] = list(self.ids)
        for position in taken:
            ids[position] = holders.get(self.keys[position])
        return DuplicateJob(
            self.keys[taken[0]],
            ids[taken[0]],
            ids=ids,
            existing=sorted([*existing, *taken]),
            ended_transaction=ended_transaction,
        )

    def documents(self, queue: str, now: datetime) -> list[RawBSONDocument]:
        """Return what is inserted; `now` is the server's time."""
        shared = self.shared
        settings = {
            "max_attempts": shared.max_attempts,
            "traceparent": shared.traceparent,
            "expires_at": shared.expires_at(now),
            "keep": shared.keep,
        }
        due = shared.due(now)
        fields = {
            priority: encode_fields(queue, now, priority, due, **settings)
            for priority in set(self.priorities)
        }
        documents = [
            join_document(job_id, fields[priority], payload)
            for job_id, priority, payload in zip(
                self.ids, self.priorities, self.payloads, strict=True
            )
        ]
        for position, put in self.own.items():
            documents[position] = put.document(queue, now)
        return documents


def check_put(
    payload: object,
    *,
    priority: int | None,
    delay: float | timedelta | None,
    run_at: datetime | None,
    key: str | None,
    max_attempts: int | None,
    expires: float | timedelta | datetime | None = None,
    keep: float | timedelta | None = None,
    job_id: object = None,
    awaited: bool = False,
) -> Put:
    """Return the put, or raise PayloadError or ConfigurationError."""
    if delay is not None and run_at is not None:
        raise ConfigurationError("give delay or run_at, not both")
    if priority is None:
        payload, priority = split_priority(payload)
    return Put(
        id=ObjectId() if job_id is None else object_id(job_id),
        named=job_id is not None,
        payload=encode_payload(payload),
        priority=0 if priority is None else options.priority(priority),
        delay=None if delay is None else seconds(delay, "delay"),
        run_at=None if run_at is None else point_in_time(run_at, "run_at"),
        key=None if key is None else options.key_name(key),
        max_attempts=None if max_attempts is None else options.max_attempts(max_attempts),
        traceparent=current_traceparent(),
        expires=_expires(expires),
        keep=options.keep(keep),
        awaited=awaited,
    )


def _expires(value: float | timedelta | datetime | None) -> float | datetime | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        return point_in_time(value, "expires")
    return seconds(value, "expires")


def check_puts(
    payloads: Iterable[object],
    *,
    priority: int | None,
    delay: float | timedelta | None,
    run_at: datetime | None,
    max_attempts: int | None,
    expires: float | timedelta | datetime | None = None,
    keep: float | timedelta | None = None,
) -> Puts | None:
    """Return all the puts, None for none, or raise for the first bad one: then nothing is put."""
    if isinstance(payloads, (str, bytes, dict, NewJob)):
        raise ConfigurationError("put_many takes a list of payloads; for one payload use put")
    # The settings are the same for all and are checked once: in a thousand puts their checks would
    # cost as much as the encoding.
    shared = check_put(
        {},
        priority=priority,
        delay=delay,
        run_at=run_at,
        key=None,
        max_attempts=max_attempts,
        expires=expires,
        keep=keep,
    )
    encoded: list[bytes] = []
    priorities: list[int] = []
    own: dict[int, Put] = {}
    for payload in payloads:
        if isinstance(payload, NewJob):
            put = own[len(encoded)] = _check_new_job(payload, shared, priority)
            encoded.append(put.payload)
            priorities.append(shared.priority)
            continue
        number = priority
        if number is None:
            payload, number = split_priority(payload)
            number = 0 if number is None else options.priority(number)
        encoded.append(encode_payload(payload))
        priorities.append(number)
    if not encoded:
        return None
    ids = _ids_after(shared.id, len(encoded))
    named = False
    for position, put in own.items():
        if put.named:
            ids[position], named = put.id, True
        else:
            put.id = ids[position]  # the jobs of one call run in its order
    if named and len(set(ids)) < len(ids):
        raise ConfigurationError("two of these jobs have the same job_id")
    keys = {position: put.key for position, put in own.items() if put.key is not None}
    return Puts(shared, ids, encoded, priorities, own, keys, named)


def _check_new_job(job: NewJob, shared: Put, priority: int | None) -> Put:
    own_time = job.delay is not None or job.run_at is not None
    return check_put(
        job.payload,
        priority=priority if job.priority is None else job.priority,
        delay=job.delay if own_time else shared.delay,
        run_at=job.run_at if own_time else shared.run_at,
        key=job.key,
        max_attempts=shared.max_attempts if job.max_attempts is None else job.max_attempts,
        expires=shared.expires if job.expires is None else job.expires,
        keep=shared.keep if job.keep is None else job.keep,
        job_id=job.job_id,
    )


def _ids_after(first: ObjectId, count: int) -> list[ObjectId]:
    """Return `count` new ids that sort as they stand.

    Each is what ``ObjectId()`` makes, the second, a random value and a counter, but made together,
    which costs a third: this second, 40 random bits of their own, and a counter from 0 on. (It has
    24 bits; what does not fit in goes on with other random bits.)
    """
    ids: list[ObjectId] = []
    second = first.binary[:4]
    while len(ids) < count:
        same = second + os.urandom(5)
        numbers = range(min(count - len(ids), 2**24))
        ids += [ObjectId(same + number.to_bytes(3, "big")) for number in numbers]
    return ids
