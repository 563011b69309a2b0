"""How long importing takes beyond what streamqueue stands on, in fresh processes.

The names are loaded when they are first asked for, so what a program imports is what counts.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from ..errors import StreamQueueError
from ..interpreter import python
from .report import Row, Table

if TYPE_CHECKING:
    from .ground import Ground
    from .scale import Scale

PROCESSES = 7
WITHIN_SECONDS = 60.0
STATEMENTS = (
    "import streamqueue",
    "from streamqueue import MongoQueue",
    "from streamqueue import Worker",
)
PROGRAM = """
import time
begun = time.perf_counter()
import pymongo, anyio, prometheus_client
between = time.perf_counter()
STATEMENT
print([1000 * (between - begun), 1000 * (time.perf_counter() - between)])
"""


def steps(_: Scale) -> int:
    return 1


def measure(ground: Ground) -> Table:
    """Return milliseconds. The first process is not counted: it fills the caches."""
    ground.progress.step(f"{PROCESSES} fresh processes each")
    table = Table()
    floors: list[float] = []
    for statement in STATEMENTS:
        times = [_import_once(statement) for _ in range(1 + PROCESSES)][1:]
        floors += [others for others, _ in times]
        table.rows.append(Row.alone(statement, "ms", [own for _, own in times]))
    table.rows.append(
        Row.floor_alone("import pymongo, anyio, prometheus_client, before it", "ms", floors)
    )
    return table


def _import_once(statement: str) -> tuple[float, float]:
    try:
        done = subprocess.run(  # noqa: S603 (our own program)
            python("-c", PROGRAM.replace("STATEMENT", statement)),
            capture_output=True,
            timeout=WITHIN_SECONDS,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise StreamQueueError("a fresh Python could not import streamqueue") from error
    others, own = json.loads(done.stdout)
    return others, own
