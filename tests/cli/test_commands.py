"""The installed command in a process of its own, as a person or a script would run it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson import Binary, Code, Decimal128, Int64, MinKey, ObjectId, Timestamp, encode
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import WriteError
from pymongo.synchronous.collection import Collection

from streamqueue import Backoff, MongoQueue
from streamqueue.cli.main import main
from streamqueue.embedded import find_mongod
from streamqueue.protocol.schema import FEATURE_INDEXES, INDEXES
from streamqueue.store.collection import rates_beside
from tests import programs
from tests.contract.looks import let_lease_run_out
from tests.contract.uris import COMBINED
from tests.waiting import free_port, wait_until

Run = Callable[..., "subprocess.CompletedProcess[str]"]

WORKER = """
from pymongo import AsyncMongoClient
from streamqueue import Worker
import os
worker = Worker(AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database().jobs)
@worker.handler("default")
async def handle(job):
    print("handled", job.data, flush=True)
not_a_worker = 3
"""


OF_FEATURES = sum(map(len, FEATURE_INDEXES.values()))
"""How many indexes there are besides that only a feature needs."""
WRONG_VARIABLES = {"LOG_LEVEL": "loud", "LOG_FORMAT": "xml", "EXPORT_STATE": "yes"}


@pytest.fixture
def run(address: str, tmp_path: Path) -> Run:
    """Run a command with STREAMQUEUE_URI set; its output is text."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "STREAMQUEUE_URI": address} | options.pop("env", {})
        return programs.run(
            [sys.executable, "-m", "streamqueue", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env=environment,
            **options,
        )

    return run


def says_one_sentence(result: subprocess.CompletedProcess[str]) -> bool:
    lines = result.stderr.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("streamqueue: ")


@pytest.mark.parametrize(
    "command",
    [
        [],
        *([name] for name in ("demo", "server", "init", "worker", "put", "stats", "reap", "dead")),
        *([name] for name in ("requeue", "reschedule", "cancel", "pause", "resume")),
        *([name] for name in ("bench", "exporter", "consumers")),
        *(["dead", action] for action in ("list", "requeue", "purge")),
    ],
)
def test_every_command_explains_itself(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, "--help"]) == 0

    said = capsys.readouterr().out
    assert said.startswith(" ".join(["Usage: streamqueue", *command]))
    example = said.splitlines()[-1].strip()
    assert example.startswith(" ".join(["streamqueue", *command]))


def test_init_creates_the_indexes_once(run: Run) -> None:
    first, second = run("init"), run("init")

    assert "4 indexes" in first.stdout
    assert "0 new" in second.stdout
    assert (first.returncode, second.returncode) == (0, 0)


def test_init_reports_the_indexes_it_made(run: Run) -> None:
    assert "4 new" in run("init").stdout


def test_init_makes_the_index_of_the_keys_for_who_asks_for_it(
    run: Run, jobs: Collection[Any]
) -> None:
    run("init")
    assert "streamqueue_held_key" not in jobs.index_information()

    said = run("init", "--features").stdout
    assert f"{len(INDEXES) + OF_FEATURES} indexes, {OF_FEATURES} new" in said
    assert jobs.index_information()["streamqueue_held_key"]["unique"]


def test_init_makes_the_index_of_the_rates_for_who_asks_for_it(
    run: Run, jobs: Collection[Any]
) -> None:
    buckets = jobs.database[rates_beside(jobs.name)]
    run("init")
    assert "streamqueue_buckets" not in buckets.index_information()

    first, second = (run("init", "--features").stdout for _ in range(2))

    assert f"{buckets.full_name}: 1 index, 1 new" in first
    assert f"{buckets.full_name}: 1 index, 0 new" in second
    assert buckets.index_information()["streamqueue_buckets"]["expireAfterSeconds"] == 0


def test_init_drops_indexes_that_are_of_no_use_any_more(run: Run, jobs: Collection[Any]) -> None:
    jobs.create_index([("queue", 1), ("state", 1), ("run_at", 1)], name="streamqueue_scheduled")

    said = run("init", "--keep-earlier").stdout

    assert "streamqueue_scheduled is of an earlier version: drop it" in said
    assert "streamqueue_dead" not in said
    assert "streamqueue_scheduled" in jobs.index_information()
    assert "streamqueue_scheduled, of an earlier version, dropped" in run("init").stdout
    assert "streamqueue_scheduled" not in jobs.index_information()


def test_init_has_the_jobs_of_an_earlier_version_hold_their_keys(
    run: Run, jobs: Collection[Any]
) -> None:
    jobs.create_index(
        [("queue", 1), ("key", 1)],
        name="streamqueue_key",
        unique=True,
        partialFilterExpression={"key": {"$exists": True}, "state": {"$gte": "ready"}},
    )
    jobs.insert_one({**JOB, "key": "k"})
    jobs.insert_one({**JOB, "key": "gone", "state": "dead"})

    said = run("init").stdout

    assert "1 jobs of an earlier version hold their keys" in said
    assert "streamqueue_key, of an earlier version, dropped" in said
    assert jobs.distinct("held_key") == ["k"]
    assert "streamqueue_held_key" in jobs.index_information()


