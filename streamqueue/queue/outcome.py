"""Outcomes: what the exception of a handler, or of a job's block, means for its attempt; and which
write that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from ..durations import seconds
from ..errors import (
    AttemptOutcome,
    Cancel,
    Discard,
    Outcome,
    Retry,
    Snooze,
    text_of,
    type_name,
)
from ..protocol import operations
from ..tracebacks import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..backoff import Backoff
    from ..protocol.document import JobRecord


class End(NamedTuple):
    """What an exception means for its attempt, as plain text and numbers.

    Attributes:
        kind: failed counts as an attempt, released does not; discarded is dead at once, cancelled
            is no failure; one that is left to others, because it does not fit here, is released for
            them alone.
        message: the text that is stored on the job; None for none.
        delay: seconds until it is ready; None of a failed one is the backoff.
        asked: whether the handler asked for this end, which then is no failure to complain of.
        mistake: the class of the error in what the handler asked for, or None.
        death: why the job is dead at once, for the log, if its handler has not asked for that.
        error: what the handler raised, for whoever is to be told of the job's death.
    """

    kind: Literal["failed", "released", "discarded", "cancelled", "left"]
    message: str | None = None
    delay: float | None = None
    asked: bool = False
    mistake: str | None = None
    death: str | None = None
    error: BaseException | None = None


def end_of(error: BaseException, judge: Callable[[BaseException], Outcome | None]) -> End:
    """Return what an exception means for its attempt.

    Never raises, whatever somebody's exception does when it is looked at.

    Args:
        judge: :func:`outcome_of` or :func:`asked_outcome`.
    """
    outcome = None
    try:
        outcome = judge(error)
        match outcome:
            case Retry(delay=delay):
                wait = None if delay is None else seconds(delay, "Retry(delay=)")
                return End("failed", describe(error), wait, asked=True)
            case Snooze(delay=delay):
                return End("released", delay=seconds(delay, "Snooze(delay=)"), asked=True)
            case Discard(reason=reason):
                return End("discarded", text_of(reason), asked=True)
            case Cancel(reason=reason):
                message = None if reason is None else text_of(reason)
                return End("cancelled", message, asked=True)
    except BaseException as problem:  # Retry(delay="soon"), or one with an odd __class__
        if outcome is not None:
            return End("failed", describe(problem), asked=True, mistake=type_name(problem))
    return End("failed", describe(error))


class EndWrite(NamedTuple):
    """The write that ends an attempt.

    Attributes:
        command: what is sent; it matches the claim's token.
        operation: what its time is counted as.
        outcome: what the attempt is counted as.
        death: why the job is dead, for the log; None if it is not.
        removes: whether the job goes, unless somebody keeps it or waits for it.
    """

    command: operations.Update
    operation: Literal["complete", "error", "release"]
    outcome: AttemptOutcome
    death: str | None = None
    removes: bool = False


def write_of(end: End, record: JobRecord, backoff: Backoff) -> EndWrite:
    """Return the write that gives a held job this end; `backoff` is for one without a delay."""
    held = record.id, record.token
    match end.kind:
        case "released":
            command = operations.release(*held, end.delay)
            return EndWrite(command, "release", AttemptOutcome.RELEASED)
        case "left":
            command = operations.park_misfit(*held, end.message or "")
            return EndWrite(command, "release", AttemptOutcome.RELEASED)
        case "discarded":
            command = operations.discard(*held, end.message or "")
            own = "discarded by its handler" if end.asked else "a result of it cannot be stored"
            return EndWrite(command, "error", AttemptOutcome.DEAD, end.death or own)
        case "cancelled":
            command = operations.cancelled(*held, end.message)
            return EndWrite(command, "complete", AttemptOutcome.CANCELLED, removes=True)
        case "failed":
            wait = backoff.delay(record.attempts) if end.delay is None else end.delay
            command = operations.error(*held, end.message, wait, record.max_attempts)
            if record.attempts < record.max_attempts:
                return EndWrite(command, "error", AttemptOutcome.RETRIED)
            return EndWrite(command, "error", AttemptOutcome.DEAD, "its attempts are used up")


def outcome_of(error: BaseException) -> Outcome | None:
    """Return the outcome that the exception of a block stands for, or None for a failure.

    What is not an ``Exception`` (Ctrl-C, cancellation, the interpreter going down) says nothing
    about the job: it is given back without blame.
    """
    leaves = list(_leaves(error))
    if any(isinstance(leaf, Exception) and not isinstance(leaf, Outcome) for leaf in leaves):
        return None
    return asked_outcome(error) or Snooze(0)


def asked_outcome(error: BaseException) -> Outcome | None:
    """Return the outcome that was raised, bare or in a group that holds nothing else.

    Of several, the one that decides most: discarding a job comes before cancelling it, that before
    retrying it, and that before snoozing it.
    """
    best: Outcome | None = None
    for leaf in _leaves(error):
        if not isinstance(leaf, Outcome):
            return None
        if best is None or _rank(leaf) < _rank(best):
            best = leaf
    return best


def names_of(error: BaseException) -> tuple[frozenset[str], ...]:
    """Return the names of an exception's class and of all that it derives from; of a group, those
    of each in it, with the group's own.

    Never raises, whatever somebody's exception does when it is looked at.
    """
    try:
        leaves = list(_leaves(error))
    except BaseException:  # one with an odd __class__
        leaves = [error]
    mro = type.__dict__["__mro__"].__get__
    own = set(mro(type(error)))
    return tuple(frozenset(map(class_name, own.union(mro(type(leaf))))) for leaf in leaves)


def class_name(kind: type) -> str:
    """Return the full name of a class, the same in a child process."""
    module, name = (type.__dict__[each].__get__(kind) for each in ("__module__", "__qualname__"))
    return f"{_MAIN if module == _MAIN_OF_CHILDREN else module}.{name}"


_MAIN, _MAIN_OF_CHILDREN = "__main__", "__mp_main__"


def _rank(outcome: Outcome) -> int:
    kinds = (Discard, Cancel, Retry, Snooze)
    return next((rank for rank, kind in enumerate(kinds) if isinstance(outcome, kind)), len(kinds))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Return the exceptions of a group that are no groups themselves; of any other, itself."""
    groups = [error]
    while groups:
        found = groups.pop()
        if isinstance(found, BaseExceptionGroup):
            groups.extend(reversed(found.exceptions))
        else:
            yield found
