"""Tasks, as whoever puts their calls sees them: a name, a queue, and what their function takes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, overload

from .. import options
from ..durations import shown
from ..errors import ConfigurationError
from .calls import Call
from .fitting.kinds import Misfit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Parameters = ParamSpec("Parameters")
"""What a call of a task takes."""

JOB = "job"
"""The name by which a first parameter without an annotation is the job."""
_JOBS = ("Job", "AsyncJob")


class Task(Generic[Parameters]):
    """A task, by its name: what makes its calls, where its function is not at hand.

    The arguments of a call are stored by the names of the function's parameters, and defaults of
    the function apply when it runs. A program that only puts calls needs neither the function nor a
    worker.

    Args:
        name: the task's, 1 to 64 printable characters: the bare name of its function, unless that
            was registered with another.
        queue: the name of the queue that it is in.
        like: a function whose signature it has, which is never called: a stub, or the function
            itself. Calls are then checked against it, at once and by type checkers. Without it
            they take any arguments, by name.

    Raises:
        ConfigurationError: a name that is none, or a function that cannot be a task's.

    ::

        resize = Task("resize", queue="images")
        MongoQueue(jobs, name="images").put(resize.call(path="a.png", width=300))
    """

    @overload
    def __init__(
        self: Task[...], name: str, *, queue: str = "default", like: None = None
    ) -> None: ...
    @overload
    def __init__(
        self, name: str, *, queue: str = "default", like: Callable[Parameters, object]
    ) -> None: ...
    def __init__(
        self, name: str, *, queue: str = "default", like: Callable[..., object] | None = None
    ) -> None:
        self._name = options.task_name(name)
        self._queue = options.queue_name(queue)
        self._takes = None if like is None else Takes.of(like)

    @property
    def name(self) -> str:
        """The task's name."""
        return self._name

    @property
    def queue(self) -> str:
        """The name of the queue that it is in."""
        return self._queue

    def call(self, /, *arguments: Parameters.args, **named: Parameters.kwargs) -> Call:
        """Return a call with these arguments, to be put in place of a payload.

        Raises:
            TypeError: they are not such as the function takes.
            PayloadError: one of them cannot be stored, or would come back as something else: a
                tuple (as a list), a set, a Decimal, an Enum that is no text and no number, a
                datetime without a zone or with microseconds. It says which.
        """
        if self._takes is not None:
            return Call(self._name, self._queue, self._takes.bind(self._name, arguments, named))
        if arguments:
            raise TypeError(
                f"task {self._name!r} takes its arguments by name: what its function calls them is "
                "not known here (Task(..., like=function) says it)"
            )
        return Call(self._name, self._queue, named)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} in queue {self._queue!r}>"


@dataclass(frozen=True, slots=True)
class Takes:
    """What the function of a task takes.

    Attributes:
        signature: without the job.
        job: the name of the parameter that is the job, or None.
        any_name: it takes what it has no parameter for as well.
    """

    signature: inspect.Signature
    job: str | None
    any_name: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Takes:
        """Return what a function takes, or raise ConfigurationError if it cannot be a task's."""
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"the function of a task must be one whose parameters are known, not "
                f"{shown(function)}"
            ) from None
        parameters = list(signature.parameters.values())
        job = parameters[0].name if parameters and _is_job(parameters[0]) else None
        kept = parameters if job is None else parameters[1:]
        for one in parameters:
            if one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL):
                written = f"*{one.name}" if one.kind is one.VAR_POSITIONAL else f"{one.name}, /"
                raise ConfigurationError(
                    f"the function of a task is called with its arguments by name, as they are "
                    f"stored, and {shown(function)} has a parameter without one: {written}"
                )
        any_name = any(one.kind is one.VAR_KEYWORD for one in kept)
        return cls(signature.replace(parameters=kept), job, any_name)

    def bind(
        self, task: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return arguments by the names of their parameters, or raise TypeError."""
        try:
            bound = self.signature.bind(*arguments, **named)
        except TypeError as problem:
            raise TypeError(f"a call of task {task!r}: {problem}") from None
        if self.job is not None and self.job in named:
            raise TypeError(f"a call of task {task!r}: its {self.job} is the job that it runs as")
        # As the caller wrote it: of what he left out the default applies when the function runs.
        return _flat(self.signature, bound.arguments)

    def read(self, payload: Any) -> Any:
        """Return a payload, if the function can be called with it, or raise :class:`Misfit`."""
        parameters = self.signature.parameters
        for name in payload:
            if name not in parameters and not self.any_name:
                raise Misfit("no parameter of the task", f".{name}")
        for name, one in parameters.items():
            if one.default is one.empty and one.kind is not one.VAR_KEYWORD and name not in payload:
                raise Misfit("missing, a parameter of the task without a default", f".{name}")
        return payload

    def arguments(self, job: Any) -> dict[str, Any]:
        """Return what the function is called with for a job."""
        data: dict[str, Any] = job.data
        if self.job is None:
            return data
        if self.job in data:
            raise TypeError(f"{self.job} is in the payload, and is the job that the task runs as")
        return {**data, self.job: job}


def _flat(signature: inspect.Signature, bound: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in bound.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        else:
            flat[name] = value
    return flat


def _is_job(parameter: inspect.Parameter) -> bool:
    """Whether a first parameter is the job: by its annotation, or without one by its name."""
    annotation: object = parameter.annotation
    if annotation is parameter.empty:
        return parameter.name == JOB
    if isinstance(annotation, str):  # as all are after ``from __future__ import annotations``
        named = annotation.partition("[")[0].rpartition(".")[2].strip()
        return named in _JOBS
    found = getattr(annotation, "__origin__", annotation)
    module = str(getattr(found, "__module__", ""))
    return getattr(found, "__name__", None) in _JOBS and module.startswith("streamqueue.")
