"""The end of a run: handlers finish, or are cancelled after the drain time, or are left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio import CancelScope

from .. import plain
from ..clock import monotonic
from ..metrics.series import AttemptOutcome
from ..signals import CLOSING, GRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..options import WorkerOptions
    from .completer import Completer
    from .execution.attempt import Attempt
    from .execution.executor import Execution
    from .execution.runners import Runners
    from .leases import Leases
    from .slots import Slots

logger = plain.logger("streamqueue.worker")


class Drain:
    """Brings what runs to its end, once nothing more is claimed.

    Attributes:
        closing: whether the handlers' tasks are told to end, be it for an error.
        left: how many handlers were still at it when they were left.
        given_back: how many jobs were released.
    """

    def __init__(
        self,
        leases: Leases,
        slots: Slots,
        execution: Execution,
        completer: Completer,
        options: WorkerOptions,
    ) -> None:
        self._leases = leases
        self._slots = slots
        self._execution = execution
        self._completer = completer
        self.seconds = options.drain_timeout
        self.closing = False
        self.left = self.given_back = 0
        self._done = False

    async def run(self, began: float, hurry: anyio.Event) -> None:
        """Let handlers finish; cancel and release those that have not when the time is over.

        Args:
            began: when the order to stop came: a claim under way may have taken its time since.
            hurry: ends the time at once.
        """
        async with anyio.create_task_group() as patience:

            async def give_up() -> None:
                left = began + self.seconds - monotonic()
                with anyio.move_on_after(max(0.0, left)):
                    await hurry.wait()
                patience.cancel_scope.cancel()

            patience.start_soon(give_up)
            await self._until(lambda: not self._slots.held)
            patience.cancel_scope.cancel()
        self._completer.hurry()
        left = self._leases.under_way()
        # Of threads nobody knows whether they have ended when they are left behind.
        self.left = sum(attempt.abandon is not None for attempt in left)
        for attempt in left:
            for scope in (attempt.scope, attempt.abandon):
                if scope is not None:
                    scope.cancel()
        with CancelScope(shield=True):
            with anyio.move_on_after(GRACE):
                await self._until(lambda: not self._at_work())
            await self._leave(self._at_work())
            with anyio.move_on_after(CLOSING):
                await self._until(lambda: not self._ending())
        self.given_back += sum(attempt.outcome is AttemptOutcome.RELEASED for attempt in left)
        self._done = True

    async def close(self, runners: Runners, *, failed: bool) -> None:
        """Wait for the handlers' tasks, but not for those that were left.

        Args:
            failed: the run ends by an error. Nobody knows what a handler had to do with it, and it
                has used an attempt.
        """
        self.closing = True
        if self._done or not self._leases.under_way():
            self._execution.close()  # else it cancels its attempts first, as its task is cancelled
        runners.close()
        if self._leases.under_way():
            runners.cancel()
            if not self._done:
                with anyio.move_on_after(GRACE):
                    await runners.ended.wait()
                self._execution.close()
                left = self._leases.under_way()
                if failed:
                    self._leases.forget([attempt for attempt in left if attempt.begun])
                else:
                    await self._leave(left)
        else:
            await runners.ended.wait()

    def names_of_running(self) -> list[str]:
        """Return the handlers that have not ended, with their jobs."""
        return [
            f"the handler {attempt.registered.handler.task} of job {attempt.record.id}"
            for attempt in self._leases.under_way()
        ]

    def _at_work(self) -> list[Attempt]:
        """Return the attempts whose handlers run."""
        return [attempt for attempt in self._leases.under_way() if not attempt.ending]

    def _ending(self) -> list[Attempt]:
        """Return the attempts whose final write is under way."""
        return [attempt for attempt in self._leases.under_way() if attempt.ending]

    async def _leave(self, attempts: Sequence[Attempt]) -> None:
        """Go on without handlers that do not end, and release their jobs."""
        if not attempts:
            return
        begun = [attempt for attempt in attempts if attempt.begun]
        self.left += len(begun)
        for attempt in begun:
            logger.error(
                "The handler %s of job %s does not end, though it was cancelled: it is left",
                attempt.registered.handler.task,
                attempt.record.id,
                extra={"event": "handler_left", **attempt.facts()},
            )
        self.given_back += await self._leases.leave(attempts)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Return when that is so; only the end of a handler or of an attempt makes it so."""
        while not condition():
            await self._slots.wait_for_change()
