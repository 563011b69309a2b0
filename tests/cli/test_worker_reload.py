"""``streamqueue worker --reload``: started again when its code changes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from streamqueue import MongoQueue
from streamqueue.cli.main import main
from tests.cli.supervised import WORKER, Start, put
from tests.waiting import wait_until

pytest.importorskip("watchfiles")


def test_a_change_lets_handlers_finish_and_starts_the_new_code(
    start: Start, queue: MongoQueue, tmp_path: Path
) -> None:
    worker = start("--reload")
    put(queue, 1, seconds=2)
    worker.until_said("started", times=1)

    (tmp_path / "tasks.py").write_text(WORKER.replace('say("finished"', 'say("finished anew"'))
    worker.until_said("finished", times=1)
    wait_until(lambda: len(worker.logged("(Working on queues)")) == 2, "it runs again", 60)
    put(queue, 1, seconds=0)

    worker.until_said("finished anew", times=1)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.exit_code(60) == 0
    assert len(worker.said("started")) == 2


@pytest.mark.slow
def test_a_broken_module_is_said_and_waited_for(start: Start, tmp_path: Path) -> None:
    worker = start("--reload")
    wait_until(lambda: worker.logged("(Working on queues)"), "it runs", 60)

    (tmp_path / "tasks.py").write_text("worker = nothing_of_this_name\n")
    wait_until(lambda: worker.logged("(is started again when its code changes)"), "it says so", 60)
    (tmp_path / "tasks.py").write_text(WORKER)

    wait_until(lambda: len(worker.logged("(Working on queues)")) == 2, "it runs again", 60)
    assert "NameError: name 'nothing_of_this_name' is not defined" in worker.log
    worker.process.send_signal(signal.SIGINT)
    assert worker.exit_code(60) == 0


def test_without_the_extra_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.setattr("streamqueue.cli.services.signals.take", lambda: None)

    assert main(["worker", "tasks:worker", "--reload"]) == 2

    assert "--reload needs watchfiles: pip install 'streamqueue[reload]'" in capsys.readouterr().err
