"""Keys of jobs that an earlier version put, held as those of this one are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure

from ...protocol import operations
from .steps import Read, UpdateEach

if TYPE_CHECKING:
    from ..state import StoreState
    from .steps import Flow


def hold_earlier_keys(_store: StoreState) -> Flow[int | None]:
    """Have the live jobs of an earlier version hold their keys; return how many do so now, None for
    a user who may not write jobs. One whose key another has by now is left without."""
    total = 0
    try:
        while True:
            found = yield Read(operations.keys_to_hold(operations.EARLIER_AT_ONCE))
            if not found:
                return total
            updates = [operations.hold_key(job["_id"]) for job in found]
            try:
                changed: int = yield UpdateEach([UpdateOne(*update) for update in updates])
            except BulkWriteError as error:
                changed = int((error.details or {}).get("nModified", 0))
            total += changed
            if not changed:
                return total
    except OperationFailure as error:
        if error.code not in operations.NOT_ALLOWED:
            raise
        return None
