"""Flows: what both shells do, written once, as generators that wait for nothing themselves.

At each ``yield`` stands a call of a store, a doorbell or a holder. A blocking one has returned its
result by then, an async one an awaitable; the shell that runs the flow sends the result back in. So
a flow holds the decisions, and whoever runs it knows how to wait.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from anyio import CancelScope

Result = TypeVar("Result")
Flow = Generator[Any, Any, Result]

NO_SCOPE = nullcontext()


def in_transaction(session: Any) -> bool:
    """Return whether what is sent with this session is part of a transaction."""
    return session is not None and session.in_transaction


def run(flow: Flow[Result]) -> Result:
    """Run a flow over blocking calls, and return its result."""
    try:
        answer = flow.send(None)
        while True:
            answer = flow.send(answer)
    except StopIteration as end:
        result: Result = end.value
        return result


async def run_async(flow: Flow[Result], scope: AbstractContextManager[object] = NO_SCOPE) -> Result:
    """Run a flow over async calls, and return its result.

    Args:
        scope: entered around all of it, such as a :func:`shield`.
    """
    with scope:
        try:
            pending = flow.send(None)
            while True:
                try:
                    answer = await pending
                except BaseException as error:
                    pending = flow.throw(error)
                else:
                    pending = flow.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result


def shield() -> CancelScope:
    """Return a scope in which what has been sent is awaited to its end, cancelled or not: a write
    that is cancelled has usually been applied."""
    from anyio import CancelScope  # a tenth of what importing the blocking shell would take

    return CancelScope(shield=True)
