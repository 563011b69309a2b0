"""``streamqueue migrate mongoqueue``: what the old package has stored, and what becomes of it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bson
import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.cli import migrate
from streamqueue.cli.main import main
from streamqueue.protocol.schema import VALIDATOR
from tests.cli.mongoqueue import NEW, lock, put, put_many
from tests.waiting import wait_until
from tests.worker.faults import failing

Command = Callable[..., tuple[int, dict[str, Any]]]

RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


@pytest.fixture
def old(jobs: Collection[Any]) -> Collection[Any]:
    """The collection of a mongoqueue."""
    return jobs.database.old_jobs


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    queue = MongoQueue(jobs)
    yield queue
    queue.close()


@pytest.fixture
def command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Migrate that collection; return the exit code, and what was printed as JSON."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def command(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = main(["migrate", "mongoqueue", "old_jobs", *arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return command


def drained(queue: MongoQueue) -> list[Any]:
    """Run all jobs of a queue; return their payloads."""
    payloads = []
    while (job := queue.next()) is not None:
        payloads.append(dict(job.payload))
        job.complete()
    return payloads


# what is moved


def test_without_apply_jobs_are_counted_and_nothing_is_written(
    command: Command, old: Collection[Any]
) -> None:
    put_many(old, 3)
    put(old, {}, attempts=3, last_error="boom")
    lock(old)
    stored = list(old.find())

    code, said = command()

    assert code == 0
    assert (said["applied"], said["ready"], said["dead"]) == (False, 2, 1)
    assert said["stay"] == {"a consumer has locked it": 1}
    assert list(old.find()) == stored
    assert old.database.list_collection_names() == ["old_jobs"]


def test_jobs_run_by_priority_and_in_the_order_of_their_puts(
    command: Command, old: Collection[Any], queue: MongoQueue
) -> None:
    for n in range(4):
        put(old, {"n": n}, priority=n // 2)

    code, said = command("--apply")

    assert (code, said["ready"], said["stay"]) == (0, 4, {})
    assert drained(queue) == [{"n": 2}, {"n": 3}, {"n": 0}, {"n": 1}]
    assert old.count_documents({}) == 0


def test_jobs_go_to_the_queue_that_is_named(
    command: Command, old: Collection[Any], jobs: Collection[Any]
) -> None:
    put(old, {"n": 1})

    command("--to", "emails", "--apply")

    assert drained(MongoQueue(jobs)) == []
    assert drained(MongoQueue(jobs, name="emails")) == [{"n": 1}]


def test_a_job_keeps_its_id_its_time_and_the_bytes_of_its_payload(
    command: Command, old: Collection[Any], jobs: Collection[Any], queue: MongoQueue
) -> None:
    payload = bson.encode({"$a": {"b.c": [1, bson.Int64(2), 3.0]}, "": None, "priority": 7})
    job_id = put(old, RawBSONDocument(payload))

    command("--apply")

    raw = jobs.with_options(codec_options=RAW).find_one({"_id": job_id})
    assert raw is not None
    assert bytes(raw["payload"].raw) == payload
    assert queue.get(job_id).created_at == job_id.generation_time


def test_attempts_go_on_where_they_were(
    command: Command, old: Collection[Any], queue: MongoQueue
) -> None:
    job_id = put(old, {}, attempts=2, last_error="boom", progress=5)

    command("--apply")

    waiting = queue.get(job_id)
    assert (waiting.state, waiting.attempts, waiting.last_error) == ("ready", 2, "boom")
    assert waiting.progress is None
    job = queue.next()
    assert job is not None
    job.error("again")
    assert queue.get(job_id).state == "dead"


def test_what_mongoqueue_would_never_take_again_is_dead(
    command: Command, old: Collection[Any], queue: MongoQueue
) -> None:
    job_id = put(old, {}, attempts=3, last_error="boom")

    code, said = command("--apply")

    assert (code, said["ready"], said["dead"]) == (0, 0, 1)
    dead = queue.get(job_id)
    assert (dead.state, dead.attempts, dead.last_error) == ("dead", 3, "boom")
    assert dead.finished_at is not None
    assert queue.requeue(job_id) == 1


def test_how_often_jobs_were_tried_is_what_the_caller_says(
    command: Command, old: Collection[Any]
) -> None:
    put(old, {}, attempts=3)
    put(old, {}, attempts=5)

    _, said = command("--max-attempts", "5", "--apply")

    assert (said["ready"], said["dead"]) == (1, 1)


def test_a_job_of_before_0_6_has_the_keys_that_were_put(
    command: Command, old: Collection[Any], queue: MongoQueue
) -> None:
    old.insert_one({**NEW, "foobar": 0, "state": "CA", "priority": 1})
    old.insert_one({**NEW, "foobar": 1, "priority": 2})

    command("--apply")

    assert drained(queue) == [{"foobar": 1}, {"foobar": 0, "state": "CA"}]


def test_a_consumer_that_waits_hears_of_jobs_that_are_moved(
    command: Command, old: Collection[Any], queue: MongoQueue
) -> None:
    got: list[Any] = []
    consumer = threading.Thread(target=lambda: got.append(queue.next(wait=30)))
    consumer.start()
    put(old, {"n": 1})

    command("--apply")

    consumer.join(30)
    assert got[0].payload == {"n": 1}


# what consumers of mongoqueue have locked


def test_what_a_consumer_has_locked_stays_with_it(command: Command, old: Collection[Any]) -> None:
    put(old, {})
    lock(old)
    stored = list(old.find())

    code, said = command("--apply")

    assert (code, said["ready"], said["stay"]) == (1, 0, {"a consumer has locked it": 1})
    assert list(old.find()) == stored


def test_the_consumers_that_have_locks_are_named_with_what_to_do(
    address: str,
    old: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)
    put_many(old, 2)
    lock(old, "ada")
    lock(old, "bob")

    main(["migrate", "mongoqueue", "old_jobs"])

    said = capsys.readouterr().out
    assert "locked by ada, bob: let these consumers end" in said
    assert "--consumers-stopped" in said


def test_locked_jobs_of_consumers_that_are_stopped_have_used_an_attempt(
    command: Command, old: Collection[Any], queue: MongoQueue
) -> None:
    first, last = put(old, {}), put(old, {}, attempts=2)
    lock(old)
    lock(old)

    code, said = command("--consumers-stopped", "--apply")

    assert (code, said["ready"], said["dead"], said["stay"]) == (0, 1, 1, {})
    assert (queue.get(first).state, queue.get(first).attempts) == ("ready", 1)
    assert (queue.get(last).state, queue.get(last).attempts) == ("dead", 3)
    assert "has not ended its attempt" in str(queue.get(last).last_error)


def test_a_job_that_is_locked_while_it_is_moved_stays_with_its_consumer(
    command: Command, old: Collection[Any], jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_many(old, 2)
    insert = migrate._Move._insert
    locked: list[Any] = []

    def lock_one_first(move: Any, taken: Any, session: Any) -> None:
        if not locked:
            locked.append(lock(old)["_id"])
        insert(move, taken, session)

    monkeypatch.setattr(migrate._Move, "_insert", lock_one_first)

    code, said = command("--apply")

    assert (code, said["ready"], said["stay"]) == (1, 1, {"a consumer has locked it": 1})
    assert [job["_id"] for job in old.find()] == locked
    assert jobs.count_documents({"_id": locked[0]}) == 0


# what else stays


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"_id": "a lock", "ttl": None, "client_id": "1"}, "mongoqueue has not stored it"),
        ({**NEW, "payload": {}, "time": None}, "it has fields of which mongoqueue knows nothing"),
        ({**NEW, "payload": "text"}, "its payload is none that a put takes"),
        ({**NEW, "payload": None}, "its payload is none that a put takes"),
        (
            {**NEW, "_id": {"a": 1}, "payload": {}},
            "its _id is not a plain value of at most 1024 bytes",
        ),
    ],
    ids=["stranger", "fields", "text", "null", "id"],
)
def test_what_is_no_job_of_mongoqueue_stays_and_the_rest_is_moved(
    command: Command, old: Collection[Any], document: dict[str, Any], reason: str
) -> None:
    put(old, {})
    stranger = {"_id": ObjectId(), **document}
    old.insert_one(stranger)
    put(old, {})

    code, said = command("--apply")

    assert (code, said["ready"], said["stay"]) == (1, 2, {reason: 1})
    assert list(old.find()) == [stranger]


def test_a_job_whose_id_is_there_already_stays_and_the_rest_is_moved(
    command: Command, old: Collection[Any], queue: MongoQueue
) -> None:
    queue.put({"n": "ours"}, job_id=(job_id := ObjectId()))
    put(old, {"n": 0})
    put(old, {"n": "theirs"}, _id=job_id)
    put(old, {"n": 1})

    code, said = command("--apply")

    assert (code, said["ready"]) == (1, 2)
    assert said["stay"] == {"a job with its id is there already": 1}
    assert [job["payload"] for job in old.find()] == [{"n": "theirs"}]
    assert drained(queue) == [{"n": "ours"}, {"n": 0}, {"n": 1}]


def test_a_job_that_the_validator_refuses_stays_and_the_rest_is_moved(
    command: Command, old: Collection[Any], jobs: Collection[Any]
) -> None:
    jobs.database.create_collection(jobs.name, validator=VALIDATOR)
    put(old, {}, _id=1.5)
    put(old, {})

    code, said = command("--apply")

    assert (code, said["ready"]) == (1, 1)
    assert said["stay"] == {"the server does not take it (error 121)": 1}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "there is no collection nowhere in the database"),
        (["jobs"], "name another collection"),
        (["jobs.settings"], "name another collection"),
        (["old_jobs", "--to", "$where"], "a queue name is"),
        (["old_jobs", "--max-attempts", "0"], "must be at least 1"),
    ],
    ids=["missing", "same", "beside", "queue", "attempts"],
)
def test_what_cannot_be_meant_is_refused_with_what_to_do(
    address: str,
    old: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)
    put(old, {})

    assert main(["migrate", "mongoqueue", *arguments, "--apply"]) == 2

    assert sentence in capsys.readouterr().err
    assert old.count_documents({}) == 1


# broken off


def test_jobs_that_could_not_be_taken_out_of_the_old_collection_are_not_in_the_new_one(
    address: str,
    old: Collection[Any],
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_many(old, 1500)
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    with failing(old.database.client, "delete", app="streamqueue-cli", skip=1, errorCode=13):
        assert main(["migrate", "mongoqueue", "old_jobs", "--apply"]) == 1

    said = capsys.readouterr().err
    assert "1,000 jobs were moved for certain, then it broke off: call it again" in said
    assert (old.count_documents({}), jobs.count_documents({"state": "ready"})) == (500, 1000)


@pytest.fixture
def short_transactions(client: MongoClient[Any]) -> Iterator[None]:
    """The server gives up a transaction whose process is gone after 3 seconds, not a minute."""
    name = "transactionLifetimeLimitSeconds"
    before = client.admin.command({"getParameter": 1, name: 1})[name]
    client.admin.command({"setParameter": 1, name: 3})
    yield
    client.admin.command({"setParameter": 1, name: before})


@pytest.mark.usefixtures("short_transactions")
def test_jobs_whose_move_is_not_committed_are_in_the_old_collection_alone(
    address: str, old: Collection[Any], jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_many(old, 10)
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    with failing(old.database.client, "commitTransaction", app="streamqueue-cli", errorCode=13):
        assert main(["migrate", "mongoqueue", "old_jobs", "--apply"]) == 1

    assert (old.count_documents({}), jobs.count_documents({"state": "ready"})) == (10, 0)


@pytest.mark.parametrize("command_name", ["commitTransaction", "insert", "delete"])
def test_a_server_that_fails_for_a_moment_is_asked_again(
    command: Command, old: Collection[Any], queue: MongoQueue, command_name: str
) -> None:
    put_many(old, 10)

    with failing(
        old.database.client, command_name, app="streamqueue-cli", times=1, closeConnection=True
    ):
        code, said = command("--apply")

    assert (code, said["ready"]) == (0, 10)
    assert sorted(payload["n"] for payload in drained(queue)) == list(range(10))


@pytest.mark.slow
@pytest.mark.usefixtures("short_transactions")
def test_killed_again_and_again_it_loses_no_job_and_moves_none_twice(
    address: str, old: Collection[Any], jobs: Collection[Any], queue: MongoQueue
) -> None:
    count = 800
    put_many(old, count)
    ran: Counter[int] = Counter()

    def work(stopped: threading.Event) -> None:
        # What has ended is removed: nothing of it is left that would refuse it a second time.
        while not stopped.is_set():
            for job in queue.claim(200, wait=0.2):
                ran[job.payload["n"]] += 1
                job.complete()

    stopped = threading.Event()
    consumer = threading.Thread(target=work, args=[stopped])
    consumer.start()
    try:
        for least in (550, 250):
            process = migration(address)
            wait_until(lambda least=least: old.count_documents({}) <= least, "some are moved", 60)
            process.kill()
            process.wait()
        assert old.count_documents({}) > 0
        assert migration(address).wait(60) == 0
        wait_until(lambda: ran.total() >= count, "all have run", 60)
    finally:
        stopped.set()
        consumer.join()

    assert ran == Counter(range(count))
    assert old.count_documents({}) == 0
    assert jobs.count_documents({"state": "ready"}) == 0


def migration(address: str) -> subprocess.Popen[bytes]:
    """Start to move all jobs, a few at a time."""
    program = (
        "import sys\nfrom streamqueue.cli import migrate\nfrom streamqueue.cli.main import main\n"
        "migrate.PIECE = 50\nsys.exit(main(sys.argv[1:]))"
    )
    arguments = ["migrate", "mongoqueue", "old_jobs", "--apply", "--json"]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "STREAMQUEUE_URI": address},
        stdout=subprocess.DEVNULL,
    )


def test_old_and_new_consumers_work_beside_each_other_while_jobs_are_moved(
    command: Command, old: Collection[Any], queue: MongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "PIECE", 20)
    count = 300
    put_many(old, count)
    ran: list[int] = []
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set() and (job := lock(old)) is not None:
            ran.append(job["payload"]["n"])
            old.delete_one({"_id": job["_id"], "locked_by": "consumer-1"})

    consumer = threading.Thread(target=work)
    consumer.start()
    try:
        command("--apply")
    finally:
        stopped.set()
        consumer.join()
    command("--apply")

    assert sorted([*ran, *(payload["n"] for payload in drained(queue))]) == list(range(count))


def test_large_documents_are_moved_a_few_at_a_time(
    command: Command, old: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "PIECE_BYTES", 10_000)
    sizes: list[int] = []
    take = migrate._Move.take

    def noted(move: Any, ids: Sequence[Any]) -> Any:
        sizes.append(len(ids))
        return take(move, list(ids))

    monkeypatch.setattr(migrate._Move, "take", noted)
    for size in (4000, 4000, 4000, 20_000, 10):
        put(old, {"text": "x" * size})

    command("--apply")

    assert sizes == [2, 1, 1, 1]
    assert old.count_documents({}) == 0


def test_at_a_terminal_it_shows_how_far_it_has_come(address: str, old: Collection[Any]) -> None:
    put_many(old, 10)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "streamqueue", "migrate", "mongoqueue", "old_jobs", "--apply"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "STREAMQUEUE_URI": address},
    )
    os.close(theirs)
    said, _ = process.communicate(timeout=60)
    shown = os.read(ours, 65536)
    os.close(ours)

    assert said.startswith(b"10 ready and 0 dead jobs moved")
    assert b"moved" in shown
    assert b"100%" in shown
