"""The guide on coming from mongoqueue: its recipes and its commands, as they stand there."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.cli.main import main
from tests.cli.mongoqueue import NEW, lock
from tests.guides import GUIDES, recipes_of

GUIDE = (GUIDES / "from-mongoqueue.md").read_text("utf-8")
CONSOLE = [
    textwrap.dedent(block) for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
]
SOME_ID = re.compile(r"\b[0-9a-f]{24}\b")


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    with MongoQueue(jobs) as queue:
        yield queue


def test_the_code_of_the_old_readme_runs(
    queue: MongoQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes_of("from-mongoqueue.md", queue)

    assert capsys.readouterr().out == "{'foobar': 0}\n"
    assert queue.size() == 2


def test_the_commands_print_what_the_guide_shows(
    address: str,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = jobs.database.old_jobs
    old.insert_many([{**NEW, "payload": {"n": n}} for n in range(4)])
    old.insert_one({**NEW, "payload": {}, "attempts": 3, "last_error": "boom"})
    lock(old)
    monkeypatch.setenv("STREAMQUEUE_URI", address)
    codes = []

    for block in CONSOLE:
        line, _, shown = block.partition("\n")
        codes.append(main(line.removeprefix("$ streamqueue ").split()))
        said = capsys.readouterr().out.replace(jobs.database.name, "shop")
        assert SOME_ID.sub("ID", said) == SOME_ID.sub("ID", shown)

    assert codes == [0, 1, 0]
    assert old.count_documents({}) == 0
