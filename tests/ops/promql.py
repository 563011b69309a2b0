"""What is wrong with a query, as far as can be said without a Prometheus."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser as promql

from .contract import Series

COUNTING = {"rate", "irate", "increase"}


class Unfit(Exception):
    """A query that Prometheus would take, and that would show nothing, or the wrong thing."""


def labels_of(node: Any, contract: Series) -> set[str]:
    """Return the labels that a result may have; raises Unfit for one that cannot be."""
    match node:
        case promql.VectorSelector():
            return _selected(node.name, node.matchers.matchers, contract)
        case promql.MatrixSelector():
            return labels_of(node.vector_selector, contract)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return labels_of(node.expr, contract)
        case promql.Call():
            below = set().union(*(labels_of(argument, contract) for argument in node.args))
            return below - {"le"} if node.func.name == "histogram_quantile" else below
        case promql.AggregateExpr():
            below = labels_of(node.expr, contract)
            kept = set(node.modifier.labels) if node.modifier else set()
            if not kept <= below:
                raise Unfit(f"aggregates by {sorted(kept - below)}, which is not a label there")
            return kept
        case promql.BinaryExpr():
            left, right = labels_of(node.lhs, contract), labels_of(node.rhs, contract)
            added = set(node.modifier.group_labels or ()) if node.modifier else set()
            if not added <= right:
                raise Unfit(
                    f"takes {sorted(added - right)} from the right, which has no such label"
                )
            return (left or right) | added
    return set()


def _selected(name: str | None, matchers: list[Any], contract: Series) -> set[str]:
    pattern = next((m.value for m in matchers if m.name == "__name__"), re.escape(name or ""))
    metrics = [metric for metric in contract if re.fullmatch(pattern, metric)]
    if not metrics:
        raise Unfit(f"names {name or pattern}, which is not a series of ours")
    labels = {label for metric in metrics for label in contract[metric]}
    for matcher in matchers:
        if matcher.name == "__name__":
            continue
        if matcher.name not in labels:
            raise Unfit(f"matches {matcher.name}, which {name or pattern} does not have")
        known = set().union(*(contract[metric].get(matcher.name, set()) for metric in metrics))
        for value in matcher.value.split("|"):
            if known and value not in known:
                raise Unfit(f"looks for {matcher.name}={value!r}, which {name} never is")
    return labels


def parents(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield every part of a query, with all it stands in, the nearest last."""
    yield node, above
    match node:
        case promql.MatrixSelector():
            below: list[Any] = [node.vector_selector]
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            below = [node.expr]
        case promql.AggregateExpr():
            below = [node.expr, *([node.param] if node.param else [])]
        case promql.Call():
            below = list(node.args)
        case promql.BinaryExpr():
            below = [node.lhs, node.rhs]
        case _:
            below = []
    for child in below:
        yield from parents(child, (*above, node))


def selectors(node: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield every selector, with all it stands in."""
    for part, above in parents(node):
        if isinstance(part, promql.VectorSelector):
            yield part, above


def uncounted(node: Any) -> Iterator[str]:
    """Yield every counter that is read as a number rather than by how fast it grows."""
    for selector, above in selectors(node):
        if (selector.name or "").endswith(("_total", "_bucket", "_sum", "_count")):
            call = above[-2] if len(above) > 1 else None
            if not (isinstance(call, promql.Call) and call.func.name in COUNTING):
                yield selector.name
