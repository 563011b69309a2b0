"""A backup of the jobs is whole, and what is restored is worked off as the guide says."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bson import Binary, Int64
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue, Schedules, Topic
from tests import programs
from tests.waiting import wait_until

PROGRAM = Path(__file__).parents[2] / "deploy" / "mongodb" / "backup.py"

Backup = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def backup(uri: str, jobs: Collection[Any], tmp_path: Path) -> Backup:
    """Run the program: ``backup("save")``."""
    address = uri.replace("/?", f"/{jobs.database.name}?", 1)

    def backup(
        action: str, file: str = "jobs.bson.gz", collection: str = jobs.name
    ) -> subprocess.CompletedProcess[str]:
        return programs.run(
            [sys.executable, PROGRAM, action, tmp_path / file, "--collection", collection],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "STREAMQUEUE_URI": address},
        )

    return backup


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    with MongoQueue(jobs) as queue:
        yield queue


def test_the_settings_are_saved_likewise_pauses_schedules_and_subscriptions(
    backup: Backup, jobs: Collection[Any], queue: MongoQueue
) -> None:
    schedules, orders = Schedules(jobs), Topic(jobs, "orders")
    schedules.add("report", every=3600, queue="reports")
    orders.subscribe("mails")
    queue.pause()
    settings = jobs.database[f"{jobs.name}.settings"]
    before = raw(settings)

    backup("save", "settings.bson.gz", settings.name)
    settings.delete_many({})
    backup("restore", "settings.bson.gz", settings.name)

    assert raw(settings) == before
    assert [one.name for one in schedules.list()] == ["report"]
    assert orders.subscribers() == ["mails"]
    assert queue.is_paused()


def raw(jobs: Collection[Any]) -> set[bytes]:
    codec = jobs.codec_options.with_options(document_class=RawBSONDocument)
    return {job.raw for job in jobs.with_options(codec_options=codec).find()}


@pytest.mark.slow
def test_what_is_restored_is_what_was_saved_byte_for_byte_and_is_worked_off(
    backup: Backup, jobs: Collection[Any], queue: MongoQueue, tmp_path: Path
) -> None:
    ready = {"queue": "default", "state": "ready", "payload": {"$odd": DatetimeMS(-(2**62))}}
    ids = ("text", 7, Binary.from_uuid(uuid4()), Int64(2**40))
    jobs.insert_many([{**ready, "_id": job_id} for job_id in ids])
    queue.put_many([{"n": n} for n in range(1200)])
    queue.put({}, delay=3600, key="k")
    jobs.insert_one({**ready, "state": "dead"})
    (held,) = queue.claim(1)
    jobs.update_one({"_id": held.id}, {"$set": {"locked_until": datetime(2020, 1, 1, tzinfo=UTC)}})
    before = raw(jobs)

    saved = backup("save")
    jobs.delete_many({})
    restored, again = backup("restore"), backup("restore")

    assert (saved.stdout, saved.stderr) == ("1206 jobs saved\n", "")
    assert restored.stdout == "1206 jobs restored, 0 were there, 0 were refused\n"
    assert again.stdout == "0 jobs restored, 1206 were there, 0 were refused\n"
    assert raw(jobs) == before
    assert stat.S_IMODE((tmp_path / "jobs.bson.gz").stat().st_mode) == 0o600

    assert queue.repair() == 1  # whoever held it in those days is gone
    done = 0
    while claimed := queue.claim(1000):
        for job in claimed:
            job.complete()
        done += len(claimed)
    assert done == 4 + 1200
    assert queue.stats()["total"] == 2


def test_a_file_that_was_cut_off_changes_nothing(
    backup: Backup, jobs: Collection[Any], queue: MongoQueue, tmp_path: Path
) -> None:
    queue.put_many([{"n": n} for n in range(50)])
    backup("save")
    whole = (tmp_path / "jobs.bson.gz").read_bytes()
    (tmp_path / "cut.bson.gz").write_bytes(whole[: len(whole) // 2])
    jobs.delete_many({})

    refused = backup("restore", "cut.bson.gz")

    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "Traceback" not in refused.stderr
    assert jobs.count_documents({}) == 0


def test_a_backup_is_one_moment_though_jobs_come_meanwhile(
    backup: Backup, jobs: Collection[Any], queue: MongoQueue
) -> None:
    """The two jobs of a transaction are both in it, or neither."""
    over = threading.Event()
    pairs = count()

    def put_pairs() -> None:
        with jobs.database.client.start_session() as session:
            while not over.is_set():
                pair = next(pairs)
                with session.start_transaction():
                    queue.put({"pair": pair, "x": "x" * 5000}, session=session)
                    queue.put({"pair": pair, "x": "x" * 5000}, session=session)

    putting = threading.Thread(target=put_pairs)
    putting.start()
    try:
        wait_until(lambda: jobs.estimated_document_count() > 200, "some are there")
        assert backup("save").returncode == 0
    finally:
        over.set()
        putting.join()
    put = jobs.count_documents({})
    jobs.delete_many({})
    backup("restore")

    rows = list(jobs.aggregate([{"$group": {"_id": "$payload.pair", "count": {"$sum": 1}}}]))
    assert {row["count"] for row in rows} == {2}
    assert len(rows) * 2 < put