def test_init_keeps_the_order_of_what_an_earlier_version_put(
    run: Run, jobs: Collection[Any]
) -> None:
    with MongoQueue(jobs) as queue:
        queue.put({"n": 9})
        now = jobs.database.command("hello")["localTime"]
        for n in (3, 1, 2):
            earlier = {"state": "ready", "priority": 0, "attempts": 0, "payload": {"n": n}}
            at = now - timedelta(seconds=30) + timedelta(milliseconds=n)
            jobs.insert_one({"v": 1, "queue": "default", "run_at": at, **earlier})
        for odd in (DatetimeMS(2**60), [now]):
            jobs.insert_one({"v": 1, "queue": "other", "run_at": odd, **earlier})
        jobs.create_index([("queue", 1), ("run_at", 1)], name="streamqueue_ready")

        assert "4 ready jobs of an earlier version" in run("init").stdout

        assert [job.data["n"] for job in queue.claim(9)] == [1, 2, 3, 9]


JOB: dict[str, object] = {"queue": "default", "state": "ready", "payload": {}}
BEYOND = [DatetimeMS(-(2**63)), DatetimeMS(-62_135_596_800_001), DatetimeMS(253_402_300_800_000)]


def test_the_validator_refuses_what_is_not_a_job(run: Run, jobs: Collection[Any]) -> None:
    assert run("init", "--validator").returncode == 0
    any_date = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
    hostile = jobs.with_options(codec_options=any_date)  # the refusal quotes what it refuses

    wrongs: list[dict[str, Any]] = [
        {"state": "reddy"},
        {"queue": "a\n"},
        {"queue": "q" * 65},
        {"payload": []},
        *({"_id": job_id} for job_id in (Decimal128("1"), 1.5, True, {}, MinKey(), None)),
        *({"_id": job_id} for job_id in (DatetimeMS(0), Timestamp(1, 1), Code("x"))),
        *({field: date} for field in ("run_at", "created_at") for date in (*BEYOND, "now", 0)),
        *({field: date} for field in ("locked_at", "locked_until") for date in (*BEYOND, None)),
        *({field: date} for field in ("finished_at", "expires_at") for date in (*BEYOND, [])),
    ]
    for wrong in wrongs:
        with pytest.raises(WriteError) as refused:
            hostile.insert_one({**JOB, **wrong})
        assert refused.value.code == 121, wrong
    twice = b"".join(encode({field: value})[4:-1] for field, value in (*JOB.items(), *JOB.items()))
    with pytest.raises(WriteError):
        jobs.insert_one(RawBSONDocument((len(twice) + 5).to_bytes(4, "little") + twice + b"\0"))
    assert jobs.count_documents({}) == 0


def test_the_validator_lets_a_key_be_held_that_no_job_has_any_more(
    run: Run, jobs: Collection[Any]
) -> None:
    run("init", "--validator")
    until = datetime(2030, 1, 1, tzinfo=UTC)
    holder = {"queue": "default", "key": "k", "held_key": "k", "unique_until": until}

    jobs.insert_one(dict(holder))

    for wrong in ({"state": "gone"}, {"payload": {}}, {"unique_until": 5}, {"held_key": None}):
        with pytest.raises(WriteError):
            jobs.insert_one({**holder, "held_key": "l", **wrong})


def test_the_validator_lets_every_job_live_its_life(run: Run, jobs: Collection[Any]) -> None:
    run("init", "--validator")
    for job_id in ("text", 7, Int64(2**40), Binary.from_uuid(uuid4()), ObjectId()):
        jobs.insert_one({**JOB, "_id": job_id})
    jobs.insert_one({**JOB, "run_at": DatetimeMS(-62_135_596_800_000)})
    with MongoQueue(jobs, backoff=Backoff(0)) as queue:
        for how in ("skip", "replace", "earlier"):
            queue.put({}, key="of them", on_conflict=how, unique_for=9, delay=3600)
        queue.put({}, key="k", priority=9, run_at=datetime(9999, 12, 31, tzinfo=UTC))
        queue.put({}, delay=0.001, max_attempts=1)

        *_, failed, released, stale = queue.claim(6)
        failed.error("no")
        released.release()
        jobs.update_one({"_id": stale.id}, {"$set": {"locked_until": datetime(2000, 1, 1)}})
        for end in ("error", "error", "error", "progress"):
            for job in queue.claim(9):
                getattr(job, end)()
        queue.requeue()
        queue.repair()

        assert jobs.count_documents({"queue": "default"}) == 9


def test_what_was_no_job_before_the_validator_can_still_be_given_back(
    run: Run, jobs: Collection[Any]
) -> None:
    odd = {**JOB, "_id": Decimal128("1"), "state": "running", "attempts": 1}
    jobs.insert_one(odd)
    run("init", "--validator")

    with MongoQueue(jobs) as queue:
        queue.repair()

    assert [job["state"] for job in jobs.find()] == ["ready"]


def test_put_prints_the_id_of_the_job(run: Run, jobs: Collection[Any]) -> None:
    result = run("put", '{"to": "ada"}', "--priority", "3")

    stored = jobs.find_one()
    assert stored is not None
    assert result.stdout.strip() == str(stored["_id"])
    assert (stored["payload"], stored["priority"]) == ({"to": "ada"}, 3)


