"""What is said of a failed operation, in lines of the log and in metrics: no words of the server.

Its words may quote a document, so of an error there is its class; of what MongoDB refuses, whose
class is always the same, there are the number and the name that MongoDB has for it.
"""

from __future__ import annotations

from typing import Any

from pymongo.errors import PyMongoError

from .errors import type_name

LONGEST_NAME = 60
GENERAL = {"OperationFailure", "WriteError", "WriteConcernError"}
"""Classes that say nothing: what it was is in the code."""

NAMES = {
    13: "Unauthorized",
    18: "AuthenticationFailed",
    20: "IllegalOperation",
    26: "NamespaceNotFound",
    50: "MaxTimeMSExpired",
    64: "WriteConcernFailed",
    85: "IndexOptionsConflict",
    91: "ShutdownInProgress",
    112: "WriteConflict",
    121: "DocumentValidationFailure",
    189: "PrimarySteppedDown",
    211: "KeyNotFound",
    251: "NoSuchTransaction",
    286: "ChangeStreamHistoryLost",
    391: "ReauthenticationRequired",
    10107: "NotWritablePrimary",
    11000: "DuplicateKey",
    11600: "InterruptedAtShutdown",
    11602: "InterruptedDueToReplStateChange",
    13435: "NotPrimaryNoSecondaryOk",
    14031: "OutOfDiskSpace",
}
"""For errors within a reply that went well, which come without a name."""


def failure_name(error: BaseException) -> str:
    """Return what a line says of an error: ``AuthenticationFailed (18)``, or its class."""
    code, name = _code(error), _code_name(error)
    if code is None:
        return type_name(error)
    return f"{name or type_name(error)} ({code})"


def failure_label(error: BaseException) -> str:
    """Return the value of an error's label: its class, and where that says nothing the name that
    MongoDB has for it, or ``code_`` and the number."""
    kind, code = type_name(error), _code(error)
    if kind not in GENERAL or code is None:
        return kind
    return _code_name(error) or f"code_{code}"


def failure_facts(error: BaseException) -> dict[str, Any]:
    """Return the fields of a line about an error."""
    fields: dict[str, Any] = {"error": type_name(error)}
    code, name = _code(error), _code_name(error)
    if code is not None:
        fields["code"] = code
    if name is not None:
        fields["code_name"] = name
    return fields


def _code(error: BaseException) -> int | None:
    if not issubclass(type(error), PyMongoError):  # somebody's class may raise when it is asked
        return None
    code = getattr(error, "code", None)
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _code_name(error: BaseException) -> str | None:
    """Return MongoDB's name for it, if it is one: a word, which quotes nothing."""
    code = _code(error)
    if code is None:
        return None
    details = getattr(error, "details", None)
    name = details.get("codeName") if isinstance(details, dict) else None
    if isinstance(name, str) and name.isidentifier() and name.isascii():
        return name if len(name) <= LONGEST_NAME else None
    return NAMES.get(code)
