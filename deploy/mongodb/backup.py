"""Save the jobs of a collection to a file, and put them back, with pymongo and nothing else.

    STREAMQUEUE_URI=... python deploy/mongodb/backup.py save jobs.bson.gz
    STREAMQUEUE_URI=... python deploy/mongodb/backup.py restore jobs.bson.gz

What is saved is one moment of the collection, however long it takes: a snapshot read. The file is
what mongodump writes for a collection (BSON documents one after the other, with gzip), so
mongorestore reads it as well. README.md says what to think of before a restore.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import zlib
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
from bson.codec_options import CodecOptions
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.write_concern import WriteConcern

if TYPE_CHECKING:
    from collections.abc import Iterator

DUPLICATE_KEY = 11000
CHUNK = 1000
RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
"""Documents are passed on byte for byte, whatever is in them."""

Jobs = Collection[Any]


def save(jobs: Jobs, path: Path) -> str:
    """Write every job to the file, which comes to be when all are there; return what was done.

    Nobody else may read it: it holds the payloads.
    """
    unfinished = path.with_name(f"{path.name}.part")
    count = 0
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with (
        os.fdopen(descriptor, "wb") as file,
        gzip.open(file, "wb") as packed,
        jobs.database.client.start_session(snapshot=True) as session,
    ):
        for job in jobs.find(session=session):
            packed.write(job.raw)
            count += 1
    unfinished.replace(path)
    return f"{count} jobs saved"


def restore(jobs: Jobs, path: Path) -> str:
    """Insert the jobs of the file that are not there; return what was done.

    The file is read to its end first, so one that was cut off changes nothing. It can be repeated:
    what is there already stays as it is.
    """
    total = sum(1 for _ in _read(path))
    waiting = _read(path)
    there = refused = 0
    majority = jobs.with_options(write_concern=WriteConcern("majority"))
    while chunk := list(islice(waiting, CHUNK)):
        try:
            majority.insert_many(chunk, ordered=False)
        except BulkWriteError as error:
            if error.details["writeConcernErrors"]:
                raise
            for failure in error.details["writeErrors"]:
                known = failure["code"] == DUPLICATE_KEY and "_id" in failure.get("keyPattern", {})
                there, refused = there + known, refused + (not known)
    restored = total - there - refused
    return f"{restored} jobs restored, {there} were there, {refused} were refused"


def _read(path: Path) -> Iterator[RawBSONDocument]:
    with gzip.open(path, "rb") as packed:
        yield from bson.decode_file_iter(packed, RAW)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Save the jobs of a collection, and restore them.")
    parser.add_argument("action", choices=["save", "restore"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--collection", default="jobs", help="default: jobs")
    options = parser.parse_args()
    uri = os.environ.get("STREAMQUEUE_URI")
    if not uri:
        parser.error("set STREAMQUEUE_URI to the address, with the database")
    try:
        with MongoClient[Any](uri, serverSelectionTimeoutMS=10_000) as client:
            jobs = client.get_default_database().get_collection(options.collection, RAW)
            done = (save if options.action == "save" else restore)(jobs, options.file)
    except (OSError, EOFError, zlib.error, InvalidBSON, PyMongoError) as error:
        sys.stderr.write(f"{options.action}: {type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"{done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
