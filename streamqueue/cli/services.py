"""``streamqueue worker`` and ``exporter``, which run until they are told to stop."""

from __future__ import annotations

import gc
import importlib
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click
from prometheus_client import disable_created_metrics

from .. import signals
from ..errors import ConfigurationError, StreamQueueError
from ..exporter.exporter import INTERVAL, serve_state
from ..health.health import Health
from ..health.server import MetricsAddress
from ..health.systemd import Notifier
from ..interpreter import python
from ..processes.child import run_supervised, say_told
from ..processes.dispatcher import dispatcher_for
from ..processes.process import DISPATCHER
from ..processes.reloading import Reloading
from ..processes.subscriber import subscribe
from ..processes.supervisor import Processes
from ..worker.run import NOT_TOLD
from ..worker.worker import settings_of
from .command import Options, command, option, setting
from .connection import open_async_jobs, run_in_loop
from .loading import load_worker
from .options import (
    LAST_PORT,
    LOG,
    WHERE,
    at_least_one,
    metrics_options,
    names,
    processes,
    seconds,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ANY_PORT = 0


@command(
    click.Argument(["worker"], metavar="MODULE:WORKER"),
    *LOG,
    setting(
        "--log-tracebacks",
        "log failed attempts with their tracebacks, which may quote payloads; default: their "
        "class alone, and the traceback is stored on the job",
        is_flag=True,
    ),
    *metrics_options(),
    setting(
        "--queues",
        "only these of its queues, with commas between them; default: all",
        type=names,
        metavar="NAMES",
    ),
    setting(
        "--concurrency",
        "jobs that each process runs at the same time; default: as the worker says, 20",
        type=at_least_one,
        metavar="COUNT",
    ),
    setting(
        "--until-empty",
        "end, with exit code 0, when no job of its queues is ready, due or running; what is to run "
        "later, waits for other jobs or is paused is counted in the log, and left",
        is_flag=True,
    ),
    option(
        "--reload",
        "start again, in order, when a .py file in this folder or below changes; for development",
        is_flag=True,
    ),
    setting(
        "--processes",
        "consumer processes under one supervisor; default 1, without one",
        type=processes,
        metavar="COUNT",
        default=1,
    ),
    setting(
        "--port-offset",
        "process i, from 0, serves on the metrics port + i times this; default 1",
        type=whole,
        metavar="COUNT",
        default=1,
    ),
    setting(
        "--export-state",
        "leader: of the workers told so, one also exports depth, age and consumers of the "
        "queues, as `streamqueue exporter` does; default: as the worker says, off",
        type=click.Choice(["off", "leader"], case_sensitive=False),
    ),
    # Which process it is, and its end of the supervisor's socket pair.
    option("--supervised", type=int, nargs=2, hidden=True),
    example="streamqueue worker tasks:worker --processes 4 --metrics-port 9464",
)
def worker(options: Options) -> int:
    """Run the handlers of a worker until SIGTERM or Ctrl-C, or until nothing is left to do.

    MODULE:WORKER names a Worker, or a function that returns one.
    """
    ending = signals.take()
    notifier = Notifier.from_environment()  # before the module has a chance to start anything
    if options.reload or options.processes > 1:
        run_others = _worker_reloaded if options.reload else _worker_processes
        code = run_others(options, notifier)
        ending.closing(code)
        return code
    number, channel = 0, None
    if options.supervised is not None:
        number, descriptor = options.supervised
        channel = socket.socket(fileno=descriptor)
        channel.set_inheritable(False)  # before the module has a chance to start anything
        ending.last(partial(say_told, channel))
    worker = load_worker(options.worker)
    settings = settings_of(worker)
    options.client = settings.store.jobs.database.client  # for the sentence when no server answers
    if options.export_state is not None:
        settings.exports = options.export_state == "leader"
    if options.log_tracebacks:
        settings.options = replace(settings.options, log_tracebacks=True)
    if options.queues is not None:
        settings.keep_only(options.queues)
    if options.concurrency is not None:
        settings.options = replace(settings.options, concurrency=options.concurrency)
    address = _metrics_address(options, settings.metrics_address)
    if number != DISPATCHER and address.port is not None and address.port != ANY_PORT:
        address = replace(address, port=address.port + number * options.port_offset)
    settings.metrics_address = address
    if options.export_state == "leader" and address.port is None:
        raise ConfigurationError(
            "--export-state=leader is for --metrics-port: give that too, such as 9464, or nobody "
            "can see what it exports"
        )
    # Half of every counter's lines, and nobody asks for them. Process-wide, so the library itself
    # must not do it.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    # What is loaded now stays: each full collection of garbage would walk over all of it again,
    # 50,000 objects for a module of three imports. As process-wide as the line above.
    gc.collect()
    gc.freeze()
    notifier.follow(worker.health, f"Working on queues: {', '.join(settings.handlers)}")
    run_worker = partial(worker.run, until="empty" if options.until_empty else None)
    run: Callable[[], Awaitable[object]] = run_worker
    if channel is not None:
        if number == DISPATCHER:
            dispatcher = dispatcher_for(worker)
            run = partial(run_supervised, dispatcher, channel, dispatcher.join)
        else:
            drain = settings.options.drain_timeout
            run = partial(
                run_supervised, worker, channel, subscribe(worker), drain=drain, run=run_worker
            )

    async def run_to_its_end() -> None:
        # What keeps the event loop from closing, and then the interpreter from its end, holds the
        # process no longer than that.
        try:
            await run()
        except anyio.get_cancelled_exc_class() as error:
            ending.failed(NOT_TOLD, ours=True)
            raise StreamQueueError(f"{NOT_TOLD}: its task was cancelled") from error
        except StreamQueueError as error:
            ending.failed(str(error), ours=True)
            raise
        except BaseException as error:
            ending.failed(type(error).__name__, ours=False)
            raise
        if worker.left:
            ending.end_now()
        ending.closing(signals.FINE)

    run_in_loop(run_to_its_end)
    return signals.FINE


def _worker_reloaded(options: Options, _notifier: Notifier) -> int:
    try:
        watchfiles = importlib.import_module("watchfiles")
    except ImportError as error:
        raise ConfigurationError(
            "--reload needs watchfiles: pip install 'streamqueue[reload]'"
        ) from error

    def changes() -> AsyncIterator[object]:
        found: AsyncIterator[object] = watchfiles.awatch(
            Path.cwd(), watch_filter=watchfiles.PythonFilter()
        )
        return found

    return anyio.run(Reloading(_arguments(options, options.processes), changes).run)


def _arguments(options: Options, processes: int) -> list[str]:
    """Return the program and the arguments of a process that runs the worker likewise, or of
    several under a supervisor."""
    arguments = [
        # Everything by name: what is a variable here is one in each process too, and
        # STREAMQUEUE_PROCESSES must not be.
        *python("-m", "streamqueue", "worker", options.worker),
        *("--processes", str(processes)),
        *("--port-offset", str(options.port_offset)),
        *_metrics_arguments(options),
        *("--log-level", options.log_level),
        *("--log-format", options.log_format),
        *(["--log-tracebacks"] if options.log_tracebacks else []),
        *(["--until-empty"] if options.until_empty else []),
        *([] if options.queues is None else ["--queues", ",".join(options.queues)]),
        *([] if options.concurrency is None else ["--concurrency", str(options.concurrency)]),
    ]
    if options.export_state is not None:
        arguments += ["--export-state", options.export_state]
    return arguments


def _worker_processes(options: Options, notifier: Notifier) -> int:
    if options.metrics_port is not None:
        _check_ports(options.metrics_port, options.processes, options.port_offset)
    arguments = _arguments(options, 1)

    def command(number: int, descriptor: int) -> list[str]:
        return [*arguments, "--supervised", str(number), str(descriptor)]

    processes = Processes(
        command,
        options.processes,
        dispatches=True,
        silence=notifier.watchdog,
        until_empty=options.until_empty,
    )
    notifier.follow(processes.health, f"{options.processes} processes work on {options.worker}")
    return anyio.run(processes.run)


def _metrics_address(options: Options, own: MetricsAddress) -> MetricsAddress:
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


def _metrics_arguments(options: Options) -> Iterator[str]:
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


@command(
    *WHERE,
    *LOG,
    setting(
        "--interval",
        f"from one count to the next; default {INTERVAL:g}",
        type=seconds,
        default=INTERVAL,
    ),
    *metrics_options(9465),
    example="streamqueue exporter --interval 15",
)
def exporter(options: Options) -> None:
    """Serve how the queues stand, for Prometheus.

    One per collection, until SIGTERM or Ctrl-C.
    """
    signals.take()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    address = _metrics_address(options, MetricsAddress())
    health = Health()
    health.not_ready("start", "MongoDB has not answered yet")
    Notifier.from_environment().follow(health, f"Exporting the state of {options.collection}")

    async def run() -> None:
        async with open_async_jobs(options, "streamqueue-exporter") as jobs:
            await serve_state(jobs, address, health, interval=options.interval)

    run_in_loop(run)
