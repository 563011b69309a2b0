"""A replica set of one mongod, whatever port its data was last served on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from ..errors import EmbeddedServerError
from .causes import HOST
from .mongod import POLL_SECONDS, SET_NAME, START_SECONDS

if TYPE_CHECKING:
    from .mongod import Mongod

ALREADY_INITIALIZED = 23


def make_primary(mongod: Mongod, deadline: float) -> None:
    """Initiate the replica set, or adopt the one found in the folder, and wait for writes.

    Raises:
        EmbeddedServerError: the data is of another replica set, mongod ended, or the deadline
            (monotonic seconds) passed.
    """
    while True:
        try:
            with _connect(mongod) as client:
                _initiate(mongod, client)
                _wait_until_writable(mongod, client, deadline)
        except PyMongoError as error:
            # mongod drops connections when it finds itself missing from its own
            # configuration, as it does at first on another port.
            if isinstance(error, AutoReconnect) and time.monotonic() < deadline:
                mongod.check_alive(POLL_SECONDS)
                continue
            raise EmbeddedServerError(
                f"mongod runs but does not become a primary ({error}): "
                f"try another data folder{mongod.where_is_the_log()}"
            ) from error
        return


def _connect(mongod: Mongod) -> MongoClient[dict[str, Any]]:
    return MongoClient(
        HOST,
        mongod.port,
        directConnection=True,
        serverMonitoringMode="poll",
        serverSelectionTimeoutMS=1000,
        socketTimeoutMS=round(1000 * START_SECONDS),
    )


def _initiate(mongod: Mongod, client: MongoClient[dict[str, Any]]) -> None:
    host = f"{HOST}:{mongod.port}"
    try:
        client.admin.command(
            "replSetInitiate", {"_id": SET_NAME, "members": [{"_id": 0, "host": host}]}
        )
    except OperationFailure as error:
        if error.code != ALREADY_INITIALIZED:
            raise
    else:
        return
    config = client.admin.command("replSetGetConfig")["config"]
    members = config["members"]
    if config["_id"] != SET_NAME or len(members) != 1:
        raise EmbeddedServerError(
            f"the data in {mongod.folder} belongs to the replica set {config['_id']} "
            f"with members: {len(members)}, and is left alone: give another folder"
        )
    if members[0]["host"] != host:
        # The node looks for itself at its former port, so it is no primary: only a forced
        # change is accepted.
        members[0]["host"] = host
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)


def _wait_until_writable(
    mongod: Mongod, client: MongoClient[dict[str, Any]], deadline: float
) -> None:
    hello = client.admin.command("hello")
    while not hello["isWritablePrimary"]:
        if time.monotonic() > deadline:
            raise EmbeddedServerError(
                f"mongod did not become a primary within {START_SECONDS:.0f} s: "
                f"try another data folder{mongod.where_is_the_log()}"
            )
        # The server answers as soon as its state differs from the one we name.
        hello = client.admin.command(
            "hello", topologyVersion=hello["topologyVersion"], maxAwaitTimeMS=1000
        )
