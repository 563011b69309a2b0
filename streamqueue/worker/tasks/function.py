"""What ``@worker.task`` makes of a function: the function still, and what makes calls of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from ...protocol.tasks import Parameters, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...queue.job import AsyncJob, Job

Written = ParamSpec("Written")
"""What the function takes as it is written, with the job if it has that."""
Returned_co = TypeVar("Returned_co", covariant=True)


class TaskFunction(Task[Parameters], Generic[Parameters, Written, Returned_co]):
    """A function whose calls are jobs. Called itself, it is the function, and puts nothing.

    Made by :meth:`Worker.task`. ``welcome.call("ada", lang="fr")`` is a payload for ``put``.
    """

    __name__: str
    __wrapped__: Callable[Written, Returned_co]

    def __init__(self, function: Callable[..., Any], name: str, queue: str) -> None:
        super().__init__(name, queue=queue, like=function)
        functools.update_wrapper(self, function)

    def __call__(self, /, *arguments: Written.args, **named: Written.kwargs) -> Returned_co:
        """Return what the function returns for these arguments."""
        return self.__wrapped__(*arguments, **named)

    @property
    def takes_job(self) -> bool:
        """Whether the function takes the job beside the arguments of a call."""
        return self._takes is not None and self._takes.job is not None

    def read(self, payload: Any) -> Any:
        """Return a payload, or raise :class:`Misfit` if the function cannot be called with it."""
        takes: Any = self._takes
        return takes.read(payload)

    def called(self, job: AsyncJob | Job) -> Any:
        """Return what the function returns for a job, or what is to be awaited for that."""
        takes: Any = self._takes
        function: Callable[..., Any] = self.__wrapped__
        return function(**takes.arguments(job))


class TaskDecorator(Protocol):
    """What :meth:`Worker.task` returns."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[AsyncJob, Parameters], Returned_co], /
    ) -> TaskFunction[Parameters, Concatenate[AsyncJob, Parameters], Returned_co]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Job, Parameters], Returned_co], /
    ) -> TaskFunction[Parameters, Concatenate[Job, Parameters], Returned_co]: ...
    @overload
    def __call__(
        self, function: Callable[Parameters, Returned_co], /
    ) -> TaskFunction[Parameters, Parameters, Returned_co]: ...
