"""Every query of the committed boards, ready to be sent to a Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]

GRAFANA = Path(__file__).parents[2] / "grafana"
BOARDS: dict[str, Json] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
"""By uid, which is the name of the file."""

EVERYTHING: dict[str, str] = {
    "__rate_interval": "1m",
    "__interval": "15s",
    "__range": "1h",
    "job": ".+",
    "queue": ".+",
    "instance": ".+",
    "datasource": "prometheus",
}
"""What Grafana puts in for a board that was just opened."""

VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


class Query(NamedTuple):
    """One target of one panel, an annotation or a variable; `target` is its JSON."""

    board: str
    panel: str
    target: Json
    expr: str


def substituted(text: str, values: Mapping[str, str]) -> str:
    """Put the values in for ``$name`` and ``${name}``; a KeyError names an unknown one."""
    return VARIABLE.sub(lambda found: values[found[1] or found[2]], text)


def panels(board: Json) -> Iterator[Json]:
    """Every panel that draws something: the rows are only headings."""
    for panel in board["panels"]:
        if panel["type"] != "row":
            yield panel


def queries(values: Mapping[str, str] = EVERYTHING) -> Iterator[Query]:
    """Every target of every panel of every board, with these values for the variables."""
    for uid, board in BOARDS.items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield Query(uid, panel["title"], target, substituted(target["expr"], values))


def marks(values: Mapping[str, str] = EVERYTHING) -> Iterator[Query]:
    """Every query that draws marks over the panels."""
    for uid, board in BOARDS.items():
        for mark in board["annotations"]["list"]:
            target = mark["target"]
            yield Query(uid, mark["name"], target, substituted(target["expr"], values))
