"""A put, checked before anything is sent; the document follows when the server's time is known."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from . import options
from .document import encode_payload, new_document, split_priority
from .durations import point_in_time, seconds
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from bson.raw_bson import RawBSONDocument


@dataclass(slots=True)
class Put:
    """One job to be put, valid."""

    id: ObjectId
    payload: RawBSONDocument
    priority: int
    delay: float | None
    run_at: datetime | None
    key: str | None
    max_attempts: int

    def document(self, queue: str, now: datetime) -> dict[str, Any]:
        """Return what is inserted; `now` is the server's time."""
        run_at = now + timedelta(seconds=self.delay) if self.delay else self.run_at
        return new_document(
            self.payload,
            queue=queue,
            now=now,
            priority=self.priority,
            max_attempts=self.max_attempts,
            run_at=run_at,
            key=self.key,
            job_id=self.id,
        )


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
    )


def check_puts(payloads: Iterable[object], **settings: Any) -> list[Put]:
    """Return all the puts, or raise for the first bad one: then nothing is put."""
    if isinstance(payloads, (str, bytes, dict)):
        raise ConfigurationError("put_many takes a list of payloads; for one payload use put")
    puts: list[Put] = []
    for payload in payloads:
        if not puts:
            puts.append(check_put(payload, **settings))
            continue
        # The settings are the same for all and were checked with the first: in a thousand puts
        # their checks would cost as much as the encoding.
        first, priority = puts[0], settings["priority"]
        if priority is None:
            payload, priority = split_priority(payload)
            priority = 0 if priority is None else options.priority(priority)
        puts.append(
            Put(
                id=ObjectId(),
                payload=encode_payload(payload),
                priority=priority,
                delay=first.delay,
                run_at=first.run_at,
                key=first.key,
                max_attempts=first.max_attempts,
            )
        )
    return puts
