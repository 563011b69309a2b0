"""The consumer's end of the pipe to the benchmark: lines of JSON out, orders in.

A child says ``loaded`` when it has imported all it needs, waits for ``go``, says ``ready`` when it
listens, and answers each ``report``. It ends when the benchmark is gone, however that ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def say(line: dict[str, Any]) -> None:
    """Send one line, whole and at once. From any thread."""
    os.write(1, json.dumps(line).encode() + b"\n")


def wait_for_go() -> None:
    """Say that everything is loaded, and return when all others are too."""
    say({"what": "loaded"})
    if sys.stdin.readline() != "go\n":
        os._exit(1)  # the benchmark is gone


def obey(report: Callable[[], dict[str, Any]]) -> None:
    """Answer the orders in a thread of their own."""
    threading.Thread(target=_obey, args=(report,), daemon=True).start()


def _obey(report: Callable[[], dict[str, Any]]) -> None:
    for _ in sys.stdin:
        say({"what": "report", **report()})
    os._exit(1)  # the benchmark is gone
