"""How long ``import streamqueue`` takes beyond what it stands on, in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from ..errors import StreamQueueError
from .report import Row, Table

if TYPE_CHECKING:
    from .ground import Ground
    from .scale import Scale

PROCESSES = 7
WITHIN_SECONDS = 60.0
PROGRAM = """
import time
begun = time.perf_counter()
import pymongo, anyio, prometheus_client
between = time.perf_counter()
import streamqueue
print([1000 * (between - begun), 1000 * (time.perf_counter() - between)])
"""


def steps(_: Scale) -> int:
    return 1


def measure(ground: Ground) -> Table:
    """Return milliseconds. The first process is not counted: it fills the caches."""
    ground.progress.step(f"{PROCESSES} fresh processes")
    times = [_import_once() for _ in range(1 + PROCESSES)][1:]
    table = Table()
    table.rows += [
        Row.alone("import streamqueue, the others imported", "ms", [own for _, own in times]),
        Row.floor_alone(
            "import pymongo, anyio, prometheus_client", "ms", [others for others, _ in times]
        ),
    ]
    return table


def _import_once() -> tuple[float, float]:
    try:
        done = subprocess.run(  # noqa: S603 (our own program)
            [sys.executable, "-c", PROGRAM], capture_output=True, timeout=WITHIN_SECONDS, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise StreamQueueError("a fresh Python could not import streamqueue") from error
    others, own = json.loads(done.stdout)
    return others, own
