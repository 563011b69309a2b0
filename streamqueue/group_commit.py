"""Group commit: while one write is in flight the next gathers; a lone one never waits.

The server's cost of a majority write is mostly the journal flush, which many writes can share.
There is no background task: whoever finds nobody writing writes, for itself and for all that have
gathered, and hands over to one of the next group when its own is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Item = TypeVar("Item")

MAX_GROUP = 1000
"""Items in one write: enough that the flush no longer counts, small enough not to hold the rest."""


class _Entry(Generic[Item]):
    __slots__ = ("answered", "error", "item", "turn")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.turn = anyio.Event()  # set when it is answered, or its turn to write
        self.answered = False
        self.error: BaseException | None = None


class GroupCommit(Generic[Item]):
    """Gathers items into writes.

    Args:
        write: sends a group and returns, for each item, None or the exception to raise for it. An
            exception of its own is raised for every item. It must be safe to write an item twice.
    """

    def __init__(
        self, write: Callable[[Sequence[Item]], Awaitable[Sequence[BaseException | None]]]
    ) -> None:
        self._write = write
        self._waiting: list[_Entry[Item]] = []
        self._writing = False

    async def submit(self, item: Item) -> None:
        """Return when the item is written, or raise what went wrong for it.

        Cancelled before its write began, the item is withdrawn; after that the caller learns the
        outcome first, because a cancelled write has usually been applied.
        """
        if not self._writing:
            await self._write_alone(item)
            return
        entry = _Entry(item)
        self._waiting.append(entry)
        try:
            await entry.turn.wait()
        except BaseException:
            if self._withdraw(entry):
                raise
            with anyio.CancelScope(shield=True):
                await entry.turn.wait()
            if not entry.answered:  # its turn came at the same moment
                await self._lead(entry)
            raise
        if not entry.answered:
            await self._lead(entry)
        if entry.error is not None:
            raise entry.error

    def _withdraw(self, entry: _Entry[Item]) -> bool:
        if entry in self._waiting and not entry.turn.is_set():
            self._waiting.remove(entry)
            return True
        return False

    async def _write_alone(self, item: Item) -> None:
        """Write the item of a caller that found nobody writing, so nobody waiting either."""
        self._writing = True
        try:
            with anyio.CancelScope(shield=True):
                (error,) = await self._write([item])
        finally:
            self._hand_over()
        if error is not None:
            raise error

    async def _lead(self, leader: _Entry[Item]) -> None:
        """Write what has gathered, answer it, and give the next group its leader."""
        group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
        try:
            with anyio.CancelScope(shield=True):
                errors = await self._write([entry.item for entry in group])
            for entry, error in zip(group, errors, strict=True):
                entry.error = error
        except anyio.get_cancelled_exc_class():
            # The leader alone was cancelled, past the shield, by asyncio's own means. The others
            # have not asked for that: they write again, which their items allow.
            self._waiting[:0] = [entry for entry in group if entry is not leader]
            group = [leader]
            raise
        except BaseException as error:
            for entry in group:
                entry.error = error
        finally:
            for entry in group:
                entry.answered = True
                entry.turn.set()
            self._hand_over()

    def _hand_over(self) -> None:
        if self._waiting:
            # Still "writing": the one whose turn it is leads before anybody new can.
            self._waiting[0].turn.set()
        else:
            self._writing = False