def test_put_replaces_the_job_that_waits_with_the_key(run: Run, jobs: Collection[Any]) -> None:
    key = ("--key", "k", "--on-conflict", "replace", "--key-until", "end", "--unique-for", "60")
    first = run("put", '{"n": 1}', *key)

    second = run("put", '{"n": 2}', *key, "--delay", "60", "--max-delay", "5")

    (stored,) = jobs.find()
    assert first.stdout == second.stdout
    assert (stored["payload"], stored["state"]) == ({"n": 2}, "scheduled")
    assert stored["run_at"] - stored["created_at"] == timedelta(seconds=5)
    assert "unique_until" in stored
    assert "key_until" not in stored


def test_put_says_that_a_key_is_taken(run: Run) -> None:
    job_id = run("put", "{}", "--key", "k").stdout.strip()

    refused = run("put", "{}", "--key", "k")

    assert says_one_sentence(refused)
    assert f"the key 'k' is taken by job {job_id}" in refused.stderr


def test_put_reads_one_job_per_line_from_standard_input(run: Run, jobs: Collection[Any]) -> None:
    result = run("put", input='{"n": 1}\n\n{"n": 2}\n')

    assert len(result.stdout.split()) == 2
    assert [job["payload"]["n"] for job in jobs.find(sort=[("_id", 1)])] == [1, 2]


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["put", "{nonsense"], "not JSON"),
        (["put", "[1]"], "must be an object"),
        (["put", "{}", "--queue", "$x"], "queue name"),
        (["put", "{}", "--delay", "-1"], "delay"),
        (["put", "{}", "--delay", "nan"], "delay"),
        (["put", "{}", "{}", "--key", "k"], "--key"),
        (["put", "{}", "{}", "--on-conflict", "skip"], "give key= too"),
        (["put", "{}", "--key", "k", "--max-delay", "5"], "max_delay bounds"),
        (["worker", "no_such_module:worker"], "no module"),
        (["worker", "nonsense"], "MODULE:WORKER"),
        (["dead", "requeue", "nonsense"], "no dead job nonsense"),
        (["cancel", "nonsense"], "no job nonsense"),
        (["put", "{}", "--keep", "-1"], "keep"),
    ],
)
def test_bad_input_is_one_sentence_and_puts_nothing(
    run: Run, jobs: Collection[Any], arguments: list[str], word: str
) -> None:
    result = run(*arguments)

    assert word in result.stderr
    assert says_one_sentence(result)
    assert result.returncode in (1, 2)
    assert jobs.count_documents({}) == 0


def test_an_unknown_flag_is_wrong_usage(run: Run) -> None:
    result = run("stats", "--wat")

    assert result.returncode == 2
    assert "--wat" in result.stderr
    assert "Traceback" not in result.stderr


def test_stats_are_the_same_for_people_and_for_scripts(run: Run, jobs: Collection[Any]) -> None:
    MongoQueue(jobs).put_many([{}, {}])

    plain, scripted = run("stats", "--queue", "default"), run("stats", "--queue=default", "--json")

    assert ["available", "2"] in [line.split() for line in plain.stdout.splitlines()]
    assert json.loads(scripted.stdout)["available"] == 2


def test_a_queue_is_paused_and_resumed(run: Run, jobs: Collection[Any]) -> None:
    queue = MongoQueue(jobs, name="emails")

    paused, again = run("pause", "--queue", "emails"), run("pause", "--queue", "emails", "--json")
    was_paused = queue.is_paused()
    resumed = run("resume", "--queue", "emails", "--json")

    assert paused.stdout == "queue emails is paused\n"
    assert json.loads(again.stdout) == {"queue": "emails", "paused": True}
    assert json.loads(resumed.stdout) == {"queue": "emails", "paused": False}
    assert (was_paused, queue.is_paused()) == (True, False)


def test_stats_of_a_queue_without_jobs_name_those_that_have_some(
    run: Run, jobs: Collection[Any]
) -> None:
    MongoQueue(jobs, name="emails").put({})

    result = run("stats", "--queue", "email")

    assert result.returncode == 0
    assert result.stderr == "streamqueue: no jobs in queue email (there are some in emails)\n"


def test_stats_say_that_a_queue_is_paused(run: Run, jobs: Collection[Any]) -> None:
    MongoQueue(jobs).pause()

    plain, scripted = run("stats", "--queue=default"), run("stats", "--queue=default", "--json")
    every, other = run("stats", "--json"), run("stats", "--queue", "other")

    assert ["paused", "yes"] in [line.split() for line in plain.stdout.splitlines()]
    assert json.loads(scripted.stdout)["paused"] is True
    assert json.loads(every.stdout)["default"]["paused"] is True
    assert "paused" not in other.stdout


