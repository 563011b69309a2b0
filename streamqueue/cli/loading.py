"""Finding the Worker that ``streamqueue worker MODULE:WORKER`` names, in the user's own code."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymongo.errors import ConfigurationError as PyMongoConfigurationError
from pymongo.errors import PyMongoError

from .. import plain
from ..errors import ConfigurationError, StreamQueueError
from ..worker import Worker
from ..worker.worker import settings_of

if TYPE_CHECKING:
    from types import ModuleType, TracebackType

logger = plain.logger("streamqueue.worker")

_OURS = str(Path(__file__).parents[1])
NO_DATABASE = "the URI names no database: put it in the path, as in mongodb://host/shop"


class ModuleFailed(StreamQueueError):
    """The user's module raised while it was imported.

    Attributes:
        cause: what it raised; its traceback begins in the user's code.
    """

    def __init__(self, module: str, cause: Exception) -> None:
        super().__init__(
            f"module {module!r} could not be imported, because of the {type(cause).__name__} above"
        )
        self.cause = cause.with_traceback(_of_the_user(cause.__traceback__))


def load_worker(name: str) -> Worker:
    """Import the module and return its worker, or what the function of that name returns.

    Raises:
        StreamQueueError: it ended the program, with ``sys.exit()``.
        ConfigurationError: there is no such thing; the message says what there is.
        ModuleFailed: the module raised.
        PyMongoError, OSError: it raised these: the command line has sentences for most.
    """
    module_name, _, attribute = name.partition(":")
    if "/" in module_name or "\\" in module_name or module_name.endswith(".py"):
        raise ConfigurationError(
            f"a module is named without .py or a path, such as tasks:worker, not {name!r}: run "
            "this in the folder that holds it"
        )
    if not all(module_name.split(".")) or not attribute:
        raise ConfigurationError(
            f"name the worker as MODULE:WORKER, such as tasks:worker, not {name!r}"
        )
    sys.path.insert(0, str(Path.cwd()))
    level = logger.getEffectiveLevel()
    try:
        worker = _load(name, module_name, attribute)
    finally:
        _enable_our_loggers()
    _say_what_is_hidden(level)
    return worker


def _load(name: str, module_name: str, attribute: str) -> Worker:
    module = _import(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigurationError(f"module {module_name!r} has no {attribute!r}")
    worker = found
    if callable(found) and not isinstance(found, Worker):
        _refuse_handler(module, name, found)
        worker = _call(name, found)
    if not isinstance(worker, Worker):
        verb = "is not a" if worker is found else "returned no"
        raise ConfigurationError(f"{name} {verb} streamqueue Worker but {type(worker).__name__}")
    return worker


def _enable_our_loggers() -> None:
    """Let our loggers speak again: ``logging.config`` disables every logger that was there before
    and that it is not told of, which is its default and hardly ever meant."""
    for name, found in list(logging.root.manager.loggerDict.items()):
        if isinstance(found, logging.Logger) and f"{name}.".startswith("streamqueue."):
            found.disabled = False


def _say_what_is_hidden(wanted: int) -> None:
    """Say in a line if the module's logging configuration hides what the command line asked for."""
    level = max(logger.getEffectiveLevel(), logger.manager.disable + 1)
    if level <= wanted and logger.hasHandlers():
        return
    reason = "has no handler for them"
    if level > wanted:
        reason = f"hides those below {logging.getLevelName(level)}"
    heard = logger.isEnabledFor(logging.WARNING) and logger.hasHandlers()
    heard_logger = logger if heard else _logger_of_last_resort()
    heard_logger.warning(
        "The module's logging configuration %s: the lines of this worker are incomplete (configure "
        "the logger 'streamqueue')",
        reason,
        extra={"event": "logs_hidden", "reason": reason},
    )


def _logger_of_last_resort() -> logging.Logger:
    """Return one that writes to standard error, whatever is configured or disabled."""
    made = logging.Logger(logger.name)
    made.manager = logging.Manager(logging.RootLogger(logging.WARNING))
    made.addHandler(logging.StreamHandler(sys.stderr))
    return made


def _import(module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise ConfigurationError(
                f"{module_name} needs a module that is missing: {error}"
            ) from error
        raise ConfigurationError(
            f"there is no module {module_name!r} here; run this in the folder that holds it"
        ) from error
    except PyMongoConfigurationError as error:
        if "No default database" in str(error):
            raise ConfigurationError(NO_DATABASE) from error
        raise
    except (StreamQueueError, PyMongoError, OSError):
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        raise _ended(f"module {module_name!r}", "while it was imported", error) from error
    except Exception as error:
        raise ModuleFailed(module_name, error) from error


def _ended(what: str, when: str, error: BaseException) -> StreamQueueError:
    """Return the sentence for code that ends the program, which a worker must not."""
    said = (
        f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else "was interrupted"
    )
    return StreamQueueError(f"{what} {said} {when}{_place(error)}: no worker runs")


def _place(error: BaseException) -> str:
    """Return where in the user's code it was raised, in brackets, or nothing."""
    last = traceback.extract_tb(_of_the_user(error.__traceback__))[-1:]
    return "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in last)


def _of_the_user(trace: TracebackType | None) -> TracebackType | None:
    """Leave out where we called the import machinery; a SyntaxError has nothing else, and says
    itself where it is."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        importing = file.startswith("<frozen importlib") or file == importlib.__file__
        if not importing and not file.startswith(_OURS):
            return trace
        trace = trace.tb_next
    return None


def _refuse_handler(module: ModuleType, name: str, found: object) -> None:
    """Raise if it is the handler of a worker in the same module."""
    for attribute, value in vars(module).items():
        if not isinstance(value, Worker):
            continue
        for handler in (one for queue in settings_of(value).handlers.values() for one in queue):
            if handler.function is found:
                kind = "handler" if handler.name is None else "task"
                raise ConfigurationError(
                    f"{name} is a {kind}; name the Worker, such as {module.__name__}:{attribute}"
                )


def _call(name: str, function: Any) -> object:
    try:
        made = function()
    except (StreamQueueError, PyMongoError, OSError):
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        raise _ended(name, "instead of returning a Worker", error) from error
    except Exception as error:
        raise ConfigurationError(
            f"{name} is called without arguments and must return a Worker, but it raised "
            f"{type(error).__name__}: {' '.join(str(error).split())}{_place(error)}"
        ) from error
    if hasattr(made, "close") and hasattr(made, "cr_frame"):  # or Python warns of it
        made.close()
    return made
