"""What all boards have in common: variables, annotations, links, and the place of each panel."""

from __future__ import annotations

from panels import DATASOURCE, WIDTH, Json, promql

TAGS = ["streamqueue", "mongodb"]


def board(
    uid: str, title: str, description: str, variables: list[Json], rows: dict[str, list[Json]]
) -> Json:
    """Return a board whose panels stand in rows, under the question that each row answers."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": TAGS,
        "schemaVersion": 39,  # Grafana 10.4, which every later one migrates from
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_link_to_the_others()],
        "annotations": {"list": [_firing_alerts(), _new_versions()]},
        "templating": {"list": [_datasource(), *variables]},
        "panels": _arranged(rows),
    }


def variable(name: str, label: str, query: str, description: str) -> Json:
    """Return a variable of the label's values, several or all of which may be chosen."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": DATASOURCE,
        "query": promql(query),
        "refresh": 2,  # with the time range: a worker that came or went is not missed
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _datasource() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "description": "The Prometheus that scrapes streamqueue.",
        "query": "prometheus",
        "current": {"selected": False, "text": "default", "value": "default"},
    }


def _link_to_the_others() -> Json:
    return {
        "type": "dashboards",
        "title": "streamqueue",
        "tags": ["streamqueue"],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "The other board, with this time range and these variables",
    }


def _firing_alerts() -> Json:
    return {
        "name": "Firing alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "target": {
            "expr": 'ALERTS{alertname=~"Streamqueue.*", alertstate="firing"}',
            "interval": "30s",
            "refId": "Anno",
        },
        "titleFormat": "{{alertname}}",
        "textFormat": "{{queue}} {{instance}}",
        "tagKeys": "severity",
    }


def _new_versions() -> Json:
    running = promql("count by (version, pymongo, python) (streamqueue_build_info{@job}")
    return {
        "name": "Deploys",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "blue",
        "target": {
            # The value is always 1; a deploy shows as a set of labels nobody had just before.
            "expr": f"{running}) unless {running} offset 5m)",
            "interval": "30s",
            "refId": "Anno",
        },
        "titleFormat": "streamqueue {{version}}",
        "textFormat": "pymongo {{pymongo}}, Python {{python}}",
        "tagKeys": "version",
    }


def _arranged(rows: dict[str, list[Json]]) -> list[Json]:
    """Give each panel its number and place: left to right, then below the tallest so far."""
    placed: list[Json] = []
    top = 0
    for title, panels in rows.items():
        placed.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
                "panels": [],
            }
        )
        top += 1
        left = tallest = 0
        for panel in panels:
            size = panel["gridPos"]
            if left + size["w"] > WIDTH:
                left, top, tallest = 0, top + tallest, 0
            placed.append(panel | {"gridPos": {**size, "x": left, "y": top}})
            left += size["w"]
            tallest = max(tallest, size["h"])
        top += tallest
    return [{"id": number, **panel} for number, panel in enumerate(placed, start=1)]
