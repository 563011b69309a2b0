"""The wait for the answer of a command, for so long and no longer.

A scope of anyio's cancels what runs in it again and again until it has ended. So it would also
cancel what pymongo does to give back the connection and its place in the pool. ``asyncio.timeout``
cancels once.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - see above
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CancelScope
from pymongo.errors import NetworkTimeout

if TYPE_CHECKING:
    from collections.abc import Coroutine

Reply = TypeVar("Reply")


async def answered_within(
    command: Coroutine[Any, Any, Reply], limit: float, grace: float | None
) -> Reply:
    """Return the reply to a command that the server itself limits to so many seconds.

    Args:
        grace: seconds that the answer may take beyond the limit; None is for ever.

    Raises:
        NetworkTimeout: no answer in that time; it may have been carried out.
    """
    # (A task of its own would do as well, but sends the command a turn of the event loop later.)
    patience = asyncio.timeout(None if grace is None else limit + grace)
    try:
        with CancelScope(shield=True):
            async with patience:
                reply = await command
    except TimeoutError as error:
        if not patience.expired():
            raise
        text = f"no answer in the time of a write, {limit:.2f} s and a while"
        raise NetworkTimeout(text) from error
    return reply  # pyright: ignore[reportReturnType]
