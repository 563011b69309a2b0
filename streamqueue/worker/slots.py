"""How many handlers may run, and how many jobs may be held: what the claimer may take."""

from __future__ import annotations

import anyio


class Slots:
    """Counts handlers that run and jobs that are held.

    A slot is free as soon as its handler is over, while the final write is still on its way; so a
    process holds at most twice as many jobs as it has slots, and claims overlap with completes.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._running = 0
        self._held = 0
        self._unstarted = 0
        self._changed = anyio.Event()

    @property
    def free(self) -> int:
        """How many jobs may be claimed now."""
        return min(self.concurrency - self._running, 2 * self.concurrency - self._held)

    @property
    def unstarted(self) -> int:
        """How many of the claimed jobs wait for their handler to be called."""
        return self._unstarted

    @property
    def held(self) -> int:
        """How many jobs have not had their final write yet."""
        return self._held

    def take(self) -> None:
        """A job is claimed: its handler is about to start."""
        self._running += 1
        self._held += 1
        self._unstarted += 1

    def handler_starts(self) -> None:
        """Its handler is called."""
        self._unstarted -= 1

    def handler_over(self) -> None:
        """Its handler is over: another may start."""
        self._running -= 1
        self._changed.set()

    def ended(self) -> None:
        """Its final write is done."""
        self._held -= 1
        self._changed.set()

    def nudge(self) -> None:
        """Make :meth:`wait_for_change` return."""
        self._changed.set()

    async def wait_for_change(self) -> None:
        """Return when a handler or a job has ended since the last call, or at a nudge."""
        await self._changed.wait()
        self._changed = anyio.Event()
