"""Consumer processes under one supervisor, with a dispatcher, as ``worker --processes`` runs them.

The supervisor is forked as any other program; it starts each process with an interpreter of its
own, as ever. Each writes a history of its own, named ``consumer`` or ``dispatcher``; what all of
them log is in the supervisor's log.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import TASK_STATUS_IGNORED
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient

from drills.history import History, Wire
from drills.programs.consumer import CONCURRENCY, LEASE, QUEUE, QUICK, Handler
from drills.programs.effects import Effects
from drills.programs.pulse import Pulse
from streamqueue import Backoff, Worker
from streamqueue.processes.child import run_supervised
from streamqueue.processes.dispatcher import dispatcher_for
from streamqueue.processes.process import DISPATCHER
from streamqueue.processes.subscriber import subscribe
from streamqueue.processes.supervisor import Processes

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from streamqueue.health.health import Health
    from streamqueue.processes.child import Supervised

PAUSES = Backoff(initial=0.05, maximum=0.3)


def run(*, directory: Path, processes: int, **settings: Any) -> int:
    """Supervise until SIGTERM; ready once all processes have been.

    Args:
        processes: how many besides the dispatcher.
        settings: of the consumers, as in ``consumer.py``, which are workers.

    Returns:
        The supervisor's exit code.
    """
    _log()
    history = History(directory, "fleet")
    words = json.dumps({"directory": str(directory), **settings})

    def command(number: int, descriptor: int) -> list[str]:
        return [sys.executable, "-m", __name__, str(number), str(descriptor), words]

    async def main() -> int:
        supervisor = Processes(command, processes, dispatches=True, pauses=PAUSES)
        said = False

        def say_once_ready() -> None:
            nonlocal said
            if not said and not supervisor.health.reasons():
                history.note("process", state="ready")
                said = True

        supervisor.health.observe(say_once_ready)
        return await supervisor.run()

    code = anyio.run(main)
    history.close()
    return code


def live(
    number: int,
    channel: socket.socket,
    *,
    directory: Path,
    uri: str,
    database: str,
    lease: float = LEASE,
    concurrency: int = CONCURRENCY,
    client: dict[str, Any] | None = None,
    dispatcher: dict[str, Any] | None = None,
    others: Sequence[str] = (),
    rules: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Be one of the processes.

    Args:
        client: further settings of its MongoClient.
        dispatcher: the same, of the dispatcher's alone.
        others: queues that it serves besides.
        rules: what its handlers declare.
    """
    _log()
    history = History(directory, "dispatcher" if number == DISPATCHER else "consumer")

    async def main() -> None:
        wire = Wire(history, lease)
        of_client = {**(client or {}), **((dispatcher or {}) if number == DISPATCHER else {})}
        async with AsyncMongoClient(uri, event_listeners=[wire], **of_client) as own:
            given: dict[str, Any] = {"sweep_interval": None, **QUICK, **settings}
            declared: dict[str, Any] = rules or {}
            worker = Worker(
                own[database].jobs,
                timeout=lease,
                concurrency=concurrency,
                backoff=Backoff(initial=0.05, maximum=0.2),
                registry=CollectorRegistry(),
                **given,
            )
            handler = Handler(history, lease, effects=Effects(history, own[database]))
            for queue in (QUEUE, *others):
                worker.handler(queue, **declared)(handler.of(queue))
            if number == DISPATCHER:
                part = dispatcher_for(worker)
                await run_supervised(Noted(part, history), channel, part.join)
            else:
                await run_supervised(Noted(worker, history), channel, subscribe(worker))

    anyio.run(main)
    history.close()


class Noted:
    """Notes when a part of a fleet is ready."""

    def __init__(self, part: Supervised, history: History) -> None:
        self._part = part
        self._history = history
        self.stop = part.stop

    @property
    def health(self) -> Health:
        return self._part.health

    @property
    def stopping(self) -> bool:
        return self._part.stopping

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        async with anyio.create_task_group() as tasks:

            async def until_the_end(*, task_status: TaskStatus[None]) -> None:
                await self._part.run(task_status=task_status)
                tasks.cancel_scope.cancel()

            await tasks.start(until_the_end)
            self._history.note("process", state="ready")
            task_status.started()
            await Pulse(self._history).run()


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    number, descriptor, words = sys.argv[1:]
    settings = json.loads(words)
    settings["directory"] = Path(settings["directory"])
    live(int(number), socket.socket(fileno=int(descriptor)), **settings)
