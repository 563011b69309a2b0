"""Schedules: what is stored of each, and what is to be done for one that is due.

One document for each, among the settings of the queues (``<jobs>.settings``)::

    _id              "schedule:" and its name
    kind             "schedule"
    name, queue      the queue is where its jobs go
    rule             {cron, timezone} or {every, offset}
    spread           seconds over which schedules of one rule begin, each at its part of them
    catch_up, catch_up_limit
    payload, put     the job of a tick, and the settings it is put with
    task             the task that it is a call of, if it is one
    digest           a text, of all that was said of it: whoever has read another takes no tick
    source           "code" or "stored": whose worker declares it, or any
    declared_by, declared_at
    last_tick        a UTC instant; what is not later than this is never put
    last_job         the id of the job of that tick
    next_tick        for who counts how late a schedule is; nobody fires by it
    behind           {until, left, catch_up}: while missed ticks are put, and how many more may be
    paused, paused_at

A tick is taken by moving ``last_tick`` forward and inserting its job in one transaction. The job
has ``schedule`` and ``tick``; its key is the user's.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args

import bson
from bson.raw_bson import RawBSONDocument

from .. import options
from ..durations import seconds, shown
from ..errors import ConfigurationError
from ..names import is_name
from .calls import Call
from .document import CODEC
from .fitting.stored import stored_form
from .payload import encode_payload
from .put import Put, check_put
from .stored import date_of, seconds_in, text_in, whole_of
from .ticks import EPOCH, Rule

if TYPE_CHECKING:
    from .fitting.kinds import PayloadLike
    from .unique import KeyUntil, OnConflict

KIND = "schedule"
PREFIX = "schedule:"
CatchUp = Literal["none", "one", "all"]
Source = Literal["code", "stored"]
LATE = timedelta(seconds=60)
"""So late a tick is put with every `catch_up`; only later ones count as missed."""
DEFAULT_LIMIT = 1000
HIGHEST_LIMIT = 100_000


class TickSettings(TypedDict, total=False):
    """The settings of ``put`` that the jobs of a schedule can have."""

    priority: int | None
    max_attempts: int | None
    key: str | None
    on_conflict: OnConflict
    key_until: KeyUntil | None
    unique_for: float | timedelta | None
    group: str | None
    expires: float | timedelta | datetime | None
    keep: float | timedelta | None


PUT_SETTINGS = sorted(TickSettings.__annotations__)
NOT_TAKEN = {
    "delay": "a tick has its time; to start later, use offset= or spread=",
    "run_at": "the job of a tick has the tick as its run_at",
    "session": "a tick is put in a transaction of its own",
    "job_id": "each tick has a job of its own",
    "max_delay": "it bounds delay=, which a tick does not take",
    "after": "its jobs end only once, and ticks go on: let the job of a tick put what follows",
    "if_parent_fails": "it goes with after=, which a tick does not take",
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """What was said of a schedule, valid.

    Attributes:
        name: its name, in the collection.
        queue: the name of the queue that its jobs go to.
        rule: when it fires.
        spread: seconds over which its start is spread, by its name.
        catch_up: what becomes of ticks that were missed.
        catch_up_limit: how many of them are put at the most.
        payload: of its jobs.
        put: the settings that they are put with.
        task: the name of the task that they are calls of, or None.
    """

    name: str
    queue: str
    rule: Rule
    spread: float
    catch_up: CatchUp
    catch_up_limit: int
    payload: Mapping[str, Any]
    put: Mapping[str, Any]
    task: str | None = None

    def said(self) -> dict[str, Any]:
        """Return what is stored of it, but for its name, and all but what happens to it."""
        return {
            "queue": self.queue,
            "rule": self.rule.document(),
            "spread": self.spread,
            "catch_up": self.catch_up,
            "catch_up_limit": self.catch_up_limit,
            # As a job's is encoded: the settings' own codec has no form for a UUID.
            "payload": RawBSONDocument(encode_payload(self.payload)),
            "put": dict(self.put),
            **({} if self.task is None else {"task": self.task}),
        }

    @property
    def digest(self) -> str:
        """What tells two texts of a schedule apart."""
        encoded = bson.encode(self.said(), codec_options=CODEC)
        return hashlib.sha256(encoded).hexdigest()[:32]

    def new_put(self, tick: datetime) -> Put:
        """Return the put of a tick's job, or raise PayloadError or ConfigurationError."""
        return _checked(self, tick)


