"""What a person is told when the server cannot be used: one sentence, with what to do."""

from __future__ import annotations

import os
import re
import socket
import ssl
import warnings
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from pymongo import MongoClient
from pymongo.errors import (
    ConfigurationError,
    DocumentTooLarge,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.uri_parser import parse_uri

from ..store.collection import UNAUTHORIZED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pymongo import AsyncMongoClient

    AnyClient = MongoClient[Any] | AsyncMongoClient[Any]

_COMMAND = re.compile(r" to execute command \{ (\w+): .*", re.DOTALL)
AUTHENTICATION_FAILED = 18
PROBE_SECONDS = 1.0


def explain(error: PyMongoError, where: str | AnyClient | None) -> tuple[str, bool]:
    """Return the sentence, and whether the mistake is in how the command was called.

    `where` is the URI or the client that was used, if that is known.
    """
    match error:
        case InvalidURI():
            return f"the URI is not a MongoDB address: {_short(error)}", True
        case ConfigurationError():
            return f"the URI or a MongoDB setting is wrong: {_short(error)}", True
        case ServerSelectionTimeoutError():
            return _explain_unreachable(error, where), False
        case OperationFailure(code=code) if code == AUTHENTICATION_FAILED:
            return (
                "MongoDB refused the user or password: check the URI's credentials, and its "
                "authSource= if the user is of another database (such as admin)"
            ), False
        case OperationFailure(code=code) if code == UNAUTHORIZED:
            return (
                f"MongoDB refused it: {_refused(error)}; deploy/mongodb/README.md says which role "
                "a user needs for what"
            ), False
        case DocumentTooLarge():
            return f"a document is too large for MongoDB: {_short(error)}", False
        case _:
            return f"MongoDB reported an error: {_short(error)}", False


def explain_file(error: OSError, uri: str | None) -> str | None:
    """Return the sentence for a file named in the URI; None when it is about something else."""
    if isinstance(error, ssl.SSLError):
        return (
            "a file with TLS certificates cannot be used: tlsCAFile= and tlsCertificateKeyFile= in "
            f"the URI must name PEM files ({error.reason or error})"
        )
    named = error.filename
    # pymongo 4.20.1 and newer do not say which file, but which option.
    option = _UNREADABLE.search(str(error))
    if named is None and option is not None:
        settings = dict(parse_qsl((uri or "").partition("?")[2]))
        by_name = {name.lower(): value for name, value in settings.items()}
        named = by_name.get(option[1].lower())
        if named is None:
            return f"the file that {option[1]}= names in the URI cannot be read: {_why(error)}"
    elif not (isinstance(named, str) and uri and named in unquote(uri)):
        return None
    return f"the URI names the file {named!r}, which cannot be read: {_why(error)}"


_UNREADABLE = re.compile(r"The (\w+) file is not readable")


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error.strerror)


def _refused(error: PyMongoError) -> str:
    """Say what was refused without the command itself, which may quote documents."""
    text = str(error)
    command = r" to \1" if "$changeStream" not in text else " to open a changeStream"
    return _COMMAND.sub(command, text.split(", full error:")[0])


def _contacted(
    where: str | AnyClient | None,
) -> tuple[list[tuple[str, int | None]], Mapping[str, Any]]:
    """Return the addresses and the options of the URI or client."""
    if where is None or isinstance(where, str):
        with warnings.catch_warnings(action="ignore"):  # given already, by the client
            parsed = parse_uri(where or "", warn=True)
        return parsed["nodelist"], parsed["options"]
    # The client does not keep its URI. What it makes of it is not public; what it knows of the
    # servers is, but a server of another replica set has been dropped from that.
    seen = where.topology_description.server_descriptions()
    addresses = getattr(where, "_seeds", None) or seen
    return sorted(addresses), getattr(where.options, "_options", {})


