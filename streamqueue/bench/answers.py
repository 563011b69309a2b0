"""Answers: how long until a caller knows what became of a job, and until an order is obeyed.

One idle worker; each measurement starts before the call is sent. A *request* is a put, the handler,
which does nothing, and its value back in the caller. A *cancel* ends in the handler, when it is
cancelled. A *pause* ends with the last start after it was called, while jobs are put all the time;
a *resume* with the first start. The floor in all lines is that of ``latency``: two bare writes, the
second of them at the event of the first.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..queue.blocking import MongoQueue
from . import floor, latency
from .fleet import Fleet
from .process import pause
from .report import Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .ground import Ground
    from .scale import Scale

ONE = Fleet(1)
PUT_EVERY = 0.004
"""Seconds between two puts while a queue is paused and resumed."""
QUIET = 0.25
"""Seconds after a pause within which a start is waited for that should not come."""
PAUSES_SHARE = 4
"""One pause for so many requests: each takes as long as that."""


def steps(scale: Scale) -> int:
    return 4 * scale.rounds


def measure(ground: Ground) -> Table:
    """Return p50 and p99 in milliseconds."""
    floors: list[dict[str, float]] = []
    ours: dict[str, list[dict[str, float]]] = {}
    for _ in range(ground.scale.rounds):
        ground.progress.step("the floor")
        started, _seen = latency.of_floor(ground)
        floors.append(started)
        for name, waits in _measure(ground):
            ours.setdefault(name, []).append(latency.quantiles(waits))
    table = Table()
    for name, rounds in ours.items():
        for quantile in latency.QUANTILES:
            mine = [waits[quantile] for waits in rounds]
            bare = [waits[quantile] for waits in floors]
            table.rows.append(Row.against(f"{name}, {quantile}", "ms", mine, bare))
    table.notes.append(
        f"{ground.scale.lone_jobs} requests and cancels a round, and "
        f"{_pauses(ground.scale)} pauses, with a put every {1000 * PUT_EVERY:.0f} ms"
    )
    return table


def _pauses(scale: Scale) -> int:
    return max(2, scale.lone_jobs // PAUSES_SHARE)


def _measure(ground: Ground) -> Iterator[tuple[str, list[float]]]:
    ground.progress.step("requests")
    yield "request of a no-op", _requests(ground)
    ground.progress.step("cancels")
    yield "cancel to its handler", _cancels(ground)
    ground.progress.step("pauses")
    paused, resumed = _pauses_and_resumes(ground)
    yield "pause to the last start", paused
    yield "resume to the first start", resumed


def _requests(ground: Ground) -> list[float]:
    waits = []
    with (
        ground.jobs() as jobs,
        ground.consumers(ONE, jobs) as team,
        MongoQueue(jobs, name=floor.QUEUE) as queue,
    ):
        team.go()
        for number in range(latency.WARM_UP + ground.scale.lone_jobs):
            pause(random.uniform(0.005, 0.03))
            called = time.monotonic()
            queue.request({"number": number}, timeout=60)
            if number >= latency.WARM_UP:
                waits.append(time.monotonic() - called)
    return waits


def _cancels(ground: Ground) -> list[float]:
    waits = []
    with (
        ground.jobs() as jobs,
        ground.consumers(ONE, jobs, handler="waits") as team,
        MongoQueue(jobs, name=floor.QUEUE) as queue,
    ):
        team.go()
        for number in range(latency.WARM_UP + ground.scale.lone_jobs):
            job_id = queue.put({"number": number})
            team.wait_for_start(number)
            pause(random.uniform(0.005, 0.03))
            called = time.monotonic()
            queue.cancel(job_id)
            line = team.wait_for("cancelled", number)
            if number >= latency.WARM_UP:
                waits.append(line["at"] - called)
    return waits


def _pauses_and_resumes(ground: Ground) -> tuple[list[float], list[float]]:
    paused, resumed = [], []
    with (
        ground.jobs() as jobs,
        ground.consumers(ONE, jobs, handler="announces") as team,
        MongoQueue(jobs, name=floor.QUEUE) as queue,
        _putting(queue),
    ):
        team.go()
        for _ in range(_pauses(ground.scale)):
            team.starts_after(time.monotonic())
            called = time.monotonic()
            queue.pause()
            pause(QUIET)
            last = max((line["at"] for line in team.starts_so_far()), default=called)
            paused.append(max(0.0, last - called))
            called = time.monotonic()
            queue.resume()
            resumed.append(team.starts_after(called)["at"] - called)
    return paused, resumed


@contextmanager
def _putting(queue: MongoQueue) -> Iterator[None]:
    """Put jobs all the time."""
    ended = threading.Event()

    def put() -> None:
        number = 0
        while not ended.wait(PUT_EVERY):
            queue.put({"number": number})
            number += 1

    thread = threading.Thread(target=put)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
