"""The installation on one machine: what Compose and Prometheus say to it, and its tasks, run."""

from __future__ import annotations

import re
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
from tests.ops.deploy_files import (
    COMPOSE,
    OURS,
    RULES,
    compose,
    documents,
    environment,
    planted,
    python_tool,
    run,
    system_tool,
)
from tests.waiting import wait_until

FOLDER = COMPOSE.parent
PROMETHEUS = FOLDER / "prometheus.yml"
ALERTMANAGER = FOLDER / "alertmanager.yml"

MISTAKES = pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("condition: service_healthy", "condition: service_helthy"),
        ("stop_grace_period: 45s", "stop_grace_time: 45s"),
        ("cap_drop: [ALL]", "cap_drop: ALL"),
    ],
    ids=["a condition that is none", "a field that is none", "a word for a list"],
)


# the tools


def by_the_schema(path: Path) -> Any:
    return run(python_tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path)


def by_compose(path: Path) -> Any:
    if shutil.which("docker") and run("docker", "compose", "version").returncode == 0:
        return run("docker", "compose", "-f", path, "config", "--quiet")
    return run(system_tool("docker-compose"), "-f", path, "config", "--quiet")


def test_the_file_is_what_the_compose_specification_says() -> None:
    judged = by_the_schema(COMPOSE)

    assert judged.returncode == 0, judged.stdout


@MISTAKES
def test_the_specification_refuses(right: str, wrong: str, tmp_path: Path) -> None:
    assert by_the_schema(planted(COMPOSE, right, wrong, tmp_path)).returncode == 1


def test_compose_itself_takes_the_file() -> None:
    judged = by_compose(COMPOSE)

    assert judged.returncode == 0, judged.stderr


@MISTAKES
def test_compose_itself_refuses(right: str, wrong: str, tmp_path: Path) -> None:
    assert by_compose(planted(COMPOSE, right, wrong, tmp_path)).returncode != 0


def prometheus_takes(path: Path, folder: Path) -> Any:
    """Check a configuration, with the rules where they are here."""
    copy = folder / "checked.yml"
    copy.write_text(path.read_text().replace("/etc/prometheus/rules", str(RULES.parent)))
    return run(system_tool("promtool"), "check", "config", copy)


def test_prometheus_takes_its_configuration_with_our_rules(tmp_path: Path) -> None:
    judged = prometheus_takes(PROMETHEUS, tmp_path)

    assert judged.returncode == 0, judged.stderr
    assert "1 rule files found" in judged.stdout


def test_prometheus_refuses_a_setting_that_is_none(tmp_path: Path) -> None:
    wrong = planted(PROMETHEUS, "scrape_interval", "scrape_intervall", tmp_path)

    assert prometheus_takes(wrong, tmp_path).returncode != 0


def test_alertmanager_takes_its_configuration() -> None:
    judged = run(system_tool("amtool"), "check-config", ALERTMANAGER)

    assert judged.returncode == 0, judged.stderr


def test_alertmanager_refuses_a_receiver_that_is_none(tmp_path: Path) -> None:
    wrong = planted(ALERTMANAGER, "receiver: nobody", "receiver: somebody", tmp_path)

    assert run(system_tool("amtool"), "check-config", wrong).returncode != 0


# what the file says


def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


def test_nothing_listens_beyond_this_machine() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]

    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_what_is_not_ours_has_a_version() -> None:
    images = [service["image"] for service in services().values()]

    assert [name for name in images if not re.search(r":v?\d|^streamqueue:latest$", name)] == []


def mounted() -> list[str]:
    """The files and folders of this checkout that are mounted somewhere."""
    volumes = [
        volume.split(":")[0] for each in services().values() for volume in each.get("volumes", [])
    ]
    return sorted({source for source in volumes if source.startswith(".")})


@pytest.mark.parametrize("source", mounted())
def test_what_is_mounted_is_there(source: str) -> None:
    # Docker would make an empty folder of it, and say nothing.
    assert (FOLDER / source).exists()


def test_our_containers_can_do_no_more_than_they_must() -> None:
    for name, service in services().items():
        if service["image"].startswith(OURS):
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name


def test_jobs_are_neither_put_nor_run_before_the_indexes_are_there() -> None:
    assert services()["init"]["depends_on"] == {"mongo": {"condition": "service_healthy"}}
    for name in ("worker", "exporter", "producer"):
        awaited = services()[name]["depends_on"]
        assert awaited == {"init": {"condition": "service_completed_successfully"}}


def test_what_runs_for_ever_starts_again() -> None:
    policies = {name: service["restart"] for name, service in services().items()}

    assert policies.pop("init") == "on-failure"  # it ends, and then it has succeeded
    assert set(policies.values()) == {"unless-stopped"}


def test_alerts_go_where_alertmanager_is() -> None:
    (settings,) = documents(PROMETHEUS)
    ((target,),) = [
        each["targets"]
        for manager in settings["alerting"]["alertmanagers"]
        for each in manager["static_configs"]
    ]

    host, port = target.split(":")
    assert f"127.0.0.1:{port}:{port}" in services()[host]["ports"]


# its programs


@contextmanager
def started(*command: str, folder: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of the installation, stopped as Compose stops it."""
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment(**variables))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_the_producer_puts_what_the_worker_runs(address: str, jobs: Collection[Any]) -> None:
    emails = MongoQueue(jobs, name="emails")
    reports = MongoQueue(jobs, name="reports")
    emails.put({"to": "nobody"})
    reports.put({"name": "mine"}, key="mine")

    with (
        started("-m", "streamqueue", "worker", "tasks:worker", folder=FOLDER, **by_value(address)),
        started("producer.py", folder=FOLDER, **by_value(address)),
    ):
        wait_until(lambda: emails.stats()["errors"] == 1, "the wrong address is dead", 30)
        wait_until(lambda: not jobs.count_documents({"key": "mine"}), "the report is done", 30)
        assert jobs.find_one({"state": "dead"}, {"_id": 0, "attempts": 1}) == {"attempts": 1}
        wait_until(
            lambda: jobs.count_documents({"payload.to": {"$ne": "nobody"}}), "an e-mail is put", 30
        )


def test_the_worker_declares_its_schedule(address: str, jobs: Collection[Any]) -> None:
    settings = jobs.database[f"{jobs.name}.settings"]

    with started(
        *("-m", "streamqueue", "worker", "tasks:worker"), folder=FOLDER, **by_value(address)
    ):
        wait_until(
            lambda: settings.find_one({"kind": "schedule", "queue": "reports"}), "it is stored", 30
        )


def by_value(address: str) -> dict[str, str]:
    return {"STREAMQUEUE_URI": address}


def test_the_worker_reads_the_address_from_a_secret(
    address: str, jobs: Collection[Any], tmp_path: Path
) -> None:
    secret = tmp_path / "uri"
    secret.write_text(address + "\n")
    emails = MongoQueue(jobs, name="emails")
    emails.put({"to": "nobody"})

    with started(
        *("-m", "streamqueue", "worker", "tasks:worker"),
        folder=FOLDER,
        STREAMQUEUE_URI_FILE=str(secret),
    ):
        wait_until(lambda: emails.stats()["errors"] == 1, "the wrong address is dead", 30)


@pytest.fixture
def address(uri: str, jobs: Collection[Any]) -> str:
    """The address of this test's database, as the files give it."""
    return uri.replace("/?", f"/{jobs.database.name}?")
