"""A job queue on MongoDB: consumers wake on a change stream, claim atomically, nothing is lost."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backoff import Backoff
    from .errors import (
        Cancel,
        ConfigurationError,
        Discard,
        DuplicateJob,
        EmbeddedServerError,
        ForeignLoop,
        ForkedProcess,
        JobCancelled,
        JobFailed,
        JobNotFound,
        LeaseLost,
        PayloadError,
        ReplicaSetRequired,
        Retry,
        ScheduleNotFound,
        Snooze,
        StreamQueueError,
    )
    from .health.app import HealthApp
    from .protocol.calls import Call
    from .protocol.limits import Limit, Rate
    from .protocol.put import NewJob
    from .protocol.puts import PutIds
    from .protocol.tasks import Task
    from .queue.asynchronous import AsyncMongoQueue
    from .queue.blocking import MongoQueue
    from .queue.info import JobInfo, PastError, PastStep
    from .queue.job import AsyncJob, Job
    from .queue.parents import AsyncParents, Parents
    from .queue.schedules.info import ScheduleInfo
    from .queue.schedules.schedules import AsyncSchedules, Schedules
    from .queue.topic import AsyncTopic, Topic
    from .uri import connection_uri
    from .worker import Worker
    from .worker.until_empty import Remaining

__version__ = "0.1.0"

__all__ = [
    "AsyncJob",
    "AsyncMongoQueue",
    "AsyncParents",
    "AsyncSchedules",
    "AsyncTopic",
    "Backoff",
    "Call",
    "Cancel",
    "ConfigurationError",
    "Discard",
    "DuplicateJob",
    "EmbeddedServerError",
    "ForeignLoop",
    "ForkedProcess",
    "HealthApp",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobInfo",
    "JobNotFound",
    "LeaseLost",
    "Limit",
    "MongoQueue",
    "NewJob",
    "Parents",
    "PastError",
    "PastStep",
    "PayloadError",
    "PutIds",
    "Rate",
    "Remaining",
    "ReplicaSetRequired",
    "Retry",
    "ScheduleInfo",
    "ScheduleNotFound",
    "Schedules",
    "Snooze",
    "StreamQueueError",
    "Task",
    "Topic",
    "Worker",
    "__version__",
    "connection_uri",
]

_HOMES = {
    "AsyncJob": "queue.job",
    "AsyncMongoQueue": "queue.asynchronous",
    "AsyncParents": "queue.parents",
    "AsyncSchedules": "queue.schedules.schedules",
    "AsyncTopic": "queue.topic",
    "Backoff": "backoff",
    "Call": "protocol.calls",
    "HealthApp": "health.app",
    "Job": "queue.job",
    "JobInfo": "queue.info",
    "Limit": "protocol.limits",
    "MongoQueue": "queue.blocking",
    "NewJob": "protocol.put",
    "Parents": "queue.parents",
    "PastError": "queue.info",
    "PastStep": "queue.info",
    "PutIds": "protocol.puts",
    "Rate": "protocol.limits",
    "Remaining": "worker.until_empty",
    "ScheduleInfo": "queue.schedules.info",
    "Schedules": "queue.schedules.schedules",
    "Task": "protocol.tasks",
    "Topic": "queue.topic",
    "Worker": "worker",
    "connection_uri": "uri",
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
