"""What every board must keep to: the rules of grafana/dashboard-linter, and some of our own.

A rule yields a sentence for each fault it finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import promql_parser as promql

from .contract import contract
from .panels import EVERYTHING, Json, panels, substituted
from .promql import Unfit, labels_of, parents, selectors, uncounted

Rule = Callable[[Json], Iterator[str]]

CONTRACT = contract()
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
LABEL_VALUES = re.compile(r"label_values\((.+), *(\w+)\)")
UNITS = {"short", "none", "percentunit", "s", "ops", "bytes"}
"""The few that the boards use; grafana/check compares them with Grafana's own list."""
SECONDS_OF_RATE_INTERVAL = 97
"""Stands for $__rate_interval, and is no range that anybody would write."""


def template(board: Json, name: str) -> Json:
    found = [each for each in board["templating"]["list"] if each["name"] == name]
    return found[0] if found else {}


def template_datasource(board: Json) -> Iterator[str]:
    variable = template(board, "datasource")
    if (variable.get("type"), variable.get("query")) != ("datasource", "prometheus"):
        yield "has no variable `datasource` of the kind prometheus"
    elif variable.get("label") != "Data source":
        yield "does not call it Data source"


def _label_variable(board: Json, name: str) -> Iterator[str]:
    variable = template(board, name)
    if not variable:
        yield f"has no variable {name}"
    elif variable["type"] != "query" or variable["datasource"] != DATASOURCE:
        yield f"{name} is not asked of the data source"
    elif not variable["multi"] or not variable["includeAll"] or variable["allValue"] != ".+":
        yield f"{name} cannot be several or all"
    elif variable["label"] != name.title():
        yield f"{name} is labelled {variable['label']}"


def template_job(board: Json) -> Iterator[str]:
    yield from _label_variable(board, "job")


def template_queue(board: Json) -> Iterator[str]:
    yield from _label_variable(board, "queue")


def template_instance(board: Json) -> Iterator[str]:
    if any("$instance" in target["expr"] for _, target in targets(board)):
        yield from _label_variable(board, "instance")


def template_label_promql(board: Json) -> Iterator[str]:
    for variable in board["templating"]["list"]:
        if variable["type"] != "query":
            continue
        call = LABEL_VALUES.fullmatch(variable["query"])
        if not call:
            yield f"{variable['name']} is not label_values(series, label)"
        elif (fault := fault_of(call[1])) is not None:
            yield f"{variable['name']}: {fault}"


def template_on_time_change_reload(board: Json) -> Iterator[str]:
    for variable in board["templating"]["list"]:
        if variable["type"] == "query" and variable["refresh"] != 2:
            yield f"{variable['name']} is not read again when the time range changes"


def template_current(board: Json) -> Iterator[str]:
    for variable in board["templating"]["list"]:
        if not {"text", "value"} <= set(variable.get("current", {})):
            yield f"{variable['name']} has no current text and value"


def targets(board: Json) -> Iterator[tuple[Json, Json]]:
    for panel in panels(board):
        for target in panel.get("targets", ()):
            yield panel, target


def panel_datasource(board: Json) -> Iterator[str]:
    for panel in panels(board):
        sources = [panel["datasource"], *(t["datasource"] for t in panel.get("targets", ()))]
        if any(source != DATASOURCE for source in sources):
            yield f"{panel['title']} does not use the variable"
    for mark in board["annotations"]["list"]:
        if mark["datasource"] != DATASOURCE:
            yield f"{mark['name']} does not use the variable"


def panel_title_description(board: Json) -> Iterator[str]:
    for panel in panels(board):
        if not panel.get("title") or len(panel.get("description", "")) < 15:
            yield f"panel {panel['id']} ({panel.get('title')}) is not explained"
    titles = [panel["title"] for panel in panels(board)]
    if len(titles) != len(set(titles)):
        yield "two panels have one title"


def panel_units(board: Json) -> Iterator[str]:
    for panel in panels(board):
        config = panel["fieldConfig"]
        units = [config["defaults"].get("unit")]
        units += [
            each["value"]
            for override in config["overrides"]
            for each in override["properties"]
            if each["id"] == "unit"
        ]
        if panel["type"] == "heatmap":
            units.append(panel["options"]["yAxis"].get("unit"))
        for unit in units:
            if unit not in UNITS:
                yield f"{panel['title']} has the unit {unit}"


def panel_no_targets(board: Json) -> Iterator[str]:
    for panel in panels(board):
        if not panel.get("targets"):
            yield f"{panel['title']} asks nothing"


def target_promql(board: Json) -> Iterator[str]:
    for panel, target in targets(board):
        if (fault := fault_of(target["expr"])) is not None:
            yield f"{panel['title']} {target['refId']}: {fault}"
    for mark in board["annotations"]["list"]:
        if (fault := fault_of(mark["target"]["expr"])) is not None:
            yield f"{mark['name']}: {fault}"


def target_legend(board: Json) -> Iterator[str]:
    for panel, target in targets(board):
        node = parsed(target["expr"])
        try:
            labels = labels_of(node, CONTRACT) if node else set()
        except Unfit:
            continue  # what target_promql tells of
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            if node and label not in labels:
                yield f"{panel['title']} {target['refId']}: no label {label} in the result"


def target_rate_interval(board: Json) -> Iterator[str]:
    for panel, target in targets(board):
        for selector, above in selectors(parsed(target["expr"])):
            if not above or not isinstance(above[-1], promql.MatrixSelector):
                continue
            seconds = above[-1].range.total_seconds()
            shown = above[-2].func.name == "increase" and "$__range" in target["expr"]
            if seconds != SECONDS_OF_RATE_INTERVAL and not shown:
                yield f"{panel['title']} {target['refId']}: {selector.name} over {seconds} s"


