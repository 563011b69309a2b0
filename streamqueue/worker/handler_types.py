"""What type checkers know of handlers: which functions a worker registers, with which settings.

Nothing of this is used when a program runs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from re import Pattern
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, overload
from uuid import UUID

from bson import Decimal128, ObjectId, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.regex import Regex

from ..queue.job import AsyncJob, Job

if TYPE_CHECKING:
    from ..backoff import Backoff
    from ..protocol.limits import Limit, Ordered
    from .failing import Classes, Wait
    from .handler import OnDead

Number = int | float | Decimal128
Moment = datetime | DatetimeMS | Timestamp
Other = UUID | ObjectId | DBRef | Regex[Any] | Pattern[Any] | MinKey | MaxKey
Compound = list[Any] | tuple[Any, ...] | Mapping[str, Any]
Returned = str | bytes | Number | Moment | Other | Compound | None
"""What a handler may return: a BSON value. It leaves out what is no result, since it has not begun
to run: a coroutine, a generator."""

InLoop = TypeVar("InLoop", bound=Callable[[AsyncJob], Coroutine[Any, Any, Returned]])
InThread = TypeVar("InThread", bound=Callable[[Job], Returned])
InProcess = TypeVar("InProcess", bound=Callable[[dict[str, Any]], Returned])
BatchInLoop = TypeVar("BatchInLoop", bound=Callable[[list[AsyncJob]], Coroutine[Any, Any, None]])
BatchInThread = TypeVar("BatchInThread", bound=Callable[[list[Job]], None])
Payload = TypeVar("Payload")
Result = TypeVar("Result", bound=Returned)


class HandlerSettings(TypedDict, total=False):
    """The settings of a handler that do not change which functions it can be."""

    concurrency: int | None
    weight: int
    max_attempts: int | None
    backoff: Backoff | Wait | None
    retry_on: Classes | None
    discard_on: Classes
    on_dead: OnDead | None
    time_limit: float | timedelta | None
    keep: float | timedelta | None
    ordered: Ordered
    fair: bool
    limits: Limit | Sequence[Limit]


class RegistersHandler(Protocol):
    """Takes an ``async def`` of an AsyncJob, or a ``def`` of a Job."""

    @overload
    def __call__(self, function: InLoop, /) -> InLoop: ...
    @overload
    def __call__(self, function: InThread, /) -> InThread: ...


class RegistersTypedHandler(Protocol[Payload]):
    """Takes an ``async def`` of an AsyncJob with this payload, or a ``def`` of such a Job."""

    @overload
    def __call__(
        self, function: Callable[[AsyncJob[Payload]], Coroutine[Any, Any, Result]], /
    ) -> Callable[[AsyncJob[Payload]], Coroutine[Any, Any, Result]]: ...
    @overload
    def __call__(
        self, function: Callable[[Job[Payload]], Result], /
    ) -> Callable[[Job[Payload]], Result]: ...


class RegistersBatchHandler(Protocol):
    """Takes an ``async def`` of a list of AsyncJobs, or a ``def`` of a list of Jobs."""

    @overload
    def __call__(self, function: BatchInLoop, /) -> BatchInLoop: ...
    @overload
    def __call__(self, function: BatchInThread, /) -> BatchInThread: ...


class RegistersTypedBatchHandler(Protocol[Payload]):
    """Takes an ``async def`` of a list of AsyncJobs with this payload, or a ``def`` of Jobs."""

    @overload
    def __call__(
        self, function: Callable[[list[AsyncJob[Payload]]], Coroutine[Any, Any, None]], /
    ) -> Callable[[list[AsyncJob[Payload]]], Coroutine[Any, Any, None]]: ...
    @overload
    def __call__(
        self, function: Callable[[list[Job[Payload]]], None], /
    ) -> Callable[[list[Job[Payload]]], None]: ...


class RegistersFunction(Protocol):
    """Takes a ``def`` of a payload, for a child process."""

    def __call__(self, function: InProcess, /) -> InProcess: ...


class RegistersTypedFunction(Protocol[Payload]):
    """Takes a ``def`` of a payload of this type, for a child process."""

    def __call__(self, function: Callable[[Payload], Result], /) -> Callable[[Payload], Result]: ...
