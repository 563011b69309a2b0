"""What must be true of the rules; each check returns its complaints."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tests.ops.contract import Series, exposed

RULES = "streamqueue.rules.yml"
CASES = "streamqueue.rules.test.yml"
ANNOTATIONS = {"summary", "description", "runbook"}
SEVERITIES = {"critical", "warning", "info"}
TARGET_LABELS = {"cluster", "namespace", "job", "instance"}

_SELECTOR = re.compile(r"(?<![\w:.])(streamqueue_\w+)(?![\w:])(?:\{([^}]*)\})?")
_RECORDED = re.compile(r"(?<![\w:])(\w+:streamqueue_\w+:\w+)")
_ALERT = re.compile(r'alertname="(\w+)"')
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(by|on|without|ignoring)\s*\(([^)]*)\)")
KINDS = ("fires", "not yet", "stays quiet", "flapping")
"""The cases of each alert; the third is the one in which it must not fire."""

_CASE = re.compile(rf"(\w+) ({'|'.join(KINDS)})\b")


def badly_written(folder: Path) -> Iterator[str]:
    """What promtool says of the rules."""
    command = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", str(folder / RULES)]
    yield from _refused(command)


def failing_cases(folder: Path) -> Iterator[str]:
    """What promtool says of the cases, each with those rules alone that it asks for: promtool
    evaluates all it is given at every step of every case."""
    with TemporaryDirectory() as parts:
        files = [str(file) for file in _apart(folder, Path(parts))]
        yield from _refused(["promtool", "test", "rules", *files])


def _apart(folder: Path, parts: Path) -> Iterator[Path]:
    all_rules = rules(folder)
    cases_of: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for case in cases(folder):
        asked = " ".join(check["expr"] for check in case["promql_expr_test"])
        cases_of.setdefault(tuple(sorted(_needed(asked, all_rules))), []).append(case)
    for number, (needed, some) in enumerate(cases_of.items()):
        group = {"name": "streamqueue", "rules": [all_rules[index] for index in needed]}
        (parts / f"{number}.yml").write_text(yaml.safe_dump({"groups": [group]}))
        whole = _parsed(folder / CASES) | {"rule_files": [f"{number}.yml"], "tests": some}
        file = parts / f"{number}.test.yml"
        file.write_text(yaml.safe_dump(whole))
        yield file


def _needed(expression: str, all_rules: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the places of the rules that an expression asks for, and of those that these do."""
    alerts, recorded = set(_ALERT.findall(expression)), set(_RECORDED.findall(expression))
    if "ALERTS" in expression and not alerts:
        return set(range(len(all_rules)))
    needed: set[int] = set()
    for index, rule in enumerate(all_rules):
        if rule.get("alert") in alerts or rule.get("record") in recorded:
            needed |= {index} | _needed(rule["expr"], all_rules[:index])
    return needed


def _refused(command: list[str]) -> Iterator[str]:
    checked = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if checked.returncode:
        yield f"{' '.join(command[:3])}: {checked.stdout}{checked.stderr}"


def rules(folder: Path) -> list[dict[str, Any]]:
    return rules_of(folder / RULES)


def rules_of(path: Path) -> list[dict[str, Any]]:
    groups = _parsed(path)["groups"]
    return [rule for group in groups for rule in group["rules"]]


def cases(folder: Path) -> list[dict[str, Any]]:
    return list(_parsed(folder / CASES)["tests"])


def _parsed(path: Path) -> Any:
    return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _name(rule: Mapping[str, Any]) -> str:
    return str(rule.get("alert") or rule.get("record"))


def unknown_names(folder: Path) -> Iterator[str]:
    """Series, labels and values that nothing exports or records, in the rules and in the cases."""
    known = exposed()
    recorded = {rule["record"] for rule in rules(folder) if "record" in rule}
    for rule in rules(folder):
        yield from _unknown(f"{_name(rule)}", rule["expr"], known, recorded)
    for case in cases(folder):
        for series in case["input_series"]:
            if not series["series"].startswith("up"):
                yield from _unknown(case["name"], series["series"], known, recorded)
        for check in case["promql_expr_test"]:
            yield from _unknown(case["name"], check["expr"], known, recorded)


def _unknown(where: str, text: str, known: Series, recorded: set[str]) -> Iterator[str]:
    for name in _RECORDED.findall(text):
        if name not in recorded:
            yield f"{where}: nothing records {name}"
    for metric, selector in _SELECTOR.findall(text):
        if metric not in known:
            yield f"{where}: nothing exports {metric}"
            continue
        for label, operator, value in _MATCHER.findall(selector):
            if label in TARGET_LABELS:
                continue
            if label not in known[metric]:
                yield f"{where}: {metric} has no label {label}"
                continue
            possible = known[metric][label]
            wanted = value.split("|") if "~" in operator else [value]
            for one in wanted if possible else ():
                if one not in possible:
                    yield f"{where}: {metric} has no {label}={one!r}"


