"""Whoever may insert a job chooses its text; no command hands it to a terminal as it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Binary
from pymongo.synchronous.collection import Collection

from streamqueue.cli.main import main

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x7f\u202e\nno dead jobs in queue default"
PAST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def hostile(jobs: Collection[Any]) -> Collection[Any]:
    """Jobs with control characters wherever there may be text."""
    dead = {"queue": "default", "state": "dead", "payload": {}, "finished_at": PAST}
    texts = {"last_error": HOSTILE, "key": HOSTILE, "locked_by": HOSTILE}
    fields: dict[str, Any] = dict.fromkeys(("attempts", "finished_at", "last_error"), HOSTILE)
    held = {"state": "running", "locked_until": PAST, "lease": b"x", "payload": {}, **texts}
    jobs.insert_many(
        [
            {**dead, **texts, "_id": HOSTILE},
            {**dead, "_id": Binary(HOSTILE.encode(), 128), "last_error": {HOSTILE: [HOSTILE]}},
            {**dead, **fields, "_id": {HOSTILE: HOSTILE}},
            {**dead, "_id": 1, "queue": HOSTILE, "last_error": f"{HOSTILE}\n{HOSTILE}"},
            {**held, "_id": f"held {HOSTILE}", "queue": HOSTILE, "attempts": 1},
            {**held, "_id": 2, "queue": "default", "attempts": 10},
        ]
    )
    jobs.database[f"{jobs.name}.consumers"].insert_one(
        {"_id": HOSTILE, "queues": [HOSTILE], "seen_at": datetime.now(UTC), "slots": 1}
    )
    return jobs


@pytest.fixture
def as_configured(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)


@pytest.mark.few(1)
@pytest.mark.usefixtures("hostile", "as_configured")
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_nothing_that_a_terminal_obeys_is_printed(
    capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    for command in (
        ["dead", "list"],
        ["dead", "list", "--queue", "other"],
        ["dead", "requeue", HOSTILE, "--queue", "other"],
        ["consumers"],
        ["top", "--once", "--interval", "0.1"],
        ["stats", "--queue", "default"],
        ["reap"],
        ["put", json.dumps({"a": HOSTILE}), "--key", HOSTILE],
        ["put", json.dumps({"a": HOSTILE}), "--key", HOSTILE],
    ):
        main([*command, *form])

        shown = capsys.readouterr()
        assert shown.out + shown.err, command
        for line in (shown.out + shown.err).split("\n"):
            assert line.isprintable(), command


@pytest.mark.parametrize("arguments", [["put", "--priority", HOSTILE], [HOSTILE], ["--" + HOSTILE]])
def test_nor_what_is_wrong_with_an_argument(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2

    assert all(line.isprintable() for line in capsys.readouterr().err.split("\n"))
