"""Flows: what both shells do, written once, as generators that wait for nothing themselves.

At each ``yield`` stands a call of a store, a doorbell or a holder. A blocking one has returned its
result by then, an async one an awaitable; the shell that runs the flow sends the result back in. So
a flow holds the decisions, and whoever runs it knows how to wait.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

Result = TypeVar("Result")
Flow = Generator[Any, Any, Result]

NO_SCOPE = nullcontext()


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
        scope: entered around all of it, such as a shield: what has been sent must be awaited to its
            end, because a cancelled write has usually been applied.
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