def check_schedule(
    name: object,
    queue: str,
    rule: Rule,
    *,
    spread: Any = 0,
    catch_up: object = "one",
    catch_up_limit: Any = DEFAULT_LIMIT,
    payload: PayloadLike | None = None,
    put: Mapping[str, Any],
    task: str | None = None,
) -> Schedule:
    """Return the schedule, or raise ConfigurationError or PayloadError.

    `task` is the one that its jobs are calls of, with this payload, unless that is a call.
    """
    if catch_up not in get_args(CatchUp):
        raise ConfigurationError(
            f"catch_up must be one of {', '.join(map(repr, get_args(CatchUp)))}, not "
            f"{shown(catch_up)}"
        )
    for setting in put:
        if setting in NOT_TAKEN:
            raise ConfigurationError(f"a schedule takes no {setting}=: {NOT_TAKEN[setting]}")
        if setting not in PUT_SETTINGS:
            raise ConfigurationError(
                f"a schedule has no setting {setting!r}; of those of put it takes "
                f"{', '.join(PUT_SETTINGS)}"
            )
    given = {key: _stored(value) for key, value in put.items() if value is not None}
    queue = options.queue_name(queue)
    if isinstance(payload, Call):
        payload.check_queue(queue)
        task = payload.task
    schedule = Schedule(
        name=schedule_name(name),
        queue=queue,
        rule=rule,
        spread=seconds(spread, "spread"),
        catch_up=catch_up,  # type: ignore[arg-type]
        catch_up_limit=options.whole_number(catch_up_limit, "catch_up_limit", 1, HIGHEST_LIMIT),
        payload=_mapping_of(payload),
        put=given,
        task=task,
    )
    _checked(schedule, None)
    return schedule


def _mapping_of(payload: PayloadLike | None) -> Any:
    """Return what is put at each tick, as a mapping if it is one that can be stored."""
    if payload is None:
        return {}
    form = None if isinstance(payload, Mapping) else stored_form(payload)
    return payload if form is None else form


def schedule_name(name: object) -> str:
    """Return the name of a schedule, or raise ConfigurationError; it is like that of a queue."""
    if not is_name(name):
        raise ConfigurationError(
            "the name of a schedule is 1-64 letters, digits, '_', '.' or '-', beginning with a "
            f"letter or digit, not {shown(name)}"
        )
    return str(name)


