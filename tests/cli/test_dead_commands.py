"""Many dead jobs at once: asked for, counted, changed in pieces, and nothing but what was meant."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.cli.main import main
from streamqueue.protocol import operations
from streamqueue.store.blocking import Store
from tests import programs
from tests.contract.looks import server_time
from tests.waiting import wait_until
from tests.worker.faults import failing

Command = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command here; return its exit code and what it printed as JSON."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def command(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = main([*arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return command


def bury(jobs: Collection[Any], count: int, **fields: Any) -> list[Any]:
    """Leave so many dead jobs, each a second older than the next."""
    now = server_time(jobs)
    dead = {"queue": "default", "state": "dead", "payload": {}, "attempts": 3, "priority": 0}
    made = [
        {**dead, "finished_at": now - timedelta(seconds=count - n), "last_error": "boom", **fields}
        for n in range(count)
    ]
    return jobs.insert_many(made).inserted_ids


def in_state(jobs: Collection[Any], state: str) -> list[Any]:
    return [job["_id"] for job in jobs.find({"state": state}).sort("_id", 1)]


@pytest.mark.parametrize(("verb", "word"), [("requeue", "requeued"), ("purge", "purged")])
def test_without_a_terminal_and_a_yes_nothing_is_changed(
    address: str,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    word: str,
) -> None:
    bury(jobs, 2)
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    code = main(["dead", verb])

    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert "give --yes" in said.err
    assert len(said.err.splitlines()) == 1
    assert len(in_state(jobs, "dead")) == 2


@pytest.mark.parametrize(("verb", "word"), [("requeue", "requeued"), ("purge", "purged")])
def test_a_limit_takes_those_that_died_first(
    command: Command, jobs: Collection[Any], verb: str, word: str
) -> None:
    ids = bury(jobs, 5)

    code, said = command("dead", verb, "--yes", "--limit", "2")

    assert (code, said) == (0, {word: 2, "stay_dead": 0, "stopped": False})
    assert in_state(jobs, "dead") == ids[2:]


@pytest.mark.parametrize(("verb", "word"), [("requeue", "requeued"), ("purge", "purged")])
def test_those_that_died_since_and_whose_error_matches_are_taken(
    command: Command, jobs: Collection[Any], verb: str, word: str
) -> None:
    long_ago = server_time(jobs) - timedelta(hours=2)
    bury(jobs, 1, finished_at=long_ago, last_error="KeyError: 'a.b*'")
    [meant] = bury(jobs, 1, last_error="Traceback\nKeyError: 'a.b*'")
    bury(jobs, 1, last_error="KeyError: 'axbb'")
    bury(jobs, 1, last_error=None)
    bury(jobs, 1, queue="other", last_error="KeyError: 'a.b*'")

    _, listed = command("dead", "list", "--since", "1h", "--match", "a.b*")
    _, said = command("dead", verb, "--yes", "--since", "1h", "--match", "a.b*")

    assert [job["id"] for job in listed] == [str(meant)]  # type: ignore[index]
    assert said[word] == 1
    assert meant not in in_state(jobs, "dead")


@pytest.mark.parametrize(
    ("text", "there"),
    [("90s", 1), ("1.5h", 2), ("3d", 3), ("36500d", 3), ("0s", 0), ("2026-01-01", 3), ("", None)],
)
def test_a_time_is_how_long_ago_or_when(
    command: Command, jobs: Collection[Any], text: str, there: int | None
) -> None:
    for ago in (30, 3600, 2 * 86400):
        bury(jobs, 1, finished_at=server_time(jobs) - timedelta(seconds=ago))
    bury(jobs, 1, finished_at=datetime(2025, 12, 31, tzinfo=UTC)) if text == "2026-01-01" else None

    if there is None:
        assert main(["dead", "list", "--since", text]) == 2
    else:
        assert len(command("dead", "list", "--since", text)[1]) == there


@pytest.mark.parametrize("verb", ["requeue", "purge"])
def test_only_what_was_dead_at_the_count_is_meant(
    command: Command, jobs: Collection[Any], verb: str
) -> None:
    """What dies between the answer and the deed was never seen by whoever said yes."""
    ids = bury(jobs, 1)
    later = bury(jobs, 1, finished_at=server_time(jobs) + timedelta(hours=1))

    command("dead", verb, "--yes")

    assert in_state(jobs, "dead") == later
    assert ids[0] not in later


def test_a_job_that_died_again_since_it_was_read_is_left(jobs: Collection[Any]) -> None:
    store = Store(jobs)
    store.prepare()
    one, two, three = bury(jobs, 3)
    deaths = operations.Deaths("default", server_time(jobs))
    [died] = store.pieces(operations.dead_by_now(deaths))
    again = {"finished_at": server_time(jobs) + timedelta(minutes=1)}
    jobs.update_one({"_id": one}, {"$set": again})
    jobs.update_one({"_id": two}, {"$set": {"state": "ready"}})

    assert store.requeue("default", died) == (1, [])
    jobs.update_one({"_id": three}, {"$set": {"state": "dead"}})
    deleted = jobs.delete_many(operations.purge(deaths, died)).deleted_count

    assert deleted == 1
    assert (in_state(jobs, "dead"), in_state(jobs, "ready")) == ([one], [two])


def test_those_whose_key_is_taken_stay_dead_and_are_counted(
    command: Command, jobs: Collection[Any]
) -> None:
    MongoQueue(jobs).put({}, key="taken")
    taken = bury(jobs, 1, key="taken")
    twins = bury(jobs, 2, key="twin")
    bury(jobs, 3)

    code, said = command("dead", "requeue", "--yes")

    assert (code, said) == (0, {"requeued": 4, "stay_dead": 2, "stopped": False})
    assert in_state(jobs, "dead") == [*taken, twins[1]]


def test_an_id_goes_without_what_chooses_among_many(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    assert main(["dead", "requeue", "17", "--limit", "1"]) == 2
    assert "leave out the ID" in capsys.readouterr().err


def test_an_id_is_enough_whatever_queue_its_job_is_of(
    command: Command, jobs: Collection[Any]
) -> None:
    [emails] = bury(jobs, 1, queue="emails")
    [reports] = bury(jobs, 1, queue="reports")

    assert command("dead", "requeue", str(emails)) == (0, {"requeued": 1})

    assert in_state(jobs, "ready") == [emails]
    assert in_state(jobs, "dead") == [reports]


def test_an_id_is_looked_for_in_no_other_queue_than_one_that_is_given(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    jobs: Collection[Any],
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)
    [emails] = bury(jobs, 1, queue="emails")

    assert main(["dead", "requeue", str(emails), "--queue", "reports"]) == 1
    assert f"no dead job {emails}" in capsys.readouterr().err
    assert in_state(jobs, "dead") == [emails]


def test_a_list_of_dead_jobs_says_for_a_program_whose_they_are(
    command: Command, jobs: Collection[Any]
) -> None:
    put = datetime(2026, 3, 1, 14, 30, tzinfo=UTC)
    [job] = bury(
        jobs, 1, key="order:5", group="ada", task="send", created_at=put, payload={"secret": 1}
    )

    code, listed = command("dead", "list")

    assert code == 0
    [row] = listed
    assert row == {  # and no payload
        "id": str(job),
        "queue": "default",
        "task": "send",
        "key": "order:5",
        "group": "ada",
        "created_at": "2026-03-01T14:30:00.000Z",
        "attempts": 3,
        "finished_at": row["finished_at"],  # type: ignore[index]
        "last_error": "boom",
    }


def at_a_terminal(address: str, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command on a terminal of its own; return it, and our end of the terminal."""
    ours, theirs = pty.openpty()
    process = programs.Popen(
        [sys.executable, "-m", "streamqueue", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "STREAMQUEUE_URI": address},
    )
    os.close(theirs)
    return process, ours


