"""What each command of ``streamqueue`` does, given its parsed options.

A command prints its result on standard output and returns None, or an exit code of its own. Errors
are raised: the command line makes one sentence of each.
"""

from __future__ import annotations

import importlib
import json
import signal
import socket
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pymongo.errors
from prometheus_client import disable_created_metrics
from pymongo import AsyncMongoClient, MongoClient

from . import observations, operations, tables
from .async_store import AsyncStore
from .census import Surveyor
from .document import INDEXES, VALIDATOR, State
from .errors import ConfigurationError, JobNotFound, StreamQueueError
from .exporter import serve_state
from .flags import LAST_PORT
from .health import Health
from .health_server import MetricsAddress
from .job import last_line
from .loading import NO_DATABASE, load_worker
from .notify import Notifier
from .options import QueueOptions
from .queue import MongoQueue
from .server import check_hello, object_id
from .store import Store
from .worker.processes import DEALER, Processes
from .worker.supervised import run_supervised

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterable, Iterator

    from bson import ObjectId
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.synchronous.database import Database

    from .census import Census

PUT_BATCH = 1000
MOST_NAMED = 3
ANY_PORT = 0


# the connection


@contextmanager
def _database(options: argparse.Namespace) -> Iterator[Database[Any]]:
    if not options.uri:
        raise ConfigurationError(
            "which MongoDB? give --uri mongodb://host/database?replicaSet=name, or set "
            "STREAMQUEUE_URI or STREAMQUEUE_URI_FILE (for a local one, run `streamqueue server`)"
        )
    settings = _client_settings(options, "streamqueue-cli")
    with MongoClient[dict[str, Any]](options.uri, **settings) as client:
        try:
            database = client.get_default_database()
        except pymongo.errors.ConfigurationError:
            raise ConfigurationError(NO_DATABASE) from None
        yield database


def _client_settings(options: argparse.Namespace, app_name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"appname": app_name, "tz_aware": True}
    if "serverselectiontimeoutms" not in options.uri.lower():
        settings["serverSelectionTimeoutMS"] = 5000  # a person waits; pymongo's default is 30 s
    return settings


@asynccontextmanager
async def _async_jobs(
    options: argparse.Namespace, app_name: str
) -> AsyncIterator[AsyncCollection[Any]]:
    """The same with the async client, for what is written for the worker."""
    with _database(options) as database:  # checks the address; nothing is sent yet
        settings = _client_settings(options, app_name)
        async with AsyncMongoClient[dict[str, Any]](options.uri, **settings) as client:
            yield client[database.name][options.collection]


@contextmanager
def _queue(options: argparse.Namespace) -> Iterator[MongoQueue]:
    with _database(options) as database:
        yield MongoQueue(database[options.collection], name=options.queue)


def _show(options: argparse.Namespace, content: Any, lines: Iterable[str]) -> None:
    if options.json:
        print(json.dumps(content, default=str))
    else:
        for line in lines:
            print(line)


# the commands


def demo(options: argparse.Namespace) -> int:
    from .demo import run  # it brings what only it needs

    return run(options.uri, jobs=options.jobs, as_json=options.json)


def server(options: argparse.Namespace) -> None:
    from .embedded import EmbeddedServer

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    with EmbeddedServer(data_dir, port=options.port) as server:
        print(f"MongoDB is running: {server.uri}")
        print("In another terminal:")
        print(f"  export STREAMQUEUE_URI='{server.uri.replace('/?', '/test?')}'")
        print('  streamqueue put \'{"hello": "world"}\' && streamqueue stats')
        print("Ctrl-C stops it.", flush=True)
        stop.wait()


def bench(options: argparse.Namespace) -> int:
    from .bench import run  # it brings what only it needs

    return run(
        options.uri,
        options.parts,
        rounds=options.rounds,
        jobs=options.jobs,
        big=options.big,
        processes=options.max_processes,
        full=options.full,
        as_json=options.json,
    )


def init(options: argparse.Namespace) -> None:
    with _database(options) as database:
        check_hello(database.client.admin.command("hello"))
        # The reply says how many are new: to list them would take one more right.
        made = database.command(
            "createIndexes", options.collection, indexes=[index.document for index in INDEXES]
        )
        replies = made.get("raw", {"": made}).values()  # mongos hands on those of the shards
        new = max(reply["numIndexesAfter"] - reply["numIndexesBefore"] for reply in replies)
        print(f"{database.name}.{options.collection}: {len(INDEXES)} indexes, {new} new")
        if options.validator:
            database.command("collMod", options.collection, validator=VALIDATOR)
            print("validator installed: the server refuses documents that are not jobs")