def target_job(board: Json) -> Iterator[str]:
    yield from _matched(board, "job")


def target_queue(board: Json) -> Iterator[str]:
    yield from _matched(board, "queue", all_queues={"Slot use", "Fullest worker"})


def target_instance(board: Json) -> Iterator[str]:
    if template(board, "instance"):
        yield from _matched(board, "instance")


def _matched(board: Json, label: str, all_queues: set[str] | None = None) -> Iterator[str]:
    """A reader who has chosen a value of the variable must not see anything else."""
    for panel, target in targets(board):
        if panel["title"] in (all_queues or ()):
            continue
        for selector, _ in selectors(parsed(target["expr"], keep=label)):
            if label not in CONTRACT.get(selector.name, {}):
                continue
            if (label, "=~", f"chosen_{label}") not in matchers_of(selector):
                yield f"{panel['title']} {target['refId']}: {selector.name} of every {label}"


def target_counter_agg(board: Json) -> Iterator[str]:
    for panel, target in targets(board):
        for name in uncounted(parsed(target["expr"])):
            yield f"{panel['title']} {target['refId']}: {name} is not in a rate or increase"


def target_state(board: Json) -> Iterator[str]:
    """An exporter and a leader may both show the state of the queues: it must not count twice."""
    for panel, target in targets(board):
        for selector, above in selectors(parsed(target["expr"])):
            if not (selector.name or "").startswith("streamqueue_queue_"):
                continue
            near: Any = above[-1] if above else None
            inside = isinstance(near, promql.AggregateExpr) and near.modifier
            by = set(inside.labels) if inside else set()
            if "queue" not in by or str(near.op) != "max":
                yield f"{panel['title']} {target['refId']}: {selector.name} is not max by (queue)"


def target_finite(board: Json) -> Iterator[str]:
    """A quantile of nothing is NaN, which a stat would show; a comparison drops it."""
    for panel, target in targets(board):
        for part, above in parents(parsed(target["expr"])):
            if not isinstance(part, promql.Call) or part.func.name != "histogram_quantile":
                continue
            if (
                not above
                or not isinstance(above[-1], promql.BinaryExpr)
                or str(above[-1].op) != ">="
            ):
                yield f"{panel['title']} {target['refId']}: NaN while nothing is observed"


def uneditable(board: Json) -> Iterator[str]:
    if board.get("editable") is not False:
        yield "can be edited in place, and the edit is lost at the next provisioning"


def overlap(board: Json) -> Iterator[str]:
    places = [(panel, panel["gridPos"]) for panel in board["panels"]]
    for panel, place in places:
        if place["x"] + place["w"] > 24:
            yield f"{panel['title']} stands over the edge"
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        if not beside and not below:
            yield f"{one['title']} and {other['title']} overlap"


def numbers(board: Json) -> Iterator[str]:
    ids = [panel["id"] for panel in board["panels"]]
    if len(ids) != len(set(ids)):
        yield "two panels have one id"
    for panel, refs in ((p, [t["refId"] for t in p.get("targets", ())]) for p in panels(board)):
        if len(refs) != len(set(refs)):
            yield f"two targets of {panel['title']} have one refId"


def importable(board: Json) -> Iterator[str]:
    if board.get("id") is not None:
        yield "has an id, which is another board's where it is imported"
    if "__inputs" in board:
        yield "has inputs, which provisioning does not resolve"
    if board["schemaVersion"] != 39:
        yield f"has schema version {board['schemaVersion']}"
    if not board["uid"].startswith("streamqueue-") or "streamqueue" not in board["tags"]:
        yield "does not say by its uid and tags whose it is"


def linked(board: Json) -> Iterator[str]:
    for link in board["links"]:
        if link["includeVars"] and link["keepTime"] and "streamqueue" in link["tags"]:
            return
    yield "has no link to the other board that keeps the time and the variables"


def annotated(board: Json) -> Iterator[str]:
    marks = " ".join(mark["target"]["expr"] for mark in board["annotations"]["list"])
    for series in ("ALERTS{", "streamqueue_build_info{"):
        if series not in marks:
            yield f"does not mark {series}"


RULES: tuple[Rule, ...] = (
    *(template_datasource, template_job, template_queue, template_instance),
    *(template_label_promql, template_on_time_change_reload, template_current),
    *(panel_datasource, panel_title_description, panel_units, panel_no_targets),
    *(target_promql, target_legend, target_rate_interval, target_job, target_queue),
    *(target_instance, target_counter_agg, target_state, target_finite),
    *(uneditable, overlap, numbers, importable, linked, annotated),
)


def matchers_of(selector: Any) -> set[tuple[str, str, str]]:
    operators = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
    return {
        (each.name, operators[str(each.op).rpartition(".")[2]], each.value)
        for each in selector.matchers.matchers
    }


def parsed(expression: str, keep: str = "") -> Any:
    """Return the query's tree, or None for what does not parse, of which target_promql tells."""
    values = {**EVERYTHING, "__rate_interval": f"{SECONDS_OF_RATE_INTERVAL}s"}
    if keep:
        values[keep] = f"chosen_{keep}"
    try:
        return promql.parse(substituted(expression, values))
    except (ValueError, KeyError):
        return None


def fault_of(expression: str) -> str | None:
    """Say why this query cannot be meant, or None."""
    try:
        labels_of(promql.parse(substituted(expression, EVERYTHING)), CONTRACT)
    except KeyError as error:
        return f"unknown variable {error}"
    except (ValueError, Unfit) as error:
        return str(error)
    return None
