"""The boards are what they are built from, and no panel asks for what does not exist."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import dashboard_rules as rules
from .contract import contract
from .dashboard_rules import RULES, Rule
from .panels import (
    BOARDS,
    EVERYTHING,
    GRAFANA,
    Json,
    marks,
    panels,
    queries,
    substituted,
)

OVERVIEW, CONSUMERS = "streamqueue-overview", "streamqueue-consumers"

NOT_ON_A_BOARD = ("_count", "_sum")
"""Parts of a histogram whose other part is shown."""


def build(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The sources and the boards, to be changed."""
    folder = tmp_path / "grafana"
    folder.mkdir()
    for source in GRAFANA.glob("*.py"):
        shutil.copy(source, folder)
    shutil.copytree(GRAFANA / "dashboards", folder / "dashboards")
    return folder


def test_the_committed_boards_are_what_is_built() -> None:
    checked = build(GRAFANA, "--check")

    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_board_changed_by_hand_is_told(copied: Path) -> None:
    board = copied / "dashboards" / f"{OVERVIEW}.json"
    board.write_text(board.read_text().replace("now-1h", "now-3h"))

    checked = build(copied, "--check")

    assert checked.returncode == 1
    assert checked.stderr == (
        f"{OVERVIEW}.json in grafana/dashboards/ is not what grafana/build.py makes: "
        "run `python grafana/build.py` and commit the result.\n"
    )


def test_a_missing_board_is_written(copied: Path) -> None:
    shutil.rmtree(copied / "dashboards")

    assert build(copied).returncode == 0
    assert build(copied, "--check").returncode == 0


def test_an_unknown_argument_is_refused(copied: Path) -> None:
    refused = build(copied, "--chekc")

    assert (refused.returncode, refused.stderr) == (2, "usage: build.py [--check]\n")


def test_there_are_two_boards() -> None:
    assert set(BOARDS) == {OVERVIEW, CONSUMERS}
    assert {board["uid"] for board in BOARDS.values()} == set(BOARDS)


@pytest.mark.parametrize("uid", [OVERVIEW, CONSUMERS])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_board_keeps_to(rule: Rule, uid: str) -> None:
    assert list(rule(BOARDS[uid])) == []


# ---- each rule sees the fault it is there for


def panel(board: Json, title: str) -> Json:
    return next(each for each in panels(board) if each["title"] == title)


def variable(board: Json, name: str) -> Json:
    return next(each for each in board["templating"]["list"] if each["name"] == name)


def set_variable(name: str, key: str, value: object) -> Callable[[Json], None]:
    return lambda board: variable(board, name).update({key: value})


def set_panel(title: str, key: str, value: object) -> Callable[[Json], None]:
    return lambda board: panel(board, title).update({key: value})


def rewrite(title: str, old: str, new: str) -> Callable[[Json], None]:
    """Change the first query of a panel."""

    def plant(board: Json) -> None:
        target = panel(board, title)["targets"][0]
        assert old in target["expr"]
        target["expr"] = target["expr"].replace(old, new)

    return plant


def set_board(key: str, value: object) -> Callable[[Json], None]:
    return lambda board: board.update({key: value})


def rename_datasource(board: Json) -> None:
    variable(board, "datasource")["name"] = "prometheus"


def remove_instance(board: Json) -> None:
    board["templating"]["list"].remove(variable(board, "instance"))


def fix_the_datasource(board: Json) -> None:
    panel(board, "Completed")["targets"][0]["datasource"] = {"type": "prometheus", "uid": "abc"}


def unknown_unit(board: Json) -> None:
    panel(board, "Tasks")["fieldConfig"]["overrides"][0]["properties"][0]["value"] = "jobs"


def remove_unit(board: Json) -> None:
    del panel(board, "Errors")["fieldConfig"]["defaults"]["unit"]


def move_over_another(board: Json) -> None:
    panel(board, "Errors")["gridPos"]["y"] -= 1


def move_over_the_edge(board: Json) -> None:
    panel(board, "Event loop lag")["gridPos"]["w"] += 1


def one_id(board: Json) -> None:
    panel(board, "Errors")["id"] = panel(board, "Tasks")["id"]


def one_ref(board: Json) -> None:
    panel(board, "Tasks")["targets"][1]["refId"] = "A"


def unmark(board: Json) -> None:
    board["annotations"]["list"].pop()


def forget_the_time(board: Json) -> None:
    board["links"][0]["keepTime"] = False