def worker(options: argparse.Namespace) -> int | None:
    notifier = Notifier.from_environment()  # before the module has a chance to start anything
    if options.processes > 1:
        return _worker_processes(options, notifier)
    number, channel = 0, None
    if options.supervised is not None:
        number, descriptor = options.supervised
        channel = socket.socket(fileno=descriptor)
        channel.set_inheritable(False)  # before the module has a chance to start anything
    worker = load_worker(options.worker)
    options.client = worker.client  # for the sentence when no server answers
    if options.export_state is not None:
        worker.export_state = options.export_state
    address = _metrics_address(options, worker.metrics_address)
    if number != DEALER and address.port is not None and address.port != ANY_PORT:
        address = replace(address, port=address.port + number * options.port_offset)
    worker.metrics_address = address
    if options.export_state == "leader" and address.port is None:
        raise ConfigurationError(
            "--export-state=leader is for --metrics-port: give that too, such as 9464, or nobody "
            "can see what it exports"
        )
    # Half of every counter's lines, and nobody asks for them. Process-wide, so the library itself
    # must not do it.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    notifier.follow(worker.health, f"Working on queues: {', '.join(worker.queues)}")
    run = worker.run
    if channel is not None:
        supervised = worker.dealer() if number == DEALER else worker
        run = partial(run_supervised, supervised, channel)
    anyio.run(run, backend_options={"use_uvloop": _has_uvloop()})
    return None


def _worker_processes(options: argparse.Namespace, notifier: Notifier) -> int:
    arguments = [
        # Everything by name: what is a variable here is one in each process too, and
        # STREAMQUEUE_PROCESSES must not be.
        *(sys.executable, "-m", "streamqueue", "worker", options.worker),
        *("--processes", "1"),
        *("--port-offset", str(options.port_offset)),
        *_metrics_arguments(options),
        *("--log-level", options.log_level),
        *("--log-format", options.log_format),
    ]
    if options.metrics_port is not None:
        _check_ports(options.metrics_port, options.processes, options.port_offset)
    if options.export_state is not None:
        arguments += ["--export-state", options.export_state]

    def command(number: int, descriptor: int) -> list[str]:
        return [*arguments, "--supervised", str(number), str(descriptor)]

    processes = Processes(command, options.processes, deals=True, silence=notifier.watchdog)
    notifier.follow(processes.health, f"{options.processes} processes work on {options.worker}")
    return anyio.run(processes.run)


def _metrics_address(options: argparse.Namespace, own: MetricsAddress) -> MetricsAddress:
    """Return where to serve: as the options say, and what they leave open, as the program does."""
    address = own
    if options.metrics_port is not None:
        address = replace(address, port=options.metrics_port, host=options.metrics_host)
    files = {
        name: getattr(options, f"metrics_{name}")
        for name in ("cert", "key", "client_ca")
        if getattr(options, f"metrics_{name}") is not None
    }
    if files and address.port is None:
        option = f"--metrics-{next(iter(files))}".replace("_", "-")
        raise ConfigurationError(f"{option} is for --metrics-port: give that too, such as 9464")
    return replace(address, **files)


def _metrics_arguments(options: argparse.Namespace) -> Iterator[str]:
    for name in ("host", "port", "cert", "key", "client_ca"):
        value = getattr(options, f"metrics_{name}")
        if value is not None:
            yield from (f"--metrics-{name}".replace("_", "-"), str(value))


def _check_ports(first: int, processes: int, offset: int) -> None:
    if first == ANY_PORT:
        return
    if offset == 0:
        raise ConfigurationError(
            f"with --port-offset 0 all {processes} processes would serve on port {first}: give 1 "
            "or more"
        )
    last = first + (processes - 1) * offset
    if last > LAST_PORT:
        raise ConfigurationError(
            f"{processes} processes from --metrics-port {first} on, {offset} apart, need ports up "
            f"to {last}; there are none above {LAST_PORT}"
        )


def _has_uvloop() -> bool:
    try:
        importlib.import_module("uvloop")
    except ImportError:
        return False
    return True


def exporter(options: argparse.Namespace) -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    address = _metrics_address(options, MetricsAddress())
    health = Health()
    health.not_ready("start", "MongoDB has not answered yet")
    Notifier.from_environment().follow(health, f"Exporting the state of {options.collection}")

    async def run() -> None:
        async with _async_jobs(options, "streamqueue-exporter") as jobs:
            await serve_state(jobs, address, health, interval=options.interval)

    anyio.run(run, backend_options={"use_uvloop": _has_uvloop()})


def consumers(options: argparse.Namespace) -> None:
    async def count() -> Census:
        async with _async_jobs(options, "streamqueue-cli") as jobs:
            store = AsyncStore(jobs)
            await store.prepare()
            return await Surveyor(store, holders=True).take()

    census = anyio.run(count)
    if census.consumers is None:
        raise StreamQueueError(
            f"this user has no right to read the list of consumers: give it find on "
            f"{options.collection}.consumers"
        )
    found = sorted(census.consumers.values(), key=lambda consumer: consumer.name)
    _show(options, [asdict(consumer) for consumer in found], tables.consumers(found))


