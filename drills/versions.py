"""What a field of a job was, and when: as it was put, and as operators changed it by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from drills.account import Call, Job

Field = Literal["digest", "queue", "due"]


@dataclass(frozen=True)
class Version:
    """A value of a field.

    Attributes:
        since: the earliest moment at which it can have been there.
        until: the latest one; infinity when nothing has certainly replaced it.
    """

    value: Any
    since: float
    until: float = math.inf


def versions(job: Job, field: Field) -> list[Version]:
    """Return all values of a field, in the order of time.

    A put gives a field its value; so does an edit that may have been made, and only one that was
    certainly made ends what was there before.
    """
    changes = [
        *job.puts,
        *(edit for edit in job.edits if edit.maybe_applied and _value(edit, field) is not None),
    ]
    changes.sort(key=lambda call: call.invoked)
    found = []
    for number, call in enumerate(changes):
        later = [edit.answered for edit in changes[number + 1 :] if _replaces(edit)]
        found.append(Version(_value(call, field), call.invoked, min(later, default=math.inf)))
    return found


def current(found: Sequence[Version], start: float, end: float) -> set[Any]:
    """Return the values that were, or can have been, there at some time between two."""
    return {version.value for version in found if version.since <= end and version.until >= start}


def _replaces(call: Call) -> bool:
    return call.what == "edit" and call.acknowledged


def _value(call: Call, field: Field) -> Any:
    if field != "due":
        return call.said.get(field)
    if call.what == "put":
        return call.invoked + (call.said.get("delay") or 0.0)
    return None if call.said.get("delay") is None else call.invoked + call.said["delay"]
