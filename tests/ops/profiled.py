"""What the server's profiler says of a census."""

from __future__ import annotations

from typing import Any

from pymongo.synchronous.collection import Collection

from streamqueue.exporter.census import Surveyor
from streamqueue.protocol.document import CODEC


async def looks_of(jobs: Collection[Any], surveyor: Surveyor) -> list[dict[str, Any]]:
    """Take a census and return what the server's profiler says of each read of it."""
    database = jobs.database
    await surveyor.take()  # it has learned what it may not read
    database.drop_collection("system.profile")
    database.command("profile", 2)
    await surveyor.take()
    database.command("profile", 0)
    profile = database.get_collection("system.profile", codec_options=CODEC)
    return [
        look
        for look in profile.find({"op": {"$in": ["query", "command"]}})
        if "planSummary" in look and look["ns"] != profile.full_name
    ]
