"""The program of the guide on topics, as it stands there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "topics.md"


async def test_workers_of_one_queue_share_and_each_queue_has_every_message(
    uri: str, jobs: Collection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    program = program.replace(".shop.jobs", f'["{jobs.database.name}"]["{jobs.name}"]')
    names: dict[str, Any] = {}
    exec(compile(program, GUIDE, "exec"), names)

    with anyio.fail_after(60):
        await names["main"](uri)

    said = re.findall(r"^(\w+) (\w+) order (\d)$", capsys.readouterr().out, re.M)
    done = Counter((what, order) for _, what, order in said)
    assert done == {(what, str(n)): 1 for what in ("mails", "bills") for n in range(10)}


def test_the_guide_begins_with_the_difference() -> None:
    beginning = GUIDE.read_text()[:700]

    assert "competing consumers" in beginning
    assert "broadcast" in beginning
