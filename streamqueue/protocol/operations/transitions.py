"""What an update sets when a job changes its state, whoever changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...durations import milliseconds
from ..document import AWAITED_SECONDS, MAX_ERRORS, cut_error
from .expressions import count_of, is_timestamp, later, seconds_of
from .keys.holding import HELD_AGAIN, HOLDS_ON, LET_GO

if TYPE_CHECKING:
    from .commands import Document, Pipeline

UNLOCK: Document = dict.fromkeys(
    ("locked_by", "locked_at", "locked_until", "lease", "allowed", "kept", "slots"), "$$REMOVE"
)

PROGRESS = ("progress", "note")
"""Fields that say how far the present attempt has come."""
NO_PROGRESS: Document = dict.fromkeys(PROGRESS, "$$REMOVE")


def over(dead: Document | bool = False) -> Document:
    """What goes with an attempt that is over: with its lock what it has got to, unless the job is
    dead, of which that may be asked."""
    if dead is True:
        return UNLOCK
    if not dead:
        return {**UNLOCK, **NO_PROGRESS}
    return {**UNLOCK, **{name: {"$cond": [dead, f"${name}", "$$REMOVE"]} for name in PROGRESS}}


UNLISTED: Document = {
    name: {"$cond": [{"$isArray": f"${name}"}, otherwise, f"${name}"]}
    for name, otherwise in {"priority": 0, "seq": "$$CLUSTER_TIME", "run_at": "$$NOW"}.items()
}
"""Fields of an update that makes a job ready. An index takes no more than one list of a document
(error 171): a job with two could not get its place, and enough of them would stand before all
others for ever."""


IN_A_GROUP: Document = {"$eq": [{"$type": "$group"}, "string"]}
"""An expression; whether the job belongs to a group."""
HAS_JOINED: Document = {"$and": [IN_A_GROUP, is_timestamp("seq")]}
"""An expression; whether the job has its place in the order of its group. It has one from when it
is ready for the first time until its end, and no other: who comes after it may rely on that. What
is still to be due for the first time has none."""
LAST_IN: Document = {"seq": {"$cond": [HAS_JOINED, "$seq", "$$CLUSTER_TIME"]}}
"""A field of an update that makes a job ready behind those of its priority that are; one that has
joined its group keeps its place."""
LEFT: Document = {"$cond": [IN_A_GROUP, "$$REMOVE", "$seq"]}
"""What is the place of a job that waits for a later time because somebody has said so: of one with
a group none, so that it holds nobody up."""


def answered(ends: Document | bool = True) -> Document:
    """A field of an update that ends a job, or does so if that is so: whoever waits for the end
    hears of it, by an event that says both. Where nobody waits there is no such field."""
    waits: Document = {"$eq": ["$awaited", True]}
    if ends is not True:
        waits = {"$and": [ends, waits]}
    return {"awaited": {"$cond": [waits, False, "$awaited"]}}


IS_NEEDED: Document = {"$eq": [{"$type": "$needed"}, "date"]}
"""An expression; whether the job is the parent of others, which may not have ended."""


def kept(keep: float = 0) -> Document:
    """Fields of an update that makes a job done or cancelled: until when it stays. One that nobody
    keeps or awaits has stayed long enough, unless it is needed to hold its key. A parent stays for
    as long as it is needed, and that time is for when it is not any more. `keep` is for one of
    which nobody says."""
    needed = {"$cond": [{"$eq": ["$awaited", True]}, milliseconds(AWAITED_SECONDS), 0]}
    said = {"$multiply": [seconds_of("keep", seconds_of("kept", keep)), 1000]}
    until = {"$add": ["$$NOW", {"$max": [needed, said]}]}
    until = {"$max": [until, {"$cond": [HOLDS_ON, "$unique_until", None]}]}
    return {
        "removed_at": {"$cond": [IS_NEEDED, "$$REMOVE", until]},
        "kept_until": {"$cond": [IS_NEEDED, until, "$$REMOVE"]},
    }


KEPT = kept()


def cancelled_fields(keep: float = 0) -> Document:
    """Fields of an update that cancels a job."""
    return {
        "state": "cancelled",
        "finished_at": "$$NOW",
        **kept(keep),
        **answered(),
        "held_key": LET_GO,
    }


CANCELLED = cancelled_fields()
_ASKED: Document = {"$ne": [{"$ifNull": ["$cancel_requested_at", None]}, None]}
_EITHER_WAY = {*UNLOCK, "last_error", "errors"}


def unless_asked(fields: Document) -> Document:
    """Fields of an update that ends an attempt: these, but for a job that somebody has asked to
    cancel. That never waits again, nor dies; it is cancelled."""
    alike = {name: value for name, value in fields.items() if name in _EITHER_WAY}
    names = [name for name in {**fields, **CANCELLED} if name not in alike]
    return alike | {
        name: {"$cond": [_ASKED, CANCELLED.get(name, f"${name}"), fields.get(name, f"${name}")]}
        for name in names
    }


def released(delay: float | None) -> Pipeline:
    """The job is as it was before its claim, or scheduled after `delay` seconds."""
    fields: Document = {
        "state": "ready",
        "attempts": {"$max": [0, {"$subtract": [count_of("attempts", 1), 1]}]},
        "held_key": HELD_AGAIN,
        **over(),
    }
    if delay:
        fields |= {"state": "scheduled", "run_at": later(delay)}
    return [{"$set": unless_asked(fields)}]


def exhausted(max_attempts: int) -> Document:
    """An expression; whether the job has used up its attempts."""
    # Its own number, should somebody have changed it meanwhile, comes before what its claim said.
    allowed = count_of("max_attempts", count_of("allowed", max_attempts))
    return {"$gte": [count_of("attempts", 0), allowed]}


def failed(message: str | None, delay: float, dead: Document | bool) -> Pipeline:
    """The attempt has failed: the job waits for `delay` seconds, or is dead if that is so."""
    again = "scheduled" if delay > 0 else "ready"
    fields: Document = {
        "state": {"$cond": [dead, "dead", again]},
        "run_at": {"$cond": [dead, "$run_at", later(delay)]},
        "finished_at": {"$cond": [dead, "$$NOW", "$$REMOVE"]},
        **({} if message is None else noted({"$literal": cut_error(message)})),
        **over(dead),
        **answered(dead),
        "held_key": held_unless(dead),
    }
    if again == "ready" and dead is not True:
        fields |= LAST_IN  # (of a dead job it says nothing)
    return [{"$set": unless_asked(fields)}]


def held_unless(dead: Document | bool) -> Document:
    """An expression: what is held of the key by a job whose attempt has failed."""
    return {"$cond": [dead, LET_GO, HELD_AGAIN]}


def noted(text: Document) -> Document:
    """Fields that keep an error: the last one, and the last few with time and attempt."""
    entry = {"at": "$$NOW", "attempt": count_of("attempts", 0), "message": text}
    errors = {"$cond": [{"$isArray": "$errors"}, "$errors", []]}
    return {
        "last_error": text,
        "errors": {"$slice": [{"$concatArrays": [errors, [entry]]}, -MAX_ERRORS]},
    }
