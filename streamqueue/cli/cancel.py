"""``streamqueue cancel``: one job, wherever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import JobNotFound, StreamQueueError
from ..names import is_name
from ..protocol import operations
from ..protocol.document import ids_of_text
from ..queue.blocking import MongoQueue
from ..store.blocking import Store
from .command import Options, command
from .connection import open_database
from .options import JSON, WHERE
from .tables import show

if TYPE_CHECKING:
    from pymongo.synchronous.database import Database

SAID = {
    "cancelled": "cancelled",
    "asked": "asked: it runs, and whoever holds it stops it",
    None: "it had ended before",
}


@command(
    click.Argument(["job_id"], metavar="ID"),
    *WHERE,
    JSON,
    example="streamqueue cancel 69f0c0ffee15900d5ea51de5",
)
def cancel(options: Options) -> None:
    """End the job with this ID, of any queue: at once if it waits; one that runs is stopped."""
    with open_database(options) as database:
        result = _cancel(database, options.collection, options.job_id)
    show(options, {"id": options.job_id, "cancel": result}, [SAID[result]])


def _cancel(database: Database[Any], collection: str, text: str) -> str | None:
    for job_id in ids_of_text(text):
        find = operations.Find({"_id": {"$eq": job_id}}, {"queue": 1}, None, 1)
        for job in Store(database[collection]).find(find):
            if is_name(job.get("queue")):
                try:
                    return MongoQueue(database[collection], name=job["queue"]).cancel(job_id)
                except JobNotFound:
                    pass  # it has ended since, and is gone
    raise StreamQueueError(f"no job {text}")
