"""Many puts, checked before anything is sent, with the same settings or with their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from bson import ObjectId

from .. import options
from ..durations import shown
from ..errors import ConfigurationError
from .calls import Call
from .dependencies import NO_PARENTS, check_parents, key_of, latest, parents_first
from .document import encode_fields, join_document
from .payload import encode_payload, split_priority
from .put import NewJob, check_put
from .unique import check_rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from bson.raw_bson import RawBSONDocument

    from .dependencies import Parents
    from .put import Put
    from .unique import TaskKey, UniqueRule


class PutIds(list[ObjectId]):
    """The ids of many jobs, in the order of their payloads.

    Attributes:
        existing: the positions of those that were there already, by their ``job_id`` or by their
            key; the id is then that of the job that is there.
    """

    __slots__ = ("existing",)

    def __init__(self, ids: Iterable[ObjectId], existing: Iterable[int] = ()) -> None:
        super().__init__(ids)
        self.existing = list(existing)


class Run(NamedTuple):
    """Some of many jobs that are sent together.

    Attributes:
        upserts: whether they are put by upserts.
        positions: of the jobs.
    """

    upserts: bool
    positions: Sequence[int]


@dataclass(slots=True)
class Puts:
    """Many jobs to be put, valid, with the same settings but for the priority, or with their own.

    Attributes:
        shared: the one whose settings are those of all that have none of their own.
        own: those that have, by their position.
        named: some of their ids were given.
        parents: the ids of jobs that are there already, and that some of these come after.
        depths: how many of these each comes after, one behind the other; of none that is none.
        tasks: the names of the tasks that some of them are calls of, by position.
    """

    shared: Put
    ids: list[ObjectId]
    payloads: list[bytes]
    priorities: list[int]
    own: dict[int, Put]
    named: bool
    parents: Sequence[Any] = ()
    depths: Mapping[int, int] = field(default_factory=dict)
    tasks: Mapping[int, str] = field(default_factory=dict)

    @property
    def depend(self) -> bool:
        """Whether some of them come after other jobs."""
        return bool(self.parents or self.depths)

    def plain_dependents(self) -> list[ObjectId]:
        """Return the ids of those that do, and have no settings of their own."""
        if not self.shared.parents.ids:
            return []
        return [job_id for at, job_id in enumerate(self.ids) if at not in self.own]

    def all_parents(self) -> list[Any]:
        """Return the ids of all jobs that some of them come after."""
        among = [put.id for put in self.own.values() if put.needed]
        return [*self.parents, *among]

    @property
    def features(self) -> set[str]:
        """What they use that needs an index of its own, but for keys."""
        return self.shared.features.union(*(put.features for put in self.own.values()))

    @property
    def keyed(self) -> bool:
        """Whether one of them has a key."""
        return any(put.key is not None for put in self.own.values())

    def task_key(self, position: int) -> TaskKey:
        """Return the key of one that has one, with the task in which it is unique."""
        return self.own[position].task_key

    def runs(self) -> list[Run]:
        """Return their positions in parts, to be sent one after the other: those that are inserted,
        and those that are put by upserts. A key that both have is for the one that comes first."""
        upserted = {position: put for position, put in self.own.items() if put.upserts}
        if not upserted:
            return [Run(False, self._parents_first())]
        upserted_keys = {put.task_key for put in upserted.values()}
        both = any(
            put.task_key in upserted_keys
            for position, put in self.own.items()
            if put.key is not None and position not in upserted
        )
        positions: Sequence[int] = self._parents_first()
        if not both:
            positions = sorted(positions, key=upserted.__contains__)
        return [
            Run(upserts, list(part)) for upserts, part in groupby(positions, upserted.__contains__)
        ]

    def _parents_first(self) -> Sequence[int]:
        """Return all positions, of a job behind those of its parents: nobody is to see it and not
        them."""
        positions = range(len(self.ids))
        depths = self.depths
        return sorted(positions, key=lambda at: depths.get(at, 0)) if depths else positions

    @property
    def may_exist(self) -> bool:
        """Whether a job with the id or the key of one of them may be there already."""
        return self.named or self.keyed

    def documents(self, queue: str, now: datetime) -> list[RawBSONDocument]:
        """Return what is inserted; `now` is the server's time."""
        shared = self.shared
        settings = {
            "max_attempts": shared.max_attempts,
            "traceparent": shared.traceparent,
            "group": shared.group,
            "expires_at": shared.expires_at(now),
            "keep": shared.keep,
            **shared.parents.fields(shared.delay),
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
        of_tasks: dict[tuple[str, int], bytes] = {}
        for position, task in self.tasks.items():
            kind = task, self.priorities[position]
            if kind not in of_tasks:
                of_tasks[kind] = encode_fields(queue, now, kind[1], due, task=task, **settings)
            place = self.ids[position], of_tasks[kind], self.payloads[position]
            documents[position] = join_document(*place)
        for position, put in self.own.items():
            documents[position] = put.document(queue, now)
        return documents


def check_puts(
    payloads: Iterable[object],
    *,
    priority: int | None,
    delay: float | timedelta | None,
    run_at: datetime | None,
    max_attempts: int | None,
    keys: Sequence[str | None] | None = None,
    on_conflict: str | None = None,
    key_until: str | None = None,
    unique_for: float | timedelta | None = None,
    max_delay: float | timedelta | None = None,
    group: str | None = None,
    after: object = None,
    if_parent_fails: str | None = None,
    expires: float | timedelta | datetime | None = None,
    keep: float | timedelta | None = None,
    queue: str,
) -> Puts | None:
    """Return all the puts, None for none, or raise for the first bad one: then nothing is put.

    `queue` is where they are put, which a call of a task may not be for.
    """
    if isinstance(payloads, (str, bytes, dict, Call, NewJob)):
        raise ConfigurationError("put_many takes a list of payloads; for one payload use put")
    # The settings are the same for all and are checked once: in a thousand puts their checks would
    # cost as much as the encoding.
    only_rule = after is None and if_parent_fails not in (None, "hold")
    shared = check_put(
        {},
        priority=priority,
        delay=delay,
        run_at=run_at,
        max_attempts=max_attempts,
        group=group,
        after=() if only_rule else after,
        if_parent_fails=if_parent_fails,
        expires=expires,
        keep=keep,
    )
    rule = check_rule(on_conflict, key_until, unique_for, max_delay)
    key_of = _Keys(keys)
    encoded: list[bytes] = []
    priorities: list[int] = []
    own: dict[int, Put] = {}
    keyed = 0
    tasks: dict[int, str] = {}
    for payload in payloads:
        key = key_of.next()
        if key is not None and not isinstance(payload, NewJob):
            payload = NewJob(payload)  # type: ignore[arg-type]  # checked like any other
            keyed += 1
        if isinstance(payload, NewJob):
            put = own[len(encoded)] = _check_new_job(payload, shared, priority, key, rule, queue)
            encoded.append(put.payload)
            priorities.append(shared.priority)
            continue
        if type(payload) is Call:  # (isinstance() takes longer, of what is a Mapping)
            payload.check_queue(queue)
            tasks[len(encoded)] = payload.task
            encoded.append(payload.encoded)
            priorities.append(shared.priority)
            continue
        number = priority
        if number is None:
            payload, number = split_priority(payload)
            number = 0 if number is None else options.priority(number)
        encoded.append(encode_payload(payload))
        priorities.append(number)
    key_of.check_end()
    if keys is None and not own and encoded:  # else it is their data that has no key this time
        rule.need_key()
    if only_rule and len(own) == keyed and encoded:  # likewise, of jobs that come after none
        check_parents(None, if_parent_fails)
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
    puts = Puts(shared, ids, encoded, priorities, own, named, tasks=tasks)
    if shared.parents.ids or any(put.parents.ids for put in own.values()):
        _sort_parents(puts)
    return puts


def _sort_parents(puts: Puts) -> None:
    """Tell which of their parents are among them, and put those first; the others are to be there.
    (Ids are looked up by their keys: one of another program's, as a decimal, has no hash.)

    Raises:
        ConfigurationError: jobs come after one another in a circle.
    """
    places: dict[object, int] = {puts.ids[at]: at for at, put in puts.own.items() if put.named}
    among: dict[int, list[int]] = {}
    elsewhere: dict[object, Any] = {}
    for parents in {id(one): one for one in _all_parents(puts)}.values():
        elsewhere.update((key, each) for each in parents.ids if (key := key_of(each)) not in places)
    for at, put in puts.own.items():
        among[at] = _places_of(put.parents, places)
    shared = _places_of(puts.shared.parents, places)
    if shared:  # they are themselves among those that were to come after them
        among = {at: among.get(at, shared) for at in range(len(puts.ids))}
    ids = {at: puts.ids[at] for at in among}
    depths = parents_first({ids[at]: [ids[one] for one in its] for at, its in among.items()})
    puts.parents = list(elsewhere.values())
    puts.depths = {at: depth for at in among if (depth := depths[ids[at]])}
    for at, its in among.items():
        for one in its:
            parent = puts.own[one]
            parent.needed = True
            if parent.upserts:
                raise ConfigurationError(
                    f"job {parent.id}, which others of these come after, may not be put where "
                    f"another job has its key: on_conflict={parent.unique.on_conflict!r} does not "
                    "go with that"
                )
        if its and at in puts.own:
            put = puts.own[at]
            put.parents = put.parents._replace(witness=latest([ids[one] for one in its]))


def _places_of(parents: Parents, places: Mapping[object, int]) -> list[int]:
    return [places[key] for key in map(key_of, parents.ids) if key in places]


def _all_parents(puts: Puts) -> Iterable[Parents]:
    yield puts.shared.parents
    yield from (put.parents for put in puts.own.values())


class _Keys:
    """The keys of many jobs, one after the other."""

    def __init__(self, keys: Sequence[str | None] | None) -> None:
        if isinstance(keys, (str, bytes)) or not (keys is None or isinstance(keys, Sequence)):
            raise ConfigurationError(
                f"keys is a list with a key, or None, for each payload, not {shown(keys)}"
            )
        self._keys = keys
        self._at = 0

    def next(self) -> str | None:
        """Return the key of the next job; of one that has none, None."""
        at, self._at = self._at, self._at + 1
        return self._keys[at] if self._keys is not None and at < len(self._keys) else None

    def check_end(self) -> None:
        """Raise unless there was a key for each job."""
        if self._keys is not None and len(self._keys) != self._at:
            raise ConfigurationError(
                f"keys has {len(self._keys)} and there are {self._at} payloads: give one for each, "
                "None for a job that needs none"
            )


def _check_new_job(
    job: NewJob,
    shared: Put,
    priority: int | None,
    key: str | None,
    rule: UniqueRule,
    queue: str,
) -> Put:
    own_time = job.delay is not None or job.run_at is not None
    return check_put(
        job.payload,
        priority=priority if job.priority is None else job.priority,
        delay=job.delay if own_time else shared.delay,
        run_at=job.run_at if own_time else shared.run_at,
        key=key if job.key is None else job.key,
        on_conflict=job.on_conflict,
        key_until=job.key_until,
        unique_for=job.unique_for,
        max_delay=job.max_delay,
        rule=rule,
        max_attempts=shared.max_attempts if job.max_attempts is None else job.max_attempts,
        group=shared.group if job.group is None else job.group,
        expires=shared.expires if job.expires is None else job.expires,
        keep=shared.keep if job.keep is None else job.keep,
        job_id=job.job_id,
        parents=_parents_of(job, shared.parents),
        queue=queue,
    )


def _parents_of(job: NewJob, shared: Parents) -> Parents:
    """Return what it comes after: what it says itself, and else what is said of all."""
    if job.after is None and job.if_parent_fails is None:
        return shared
    if job.after is None and shared is not NO_PARENTS:
        return shared._replace(rule=check_parents((), job.if_parent_fails).rule)
    own = check_parents(job.after, job.if_parent_fails)
    return own if job.if_parent_fails is not None else own._replace(rule=shared.rule)


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
