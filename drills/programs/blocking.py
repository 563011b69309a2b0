"""A consumer process of the blocking shell: threads that iterate over one ``MongoQueue``.

It does what ``consumer.py`` does with ``by="queue"``, and its handlers are the same: each job is
run in an event loop of its own, where a blocking call has its answer already.
"""

from __future__ import annotations

import random
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from drills.history import History, Wire
from drills.programs.consumer import (
    CONCURRENCY,
    LEASE,
    PAUSE,
    QUEUE,
    REPAIR_PAUSE,
    Handler,
)
from drills.programs.effects import Effects
from drills.programs.pulse import TICK, Pulse
from streamqueue import Backoff, MongoQueue
from streamqueue.clock import monotonic

LAST_JOBS_SECONDS = 20.0


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    collection: str = "jobs",
    queue: str = QUEUE,
    repairs: bool = False,
    lease: float = LEASE,
    concurrency: int = CONCURRENCY,
    client: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Work until SIGTERM; the settings are those of ``consumer.py``."""
    # Before there is a thread: all of them inherit it, and only this one waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    history = History(directory, "consumer")
    own: MongoClient[Any] = MongoClient(
        uri, event_listeners=[Wire(history, lease)], **(client or {})
    )
    target = MongoQueue(
        own[database][collection],
        timeout=lease,
        name=queue,
        backoff=Backoff(initial=0.05, maximum=0.2),
        **settings,
    )
    target.size()
    effects = Effects(history, own[database])
    handler: Any = Handler(history, lease, renews=False, effects=effects).of(queue)
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            with suppress(PyMongoError):  # no server for the moment
                for job in target:
                    with suppress(Exception), job:  # stored by the job's block
                        anyio.run(handler, job)
                    if stopping.is_set():
                        return
            stopping.wait(PAUSE)

    def repair() -> None:
        while not stopping.wait(random.uniform(0, REPAIR_PAUSE)):
            with suppress(PyMongoError):
                target.repair()

    def beat() -> None:
        pulse = Pulse(history)
        while not stopping.is_set():
            due = monotonic() + TICK
            stopping.wait(TICK)
            pulse.beat(due)

    deeds = [work] * concurrency + [repair] * repairs + [beat]
    threads = [threading.Thread(target=deed, daemon=True) for deed in deeds]
    for thread in threads:
        thread.start()
    history.note("process", state="ready")
    signal.sigwait({signal.SIGTERM})
    stopping.set()
    target.close()
    for thread in threads:
        thread.join(LAST_JOBS_SECONDS)
        if thread.is_alive():
            raise TimeoutError("a thread goes on although its queue was closed")
    own.close()
    history.close()
