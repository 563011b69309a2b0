"""The words the boards are written in: one call is one panel, as Grafana's JSON.

In an expression `@job`, `@queue` and `@instance` stand for the label matchers of the variables that
a reader of the board has set; everything else is PromQL as Prometheus reads it.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
"""A variable, not an input: provisioning resolves no inputs, so one file serves every way in."""

MATCHERS = {
    "@queue": 'job=~"$job", queue=~"$queue"',
    "@instance": 'job=~"$job", instance=~"$instance"',
    "@both": 'job=~"$job", instance=~"$instance", queue=~"$queue"',
    "@job": 'job=~"$job"',
}
RANGE = "$__rate_interval"
WIDTH = 24
"""Of a board, in Grafana's columns."""


# ---- expressions


def promql(expression: str) -> str:
    """Put the matchers in."""
    for short, matchers in MATCHERS.items():
        expression = expression.replace(short, matchers)
    return expression


def rate(series: str, by: str = "") -> str:
    """Return how often a second, summed over everything but the labels of `by`."""
    return f"sum{_by(by)} (rate({series}[{RANGE}]))"


def increase(series: str, by: str = "", over: str = RANGE) -> str:
    """Return how many, in whole numbers: for what is rare, and would be 0.02 a second."""
    return f"round(sum{_by(by)} (increase({series}[{over}])))"


def since(timestamp: str) -> str:
    """Return the seconds since; never less than 0, which clocks that differ would make it."""
    return f"clamp_min(time() - {timestamp}, 0)"


def state(series: str) -> str:
    """Return a gauge of the queues, which an exporter and a leader may both show."""
    return f"max by (queue) ({series})"


def limit_state(series: str) -> str:
    """Return the same of each limit of the queues."""
    return f"max by (queue, per, task) ({series})"


def quantile(share: float, histogram: str, by: str = "") -> str:
    """Return a quantile; nothing, rather than NaN, while nothing was observed."""
    metric, _, matchers = histogram.partition("{")
    buckets = rate(f"{metric}_bucket{{{matchers}", f"le, {by}" if by else "le")
    return f"histogram_quantile({share}, {buckets}) >= 0"


def ratio(part: str, whole: str) -> str:
    """Return a share; nothing, rather than NaN, while there is nothing to have a share of."""
    return f"{part} / ({whole} > 0)"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


# ---- panels; width and height are in Grafana's units, the place follows from the order


