"""``streamqueue topic``: list, subscribe, unsubscribe, publish."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.cli.main import main

Command = Callable[..., Any]


@pytest.fixture
def command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run a command of the topic here, which does what it is told; return what it printed."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def command(*arguments: str) -> Any:
        assert main(["topic", *arguments]) == 0
        said = capsys.readouterr().out
        return json.loads(said) if "--json" in arguments else said.splitlines()

    return command


def payloads(jobs: Collection[Any], queue: str) -> list[Any]:
    return [job["payload"] for job in jobs.find({"queue": queue}).sort("seq", 1)]


def test_queues_subscribe_and_are_listed(command: Command) -> None:
    assert command("list") == ["no topics"]
    assert command("subscribe", "orders", "mails") == ["queue mails subscribes to orders"]
    command("subscribe", "orders", "audit", "--expires", "2040-01-01T12:00:00Z")
    command("subscribe", "orders.paid", "mails")
    said = command("unsubscribe", "orders.paid", "mails", "--json")

    assert said == {"topic": "orders.paid", "queue": "mails", "subscribed": False}
    assert command("list") == [
        "TOPIC        QUEUE     UNTIL",
        "orders       audit     2040-01-01 12:00:00",
        "orders       mails     -",
        "orders.paid  (nobody)  -",
    ]
    assert command("list", "--json")[0] == {
        "topic": "orders",
        "subscribers": [
            {"queue": "audit", "expires_at": "2040-01-01T12:00:00.000Z"},
            {"queue": "mails", "expires_at": None},
        ],
    }


def test_a_message_is_published_with_the_settings_of_put(
    command: Command, jobs: Collection[Any]
) -> None:
    for name in ("mails", "audit"):
        command("subscribe", "orders", name)
    settings = ["--priority", "3", "--delay", "60", "--key", "k", "--keep", "5"]

    (ids,) = command("publish", "orders", '{"n": 1}', "--json", *settings)

    stored = {str(job["_id"]): job for job in jobs.find()}
    assert [stored[job_id]["queue"] for job_id in ids] == ["audit", "mails"]
    for job in stored.values():
        assert (job["priority"], job["state"], job["key"], job["keep"]) == (3, "scheduled", "k", 5)


def test_messages_are_read_from_standard_input(
    command: Command, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    command("subscribe", "orders", "mails")
    lines = io.TextIOWrapper(io.BytesIO(b'{"n": 1}\n{"n": 2}\n'))
    monkeypatch.setattr(sys, "stdin", lines)

    assert command("publish", "orders") == ["published 2 messages, 2 jobs"]

    assert payloads(jobs, "mails") == [{"n": 1}, {"n": 2}]


def test_with_one_bad_message_none_is_published(
    command: Command, jobs: Collection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    command("subscribe", "orders", "mails")

    assert main(["topic", "publish", "orders", '{"n": 1}', "[2]"]) == 2

    assert "payload" in capsys.readouterr().err
    assert payloads(jobs, "mails") == []


def test_it_is_said_that_nobody_subscribes(command: Command) -> None:
    assert command("publish", "orders", "{}") == ["nobody subscribes to orders"]
    assert command("publish", "orders", "{}", "--json") == [[]]


def test_settings_of_queues_are_no_topics(command: Command, jobs: Collection[Any]) -> None:
    MongoQueue(jobs, name="topic").pause()
    settings = jobs.database[f"{jobs.name}.settings"]
    settings.insert_many([{"_id": "topic:a\x1b[1m"}, {"_id": "schedule:s", "kind": "schedule"}])

    assert command("list") == ["no topics"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["subscribe", "or:ders", "mails"], "a topic name is"),
        (["subscribe", "orders", "$mails"], "a queue name is"),
        (["publish", "orders", "[1]"], "must be an object"),
        (["publish", "orders", "{}", "{}", "--key", "k"], "--key goes with one message"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str],
    said: str,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    assert main(["topic", *arguments]) != 0

    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
