"""``streamqueue schedule``: listed, added, removed, paused, resumed and run."""

from __future__ import annotations

import json
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
    """Run an action here, which does what it is told; return what it printed as JSON."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def command(*arguments: str) -> Any:
        assert main(["schedule", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return command


def test_a_schedule_is_added_listed_run_paused_resumed_and_removed(
    command: Command, jobs: Collection[Any], queue: MongoQueue
) -> None:
    assert command("list") == []
    settings = ["--queue", "default", "--priority", "3", "--spread", "60", "--key", "report"]
    rule = ["--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--catch-up", "all"]

    assert command("add", "report", '{"days": 1}', *rule, *settings) == {
        "schedule": "report",
        "added": True,
    }
    [listed] = command("list")
    run = command("run", "report")
    paused = command("pause", "report"), command("list")[0]
    resumed = command("resume", "report", "--catch-up", "one"), command("list")[0]
    removed = command("remove", "report"), command("list")

    assert (listed["name"], listed["cron"], listed["payload"], listed["put"]) == (
        *("report", "30 2 * * *", {"days": 1}),
        {"priority": 3, "key": "report"},
    )
    assert len(listed["next"]) == 3
    assert listed["next"][0].endswith("Z")
    job = queue.next()
    assert job is not None
    assert (run["id"], job.data, job.priority) == (str(job.id), {"days": 1}, 3)
    assert (paused[0]["paused"], paused[1]["paused"], paused[1]["next"]) == (True, True, [])
    assert (resumed[0]["paused"], resumed[1]["paused"]) == (False, False)
    assert removed == ({"schedule": "report", "removed": True}, [])


def test_the_list_for_people_shows_rule_next_tick_and_whose_it_is(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("add", "often", "--every", "90", "--offset", "30", "--queue", "q")
    command("add", "paused", "--cron", "@daily")
    command("pause", "paused")

    assert main(["schedule", "list"]) == 0

    header, often, paused = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["NAME", "QUEUE", "RULE", "NEXT"]
    assert "every 90 s + 30 s" in often
    assert "stored" in often
    assert "0 0 * * *" in paused
    assert "  paused  " in paused


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["add", "s"], 2, "when is it to fire"),
        (["add", "s", "--cron", "* * * * * *"], 2, "has 6: for seconds, use every="),
        (["add", "s", "--cron", "@daily", "--timezone", "Nowhere"], 2, "no time zone"),
        (["add", "s", "--every", "x"], 2, "must be a number"),
        (["add", "s", "--every", "5", "--catch-up", "some"], 2, "catch-up"),
        (["add", "a b", "--every", "5"], 2, "the name of a schedule"),
        (["add", "s", "{", "--every", "5"], 2, "is not JSON"),
        (["remove", "s"], 1, "there is no schedule 's'"),
        (["run", "s"], 1, "there is no schedule 's'"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    assert main(["schedule", *arguments]) == code

    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
