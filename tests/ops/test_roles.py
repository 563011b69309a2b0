"""The roles we ship: each suffices, and each of its actions is there for one thing."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from traceback import format_exception
from typing import Any

import anyio
import pytest
from anyio import to_thread
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.synchronous.database import Database
from pymongo.uri_parser import parse_uri

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    ConfigurationError,
    DuplicateJob,
    Limit,
    MongoQueue,
    NewJob,
    Schedules,
    Topic,
    Worker,
)
from streamqueue.exporter.exporter import Exporter
from streamqueue.protocol.limits import Rate
from streamqueue.protocol.operations import declare
from streamqueue.protocol.rates import bucket_id
from streamqueue.protocol.schedules import check_schedule
from streamqueue.protocol.ticks import check_rule
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.store.blocking import Store
from tests import programs
from tests.contract.looks import awaited_streams
from tests.ops.deploy_files import resources
from tests.ops.running import Run, Spawn, says_one_sentence
from tests.ops.secured import ROLES, SecuredServer, actions, role, without
from tests.waiting import wait_until, wait_until_async

JOBS, CONSUMERS, OPLOG = "jobs", "jobs.consumers", "oplog.rs"
RATES, SETTINGS = "jobs.rates", "jobs.settings"
KINDS = ["plain", "retried", "discarded", "delayed", "stale", "foreign"]
UNAUTHORIZED = 13

PRODUCER = {(JOBS, "insert"): "to insert", (JOBS, "listIndexes"): "listIndexes"}
"""What breaks without each action; here and below."""
PUBLISHER = {
    (JOBS, "insert"): "publish",
    (JOBS, "listIndexes"): "publish with a key",
    (SETTINGS, "find"): "publish",
}
SETUP = {
    (JOBS, "createIndex"): "to createIndexes",
    (JOBS, "collMod"): "to collMod",
    (JOBS, "listIndexes"): "",
    (JOBS, "dropIndex"): "streamqueue_ready is of an earlier version: drop it",
    (RATES, "createIndex"): "streamqueue_buckets of jobs.rates is left to the first worker",
}
CONSUMER = {
    (JOBS, "find"): "to find",
    (JOBS, "update"): "to update",
    (JOBS, "remove"): "to delete",
    (JOBS, "changeStream"): "to open a changeStream",
    (CONSUMERS, "find"): "without regard for other consumers",
    (CONSUMERS, "insert"): "without regard for other consumers",
    (CONSUMERS, "update"): "without regard for other consumers",
    (CONSUMERS, "remove"): "stays on the list",
    (SETTINGS, "find"): "queues that are paused are worked on all the same, and no limit or",
    (RATES, "find"): "No right to write to jobs.rates",
    (RATES, "insert"): "No right to write to jobs.rates",
    (RATES, "update"): "No right to write to jobs.rates",
    (RATES, "createIndex"): "streamqueue_buckets of jobs.rates cannot be made",
}
OPERATOR = {
    (JOBS, "insert"): "pause",
    (JOBS, "update"): "pause",
    (JOBS, "listIndexes"): "limit",
    (SETTINGS, "insert"): "pause",
    (SETTINGS, "update"): "pause",
    (SETTINGS, "find"): "is_paused",
    (SETTINGS, "remove"): "remove",
    (CONSUMERS, "find"): "remove",
}
SCHEDULER = {(SETTINGS, "insert"): "declare", (SETTINGS, "update"): "fire"}
EXPORTER = {
    (JOBS, "find"): "the counts",
    (CONSUMERS, "find"): "the consumers",
    (SETTINGS, "find"): "what is paused",
    (RATES, "find"): "whether rates hold jobs back",
}
OPLOG_WINDOW = {(OPLOG, "find"): "the oplog window"}
SHIPPED = [
    f"streamqueue{kind}"
    for kind in (
        "Producer",
        "Publisher",
        "Consumer",
        "Operator",
        "Scheduler",
        "Setup",
        "Exporter",
        "OplogWindow",
    )
]
USERS = [
    f"streamqueue-{kind}"
    for kind in (
        *("producer", "publisher", "consumer", "operator", "scheduler", "setup", "exporter"),
    )
]
BY_ROLE = {
    "producer": PRODUCER,
    "publisher": PUBLISHER,
    "setup": SETUP,
    "consumer": CONSUMER,
    "operator": OPERATOR,
    "scheduler": SCHEDULER,
    "exporter": EXPORTER,
    "oplog-window": OPLOG_WINDOW,
}


@pytest.fixture
def look(server: SecuredServer, database: str) -> Iterator[Database[Any]]:
    """The database as an administrator sees it."""
    yield server.client[database]
    server.client.drop_database(database)


@pytest.fixture
def producer(server: SecuredServer, database: str) -> Iterator[MongoQueue]:
    """A queue whose user may do what a producer may."""
    with MongoClient[dict[str, Any]](server.user(database, role("producer", database))) as client:
        yield MongoQueue(client[database].jobs)


def test_every_role_that_is_shipped_is_seen_to_here() -> None:
    assert {path.stem for path in ROLES.iterdir()} == set(BY_ROLE)


@pytest.mark.parametrize("name", BY_ROLE)
def test_every_action_of_a_role_is_missed_below(name: str) -> None:
    assert actions(role(name, "any")) == set(BY_ROLE[name])


@pytest.mark.usefixtures("no_roles_yet")
@pytest.mark.skipif(shutil.which("mongosh") is None, reason="mongosh is not installed")
def test_the_script_creates_the_roles_and_brings_them_up_to_date(
    server: SecuredServer, database: str
) -> None:
    def create(**variables: str) -> list[str]:
        done = subprocess.run(
            ["mongosh", "--quiet", server.address(), str(ROLES.parent / "create-roles.js")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JOBS_DATABASE": database, "JOBS_COLLECTION": "tasks", **variables},
        )
        return [line.split()[1] for line in done.stdout.splitlines()]

    first, second, asked = create(), create(), create(OPLOG_WINDOW="yes")

    reply = server.client.admin.command("rolesInfo", "streamqueueConsumer", showPrivileges=True)
    assert (first, second) == (["created"] * 7, ["updated"] * 7)
    assert asked == ["updated"] * 7 + ["created"]
    assert {
        (privilege["resource"]["db"], privilege["resource"]["collection"])
        for privilege in reply["roles"][0]["privileges"]
    } == {(database, f"tasks{beside}") for beside in ("", ".consumers", ".rates", ".settings")}


@pytest.fixture
def no_roles_yet(server: SecuredServer) -> Iterator[None]:
    """None of the roles we ship is there, nor a user of the README's."""

    def drop() -> None:
        for command, names in (("dropUser", USERS), ("dropRole", SHIPPED)):
            for name in names:
                with suppress(OperationFailure):  # it is not there
                    server.client.admin.command(command, name)

    drop()
    yield
    drop()


