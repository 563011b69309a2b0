"""examples/thumbnails.py: every picture has its thumbnail, also when a process is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests.cli.supervised import Supervisor
from tests.docs.blocks import ROOT
from tests.waiting import wait_until

COMMAND = ["-m", "streamqueue", "worker", "examples.thumbnails:worker", "--processes", "2"]
PICTURES = 200


@pytest.fixture
def processes(address: str, tmp_path: Path) -> Iterator[Supervisor]:
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = {"STREAMQUEUE_URI": address, "PYTHONPATH": path}
    supervisor = Supervisor([sys.executable, *COMMAND], tmp_path, environment)
    yield supervisor
    supervisor.end()


def test_every_thumbnail_is_made_though_a_process_is_killed(
    processes: Supervisor, load: Callable[[str], Any], jobs: Collection[Any], tmp_path: Path
) -> None:
    thumbnails = load("thumbnails")
    queue = MongoQueue(jobs, name="pictures")
    folder = tmp_path / "pictures"
    members = processes.until_ready(2)

    album = thumbnails.put(queue, thumbnails.draw(folder, PICTURES))
    wait_until(lambda: len(list(folder.glob("*.thumbnail"))) > 10, "some are made", within=30)
    kill_with_a_job(members.values(), queue)

    made = queue.wait(album, timeout=30).result["thumbnails"]
    assert made == [str(folder / f"{number:03}.thumbnail") for number in range(PICTURES)]
    for number, path in enumerate(made):
        assert Path(path).read_bytes() == b"P5 16 16\n255\n" + bytes([number]) * 16 * 16
    done = queue.list("done", limit=PICTURES + 1)
    assert len(done) == PICTURES + 1
    assert 2 in {info.attempts for info in done}


def kill_with_a_job(pids: Any, queue: MongoQueue) -> None:
    """Kill the first of these processes that holds a job."""

    def held(pid: int) -> bool:
        return any(f":{pid}" in (info.locked_by or "") for info in queue.list("running"))

    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        if held(pid):
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("no process holds a job")
