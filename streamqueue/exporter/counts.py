"""What a census finds: how each queue stands, and what each consumer holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..names import INVALID
from ..protocol.document import State

if TYPE_CHECKING:
    from ..protocol.limits import Per, Rate


@dataclass(slots=True)
class LimitCensus:
    """How one limit of a queue stands.

    Attributes:
        per: of which jobs it is: those of the queue, of each task or of each group.
        task: the task that it is for; None for all.
        limit: jobs that may run at once, or None.
        rate: how many may start in a time, or None.
        running: jobs that run under it; those of the fullest task or group, if each has as many.
            None where it is no limit of those.
        saturated: whether it has no room for a job that is ready, 1 or 0; how many tasks or groups
            have none, if each has a limit. None where that may not be known.
    """

    per: Per
    task: str | None = None
    limit: int | None = None
    rate: Rate | None = None
    running: int | None = None
    saturated: int | None = 0


@dataclass(slots=True)
class RulesCensus:
    """How the rules of one queue stand.

    Attributes:
        limits: each of them; the order of groups is one, of each group a job at a time.
        held_groups: groups with a dead job that holds back ready ones, where the order is strict;
            None where it is not.
        rates_refused: what is stored of rates may not be read.
    """

    limits: list[LimitCensus] = field(default_factory=list)
    held_groups: int | None = None
    rates_refused: bool = False


@dataclass(slots=True)
class QueueCensus:
    """How one queue stands.

    Attributes:
        ready: jobs that wait to be claimed.
        scheduled: jobs that are to run later.
        waiting: jobs that wait for another one, such as the running one of their key.
        running: jobs that a consumer holds.
        dead: jobs that have failed for good.
        oldest_ready_age: seconds since the longest waiting of the due jobs became due, whether it
            has been promoted yet or not; 0 when none waits.
        oldest_running_age: seconds since the one of the running jobs that was claimed first was
            claimed; 0 when none runs.
        expired_leases: running jobs whose lease has ended and that nobody has returned yet.
        consumers: live workers on the list.
        slots: the handlers those can run at a time. One that works on several queues counts its
            slots in each.
        overdue: scheduled jobs that nobody has made ready, 10 seconds after their time or more, or
            without a time.
        paused: nobody claims its jobs, because somebody has said so.
        schedules_late: seconds since the longest overdue of the schedules that put its jobs should
            have fired; 0 when none is overdue.
        has_schedules: whether there are such, which are not paused.
        subscriptions: topics to which it subscribes.
        limits: how its limits stand.
        held_groups: groups that a dead job holds; None where none may.
        held_dependents: jobs that wait for a parent that is dead.
        misfits: jobs that are left to other workers, since their payloads do not fit.
        unknown_tasks: jobs that are, since their tasks are not known.
    """

    name: str
    ready: int = 0
    scheduled: int = 0
    waiting: int = 0
    running: int = 0
    dead: int = 0
    oldest_ready_age: float = 0.0
    oldest_running_age: float = 0.0
    expired_leases: int = 0
    consumers: int = 0
    slots: int = 0
    overdue: int = 0
    paused: bool = False
    schedules_late: float = 0.0
    has_schedules: bool = False
    subscriptions: int = 0
    limits: list[LimitCensus] = field(default_factory=list)
    held_groups: int | None = None
    held_dependents: int = 0
    misfits: int = 0
    unknown_tasks: int = 0

    def jobs(self) -> dict[str, int]:
        """Return how many jobs there are in each state."""
        return {
            State.READY: self.ready,
            State.SCHEDULED: self.scheduled,
            State.WAITING: self.waiting,
            State.RUNNING: self.running,
            State.DEAD: self.dead,
        }


@dataclass(slots=True)
class ConsumerCensus:
    """What one consumer holds.

    Attributes:
        name: what its jobs have as ``locked_by``.
        queues: what it works on; none for a consumer that holds jobs and is on no list, such as a
            script that iterates over a queue.
        slots: jobs it can run at a time, or None.
        host, pid, version: where and what it runs, or None.
        up: seconds since it started, or None.
        silent: seconds since it last said that it lives, or None.
        running: jobs it holds.
        longest: seconds since it claimed the one it has held longest; 0 when it holds none.
        expired: jobs it held whose lease has ended.
    """

    name: str
    queues: list[str] = field(default_factory=list)
    slots: int | None = None
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    up: float | None = None
    silent: float | None = None
    running: int = 0
    longest: float = 0.0
    expired: int = 0


@dataclass(slots=True)
class Census:
    """How all queues of a collection stand.

    Attributes:
        queues: those with jobs that are not done, with a consumer, a schedule or a subscription,
            or paused, by name. All documents whose queue is no valid name are in one,
            ``(invalid)``, which is there when there are any.
        consumers: by name; None when the list may not be read.
        knows_settings: whether it may be read which queues are paused or have limits, how late
            schedules are, and who subscribes to topics.
        late_schedules: seconds since they should have fired, by name, the latest first.
        paused_schedules: their names.
        oplog_window: seconds from the oldest entry of the oplog to the newest, which is how long a
            change stream may be away and still resume; None when ``local`` may not be read.
        left_out: how many other queues there are at the least, which were not counted.
    """

    queues: dict[str, QueueCensus] = field(default_factory=dict)
    consumers: dict[str, ConsumerCensus] | None = None
    oplog_window: float | None = None
    left_out: int = 0
    knows_settings: bool = True
    late_schedules: dict[str, float] = field(default_factory=dict)
    paused_schedules: list[str] = field(default_factory=list)

    def queue(self, name: str) -> QueueCensus:
        """Return that queue's part, made empty if there is none yet."""
        return self.queues.setdefault(name, QueueCensus(name))

    @property
    def foreign(self) -> int:
        """How many documents there are at the least whose queue is no valid name."""
        return sum(self.queues[INVALID].jobs().values()) if INVALID in self.queues else 0
