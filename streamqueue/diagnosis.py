"""What a person is told when the server cannot be used: one sentence, with what to do."""

from __future__ import annotations

import re
from typing import Any

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

from .server import UNAUTHORIZED

_PASSWORD = re.compile(r"(mongodb(?:\+srv)?://[^:@/\s]*):[^@/\s]*@")
AUTHENTICATION_FAILED = 18


def hide_password(text: str) -> str:
    """Return the text without the passwords of any MongoDB addresses in it."""
    return _PASSWORD.sub(r"\1:***@", text)


def explain(error: PyMongoError, uri: str | None) -> tuple[str, bool]:
    """Return the sentence, and whether the mistake is in how the command was called."""
    match error:
        case InvalidURI():
            return f"the URI is not a MongoDB address: {_short(error)}", True
        case ConfigurationError():
            return f"the URI or a MongoDB setting is wrong: {_short(error)}", True
        case ServerSelectionTimeoutError():
            return _explain_unreachable(error, uri), False
        case OperationFailure(code=code) if code == AUTHENTICATION_FAILED:
            return "MongoDB refused the user or password: check the URI's credentials", False
        case OperationFailure(code=code) if code == UNAUTHORIZED:
            return (
                f"MongoDB refused it: {_short(error)}. Give the user a role with find, insert, "
                "update, remove and changeStream on the jobs collection (createIndex for init)"
            ), False
        case DocumentTooLarge():
            return f"a document is too large for MongoDB: {_short(error)}", False
        case _:
            return f"MongoDB reported an error: {_short(error)}", False


def _explain_unreachable(error: PyMongoError, uri: str | None) -> str:
    try:
        parsed = parse_uri(uri or "mongodb://localhost")
    except PyMongoError:
        return f"MongoDB cannot be reached: {_short(error)}"
    hosts = ", ".join(f"{host}:{port}" for host, port in parsed["nodelist"])
    wanted = parsed["options"].get("replicaSet")
    actual = _set_name_of(parsed["nodelist"][0])
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


def _set_name_of(address: tuple[str, int | None]) -> str | None:
    """Ask the server itself: its set's name, '' for none, or None when it does not answer."""
    host, port = address
    try:
        with MongoClient[dict[str, Any]](
            host, port or 27017, directConnection=True, serverSelectionTimeoutMS=1000
        ) as client:
            return str(client.admin.command("hello").get("setName", ""))
    except PyMongoError:
        return None


def _short(error: PyMongoError) -> str:
    """Return the first part of an error's text, without the reply's full document."""
    text = str(error).split(", full error:")[0].split(", Topology Description:")[0]
    return " ".join(text.split())[:300]
