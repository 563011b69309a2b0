"""The ``streamqueue`` command.

Options come from the command line or from ``STREAMQUEUE_*`` variables (``--uri`` from
``STREAMQUEUE_URI``). Exit codes: 0 fine, 1 failed, 2 wrong usage. A person gets one sentence, never
a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pymongo.errors
from prometheus_client import disable_created_metrics
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from . import __version__, operations
from .diagnosis import explain, hide_password
from .document import INDEXES, VALIDATOR
from .errors import ConfigurationError, ReplicaSetRequired, StreamQueueError
from .options import QueueOptions
from .queue import MongoQueue
from .server import DEFAULT_COLLECTION, check_hello, object_id
from .store import Store
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bson import ObjectId
    from pymongo.synchronous.database import Database

FINE, FAILED, WRONG_USAGE = 0, 1, 2
PUT_BATCH = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=getattr(options, "log_level", "WARNING"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # What pymongo logs of a lost server repeats what we say in one sentence.
    logging.getLogger("pymongo").setLevel(logging.CRITICAL)
    try:
        return int(options.run(options) or FINE)
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except StreamQueueError as error:
        _complain(str(error))
        usage = isinstance(error, ConfigurationError) and not isinstance(error, ReplicaSetRequired)
        return WRONG_USAGE if usage else FAILED
    except PyMongoError as error:
        sentence, usage = explain(error, getattr(options, "uri", None))
        _complain(sentence)
        return WRONG_USAGE if usage else FAILED


def _complain(sentence: str) -> None:
    print(f"streamqueue: {hide_password(sentence)}", file=sys.stderr)


# the options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamqueue",
        description="A job queue on MongoDB: put, wake on a change stream, claim, complete.",
        epilog="Every option can be given as a variable: --uri as STREAMQUEUE_URI, and so on.",
    )
    parser.add_argument("--version", action="version", version=f"streamqueue {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, *parents: argparse.ArgumentParser) -> Any:
        added = commands.add_parser(name, help=text, description=text, parents=parents)
        added.set_defaults(run=run)
        return added

    where, which, form = _where_options(), _queue_option(), _form_option()

    demo = command("demo", _demo, "Show jobs flow, kill a consumer, and account for every job.")
    _setting(demo, "--uri", metavar="URI", help="a replica set to use instead of a local one")
    _setting(demo, "--jobs", type=_whole, default=2000, help="jobs in the flow; default 2000")
    _setting(demo, "--json", action="store_true", help="print the account as JSON")

    server = command("server", _server, "Run a local one-node replica set, for trying things out.")
    _setting(server, "--port", type=_whole, help="default: any free port")
    _setting(server, "--data-dir", metavar="DIR", help="keep the data here; default: a new folder")

    bench = command("bench", _bench, "Measure the queue against what this server permits.")
    bench.add_argument("parts", nargs="*", metavar="PART", help="default: all, the quick version")
    _setting(bench, "--uri", metavar="URI", help="a replica set to use instead of a local one")
    _setting(bench, "--rounds", type=_whole, help="default 3, with --full 5")
    _setting(bench, "--jobs", type=_whole, help="jobs in one measurement; default: by part")
    _setting(bench, "--big", type=_whole, help="a deep queue; default 100000, with --full 1000000")
    _setting(bench, "--max-processes", type=_whole, default=16, help="consumers; default 16")
    _setting(bench, "--full", action="store_true", help="the long version")
    _setting(bench, "--json", action="store_true", help="print JSON, for scripts")

    init = command("init", _init, "Create the indexes and check the server.", where)
    _setting(
        init,
        "--validator",
        action="store_true",
        help="also make the server refuse documents that are not jobs",
    )

    worker = command("worker", _worker, "Run the handlers of a worker until SIGTERM or Ctrl-C.")
    worker.add_argument("worker", metavar="MODULE:WORKER", help="a Worker, or what returns one")
    _setting(
        worker,
        "--metrics-port",
        type=_whole,
        help="serve /metrics, /healthz and /readyz on this port; default: not served",
    )
    _setting(
        worker, "--metrics-host", default="127.0.0.1", help="and this address; default 127.0.0.1"
    )
    _setting(
        worker,
        "--log-level",
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="default INFO",
    )

    put = command("put", _put, "Put jobs in the queue.", where, which, form)
    put.add_argument(
        "payload", nargs="*", help="JSON objects; none, or '-', reads one per line from stdin"
    )
    put.add_argument("--priority", type=int, help="higher runs first; default 0")
    put.add_argument("--delay", type=float, metavar="SECONDS", help="until it is ready; default 0")
    put.add_argument("--key", help="at most one live job has it")
    put.add_argument("--max-attempts", type=int, help="default 3")

    command("stats", _stats, "Count the jobs of the queue.", where, which, form)
    command("reap", _reap, "Return every job whose lease has run out, of all queues.", where, form)

    dead = commands.add_parser("dead", help="List, requeue or purge the dead jobs of the queue.")
    acts = dead.add_subparsers(title="actions", required=True, metavar="ACTION")
    parents = [where, which, form]
    listing = acts.add_parser("list", help="the dead jobs, latest first", parents=parents)
    listing.add_argument("--limit", type=_whole, default=20, help="default 20")
    listing.set_defaults(run=_dead_list)
    requeue = acts.add_parser("requeue", help="make dead jobs ready again", parents=parents)
    requeue.add_argument("job_id", nargs="?", metavar="ID", help="default: all of them")
    requeue.set_defaults(run=_dead_requeue)
    purge = acts.add_parser("purge", help="remove the dead jobs for good", parents=parents)
    purge.set_defaults(run=_dead_purge)
    return parser


def _setting(parser: Any, flag: str, **keywords: Any) -> None:
    """Add an option whose default is taken from its variable."""
    variable = "STREAMQUEUE_" + flag.lstrip("-").replace("-", "_").upper()
    value = os.environ.get(variable)
    if value is not None:
        # argparse converts and checks a default that is a string as if it had been typed.
        action = keywords.get("action")
        keywords["default"] = value.lower() in ("1", "true", "yes") if action else value
    parser.add_argument(flag, **keywords)


def _where_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    _setting(
        parser,
        "--uri",
        metavar="URI",
        help="mongodb://host/database?replicaSet=name, with the database in its path",
    )
    _setting(
        parser,
        "--collection",
        metavar="NAME",
        default=DEFAULT_COLLECTION,
        help=f"default {DEFAULT_COLLECTION}",
    )
    return parser


def _queue_option() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    _setting(parser, "--queue", metavar="NAME", default="default", help="default: default")
    return parser


def _form_option() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    _setting(parser, "--json", action="store_true", help="print JSON, for scripts")
    return parser


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


# the connection


@contextmanager
def _database(options: argparse.Namespace) -> Iterator[Database[Any]]:
    if not options.uri:
        raise ConfigurationError(
            "which MongoDB? give --uri mongodb://host/database?replicaSet=name, or set "
            "STREAMQUEUE_URI (for a local one, run `streamqueue server`)"
        )
    settings: dict[str, Any] = {"appname": "streamqueue-cli", "tz_aware": True}
    if "serverselectiontimeoutms" not in options.uri.lower():
        settings["serverSelectionTimeoutMS"] = 5000  # a person waits; pymongo's default is 30 s
    with MongoClient[dict[str, Any]](options.uri, **settings) as client:
        try:
            database = client.get_default_database()
        except pymongo.errors.ConfigurationError:
            raise ConfigurationError(
                "the URI names no database: put it in the path, as in mongodb://host/shop"
            ) from None
        yield database


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


def _demo(options: argparse.Namespace) -> int:
    from .demo import run  # it brings what only it needs

    return run(options.uri, jobs=options.jobs, as_json=options.json)


def _server(options: argparse.Namespace) -> None:
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


def _bench(options: argparse.Namespace) -> int:
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


def _init(options: argparse.Namespace) -> None:
    with _database(options) as database:
        check_hello(database.client.admin.command("hello"))
        jobs = database[options.collection]
        before = jobs.index_information()
        names = jobs.create_indexes(INDEXES)
        new = [name for name in names if name not in before]
        print(f"{database.name}.{options.collection}: {len(names)} indexes, {len(new)} new")
        if options.validator:
            database.command("collMod", options.collection, validator=VALIDATOR)
            print("validator installed: the server refuses documents that are not jobs")


def _worker(options: argparse.Namespace) -> int:
    worker = _load_worker(options.worker)
    if options.metrics_port is not None:
        worker.metrics_address = (options.metrics_host, options.metrics_port)
    # Half of every counter's lines, and nobody asks for them. Process-wide, so the library itself
    # must not do it.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    anyio.run(worker.run, backend_options={"use_uvloop": _has_uvloop()})
    return FINE


def _load_worker(name: str) -> Worker:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(
            f"name the worker as MODULE:WORKER, such as tasks:worker, not {name!r}"
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise ConfigurationError(
                f"{module_name} needs a module that is missing: {error}"
            ) from error
        raise ConfigurationError(
            f"there is no module {module_name!r} here; run this in the folder that holds it"
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigurationError(f"module {module_name!r} has no {attribute!r}")
    worker = found() if callable(found) and not isinstance(found, Worker) else found
    if not isinstance(worker, Worker):
        raise ConfigurationError(f"{name} is not a streamqueue Worker but {type(worker).__name__}")
    return worker


def _has_uvloop() -> bool:
    try:
        importlib.import_module("uvloop")
    except ImportError:
        return False
    return True


def _put(options: argparse.Namespace) -> None:
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


def _stats(options: argparse.Namespace) -> None:
    with _queue(options) as queue:
        stats = queue.stats()
    _show(options, stats, (f"{name:<10} {count:>10,}" for name, count in stats.items()))


def _reap(options: argparse.Namespace) -> None:
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


def _dead_list(options: argparse.Namespace) -> None:
    with _database(options) as database:
        store = Store(database[options.collection])
        queue = MongoQueue(store.jobs, name=options.queue)
        store.prepare()
        found = store.find(operations.dead(queue.name, options.limit))
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
    _show(options, content, lines if content else ["no dead jobs"])


def _when(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if hasattr(moment, "strftime") else "?"


def _last_line(row: dict[str, Any]) -> str:
    lines = str(row["last_error"] or "no error stored").strip().splitlines()
    return f"{row['attempts']} attempts: {lines[-1][:100]}"


def _dead_requeue(options: argparse.Namespace) -> None:
    job_id = None if options.job_id is None else object_id(options.job_id)
    with _queue(options) as queue:
        count = queue.requeue(job_id)
    _show(options, {"requeued": count}, [f"{count} requeued"])


def _dead_purge(options: argparse.Namespace) -> None:
    with _queue(options) as queue:
        count = queue.drop_max_attempts()
    _show(options, {"purged": count}, [f"{count} purged"])