PLANTED: list[tuple[Rule, str, Callable[[Json], None]]] = [
    (rules.template_datasource, OVERVIEW, rename_datasource),
    (rules.template_datasource, OVERVIEW, set_variable("datasource", "label", "Prometheus")),
    (rules.template_job, OVERVIEW, set_variable("job", "allValue", ".*")),
    (rules.template_job, OVERVIEW, set_variable("job", "label", "job")),
    (rules.template_queue, OVERVIEW, set_variable("queue", "multi", False)),
    (rules.template_instance, CONSUMERS, remove_instance),
    (rules.template_instance, CONSUMERS, set_variable("instance", "type", "textbox")),
    (rules.template_label_promql, OVERVIEW, set_variable("queue", "query", "label_values(queue)")),
    (rules.template_label_promql, OVERVIEW, set_variable("job", "query", "label_values(up{, job)")),
    (rules.template_on_time_change_reload, OVERVIEW, set_variable("queue", "refresh", 1)),
    (rules.template_current, OVERVIEW, set_variable("queue", "current", {})),
    (rules.panel_datasource, OVERVIEW, fix_the_datasource),
    (rules.panel_title_description, OVERVIEW, set_panel("Completed", "description", "")),
    (rules.panel_title_description, OVERVIEW, set_panel("Completed", "title", "Due jobs")),
    (rules.panel_units, OVERVIEW, unknown_unit),
    (
        rules.panel_units,
        OVERVIEW,
        set_panel("Errors", "fieldConfig", {"defaults": {}, "overrides": []}),
    ),
    (rules.panel_no_targets, OVERVIEW, set_panel("Errors", "targets", [])),
    (rules.target_promql, OVERVIEW, rewrite("Completed", "]))", "])")),
    (rules.target_promql, OVERVIEW, rewrite("Completed", "attempts_total", "attempt_total")),
    (rules.target_promql, OVERVIEW, rewrite("Completed", "completed", "complete")),
    (rules.target_promql, OVERVIEW, rewrite("Completed", "outcome=", "result=")),
    (rules.target_promql, OVERVIEW, rewrite("Errors", "by (operation", "by (op")),
    (rules.target_promql, OVERVIEW, rewrite("Errors", "$job", "$jobs")),
    (rules.target_promql, CONSUMERS, rewrite("Versions", "left (version,", "left (versions,")),
    (rules.target_legend, OVERVIEW, rewrite("Errors", "by (operation, error)", "by (operation)")),
    (rules.target_rate_interval, OVERVIEW, rewrite("Completed", "$__rate_interval", "5m")),
    (rules.target_rate_interval, OVERVIEW, rewrite("Completed", "$__rate_interval", "$__interval")),
    (rules.target_rate_interval, OVERVIEW, rewrite("Completed", "$__rate_interval", "$__range")),
    (rules.target_job, OVERVIEW, rewrite("Stream: closed", 'job=~"$job"', "")),
    (rules.target_job, OVERVIEW, rewrite("Stream: closed", 'job=~"$job"', 'job="$job"')),
    (rules.target_queue, OVERVIEW, rewrite("Due jobs", 'queue=~"$queue", ', "")),
    (rules.target_instance, CONSUMERS, rewrite("Memory", ', instance=~"$instance"', "")),
    (rules.target_counter_agg, OVERVIEW, rewrite("Completed", "rate(", "avg_over_time(")),
    (rules.target_state, OVERVIEW, rewrite("Due jobs", "max by (queue)", "sum by (queue)")),
    (rules.target_state, OVERVIEW, rewrite("Due jobs", "max by (queue) ", "")),
    (rules.target_finite, OVERVIEW, rewrite("Late: wait p99", " >= 0", "")),
    (rules.uneditable, OVERVIEW, set_board("editable", True)),
    (rules.overlap, OVERVIEW, move_over_another),
    (rules.overlap, OVERVIEW, move_over_the_edge),
    (rules.numbers, OVERVIEW, one_id),
    (rules.numbers, OVERVIEW, one_ref),
    (rules.importable, OVERVIEW, set_board("id", 7)),
    (rules.importable, OVERVIEW, set_board("__inputs", [])),
    (rules.importable, OVERVIEW, set_board("schemaVersion", 16)),
    (rules.importable, OVERVIEW, set_board("tags", [])),
    (rules.linked, OVERVIEW, forget_the_time),
    (rules.annotated, OVERVIEW, unmark),
]


@pytest.mark.parametrize(
    ("rule", "uid", "plant"),
    PLANTED,
    ids=[f"{number}-{rule.__name__}" for number, (rule, _, _) in enumerate(PLANTED)],
)
def test_a_planted_fault_is_found_by(rule: Rule, uid: str, plant: Callable[[Json], None]) -> None:
    board = copy.deepcopy(BOARDS[uid])
    plant(board)

    assert list(rule(board)) != []


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


# ---- what the boards ask for


def test_every_series_of_ours_is_on_a_board() -> None:
    asked = " ".join(query.expr for query in (*queries(), *marks()))
    ours = {name for name in contract() if name.startswith("streamqueue_")}

    silent = {name for name in ours if name not in asked}

    assert {name for name in silent if not name.endswith(NOT_ON_A_BOARD)} == set()


def test_a_variable_that_the_board_does_not_have_is_an_error() -> None:
    with pytest.raises(KeyError, match="cluster"):
        substituted("up{cluster='$cluster'}", EVERYTHING)


def test_both_forms_of_a_variable_are_substituted() -> None:
    written = "rate(a{job=~'${job}', queue=~'$queue'}[$__rate_interval])"

    assert substituted(written, EVERYTHING) == "rate(a{job=~'.+', queue=~'.+'}[1m])"