def test_stats_say_how_limits_stand(run: Run, jobs: Collection[Any]) -> None:
    emails = MongoQueue(jobs, name="emails")
    emails.put_many([{}] * 3)
    emails.limit(running=2)
    assert len(emails.claim(3)) == 2
    MongoQueue(jobs, name="reports").put({})

    every, one = run("stats"), run("stats", "--queue", "emails")
    scripted = json.loads(run("stats", "--json").stdout)

    header, *rows = every.stdout.splitlines()
    assert header.split()[-1] == "LIMITS"
    assert [row.split("  ")[-1].strip() for row in rows] == ["queue running 2/2 (saturated)", "-"]
    assert "limit      queue running 2/2 (saturated)" in one.stdout.splitlines()
    limit = {"per": "queue", "task": None, "limit": 2, "rate": None, "running": 2, "saturated": 1}
    assert scripted["emails"]["limits"] == [limit]
    assert json.loads(run("stats", "--queue=emails", "--json").stdout) == scripted["emails"]
    assert "limits" not in scripted["reports"]


def test_stats_count_the_groups_that_a_dead_job_holds(run: Run, jobs: Collection[Any]) -> None:
    orders = MongoQueue(jobs, name="orders")
    orders.put_many([{}] * 2, group="ada", max_attempts=1)
    (job,) = orders.claim(1)
    job.error("no")
    settings = jobs.database[f"{jobs.name}.settings"]
    settings.insert_one({"_id": "orders", "declared": {"ordered": "strict"}})

    plain, scripted = run("stats"), run("stats", "--queue", "orders", "--json")

    assert plain.stdout.rstrip().endswith("group running 0/1, 1 group held by a dead job")
    assert json.loads(scripted.stdout)["held_groups"] == 1


def test_stats_show_every_queue_unless_one_is_named(run: Run, jobs: Collection[Any]) -> None:
    MongoQueue(jobs, name="emails").put_many([{}, {}])
    MongoQueue(jobs, name="reports").put({}, delay=60)

    plain, scripted = run("stats"), run("stats", "--json")

    assert [line.split()[0] for line in plain.stdout.splitlines()] == ["QUEUE", "emails", "reports"]
    found = json.loads(scripted.stdout)
    assert (found["emails"]["available"], found["reports"]["scheduled"]) == (2, 1)
    assert found["emails"] == MongoQueue(jobs, name="emails").stats() | {"paused": False}


