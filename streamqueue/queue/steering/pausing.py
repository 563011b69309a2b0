"""Pausing a queue for all processes: the methods of both shells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...protocol import operations
from ..flow import run, run_async

if TYPE_CHECKING:
    from ..consumer import Consumer


class BlockingPausing:
    """What :class:`~streamqueue.MongoQueue` has to pause with."""

    _name: str
    _consumer: Consumer

    def pause(self) -> None:
        """Let nobody claim a job of this queue, in any process, until :meth:`resume`.

        It is stored, so a worker that is started meanwhile is paused as well. When this returns, a
        majority of the servers has it; workers, and whoever waits for jobs, learn of it within
        milliseconds, everybody else (a plain ``next()``, a process that has lost its connection)
        within two seconds of claiming.

        Handlers that run go on to their end, and what a worker has claimed and not begun is given
        back, with its attempts as before. Jobs may be put meanwhile; delayed ones become ready when
        they are due, and wait. To pause a paused queue changes nothing.

        Raises:
            ConfigurationError: it is stored, but the collection refuses the document by which
                others learn of it. Not everybody may know until the next change.
            PyMongoError: the server, or the user has no right to it; after a timeout or a lost
                connection the queue may be paused, or some may not know of it: repeat it.
        """
        run(self._consumer.change_settings(operations.pause(self._name)))

    def resume(self) -> None:
        """Let a paused queue go on, in all processes, at once.

        One that is not paused stays as it is. Raises as :meth:`pause` does.
        """
        run(self._consumer.change_settings(operations.resume(self._name)))

    def is_paused(self) -> bool:
        """Return whether the queue is paused, as a majority of the servers has it.

        Raises:
            PyMongoError: the server, or the user has no right to know.
        """
        return run(self._consumer.is_paused())


class AsyncPausing:
    """What :class:`~streamqueue.AsyncMongoQueue` has to pause with."""

    _name: str
    _consumer: Consumer

    async def pause(self) -> None:
        """Let nobody claim a job of this queue, in any process, until :meth:`resume`.

        It is stored, so a worker that is started meanwhile is paused as well. When this returns, a
        majority of the servers has it; workers, and whoever waits for jobs, learn of it within
        milliseconds, everybody else (a plain ``next()``, a process that has lost its connection)
        within two seconds of claiming.

        Handlers that run go on to their end, and what a worker has claimed and not begun is given
        back, with its attempts as before. Jobs may be put meanwhile; delayed ones become ready when
        they are due, and wait. To pause a paused queue changes nothing.

        Raises:
            ConfigurationError: it is stored, but the collection refuses the document by which
                others learn of it. Not everybody may know until the next change.
            PyMongoError: the server, or the user has no right to it; after a timeout or a lost
                connection the queue may be paused, or some may not know of it: repeat it.
        """
        await run_async(self._consumer.change_settings(operations.pause(self._name)))

    async def resume(self) -> None:
        """Let a paused queue go on, in all processes, at once.

        One that is not paused stays as it is. Raises as :meth:`pause` does.
        """
        await run_async(self._consumer.change_settings(operations.resume(self._name)))

    async def is_paused(self) -> bool:
        """Return whether the queue is paused, as a majority of the servers has it.

        Raises:
            PyMongoError: the server, or the user has no right to know.
        """
        return await run_async(self._consumer.is_paused())
