"""How a command ends that fails: its exit code, and one sentence for a person, no traceback.

Exit codes: 0 fine, 1 failed, 2 wrong usage, and 3 for a worker that was told to stop and left
handlers behind.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from .. import plain
from ..errors import ConfigurationError, ReplicaSetRequired, StreamQueueError
from ..passwords import hide_passwords, passwords_of
from ..plain import printable, printable_lines
from ..uri import find_uri
from ..worker.lifespan import LifespanFailed
from .diagnosis import explain, explain_file
from .loading import ModuleFailed

if TYPE_CHECKING:
    from .command import Options

logger = plain.logger("streamqueue")

FAILED, WRONG_USAGE = 1, 2


class OutputLost(StreamQueueError):
    """What was printed could not be written."""


def exit_code(error: BaseException, options: Options) -> int:
    """Say why a command failed, on its terminal or in its log; return its exit code.

    Args:
        error: what ended it, while it is handled.
        options: as many as were read until then.
    """
    as_json = getattr(options, "log_format", "text") == "json"
    complain = _log_complaint if as_json else _complain
    match error:
        case KeyboardInterrupt():
            return FAILED
        case SystemExit():  # of somebody's code in the event loop
            complain(
                f"the program was ended by sys.exit({error.code!r}), though nobody told it to stop"
            )
            return FAILED
        case BrokenPipeError() | OutputLost():
            # Or the interpreter tries again at its end, and says so in its own way.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, OutputLost):
                complain(str(error), error)
            return FAILED
        case ModuleFailed():
            # Theirs is the mistake: the traceback shows it, from their file on.
            if as_json:
                _log_traceback(str(error), error.cause)
            else:
                _show_traceback(error.cause)
                complain(str(error), error)
            return FAILED
        case LifespanFailed(__cause__=Exception() as cause):
            if as_json:
                _log_traceback(str(error), cause)
            else:
                _show_traceback(cause)
                complain(str(error), error)
            return FAILED
        case StreamQueueError():
            complain(str(error), error)
            usage = isinstance(error, ConfigurationError)
            return WRONG_USAGE if usage and not isinstance(error, ReplicaSetRequired) else FAILED
        case PyMongoError():
            sentence, usage = explain(error, _contacted(options))
            complain(sentence, error)
            return WRONG_USAGE if usage else FAILED
        case BSONError():
            complain(
                "a document of the collection, stored by another program, cannot be decoded: "
                f"{type(error).__name__}"
            )
            return FAILED
        case OSError() if unusable := explain_file(error, _known_uri(options)):
            complain(unusable, error)
            return WRONG_USAGE
        case Exception():
            if as_json:
                _log_traceback("Ended by an error of the program", error)
            else:
                _show_traceback(error)
            return FAILED
    raise error


def _contacted(options: Options) -> Any:
    """Return the client or the URI that was used; None where only the error itself knows."""
    if hasattr(options, "worker"):
        return getattr(options, "client", None)
    return _known_uri(options)


def _known_uri(options: Options) -> str | None:
    """Return the URI that was most likely used; a worker's module names its own."""
    try:
        return find_uri(getattr(options, "uri", None))
    except ConfigurationError:
        return None


def _complain(sentence: str, error: BaseException | None = None) -> None:
    """Say in a line why the command failed; `error` is what raised it."""
    known = set() if error is None else passwords_of(error)
    line = printable(hide_passwords(sentence, known))
    print(f"streamqueue: {line}", file=sys.stderr)


def _log_complaint(sentence: str, error: BaseException | None = None) -> None:
    """The same where every line is read by a program."""
    known = set() if error is None else passwords_of(error)
    logger.error("%s", hide_passwords(sentence, known), extra={"event": "command_failed"})


def _log_traceback(sentence: str, error: BaseException) -> None:
    logger.critical("%s", sentence, exc_info=error, extra={"event": "command_failed"})


def _show_traceback(error: BaseException) -> None:
    trace = "".join(traceback.format_exception(error))
    shown = printable_lines(hide_passwords(trace, passwords_of(error)))
    print(shown, end="", file=sys.stderr)