def test_a_job_is_shown_by_its_id_whatever_its_queue(run: Run, jobs: Collection[Any]) -> None:
    job_id = MongoQueue(jobs, name="emails").put({"to": "ada"}, priority=5)

    plain, scripted = run("get", str(job_id)), run("get", str(job_id), "--json")

    assert ["priority", "5"] in [line.split() for line in plain.stdout.splitlines()]
    found = json.loads(scripted.stdout)
    assert (found["id"], found["queue"], found["data"]) == (str(job_id), "emails", {"to": "ada"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["created_at"])


def test_a_job_that_is_gone_is_said_in_one_sentence(run: Run) -> None:
    result = run("get", str(ObjectId()))

    assert result.returncode == 1
    assert says_one_sentence(result)


def test_jobs_are_listed_in_pages_without_their_payloads(run: Run, jobs: Collection[Any]) -> None:
    ids = [str(job_id) for job_id in MongoQueue(jobs).put_many([{"secret": "canary"}] * 3)]

    first = run("list", "--state", "ready", "--limit", "2", "--json")
    rest = run("list", "--state", "ready", "--start-after", ids[1], "--json")
    plain, with_data = run("list"), run("list", "--data")

    assert [row["id"] for row in json.loads(first.stdout)] == ids[:2]
    assert [row["id"] for row in json.loads(rest.stdout)] == ids[2:]
    assert "data" not in json.loads(first.stdout)[0]
    assert "canary" not in plain.stdout
    assert with_data.stdout.count("canary") == 3


def test_dead_jobs_are_listed_requeued_and_purged(run: Run, jobs: Collection[Any]) -> None:
    queue = MongoQueue(jobs, max_attempts=1)
    for number in range(3):
        queue.put({"n": number, "secret": "canary"})
        job: Any = queue.next()
        job.error(f"failed for reason {number}")
    one = str(job.id)

    listed = run("dead", "list")
    requeued = run("dead", "requeue", one, "--json")
    purged = run("dead", "purge", "--yes", "--json")

    assert "failed for reason 1" in listed.stdout
    assert "canary" not in listed.stdout
    assert json.loads(requeued.stdout) == {"requeued": 1}
    assert json.loads(purged.stdout) == {"purged": 2, "stay_dead": 0, "stopped": False}
    assert (queue.stats()["available"], queue.size()) == (1, 1)


def test_requeueing_a_job_that_is_not_dead_fails(run: Run, jobs: Collection[Any]) -> None:
    job_id = MongoQueue(jobs).put({})

    result = run("dead", "requeue", str(job_id))

    assert result.returncode == 1
    assert says_one_sentence(result)


def test_a_job_is_put_to_be_kept(run: Run, jobs: Collection[Any]) -> None:
    run("put", "{}", "--keep", "60")

    assert [job["keep"] for job in jobs.find()] == [60]


def test_a_job_is_cancelled_whichever_queue_it_is_of(run: Run, jobs: Collection[Any]) -> None:
    queue = MongoQueue(jobs, name="emails")
    waiting, running, done = (str(job_id) for job_id in queue.put_many([{}, {}, {}], keep=60))
    jobs.update_one({"_id": ObjectId(running)}, {"$set": {"priority": 2}})
    jobs.update_one({"_id": ObjectId(done)}, {"$set": {"priority": 1}})
    queue.next()
    finished: Any = queue.next()
    finished.complete()

    said = [json.loads(run("cancel", one, "--json").stdout) for one in (waiting, running, done)]

    assert [one["cancel"] for one in said] == ["cancelled", "asked", None]
    assert run("cancel", running).stdout.startswith("asked")
    assert [job["state"] for job in jobs.find(sort=[("_id", 1)])] == [
        "cancelled",
        "running",
        "done",
    ]


def test_reap_returns_stale_locks_of_every_queue(run: Run, jobs: Collection[Any]) -> None:
    for name in ("a", "b"):
        queue = MongoQueue(jobs, name=name)
        queue.put({})
        held = queue.next()
        assert held is not None
        let_lease_run_out(jobs, held.id)

    result = run("reap", "--json")

    assert {(row["queue"], row["jobs"]) for row in json.loads(result.stdout)} == {
        ("a", 1),
        ("b", 1),
    }


def test_without_an_address_it_says_how_to_give_one(run: Run) -> None:
    result = run("stats", env={"STREAMQUEUE_URI": ""})

    assert result.returncode == 2
    assert "STREAMQUEUE_URI" in result.stderr
    assert says_one_sentence(result)


def test_an_address_without_a_database_is_wrong_usage(run: Run, uri: str) -> None:
    result = run("stats", env={"STREAMQUEUE_URI": uri})

    assert result.returncode == 2
    assert "database" in result.stderr


def test_no_server_is_one_sentence_without_the_password(run: Run) -> None:
    uri = f"mongodb://ada:hunter2@127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=300"

    result = run("stats", env={"STREAMQUEUE_URI": uri})

    assert result.returncode == 1
    assert "no MongoDB server answers" in result.stderr
    assert says_one_sentence(result)
    assert "hunter2" not in result.stderr


def test_a_wrong_replica_set_name_is_named(run: Run, address: str) -> None:
    wrong = address.replace("replicaSet=rs0", "replicaSet=wrong&serverSelectionTimeoutMS=300")

    result = run("stats", env={"STREAMQUEUE_URI": wrong})

    assert result.returncode == 1
    assert "'rs0', not 'wrong'" in result.stderr
    assert says_one_sentence(result)


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a mongod that is in no replica set."""
    folder, port = tmp_path_factory.mktemp("standalone"), free_port()
    process = subprocess.Popen(
        [find_mongod(), "--dbpath", folder, "--port", str(port), "--bind_ip", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
    )
    uri = f"mongodb://127.0.0.1:{port}/test"
    with MongoClient[dict[str, Any]](uri) as client:
        client.admin.command("ping")
    yield uri
    process.kill()
    process.wait()


def test_a_standalone_server_is_told_how_to_become_a_replica_set(run: Run, standalone: str) -> None:
    result = run("stats", env={"STREAMQUEUE_URI": standalone})

    assert result.returncode == 1
    assert "rs.initiate()" in result.stderr
    assert says_one_sentence(result)


def test_a_worker_runs_jobs_until_sigterm_and_exits_with_0(
    address: str, jobs: Collection[Any], tmp_path: Path
) -> None:
    (tmp_path / "tasks.py").write_text(WORKER)
    queue = MongoQueue(jobs)
    queue.put({"n": 1})
    process = programs.Popen(
        [sys.executable, "-m", "streamqueue", "worker", "tasks:worker"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "STREAMQUEUE_URI": address},
    )
    wait_until(lambda: queue.size() == 0, "the job is done", within=20)

    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=10)

    assert process.returncode == 0
    assert output == "handled {'n': 1}\n"
    assert "Traceback" not in errors


def test_something_that_is_not_a_worker_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(WORKER)

    result = run("worker", "tasks:not_a_worker")

    assert result.returncode == 2
    assert "int" in result.stderr
    assert says_one_sentence(result)


def test_a_worker_without_a_server_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(WORKER)
    uri = f"mongodb://127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=300"

    result = run("worker", "tasks:worker", env={"STREAMQUEUE_URI": uri})

    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "no MongoDB server answers" in result.stderr


def test_the_server_runs_until_ctrl_c(tmp_path: Path) -> None:
    process = programs.Popen(
        [sys.executable, "-m", "streamqueue", "server"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "is running" in process.stdout.readline()
    address = process.stdout.readline().partition("=")[2].strip().strip("'")
    with MongoClient[dict[str, Any]](address) as client:
        assert client.admin.command("hello")["isWritablePrimary"]

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)

    assert process.returncode == 0


def test_the_demo_accounts_for_every_job(uri: str, tmp_path: Path) -> None:
    result = programs.run(
        [sys.executable, "-m", "streamqueue", "demo", "--uri", uri, "--jobs", "200", "--json"],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=tmp_path,
    )

    account = json.loads(result.stdout)
    assert result.returncode == 0
    assert (account["put"], account["completed"]) == (360, 360)
    assert (account["lost"], account["doubled"]) == (0, 0)
    assert account["retried"] >= 20


@pytest.mark.parametrize("name", WRONG_VARIABLES)
def test_a_variable_that_is_none_of_the_choices_is_refused_in_a_sentence(
    run: Run, name: str
) -> None:
    """Not taken for the default, and no traceback."""
    value = WRONG_VARIABLES[name]

    result = run("worker", "tasks:worker", env={f"STREAMQUEUE_{name}": value})

    assert result.returncode == 2
    option = "--" + name.lower().replace("_", "-")
    assert f"argument {option}: {value!r} is not one of " in result.stderr.splitlines()[-1]
    assert f"STREAMQUEUE_{name}" in result.stderr.splitlines()[-1]


def test_a_document_that_cannot_be_decoded_hides_no_other(run: Run, jobs: Collection[Any]) -> None:
    bury(jobs, "default")
    jobs.insert_one({"queue": "default", "state": "dead", "last_error": Binary(b"abc", 4)})
    half = {"_id": 1, "queue": "default", "state": "dead", "last_error": "ab"}
    jobs.insert_one(RawBSONDocument(encode(half).replace(b"ab\0", b"a\xff\0")))

    result = run("dead", "list")

    assert (result.returncode, len(result.stdout.splitlines())) == (0, 3)


def first_log_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stderr
    return result.stderr.splitlines()[0]


@pytest.mark.few(3)
@pytest.mark.parametrize("value", ["info", "Info", "INFO", ""])
@pytest.mark.parametrize("as_option", [True, False])
def test_a_log_level_and_a_format_may_be_written_in_any_case(
    run: Run, value: str, as_option: bool
) -> None:
    shape = "Json" if value else "json"
    arguments = ["--log-format", shape, *(["--log-level", value] if value else [])]
    variables = {"STREAMQUEUE_LOG_FORMAT": shape, "STREAMQUEUE_LOG_LEVEL": value}
    uri = f"mongodb://127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=100"

    result = run(
        *("exporter", "--metrics-port", "0", "--uri", uri, *(arguments if as_option else [])),
        env={} if as_option else variables,
    )

    assert json.loads(first_log_line(result))["event"] == "command_failed"


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--metrics-port", "abc"], {}, "--metrics-port: must be a whole number, not 'abc'"),
        (["--metrics-port", "99999"], {}, "--metrics-port: must be 0 to 65535, not 99999"),
        (["--interval", "soon"], {}, "--interval: must be a number, not 'soon'"),
        (
            [],
            {"STREAMQUEUE_METRICS_PORT": "abc"},
            "must be a whole number, not 'abc' (from the variable STREAMQUEUE_METRICS_PORT)",
        ),
        ([], {"STREAMQUEUE_INTERVAL": "0"}, "(from the variable STREAMQUEUE_INTERVAL)"),
    ],
)
def test_a_value_that_is_none_is_told_with_what_it_must_be_and_where_it_came_from(
    run: Run, arguments: list[str], variables: dict[str, str], words: str
) -> None:
    result = run("exporter", *arguments, env=variables)

    assert result.returncode == 2
    assert words in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200)])
def test_a_time_may_be_given_in_minutes_and_hours(
    run: Run, jobs: Collection[Any], text: str, seconds: int
) -> None:
    result = run("put", "{}", "--delay", text, "--keep", text)

    assert result.returncode == 0
    [job] = jobs.find()
    assert job["run_at"] - job["created_at"] == timedelta(seconds=seconds)
    assert job["keep"] == seconds


@pytest.mark.parametrize("payload", ["[1]", "5", '"text"', "null", '{"a":'])
def test_what_is_no_json_object_is_wrong_usage(run: Run, payload: str) -> None:
    assert run("put", payload).returncode == 2


def test_a_time_in_no_unit_is_refused_with_what_may_be_said(run: Run) -> None:
    result = run("put", "{}", "--delay", "10 minutes")

    assert result.returncode == 2
    assert "or such as 90s, 15m, 2h or 3d, not '10 minutes'" in result.stderr


def test_a_typed_value_is_not_blamed_on_the_variable(run: Run) -> None:
    result = run("exporter", "--metrics-port", "abc", env={"STREAMQUEUE_METRICS_PORT": "9465"})

    assert "STREAMQUEUE_METRICS_PORT" not in result.stderr.splitlines()[-1]


ODD_TASKS = """
from pymongo import AsyncMongoClient
from streamqueue import Worker
worker = Worker(AsyncMongoClient("mongodb://h").x.jobs)
@worker.handler("default")
async def send(job): ...
def broken(): return 1 / 0
def wants_more(job): ...
def nothing(): ...
async def later(): return worker
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tasks:send", "tasks:send is a handler; name the Worker, such as tasks:worker"),
        ("tasks:broken", "it raised ZeroDivisionError: division by zero (tasks.py, line 7)"),
        ("tasks:wants_more", "is called without arguments and must return a Worker"),
        ("tasks:nothing", "tasks:nothing returned no streamqueue Worker but NoneType"),
        ("tasks:later", "tasks:later returned no streamqueue Worker but coroutine"),
        ("./tasks:worker", "a module is named without .py or a path, such as tasks:worker"),
        ("tasks.py:worker", "a module is named without .py or a path, such as tasks:worker"),
        ("a/b:worker", "a module is named without .py or a path, such as tasks:worker"),
        ("tasks.py", "a module is named without .py or a path, such as tasks:worker"),
    ],
)
def test_what_is_no_worker_is_told_from_one_in_one_sentence(
    run: Run, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "tasks.py").write_text(ODD_TASKS)

    result = run("worker", name)

    assert words in result.stderr
    assert says_one_sentence(result)
    assert result.returncode == 2


