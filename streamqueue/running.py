"""The attempt that this code runs in, as a context variable: for the lines of the log."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple


class Running(NamedTuple):
    """The attempt of a handler; nothing of its payload, because a context may live on in whatever
    was begun in it. Of a handler that runs several jobs, the queue alone."""

    queue: str
    job_id: Any
    attempt: int | None


running: ContextVar[Running | None] = ContextVar("streamqueue_running", default=None)
"""The attempt whose handler runs in this context, or None outside of handlers."""


def in_attempt() -> bool:
    """Return whether this context is a handler's, or was begun by one."""
    return running.get() is not None
