"""Documents that only other programs store: with a queue that is no valid text."""

from __future__ import annotations

from typing import Any

import bson
from bson import ObjectId
from bson.raw_bson import RawBSONDocument

NOT_UTF8 = (b"\xff\xfe", b"em\xff", b"emails\x80", b"zz\xc3(", b"Z" * 64 + b"\xed\xa0\x80")


def a_job_of(queue: bytes, state: str, **fields: Any) -> RawBSONDocument:
    """Return a job with these bytes as the text of its queue."""
    stand_in = "?" * len(queue)
    job = {"_id": ObjectId(), "queue": stand_in, "state": state, "payload": {}, **fields}
    return RawBSONDocument(bson.encode(job).replace(stand_in.encode(), queue, 1))
