"""A job queue on MongoDB: consumers wake on a change stream, claim atomically, nothing is lost."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_queue import AsyncJob, AsyncMongoQueue
    from .backoff import Backoff
    from .connection import connection_uri
    from .errors import (
        ConfigurationError,
        Discard,
        DuplicateJob,
        EmbeddedServerError,
        ForeignLoop,
        ForkedProcess,
        JobNotFound,
        LeaseLost,
        PayloadError,
        ReplicaSetRequired,
        Retry,
        Snooze,
        StreamQueueError,
    )
    from .queue import Job, MongoQueue
    from .worker import Worker

__version__ = "0.1.0"

__all__ = [
    "AsyncJob",
    "AsyncMongoQueue",
    "Backoff",
    "ConfigurationError",
    "Discard",
    "DuplicateJob",
    "EmbeddedServerError",
    "ForeignLoop",
    "ForkedProcess",
    "Job",
    "JobNotFound",
    "LeaseLost",
    "MongoQueue",
    "PayloadError",
    "ReplicaSetRequired",
    "Retry",
    "Snooze",
    "StreamQueueError",
    "Worker",
    "__version__",
    "connection_uri",
]

_HOMES = {
    "AsyncJob": "async_queue",
    "AsyncMongoQueue": "async_queue",
    "Backoff": "backoff",
    "Job": "queue",
    "MongoQueue": "queue",
    "Worker": "worker",
    "connection_uri": "connection",
}
"""Where a name lives, if not in ``errors``."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: who only puts jobs loads no worker."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
