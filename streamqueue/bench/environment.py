"""Where it was measured: without this the figures mean nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
from typing import TYPE_CHECKING, Any

import pymongo

from .. import __version__
from ..protocol.schema import INDEXES
from ..store.collection import check_hello

if TYPE_CHECKING:
    from pymongo import MongoClient

    from .scale import Scale


def has_uvloop() -> bool:
    """Whether the faster event loop is installed; consumers and async producers then use it."""
    return importlib.util.find_spec("uvloop") is not None


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(client: MongoClient[dict[str, Any]], scale: Scale) -> dict[str, Any]:
    """Return the environment, for people and for scripts.

    Raises:
        ReplicaSetRequired: a standalone server.
    """
    hello = client.admin.command("hello")
    check_hello(hello)
    topology = "sharded cluster"
    if hello.get("setName"):
        topology = f"replica set of {len(hello.get('hosts', ()))}"
    return {
        "streamqueue": __version__,
        "python": platform.python_version(),
        "pymongo": pymongo.version,
        "uvloop": has_uvloop(),
        "loop": "uvloop" if has_uvloop() else "asyncio",
        "mongod": client.server_info()["version"],
        "topology": topology,
        "indexes": ", ".join(str(index.document["name"]) for index in INDEXES),
        "write concern": "majority, ours and the floor's",
        "processors": processors(),
        "machine": f"{platform.system()} {platform.machine()}",
        "load average": round(os.getloadavg()[0], 2),
        "rounds": scale.rounds,
    }
