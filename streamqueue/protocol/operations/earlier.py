"""What an earlier version stored, and what makes of it what this one stores."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from bson.datetime_ms import DatetimeMS
from bson.timestamp import Timestamp

from .commands import Find, Update

if TYPE_CHECKING:
    from collections.abc import Mapping

IN_A_MILLISECOND = 4_000_000
"""Places that the 32 bits beside the seconds have for each of a thousand milliseconds."""


def without_place() -> Find:
    """The ready jobs that are ordered by ``run_at`` and have no ``seq``, in the order of ids."""
    wanted = {"state": "ready", "seq": {"$exists": False}, "run_at": {"$type": "date"}}
    return Find(wanted, {"run_at": 1}, [("_id", 1)], bare=True)


def give_place(job: Mapping[str, Any], number: int) -> Update | None:
    """Give one of them the ``seq`` of its ``run_at``; `number` is its own among those read. None
    for one whose time is a list.

    So they keep their order, before all that is put from now on: consumers give such jobs a place
    behind what waits.
    """
    at = job["run_at"]
    if isinstance(at, datetime):
        at = DatetimeMS(at)
    elif not isinstance(at, DatetimeMS):  # one beyond the years of Python
        return None
    milliseconds = int(at)
    second, rest = divmod(milliseconds, 1000)
    place = Timestamp(
        min(max(second, 1), 2**32 - 1), rest * IN_A_MILLISECOND + number % IN_A_MILLISECOND
    )
    wanted = {"_id": {"$eq": job["_id"]}, "state": "ready", "seq": {"$exists": False}}
    return Update(wanted, [{"$set": {"seq": place}}])
