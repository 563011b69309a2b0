"""The ``streamqueue`` command: its options, and how it ends. ``commands.py`` has what it does.

Options come from the command line or from ``STREAMQUEUE_*`` variables (``--uri`` from
``STREAMQUEUE_URI``); the URI also from a file. Exit codes: 0 fine, 1 failed, 2 wrong usage. A
person gets one sentence, never a traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from . import __version__, commands
from .connection import find_uri
from .diagnosis import explain, explain_file, hide_password
from .errors import ConfigurationError, ReplicaSetRequired, StreamQueueError
from .exporter import INTERVAL
from .flags import at_least_one, integer, number, seconds, setting, whole
from .flags import port as port_number
from .loading import ModuleFailed
from .logs import JsonFormatter, TextFormatter
from .server import DEFAULT_COLLECTION
from .worker.processes import DEALER

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("streamqueue")

FINE, FAILED, WRONG_USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    supervised = getattr(options, "supervised", None)
    number = None if supervised is None or supervised[0] == DEALER else supervised[0]
    as_json = getattr(options, "log_format", "text") == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((JsonFormatter if as_json else TextFormatter)(process=number))
    logging.basicConfig(level=getattr(options, "log_level", "WARNING"), handlers=[handler])
    logging.captureWarnings(as_json)  # they would be lines of text among the others
    # What pymongo logs of a lost server repeats what we say in one sentence.
    logging.getLogger("pymongo").setLevel(logging.CRITICAL)
    complain = _log_complaint if as_json else _complain
    try:
        if hasattr(options, "uri"):
            options.uri = find_uri(options.uri, options.uri_file)
        return int(options.run(options) or FINE)
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ModuleFailed as failure:
        # Theirs is the mistake: the traceback shows it, from their file on.
        if as_json:
            logger.critical(
                "%s", failure, exc_info=failure.cause, extra={"event": "command_failed"}
            )
        else:
            trace = traceback.format_exception(failure.cause)
            print(hide_password("".join(trace)), end="", file=sys.stderr)
            complain(str(failure))
        return FAILED
    except StreamQueueError as error:
        complain(str(error))
        usage = isinstance(error, ConfigurationError) and not isinstance(error, ReplicaSetRequired)
        return WRONG_USAGE if usage else FAILED
    except PyMongoError as error:
        sentence, usage = explain(error, _contacted(options))
        complain(sentence)
        return WRONG_USAGE if usage else FAILED
    except BSONError as error:
        complain(
            "a document of the collection, stored by another program, cannot be decoded: "
            f"{type(error).__name__}"
        )
        return FAILED
    except Exception as error:
        unusable = explain_file(error, _known_uri(options)) if isinstance(error, OSError) else None
        if unusable is not None:
            complain(unusable)
            return WRONG_USAGE
        if not as_json:
            raise
        logger.critical(
            "Ended by an error of the program", exc_info=True, extra={"event": "command_failed"}
        )
        return FAILED


def _contacted(options: argparse.Namespace) -> Any:
    """Return the client or the URI that was used; None where only the error itself knows."""
    if hasattr(options, "worker"):
        return getattr(options, "client", None)
    return _known_uri(options)


def _known_uri(options: argparse.Namespace) -> str | None:
    """Return the URI that was most likely used; a worker's module names its own."""
    try:
        return find_uri(getattr(options, "uri", None))
    except ConfigurationError:
        return None


def _complain(sentence: str) -> None:
    print(f"streamqueue: {hide_password(sentence)}", file=sys.stderr)


def _log_complaint(sentence: str) -> None:
    """The same where every line is read by a program."""
    logger.error("%s", sentence, extra={"event": "command_failed"})


