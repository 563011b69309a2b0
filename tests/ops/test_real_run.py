"""What the boards and the rules ask for is what real processes show, while all sorts of things
happen to them; and what the processes show is asked for."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import promql_parser as promql
import pytest

from tests.ops.contract import exposed
from tests.ops.dashboard_rules import LABEL_VALUES
from tests.ops.panels import BOARDS, EVERYTHING, Query, marks, queries, substituted
from tests.ops.prometheus import Sample, missing_programs
from tests.ops.promql import parents, selectors
from tests.ops.real_run import DRILLED, RULES, WORKERS, RealRun, pause
from tests.ops.rules import rules_of

pytestmark = [
    pytest.mark.skipif(
        bool(missing_programs()), reason=f"not on PATH: {', '.join(missing_programs())}"
    ),
    pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH"),
]

PANELS = [*queries(), *marks()]
RECORDED = [rule for rule in rules_of(RULES) if "record" in rule]
ALERTS = [rule for rule in rules_of(RULES) if "alert" in rule]
VARIABLES = [
    (uid, variable["name"], LABEL_VALUES.fullmatch(substituted(variable["query"], EVERYTHING)))
    for uid, board in BOARDS.items()
    for variable in board["templating"]["list"]
    if variable["type"] == "query"
]
OTHER_HALVES = ("_count", "_sum")
"""Of a histogram that is asked for its buckets."""
LATE_LOOPS = """
    sum(streamqueue_event_loop_lag_seconds_count)
    - sum(streamqueue_event_loop_lag_seconds_bucket{le="0.1"})
