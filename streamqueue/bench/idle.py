"""What one process costs that has nothing to do: server operations and processor time.

Counted in the worker itself, by its driver, for all its clients: commands by name, and the
heartbeats of the driver's monitors. And counted by the server (``opcounters``), less what it counts
in a while without the worker: where nobody else uses it. It is left alone for a while before
counting begins.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..clock import monotonic
from .fleet import Fleet
from .process import pause
from .report import Row, Table

if TYPE_CHECKING:
    from .ground import Ground
    from .scale import Scale

SETTLE_SECONDS = 2.0


def steps(_: Scale) -> int:
    return 1


def _counted(ground: Ground, seconds: float) -> float:
    """Return the operations per second that the server counts, for so long."""

    def operations() -> int:
        return sum(ground.client.admin.command("serverStatus")["opcounters"].values())

    before, begun = operations(), monotonic()
    pause(seconds)
    return (operations() - before) / (monotonic() - begun)


def measure(ground: Ground) -> Table:
    """Return operations per second, by command, and per cent of one processor."""
    length = ground.scale.idle_seconds
    ground.progress.step(f"one idle worker for {length:.0f} s")
    with ground.jobs() as jobs, ground.consumers(Fleet(1), jobs) as team:
        alone = _counted(ground, length)
        team.go()
        pause(SETTLE_SECONDS)
        (before,) = team.reports()
        beside = _counted(ground, length)
        (after,) = team.reports()
    elapsed = after.at - before.at
    sent = Counter(after.commands) - Counter(before.commands)
    table = Table()
    rate = sum(count for name, count in sent.items()) / elapsed
    table.rows.append(Row.alone("server operations of an idle worker", "1/s", [rate]))
    for name, count in sent.most_common():
        table.rows.append(Row.alone(f"  {name}", "1/s", [count / elapsed]))
    table.rows.append(Row.alone("  as the server counts them", "1/s", [beside - alone]))
    used = 100 * (after.cpu_seconds - before.cpu_seconds) / elapsed
    table.rows.append(Row.alone("processor time of an idle worker", "% of one", [used]))
    table.notes.append(f"watched for {elapsed:.0f} s")
    return table
