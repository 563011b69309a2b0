"""The edges of the histograms, in seconds or jobs: few, because each is a series of its own."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Eight edges below 15 ms keep a quantile interpolated on a path of a few milliseconds honest; the
# tail still shows a backlog of minutes.
LATENCY_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
DURATION_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)
OPERATION_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
LOOP_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
CLAIM_BATCH_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


def checked_edges(buckets: Iterable[float], name: str) -> tuple[float, ...]:
    """Return the edges that somebody gave as this argument.

    Raises:
        ConfigurationError: they are not increasing numbers.
    """
    try:
        edges = tuple(float(edge) for edge in buckets)
    except (TypeError, ValueError):
        edges = ()
    increasing = all(low < high for low, high in pairwise(edges))
    if not edges or not increasing or not 0 < edges[0] < math.inf:
        raise ConfigurationError(
            f"{name} must be one or more increasing numbers of seconds above 0, not {buckets!r}"
        )
    return edges
