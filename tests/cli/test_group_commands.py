"""Groups on the command line, as people say them and see them."""

from __future__ import annotations

import json

from streamqueue import MongoQueue
from tests.cli.conftest import Command


def test_jobs_are_put_into_a_group(command: Command, queue: MongoQueue) -> None:
    command("put", '{"n": 1}', '{"n": 2}', "--group", "ada")

    assert [info.group for info in queue.list()] == ["ada", "ada"]


def test_a_job_shows_its_group(command: Command, queue: MongoQueue) -> None:
    job_id = str(queue.put({}, group="ada"))

    assert "group        ada" in command("get", job_id).splitlines()
    assert json.loads(command("get", job_id, "--json"))["group"] == "ada"


def test_a_list_shows_groups_where_there_are_some(command: Command, queue: MongoQueue) -> None:
    queue.put({})
    assert "GROUP" not in command("list")

    queue.put({}, group="ada " * 100)
    head, plain, grouped = command("list").splitlines()

    place = head.index("GROUP")
    assert plain[place:].split() == ["-", "-"]
    assert grouped[place:].startswith("ada ada")
    assert len(grouped) < 130


def test_a_list_can_be_of_one_group(command: Command, queue: MongoQueue) -> None:
    queue.put({}, group="bob")
    job_id = str(queue.put({}, group="ada"))

    (found,) = json.loads(command("list", "--group", "ada", "--json"))

    assert found["id"] == job_id
    assert "no jobs of group eve in queue default" in command("list", "--group", "eve")
