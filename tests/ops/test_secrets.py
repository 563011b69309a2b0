"""Passwords: read from files, in no argument, and in nothing that is printed, logged or served."""

from __future__ import annotations

import json
import logging
import os
import secrets
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from streamqueue import MongoQueue
from streamqueue.cli.main import main
from tests.ops.running import Run, Spawn, WorkerCommand, says_one_sentence
from tests.ops.secured import SecuredServer, role, secured
from tests.waiting import free_port, wait_until

CANARY = "hunter2"
SOON = "serverSelectionTimeoutMS=200"


@pytest.fixture
def file(tmp_path: Path, server: SecuredServer, database: str) -> Path:
    """A file that holds the address of the server, as a secret is mounted."""
    path = tmp_path / "uri"
    path.write_text(server.address(database=database) + "\n")
    path.chmod(0o400)
    return path


# from a file


def test_a_command_reads_the_uri_from_a_file(run: Run, file: Path) -> None:
    result = run("put", "{}", "--uri-file", str(file))

    assert (result.returncode, result.stderr) == (0, "")


def test_it_reads_it_from_the_file_that_the_variable_names(run: Run, file: Path) -> None:
    result = run("init", env={"STREAMQUEUE_URI_FILE": str(file)})

    assert (result.returncode, result.stderr) == (0, "")


def test_a_worker_reads_it_from_there_too(
    spawn: Spawn, server: SecuredServer, database: str, file: Path
) -> None:
    worker = spawn(None, env={"STREAMQUEUE_URI_FILE": str(file)})

    MongoQueue(server.client[database].jobs).put({"kind": "plain"})

    wait_until(lambda: worker.handled == ["plain 1"], "the job is handled")


def test_a_uri_and_a_file_are_one_too_many(run: Run, file: Path) -> None:
    result = run("stats", "--uri", "mongodb://127.0.0.1/x", "--uri-file", str(file))

    assert result.returncode == 2
    assert "not allowed with" in result.stderr


@pytest.mark.parametrize("command", [["stats"], ["demo"], ["bench"]], ids=str)
def test_a_file_that_is_missing_is_one_sentence(run: Run, command: list[str]) -> None:
    result = run(*command, "--uri-file", "/no/such/file")

    assert result.returncode == 2
    assert "'/no/such/file'" in result.stderr
    assert says_one_sentence(result.stderr)


def test_a_worker_whose_file_is_missing_says_so(spawn: Spawn) -> None:
    worker = spawn(None, env={"STREAMQUEUE_URI_FILE": "/no/such/file"})

    assert worker.process.wait(20) == 2
    assert "'/no/such/file'" in worker.log
    assert says_one_sentence(worker.log)


# in no output


@pytest.fixture
def pymongo_log() -> Iterator[None]:
    """The command line silences pymongo's log in its process: here that is the tests' own."""
    log = logging.getLogger("pymongo")
    level = log.level
    yield
    log.setLevel(level)


NOWHERE = f"mongodb://ada:{CANARY}@127.0.0.1:9/x?{SOON}"
BAD_URIS = [
    NOWHERE,
    f"mongodb://ada:%40{CANARY}%3A%2F@127.0.0.1:9/x?{SOON}",
    f"mongodb://ada:12#{CANARY}@127.0.0.1:9/x?{SOON}",
    f"mongodb://ada:12 {CANARY}@127.0.0.1:9/x?{SOON}",
    f"mongodb://ada:[{CANARY}]@127.0.0.1:9/x?{SOON}",
    *(f"mongodb://ada:12{mark}{CANARY}@127.0.0.1:9/x" for mark in "@:/?%"),
    f"mongodb://ada:12/a.{CANARY}@127.0.0.1:9/x",
    f"mongodb://ada:12?a={CANARY}@127.0.0.1:9/x",
    f"mongodb://ada:{CANARY}/x",
    f"mongodb://ada:{CANARY}@127.0.0.1:port/x",
    f"mongodb://ada:{CANARY}@/x",
    f"mongo://ada:{CANARY}@127.0.0.1/x",
    f"ada:{CANARY}@127.0.0.1/x",
    f"mongodb+srv://ada:{CANARY}@nowhere.invalid/x",
    f"mongodb+srv://ada:{CANARY}@nowhere.invalid:27017/x",
    f"mongodb://ada:{CANARY}@127.0.0.1:9/x?w=1&maxPoolSize=many&{SOON}",
    f"mongodb://ada:{CANARY}@127.0.0.1:9/x?authMechanism=NONE&{SOON}",
    f"mongodb://127.0.0.1:9/x?tls=true&tlsCertificateKeyFilePassword={CANARY}&{SOON}",
    f"mongodb://127.0.0.1:9/x?authMechanismProperties=AWS_SESSION_TOKEN:{CANARY}&{SOON}",
    f"mongodb://127.0.0.1:9/x?authMechanismProperties={CANARY}&{SOON}",
    f"mongodb://127.0.0.1:9/x?password={CANARY}&{SOON}",
]