def _stored(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _checked(schedule: Schedule, tick: datetime | None) -> Put:
    settings: dict[str, Any] = dict.fromkeys(("priority", "delay", "run_at", "max_attempts"))
    call = schedule.task is not None
    put = check_put({} if call else schedule.payload, **{**settings, **schedule.put})
    if call:  # (a priority in it is an argument)
        put.payload = encode_payload(schedule.payload)
    put.task, put.schedule, put.tick = schedule.task, schedule.name, tick
    return put


class Behind(NamedTuple):
    """Ticks that were missed and are being put.

    Attributes:
        until: those that are not later than this.
        left: how many of them may still be put, if all are.
        catch_up: which of them are, whatever the schedule says of others.
    """

    until: datetime
    left: int
    catch_up: CatchUp = "all"

    @classmethod
    def from_document(cls, stored: object) -> Behind | None:
        """Read what anybody may have stored; None for what is none."""
        until = date_of(stored.get("until")) if isinstance(stored, dict) else None
        if until is None or not isinstance(stored, dict):
            return None
        return cls(until, whole_of(stored.get("left"), 0), _catch_up(stored.get("catch_up")))


def _limit(value: object) -> int:
    limit = whole_of(value, DEFAULT_LIMIT)
    return limit if 1 <= limit <= HIGHEST_LIMIT else DEFAULT_LIMIT


def _catch_up(value: object) -> CatchUp:
    return value if value in get_args(CatchUp) else "one"  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class StoredSchedule:
    """A schedule as it was read; what somebody else has damaged reads as absent.

    Attributes:
        rule: None where it is none, or cannot be read here.
        last_tick: None where it is lost: then the schedule begins anew.
    """

    name: str
    queue: str
    rule: Rule | None
    spread: float
    catch_up: CatchUp
    catch_up_limit: int
    payload: Mapping[str, Any]
    put: Mapping[str, Any]
    digest: str | None
    source: Source
    declared_by: str | None
    declared_at: datetime | None
    last_tick: datetime | None
    last_job: Any
    next_tick: datetime | None
    behind: Behind | None
    paused: bool
    task: str | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> StoredSchedule | None:
        """Read what anybody may have stored; None if it has no name."""
        get = document.get
        name = str(get("_id")).removeprefix(PREFIX)
        if not is_name(name):
            return None
        payload, put = get("payload"), get("put")
        return cls(
            name=name,
            queue=str(get("queue")) if is_name(get("queue")) else "",
            rule=Rule.from_document(get("rule")),
            spread=seconds_in(get("spread"), 0.0) or 0.0,
            catch_up=_catch_up(text_in(get("catch_up"))),
            catch_up_limit=_limit(get("catch_up_limit")),
            payload=payload if isinstance(payload, dict) else {},
            put=put if isinstance(put, dict) else {},
            digest=text_in(get("digest")),
            source="code" if get("source") == "code" else "stored",
            declared_by=text_in(get("declared_by")),
            declared_at=date_of(get("declared_at")),
            last_tick=date_of(get("last_tick")),
            last_job=get("last_job"),
            next_tick=date_of(get("next_tick")),
            behind=Behind.from_document(get("behind")),
            paused=get("paused") is True,
            task=text_in(get("task")),
        )

    def schedule(self) -> Schedule:
        """Return what was said of it, or raise ConfigurationError or PayloadError where that is
        nothing that can be put."""
        if self.rule is None:
            raise ConfigurationError(f"the rule of schedule {self.name} cannot be read here")
        return check_schedule(
            self.name,
            self.queue,
            self.rule,
            spread=self.spread,
            catch_up=self.catch_up,
            catch_up_limit=self.catch_up_limit,
            payload=self.payload,
            put=self.put,
            task=self.task,
        )

    @property
    def delay(self) -> timedelta:
        """How long after a tick it begins: its part of the spread, which the name alone decides."""
        part = zlib.crc32(self.name.encode()) / 2**32
        return timedelta(milliseconds=int(self.spread * part * 1000))

    def due(self) -> datetime | None:
        """Return when there is something to do for it next; None for never."""
        if self.rule is None or self.paused:
            return None
        if self.last_tick is None:
            return EPOCH  # to begin anew, at once
        tick = self.rule.next(self.last_tick)
        try:
            return None if tick is None else tick + self.delay
        except OverflowError:
            return None

    def after(self, step: Step) -> StoredSchedule:
        """Return the same as it is when a step was taken."""
        return replace(self, last_tick=step.tick, behind=step.behind)


class Step(NamedTuple):
    """What is to be done for a schedule now: its last tick is moved to this one.

    Attributes:
        tick: the moment.
        fires: its job is put; else ticks are left out, and nothing else happens.
        behind: what is stored of the missed ones from then on.
    """

    tick: datetime
    fires: bool
    behind: Behind | None = None


def next_step(schedule: StoredSchedule, now: datetime) -> Step | None:
    """Return what is to be done for a schedule at a time, or None if there is nothing yet.

    A tick that is at most a minute late is put. Of those that are later the schedule's `catch_up`
    says which are; what is left out is passed over by a later one, or by a step that puts nothing.
    """
    rule, last = schedule.rule, schedule.last_tick
    if rule is None or last is None or schedule.paused:
        return None
    begun = now - schedule.delay  # the ticks whose part of the spread has come
    first = rule.next(last)
    if first is None or first > begun:
        return None
    missed_until = begun - LATE
    if first > missed_until:
        return Step(first, fires=True)
    recent = rule.next(missed_until)
    if recent is not None and recent > begun:
        recent = None
    behind = schedule.behind if schedule.behind and first <= schedule.behind.until else None
    catch_up = schedule.catch_up if behind is None else behind.catch_up
    if catch_up == "all":
        if behind is None:
            in_time = rule.count(missed_until, begun, schedule.catch_up_limit)
            behind = Behind(missed_until, schedule.catch_up_limit - in_time)
        if behind.left > 0:
            return Step(first, fires=True, behind=behind._replace(left=behind.left - 1))
    if recent is not None:
        return Step(recent, fires=True)
    latest = rule.latest(last, missed_until) or first
    return Step(latest, fires=catch_up == "one")
