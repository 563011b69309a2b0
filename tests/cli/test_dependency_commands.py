"""Jobs that come after others on the command line, as people see them."""

from __future__ import annotations

from streamqueue import MongoQueue
from tests.cli.conftest import Command


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
