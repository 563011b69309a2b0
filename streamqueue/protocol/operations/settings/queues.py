"""The settings of queues, read and changed; and the bell, which says that they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...settings import BELL
from ..commands import Document, Find, Update
from ..expressions import one_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OBEYED = ("paused", "declared", "limits")
"""What whoever claims reads of a queue."""


def settings_of(queues: Sequence[str]) -> Find:
    """What is stored of these queues. In the collection of settings, as all here but the bell."""
    return Find({"_id": one_of(queues)}, dict.fromkeys(OBEYED, 1))


def queues_with_settings(limit: int) -> Find:
    """What is stored of the queues of which anything is, by name, but of no more than so many."""
    says: list[Document] = [
        {"paused": True},
        {"declared": {"$type": "object"}},
        {"limits": {"$type": "array"}},
    ]
    wanted: Document = {"_id": {"$type": "string"}, "$or": says}
    return Find(wanted, dict.fromkeys(OBEYED, 1), [("_id", 1)], limit)


def pause(queue: str) -> Update:
    """Pause a queue; one that is paused stays so since then. An upsert."""
    since = {"$cond": [{"$eq": ["$paused", True]}, "$paused_at", "$$NOW"]}
    return Update({"_id": {"$eq": queue}}, [{"$set": {"paused": True, "paused_at": since}}])


def resume(queue: str) -> Update:
    """Let a queue go on. An upsert, which like that of a pause leaves what else is set."""
    return Update({"_id": {"$eq": queue}}, [{"$unset": ["paused", "paused_at"]}])


def limit(queue: str, per: str, changes: Mapping[str, Any]) -> Update:
    """Set a limit of a queue, or take it away, and leave the others. An upsert.

    Args:
        per: of which jobs it is.
        changes: what is said of its ``running`` and ``rate``, as they are stored; None takes that
            away, and what is not said stays as it is.
    """
    limits: Document = {"$cond": [{"$isArray": "$limits"}, "$limits", []]}
    is_it: Document = {
        "$and": [{"$eq": ["$$this.per", per]}, {"$ne": [{"$type": "$$this.task"}, "string"]}]
    }
    known: Document = {"$last": {"$filter": {"input": limits, "cond": is_it}}}
    new: Document = {"per": per}
    for name in ("running", "rate"):
        new[name] = f"$$known.{name}"
        if name in changes:
            value = changes[name]
            new[name] = "$$REMOVE" if value is None else {"$literal": value}
    says_something: Document = {"$gt": [{"$size": {"$objectToArray": "$$new"}}, 1]}
    left: Document = {
        "$concatArrays": [
            {"$filter": {"input": limits, "cond": {"$not": [is_it]}}},
            {"$cond": [says_something, ["$$new"], []]},
        ]
    }
    return Update(
        {"_id": {"$eq": queue}},
        [
            {
                "$set": {
                    "limits": _let(
                        {"known": known},
                        _let({"new": new}, _let({"left": left}, _UNLESS_EMPTY)),
                    )
                }
            }
        ],
    )


_UNLESS_EMPTY: Document = {"$cond": [{"$eq": ["$$left", []]}, "$$REMOVE", "$$left"]}


def _let(variables: Document, value: Document) -> Document:
    return {"$let": {"vars": variables, "in": value}}


def declare_rules(queue: str, declared: Mapping[str, Any]) -> Update:
    """Store the rules that a worker declares; none, if it declares none. An upsert."""
    if not declared:
        return Update({"_id": {"$eq": queue}}, [{"$unset": "declared"}])
    return Update({"_id": {"$eq": queue}}, [{"$set": {"declared": {"$literal": declared}}}])


def ring() -> Update:
    """Say that settings were changed. An upsert, among the jobs."""
    return Update({"_id": {"$eq": BELL}}, [{"$set": {"rung_at": "$$NOW"}}])