@pytest.mark.few(7)
@pytest.mark.usefixtures("pymongo_log")
@pytest.mark.parametrize("uri", BAD_URIS)
def test_the_command_line_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], uri: str
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", uri)
    monkeypatch.delenv("STREAMQUEUE_URI_FILE", raising=False)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        code = main(["stats"])

    said = "".join(capfd.readouterr()) + "".join(str(warning.message) for warning in warned)
    assert code in (1, 2)
    assert says_one_sentence(said)
    assert CANARY not in said


def test_a_wrong_password_is_not_shown(server: SecuredServer, run: Run, spawn: Spawn) -> None:
    uri = server.address(password=CANARY)

    result, worker = run("stats", uri=uri), spawn(uri, "--log-level", "DEBUG")

    assert result.returncode == worker.process.wait(20) == 1
    assert CANARY not in result.stdout + result.stderr + worker.log


@pytest.mark.parametrize("uri", [NOWHERE, f"{NOWHERE}&tls=true&tlsCAFile=/no/such.pem"])
def test_a_worker_that_cannot_start_shows_no_password(spawn: Spawn, uri: str) -> None:
    worker = spawn(uri, "--log-level", "DEBUG")

    assert worker.process.wait(20) in (1, 2)
    assert says_one_sentence(worker.log)
    assert CANARY not in worker.log


def ask(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.read().decode()


def canary_user(server: SecuredServer, database: str) -> str:
    """Make a consumer whose password is the canary, and return the address."""
    consumer, name = role("consumer", database), f"user-{secrets.token_hex(4)}"
    server.client.admin.command(consumer)
    server.client.admin.command("createUser", name, pwd=CANARY, roles=[consumer["createRole"]])
    return server.address(name, CANARY, database=database)


@pytest.mark.slow
def test_a_worker_that_loses_its_server_shows_no_password(
    tmp_path: Path, database: str, spawn: Spawn
) -> None:
    port = free_port()
    with secured(tmp_path) as server:
        worker = spawn(
            canary_user(server, database), "--log-level", "DEBUG", "--metrics-port", str(port)
        )
        MongoQueue(server.client[database].jobs).put({"kind": "plain"})
        wait_until(lambda: worker.handled == ["plain 1"], "the job is handled")
        served = ask(port, "/metrics") + ask(port, "/readyz")

    wait_until(lambda: 'ready": false' in ask(port, "/readyz"), "it misses its server", 20)
    wait_until(lambda: "Change stream broke" in worker.log, "it says so", 20)

    served += ask(port, "/metrics") + ask(port, "/readyz") + ask(port, "/healthz")
    assert "streamqueue_stream_connected 0.0" in served
    assert CANARY not in served
    assert CANARY not in worker.log


# in no argument


def arguments_of(worker: WorkerCommand) -> list[str]:
    """Return the command lines of a worker and of the processes under it, as ps shows them."""
    lines = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            lines[int(entry.name)] = (int(parent), (entry / "cmdline").read_text())
        except (OSError, ValueError):
            continue  # no process, or one that has ended
    top = worker.process.pid
    return [line for pid, (parent, line) in lines.items() if top in (pid, parent)]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_no_process_of_a_worker_has_the_password_among_its_arguments(
    server: SecuredServer, database: str, spawn: Spawn
) -> None:
    worker = spawn(canary_user(server, database), "--processes", "2")
    wait_until(lambda: worker.log.count("Working on queues") == 2, "both work", 60)

    lines = arguments_of(worker)

    assert len(lines) == 4  # the supervisor, the dispatcher and two
    assert CANARY not in json.dumps(lines)
    assert "mongodb://" not in json.dumps(lines)


def test_what_a_client_says_of_itself_has_no_password(server: SecuredServer) -> None:
    with MongoClient[dict[str, Any]](server.address()) as client:
        queue = MongoQueue(client.test.jobs)

        assert server.password not in repr(queue) + repr(queue._store) + repr(client)
