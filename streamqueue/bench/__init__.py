"""``streamqueue bench``: the queue, measured against what the server itself permits.

Each part measures ours and the *bare floor* in the same run: the least that plain pymongo can do
for the same promise (majority writes, a compare-and-set with a token). Rounds of ours and of the
floor are interleaved, so that a busy machine is busy for both; what is reported is the median over
the rounds, with the lowest and the highest. Ratios are made within a round, before the median.

Consumers are real processes (``consumer.py``, ``process.py``). Everything is written to a database
of its own, which is dropped at the end.
"""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .capacity.model import Deployment
    from .ground import Ground
    from .report import Table
    from .scale import Scale

PARTS = (
    *("latency", "answers", "drain", "queues", "limits", "put", "depth", "idle"),
    *("fanout", "scrape", "soak", "import", "model"),
)


class Part(Protocol):
    """A module that measures one thing."""

    def steps(self, scale: Scale, /) -> int:
        """Return how often :meth:`measure` will say that it has come further."""
        ...

    def measure(self, ground: Ground, /) -> Table:
        """Measure and return the rows."""
        ...


def run(
    uri: str | None,
    parts: Sequence[str],
    *,
    as_json: bool,
    deployment: Deployment | None = None,
    **size: Any,
) -> int:
    """Measure the parts (none named: all) and print what was found; return 0.

    Args:
        uri: a replica set; None starts a local one.
        parts: names out of :data:`PARTS`.
        as_json: print one JSON document instead of tables.
        deployment: what the part ``model`` is asked about; the costs alone, if None.
        size: how much is measured, see :meth:`~.scale.Scale.choose`.

    Raises:
        ConfigurationError: no such part, or a number outside its range.
        StreamQueueError: a process died or nothing moved any more.
    """
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise ConfigurationError(
            f"there is no bench part {unknown[0]!r}: choose from {', '.join(PARTS)}"
        )
    if deployment is not None and parts and "model" not in parts:
        raise ConfigurationError("jobs a second, hosts and processes are for the part 'model'")
    # Here, so that the consumers, which are modules of this package too, load only what they use.
    from . import (
        answers,
        depth,
        drain,
        environment,
        fanout,
        idle,
        imports,
        latency,
        limits,
        puts,
        queues,
        report,
        scrape,
        soak,
    )
    from .capacity import costs
    from .ground import open_ground
    from .scale import Scale

    modules: dict[str, Part] = {
        "latency": latency,
        "answers": answers,
        "drain": drain,
        "queues": queues,
        "limits": limits,
        "put": puts,
        "depth": depth,
        "idle": idle,
        "fanout": fanout,
        "scrape": scrape,
        "soak": soak,
        "import": imports,
        "model": costs,
    }
    chosen = {name: modules[name] for name in PARTS if not parts or name in parts}
    scale = Scale.choose(**size, deployment=deployment)
    with ExitStack() as stack:
        stack.enter_context(_terminated_like_interrupted())
        progress = stack.enter_context(
            report.Progress(sum(p.steps(scale) for p in chosen.values()))
        )
        ground = stack.enter_context(open_ground(uri, scale, progress))
        surroundings = environment.describe(ground.client, scale)
        tables = {}
        for name, part in chosen.items():
            progress.part = name
            tables[name] = part.measure(ground)
    report.show(surroundings, tables, as_json=as_json)
    return 0


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Clean up after SIGTERM as after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
