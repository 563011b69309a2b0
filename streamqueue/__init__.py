"""A job queue on MongoDB: consumers wake on a change stream, claim atomically, nothing is lost."""

from .async_queue import AsyncJob, AsyncMongoQueue
from .backoff import Backoff
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
]
