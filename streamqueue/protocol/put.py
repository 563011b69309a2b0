"""A put, checked before anything is sent; the document follows when the server's time is known."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from .. import options
from ..durations import point_in_time, seconds, seconds_or_moment
from ..errors import ConfigurationError, PayloadError
from .calls import Call
from .dependencies import NO_PARENTS, check_parents
from .document import new_document, object_id
from .payload import encode_payload, split_priority
from .trace import current_traceparent
from .unique import NO_RULE, TaskKey, check_rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bson.raw_bson import RawBSONDocument

    from .dependencies import IfParentFails, Parents
    from .fitting.kinds import PayloadLike
    from .unique import KeyUntil, OnConflict, Unique, UniqueRule


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job for ``put_many``, with settings of its own; what it leaves open, the call says.

    With a `job_id` it can be put again after an error that leaves open whether it is there: what is
    there already is not put a second time.

    Attributes:
        payload: as for ``put``, or a call of a task; the others are as for ``put``.
    """

    payload: PayloadLike = field(repr=False)
    _: KW_ONLY
    job_id: ObjectId | None = None
    priority: int | None = None
    delay: float | timedelta | None = None
    run_at: datetime | None = None
    max_attempts: int | None = None
    key: str | None = None
    on_conflict: OnConflict | None = None
    key_until: KeyUntil | None = None
    unique_for: float | timedelta | None = None
    max_delay: float | timedelta | None = None
    group: str | None = None
    after: Iterable[Any] | None = None
    if_parent_fails: IfParentFails | None = None
    expires: float | timedelta | datetime | None = None
    keep: float | timedelta | None = None


@dataclass(slots=True)
class Put:
    """One job to be put, valid.

    Attributes:
        named: its id was given, so that it may be there already.
        parents: the jobs that it comes after.
        needed: others of the same call come after it.
        schedule: the name of the schedule that puts it, and `tick` the moment it is for.
        task: the name of the task that it is a call of, or None.
    """

    id: ObjectId
    named: bool
    payload: bytes
    priority: int
    delay: float | None
    run_at: datetime | None
    unique: Unique
    max_attempts: int | None
    traceparent: str | None = None
    group: str | None = None
    expires: float | datetime | None = None
    keep: float | None = None
    awaited: bool = False
    schedule: str | None = None
    tick: datetime | None = None
    parents: Parents = NO_PARENTS
    needed: bool = False
    task: str | None = None

    @property
    def features(self) -> set[str]:
        """What it uses that needs an index of its own, but for a key."""
        used = {
            "group": self.group is not None,
            "expires": self.expires is not None,
            "keep": bool(self.keep or self.parents.ids),
            "after": bool(self.parents.ids),
        }
        return {name for name, is_used in used.items() if is_used}

    @property
    def key(self) -> str | None:
        """Its key."""
        return self.unique.key

    @property
    def task_key(self) -> TaskKey:
        """The same of one that has a key, with the task in which it is unique."""
        return TaskKey(str(self.unique.key), self.task)

    @property
    def upserts(self) -> bool:
        """Whether it is put by an upsert, which does not fail when the key is taken."""
        return self.unique.upserts

    @property
    def may_exist(self) -> bool:
        """Whether a job with its id or its key may be there already."""
        return self.named or self.key is not None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is to be done for it but to insert it."""
        return not (self.may_exist or self.parents.ids)

    def due(self, now: datetime) -> datetime | None:
        """Return when it is to run; None for now, or for as soon as its parents have ended."""
        if self.parents.ids:
            return self.run_at
        return now + timedelta(seconds=self.delay) if self.delay else self.run_at

    def expires_at(self, now: datetime) -> datetime | None:
        """Return from when on it is too late to run; None for never."""
        if self.expires is None or isinstance(self.expires, datetime):
            return self.expires
        return now + timedelta(seconds=self.expires)

    def document(self, queue: str, now: datetime) -> RawBSONDocument:
        """Return what is inserted; `now` is the server's time."""
        unique: dict[str, Any] = {}
        if self.key is not None:
            unique = {
                "key": self.unique.key,
                "held_key": self.unique.key,
                "key_until": "start" if self.unique.until_start else None,
            }
            if self.unique.held_for is not None:
                unique["unique_until"] = now + timedelta(seconds=self.unique.held_for)
        return new_document(
            self.payload,
            queue=queue,
            now=now,
            priority=self.priority,
            max_attempts=self.max_attempts,
            run_at=self.due(now),
            job_id=self.id,
            traceparent=self.traceparent,
            group=self.group,
            expires_at=self.expires_at(now),
            keep=self.keep,
            awaited=self.awaited or self.needed or None,
            needed=now if self.needed else None,
            schedule=self.schedule,
            tick=self.tick,
            task=self.task,
            **unique,
            **self.parents.fields(self.delay),
        )


def check_put(
    payload: object,
    *,
    priority: int | None,
    delay: float | timedelta | None,
    run_at: datetime | None,
    max_attempts: int | None,
    key: str | None = None,
    on_conflict: str | None = None,
    key_until: str | None = None,
    unique_for: float | timedelta | None = None,
    max_delay: float | timedelta | None = None,
    group: str | None = None,
    after: object = None,
    if_parent_fails: str | None = None,
    expires: float | timedelta | datetime | None = None,
    keep: float | timedelta | None = None,
    job_id: object = None,
    awaited: bool = False,
    rule: UniqueRule = NO_RULE,
    parents: Parents | None = None,
    queue: str | None = None,
) -> Put:
    """Return the put, or raise PayloadError or ConfigurationError.

    `rule` is what holds for its key unless the put says otherwise; `parents` is what it comes
    after, checked before; `queue` is where it is put, which a call of a task may not be for. None
    is wherever it is published.
    """
    own_rule = check_rule(on_conflict, key_until, unique_for, max_delay)
    unique = own_rule.over(rule).of(key)
    if unique.key is None:
        own_rule.need_key()
    if delay is not None and run_at is not None:
        raise ConfigurationError("give delay or run_at, not both")
    if isinstance(payload, NewJob):
        raise PayloadError("a NewJob is for put_many: put its payload, with its settings")
    if parents is None:
        parents = check_parents(after, if_parent_fails)
    if parents.ids and unique.upserts:
        raise ConfigurationError(
            f"on_conflict={unique.on_conflict!r} does not go with after: whether the job that has "
            "the key is to come after these is not said; leave out one of the two"
        )
    task = None
    if type(payload) is Call:  # it has been checked, and a priority in it is an argument
        if queue is not None:
            payload.check_queue(queue)
        task, encoded = payload.task, payload.encoded
    else:
        if priority is None:
            payload, priority = split_priority(payload)
        encoded = encode_payload(payload)
    return Put(
        id=ObjectId() if job_id is None else object_id(job_id),
        named=job_id is not None,
        payload=encoded,
        priority=0 if priority is None else options.priority(priority),
        delay=None if delay is None else seconds(delay, "delay"),
        run_at=None if run_at is None else point_in_time(run_at, "run_at"),
        unique=unique,
        max_attempts=None if max_attempts is None else options.max_attempts(max_attempts),
        traceparent=current_traceparent(),
        group=None if group is None else options.group_name(group),
        expires=seconds_or_moment(expires, "expires"),
        keep=options.keep(keep),
        awaited=awaited,
        parents=parents,
        task=task,
    )
