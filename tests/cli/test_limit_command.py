"""``streamqueue limit``: limits set, taken away and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import Limit, Rate
from streamqueue.cli.main import main
from streamqueue.protocol.limits import check_rules
from streamqueue.protocol.settings import QueueSettings

Command = Callable[..., str]


@pytest.fixture
def command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Call the command and return what it has printed."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def command(*arguments: str) -> str:
        assert main(["limit", *arguments]) == 0
        return capsys.readouterr().out

    return command


def of_settings(jobs: Collection[Any]) -> Collection[Any]:
    return jobs.database[f"{jobs.name}.settings"]


def declare(jobs: Collection[Any], *limits: Limit, **rules: Any) -> None:
    """Store what a worker declares."""
    declared = check_rules(limits, rules.get("ordered", False), rules.get("fair", False)).declared()
    of_settings(jobs).insert_one({"_id": "default", "declared": declared})


def test_a_limit_is_set_shown_and_taken_away(command: Command) -> None:
    assert command() == "no limits of queue default\n"

    said = command("--running", "3", "--rate", "100/60s", "--burst", "5").splitlines()

    assert said[0].split() == ["PER", "TASK", "RUNNING", "RATE"]
    assert said[1:] == ["queue  -     3 (set)  100 in 60 s, 5 at once (set)"]
    assert command().splitlines() == said
    command("--running", "none")
    assert command("--rate", "none") == "no limits of queue default\n"


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50", Rate(50)),
        ("50/s", Rate(50)),
        ("100/60s", Rate(100, 60)),
        ("1000/h", Rate(1000, 3600)),
        ("7/0.5m", Rate(7, 30)),
    ],
)
def test_a_rate_is_written_as_so_many_in_a_time(
    command: Command, jobs: Collection[Any], text: str, rate: Rate
) -> None:
    command("--rate", text, "--per", "group", "--queue", "calls")

    document = of_settings(jobs).find_one({"_id": "calls"})
    (rule,) = QueueSettings.from_document(document or {}).rules.limits
    assert (rule.per, rule.rate) == ("group", rate)


def test_it_says_who_has_said_what_holds(command: Command, jobs: Collection[Any]) -> None:
    declare(jobs, Limit(9, 50), Limit(2, per="group"), ordered="strict", fair=True)

    said = command("--running", "3").splitlines()

    assert "3 (set, instead of 9)" in said[1]
    assert "50 in 1 s (declared)" in said[1]
    assert "2 (declared)" in said[2]
    assert said[3:] == [
        "the jobs of a group run in their order, strictly (declared)",
        "groups take turns (declared)",
    ]


def test_scripts_are_told_the_same(command: Command, jobs: Collection[Any]) -> None:
    declare(jobs, Limit(9, 50), ordered=True)

    said = json.loads(command("--running", "3", "--json"))

    rate = {"count": 50, "seconds": 1.0, "burst": 1}
    assert said["queue"] == "default"
    assert said["set"] == [{"per": "queue", "running": 3}]
    assert said["declared"]["limits"] == [{"per": "queue", "running": 9, "rate": rate}]
    assert said["holds"] == {
        "limits": [{"per": "queue", "running": 3, "rate": rate}],
        "ordered": True,
        "fair": False,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        ["--running", "0"],
        ["--running", "many"],
        ["--running", "1000001"],
        ["--rate", "0/s"],
        ["--rate", "50/x"],
        ["--rate", "-1/s"],
        ["--rate", "50/0s"],
        ["--rate", "50", "--burst", "51"],
        ["--burst", "5"],
        ["--rate", "none", "--burst", "5"],
        ["--running", "3", "--per", "task"],
        ["--running", "3", "--queue", "$x"],
    ],
    ids=" ".join,
)
def test_what_is_no_limit_is_wrong_usage_in_one_sentence(
    command: Command, jobs: Collection[Any], capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert main(["limit", *wrong]) == 2

    *usage, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith("streamqueue: ")
    assert "".join(usage)[:7] in ("", "Usage: ")
    assert of_settings(jobs).count_documents({}) == 0
