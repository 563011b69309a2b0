"""The guide on types: its code, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from streamqueue.worker.worker import settings_of

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "types.md").read_text("utf-8")
HANDLERS, PAYLOADS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)


def test_the_code_of_the_guide_runs() -> None:
    # As a module's own: a child process imports its function from there.
    names: dict[str, Any] = {"uri": "mongodb://127.0.0.1:9/", "__name__": "tasks"}

    exec(HANDLERS, names)
    exec(PAYLOADS, names)

    registered = settings_of(names["worker"]).handlers
    assert {handler.queue: handler.run_in for each in registered.values() for handler in each} == {
        "emails": "loop",
        "reports": "thread",
        "pictures": "process",
    }
    assert names["total"](SimpleNamespace(data={"number": 1, "items": ["a", "b"]})) == 2
