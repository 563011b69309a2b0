"""What a queue object knows of the settings of its queue, which hold for all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...clock import monotonic
from ...store.known_settings import KnownSettings

if TYPE_CHECKING:
    from ...store.asynchronous import AsyncStore
    from ...store.blocking import Store
    from ...stream.async_doorbell import AsyncDoorbell
    from ...stream.doorbell import Doorbell
    from ..flow import Flow


class PresentSettings:
    """The settings of a queue, for whoever claims its jobs: read at most once in two seconds, and
    when the stream says that they were changed.

    Args:
        doorbell: its stream brings the bell, while somebody waits on it.
    """

    def __init__(
        self, store: Store | AsyncStore, doorbell: Doorbell | AsyncDoorbell, queue: str
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._queue = queue
        self._known = KnownSettings([queue])
        self._bells = 0

    @property
    def known_as_paused(self) -> bool:
        """Whether the queue was paused when it was last asked for."""
        return self._known.of(self._queue).paused

    def changed(self) -> None:
        """Read them before the next claim: they were changed by way of this object."""
        self._known.rang()

    def paused(self) -> Flow[bool]:
        """Return whether the queue is paused, or was two seconds ago.

        Raises:
            PyMongoError: the settings could not be read, and have to be.
        """
        bells = self._doorbell.bells
        if bells != self._bells:
            self._bells = bells
            self._known.rang()
        if self._known.rung or self._known.sure_until(self._doorbell.heard_at) < monotonic():
            asked = self._known.asking()
            self._known.answered(asked, (yield self._store.settings_of([self._queue])))
            self._store.follow(self._queue, self._known.of(self._queue).rules)
        return self.known_as_paused
