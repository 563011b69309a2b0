"""What the server's answer says: refused for good, in doubt, there already."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from bson.errors import BSONError
from pymongo.errors import (
    BulkWriteError,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from ..schema import EARLIER_KEY_INDEX, KEY_INDEX, RUNNING_KEY_INDEX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .commands import Document


DUPLICATE_KEY = 11000
TIMED_OUT = 50
DOCUMENT_ERRORS = {
    2: "BadValue",
    14: "TypeMismatch",
    121: "DocumentValidationFailure",
    10334: "BSONObjectTooLarge",
    17280: "KeyTooLong",
    17419: "resulting document is too large",
}
"""Errors of an update that are one document's fault, not the server's."""


NOT_FOR_GOOD = frozenset(
    {
        *(6, 7, 89, 91, 189, 9001, 10107, 11600, 11602, 13388, 13435, 13436, 63, 150),  # retried
        *(13, 18),  # a right may be granted while somebody waits for it
        *(24, 46, 50, 202, 262, 290),  # a time limit was met
        *(112, 225, 251, 267, 461, 462, 463),  # somebody else's transaction
        *(82, 133, 234, 14031, 17292),  # no room, no lock, no shard: now
    }
)
"""Errors that say nothing of the document, though the server may report them of a single write."""


def is_refusal(error: BaseException) -> bool:
    """Whether the server will not have this change of this document, however often it is asked.

    Everything else is a doubt: the write may have been applied, or may be the next time (a lost
    connection, an election, a time limit, a missing right). A write concern error is a doubt too,
    also when it comes with a refusal of another document in the same command.
    """
    if not isinstance(error, OperationFailure) or isinstance(error, WriteConcernError):
        return False
    if error.code in DOCUMENT_ERRORS:
        return True
    # What is reported of one write in a command that went well is that document's affair: a
    # user's own unique or geographic index, or a rule of a later server.
    return isinstance(error, WriteError) and error.code not in NOT_FOR_GOOD


def is_spoiled(error: BaseException) -> bool:
    """Whether a write for many failed because of one document: it is refused, it cannot be decoded,
    or it is locked by somebody's open transaction (the write met its limit)."""
    return isinstance(error, (BSONError, ExecutionTimeout)) or is_refusal(error)


def check_reply(reply: Mapping[str, Any]) -> None:
    """Raise what a reply to a write says besides its numbers, as pymongo's own calls would.

    It can say two things: then the write concern error is raised, for a doubt outweighs a refusal.
    """
    problem = reply.get("writeConcernError")
    if problem:
        timed_out = problem.get("errInfo", {}).get("wtimeout")
        kind = WTimeoutError if timed_out else WriteConcernError
        labels = {"errorLabels": reply.get("errorLabels", [])}
        raise kind(problem.get("errmsg"), problem.get("code"), {**labels, **problem})
    for problem in reply.get("writeErrors", ()):
        raise _refused(problem)


def each_of(reply: Mapping[str, Any], count: int) -> list[Exception | None]:
    """Return what went wrong for each of `count` updates of a command, if anything; raise what is
    in doubt for all of them."""
    check_reply({**reply, "writeErrors": ()})
    errors: list[Exception | None] = [None] * count
    for problem in reply.get("writeErrors", ()):
        errors[problem["index"]] = _refused(problem)
    return errors


def _refused(problem: Mapping[str, Any]) -> WriteError:
    kind = DuplicateKeyError if problem["code"] == DUPLICATE_KEY else WriteError
    return kind(problem["errmsg"], problem["code"], problem)


def is_repeated_put(error: Exception | None) -> bool:
    """Whether an error only says that this very job is stored already."""
    return clash(error) == ["_id"]


def is_duplicate_job(error: Exception | None, key_index: str = KEY_INDEX["name"]) -> bool:
    """Whether it says that the key is taken.

    The index is told by its name, which the server has in its text alone: a user's own may be of
    the same fields. One that is not quite ours may also refuse jobs without a key.
    """
    if clash(error) == list(KEY_INDEX["key"]):
        return _by_index(error, key_index, "held_key")
    return is_earlier_key(error)