def read_until(terminal: int, words: bytes) -> bytes:
    """Read what is written to a terminal until these words, or its end."""
    said = b""
    while words not in said:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # its other end is closed
            break
    return said


@pytest.mark.parametrize(("answer", "left"), [(b"y\n", 0), (b"\n", 3), (b"\xff\n", 3)])
def test_at_a_terminal_it_asks_with_the_number(
    address: str, jobs: Collection[Any], answer: bytes, left: int
) -> None:
    bury(jobs, 3)
    process, terminal = at_a_terminal(address, "dead", "purge")

    assert b"Purge 3 dead jobs of queue default? [y/N]" in read_until(terminal, b"[y/N]")
    os.write(terminal, answer)
    said = read_until(terminal, b"\0")

    assert process.wait(20) == (1 if left else 0)
    assert len(in_state(jobs, "dead")) == left
    assert (b"stopped: 0 purged" if left else b"3 purged") in said


def test_ctrl_c_stops_between_two_pieces_and_says_what_was_done(
    address: str, jobs: Collection[Any]
) -> None:
    bury(jobs, 8_000)
    process, terminal = at_a_terminal(address, "dead", "requeue", "--yes")
    said = read_until(terminal, b"of 8,000")

    process.send_signal(signal.SIGINT)
    said += read_until(terminal, b"\0")

    assert process.wait(20) == 1
    wait_until(lambda: bool(in_state(jobs, "dead")), "it has stopped")
    done = 8_000 - len(in_state(jobs, "dead"))
    assert f"stopped: {done:,} requeued, of 8,000 dead jobs".encode() in said
    assert done % 1000 == 0


def test_an_outage_in_between_says_what_was_done(
    command: Command,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
) -> None:
    bury(jobs, 1001)
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    with failing(jobs.database.client, "update", app="streamqueue-cli", skip=1, errorCode=13):
        assert main(["dead", "requeue", "--yes"]) == 1

    said = capsys.readouterr().err.splitlines()
    assert said[0] == "streamqueue: 1,000 of 1,001 were requeued for certain, then it broke off"
    assert len(said) == 2
