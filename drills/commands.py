"""What the queue does by a command, told by what it writes.

A command is known by the fields it matches and sets, never by which function built it or which
call of the driver sent it: a claim is whatever sets ``state: running`` and a ``lease``, be it one
update of many, a ``findAndModify`` by id or a raw command with a time limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal[
    "put",
    "claim",
    "read",
    "untake",
    "renew",
    "complete",
    "error",
    "release",
    "promote",
    "reap",
    "adopt",
    "put in a transaction",
    "complete in a transaction",
    "commit",
    "abort",
    "change",
]
"""``read``: what a claim took, by its token. ``untake``: give back what a claim may have taken.
``change``: any other write."""

KINDS: tuple[Kind, ...] = get_args(Kind)
ENDINGS: Mapping[str, Kind] = {"commitTransaction": "commit", "abortTransaction": "abort"}
IN_A_TRANSACTION: Mapping[str, Kind] = {
    "put": "put in a transaction",
    "complete": "complete in a transaction",
}
REMOVED = "$$REMOVE"


@dataclass(frozen=True)
class Write:
    """One statement of an update.

    Attributes:
        wanted: its filter, with the parts of an ``$and`` at the top.
        fields: what it sets, by name; what it removes is ``REMOVED``.
        many: whether it may change several documents.
    """

    wanted: Mapping[str, Any]
    fields: Mapping[str, Any]
    many: bool = False

    @property
    def fenced(self) -> bool:
        """Whether it is for whoever holds the job: the filter names a token."""
        return "lease" in self.wanted

    @property
    def token(self) -> bytes | None:
        """The token that it writes, of a claim; None for any other."""
        lease = self.fields.get("lease")
        found = [bytes(value) for value in _leaves(lease) if isinstance(value, bytes)]
        claims = bool(found) and "running" in _leaves(self.fields.get("state"))
        return found[0] if claims else None

    @property
    def renews(self) -> bool:
        """Whether it moves the end of a lease, and nothing of the job's state."""
        return self.fenced and "locked_until" in self.fields and "state" not in self.fields


def kind_of(command: Mapping[str, Any]) -> Kind | None:
    """Return what a command is to the queue; None for what it does not send, and most reads.

    `command` has the documents of an OP_MSG's sequences in its body.
    """
    name = next(iter(command), "")
    kind: Kind | None = ENDINGS.get(name) or _kind(name, command)
    if command.get("autocommit") is False and kind not in ENDINGS.values():
        return kind and (IN_A_TRANSACTION.get(kind) or "change")
    return kind


def _kind(name: str, command: Mapping[str, Any]) -> Kind | None:
    if name == "insert":
        first: Mapping[str, Any] = next(iter(command.get("documents", ())), {})
        return "put" if "queue" in first and "state" in first else "change"
    if name == "find":
        return "read" if "lease" in flat(command.get("filter", {})) else None
    if name == "delete":
        first = next(iter(command.get("deletes", ())), {})
        return "complete" if "lease" in flat(first.get("q", {})) else "change"
    if name.lower() == "findandmodify" and command.get("remove"):
        return "complete" if "lease" in flat(command.get("query", {})) else "change"
    write = next(writes(command), None)
    return None if write is None else _kind_of_update(write)


def _kind_of_update(write: Write) -> Kind:
    if write.token is not None:
        return "claim"
    if write.renews:
        return "renew"
    state = write.wanted.get("state")
    state = state.get("$eq") if isinstance(state, Mapping) else state
    becomes = _leaves(write.fields.get("state"))
    if write.fenced and becomes:
        if "attempts" not in write.fields:
            return "error" if becomes & {"dead", "ready", "scheduled"} else "complete"
        # The handler's own names its one job; who undoes a claim names all that it asked for.
        several = write.many or isinstance(write.wanted.get("_id"), Mapping)
        return "untake" if several else "release"
    if state == "scheduled" and becomes == {"ready"}:
        return "promote"
    if state == "running" and becomes & {"ready", "dead"}:
        return "reap"
    if state == "ready" and not becomes and "priority" in write.fields:
        return "adopt"
    return "change"


def writes(command: Mapping[str, Any]) -> Iterator[Write]:
    """Yield the statements of an update or a find-and-modify."""
    name = next(iter(command), "")
    if name.lower() == "findandmodify":
        statements = [(command.get("query"), command.get("update"), False)]
    elif name == "update":
        statements = [
            (part.get("q"), part.get("u"), bool(part.get("multi")))
            for part in command.get("updates", ())
        ]
    else:
        return
    for wanted, update, many in statements:
        if isinstance(wanted, Mapping):
            yield Write(flat(wanted), _fields(update), many)


def flat(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter with the parts of its ``$and`` beside the others."""
    found: dict[str, Any] = {}
    for part in wanted.get("$and", ()):
        found |= flat(part)
    return found | {name: value for name, value in wanted.items() if name != "$and"}


def values(condition: Any) -> list[Any]:
    """Return the values an equality or ``$in`` asks for."""
    if isinstance(condition, Mapping):
        return list(condition.get("$in", [condition["$eq"]] if "$eq" in condition else []))
    return [] if condition is None else [condition]


def _fields(update: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for stage in update if isinstance(update, list) else [update]:
        if not isinstance(stage, Mapping):
            continue
        for way in ("$set", "$addFields"):
            fields |= stage.get(way, {})
        removed = stage.get("$unset", ())
        fields |= dict.fromkeys([removed] if isinstance(removed, str) else removed, REMOVED)
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    return value["$literal"] if isinstance(value, Mapping) and "$literal" in value else value


def _leaves(expression: Any) -> set[Any]:
    """Return the values that an expression may give: itself, or what stands in its ``$cond``."""
    if isinstance(expression, Mapping):
        if "$literal" in expression:
            return _leaves(expression["$literal"])
        chosen = expression.get("$cond", ())
        branches = (
            [chosen.get("then"), chosen.get("else")] if isinstance(chosen, Mapping) else chosen[1:]
        )
        return {leaf for branch in branches for leaf in _leaves(branch)}
    if expression is None or isinstance(expression, list) or expression == REMOVED:
        return set()
    return {expression}