def is_earlier_key(error: Exception | None) -> bool:
    """Whether the index by which an earlier version kept keys unique says so."""
    return clash(error) == ["queue", "key"] and _by_index(error, EARLIER_KEY_INDEX, "key")


def is_held_back(error: BaseException | None) -> bool:
    """Whether it says of a claim that a job of the same key runs. (Of an index of the same fields,
    whoever it is made by, that is to be looked at.)"""
    return isinstance(error, Exception) and clash(error) == list(RUNNING_KEY_INDEX["key"])


def _by_index(error: Exception | None, name: str, field: str) -> bool:
    details = error.details if isinstance(error, DuplicateKeyError) else None
    named = _INDEX_NAME.search(str((details or {}).get("errmsg", "")))
    value = (details or {}).get("keyValue", {})
    return (named is None or named[1] == name) and value.get(field, "") is not None


_INDEX_NAME = re.compile(r" index: (.*?) dup key: ")


def clash(error: Exception | None) -> list[str]:
    details = error.details if isinstance(error, DuplicateKeyError) else None
    return list((details or {}).get("keyPattern") or ())


def errors_of_each(error: BulkWriteError, count: int) -> list[Exception | None]:
    """Take a group of inserts apart: what went wrong for each of `count`, if anything.

    A reply can hold a refusal and a doubt. A write concern error is everybody's, and wins: nothing
    that this server says is known to be safe, not even that a job is there already (it may say so
    of the very insert that the majority never saw). Without one, what it says holds: the server has
    then waited for the majority to have all that it has, also for an insert that failed.
    """
    details: Mapping[str, Any] = error.details or {}
    if doubts := details.get("writeConcernErrors"):
        return [_doubt(doubts[-1]) for _ in range(count)]
    errors: list[Exception | None] = [None] * count
    for problem in details.get("writeErrors", ()):
        duplicate = problem["code"] == DUPLICATE_KEY
        kind = DuplicateKeyError if duplicate else WriteError
        # pymongo adds what was sent, and an error's text quotes all that is in it.
        said = {name: value for name, value in problem.items() if name != "op"}
        errors[problem["index"]] = kind(problem["errmsg"], problem["code"], said)
    return errors


def refused_of_each(
    error: BulkWriteError, changed: Sequence[Document]
) -> list[tuple[Any, Exception]]:
    """Return the ids of the documents that a group of updates was refused for, and why.

    Raises:
        PyMongoError: something else went wrong with one of them, or with all.
    """
    refused: list[tuple[Any, Exception]] = []
    for document, problem in zip(changed, errors_of_each(error, len(changed)), strict=True):
        if problem is not None:
            if not is_refusal(problem):
                raise problem from None
            refused.append((document["_id"], problem))
    return refused


def _doubt(problem: Mapping[str, Any]) -> WriteConcernError:
    """Return what pymongo raises for a write concern error that comes alone."""
    timed_out = (problem.get("errInfo") or {}).get("wtimeout") or problem.get("code") == TIMED_OUT
    kind = WTimeoutError if timed_out else WriteConcernError
    return kind(problem.get("errmsg", ""), problem.get("code"), problem)


class Clashes(NamedTuple):
    """Which of many inserts the server refused because of what was there, by their positions.

    Attributes:
        ids: a job with the id is there.
        keys: a live job has the key.
    """

    ids: list[int]
    keys: list[int]


def clashes(
    errors: Sequence[Exception | None], key_index: str = KEY_INDEX["name"]
) -> Clashes | None:
    """Sort what went wrong for each of many inserts; None if anything else went wrong with one."""
    found = Clashes([], [])
    for position, error in enumerate(errors):
        if error is None:
            continue
        if is_repeated_put(error):
            found.ids.append(position)
        elif is_duplicate_job(error, key_index):
            found.keys.append(position)
        else:
            return None
    return found
