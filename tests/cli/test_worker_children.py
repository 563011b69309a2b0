"""What a worker starts: its own processes, and what its handlers fork off."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.interpreter import python
from tests.cli.supervised import WORKER, Start, Supervisor

FORKS = """
import json, multiprocessing, os, signal, time
from pymongo import AsyncMongoClient
from streamqueue import Worker

jobs = AsyncMongoClient(os.environ["STREAMQUEUE_URI"]).get_default_database().jobs
worker = Worker(jobs, max_await=0.1)

def say(what, **more):
    os.write(1, json.dumps({"what": what, "pid": os.getpid(), **more}).encode() + b"\\n")

def fork_and_terminate():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(5)
    code = child.exitcode
    child.kill()
    say("ended", code=code)

@worker.handler("default")
async def waits(job):
    fork_and_terminate()

@worker.handler("blocks")
def blocks(job):
    fork_and_terminate()
"""


@pytest.mark.parametrize("name", ["default", "blocks"])
def test_a_signal_to_what_a_handler_forked_ends_that_and_not_the_worker(
    start: Start, jobs: Collection[dict[str, object]], tmp_path: Path, name: str
) -> None:
    (tmp_path / "forks.py").write_text(FORKS)
    worker = start(name="forks:worker")

    MongoQueue(jobs, name=name).put_many([{"n": n} for n in range(5)])
    ends = worker.until_said("ended", times=5)

    assert [end["code"] for end in ends] == [-signal.SIGTERM] * 5
    assert "Received" not in worker.log
    worker.process.send_signal(signal.SIGTERM)
    assert worker.exit_code() == 0


@pytest.mark.few(1)
@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["alone", "supervised"])
def test_files_beside_the_module_are_not_taken_for_pythons_own(
    address: str, queue: MongoQueue, tmp_path: Path, options: list[str]
) -> None:
    for name in ("random", "logging"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('of the user')\n")
    (tmp_path / "tasks.py").write_text(WORKER)
    # As the program does: without the current folder.
    program = "import sys; from streamqueue.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", program, "worker", "tasks:worker", *options]
    worker = Supervisor(command, tmp_path, {"STREAMQUEUE_URI": address})
    try:
        queue.put({"n": 1, "seconds": 0})

        assert worker.until_said("finished", times=1)
    finally:
        worker.process.send_signal(signal.SIGTERM)
        worker.exit_code()


@pytest.mark.parametrize(
    "switches",
    [["-I"], ["-P", "-E"], ["-s", "-O"], ["-P", "-X", "utf8", "-W", "error::FutureWarning"]],
    ids=" ".join,
)
def test_a_process_is_started_with_the_switches_of_its_parent(
    switches: list[str], tmp_path: Path
) -> None:
    facts = "[*sys.flags, sys.warnoptions, sys._xoptions]"
    program = (
        f"import os, sys; sys.path[:] = {sys.path!r}; from streamqueue.interpreter import python; "
        f"print({facts}, flush=True); "
        f"os.execv(sys.executable, python('-c', 'import sys; print({facts})'))"
    )

    child = Supervisor([sys.executable, *switches, "-c", program], tmp_path, {})
    child.exit_code()

    assert child.log == ""
    mine, its = child.lines
    assert mine == (its if "-P" in switches or "-I" in switches else its.replace("True", "False"))


def test_the_current_folder_stays_out_of_reach_of_what_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert "-P" in python("-m", "streamqueue")
    assert os.fspath(python()[0]) == sys.executable
