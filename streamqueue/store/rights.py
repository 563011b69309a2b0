"""Whether a user may do to jobs what a worker does to them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from anyio import CancelScope
from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError

from ..protocol import operations
from .collection import UNAUTHORIZED

if TYPE_CHECKING:
    from .asynchronous import AsyncStore


async def check_rights(store: AsyncStore) -> None:
    """Try what a worker does to its jobs, on one that does not exist.

    A worker without these rights would start, and fail with the jobs: one that may not remove
    them would run each until its attempts are used up.

    Raises:
        OperationFailure: the user has no right to it. Other troubles show, and pass, later.
    """
    no_job = operations.held(ObjectId(), operations.new_token())
    for attempt in (
        partial(store.jobs.find_one, no_job, {"_id": 1}),
        partial(store.jobs.update_one, no_job, [{"$set": {"state": "ready"}}]),
        partial(store.jobs.delete_one, no_job),
    ):
        try:
            with CancelScope(shield=True), store.limit():
                await attempt()
        except OperationFailure as error:
            if error.code == UNAUTHORIZED:
                raise
        except PyMongoError:
            pass