@pytest.mark.usefixtures("no_roles_yet")
def test_the_readme_s_python_creates_roles_and_users_and_brings_the_roles_up_to_date(
    server: SecuredServer, database: str, run: Run
) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROLES.parent / "README.md").read_text(), re.M | re.S
    )
    (program,) = [block for block in blocks if "createUser" in block]

    def create() -> list[str]:
        done = programs.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=ROLES.parents[2],
            env={**os.environ, "ADMIN_URI": server.address(), "JOBS_DATABASE": database},
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    users = dict(line.split(":") for line in create())
    server.client.admin.command("updateRole", "streamqueueExporter", privileges=[])  # an older one
    again = create()

    assert (sorted(users), again) == (sorted(USERS), [])
    for kind, command in (("setup", "init"), ("producer", "put {}"), ("exporter", "stats")):
        name = f"streamqueue-{kind}"
        result = run(*command.split(), uri=server.address(name, users[name], database=database))
        assert (result.returncode, result.stderr) == (0, ""), command


# setup


def test_setup_creates_the_indexes_and_the_validator(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    uri = server.user(database, role("setup", database))

    result = run("init", "--validator", uri=uri)

    assert (result.returncode, result.stderr) == (0, "")
    assert "4 new" in result.stdout
    assert len(look.jobs.index_information()) == 5


def test_the_job_of_kubernetes_makes_the_indexes_and_a_worker_with_its_user_may_not(
    server: SecuredServer, database: str, look: Database[Any], run: Run, tmp_path: Path
) -> None:
    (job,) = resources("Job")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    address = tmp_path / "uri"

    address.write_text(server.user(database, role("consumer", database)))
    refused = run(*arguments, env={"STREAMQUEUE_URI_FILE": str(address)})
    before = list(look.jobs.index_information())
    address.write_text(server.user(database, role("setup", database)))
    made = run(*arguments, env={"STREAMQUEUE_URI_FILE": str(address)})

    assert (refused.returncode, before) == (1, [])
    assert SETUP[JOBS, "createIndex"] in refused.stderr
    assert (made.returncode, made.stderr) == (0, "")
    assert len(look.jobs.index_information()) == 5


def test_setup_without_create_index_is_refused(
    server: SecuredServer, database: str, run: Run
) -> None:
    missing = (JOBS, "createIndex")
    uri = server.user(database, without(role("setup", database), *missing))

    result = run("init", uri=uri)

    assert result.returncode == 1
    assert SETUP[missing] in result.stderr
    assert says_one_sentence(result.stderr)


def test_setup_without_coll_mod_creates_the_indexes_but_no_validator(
    server: SecuredServer, database: str, run: Run
) -> None:
    missing = (JOBS, "collMod")
    uri = server.user(database, without(role("setup", database), *missing))

    plain, validated = run("init", uri=uri), run("init", "--validator", uri=uri)

    assert plain.returncode == 0
    assert validated.returncode == 1
    assert SETUP[missing] in validated.stderr
    assert says_one_sentence(validated.stderr)


@pytest.mark.parametrize("action", ["listIndexes", "dropIndex"])
def test_setup_without_the_rights_to_drop_leaves_the_indexes_of_earlier_versions(
    server: SecuredServer, database: str, look: Database[Any], run: Run, action: str
) -> None:
    look.jobs.create_index([("queue", 1)], name="streamqueue_ready")
    missing = (JOBS, action)

    kept = run("init", uri=server.user(database, without(role("setup", database), *missing)))
    there = set(look.jobs.index_information())
    dropped = run("init", uri=server.user(database, role("setup", database)))

    assert (kept.returncode, kept.stderr) == (0, "")
    assert SETUP[missing] in kept.stdout
    assert "streamqueue_ready" in there
    assert "streamqueue_ready, of an earlier version, dropped" in dropped.stdout
    assert "streamqueue_ready" not in look.jobs.index_information()


def test_setup_makes_the_indexes_of_features(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    result = run("init", "--features", uri=server.user(database, role("setup", database)))

    assert (result.returncode, result.stderr) == (0, "")
    assert "streamqueue_slots" in look.jobs.index_information()
    assert "streamqueue_buckets" in look[RATES].index_information()


def test_setup_that_may_not_make_the_index_of_the_rates_leaves_it_to_others_and_does_the_rest(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    missing = (RATES, "createIndex")
    uri = server.user(database, without(role("setup", database), *missing))

    result = run("init", "--features", uri=uri)

    assert (result.returncode, result.stderr) == (0, "")
    assert SETUP[missing] in result.stdout
    assert "streamqueue_slots" in look.jobs.index_information()


# producer


def test_a_producer_puts_jobs_in_every_way(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    uri = server.user(database, role("producer", database))

    with MongoClient[dict[str, Any]](uri) as client:
        queue = MongoQueue(client[database].jobs)
        queue.put({"n": 1}, delay=60, key="k")
        queue.put_many([{"n": n} for n in range(1000)])
        with client.start_session() as session, session.start_transaction():
            queue.put({"n": 2}, session=session)
    result = run("put", "{}", uri=uri)

    assert result.returncode == 0
    assert look.jobs.count_documents({}) == 1003


def test_a_producer_without_insert_is_refused(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    uri = server.user(database, without(role("producer", database), JOBS, "insert"))

    result = run("put", '{"card": "4111-1111"}', uri=uri)

    assert result.returncode == 1
    assert PRODUCER[JOBS, "insert"] in result.stderr
    assert says_one_sentence(result.stderr)
    assert "4111" not in result.stderr
    assert look.jobs.count_documents({}) == 0


def test_a_producer_without_list_indexes_puts_what_has_no_key(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    missing = (JOBS, "listIndexes")
    run("init", "--features", uri=server.user(database, role("setup", database)))
    uri = server.user(database, without(role("producer", database), *missing))

    with MongoClient[dict[str, Any]](uri) as client:
        queue = MongoQueue(client[database].jobs)
        queue.put({"n": 1})
        with pytest.raises(ConfigurationError, match=PRODUCER[missing]):
            queue.put({"n": 2}, key="k")

    assert [job["payload"] for job in look.jobs.find()] == [{"n": 1}]


def test_a_producer_uses_no_key_before_anybody_made_the_indexes(
    server: SecuredServer, look: Database[Any], producer: MongoQueue
) -> None:
    producer.put({"n": 1})

    with pytest.raises(ConfigurationError, match="`streamqueue init`"):
        producer.put({"n": 2}, key="k")

    assert [job["payload"] for job in look.jobs.find()] == [{"n": 1}]


def test_a_producer_learns_that_a_key_is_taken_though_not_by_whom(
    server: SecuredServer, database: str, producer: MongoQueue, run: Run
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    producer.put({}, key="k")

    with pytest.raises(DuplicateJob) as raised:
        producer.put({}, key="k")

    assert raised.value.job_id is None


def test_an_async_producer_learns_it_too(server: SecuredServer, database: str, run: Run) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    uri = server.user(database, role("producer", database))

    async def main() -> None:
        async with AsyncMongoClient[dict[str, Any]](uri) as client:
            queue = AsyncMongoQueue(client[database].jobs)
            await queue.put({}, key="k")
            with pytest.raises(DuplicateJob):
                await queue.put({}, key="k")

    anyio.run(main)


def test_a_producer_that_repeats_a_put_is_told_so_by_the_server(producer: MongoQueue) -> None:
    job_id = producer.put({"n": 1})

    with pytest.raises(DuplicateKeyError):
        producer.put({"n": 1}, job_id=job_id)


def test_with_find_a_producer_may_repeat_a_put(server: SecuredServer, database: str) -> None:
    shipped = role("producer", database)
    shipped["privileges"][0]["actions"].append("find")

    with MongoClient[dict[str, Any]](server.user(database, shipped)) as client:
        queue = MongoQueue(client[database].jobs)
        job_id = queue.put({"n": 1})

        assert queue.put({"n": 1}, job_id=job_id) == job_id


@pytest.mark.parametrize("on_conflict", ["skip", "replace", "earlier"])
def test_with_find_and_update_a_producer_finds_or_changes_what_has_its_key(
    server: SecuredServer, database: str, run: Run, on_conflict: Any
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    shipped = role("producer", database)
    shipped["privileges"][0]["actions"] += ["find", "update"]

    with MongoClient[dict[str, Any]](server.user(database, shipped)) as client:
        queue = MongoQueue(client[database].jobs)
        job_id = queue.put({"n": 1}, key="k", on_conflict=on_conflict)
        again = queue.put({"n": 1}, key="k", on_conflict=on_conflict)
        many = queue.put_many([{}], keys=["k"], on_conflict=on_conflict)

    assert [again, *many] == [job_id, job_id]


def test_a_producer_that_may_only_insert_is_refused_what_would_change_a_job(
    server: SecuredServer, database: str, run: Run
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    uri = server.user(database, role("producer", database))

    refused = run("put", "{}", "--key", "k", "--on-conflict", "skip", uri=uri)

    assert refused.returncode == 1
    assert says_one_sentence(refused.stderr)
    assert "needs find, insert and update on the jobs" in refused.stderr


def test_what_a_refused_producer_is_told_does_not_quote_the_payload(
    server: SecuredServer, database: str, run: Run
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    uri = server.user(database, role("producer", database))
    secret = secrets.token_hex()

    with MongoClient[dict[str, Any]](uri) as client:
        queue = MongoQueue(client[database].jobs)
        with pytest.raises(OperationFailure, match="needs find, insert and update") as one:
            queue.put({"card": secret}, key="k", on_conflict="skip")
        with pytest.raises(OperationFailure, match="needs find, insert and update") as many:
            queue.put_many([{"card": secret}], keys=["k"], on_conflict="skip")

    for refused in (one, many):
        assert refused.value.code == UNAUTHORIZED
        assert secret not in "".join(format_exception(refused.value))


def test_a_producer_that_may_only_insert_is_told_what_it_takes_to_come_after_others(
    server: SecuredServer, database: str, run: Run
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    uri = server.user(database, role("producer", database))
    secret = secrets.token_hex()

    with MongoClient[dict[str, Any]](uri) as client:
        queue = MongoQueue(client[database].jobs)
        parent = queue.put({})
        with pytest.raises(OperationFailure, match=r"after=, .* needs find, insert and") as one:
            queue.put({"card": secret}, after=[parent])
        with pytest.raises(OperationFailure, match=r"after=, .* needs find, insert and") as many:
            queue.put_many([NewJob({"card": secret}, after=[parent])])

    for refused in (one, many):
        assert refused.value.code == UNAUTHORIZED
        assert secret not in "".join(format_exception(refused.value))


def test_with_find_and_update_a_producer_puts_what_comes_after_others(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    shipped = role("producer", database)
    shipped["privileges"][0]["actions"] += ["find", "update"]

    with MongoClient[dict[str, Any]](server.user(database, shipped)) as client:
        queue = MongoQueue(client[database].jobs)
        parent = queue.put({})
        dependent = queue.put({}, after=[parent])

    found = look.jobs.find_one({"_id": dependent})
    assert found is not None
    assert found["waits_for"] == {"parents": parent}


# publisher


@pytest.fixture
def subscribed(server: SecuredServer, database: str) -> Topic:
    """The topic ``orders`` as an administrator sees it; a queue subscribes."""
    topic = Topic(server.client[database].jobs, "orders")
    topic.subscribe("mails")
    return topic


def test_a_publisher_publishes_in_every_way(
    server: SecuredServer, database: str, look: Database[Any], subscribed: Topic, run: Run
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    uri = server.user(database, role("publisher", database))

    with MongoClient[dict[str, Any]](uri) as client:
        topic = Topic(client[database].jobs, "orders")
        topic.publish({"n": 1}, key="k", keep=60)
        with client.start_session() as session, session.start_transaction():
            topic.publish({"n": 2}, session=session)
        MongoQueue(client[database].jobs, name="mails").put({"n": 3})
        with pytest.raises(OperationFailure, match="not authorized"):
            topic.subscribe("billing")
    result = run("topic", "publish", subscribed.name, "{}", uri=uri)

    assert (result.returncode, result.stderr) == (0, "")
    assert look.jobs.count_documents({"queue": "mails"}) == 4


@pytest.mark.parametrize("missing", PUBLISHER, ids=" ".join)
def test_a_publisher_without_an_action_puts_nothing(
    server: SecuredServer,
    database: str,
    look: Database[Any],
    subscribed: Topic,
    run: Run,
    missing: tuple[str, str],
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    uri = server.user(database, without(role("publisher", database), *missing))
    key = ["--key", "k"] if missing[1] == "listIndexes" else []

    result = run("topic", "publish", subscribed.name, '{"card": "4111-1111"}', *key, uri=uri)

    assert result.returncode != 0
    assert missing[1] in result.stderr
    assert says_one_sentence(result.stderr)
    assert "4111" not in result.stderr
    assert look.jobs.count_documents({}) == 0


def test_an_operator_says_who_subscribes(
    server: SecuredServer, database: str, subscribed: Topic, run: Run
) -> None:
    uri = server.user(database, role("operator", database))

    for command in ("subscribe orders billing", "unsubscribe orders mails", "list"):
        result = run("topic", *command.split(), uri=uri)
        assert (result.returncode, result.stderr) == (0, ""), command

    assert subscribed.subscribers() == ["billing"]


# consumer


def put_every_kind(look: Database[Any], producer: MongoQueue) -> None:
    """Put one job of each kind; a dead consumer held one, and another program inserted one."""
    producer.put({"kind": "plain"})
    producer.put({"kind": "retried"})
    producer.put({"kind": "discarded"})
    producer.put({"kind": "delayed"}, delay=0.3)
    foreign = {"queue": "default", "state": "ready", "payload": {"kind": "foreign"}}
    look.jobs.insert_one(foreign)
    stale = {"state": "running", "attempts": 1, "payload": {"kind": "stale"}, "_id": ObjectId()}
    look.jobs.insert_one(foreign | stale)


def every_kind_is_done(look: Database[Any]) -> bool:
    return [job["payload"]["kind"] for job in look.jobs.find()] == ["discarded"]


def test_a_worker_with_the_consumer_role_handles_jobs_of_every_kind(
    server: SecuredServer,
    database: str,
    look: Database[Any],
    producer: MongoQueue,
    run: Run,
    spawn: Spawn,
) -> None:
    run("init", "--features", uri=server.user(database, role("setup", database)))
    worker = spawn(server.user(database, role("consumer", database)))

    put_every_kind(look, producer)

    wait_until(lambda: every_kind_is_done(look), "only the dead one is left")
    assert worker.stop() == 0
    assert sorted(worker.handled) == sorted(
        ["plain 1", "retried 1", "retried 2", "discarded 1", "delayed 1", "stale 2", "foreign 1"]
    )
    assert "Unauthorized" not in worker.log
    assert "without regard" not in worker.log
    assert list(look[CONSUMERS].find()) == []


def test_a_worker_with_the_consumer_role_works_before_anybody_made_the_indexes(
    server: SecuredServer, database: str, look: Database[Any], producer: MongoQueue, spawn: Spawn
) -> None:
    worker = spawn(server.user(database, role("consumer", database)))

    producer.put({"kind": "plain"})

    wait_until(lambda: worker.handled == ["plain 1"], "the job is handled")
    assert list(look.jobs.index_information()) == ["_id_"]


@pytest.mark.parametrize("action", ["find", "update", "remove", "changeStream"])
def test_a_worker_that_may_not_do_its_work_does_not_start(
    server: SecuredServer,
    database: str,
    look: Database[Any],
    producer: MongoQueue,
    spawn: Spawn,
    action: str,
) -> None:
    producer.put({"kind": "plain"})

    worker = spawn(server.user(database, without(role("consumer", database), JOBS, action)))

    assert worker.process.wait(20) == 1
    assert CONSUMER[JOBS, action] in worker.log
    assert says_one_sentence(worker.log)
    assert worker.handled == []


@pytest.mark.parametrize("action", ["find", "insert", "update"])
def test_a_worker_that_may_not_keep_the_list_races_as_if_alone_and_says_so(
    server: SecuredServer,
    database: str,
    look: Database[Any],
    producer: MongoQueue,
    spawn: Spawn,
    action: str,
) -> None:
    worker = spawn(server.user(database, without(role("consumer", database), CONSUMERS, action)))

    put_every_kind(look, producer)

    wait_until(lambda: every_kind_is_done(look), "only the dead one is left")
    assert worker.log.count(CONSUMER[CONSUMERS, action]) == 1


def test_a_worker_that_may_not_leave_the_list_stays_on_it(
    server: SecuredServer, database: str, look: Database[Any], producer: MongoQueue, spawn: Spawn
) -> None:
    worker = spawn(server.user(database, without(role("consumer", database), CONSUMERS, "remove")))
    put_every_kind(look, producer)
    wait_until(lambda: every_kind_is_done(look), "only the dead one is left")

    assert worker.stop() == 0

    assert len(list(look[CONSUMERS].find())) == 1
    assert "without regard" not in worker.log


def test_the_consumer_role_is_enough_to_see_to_dead_and_stale_jobs(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    uri = server.user(database, role("consumer", database))
    dead = {"queue": "default", "state": "dead", "payload": {}}
    look.jobs.insert_many([dead, dict(dead), {**dead, "state": "running"}])

    one = str(look.jobs.find_one({"state": "dead"})["_id"])  # type: ignore[index]
    for command in (
        ["reap"],
        ["dead", "list"],
        ["dead", "requeue", one],
        ["dead", "purge", "--yes"],
    ):
        result = run(*command, uri=uri)

        assert (result.returncode, result.stderr) == (0, ""), command

    assert [job["state"] for job in look.jobs.find()] == ["ready", "ready"]


def test_a_worker_that_may_not_read_the_settings_works_on_paused_queues_and_says_so_once(
    server: SecuredServer, database: str, look: Database[Any], producer: MongoQueue, spawn: Spawn
) -> None:
    MongoQueue(look.jobs).pause()
    worker = spawn(server.user(database, without(role("consumer", database), SETTINGS, "find")))

    for _ in range(2):
        producer.put({"kind": "plain"})

    wait_until(lambda: worker.handled == ["plain 1"] * 2, "the jobs are handled")
    assert worker.log.count(CONSUMER[SETTINGS, "find"]) == 1


def test_a_worker_with_the_consumer_role_obeys_a_pause(
    server: SecuredServer, database: str, look: Database[Any], producer: MongoQueue, spawn: Spawn
) -> None:
    queue = MongoQueue(look.jobs)
    queue.pause()
    worker = spawn(server.user(database, role("consumer", database)))
    wait_until(lambda: "is paused" in worker.log, "it knows")

    producer.put({"kind": "plain"})
    queue.resume()

    wait_until(lambda: worker.handled == ["plain 1"], "the job is handled")
    assert CONSUMER[SETTINGS, "find"] not in worker.log


@pytest.mark.parametrize(
    "missing", [None, *(right for right in CONSUMER if right[0] == RATES)], ids=str
)
def test_a_consumer_reserves_starts_with_its_role_and_says_so_without(
    server: SecuredServer,
    database: str,
    caplog: pytest.LogCaptureFixture,
    missing: tuple[str, str] | None,
) -> None:
    rights = role("consumer", database)
    if missing is not None:
        rights = without(rights, *missing)
    refused: AbstractContextManager[object] = nullcontext()
    if missing is not None and missing[1] != "createIndex":
        refused = pytest.raises(OperationFailure, match="not authorized")
    with MongoClient[Any](server.user(database, rights), tz_aware=True) as client:
        store = Store(client[database].jobs)
        for groups in (["g:a"], ["g:a", "g:b"]):
            wanted = {bucket_id("default", group): (Rate(50), 1) for group in groups}
            with refused:
                assert all(one.starts for one in store.reserve(wanted).values())

    said = [] if missing is None else [CONSUMER[missing]]
    assert [text for text in said if caplog.text.count(text) == 1] == said
    assert len(caplog.records) == len(said)


# operator


def test_an_operator_pauses_and_resumes(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    uri = server.user(database, role("operator", database))
    run("init", uri=server.address(database=database))

    states = []
    for command in ("pause", "pause", "resume"):
        result = run(command, uri=uri)
        assert (result.returncode, result.stderr) == (0, ""), command
        states.append(MongoQueue(look.jobs).is_paused())

    assert states == [True, True, False]


@pytest.mark.parametrize("missing", OPERATOR, ids=str)
def test_an_operator_without_a_right_is_refused(
    server: SecuredServer, database: str, missing: tuple[str, str]
) -> None:
    uri = server.user(database, without(role("operator", database), *missing))
    store_declared(server.client[database])

    with (
        MongoClient[dict[str, Any]](uri) as client,
        pytest.raises((OperationFailure, ConfigurationError), match=r"not authorized|no.* see"),
    ):
        operate(client[database], OPERATOR[missing])


def operate(database: Database[Any], call: str) -> None:
    """Pause the default queue, or the like, or limit it, or remove a schedule."""
    if call == "remove":
        Schedules(database.jobs).remove("nightly")
    elif call == "limit":
        MongoQueue(database.jobs).limit(running=3)
    else:
        getattr(MongoQueue(database.jobs), call)()


def test_an_operator_sets_limits_where_the_indexes_are(
    server: SecuredServer, database: str, look: Database[Any], run: Run
) -> None:
    uri = server.user(database, role("operator", database))
    assert run("limit", "--running", "3", uri=uri).returncode == 2
    assert run("init", "--features", uri=server.address(database=database)).returncode == 0

    result = run("limit", "--running", "3", "--rate", "50/s", "--per", "group", uri=uri)

    assert (result.returncode, result.stderr) == (0, "")
    assert "3 (set)" in result.stdout


def store_declared(database: Database[Any]) -> None:
    """Store a schedule as a worker does that is gone by now."""
    schedule = check_schedule("nightly", "default", check_rule(None, 3600), put={})
    database[SETTINGS].update_one(*declare(schedule, "code", "host:1:a", None), upsert=True)


def test_an_operator_adds_changes_runs_and_removes_schedules(
    server: SecuredServer, database: str, look: Database[Any]
) -> None:
    store_declared(look)
    with MongoClient[dict[str, Any]](server.user(database, role("operator", database))) as client:
        schedules = Schedules(client[database].jobs)
        schedules.add("s", every=60)
        schedules.pause("s")
        schedules.resume("s")
        schedules.run_now("s")
        listed = [info.name for info in schedules.list()]
        schedules.remove("s")
        schedules.remove("nightly")

        assert listed == ["nightly", "s"]
        assert schedules.list() == []


# scheduler


@pytest.mark.parametrize("missing", [None, *SCHEDULER], ids=str)
async def test_a_worker_fires_schedules_with_its_role_and_says_so_without(
    server: SecuredServer,
    database: str,
    look: Database[Any],
    caplog: pytest.LogCaptureFixture,
    missing: tuple[str, str] | None,
) -> None:
    scheduler = role("scheduler", database)
    if missing is not None:
        scheduler = without(scheduler, *missing)
    roles = (role("consumer", database), role("producer", database), scheduler)
    ran = anyio.Event()
    async with AsyncMongoClient[dict[str, Any]](server.user(database, *roles)) as client:
        worker = Worker(client[database].jobs, registry=CollectorRegistry())

        @worker.schedule(every=1)
        @worker.handler("default")
        async def handler(job: AsyncJob) -> None:
            ran.set()

        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(worker.run, handle_signals=False))
            if missing is None:
                with anyio.fail_after(10):
                    await ran.wait()
            else:
                await wait_until_async(lambda: "No schedule is fired" in caplog.text, "it says so")
            worker.stop()

    assert ran.is_set() == (missing is None)


@pytest.mark.few(3)
@pytest.mark.parametrize("missing", [None, (JOBS, "listIndexes"), *SCHEDULER], ids=str)
async def test_a_worker_stores_its_limits_with_these_roles_and_does_not_start_without(
    server: SecuredServer,
    database: str,
    look: Database[Any],
    run: Run,
    missing: tuple[str, str] | None,
) -> None:
    assert run("init", "--features", uri=server.address(database=database)).returncode == 0
    roles = [role(name, database) for name in ("consumer", "producer", "scheduler")]
    if missing is not None:
        roles = [without(one, *missing) for one in roles]
    async with AsyncMongoClient[dict[str, Any]](server.user(database, *roles)) as client:
        worker = Worker(client[database].jobs, registry=CollectorRegistry())
        worker.handler("default", limits=Limit(running=3))(no_job)

        if missing is not None:
            with pytest.raises(ConfigurationError, match=r"listIndexes|streamqueueScheduler"):
                await worker.run(handle_signals=False)
        else:
            async with anyio.create_task_group() as tasks:
                await tasks.start(partial(worker.run, handle_signals=False))
                worker.stop()

    stored = look[SETTINGS].find_one({"_id": "default"})
    assert (stored is not None) == (missing is None)


async def no_job(job: AsyncJob) -> None:
    raise AssertionError


# exporter


SHOWN = {
    (JOBS, "find"): "streamqueue_queue_jobs",
    (CONSUMERS, "find"): "streamqueue_queue_consumers",
    (SETTINGS, "find"): "streamqueue_paused",
    (RATES, "find"): "streamqueue_queue_limit_saturated",
    (OPLOG, "find"): "streamqueue_oplog_window_seconds",
}
"""A series that each action is for; of the limits, which are settings, there is none either without
those."""


async def export(uri: str, database: str) -> set[str]:
    """Count the queues as the exporter does; return the names of what it then shows."""
    registry = CollectorRegistry()
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        exporter = Exporter(AsyncStore(client[database].jobs), registry)
        await exporter.take()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exporter.run)
            await wait_until_async(lambda: list(registry.collect()), "it shows something")
            shown = {sample.name for family in registry.collect() for sample in family.samples}
            tasks.cancel_scope.cancel()
    return shown


@pytest.fixture
def something_to_count(look: Database[Any], producer: MongoQueue) -> None:
    producer.put({"kind": "plain"})
    MongoQueue(look.jobs).limit(rate=5)


@pytest.mark.parametrize("name", ["consumer", "exporter"])
def test_who_may_read_looks_at_jobs_and_waits_for_those_that_are_kept(
    server: SecuredServer, database: str, look: Database[Any], name: str
) -> None:
    """The exporter's role with ``changeStream``, which it does without."""
    rights = role(name, database)
    rights["privileges"][0]["actions"] = sorted(
        {*rights["privileges"][0]["actions"], "changeStream"}
    )
    job_id = MongoQueue(look.jobs).put({"n": 1}, max_attempts=1)

    with (
        MongoClient[dict[str, Any]](server.user(database, rights)) as client,
        MongoQueue(client[database].jobs) as queue,
        ThreadPoolExecutor(1) as threads,
    ):
        assert (queue.get(job_id).id, len(queue.list())) == (job_id, 1)
        told = threads.submit(queue.wait, job_id, 20)
        wait_until(lambda: awaited_streams(look.jobs), "the stream is read")
        look.jobs.update_one({"_id": job_id}, {"$set": {"state": "dead", "awaited": False}})
        assert told.result().state == "dead"


@pytest.mark.usefixtures("something_to_count")
async def test_the_exporter_reads_the_jobs_and_the_consumers_and_no_write_of_others(
    server: SecuredServer, database: str, run: Run
) -> None:
    uri = server.user(database, role("exporter", database))

    shown = await export(uri, database)

    assert set(SHOWN.values()) - shown == {SHOWN[OPLOG, "find"]}
    for command in (["stats"], ["dead", "list"], ["consumers"], ["top", "--once"]):
        result = await to_thread.run_sync(partial(run, *command, uri=uri))
        # `top` has no right to the stream, and says so where it would say that it is open.
        assert (result.returncode, result.stderr) == (0, ""), command


@pytest.mark.usefixtures("something_to_count")
@pytest.mark.parametrize("name", ["exporter", "consumer"])
async def test_who_has_the_role_of_the_oplog_as_well_shows_its_window(
    server: SecuredServer, database: str, name: str
) -> None:
    uri = server.user(database, role(name, database), role("oplog-window", database))

    assert set(SHOWN.values()) <= await export(uri, database)


@pytest.mark.usefixtures("something_to_count")
async def test_an_exporter_without_the_role_of_the_oplog_says_so_once(
    server: SecuredServer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    uri = server.user(database, role("exporter", database))

    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        exporter = Exporter(AsyncStore(client[database].jobs), CollectorRegistry())
        with caplog.at_level("INFO", "streamqueue.census"):
            await exporter.take()
            await exporter.take()

    assert [record.getMessage() for record in caplog.records] == [
        "No right to read local.oplog.rs: the window of the oplog is left out"
    ]


@pytest.mark.usefixtures("something_to_count")
async def test_a_leader_needs_no_more_than_the_consumer_role(
    server: SecuredServer, database: str
) -> None:
    shown = await export(server.user(database, role("consumer", database)), database)

    assert set(SHOWN.values()) - shown == {SHOWN[OPLOG, "find"]}


@pytest.mark.slow
@pytest.mark.usefixtures("something_to_count")
@pytest.mark.parametrize(
    ("name", "added", "stream"),
    [
        ("exporter", [], "broken (refused)"),
        ("exporter", ["changeStream"], "open"),
        ("consumer", [], "open"),
    ],
)
def test_top_shows_rates_to_who_may_open_a_change_stream(
    server: SecuredServer, database: str, run: Run, name: str, added: list[str], stream: str
) -> None:
    granted = role(name, database)
    granted["privileges"][0]["actions"].extend(added)

    result = run("top", "--once", uri=server.user(database, granted))

    assert (result.returncode, result.stderr) == (0, "")
    assert f"stream {stream}" in result.stdout


@pytest.mark.usefixtures("something_to_count")
@pytest.mark.parametrize(
    ("missing", "more"),
    [((CONSUMERS, "find"), set()), ((SETTINGS, "find"), {RATES}), ((RATES, "find"), set())],
    ids=str,
)
async def test_an_exporter_without_a_right_leaves_out_what_that_is_for_and_nothing_else(
    server: SecuredServer, database: str, missing: tuple[str, str], more: set[str]
) -> None:
    shipped = without(role("exporter", database), *missing)
    uri = server.user(database, shipped, role("oplog-window", database))

    shown = await export(uri, database)

    left_out = {SHOWN[missing], *(SHOWN[collection, "find"] for collection in more)}
    assert set(SHOWN.values()) - shown == left_out


@pytest.mark.usefixtures("something_to_count")
def test_who_may_not_read_the_list_of_consumers_is_told_so_and_used_the_command_rightly(
    server: SecuredServer, database: str, run: Run
) -> None:
    uri = server.user(database, without(role("exporter", database), CONSUMERS, "find"))

    result = run("consumers", uri=uri)

    assert result.returncode == 1
    assert says_one_sentence(result.stderr)


@pytest.mark.usefixtures("something_to_count")
def test_an_exporter_that_may_not_read_the_jobs_says_so_and_ends(
    server: SecuredServer, database: str, run: Run
) -> None:
    uri = server.user(database, without(role("exporter", database), JOBS, "find"))

    result = run("exporter", "--metrics-port", "0", "--log-level", "ERROR", uri=uri)

    assert result.returncode == 1
    assert says_one_sentence(result.stderr)
    assert "not authorized" in result.stderr
    assert "deploy/mongodb" in result.stderr


# what they may not


@pytest.mark.few(6)
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("producer", lambda jobs: jobs.find_one()),
        ("producer", lambda jobs: jobs.delete_one({})),
        ("consumer", lambda jobs: jobs.insert_one({})),
        ("consumer", lambda jobs: jobs.drop()),
        ("consumer", lambda jobs: MongoQueue(jobs).pause()),
        ("producer", lambda jobs: MongoQueue(jobs).pause()),
        ("producer", lambda jobs: MongoQueue(jobs).is_paused()),
        ("exporter", lambda jobs: MongoQueue(jobs).resume()),
        ("operator", lambda jobs: jobs.find_one()),
        ("operator", lambda jobs: jobs.delete_one({})),
        ("consumer", lambda jobs: jobs.database.other.find_one()),
        ("exporter", lambda jobs: jobs.update_one({}, {"$set": {"state": "dead"}})),
        ("exporter", lambda jobs: jobs.database.other.find_one()),
        ("exporter", lambda jobs: jobs.database.client.local["oplog.rs"].find_one()),
        ("consumer", lambda jobs: jobs.database.client.local["oplog.rs"].find_one()),
        ("consumer", lambda jobs: jobs.create_index("n")),
        ("consumer", lambda jobs: jobs.database[SETTINGS].update_one({}, {"$set": {"n": 1}})),
        ("consumer", lambda jobs: jobs.database[RATES].delete_one({})),
        ("consumer", lambda jobs: jobs.database[RATES].drop()),
        ("oplog-window", lambda jobs: jobs.find_one()),
        ("setup", lambda jobs: jobs.find_one()),
        ("setup", lambda jobs: jobs.drop()),
    ],
)
def test_a_role_allows_nothing_that_it_is_not_for(
    server: SecuredServer, database: str, name: str, what: Any
) -> None:
    with (
        MongoClient[dict[str, Any]](server.user(database, role(name, database))) as client,
        pytest.raises(OperationFailure) as raised,
    ):
        what(client[database].jobs)

    assert raised.value.code == UNAUTHORIZED


def test_a_wrong_password_is_one_sentence(server: SecuredServer, run: Run, spawn: Spawn) -> None:
    uri = server.address(password="wrong")

    result, worker = run("stats", uri=uri), spawn(uri)

    assert result.returncode == worker.process.wait(20) == 1
    for text in (result.stderr, worker.log):
        assert "refused the user or password" in text
        assert says_one_sentence(text)


def test_a_rotated_password_is_asked_for_by_new_connections_alone(
    server: SecuredServer, database: str, producer: MongoQueue, spawn: Spawn
) -> None:
    """What the runbook says: nothing at first, and a sentence from whoever starts anew."""
    uri = server.user(database, role("consumer", database))
    name = parse_uri(uri)["username"]
    worker = spawn(uri)
    producer.put({"kind": "plain"})
    wait_until(lambda: worker.handled == ["plain 1"], "it has its connections")

    server.client.admin.command("updateUser", name, pwd="another")
    producer.put({"kind": "plain"})

    wait_until(lambda: worker.handled == ["plain 1"] * 2, "it works on")
    late = spawn(uri)
    assert late.process.wait(20) == 1
    assert "refused the user or password" in late.log
    renewed = spawn(server.address(name, "another", database=database))
    assert not renewed.ended
