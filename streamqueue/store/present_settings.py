"""The settings of a worker's queues as they are now, for all of its parts.

They are read when the stream says that they were changed, whenever it was opened, and once before
the first claim. Nobody claims while it is not sure how things stand (``store.known_settings``): a
stream that has been silent for two seconds may have missed a change.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio import TASK_STATUS_IGNORED

from .. import plain
from ..backoff import Backoff
from ..clock import monotonic
from ..outage import LoggedOutage
from ..stream.verdict import READ_ERRORS
from .known_settings import KnownSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from anyio.abc import TaskStatus

    from ..protocol.settings import QueueSettings
    from .asynchronous import AsyncStore

logger = plain.logger("streamqueue.settings")

AGAIN = Backoff(initial=0.2, maximum=2, factor=2, jitter=0.5)
"""The pause after readings that failed in a row."""


class Hears(Protocol):
    """What brings the bell: a stream, or somebody who reads one.

    Attributes:
        heard_at: :func:`monotonic` time of its last sign of life.
    """

    @property
    def heard_at(self) -> float: ...


class Declares(Protocol):
    """What has settings to be stored before anybody claims by them.

    Attributes:
        needed: nobody may claim without them.
    """

    @property
    def needed(self) -> bool: ...

    async def store(self, settings: Mapping[str, QueueSettings] | None) -> bool:
        """Store them where these have others; return whether that was so."""
        ...


class PresentSettings:
    """What is stored of these queues for all processes.

    Attributes:
        paused: those that nobody may claim from.
    """

    def __init__(self, store: AsyncStore, queues: Sequence[str]) -> None:
        self._store = store
        self._queues = list(queues)
        self._known = KnownSettings(queues)
        self._wanted = anyio.Event()
        self._wanted.set()  # the first reading waits for nobody
        self._under_way = self._refused = False
        self._reading = LoggedOutage(logger, "settings", "Reading the settings of the queues")
        self.paused: frozenset[str] = frozenset()

    def connect(
        self,
        source: Hears,
        changed: Callable[[frozenset[str], frozenset[str]], Awaitable[None]],
        schedules: Callable[[list[dict[str, Any]]], None] | None = None,
        declares: Declares | None = None,
    ) -> None:
        """Say what brings the bell, and who is told; before :meth:`run`.

        Args:
            changed: called after every reading, with the queues that are paused since then and
                those that are so no more.
            schedules: the same, with the schedules of the collection, which are read only then.
            declares: stores what the first reading does not have.
        """
        self._source, self._changed, self._schedules = source, changed, schedules
        self._declares = declares

    @property
    def sure(self) -> bool:
        """Whether jobs may be claimed: it is known how the queues are set."""
        return monotonic() <= self._known.sure_until(self._source.heard_at)

    def open_queues(self) -> list[str]:
        """Return those that jobs may be claimed from, in their order."""
        if not self.paused:
            return self._queues
        return [queue for queue in self._queues if queue not in self.paused]

    def has_rules(self, queue: str) -> bool:
        """Return whether jobs of a queue are claimed by rules."""
        return queue in self._store.ruled

    def plain_queues(self) -> list[str]:
        """Return those of them that have no rules."""
        ruled = self._store.ruled
        queues = self.open_queues()
        return [queue for queue in queues if queue not in ruled] if ruled else queues

    def of_open_queues(self, jobs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return those of the jobs that may be claimed."""
        return [job for job in jobs if job["queue"] not in self.paused]

    def rang(self) -> None:
        """Read anew: the bell has rung, or may have. A user who may not read does so only before
        the next claim, if that is not sure."""
        self._known.rang()
        if not self._refused:
            self._wanted.set()

    def want(self) -> None:
        """Read, unless a reading is under way: it is not sure any more how things stand."""
        if not self._under_way:
            self._wanted.set()

    async def run(
        self, *, always: bool = False, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Read whenever it is wanted, for ever; started once nobody can fail for want of rights.

        Args:
            always: also when nobody wants to claim and it is not sure any more.

        Raises:
            ConfigurationError: what is declared cannot be stored.
        """
        failures = 0
        if self._declares is None or not self._declares.needed:
            task_status.started()
        while True:
            self._under_way = False
            await self._until_wanted(always)
            self._under_way, self._wanted = True, anyio.Event()
            asked = self._known.asking()
            try:
                settings = await self._store.settings_of(self._queues, self._schedules)
                declared = self._declares is not None and await self._declares.store(settings)
            except READ_ERRORS as error:
                self._reading.failed(error, "The settings of the queues could not be read: %s")
                failures += 1
                await anyio.sleep(AGAIN.delay(failures))
                self._wanted.set()
                continue
            failures = 0
            self._reading.succeeded()
            if self._declares is not None:
                if self._declares.needed:
                    task_status.started()
                self._declares = None
            if declared:  # and this is news to us as to anybody
                self._wanted.set()
                continue
            self._known.answered(asked, settings)
            self._refused = settings is None
            self._under_way = False  # for whoever wants another while the listener is at work
            before, self.paused = self.paused, self._known.paused
            for queue in self._queues:
                self._store.follow(queue, self._known.of(queue).rules)
            await self._changed(self.paused - before, before - self.paused)

    async def _until_wanted(self, always: bool) -> None:
        while not self._wanted.is_set():
            left = math.inf
            if always:
                left = self._known.sure_until(self._source.heard_at) - monotonic()
                if left <= 0:
                    return
            with anyio.move_on_after(left):
                await self._wanted.wait()