def _explain_unreachable(error: PyMongoError, where: str | AnyClient | None) -> str:
    try:
        addresses, options = _contacted(where)
        first = addresses[0]
    except (PyMongoError, OSError, ValueError, LookupError):
        return f"MongoDB cannot be reached: {_short(error)}"
    hosts = ", ".join(f"{host}:{port}" for host, port in addresses)
    if trouble := _tls_trouble(_short(error), hosts, first, options):
        return trouble
    wanted = options.get("replicaSet")
    actual = _set_name_of(first, options)
    if actual is not None and not actual and wanted:
        return (
            f"the server at {hosts} is not in a replica set, but the URI asks for {wanted!r}: "
            "start it with --replSet and run rs.initiate(), or try `streamqueue server`"
        )
    if actual and wanted and actual != wanted:
        return (
            f"the server at {hosts} is in the replica set {actual!r}, not {wanted!r}: correct "
            "replicaSet= in the URI"
        )
    if actual:
        return (
            f"the server at {hosts} answers, but replica set {actual!r} has no primary that can be "
            "reached from here: check its members' host names and its state (rs.status())"
        )
    return (
        f"no MongoDB server answers at {hosts}: is it running, and is the address right? "
        "(for a local one, run `streamqueue server`)"
    )


_MISMATCH = re.compile(r"certificate is not valid for '([^']+)'")
_BROKEN_OFF = re.compile("SSL|EOF|closed|reset by peer|lost|broken pipe", re.IGNORECASE)


def _tls_trouble(
    text: str, hosts: str, first: tuple[str, int | None], options: Mapping[str, Any]
) -> str | None:
    """Return the sentence if the text tells of TLS, or of its lack; else None."""
    if mismatch := _MISMATCH.search(text):
        return (
            f"the TLS certificate of the server at {hosts} is not for {mismatch[1]!r}: use a host "
            "name that is in the certificate, or give the server a certificate with this one"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("certificate verify failed: ")[2].split(" (_ssl")[0]
        if "expired" in reason or "not yet valid" in reason:
            return (
                f"the TLS certificate of the server at {hosts} is out of date ({reason}): "
                "renew it, or set this machine's clock"
            )
        return (
            f"the TLS certificate of the server at {hosts} is signed by an authority that is not "
            f"known here ({reason}): name the authority's certificate with tlsCAFile= in the URI"
        )
    if not _BROKEN_OFF.search(text):
        return None
    encrypted, can_encrypt = options.get("tls"), _speaks_tls(first)
    if encrypted and not can_encrypt:
        return (
            f"the server at {hosts} does not speak TLS, which the URI asks for: start it with "
            "--tlsMode and a certificate, or remove tls=true where that is safe"
        )
    if encrypted and options.get("tlsCertificateKeyFile"):
        return (
            f"the server at {hosts} does not accept the client certificate that "
            "tlsCertificateKeyFile= names: use one that is signed by an authority it trusts"
        )
    if encrypted:
        return (
            f"the server at {hosts} wants a client certificate: name a file with one and its key "
            "with tlsCertificateKeyFile= in the URI"
        )
    if can_encrypt:
        return (
            f"the server at {hosts} wants TLS: add tls=true to the URI, and tlsCAFile= unless a "
            "public authority signed its certificate"
        )
    return None


def _speaks_tls(address: tuple[str, int | None]) -> bool:
    """Greet the server in TLS. Whether its certificate can be trusted does not matter here: to
    show one is answer enough."""
    host, port = address
    try:
        with (
            socket.create_connection((host, port or 27017), PROBE_SECONDS) as line,
            ssl.create_default_context().wrap_socket(line, server_hostname=host),
        ):
            return True
    except ssl.SSLCertVerificationError:
        return True
    except (OSError, ValueError):
        return False


def _set_name_of(address: tuple[str, int | None], options: Mapping[str, Any]) -> str | None:
    """Ask the server itself: its set's name, '' for none, or None when it does not answer."""
    host, port = address
    tls = {name: value for name, value in options.items() if name.lower().startswith("tls")}
    try:
        with MongoClient[dict[str, Any]](
            host, port or 27017, directConnection=True, serverSelectionTimeoutMS=1000, **tls
        ) as client:
            return str(client.admin.command("hello").get("setName", ""))
    except PyMongoError:
        return None


def _short(error: PyMongoError) -> str:
    """Return the first part of an error's text, without the reply's full document."""
    text = str(error).split(", full error:")[0].split(", Topology Description:")[0]
    return " ".join(text.split())[:300]
