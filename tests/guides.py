"""The recipes of a guide, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from streamqueue import MongoQueue

GUIDES = Path(__file__).parents[1] / "docs" / "guides"


def recipes_of(guide: str, queue: MongoQueue) -> Any:
    """Return what a guide defines, with this queue in place of its own."""
    text = (GUIDES / guide).read_text("utf-8")
    first, *blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(first.split("collection =")[0], names)
    names["queue"] = queue
    for block in blocks:
        exec(block, names)
    return SimpleNamespace(**names)
