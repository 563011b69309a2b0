"""Where the MongoDB URI comes from: an option, a variable, or a file that holds it.

A URI holds a password. An option is shown to everybody by ``ps``, a variable to whoever may look at
the process; a file, as Docker, Kubernetes and systemd hand secrets out, to those its mode allows.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pymongo.errors import PyMongoError
from pymongo.uri_parser import split_hosts

from .errors import ConfigurationError
from .passwords import remember_passwords

URI_VARIABLE, FILE_VARIABLE = "STREAMQUEUE_URI", "STREAMQUEUE_URI_FILE"


def connection_uri() -> str:
    """Return the MongoDB URI that the environment names.

    That is the value of ``STREAMQUEUE_URI``, or what stands in the file whose path is in
    ``STREAMQUEUE_URI_FILE``; the ``streamqueue`` command looks in the same places.

    Raises:
        ConfigurationError: neither is set, or both are; the file is missing, unreadable or empty;
            or a password in it was not percent-encoded.

    ::

        worker = Worker(AsyncMongoClient(connection_uri()).get_default_database().jobs)
    """
    uri = find_uri()
    if uri is None:
        raise ConfigurationError(
            f"which MongoDB? set {URI_VARIABLE} to mongodb://host/database?replicaSet=name, or "
            f"{FILE_VARIABLE} to the path of a file that holds it"
        )
    return uri


def find_uri(uri: str | None = None, path: str | None = None) -> str | None:
    """Return the URI given as an option, or in the file given as one, else the environment's.

    None when there is nothing anywhere. An empty option or variable counts as not given.

    Raises:
        ConfigurationError: as :func:`connection_uri`, except for nothing at all.
    """
    if not uri and not path:
        uri, path = os.environ.get(URI_VARIABLE), os.environ.get(FILE_VARIABLE)
        if uri and path:
            raise ConfigurationError(
                f"both {URI_VARIABLE} and {FILE_VARIABLE} are set: unset one of them"
            )
    if path:
        uri = _read(path)
    if uri:
        remember_passwords(uri)
        _check(uri)
    return uri or None


def _read(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else "it cannot be read"
        raise ConfigurationError(
            f"the file {path!r}, which should hold the MongoDB URI, cannot be read: {reason}"
        ) from error
    except ValueError:  # not UTF-8, or a NUL in the path; the text of it may quote the file
        raise ConfigurationError(
            f"the file {path!r} does not hold a MongoDB URI: it is no text"
        ) from None
    if not text:
        raise ConfigurationError(f"the file {path!r}, which should hold the MongoDB URI, is empty")
    if len(text.splitlines()) > 1:
        raise ConfigurationError(
            f"the file {path!r} holds more than the MongoDB URI: keep it to that one line"
        )
    return text


# An '@' behind a '/' or '?' where the hosts should have ended: the password was cut in two, and
# its first part would be taken, and shown, as a port.
_CUT = re.compile(r"mongodb(?:\+srv)?://(?:[^/?]*/[^?]*@|[^/?@]*\?.*@)")


_HOSTS = re.compile(r"mongodb://(?:[^/?]*@)?([^/?]*)")


def _check(uri: str) -> None:
    """Refuse what pymongo would take, or take apart, so that a password ends up elsewhere."""
    if _CUT.match(uri):
        raise ConfigurationError(
            "the user or password in the MongoDB URI must be percent-encoded: write '/' as %2F, "
            "'?' as %3F, '@' as %40, ':' as %3A and '%' as %25"
        )
    if not uri.startswith(("mongodb://", "mongodb+srv://")):
        # pymongo takes it for the name of a host, and then misses the database.
        raise ConfigurationError(
            "the MongoDB URI has no mongodb:// at its beginning: write it as in "
            "mongodb://host/database?replicaSet=name"
        )
    if hosts := _HOSTS.match(uri):
        try:
            split_hosts(hosts[1])
        except ValueError:
            raise ConfigurationError(
                "a port in the MongoDB URI is not a number from 1 to 65535 (or '@' and the host "
                "are missing after the password)"
            ) from None
        except PyMongoError:
            pass  # it says so itself, and no more than that