def loose_groupings(folder: Path) -> Iterator[str]:
    """Aggregations and joins that would mix two installations."""
    for rule in rules(folder):
        for word, labels in _GROUPING.findall(rule["expr"]):
            names = [label.strip() for label in labels.split(",")]
            if word in ("without", "ignoring") or names[:2] != ["cluster", "namespace"]:
                yield f"{_name(rule)}: `{word} ({labels})` must begin with cluster, namespace"
            if "instance" in names and "job" not in names:
                yield f"{_name(rule)}: `{word} ({labels})` has an instance without its job"


def poor_annotations(folder: Path) -> Iterator[str]:
    """Alerts without severity, text or runbook, and text about labels they do not have."""
    readme = (folder / "README.md").read_text()
    sections = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", readme, re.MULTILINE)}
    alerts = {rule["alert"]: rule for rule in rules(folder) if "alert" in rule}
    tested = cases(folder)
    for name, rule in alerts.items():
        annotations = rule.get("annotations", {})
        if set(annotations) != ANNOTATIONS:
            yield f"{name}: has the annotations {sorted(annotations)}"
            continue
        if rule.get("labels", {}).get("severity") not in SEVERITIES:
            yield f"{name}: has no severity"
        if annotations["runbook"] != f"deploy/prometheus/README.md#{name.lower()}":
            yield f"{name}: its runbook is elsewhere"
        if name.lower() not in sections:
            yield f"{name}: has no section in the runbook"
        text = annotations["summary"] + annotations["description"]
        for other in re.findall(r"Streamqueue\w+", text):
            if other not in alerts:
                yield f"{name}: speaks of {other}, which is no alert"
        for command in re.findall(r"`[^`]*`", text):
            # Whoever may insert a job chooses its queue's name: what is pasted into a shell must
            # have nothing of that in it.
            if "$labels" in command:
                yield f"{name}: hands out a command with a label in it"
        had = _labels_when_firing(tested, name)
        for label in re.findall(r"\$labels\.(\w+)", text):
            if label not in had:
                yield f"{name}: speaks of its label {label}, and has none when it fires"
    for other in sorted(set(re.findall(r"^#+ (Streamqueue\w+)$", readme, re.M)) - set(alerts)):
        yield f"the runbook speaks of {other}, which is no alert"


def _labels_when_firing(tested: list[dict[str, Any]], alert: str) -> set[str]:
    return {
        label
        for case in tested
        if case["name"].startswith(f"{alert} fires")
        for check in case["promql_expr_test"]
        for sample in check.get("exp_samples", ())
        for label, _, _ in _MATCHER.findall(sample["labels"])
    }


def missing_cases(folder: Path) -> Iterator[str]:
    """Alerts without each kind of case, cases that do not look, recorded series never looked at."""
    seen: dict[str, set[str]] = {}
    looked_at = set()
    for case in cases(folder):
        if case["name"].startswith("Recorded: "):
            for check in case["promql_expr_test"]:
                if check.get("exp_samples"):
                    looked_at.update(_RECORDED.findall(check["expr"]))
            continue
        named = _CASE.match(case["name"])
        if named is None:
            yield f"{case['name']}: the name does not say what kind of case it is"
            continue
        alert, kind = named.groups()
        if _looks(alert, kind, case["promql_expr_test"]):
            seen.setdefault(alert, set()).add(kind)
        else:
            yield f"{case['name']}: does not look whether it {kind}"
    for rule in rules(folder):
        if "record" in rule and rule["record"] not in looked_at:
            yield f"{rule['record']}: has no case"
        for kind in KINDS if "alert" in rule else ():
            if kind not in seen.get(rule["alert"], set()):
                yield f"{rule['alert']}: has no case {kind!r}"


def targets_that_stay(folder: Path) -> Iterator[str]:
    """Cases of flapping in which no target is away for longer than a minute, again and again."""
    for case in cases(folder):
        named = _CASE.match(case["name"])
        if named is not None and named[2] == "flapping":
            absent = 0
            for series in case["input_series"]:
                gaps = re.findall(r"stale _x(\d+)", series["values"])
                long = [gap for gap in gaps if (int(gap) + 1) * _seconds(case["interval"]) > 60]
                absent = max(absent, len(long))
            if absent < 5:
                yield f"{case['name']}: nothing in it comes and goes"


def _seconds(interval: str) -> int:
    return int(interval[:-1]) * {"s": 1, "m": 60}[interval[-1]]


def _looks(alert: str, kind: str, checks: list[dict[str, Any]]) -> bool:
    firing = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    any_time = f"present_over_time({firing}[1d])"
    for check in checks:
        expected = [sample["labels"] for sample in check.get("exp_samples", ())]
        if kind in ("fires", "flapping") and check["expr"] == firing and expected:
            return True
        if kind == "stays quiet" and check["expr"] == any_time and not expected:
            return True
        if kind == "not yet":
            if check["expr"] == firing and not expected:
                return True
            if (
                check["expr"] == f'ALERTS{{alertname="{alert}"}}'
                and expected
                and all('alertstate="pending"' in labels for labels in expected)
            ):
                return True
    return False


CHECKS = (
    badly_written,
    failing_cases,
    unknown_names,
    loose_groupings,
    poor_annotations,
    missing_cases,
    targets_that_stay,
)
