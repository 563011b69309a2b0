"""How a worker comes to know of jobs: by a change stream of its own, or from somebody who reads for
several (``processes.subscriber``). Whatever a source says is a hint: the claim decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from anyio import TASK_STATUS_IGNORED

from ..stream.watcher import Listener, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from anyio.abc import TaskStatus

    from ..health.health import Health
    from ..metrics.series import StreamMetrics
    from ..protocol.foreign import BuryReason
    from .sharing.fairness import Holder

Answer = tuple["Sequence[Mapping[str, Any]]", bool]
"""Waiting jobs, and whether there are more."""


class SourceListener(Listener, Protocol):
    """Whoever hears of jobs from a source; called from its reading loop, so it must not wait."""

    def dispatched(self, yes: bool) -> None:
        """From now on the source decides which jobs come to this process; or does so no more."""

    def more(self, everything: bool) -> None:
        """Jobs are waiting: ask for them; `everything`: and look for all there may be to do."""

    def asked(self) -> None:
        """Somebody has asked to cancel a job that runs, here or elsewhere."""

    def buried(self, reason: BuryReason, count: int) -> None:
        """The source has buried jobs, for whoever counts."""

    def refused(self, job_ids: Sequence[Any]) -> None:
        """The server refuses every change of these jobs, and of no others."""


class Source(Protocol):
    """Where the events of a worker come from, and maybe what waits.

    Attributes:
        signs: how many signs of life the stream has given, as of a :class:`Watcher`.
        heard_at: :func:`monotonic` time of its last sign of life.
        dispatched: whether the source hands out what waits, and sees to what is refused; then
            :meth:`ask` is the way to what waits.
    """

    @property
    def signs(self) -> int: ...

    @property
    def heard_at(self) -> float: ...

    @property
    def dispatched(self) -> bool: ...

    def stop(self) -> None:
        """Make :meth:`run` return soon."""

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Tell the listener until stopped; started once a stream is open.

        Raises:
            PyMongoError: the first stream could not be opened.
        """

    async def ask(
        self, count: int, refused: Collection[Any], holder: Holder | None = None
    ) -> Answer | None:
        """Return up to `count` waiting jobs that nobody else was given, and whether there are more;
        None when the documents are to be read.

        Args:
            refused: ids of jobs that the server let this process not claim, since it last said so.
            holder: what the queues of this process hold of its slots, if they share them.
        """

    def lost(self, wanted: int, won: int) -> None:
        """Note that a claim of `wanted` jobs won `won`, because somebody else was faster."""

    def report(
        self,
        free: int,
        more: bool,
        refused: Collection[Any],
        room: Mapping[str, int] | None = None,
    ) -> None:
        """Note that everything the listener was told so far is done.

        Args:
            free: jobs that can be claimed now.
            more: whether this process knows of waiting jobs that it cannot take.
            refused: as for :meth:`ask`.
            room: how many of them may be of each of these queues; None limits none.
        """


class SourceSettings(NamedTuple):
    """What every source is made with.

    Attributes:
        consumer: the name of the consumer.
        listener: whoever is told.
        watcher: makes a change stream of the process's own.
    """

    consumer: str
    listener: SourceListener
    watcher: Callable[[], Watcher]
    metrics: StreamMetrics
    health: Health


class OwnStream:
    """A change stream of this process's own; what waits is read from the documents."""

    dispatched = False

    def __init__(self, settings: SourceSettings) -> None:
        self._watcher = settings.watcher()

    @property
    def signs(self) -> int:
        """How many signs of life the stream has given."""
        return self._watcher.signs

    @property
    def heard_at(self) -> float:
        """When the stream last gave a sign of life."""
        return self._watcher.heard_at

    def stop(self) -> None:
        """Make :meth:`run` return after the read under way."""
        self._watcher.stop()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Read the stream until stopped."""
        await self._watcher.run(task_status=task_status)

    async def ask(self, count: int, refused: Collection[Any], holder: Holder | None = None) -> None:
        """Return None: the documents are to be read."""

    def lost(self, wanted: int, won: int) -> None:
        """Do nothing: nobody is there to be told."""

    def report(
        self,
        free: int,
        more: bool,
        refused: Collection[Any],
        room: Mapping[str, int] | None = None,
    ) -> None:
        """Do nothing: nobody is there to be told."""
