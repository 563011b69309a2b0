"""A rolling upgrade: an earlier version of the package beside this one, on one collection."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

import streamqueue
from tests.waiting import wait_until

HERE = Path(streamqueue.__file__).parents[1]
PROGRAM = Path(__file__).with_name("programs") / "version.py"
EARLIER = {
    "the first with a worker": "ca18dd3",
    "before consumers took turns": "1899bad",
    "0.1.0": "c928268",
}
JOBS = 1000
"""Put by each of two producers."""


@pytest.fixture(
    params=[
        pytest.param(EARLIER["the first with a worker"], marks=pytest.mark.slow),
        pytest.param(EARLIER["before consumers took turns"], marks=pytest.mark.slow),
        pytest.param(EARLIER["0.1.0"], marks=pytest.mark.slow),
    ],
    ids=[*EARLIER],
)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the package as it was."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    archive = subprocess.run(
        ["git", "-C", str(HERE), "archive", request.param, "streamqueue"], capture_output=True
    )
    if archive.returncode:
        pytest.skip(f"the history does not go back to {request.param} here")
    folder = tmp_path / "earlier"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


class Version:
    """A process of one version; what it says goes to a file."""

    def __init__(self, package: Path, output: Path, uri: str, *arguments: str) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), *arguments],
                stdout=file,
                env={**os.environ, "STREAMQUEUE_URI": uri, "PYTHONPATH": str(package)},
            )

    def said(self, what: str) -> list[str]:
        """Return whatever it has said that about so far."""
        lines = self._output.read_text().splitlines()
        said = [json.loads(line) for line in lines if line.endswith("}")]
        return [line["job"] for line in said if line["what"] == what]

    def stop(self) -> None:
        """Send SIGTERM, and see it end in order."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0


Start = Callable[..., Version]


@pytest.fixture
def start(uri: str, jobs: Collection[Any], tmp_path: Path) -> Iterator[Start]:
    """Start a program of a version; a worker once its stream is open."""
    address = uri.replace("/?", f"/{jobs.database.name}?")
    started: list[Version] = []

    def start(package: Path, *arguments: str) -> Version:
        version = Version(package, tmp_path / f"said-{len(started)}", address, *arguments)
        started.append(version)
        wait_until(lambda: version.said("version"), "it starts", 30)
        assert version.said("version") == [str(package / "streamqueue")]
        if arguments[0] == "worker":
            wait_until(lambda: version.said("ready"), "its stream is open", 30)
        return version

    yield start
    for version in started:
        if version.process.poll() is None:
            version.process.kill()
        version.process.wait()


def test_a_rolling_upgrade_does_every_job_exactly_once(
    start: Start, earlier: Path, jobs: Collection[Any]
) -> None:
    workers = [start(earlier, "worker"), start(earlier, "worker"), start(HERE, "worker")]
    producers = [start(package, "producer", str(JOBS)) for package in (earlier, HERE)]

    def done() -> list[str]:
        return [job for worker in workers for job in worker.said("done")]

    wait_until(lambda: len(done()) > JOBS / 2, "jobs flow", 60)
    workers[0].stop()  # the upgrade: old ones go while jobs flow, one by one
    workers.append(start(HERE, "worker"))
    for producer in producers:
        assert producer.process.wait(60) == 0
    wait_until(lambda: jobs.count_documents({}) == 0, "all jobs are done", 60)

    put = [job for producer in producers for job in producer.said("put")]
    assert len(put) == 2 * JOBS
    assert Counter(done()) == Counter(put)
    assert all(worker.said("done") for worker in workers[:3])
    for worker in workers[1:]:
        worker.stop()


def test_a_newer_worker_can_be_taken_back(
    start: Start, earlier: Path, jobs: Collection[Any]
) -> None:
    newer = start(HERE, "worker")
    producer = start(HERE, "producer", str(JOBS))
    wait_until(lambda: newer.said("done"), "jobs flow", 30)

    newer.stop()
    older = start(earlier, "worker")
    assert producer.process.wait(60) == 0
    wait_until(lambda: jobs.count_documents({}) == 0, "all jobs are done", 60)

    assert Counter(newer.said("done") + older.said("done")) == Counter(producer.said("put"))
    older.stop()