"""
SCRAPES_SECONDS = 3.0
MAX_LINES = 550
"""Of a worker of three queues; each takes some sixty."""


class Watched:
    """A run after its events: what Prometheus knew, and what the processes showed, by then."""

    def __init__(self, run: RealRun) -> None:
        self.run = run
        self.at = time.time()
        programs = {"worker": run.workers[0], "exporter": run.exporter, "producer": run.producer}
        self.shown = {name: program.metrics() for name, program in programs.items()}
        self.names = run.monitoring.series_names()
        self.told = {notice.name for notice in run.monitoring.notices if "drill" in notice.labels}

    def finite(self, expression: str) -> list[Sample]:
        """Return the series of the answer whose value is a number."""
        answer = self.run.monitoring.query(expression, self.at)
        return [sample for sample in answer if math.isfinite(sample.value)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with RealRun(tmp_path_factory.mktemp("run")) as run:
        run.happen()
        pause(SCRAPES_SECONDS)
        yield Watched(run)


# ---- it is a run in which everything happens


@pytest.mark.parametrize(
    "happened",
    [
        *(
            f'streamqueue_attempts_total{{outcome="{outcome}"}}'
            for outcome in ("completed", "retried", "dead", "released", "lease_lost")
        ),
        *(
            f'streamqueue_jobs_put_total{{result="{result}"}}'
            for result in ("inserted", "duplicate", "replaced", "error")
        ),
        *(f'streamqueue_jobs_reaped_total{{result="{result}"}}' for result in ("requeued", "dead")),
        *(
            f'streamqueue_mongodb_errors_total{{operation="{operation}"}}'
            for operation in ("put", "claim")
        ),
        *(
            f'streamqueue_schedule_ticks_total{{result="{result}"}}'
            for result in ("fired", "skipped")
        ),
        *(
            f'streamqueue_topic_published_total{{result="{result}"}}'
            for result in ("delivered", "unread")
        ),
        *(f'streamqueue_steps_total{{result="{result}"}}' for result in ("run", "replayed")),
        "streamqueue_queue_subscriptions",
        'streamqueue_queue_limit_saturated{per="queue"}',
        "streamqueue_queue_limit_running",
        "streamqueue_queue_held_groups",
        "streamqueue_queue_held_dependents",
        'streamqueue_queue_jobs{state="scheduled"}',
        'streamqueue_stream_restarts_total{reason="network"}',
        "streamqueue_leases_renewed_total",
        "streamqueue_leases_lost_total",
        "streamqueue_state_collection_errors_total",
        LATE_LOOPS,
    ],
)
def test_this_happens(watched: Watched, happened: str) -> None:
    (sample,) = watched.finite(f"max(max_over_time(({happened})[5m:1s]))")

    assert sample.value > 0


# ---- what is asked for is there


def named(expression: str) -> set[str]:
    return {selector.name for selector, _ in selectors(promql.parse(expression)) if selector.name}


def of(query: Query) -> str:
    return f"{query.board}: {query.panel} {query.target.get('refId', '')}"


@pytest.mark.parametrize("query", PANELS, ids=map(of, PANELS))
def test_a_query_of_a_board_has_an_answer(watched: Watched, query: Query) -> None:
    assert named(query.expr) <= watched.names
    assert watched.finite(query.expr) != []


@pytest.mark.parametrize(
    ("uid", "name", "call"), VARIABLES, ids=[f"{uid}: {name}" for uid, name, _ in VARIABLES]
)
def test_a_variable_of_a_board_has_values(
    watched: Watched, uid: str, name: str, call: re.Match[str]
) -> None:
    selected, label = call.groups()

    assert {sample.labels.get(label) for sample in watched.finite(selected)} - {None, ""}


@pytest.mark.parametrize("rule", RECORDED, ids=lambda rule: str(rule["record"]))
def test_a_recorded_series_is_there(watched: Watched, rule: dict[str, Any]) -> None:
    assert named(rule["expr"]) <= watched.names
    assert watched.finite(rule["record"]) != []


def unfiltered(node: Any) -> Iterator[Any]:
    """Yield the largest parts of an expression that no comparison or set operator has thinned."""
    if not any(_thins(part) for part, _ in parents(node)):
        if named(node.prettify()):
            yield node
        return
    for part, above in parents(node):
        if above and above[-1] is node:
            yield from unfiltered(part)


def _thins(node: Any) -> bool:
    if isinstance(node, promql.Call):
        return bool(node.func.name == "absent")
    if not isinstance(node, promql.BinaryExpr):
        return False
    return str(node.op) in {"and", "or", "unless", "==", "!=", ">", "<", ">=", "<="}


def parts(rule: dict[str, Any]) -> list[str]:
    # The run has no past of a quarter of an hour, nor a point each ten minutes.
    expression = re.sub(r"offset \w+", "offset 15s", rule["expr"])
    expression = re.sub(r":10m\]", ":5s]", expression)
    return [node.prettify() for node in unfiltered(promql.parse(expression))]


PARTS = [(rule["alert"], part) for rule in ALERTS for part in parts(rule)]


@pytest.mark.parametrize(("alert", "part"), PARTS, ids=[f"{a}: {p}" for a, p in PARTS])
def test_what_an_alert_compares_is_there(watched: Watched, alert: str, part: str) -> None:
    assert named(part) <= watched.names
    assert watched.finite(part) != []


def test_every_alert_has_parts_that_can_be_looked_at() -> None:
    assert {alert for alert, _ in PARTS} == {rule["alert"] for rule in ALERTS}


def test_prometheus_evaluates_every_rule_without_an_error(watched: Watched) -> None:
    assert watched.run.monitoring.rule_errors() == {}


# ---- what is there is asked for


def test_every_series_is_asked_for(watched: Watched) -> None:
    expressions = [query.expr for query in PANELS] + [rule["expr"] for rule in rules_of(RULES)]
    asked = {name for expression in expressions for name in named(expression)}
    halves = {
        name.removesuffix("_bucket") + half
        for name in asked
        if name.endswith("_bucket")
        for half in OTHER_HALVES
    }
    ours = {name for name in watched.names if name.startswith("streamqueue_")}

    assert ours - asked - halves == set()


def test_every_series_that_the_code_can_show_is_there(watched: Watched) -> None:
    promised = {name for name in exposed() if name.startswith("streamqueue_")}

    assert promised - watched.names == set()


@pytest.mark.parametrize("program", ["worker", "exporter", "producer"])
def test_promtool_has_nothing_to_say_about_a_scrape(watched: Watched, program: str) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=watched.shown[program],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert checked.stdout + checked.stderr == ""
    assert checked.returncode == 0


def test_a_worker_of_three_queues_shows_few_lines(watched: Watched) -> None:
    shown = watched.shown["worker"].splitlines()

    assert len(shown) <= MAX_LINES


# ---- and somebody is called


def test_no_queue_was_thought_to_be_stalled_while_workers_ran(watched: Watched) -> None:
    assert watched.told == set()


@pytest.mark.slow
def test_a_queue_without_workers_calls_somebody_until_they_are_back(watched: Watched) -> None:
    run = watched.run

    assert run.stop_workers() == [0] * WORKERS
    fired = {alert: run.monitoring.wait_for_notice(alert, "firing", within=40) for alert in DRILLED}
    run.start_workers()
    for alert in DRILLED:
        run.monitoring.wait_for_notice(alert, "resolved", within=40)

    for notice in fired.values():
        assert notice.labels["queue"] in ("emails", "invoices", "calls")
        assert notice.labels["severity"] == "critical"
    assert run.monitoring.rule_errors() == {}
