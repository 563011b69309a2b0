"""The wait for the first answer of a server, which is said and not only suffered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from .. import plain
from ..clock import monotonic
from ..errors import only_one

if TYPE_CHECKING:
    from .asynchronous import AsyncStore

logger = plain.logger("streamqueue.store")

AT_ONCE = 1.0
"""Seconds that a server may take before its silence is worth a line."""
SAY_EVERY = 10.0


async def prepare(store: AsyncStore) -> None:
    """Prepare a store as :meth:`AsyncStore.prepare` does, and log the wait for a missing server.

    Raises:
        Whatever that raises.
    """
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_say_while_away, store)
            await store.prepare()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only_one(group) from None


async def _say_while_away(store: AsyncStore) -> None:
    began = monotonic()
    await anyio.sleep(AT_ONCE)
    while True:
        if not store.in_reach:
            waited = monotonic() - began
            troubles = _troubles(store)
            logger.warning(
                "Waiting for MongoDB at %s for %.0f s: no server to write to answers%s",
                ", ".join(_addresses(store)),
                waited,
                f" ({', '.join(troubles)})" if troubles else "",
                extra={
                    "event": "server_awaited",
                    "seconds": round(waited, 3),
                    "error": troubles[0] if troubles else None,
                },
            )
        await anyio.sleep(SAY_EVERY)


def _addresses(store: AsyncStore) -> list[str]:
    seen = store.jobs.database.client.topology_description.server_descriptions()
    return sorted(f"{host}:{port}" for host, port in seen)


def _troubles(store: AsyncStore) -> list[str]:
    """Return the classes of what kept us from its servers: a text may hold more than that."""
    seen = store.jobs.database.client.topology_description.server_descriptions()
    return sorted({type(each.error).__name__ for each in seen.values() if each.error is not None})
