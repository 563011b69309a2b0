"""The benchmark as a person or a script would run it: that it measures, not how fast things are."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from streamqueue import ConfigurationError, StreamQueueError
from streamqueue.bench import PARTS, run
from streamqueue.bench.fleet import Fleet
from streamqueue.bench.process import Team
from streamqueue.bench.report import Row, Spread
from streamqueue.bench.scale import Scale
from tests import programs
from tests.waiting import wait_until

MEASURED = ("latency", "drain", "put")
OTHERS = ("answers", "queues", "limits", "depth", "scrape", "soak")
TINY = ("--rounds", "1", "--jobs", "50", "--big", "200", "--max-processes", "1", "--json")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "streamqueue", "bench", *arguments]


def databases(client: MongoClient[dict[str, Any]]) -> set[str]:
    return {name for name in client.list_database_names() if name.startswith("streamqueue_bench")}


def measured(parts: tuple[str, ...], uri: str, folder: Path) -> dict[str, Any]:
    """Return what a tiny run of several parts printed."""
    arguments = command(*parts, *TINY, "--uri", uri)
    done = programs.run(arguments, capture_output=True, text=True, timeout=240, cwd=folder)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.fixture(scope="module")
def result(uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(MEASURED, uri, tmp_path_factory.mktemp("bench"))


def rows(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in result["parts"].values():
        yield from part["rows"]


@pytest.mark.slow
def test_each_part_has_rows(result: dict[str, Any]) -> None:
    check_rows(result, MEASURED)


@pytest.mark.slow
def test_each_of_the_other_parts_has_rows(uri: str, tmp_path: Path) -> None:
    check_rows(measured(OTHERS, uri, tmp_path), OTHERS)


def check_rows(result: dict[str, Any], parts: tuple[str, ...]) -> None:
    assert tuple(result["parts"]) == parts
    assert all(part["rows"] for part in result["parts"].values())
    assert all(
        row.keys() == {"name", "unit", "ours", "floor", "ratio", "ratio_to"} for row in rows(result)
    )


@pytest.mark.slow
def test_every_figure_is_finite_and_has_its_spread(result: dict[str, Any]) -> None:
    spreads = [row[key] for row in rows(result) for key in ("ours", "floor", "ratio") if row[key]]

    assert spreads
    for spread in spreads:
        assert all(math.isfinite(spread[key]) for key in ("median", "min", "max"))
        assert spread["min"] <= spread["median"] <= spread["max"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["latency", "drain", "put"])
def test_the_floor_is_measured_in_the_same_run(result: dict[str, Any], part: str) -> None:
    compared = [row for row in result["parts"][part]["rows"] if row["ratio_to"] == "floor"]

    assert compared
    for row in compared:
        assert row["ours"]["median"] > 0
        assert row["floor"]["median"] > 0
        assert row["ratio"]["median"] > 0


@pytest.mark.slow
def test_the_environment_is_part_of_the_result(result: dict[str, Any]) -> None:
    assert result["environment"].keys() >= {
        *("streamqueue", "python", "pymongo", "mongod", "uvloop"),
        *("topology", "write concern", "processors", "rounds"),
    }


@pytest.mark.slow
def test_the_model_says_what_gives_first_and_what_to_do_then(tmp_path: Path) -> None:
    asked = ("--jobs-per-second", "1000", "--hosts", "2", "--processes", "2")
    done = subprocess.run(
        command("model", *asked, *TINY), capture_output=True, text=True, timeout=120, cwd=tmp_path
    )

    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)["parts"]["model"]
    names = [row["name"] for row in model["rows"]]
    assert any(name.startswith("2 dispatchers") for name in names)
    assert (
        "1,000 jobs/s by 2 hosts with 2 processes, a dispatcher each: 2 streams" in model["notes"]
    )
    assert any(note.startswith("first to give") for note in model["notes"])


def test_a_deployment_is_for_the_model_alone() -> None:
    arguments = command("drain", "--jobs-per-second", "1000")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    assert "'model'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_its_database_is_gone_afterwards(
    result: dict[str, Any], client: MongoClient[dict[str, Any]]
) -> None:
    assert result
    assert databases(client) == set()


def test_a_terminated_run_cleans_up(
    uri: str, client: MongoClient[dict[str, Any]], tmp_path: Path
) -> None:
    arguments = command("idle", "--uri", uri)
    bench = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    wait_until(lambda: databases(client), "the benchmark has begun")

    bench.send_signal(signal.SIGTERM)
    _, said = bench.communicate(timeout=30)

    assert bench.returncode == 1
    assert "Traceback" not in said
    assert databases(client) == set()


def test_an_unknown_part_is_wrong_usage_in_one_sentence() -> None:
    done = programs.run(command("speed"), capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "'speed'" in done.stderr
    assert all(part in done.stderr for part in PARTS)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"jobs": 0}, {"processes": 0}, {"big": 0}])
def test_a_number_out_of_range_is_wrong_usage(wrong: dict[str, int]) -> None:
    settings: dict[str, Any] = {"rounds": None, "jobs": None, "big": None, "processes": 1}
    settings.update(wrong)

    with pytest.raises(ConfigurationError, match=r"must be a whole number"):
        run(None, [], **settings, full=False, as_json=True)


def test_a_consumer_that_dies_is_one_sentence_with_its_last_words() -> None:
    settings = {"database": "d", "collection": "c", "concurrency": 0, "handler": "passes"}
    team = Team("consumer", Fleet(1), "mongodb://127.0.0.1:1/", settings)

    with pytest.raises(StreamQueueError, match=r"consumer process 1 ended with .*concurrency"):
        team.__enter__()


def test_consumers_end_when_the_benchmark_is_killed(uri: str, tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from streamqueue.bench.fleet import Fleet\n"
        "from streamqueue.bench.process import Team\n"
        "settings = dict(database='d', collection='c', concurrency=1, handler='passes')\n"
        "with Team('consumer', Fleet(1), sys.argv[1], settings) as team:\n"
        "    print(team._children[0]._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, uri], capture_output=True, text=True, timeout=30
    )

    consumer = int(done.stdout)

    wait_until(lambda: not is_running(consumer), "the consumer has ended")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()


def test_ratios_are_made_within_a_round() -> None:
    row = Row.against("put", "jobs/s", [100.0, 10.0, 30.0], [100.0, 20.0, 10.0])

    assert row.ours == Spread(30.0, 10.0, 100.0)
    assert row.floor == Spread(20.0, 10.0, 100.0)
    assert row.ratio == Spread(1.0, 0.5, 3.0)


def test_the_full_version_has_a_million_jobs_where_that_is_the_question() -> None:
    scale = Scale.choose(rounds=None, jobs=None, big=None, processes=16, full=True)

    assert scale.soaked == 1_000_000
    assert scale.depths == (1_000, 100_000, 1_000_000)
    assert scale.delayed == 1_000_000
