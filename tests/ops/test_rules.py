"""The rules are right, name only what exists, and are tested and explained one by one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

from tests.ops import rules
from tests.ops.prometheus import hasten

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"

Check = Callable[[Path], Iterable[str]]

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on PATH (Debian: prometheus)"
)


@pytest.mark.parametrize("check", rules.CHECKS)
def test_the_rules_their_cases_and_their_runbook_are_without_fault(check: Check) -> None:
    assert list(check(FOLDER)) == []


def test_prometheus_takes_the_example() -> None:
    checked = subprocess.run(
        ["promtool", "check", "config", FOLDER / "prometheus.example.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(
    shutil.which("amtool") is None, reason="amtool is not on PATH (Debian: prometheus-alertmanager)"
)
def test_alertmanager_takes_the_example() -> None:
    checked = subprocess.run(
        ["amtool", "check-config", FOLDER / "alertmanager.example.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alertmanager_s_example_names_only_alerts_that_exist() -> None:
    text = (FOLDER / "alertmanager.example.yml").read_text()
    alerts = {rule["alert"] for rule in rules.rules(FOLDER) if "alert" in rule}

    named = set(re.findall(r"Streamqueue[A-Za-z]+", text))

    assert named
    assert named <= alerts


def test_the_hastened_rules_are_rules(tmp_path: Path) -> None:
    quick = tmp_path / "quick.yml"
    quick.write_text(hasten((FOLDER / rules.RULES).read_text(), 60))

    checked = subprocess.run(
        ["promtool", "check", "rules", "--lint=all", "--lint-fatal", quick],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert all(rule.get("for", "0ms").endswith("ms") for rule in rules.rules_of(quick))


def test_the_readme_s_command_makes_links_of_the_runbook_s_paths(tmp_path: Path) -> None:
    (command,) = re.findall(r"^\$ (sed .*) > rules\.yml$", (FOLDER / "README.md").read_text(), re.M)
    linked = tmp_path / "rules.yml"

    with linked.open("w") as output:
        subprocess.run(shlex.split(command), cwd=FOLDER, stdout=output, check=True)

    for rule in rules.rules_of(linked):
        if "alert" in rule:
            assert "runbook" not in rule["annotations"]
            path, _, section = rule["annotations"]["runbook_url"].partition("#")
            assert (
                path == "https://git.example.org/streamqueue/blob/main/deploy/prometheus/README.md"
            )
            assert section == rule["alert"].lower()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "prometheus"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "check", "complaint"),
    [
        pytest.param(
            "streamqueue_stream_connected == 0",
            "streamqueue_stream_conected == 0",
            rules.unknown_names,
            "StreamqueueStreamDown: nothing exports streamqueue_stream_conected",
            id="a metric that nobody exports",
        ),
        pytest.param(
            'reason="history_lost"',
            'reason="history_loss"',
            rules.unknown_names,
            "StreamqueueStreamHistoryLost: streamqueue_stream_restarts_total "
            "has no reason='history_loss'",
            id="a value that the label never has",
        ),
        pytest.param(
            'queue_jobs{state="dead"}',
            'queue_jobs{status="dead"}',
            rules.unknown_names,
            "queue:streamqueue_queue_jobs:dead: streamqueue_queue_jobs has no label status",
            id="a label that the series has not",
        ),
        pytest.param(
            "queue:streamqueue_job_wait_seconds:p99_5m > 1",
            "queue:streamqueue_job_wait_seconds:p999_5m > 1",
            rules.unknown_names,
            "StreamqueueSlowPickup: nothing records queue:streamqueue_job_wait_seconds:p999_5m",
            id="a series that is not recorded",
        ),
        pytest.param(
            "max by (cluster, namespace, queue) (streamqueue_queue_expired_leases)",
            "max by (queue) (streamqueue_queue_expired_leases)",
            rules.loose_groupings,
            "queue:streamqueue_queue_expired_leases:max: `by (queue)` must begin with cluster, "
            "namespace",
            id="two installations taken for one",
        ),
        pytest.param(
            "The oplog reaches back only {{ $value",
            "The oplog of {{ $labels.instance }} reaches back only {{ $value",
            rules.poor_annotations,
            "StreamqueueOplogWindowShort: speaks of its label instance, and has none when it fires",
            id="text about a label that is aggregated away",
        ),
        pytest.param(
            "`streamqueue dead list --queue` and",
            "`streamqueue dead list --queue {{ $labels.queue }}` and",
            rules.poor_annotations,
            "StreamqueueDeadJobsGrowing: hands out a command with a label in it",
            id="a command for a shell that holds what anybody may have chosen",
        ),
        pytest.param(
            "#streamqueuenostate",
            "#streamqueuenoleader",
            rules.poor_annotations,
            "StreamqueueNoState: its runbook is elsewhere",
            id="a runbook that is elsewhere",
        ),
        pytest.param(
            "severity: info",
            "severity: low",
            rules.poor_annotations,
            "StreamqueueSlotsExhausted: has no severity",
            id="a severity that nobody routes",
        ),
    ],
)
def test_a_planted_mistake_in_the_rules_is_found(
    copy: Path, old: str, new: str, check: Check, complaint: str
) -> None:
    edit(copy / rules.RULES, old, new)

    assert list(check(copy)) == [complaint]


def test_an_expression_that_is_none_is_found(copy: Path) -> None:
    edit(copy / rules.RULES, "unless on (cluster, namespace, queue)", "unless on (")

    (complaint,) = rules.badly_written(copy)

    assert "could not parse expression" in complaint


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("for: 1m\n", "for: 10m\n", id="late"),
        pytest.param("        for: 1m\n", "", id="early"),
        pytest.param("> 15\n", "> 1500\n", id="never"),
        pytest.param("> 15\n", ">= 0\n", id="always"),
        pytest.param("  unless on (", "  and on (", id="the wrong way round"),
        pytest.param(
            "last_over_time(queue:streamqueue_queue_oldest_ready_age_seconds:max[5m])",
            "queue:streamqueue_queue_oldest_ready_age_seconds:max",
            id="silenced by an exporter that comes and goes",
        ),
        pytest.param(
            "queue_consumers:max[5m]) > 0", "queue_consumers:max[5m]) > 9", id="many consumers"
        ),
    ],
)
def test_a_wrong_alert_fails_its_cases(copy: Path, old: str, new: str) -> None:
    alert = "StreamqueueNoConsumers"
    before, rule = (copy / rules.RULES).read_text().split(f"- alert: {alert}\n")
    assert old in rule
    (copy / rules.RULES).write_text(f"{before}- alert: {alert}\n{rule.replace(old, new, 1)}")
    keep_cases(copy, lambda name: name.startswith(alert))

    (complaint,) = rules.failing_cases(copy)

    assert f'alertname=\\"{alert}\\"' in complaint


def keep_cases(folder: Path, wanted: Callable[[str], bool]) -> None:
    kept = [case for case in rules.cases(folder) if wanted(case["name"])]
    assert kept
    text = yaml.safe_dump(
        {"rule_files": [rules.RULES], "evaluation_interval": "30s", "tests": kept}
    )
    (folder / rules.CASES).write_text(text)


@pytest.mark.parametrize(
    "alert", [rule["alert"] for rule in rules.rules(FOLDER) if "alert" in rule]
)
def test_every_alert_has_a_case_for_fires_not_yet_must_not_fire_and_flapping(alert: str) -> None:
    named = [name.split(":")[0] for name in (case["name"] for case in rules.cases(FOLDER))]

    assert {f"{alert} {kind}" for kind in rules.KINDS} <= set(named)


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", rules.KINDS)
def test_a_case_that_is_gone_is_missed(copy: Path, kind: str) -> None:
    keep_cases(copy, lambda name: not name.startswith(f"StreamqueueStreamDown {kind}"))

    assert list(rules.missing_cases(copy)) == [f"StreamqueueStreamDown: has no case {kind!r}"]


def test_a_case_of_flapping_in_which_the_target_stays_is_told(copy: Path) -> None:
    name = "StreamqueueNoState flapping: the exporter is up for 45 s and away for 75 s"
    (case,) = [case for case in rules.cases(copy) if case["name"] == name]
    away = case["input_series"][-1]["values"]
    path = copy / rules.CASES
    before, after = path.read_text().split(name)
    path.write_text(before + name + after.replace(away, away.replace("stale _x4", "1x4"), 1))

    assert list(rules.targets_that_stay(copy)) == [f"{name}: nothing in it comes and goes"]


def test_a_recorded_series_without_a_case_is_missed(copy: Path) -> None:
    keep_cases(copy, lambda name: not name.startswith("Recorded: reaped"))

    assert list(rules.missing_cases(copy)) == ["queue:streamqueue_jobs_reaped:rate10m: has no case"]


def test_a_case_that_looks_for_something_else_is_no_case(copy: Path) -> None:
    name = (
        "StreamqueueStreamDown stays quiet: a producer has no stream, "
        "and a stopped worker is no target"
    )
    looks = 'present_over_time(ALERTS{alertname="StreamqueueStreamDown"'
    edit(
        copy / rules.CASES,
        looks + ', alertstate="firing"}[1d])\n        eval_time: 20m',
        looks + "}[1d])\n        eval_time: 20m",
    )

    assert list(rules.missing_cases(copy)) == [
        f"{name}: does not look whether it stays quiet",
        "StreamqueueStreamDown: has no case 'stays quiet'",
    ]


def test_an_alert_without_a_section_in_the_runbook_is_missed(copy: Path) -> None:
    edit(copy / "README.md", "### StreamqueueStreamDown\n", "### StreamqueueStreamBroken\n")

    assert list(rules.poor_annotations(copy)) == [
        "StreamqueueStreamDown: has no section in the runbook",
        "the runbook speaks of StreamqueueStreamBroken, which is no alert",
    ]
