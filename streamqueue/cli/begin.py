"""What is done before each command: its log, options that are no text, and the address."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from functools import partial
from typing import TYPE_CHECKING

from .. import plain
from ..errors import ConfigurationError
from ..logs import JsonFormatter, TextFormatter
from ..processes.process import DISPATCHER
from ..uri import find_uri
from .options import quoted

if TYPE_CHECKING:
    from .command import Options

logger = plain.logger("streamqueue")

FILES = {"uri_file", "metrics_cert", "metrics_key", "metrics_client_ca", "data_dir"}
"""The options that name files, which may be called anything."""


def begin(options: Options) -> None:
    """Prepare the process for a command, and replace what the URI was given as by the URI.

    Raises:
        ConfigurationError: an option is not text, or the URI is not to be had.
    """
    _set_up_logging(options)
    _check_unicode(options)
    if hasattr(options, "uri"):
        options.uri = find_uri(options.uri, options.uri_file)


def _set_up_logging(options: Options) -> None:
    supervised = getattr(options, "supervised", None)
    number = None if supervised is None or supervised[0] == DISPATCHER else supervised[0]
    as_json = getattr(options, "log_format", "text") == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((JsonFormatter if as_json else TextFormatter)(process=number))
    logging.basicConfig(level=getattr(options, "log_level", "WARNING"), handlers=[handler])
    logging.captureWarnings(as_json)  # they would be lines of text among the others
    # What pymongo logs of a lost server repeats what we say in one sentence.
    logging.getLogger("pymongo").setLevel(logging.CRITICAL)
    if hasattr(options, "log_format"):
        # Like a failed attempt's, the traceback may quote a payload.
        shows_traceback = getattr(options, "log_tracebacks", True)
        threading.excepthook = partial(_log_end_of_thread, shows_traceback=shows_traceback)


def _log_end_of_thread(ended: threading.ExceptHookArgs, *, shows_traceback: bool) -> None:
    """Log what Python would print as it is, among lines that a program reads."""
    if issubclass(ended.exc_type, SystemExit):
        return  # as Python does
    name = "unknown" if ended.thread is None else ended.thread.name
    places = traceback.extract_tb(ended.exc_traceback)[-1:]
    logger.error(
        "The thread %s was ended by %s%s",
        name,
        ended.exc_type.__name__,
        "".join(f" ({place.filename}, line {place.lineno})" for place in places),
        exc_info=ended.exc_value if shows_traceback else None,
        extra={"event": "thread_failed", "task": name, "error": ended.exc_type.__name__},
    )


def _check_unicode(options: Options) -> None:
    """Refuse an option or argument that is not text, before it fails wherever it is first sent."""
    for name, value in vars(options).items():
        for text in value if isinstance(value, tuple) else [value]:
            if isinstance(text, str) and name not in FILES and not _is_unicode(text):
                raise ConfigurationError(
                    f"{name.replace('_', '-')} is not valid UTF-8: {quoted(text)}"
                )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