def test_a_worker_without_a_server_names_the_host_it_asked(run: Run, tmp_path: Path) -> None:
    """And not that of a variable its module does not read."""
    port = free_port()
    uri = f"mongodb://ada:hunter2@127.0.0.1:{port}/x?replicaSet=rs0&serverSelectionTimeoutMS=300"
    (tmp_path / "tasks.py").write_text(WORKER.replace('os.environ["STREAMQUEUE_URI"]', repr(uri)))

    result = run("worker", "tasks:worker")

    assert f"no MongoDB server answers at 127.0.0.1:{port}:" in result.stderr
    assert says_one_sentence(result)
    assert "hunter2" not in result.stderr


def test_a_workers_wrong_replica_set_name_is_named(run: Run, tmp_path: Path, address: str) -> None:
    wrong = address.replace("replicaSet=rs0", "replicaSet=wrong&serverSelectionTimeoutMS=300")
    (tmp_path / "tasks.py").write_text(WORKER)

    result = run("worker", "tasks:worker", env={"STREAMQUEUE_URI": wrong})

    assert "'rs0', not 'wrong'" in result.stderr
    assert says_one_sentence(result)


def test_a_workers_address_without_a_database_is_wrong_usage(
    run: Run, tmp_path: Path, uri: str
) -> None:
    (tmp_path / "tasks.py").write_text(WORKER)

    result = run("worker", "tasks:worker", env={"STREAMQUEUE_URI": uri})

    assert result.returncode == 2
    assert "the URI names no database" in result.stderr
    assert says_one_sentence(result)