def stat(
    title: str,
    description: str,
    expression: str,
    unit: str,
    *,
    base: str = "green",
    steps: dict[float, str] | None = None,
    none: str = "no data",
    glance: bool = False,
    decimals: int | None = None,
    w: int = 3,
    h: int = 4,
) -> Json:
    """Return one number, as it is now.

    It is asked for this moment only: the last point of a range would still show, in green, what an
    exporter said before it died.

    Args:
        title: what it is.
        description: what it means, and what to do about it.
        expression: one series.
        unit: Grafana's id of the unit.
        base: the colour below the first step.
        steps: the colour from each value on.
        none: what stands there when there is no such series.
        glance: fill the panel with the colour, to be seen from across the room.
        decimals: digits after the point; as Grafana finds fit by default.
        w: width.
        h: height.
    """
    defaults: Json = {
        "color": {"mode": "thresholds"},
        "noValue": none,
        "thresholds": _thresholds(base, steps or {}),
        "unit": unit,
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return {
        **_panel("stat", title, description, w, h),
        "targets": [_target("A", expression, instant=True)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "colorMode": "background" if glance else "value",
            "graphMode": "none",
            "justifyMode": "center",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": "value",
            "wideLayout": True,
        },
    }


def timeseries(
    title: str,
    description: str,
    lines: dict[str, str],
    unit: str,
    *,
    stack: bool = False,
    top: float | None = None,
    w: int = 8,
    h: int = 8,
) -> Json:
    """Return lines over time.

    Args:
        title: what they are.
        description: what they mean, and what to look for.
        lines: an expression for each legend.
        unit: Grafana's id of the unit.
        stack: lay the lines on one another.
        top: the upper end of the axis; by default, where the data ends.
        w: width.
        h: height.
    """
    custom: Json = {
        "drawStyle": "line",
        "fillOpacity": 30 if stack else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stack else "none"},
    }
    defaults: Json = {
        "color": {"mode": "palette-classic"},
        "custom": custom,
        "min": 0,
        "unit": unit,
    }
    if top is not None:
        defaults["max"] = top
    return {
        **_panel("timeseries", title, description, w, h),
        "targets": [
            _target(ref, expression, legend)
            for ref, (legend, expression) in zip("ABCDEFGH", lines.items(), strict=False)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {
                "calcs": ["lastNotNull", "max"],
                "displayMode": "table",
                "placement": "right" if w >= WIDTH // 2 else "bottom",
                "showLegend": True,
                # The legend is as long as it has room for: what matters stands on top.
                "sortBy": "Last *",
                "sortDesc": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def heatmap(
    title: str, description: str, histogram: str, unit: str, *, w: int = 8, h: int = 8
) -> Json:
    """Return how the observations of a histogram spread over its buckets, over time."""
    metric, _, matchers = histogram.partition("{")
    buckets = f"sum by (le) (increase({metric}_bucket{{{matchers}[{RANGE}]))"
    return {
        **_panel("heatmap", title, description, w, h),
        # As many columns as fill the panel: with one a pixel nobody sees a colour.
        "maxDataPoints": 100,
        "targets": [_target("A", buckets, "{{le}}", format="heatmap")],
        "fieldConfig": {"defaults": {"custom": {}, "unit": "short"}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"decimals": 0, "unit": "short"},
            "color": {
                "exponent": 0.5,
                "fill": "dark-orange",
                "mode": "scheme",
                "reverse": False,
                "scale": "exponential",
                "scheme": "Oranges",
                "steps": 64,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        },
    }


def state_timeline(
    title: str,
    description: str,
    lines: dict[str, str],
    states: dict[int, tuple[str, str]],
    *,
    w: int = 12,
    h: int = 8,
) -> Json:
    """Return what state each series was in, when; `states` gives a value its word and colour."""
    mapping = {
        "type": "value",
        "options": {
            str(value): {"color": colour, "index": index, "text": word}
            for index, (value, (word, colour)) in enumerate(states.items())
        },
    }
    return {
        **_panel("state-timeline", title, description, w, h),
        "targets": [
            _target(ref, expression, legend)
            for ref, (legend, expression) in zip("ABCDEFGH", lines.items(), strict=False)
        ],
        "fieldConfig": {
            "defaults": {
                "color": {"mode": "thresholds"},
                "custom": {"fillOpacity": 80, "lineWidth": 0},
                "mappings": [mapping],
                "thresholds": _thresholds("text", {}),
                "unit": "none",
            },
            "overrides": [],
        },
        "options": {
            "alignValue": "left",
            "legend": {
                "calcs": [],
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
            },
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "never",
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }


def table(
    title: str,
    description: str,
    labels: dict[str, str],
    columns: dict[str, tuple[str, str]],
    *,
    sort: str,
    w: int = 12,
    h: int = 8,
) -> Json:
    """Return a row for each set of labels, as it is now.

    Args:
        title: what a row is.
        description: what the columns mean.
        labels: the heading of each label that is shown.
        columns: an expression and its unit, by heading.
        sort: the heading to sort by, greatest first.
        w: width.
        h: height.
    """
    refs = dict(zip("ABCDEFGH", columns, strict=False))
    # With one query the merged column keeps the name that a single result has.
    values = {f"Value #{ref}" if len(refs) > 1 else "Value": name for ref, name in refs.items()}
    names = [*labels, *values]
    return {
        **_panel("table", title, description, w, h),
        "targets": [
            _target(ref, columns[name][0], instant=True, format="table")
            for ref, name in refs.items()
        ],
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "indexByName": {name: index for index, name in enumerate(names)},
                    "renameByName": {**labels, **values},
                },
            },
        ],
        "fieldConfig": {
            "defaults": {"custom": {"align": "auto", "filterable": True}, "unit": "short"},
            "overrides": [
                {
                    "matcher": {"id": "byName", "options": name},
                    "properties": [{"id": "unit", "value": unit}],
                }
                for name, (_, unit) in columns.items()
            ],
        },
        "options": {
            "cellHeight": "sm",
            "frameIndex": 0,
            "showHeader": True,
            "sortBy": [{"desc": True, "displayName": sort}],
        },
    }


def _panel(kind: str, title: str, description: str, w: int, h: int) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": w, "h": h},
    }


def _target(
    ref: str,
    expression: str,
    legend: str = "",
    *,
    instant: bool = False,
    format: str = "time_series",  # noqa: A002 -- Grafana's name for it
) -> Json:
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": promql(expression),
        "format": format,
        "instant": instant,
        "legendFormat": legend or "__auto",
        "range": not instant,
        "refId": ref,
    }


def _thresholds(base: str, steps: dict[float, str]) -> Json:
    colours = [{"color": colour, "value": value} for value, colour in steps.items()]
    return {"mode": "absolute", "steps": [{"color": base, "value": None}, *colours]}