# the options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamqueue",
        description="A job queue on MongoDB: put, wake on a change stream, claim, complete.",
        epilog="Every option can be given as a variable: --uri as STREAMQUEUE_URI, and so on.",
    )
    parser.add_argument("--version", action="version", version=f"streamqueue {__version__}")
    subcommands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, *parents: argparse.ArgumentParser) -> Any:
        added = subcommands.add_parser(name, help=text, description=text, parents=parents)
        added.set_defaults(run=run)
        return added

    where, which, form = _where_options(), _queue_option(), _form_option()

    demo = command(
        "demo", commands.demo, "Show jobs flow, kill a consumer, and account for every job."
    )
    _uri_options(demo, "a replica set to use instead of a local one")
    setting(demo, "--jobs", type=whole, default=2000, help="jobs in the flow; default 2000")
    setting(demo, "--json", action="store_true", help="print the account as JSON")

    server = command(
        "server", commands.server, "Run a local one-node replica set, for trying things out."
    )
    setting(server, "--port", type=port_number, help="default: any free port")
    setting(server, "--data-dir", metavar="DIR", help="keep the data here; default: a new folder")

    bench = command("bench", commands.bench, "Measure the queue against what this server permits.")
    bench.add_argument("parts", nargs="*", metavar="PART", help="default: all, the quick version")
    _uri_options(bench, "a replica set to use instead of a local one")
    setting(bench, "--rounds", type=whole, help="default 3, with --full 5")
    setting(bench, "--jobs", type=whole, help="jobs in one measurement; default: by part")
    setting(bench, "--big", type=whole, help="a deep queue; default 100000, with --full 1000000")
    setting(bench, "--max-processes", type=whole, default=16, help="consumers; default 16")
    setting(bench, "--full", action="store_true", help="the long version")
    setting(bench, "--json", action="store_true", help="print JSON, for scripts")

    init = command("init", commands.init, "Create the indexes and check the server.", where)
    setting(
        init,
        "--validator",
        action="store_true",
        help="also make the server refuse documents that are not jobs",
    )

    worker = command(
        "worker",
        commands.worker,
        "Run the handlers of a worker until SIGTERM or Ctrl-C.",
        _log_options(),
    )
    worker.add_argument("worker", metavar="MODULE:WORKER", help="a Worker, or what returns one")
    _metrics_options(worker)
    setting(
        worker,
        "--processes",
        type=at_least_one,
        default=1,
        help="consumer processes under one supervisor; default 1, without one",
    )
    setting(
        worker,
        "--port-offset",
        type=whole,
        default=1,
        help="process i, from 0, serves on the metrics port + i times this; default 1",
    )
    setting(
        worker,
        "--export-state",
        choices=["off", "leader"],
        help="leader: of the workers told so, one also exports depth, age and consumers of the "
        "queues, as `streamqueue exporter` does; default: as the worker says, off",
    )
    # Which process it is, and its end of the supervisor's socket pair.
    worker.add_argument("--supervised", type=int, nargs=2, help=argparse.SUPPRESS)

    exporter = command(
        "exporter",
        commands.exporter,
        "Serve how the queues stand, for Prometheus, until SIGTERM or Ctrl-C: one per collection.",
        where,
        _log_options(),
    )
    setting(
        exporter,
        "--interval",
        type=seconds,
        metavar="SECONDS",
        default=INTERVAL,
        help=f"from one count to the next; default {INTERVAL:g}",
    )
    _metrics_options(exporter, port=9465)

    put = command("put", commands.put, "Put jobs in the queue.", where, which, form)
    put.add_argument(
        "payload", nargs="*", help="JSON objects; none, or '-', reads one per line from stdin"
    )
    put.add_argument("--priority", type=integer, help="higher runs first; default 0")
    put.add_argument("--delay", type=number, metavar="SECONDS", help="until it is ready; default 0")
    put.add_argument("--key", help="at most one live job has it")
    put.add_argument("--max-attempts", type=integer, help="default 3")

    command("stats", commands.stats, "Count the jobs of the queue.", where, which, form)
    command(
        "consumers",
        commands.consumers,
        "List the live consumers, of all queues, and what they hold.",
        where,
        form,
    )
    top = command(
        "top",
        commands.top,
        "Watch the queues live: depth, rates, consumers, failures.",
        where,
        form,
    )
    setting(
        top,
        "--interval",
        type=seconds,
        metavar="SECONDS",
        default=1.0,
        help="between two looks; default 1",
    )
    top.add_argument("--once", action="store_true", help="look once, and end")
    command(
        "reap",
        commands.reap,
        "Return every job whose lease has run out, of all queues.",
        where,
        form,
    )

    dead = subcommands.add_parser("dead", help="List, requeue or purge the dead jobs of the queue.")
    acts = dead.add_subparsers(title="actions", required=True, metavar="ACTION")
    parents = [where, which, form]
    listing = acts.add_parser("list", help="the dead jobs, latest first", parents=parents)
    listing.add_argument("--limit", type=whole, default=20, help="default 20")
    listing.set_defaults(run=commands.dead_list)
    requeue = acts.add_parser("requeue", help="make dead jobs ready again", parents=parents)
    requeue.add_argument("job_id", nargs="?", metavar="ID", help="default: all of them")
    requeue.set_defaults(run=commands.dead_requeue)
    purge = acts.add_parser("purge", help="remove the dead jobs for good", parents=parents)
    purge.set_defaults(run=commands.dead_purge)
    return parser


def _uri_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Add what ``main`` makes the URI of; the variables are looked at there."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--uri", metavar="URI", help=text)
    either.add_argument(
        "--uri-file",
        metavar="PATH",
        help="a file that holds the URI: a password in --uri is shown to everybody by ps",
    )


def _where_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    _uri_options(parser, "mongodb://host/database?replicaSet=name, with the database in its path")
    setting(
        parser,
        "--collection",
        metavar="NAME",
        default=DEFAULT_COLLECTION,
        help=f"default {DEFAULT_COLLECTION}",
    )
    return parser


def _queue_option() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    setting(parser, "--queue", metavar="NAME", default="default", help="default: default")
    return parser


def _metrics_options(parser: argparse.ArgumentParser, port: int | None = None) -> None:
    """Add where to serve the metrics: on `port`, or nowhere, unless the user says."""
    group = parser.add_argument_group("metrics and health, for Prometheus and probes")
    default = "not served" if port is None else str(port)
    setting(
        group,
        "--metrics-port",
        metavar="PORT",
        type=port_number,
        default=port,
        help=f"serve /metrics, /healthz and /readyz here; default: {default}",
    )
    setting(
        group,
        "--metrics-host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="on this address; default 127.0.0.1",
    )
    for flag, text in (
        ("--metrics-cert", "over TLS with this certificate, a PEM file; default: plain HTTP"),
        ("--metrics-key", "its private key, a PEM file without a passphrase"),
        ("--metrics-client-ca", "only to clients with a certificate of an authority in this file"),
    ):
        # A certificate that got lost on the way must not open the port to everybody.
        setting(group, flag, metavar="FILE", help=text, empty_is_unset=False)


def _form_option() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    setting(parser, "--json", action="store_true", help="print JSON, for scripts")
    return parser


def _log_options() -> argparse.ArgumentParser:
    """Return the options of a command that runs until it is told to stop."""
    parser = argparse.ArgumentParser(add_help=False)
    setting(
        parser,
        "--log-level",
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="default INFO",
    )
    setting(
        parser,
        "--log-format",
        default="text",
        choices=["text", "json"],
        help="json writes one object per line, for programs; default text",
    )
    return parser
