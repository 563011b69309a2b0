"""A task group beside the handlers' tasks, in a task of its own: it can be left behind.

What ends attempts runs in it, and what watches their tasks. A handler may swallow its cancellation
for ever, and a task group waits for its tasks: whoever runs handlers must be able to end without
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import current_token

from ...errors import only_one

if TYPE_CHECKING:
    from anyio.abc import TaskGroup


class Runners:
    """The task in which the ends of attempts are written, and their handlers watched.

    Attributes:
        ended: set when none of its tasks is left.
    """

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self._closed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._error: BaseException | None = None
        self._task: object = None

    async def open(self) -> TaskGroup:
        """Return the group, which is there until :meth:`close`."""
        loop: Any = current_token().native_token
        opened = anyio.Event()
        groups: list[TaskGroup] = []

        async def host() -> None:
            try:
                with self._scope:
                    async with anyio.create_task_group() as group:
                        groups.append(group)
                        opened.set()
                        await self._closed.wait()
            except BaseExceptionGroup as error:
                self._error = only_one(error)
            except BaseException as error:
                self._error = error
            finally:
                opened.set()
                self.ended.set()

        self._task = loop.create_task(host())  # kept: the loop's own reference is a weak one
        await opened.wait()
        return groups[0]

    def close(self) -> None:
        """Let it end once all its tasks have."""
        self._closed.set()

    def cancel(self) -> None:
        """Cancel its tasks."""
        self._scope.cancel()

    async def wait(self) -> None:
        """Wait for its end, and raise what ended it."""
        await self.ended.wait()
        if self._error is not None:
            raise self._error
