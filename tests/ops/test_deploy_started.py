"""What the image and the units start, started exactly so: ready, alive, healthy, and stopped.

(What the worker's unit starts has more tests, in ``tests/cli/test_notify.py``.)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from tests.notified import NotifiedProcess, notified
from tests.ops.deploy_files import DEPLOY, image, image_environment
from tests.ops.units import EXPORTER, Unit
from tests.waiting import free_port, wait_until

PROGRAMS = Path(sys.executable).parent
WATCHDOG = 3.0


@pytest.fixture
def address(uri: str, jobs: Collection[Any]) -> str:
    return uri.replace("/?", f"/{jobs.database.name}?")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What lies in the image's working directory: the tasks of the example."""
    shutil.copy(DEPLOY / "compose" / "tasks.py", tmp_path)
    return tmp_path


def command(*arguments: str) -> list[str | Path]:
    """The image's command line; with arguments, those instead of its CMD."""
    [entrypoint] = json.loads(image()["ENTRYPOINT"])
    return [PROGRAMS / entrypoint, *(arguments or json.loads(image()["CMD"]))]


@contextmanager
def started(
    folder: Path, address: str, *arguments: str, **variables: str
) -> Iterator[tuple[NotifiedProcess, dict[str, str]]]:
    """Run the image's command in the image's environment, but for the port, under a manager."""
    environment = {
        **image_environment(),
        "PATH": f"{PROGRAMS}:{os.defpath}",
        "STREAMQUEUE_URI": address,
        "STREAMQUEUE_METRICS_PORT": str(free_port()),
        **variables,
    }
    with notified(command(*arguments), folder, environment, watchdog=WATCHDOG) as service:
        yield service, environment


def healthcheck(environment: dict[str, str]) -> int:
    """Run the image's health check in the container's environment."""
    script = DEPLOY / "docker" / "healthcheck.py"
    return subprocess.run([sys.executable, script], env=environment, timeout=30).returncode


def test_the_image_starts_a_worker_that_is_ready_alive_healthy_and_drains(
    folder: Path, address: str, jobs: Collection[Any]
) -> None:
    queue = MongoQueue(jobs, name="reports")
    with started(folder, address) as (service, environment):
        service.until("READY=1")
        queue.put({"name": "march"})
        wait_until(lambda: queue.size() == 0, "the report is made")
        service.until("WATCHDOG=1", times=3)
        assert healthcheck(environment) == 0

        service.process.send_signal(signal.SIGTERM)

        service.until("STOPPING=1")
        assert service.process.wait(20) == 0


@pytest.mark.slow
def test_the_image_starts_an_exporter_when_it_is_told_to(
    folder: Path, address: str, jobs: Collection[Any]
) -> None:
    MongoQueue(jobs, name="reports").put({"name": "march"})
    with started(folder, address, "exporter") as (service, environment):
        service.until("READY=1")
        service.until("WATCHDOG=1", times=3)
        assert healthcheck(environment) == 0

        service.process.send_signal(signal.SIGTERM)

        assert service.process.wait(20) == 0


def test_the_image_takes_the_address_from_a_file(
    folder: Path, address: str, jobs: Collection[Any]
) -> None:
    secret = folder / "uri"
    secret.write_text(f"{address}\n")
    with started(folder, "", STREAMQUEUE_URI_FILE=str(secret)) as (service, _):
        service.until("READY=1")


def test_the_unit_starts_an_exporter_that_is_ready_when_the_queues_are_counted(
    tmp_path: Path, address: str, jobs: Collection[Any]
) -> None:
    (tmp_path / "uri").write_text(address)
    unit = Unit(EXPORTER)
    environment = unit.environment(tmp_path) | {"STREAMQUEUE_METRICS_PORT": str(free_port())}
    line = unit.command(PROGRAMS, environment)

    with notified(line, tmp_path, environment, watchdog=WATCHDOG) as service:
        service.until("READY=1")
        service.until("WATCHDOG=1", times=3)
        assert service.manager.status == "Exporting the state of jobs"
        service.process.send_signal(signal.SIGTERM)

        service.until("STOPPING=1")
        assert service.process.wait(20) == 0