def test_an_address_that_is_only_a_host_is_told_what_it_lacks(run: Run) -> None:
    result = run("stats", "--uri", "localhost")

    assert result.returncode == 2
    assert "has no mongodb://" in result.stderr
    assert says_one_sentence(result)


@pytest.mark.parametrize(
    ("code", "kind"), [("spam = eggs", "NameError"), ("def spam(:", "SyntaxError")]
)
@pytest.mark.parametrize("inner", [True, False])
def test_a_module_that_fails_shows_the_users_part_of_the_traceback(
    run: Run, tmp_path: Path, code: str, kind: str, inner: bool
) -> None:
    (tmp_path / "tasks.py").write_text("import settings" if inner else code)
    (tmp_path / "settings.py").write_text(code)

    result = run("worker", "tasks:worker")

    *trace, sentence = result.stderr.splitlines()
    files = [Path(line.split('"')[1]).name for line in trace if line.startswith("  File ")]
    assert files == (["tasks.py", "settings.py"] if inner else ["tasks.py"])
    assert trace[-1].startswith(kind)
    assert sentence == (
        f"streamqueue: module 'tasks' could not be imported, because of the {kind} above"
    )
    assert result.returncode == 1


@pytest.mark.parametrize("how", ["--export-state", "STREAMQUEUE_EXPORT_STATE"])
def test_a_leader_that_serves_nothing_is_refused(run: Run, tmp_path: Path, how: str) -> None:
    """It would be elected, and show its numbers to nobody."""
    (tmp_path / "tasks.py").write_text(WORKER)
    options = [f"{how}=leader"] if how.startswith("--") else []

    result = run("worker", "tasks:worker", *options, env={} if options else {how: "leader"})

    assert "--export-state=leader is for --metrics-port" in result.stderr
    assert says_one_sentence(result)
    assert result.returncode == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metrics-port", "0", "--metrics-cert", "nowhere.pem"], "cannot read the certificate"),
        (["--metrics-port", "0", "--metrics-key", "a.key"], "keyfile= (--metrics-key) goes with"),
        (["--metrics-port", "0", "--metrics-host", ""], "--metrics-host)"),
    ],
)
@pytest.mark.parametrize("command", ["worker", "exporter"])
def test_what_cannot_be_served_is_refused_before_mongodb_is_asked(
    run: Run, tmp_path: Path, command: str, options: list[str], words: str
) -> None:
    (tmp_path / "tasks.py").write_text(WORKER)
    nowhere = f"mongodb://127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=300"
    name = ["tasks:worker"] if command == "worker" else []

    result = run(command, *name, *options, env={"STREAMQUEUE_URI": nowhere})

    assert words in result.stderr
    assert says_one_sentence(result)
    assert result.returncode == 2