def top(options: argparse.Namespace) -> None:
    from .top import run

    async def watch() -> None:
        async with _async_jobs(options, "streamqueue-top") as jobs:
            await run(jobs, interval=options.interval, once=options.once, as_json=options.json)

    anyio.run(watch, backend_options={"use_uvloop": _has_uvloop()})


def put(options: argparse.Namespace) -> None:
    settings = {
        "priority": options.priority,
        "delay": options.delay,
        "max_attempts": options.max_attempts,
    }
    from_stdin = options.payload in ([], ["-"])
    lines = sys.stdin if from_stdin else options.payload
    payloads = [_parse(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    if options.key is not None and len(payloads) != 1:
        raise ConfigurationError("--key goes with one job: no two live jobs have the same")
    ids: list[ObjectId] = []
    with _queue(options) as queue:
        if len(payloads) == 1:
            ids.append(queue.put(payloads[0], key=options.key, **settings))
        for start in range(0, len(payloads) if len(payloads) > 1 else 0, PUT_BATCH):
            ids += queue.put_many(payloads[start : start + PUT_BATCH], **settings)
            if sys.stderr.isatty() and len(payloads) > PUT_BATCH:
                print(f"\rput {len(ids):,} of {len(payloads):,}", end="", file=sys.stderr)
    if sys.stderr.isatty() and len(payloads) > PUT_BATCH:
        print(file=sys.stderr)
    texts = [str(job_id) for job_id in ids]
    _show(options, texts, texts if len(texts) <= PUT_BATCH else [f"put {len(texts):,} jobs"])


def _parse(text: str, number: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigurationError(
            f"payload {number} is not JSON ({error}); nothing was put"
        ) from error


def stats(options: argparse.Namespace) -> None:
    with _queue(options) as queue:
        stats = queue.stats()
    _show(options, stats, (f"{name:<10} {count:>10,}" for name, count in stats.items()))


def reap(options: argparse.Namespace) -> None:
    with _database(options) as database:
        store = Store(database[options.collection])
        store.prepare()
        reaped = store.reap(None, lambda _: QueueOptions().max_attempts)
    content = [
        {"queue": queue, "result": result, "jobs": count}
        for (queue, result), count in sorted(reaped.items())
    ]
    lines = [f"{row['queue']}: {row['jobs']} {row['result']}" for row in content]
    _show(options, content, lines or ["nothing to reap"])


def dead_list(options: argparse.Namespace) -> None:
    with _database(options) as database:
        store = Store(database[options.collection])
        queue = MongoQueue(store.jobs, name=options.queue)
        store.prepare()
        found = store.find(operations.dead(queue.name, options.limit))
        nothing = "" if found else _no_dead(store, queue.name)
    content = [
        {
            "id": str(job["_id"]),
            "attempts": job.get("attempts"),
            "finished_at": job.get("finished_at"),
            "last_error": job.get("last_error"),
        }
        for job in found
    ]
    lines = (f"{row['id']}  {_when(row['finished_at'])}  {_last_line(row)}" for row in content)
    _show(options, content, lines if content else [nothing])


def _no_dead(store: Store, queue: str) -> str:
    """Say that a queue has no dead jobs, and which others have: one look at the index for each."""
    others: list[str] = []
    after = ""
    while len(others) <= MOST_NAMED:
        found = store.find(observations.next_queue(State.DEAD, after))
        if not found or not isinstance(found[0]["queue"], str):
            break
        after = found[0]["queue"]
        if after != queue:
            others.append(tables.printable(after))
    if not others:
        return f"no dead jobs in queue {queue}, nor in any other"
    named = ", ".join(others[:MOST_NAMED]) + (", ..." if len(others) > MOST_NAMED else "")
    return f"no dead jobs in queue {queue} (there are some in {named}: --queue {others[0]})"


def _when(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if hasattr(moment, "strftime") else "?"


def _last_line(row: dict[str, Any]) -> str:
    attempts = "1 attempt" if row["attempts"] == 1 else f"{row['attempts']} attempts"
    return f"{attempts}: {tables.printable(last_line(row['last_error'])[:100])}"


def dead_requeue(options: argparse.Namespace) -> None:
    job_id = None if options.job_id is None else object_id(options.job_id)
    with _database(options) as database:
        store = Store(database[options.collection])
        queue = MongoQueue(store.jobs, name=options.queue)
        try:
            count = queue.requeue(job_id)
        except JobNotFound as error:
            raise StreamQueueError(f"no dead job {job_id} in queue {queue.name}") from error
        # Also dead jobs may stay: a live one has the key.
        nothing = not count and not store.find(operations.dead(queue.name, 1))
        line = _no_dead(store, queue.name) if nothing else f"{count} requeued"
    _show(options, {"requeued": count}, [line])


def dead_purge(options: argparse.Namespace) -> None:
    with _queue(options) as queue:
        count = queue.drop_max_attempts()
    _show(options, {"purged": count}, [f"{count} purged"])
