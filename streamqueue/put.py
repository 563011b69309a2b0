"""A put, checked before anything is sent; the document follows when the server's time is known."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from . import options
from .document import (
    encode_fields,
    encode_payload,
    join_document,
    new_document,
    split_priority,
)
from .durations import point_in_time, seconds
from .errors import ConfigurationError
from .tracing import current_traceparent

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from bson.raw_bson import RawBSONDocument


@dataclass(slots=True)
class Put:
    """One job to be put, valid."""

    id: ObjectId
    payload: bytes
    priority: int
    delay: float | None
    run_at: datetime | None
    key: str | None
    max_attempts: int
    traceparent: str | None = None

    def due(self, now: datetime) -> datetime | None:
        """Return when it is to run; None for now."""
        return now + timedelta(seconds=self.delay) if self.delay else self.run_at

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
            job_id=self.id,
            traceparent=self.traceparent,
        )


@dataclass(slots=True)
class Puts:
    """Many jobs to be put, valid, with the same settings but for the priority.

    Attributes:
        first: the first of them, whose settings are everybody's.
    """

    first: Put
    ids: list[ObjectId]
    payloads: list[bytes]
    priorities: list[int]

    def documents(self, queue: str, now: datetime) -> list[RawBSONDocument]:
        """Return what is inserted; `now` is the server's time."""
        due, limit = self.first.due(now), self.first.max_attempts
        trace = self.first.traceparent
        fields = {
            priority: encode_fields(queue, now, priority, limit, due, traceparent=trace)
            for priority in set(self.priorities)
        }
        return [
            join_document(job_id, fields[priority], payload)
            for job_id, priority, payload in zip(
                self.ids, self.priorities, self.payloads, strict=True
            )
        ]


def check_put(
    payload: object,
    *,
    priority: int | None,
    delay: float | timedelta | None,
    run_at: datetime | None,
    key: str | None,
    max_attempts: int,
    job_id: ObjectId | None = None,
) -> Put:
    """Return the put, or raise PayloadError or ConfigurationError."""
    if delay is not None and run_at is not None:
        raise ConfigurationError("give delay or run_at, not both")
    if priority is None:
        payload, priority = split_priority(payload)
    return Put(
        id=job_id or ObjectId(),
        payload=encode_payload(payload),
        priority=0 if priority is None else options.priority(priority),
        delay=None if delay is None else seconds(delay, "delay"),
        run_at=None if run_at is None else point_in_time(run_at, "run_at"),
        key=None if key is None else options.key_name(key),
        max_attempts=options.max_attempts(max_attempts),
        traceparent=current_traceparent(),
    )


def check_puts(
    payloads: Iterable[object], *, priority: int | None = None, **settings: Any
) -> Puts | None:
    """Return all the puts, None for none, or raise for the first bad one: then nothing is put."""
    if isinstance(payloads, (str, bytes, dict)):
        raise ConfigurationError("put_many takes a list of payloads; for one payload use put")
    first: Put | None = None
    encoded: list[bytes] = []
    priorities: list[int] = []
    for payload in payloads:
        if first is None:
            # The settings are the same for all and are checked with the first: in a thousand puts
            # their checks would cost as much as the encoding.
            first = check_put(payload, priority=priority, **settings)
            encoded.append(first.payload)
            priorities.append(first.priority)
            continue
        number = priority
        if number is None:
            payload, number = split_priority(payload)
            number = 0 if number is None else options.priority(number)
        encoded.append(encode_payload(payload))
        priorities.append(number)
    if first is None:
        return None
    return Puts(first, _ids_after(first.id, len(encoded)), encoded, priorities)


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
