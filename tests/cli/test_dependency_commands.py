"""Jobs that come after others on the command line, as people see them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamqueue import MongoQueue
from streamqueue.cli.main import main

Command = Callable[..., str]


@pytest.fixture
def command(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Call a command and return what it has printed."""
    monkeypatch.setenv("STREAMQUEUE_URI", address)

    def command(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    return command


def test_a_list_shows_what_jobs_wait_for_where_some_do(command: Command, queue: MongoQueue) -> None:
    parent = queue.put({})
    assert "WAITS FOR" not in command("list")

    queue.put({}, after=[parent])
    head, plain, waiting = sorted(command("list").splitlines(), key=lambda line: "waiting" in line)

    place = head.index("WAITS FOR")
    assert plain[place:].split() == ["-", "-"]
    assert waiting[place:].startswith(f"parents {parent} ")


def test_a_list_says_that_a_parent_has_failed(command: Command, queue: MongoQueue) -> None:
    parent = queue.put({}, max_attempts=1)
    queue.put({}, after=[parent])
    [job] = queue.claim(1)
    job.error("broken")

    assert f"failed parents {parent}" in command("list", "--state", "waiting")
