"""``@worker.task``: how a program registers functions whose calls are jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from ... import options as checks
from ...durations import shown
from ...errors import ConfigurationError
from ...protocol.limits import check_rules
from ..annotations import check_kind_of_job
from ..handler import Handler, where_to_run
from ..handling import Handling, check_place, check_share, check_terms
from ..queues import QueueHandlers
from .function import TaskFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from ...backoff import Backoff
    from ...protocol.limits import Limit, Ordered
    from ..failing import Classes, Wait
    from ..handler import OnDead, RunIn
    from .function import TaskDecorator


class Tasking(Handling):
    """What :class:`~streamqueue.Worker` has to register tasks with, beside handlers."""

    def task(
        self,
        queue: str = "default",
        name: str | None = None,
        aliases: Iterable[str] = (),
        *,
        concurrency: int | None = None,
        weight: int = 1,
        max_attempts: int | None = None,
        backoff: Backoff | Wait | None = None,
        retry_on: Classes | None = None,
        discard_on: Classes = (),
        on_dead: OnDead | None = None,
        time_limit: float | timedelta | None = None,
        keep: float | timedelta | None = None,
        ordered: Ordered = False,
        fair: bool = False,
        limits: Limit | Sequence[Limit] = (),
        run_in: RunIn | None = None,
    ) -> TaskDecorator:
        """Register a function whose calls are jobs; a queue may have any number of them.

        What it makes of the function can be called as before, and has ``call``, which takes the
        same arguments and returns a payload for ``put``: ``put(welcome.call("ada", lang="fr"))``.
        The job has the name of the task, and its arguments by the names of the parameters as its
        payload; the function is called with them by name, and defaults apply then. It may take the
        job before them: a first parameter with the annotation :class:`AsyncJob` (in an ``async
        def``) or :class:`Job`, or without one and called ``job``, is no argument of a call.

        What a handler's end means, a task's does. With tasks in this worker the queue's handler, if
        it has one, runs the jobs without a task. A job of a task that is not registered here is
        left to other workers, and uses no attempt.

        Args:
            queue: the name of the queue that its calls are put into.
            name: of the task, 1 to 64 printable characters, as it is stored with each job. Default
                the bare name of the function, so that it may move to another module.
            aliases: former names, whose jobs it runs as well. Limits count them by that name.
            concurrency: as of :meth:`handler`, and of the whole queue, as are `weight`, `ordered`
                and `fair`: say it at one of its functions.
            weight: the queue's share of the slots.
            max_attempts: as of a handler, and for this task alone, as is all that follows.
            backoff: the wait after a failed attempt.
            retry_on: the class, or classes, of the errors that alone are retried.
            discard_on: those that make the job dead at once.
            on_dead: told of the jobs that this process has made dead.
            time_limit: seconds (or a timedelta) an attempt may take.
            keep: seconds (or a timedelta) that jobs stay when they are done.
            ordered: run the jobs of each group of the queue one at a time.
            fair: let the groups of the queue take turns.
            limits: a :class:`Limit`, or several. What is said here is for this task: all of its
                jobs (``per="task"``, the default), or those of each group of them; but with
                ``per="queue"`` for all jobs of the queue.
            run_in: where it runs. In a process it gets its arguments, and cannot take the job.

        Raises:
            ConfigurationError: the queue has a task of this name, or alias; a function whose
                arguments have no names, such as ``*args``; another thing is said of the queue
                elsewhere; or as of a handler.
        """
        of_queue = checks.queue_name(queue)
        if name is not None:
            name = checks.task_name(name)
        if isinstance(aliases, str) or not isinstance(aliases, Iterable):
            raise ConfigurationError(f"aliases must be a list of names, not {shown(aliases)}")
        former = [checks.task_name(alias) for alias in aliases]
        terms = check_terms(
            self._settings, max_attempts, backoff, time_limit, keep, retry_on, discard_on, on_dead
        )
        share = check_share(concurrency, weight)
        if isinstance(limits, Iterable) and not isinstance(limits, str):
            limits = tuple(limits)  # they are looked at again once the name is known
        check_rules(limits, ordered, fair)
        handlers = self._settings.handlers

        def register(function: Callable[..., Any]) -> TaskFunction[Any, Any, Any]:
            where = where_to_run(function, run_in, task=True)
            check_place(self._settings, terms, where)
            task: TaskFunction[Any, Any, Any] = TaskFunction(
                function, name or _name_of(function), of_queue
            )
            if where == "process" and task.takes_job:
                raise ConfigurationError(
                    f"task {task.name!r} runs in a process, which has no job: leave that parameter "
                    "out, or let it run in a thread"
                )
            if task.takes_job:
                check_kind_of_job(function, where)
            known = handlers.get(of_queue) or QueueHandlers(of_queue)
            names = list(dict.fromkeys([task.name, *former]))
            for each in names:
                if each in known.tasks:
                    raise ConfigurationError(
                        f"queue {of_queue!r} has a task {each!r} in this worker already: give one "
                        "of them another name="
                    )
            joined = known.joined(*share, check_rules(limits, ordered, fair, names))
            handler = Handler(
                of_queue,
                task,
                task.called,
                run_in=where,
                name=task.name,
                read=task.read,
                **terms,
            )
            joined.tasks = {**known.tasks, **dict.fromkeys(names, handler)}
            handlers[of_queue] = joined
            return task

        return cast("TaskDecorator", register)


def _name_of(function: object) -> str:
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise ConfigurationError(
            f"{shown(function)} has no name that a task could have: give name="
        )
    return name
