"""Group commit: while one write is in flight the next gathers; a lone one never waits.

The server's cost of a majority write is mostly the journal flush, which many writes can share.
There is no background task: whoever finds nobody writing writes, for itself alone, and hands over
to the first of those who have gathered meanwhile. That one has its group written by a task of the
group's own, in a context of its own: no caller's cancellation, time limit or trace reaches it, and
it answers all of them. An item is written once, or, withdrawn in time, not at all.
"""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
from pymongo.errors import ConnectionFailure

from ..clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Item = TypeVar("Item")

MAX_GROUP = 1000
"""Items in one write: enough that the flush no longer counts, small enough not to hold the rest."""
PATIENCE = 0.1
"""Seconds a group waits for the write before it. A server that holds one up, for an item that waits
there for somebody's transaction, holds up nobody else."""
MAX_WRITES = 10
"""Writes in flight at once, however many of them are held up: a connection each."""


class _Entry(Generic[Item]):
    __slots__ = ("answered", "error", "item", "leads", "woken")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.woken = anyio.Event()  # set when there is something new for it
        self.leads = False  # it is its turn to have a group written
        self.answered = False
        self.error: BaseException | None = None


class GroupCommit(Generic[Item]):
    """Gathers items into writes.

    Args:
        write: sends a group and returns, for each item, None or the exception to raise for it. An
            exception of its own is raised for every item.
        patience: seconds a group waits for the write before it.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[BaseException | None]]],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._write = write
        self._patience = patience
        self._waiting: list[_Entry[Item]] = []
        self._latest: object = None  # the write that the next one waits for; None: there is none
        self._overdue_at = 0.0  # when the next one waits for it no longer
        self._writes = 0  # in flight, those included that nobody waits for any more

    async def submit(self, item: Item) -> None:
        """Return when the item is written, or raise what went wrong for it.

        Cancelled before its write began, the item is withdrawn; after that the caller learns the
        outcome first, because a cancelled write has usually been applied.

        Raises:
            ConnectionFailure: the write of its group was killed, as when the event loop ends:
                whether the item is written is unknown.
        """
        if self._latest is None:
            await self._write_alone(item)
            return
        entry = _Entry(item)
        is_first = not self._waiting
        self._waiting.append(entry)
        try:
            if not is_first:
                await entry.woken.wait()
            if not entry.answered:
                await self._await_turn(entry)
                if entry.leads:
                    await self._lead()
        except BaseException:
            if not self._withdraw(entry):
                with anyio.CancelScope(shield=True):
                    await self._await_turn(entry)
            raise
        if entry.error is not None:
            raise entry.error

    async def _await_turn(self, entry: _Entry[Item]) -> None:
        """Return when the entry is answered, or leads. The first in line is the timekeeper."""
        while not (entry.answered or entry.leads):
            if entry.woken.is_set():
                entry.woken = anyio.Event()
            if entry not in self._waiting[:1] or self._writes >= MAX_WRITES:
                await entry.woken.wait()
                continue
            with anyio.move_on_after(self._overdue_at - monotonic()):
                await entry.woken.wait()
                continue
            entry.leads = True

    def _withdraw(self, entry: _Entry[Item]) -> bool:
        """Take back what is not being written; whoever is next is told if that matters to it."""
        if entry not in self._waiting:
            return False
        first = entry is self._waiting[0]
        self._waiting.remove(entry)
        if entry.leads:
            self._hand_over()
        elif first and self._waiting:
            self._waiting[0].woken.set()
        return True

    async def _write_alone(self, item: Item) -> None:
        """Write the item of a caller that found nobody writing, so nobody waiting either."""
        begun = self._begin()
        try:
            with anyio.CancelScope(shield=True):
                (error,) = await self._write([item])
        finally:
            self._end(begun)
        if error is not None:
            raise error  # pyright: ignore[reportGeneralTypeIssues]

    async def _lead(self) -> None:
        """Have written what has gathered, and return when that is done, cancelled or not."""
        group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
        if self._waiting:  # somebody else is the first in line now
            self._waiting[0].woken.set()
        begun = self._begin()
        try:
            # A task group waits for its tasks also when asyncio cancels it, past any shield.
            async with anyio.create_task_group() as tasks:
                Context().run(tasks.start_soon, self._write_group, group, begun)
        finally:
            self._answer(group, begun, _killed())  # if it was, before it had begun to run

    async def _write_group(self, group: list[_Entry[Item]], begun: object) -> None:
        """Write a group, answer everybody in it, and hand over."""
        outcome: BaseException | Sequence[BaseException | None] = _killed()
        try:
            with anyio.CancelScope(shield=True):
                outcome = await self._write([entry.item for entry in group])
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            outcome = error
        finally:
            self._answer(group, begun, outcome)

    def _answer(
        self,
        group: list[_Entry[Item]],
        begun: object,
        outcome: BaseException | Sequence[BaseException | None],
    ) -> None:
        """Tell everybody in the group what became of it, unless they know, and hand over."""
        if group[0].answered:
            return
        if not isinstance(outcome, BaseException) and len(outcome) != len(group):
            outcome = ValueError(f"{len(outcome)} outcomes for {len(group)} items")
        errors = [outcome] * len(group) if isinstance(outcome, BaseException) else outcome
        for entry, error in zip(group, errors, strict=True):
            entry.error = error
            entry.answered = True
            entry.woken.set()
        self._end(begun)

    def _begin(self) -> object:
        self._latest = begun = object()
        self._overdue_at = monotonic() + self._patience
        self._writes += 1
        return begun

    def _end(self, begun: object) -> None:
        self._writes -= 1
        if begun is self._latest or self._writes == MAX_WRITES - 1:  # waited for, or for its room
            self._hand_over()

    def _hand_over(self) -> None:
        if self._waiting:
            # Still "writing": the one whose turn it is leads before anybody new can.
            self._waiting[0].leads = True
            self._waiting[0].woken.set()
        else:
            self._latest = None


def _killed() -> BaseException:
    return ConnectionFailure("the write was killed; whether it was applied is unknown")
