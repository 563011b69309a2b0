"""``@worker.schedule``: how a program declares a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ...protocol.calls import Call
from ...protocol.schedules import DEFAULT_LIMIT, check_schedule, schedule_name
from ...protocol.ticks import check_rule
from ..tasks.function import TaskFunction
from .declared import Declared, call_at_tick

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from typing import Unpack

    from ...protocol.fitting.kinds import PayloadLike
    from ...protocol.schedules import CatchUp, TickSettings
    from ..settings import Settings

Function = TypeVar("Function", bound="Callable[..., Any]")


class Scheduling:
    """What :class:`~streamqueue.Worker` has to declare schedules with."""

    _settings: Settings

    def schedule(
        self,
        cron: str | None = None,
        *,
        every: float | timedelta | None = None,
        offset: float | timedelta = 0,
        timezone: str = "UTC",
        catch_up: CatchUp = "one",
        catch_up_limit: int = DEFAULT_LIMIT,
        spread: float | timedelta = 0,
        name: str | None = None,
        payload: PayloadLike | None = None,
        **put: Unpack[TickSettings],
    ) -> Callable[[Function], Function]:
        """Have a job put for a handler at each tick of a rule; one job a tick, however many
        processes declare it.

        It stands above or below ``@worker.handler`` or ``@worker.task``. ``job.run_at`` is the
        tick. What is declared is stored when the worker starts, and fires while a worker runs that
        declares it; the last start says what holds, and a worker whose rule is another one does not
        fire. A new or changed rule begins then: nothing is caught up.

        Args:
            cron: a line of five fields (minute, hour, day, month, day of the week), or one of
                @hourly, @daily, @weekly, @monthly, @yearly. Needs the extra ``cron``.
            every: in the place of `cron`: seconds (or a timedelta), at least 1, from one tick to
                the next, counted from the Unix epoch, so that restarts move nothing.
            offset: seconds by which the ticks of `every` are moved.
            timezone: the zone that `cron` is read in, such as ``"Europe/Berlin"``. A fixed time
                that a change of the clock skips is fired right after the gap, and one that is there
                twice in its first pass.
            catch_up: which ticks are put that were missed by more than a minute because no worker
                ran: ``"none"``, the latest ``"one"``, or ``"all"``, the oldest first. What is left
                out is logged and counted. A pause is nothing to catch up.
            catch_up_limit: how many missed ticks ``"all"`` puts at the most.
            spread: seconds over which schedules begin that fire at the same moments, each at its
                part of them, which depends on its name alone.
            name: the schedule's, in the collection; default: the task's, or the queue's. Of several
                schedules above one handler each but the first needs one.
            payload: of the jobs; default an empty one. Above a task they are calls of it with these
                arguments, so it is needed where the function has parameters without defaults.
            put: settings of :meth:`~streamqueue.MongoQueue.put`, such as `priority`, `key`,
                `group`, `expires`, `keep`, `max_attempts`. With a `key` that is taken a tick is
                skipped, which is logged and counted: ``key="report"`` prevents that a run begins
                while the last one is at it.

        Raises:
            ConfigurationError: a rule that cannot be read or never fires, an unknown zone, a
                setting out of its range or not for schedules, a task that takes other arguments, or
                cronsim is not installed.
            PayloadError: the payload cannot be stored.
        """
        rule = check_rule(cron, every, offset, timezone)
        settings: dict[str, Any] = {
            "spread": spread,
            "catch_up": catch_up,
            "catch_up_limit": catch_up_limit,
            "payload": payload,
            "put": put,
        }
        # What is wrong with it is said here, where it stands; its queue may not be known yet.
        queue = payload.queue if isinstance(payload, Call) else "later"
        check_schedule(name or "later", queue, rule, **settings)
        if name is not None:
            schedule_name(name)

        def declare(function: Function) -> Function:
            declared: object = function
            if isinstance(declared, TaskFunction):  # else it is checked when the worker starts
                call_at_tick(declared, payload)
            self._settings.schedules.append(Declared(function, name, rule, settings))
            return function

        return declare