def test_the_flags_of_a_port_in_use_are_named(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("exporter", "--metrics-port", str(taken.getsockname()[1]))

    assert "--metrics-host and --metrics-port" in result.stderr
    assert result.returncode == 2


@pytest.mark.parametrize(
    ("command", "serving"),
    [
        (["worker", "tasks:worker"], "Serving metrics and health on http://127.0.0.1:"),
        (["exporter"], "Serving the state of the queues on http://127.0.0.1:"),
    ],
)
def test_it_logs_where_it_serves_and_its_end(
    address: str, tmp_path: Path, command: list[str], serving: str
) -> None:
    (tmp_path / "tasks.py").write_text(WORKER)
    port = free_port()
    process = programs.Popen(
        [sys.executable, "-m", "streamqueue", *command, "--metrics-port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "STREAMQUEUE_URI": address},
    )
    assert process.stderr is not None
    last = "Working on" if command[0] == "worker" else "Serving"
    lines = [process.stderr.readline()]
    while last not in lines[-1]:
        assert process.poll() is None
        lines.append(process.stderr.readline())

    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=20)

    assert [line for line in lines if f"{serving}{port}\n" in line]
    assert "Stopped" in rest.splitlines()[-1]


def bury(jobs: Collection[Any], *names: str) -> None:
    """Leave a dead job in each of the queues."""
    for name in names:
        queue = MongoQueue(jobs, name=name, max_attempts=1)
        queue.put({})
        job = queue.next()
        assert job is not None
        job.error("broken")


@pytest.mark.few(2)
@pytest.mark.parametrize("action", ["list", "requeue --yes"])
@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], "no dead jobs in queue default, nor in any other"),
        (
            ["emails"],
            "no dead jobs in queue default (there are some in emails: --queue emails)",
        ),
        (
            ["a", "b", "x", "y"],
            "no dead jobs in queue default (there are some in a, b, x, ...: --queue a)",
        ),
    ],
)
def test_where_nothing_is_dead_the_queues_with_dead_jobs_are_named(
    run: Run, jobs: Collection[Any], action: str, others: list[str], words: str
) -> None:
    bury(jobs, *others)

    assert run("dead", *action.split()).stdout == f"{words}\n"


def test_a_dead_job_that_must_stay_is_not_said_to_be_missing(
    run: Run, jobs: Collection[Any]
) -> None:
    queue = MongoQueue(jobs, max_attempts=1)
    queue.put({}, key="k")
    job = queue.next()
    assert job is not None
    job.error("broken")
    queue.put({}, key="k")

    said = run("dead", "requeue", "--yes").stdout
    assert said == f"0 requeued; 1 stay dead, such as {job.id}: a live job has its key\n"


def test_a_job_that_is_not_dead_is_told(run: Run, jobs: Collection[Any]) -> None:
    job_id = MongoQueue(jobs, name="emails").put({})

    result = run("dead", "requeue", str(job_id), "--queue", "emails")

    assert f"no dead job {job_id}" in result.stderr
    assert says_one_sentence(result)


def test_one_attempt_is_one(run: Run, jobs: Collection[Any]) -> None:
    bury(jobs, "default")

    assert "  1 attempt: broken" in run("dead", "list").stdout


@pytest.mark.parametrize("command", ["stats", "consumers", "reap", "dead list"])
def test_who_looks_is_shown_it_whatever_the_uri_says(
    address: str, queue: MongoQueue, command: str
) -> None:
    queue.put({"n": 1})

    for settings in COMBINED:
        assert not main([*command.split(), "--uri", f"{address}&{settings}"]), settings


def test_a_job_of_any_id_is_requeued_by_the_text_that_the_list_shows(
    run: Run, jobs: Collection[Any]
) -> None:
    ids = [17, "order-17", Binary.from_uuid(UUID(int=17)), ObjectId()]
    for job_id in ids:
        jobs.insert_one({"_id": job_id, "queue": "default", "state": "dead", "payload": {}})
    texts = [row["id"] for row in json.loads(run("dead", "list", "--json").stdout)]

    for text in texts:
        assert run("dead", "requeue", text).stdout == "1 requeued\n"

    assert set(texts) == {"17", "order-17", str(UUID(int=17)), str(ids[-1])}
    assert jobs.count_documents({"state": "ready"}) == len(ids)


@pytest.mark.parametrize(("said", "stored"), [([], None), (["--max-attempts", "7"], 7)])
def test_put_stores_the_attempts_that_it_was_told(
    run: Run, jobs: Collection[Any], said: list[str], stored: int | None
) -> None:
    run("put", "{}", *said)

    assert jobs.find_one({}, {"_id": 0, "max_attempts": 1}) == (
        {} if stored is None else {"max_attempts": stored}
    )


def test_init_accepts_an_index_of_another_name_and_replaces_none_that_differs(
    run: Run, jobs: Collection[Any]
) -> None:
    jobs.create_index(
        [("queue", 1), ("task", 1), ("held_key", 1)],
        name="own",
        unique=True,
        partialFilterExpression={"held_key": {"$gte": ""}},
    )
    jobs.create_index([("queue", 1)], name="streamqueue_order")

    result = run("init", "--features")

    assert result.returncode == 1
    assert says_one_sentence(result)
    assert "streamqueue_order differs from it; drop that" in result.stderr
    assert "streamqueue_held_key" not in result.stderr
    assert len(jobs.index_information()) == 1 + len(INDEXES) + OF_FEATURES
    jobs.drop_index("streamqueue_order")
    said = run("init", "--features").stdout
    assert f"{len(INDEXES) + OF_FEATURES} indexes, 1 new" in said


def test_init_refuses_a_collection_that_is_not_for_jobs(run: Run, jobs: Collection[Any]) -> None:
    jobs.database.create_collection("small", capped=True, size=4096)

    result = run("init", "--collection", "small")

    assert result.returncode == 2
    assert says_one_sentence(result)
    assert "small is a capped collection" in result.stderr
