"""What a program opens once in each process, for all of its handlers: ``Worker(lifespan=)``.

It has a task of its own, which no cancellation of the run reaches: whatever ends that, what was
opened is closed after the handlers, in the task that has opened it (as cancel scopes and task
groups ask for).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio import CancelScope

from .. import plain
from ..durations import shown
from ..errors import ConfigurationError, StreamQueueError, only_one, text_of, type_name
from ..queue.holder import NO_CONTEXT
from ..signals import GRACE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ..health.health import Health

    Factory = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]

logger = plain.logger("streamqueue.worker")


class LifespanFailed(StreamQueueError):
    """The lifespan of a worker could not be opened or closed. Its error is the cause."""


def check_lifespan(factory: Any) -> Factory | None:
    """Return it, or raise ConfigurationError if it cannot make an async context manager."""
    if factory is None:
        return None
    if not callable(factory) or inspect.iscoroutinefunction(factory):
        raise ConfigurationError(
            "lifespan must be a function that takes the worker and returns an async context "
            f"manager, not {shown(factory)}"
        )
    if inspect.isasyncgenfunction(factory) or inspect.isgeneratorfunction(factory):
        raise ConfigurationError(
            f"lifespan {shown(factory)} is a generator: put @contextlib.asynccontextmanager above "
            "it, with async def"
        )
    try:
        inspect.signature(factory).bind(None)
    except TypeError:
        raise ConfigurationError(
            f"lifespan is called with the worker alone, but {shown(factory)} takes "
            f"{inspect.signature(factory)}"
        ) from None
    except ValueError:  # some of those written in C have no signature
        pass
    return cast("Factory", factory)


@asynccontextmanager
async def open_lifespan(
    factory: Factory | None, worker: object, health: Health
) -> AsyncIterator[Mapping[str, Any]]:
    """A context in which the lifespan of a worker is open; it gives what that yields.

    Args:
        health: says until then that it is not open yet, and that the event loop turns: it may take
            long to load a model.

    Raises:
        LifespanFailed: it raised; if that is while it is closed, only where nothing else did.
        ConfigurationError: it is no async context manager, or yields no mapping.
    """
    if factory is None:
        yield NO_CONTEXT
        return
    keeper = _Keeper(factory, worker)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        in_order = False
        try:
            health.not_ready("lifespan", "its lifespan is not open yet")
            async with anyio.create_task_group() as opening:
                opening.start_soon(health.keep_beating)
                await keeper.opened.wait()
                opening.cancel_scope.cancel()
            health.clear("lifespan")
            yield keeper.context
            in_order = True
        finally:
            health.clear("lifespan")
            keeper.close(in_order=in_order)


class _Keeper:
    """Opens a lifespan, and closes it when it is told to.

    Attributes:
        opened: set once it is open.
        context: what it has yielded then.
    """

    def __init__(self, factory: Factory, worker: object) -> None:
        self._factory = factory
        self._worker = worker
        self._scope = CancelScope(shield=True)
        self._closing = anyio.Event()
        self._in_order = False
        self.opened = anyio.Event()
        self.context = NO_CONTEXT

    def close(self, *, in_order: bool) -> None:
        """Have it closed, soon; one that is still being opened is cancelled.

        Args:
            in_order: whether the run has ended without an error, which would matter more than one
                of the lifespan.
        """
        self._in_order = in_order
        self._closing.set()
        if self.opened.is_set():
            self._scope.deadline = anyio.current_time() + GRACE
        else:
            self._scope.cancel()

    async def run(self) -> None:
        """Keep it open until it is to be closed."""
        try:
            with self._scope:
                async with self._made() as yielded:
                    self.context = _checked(yielded)
                    self.opened.set()
                    await self._closing.wait()
        except (ConfigurationError, LifespanFailed):
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as raised:  # (They would end the loop.)
            error = only_one(raised) if isinstance(raised, BaseExceptionGroup) else raised
            what = f"raised {type_name(error)}: {text_of(error)}"
            if not self.opened.is_set():
                raise LifespanFailed(f"the worker does not start: its lifespan {what}") from error
            self._failed(what, error)
        else:
            if self.opened.is_set() and self._scope.cancelled_caught:
                self._failed(f"did not end within {GRACE:g} s", None)
            elif not self._closing.is_set():
                raise LifespanFailed("the lifespan ended though the worker runs")

    def _made(self) -> AbstractAsyncContextManager[Mapping[str, Any] | None]:
        made = self._factory(self._worker)
        if not isinstance(made, AbstractAsyncContextManager):
            raise ConfigurationError(
                "lifespan must return an async context manager (a function below "
                f"@contextlib.asynccontextmanager does), not {shown(made)}"
            )
        return made

    def _failed(self, what: str, error: BaseException | None) -> None:
        if not self._closing.is_set():
            raise LifespanFailed(f"the lifespan {what}, though the worker runs") from error
        # Of what it raised the class alone, as everywhere in the log.
        name = "TimeoutError" if error is None else type_name(error)
        logger.error(
            "The lifespan failed while the worker stopped: %s",
            name,
            extra={"event": "lifespan_failed", "error": name},
        )
        if self._in_order:
            raise LifespanFailed(f"the lifespan {what}, while the worker stopped") from error


def _checked(yielded: object) -> Mapping[str, Any]:
    if yielded is None:
        return NO_CONTEXT
    if not isinstance(yielded, Mapping):
        raise ConfigurationError(
            f"lifespan must yield a mapping, which is job.context, or nothing, not {shown(yielded)}"
        )
    return yielded
