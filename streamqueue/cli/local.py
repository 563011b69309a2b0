"""``streamqueue demo``, ``server`` and ``bench``: the queue on a server of one's own, to try it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from .command import Options, command, setting
from .options import JSON, at_least_one, port, uri_options, whole

URI = uri_options("a replica set to use instead of a local one")


@command(
    *URI,
    setting("--jobs", "jobs in the flow; default 2000", type=whole, metavar="COUNT", default=2000),
    setting("--json", "print the account as JSON", is_flag=True),
    example="streamqueue demo --jobs 10000",
)
def demo(options: Options) -> int:
    """Show jobs flow, kill a consumer, and account for every job."""
    from .demo import run  # it brings what only it needs

    return run(options.uri, jobs=options.jobs, as_json=options.json)


@command(
    setting("--port", "default: any free port", type=port),
    setting("--data-dir", "keep the data here; default: a new folder", metavar="DIR"),
    example="streamqueue server --port 27017 --data-dir ./mongodb",
)
def server(options: Options) -> None:
    """Run a local one-node replica set, for trying things out."""
    from ..embedded import EmbeddedServer

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    with EmbeddedServer(data_dir, port=options.port) as server:
        print("MongoDB is running. In another terminal:")
        print(f"  export STREAMQUEUE_URI='{server.uri.replace('/?', '/test?')}'")
        print('  streamqueue put \'{"hello": "world"}\' && streamqueue stats')
        print("Ctrl-C stops it.", flush=True)
        stop.wait()


@command(
    click.Argument(["parts"], nargs=-1, metavar="[PART]..."),
    *URI,
    setting("--rounds", "default 3, with --full 5", type=whole, metavar="COUNT"),
    setting("--jobs", "jobs in one measurement; default: by part", type=whole, metavar="COUNT"),
    setting(
        "--big", "a deep queue; default 100000, with --full 1000000", type=whole, metavar="COUNT"
    ),
    setting("--max-processes", "consumers; default 16", type=whole, metavar="COUNT", default=16),
    setting("--full", "the long version", is_flag=True),
    setting(
        "--jobs-per-second",
        "ask the part `model` what this takes",
        type=at_least_one,
        metavar="COUNT",
    ),
    setting(
        "--hosts", "by so many machines; default 1", type=at_least_one, metavar="COUNT", default=1
    ),
    setting(
        "--processes",
        "consumer processes on each; default 1",
        type=at_least_one,
        metavar="COUNT",
        default=1,
    ),
    setting("--separate", "without a dispatcher on each host", is_flag=True),
    setting(
        "--server-processors",
        "of the primary; default 4",
        type=at_least_one,
        metavar="COUNT",
        default=4,
    ),
    JSON,
    example="streamqueue bench latency drain --json",
)
def bench(options: Options) -> int:
    """Measure the queue against what this server permits.

    Each PART is a part of the benchmark; with none all are measured, in the quick version. The part
    `model` measures what a job costs, and says of --jobs-per-second, --hosts and --processes what
    gives first, and what to do then.
    """
    from ..bench import run  # it brings what only it needs
    from ..bench.capacity.model import Deployment

    deployment = None
    if options.jobs_per_second is not None:
        deployment = Deployment(
            jobs_per_second=options.jobs_per_second,
            hosts=options.hosts,
            processes=options.processes,
            dispatched=not options.separate and options.processes > 1,
            server_processors=options.server_processors,
        )

    return run(
        options.uri,
        list(options.parts),
        rounds=options.rounds,
        jobs=options.jobs,
        big=options.big,
        processes=options.max_processes,
        full=options.full,
        as_json=options.json,
        deployment=deployment,
    )
