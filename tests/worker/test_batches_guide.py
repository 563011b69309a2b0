"""The guide on batches: its code, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from streamqueue.testing import Report, run_until_empty

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "batches.md").read_text("utf-8")
ROWS, PARCELS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)


class Others:
    """What the guide calls: a warehouse and a carrier."""

    def __init__(self) -> None:
        self.inserted: list[list[Any]] = []

    async def insert(self, rows: list[Any]) -> None:
        self.inserted.append(rows)

    async def ship(self, parcels: list[str]) -> list[dict[str, str]]:
        return [
            {"number": f"{parcel}-1"} if parcel != "broken" else {"error": "no such parcel"}
            for parcel in parcels
        ]


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
async def names(uri: str, others: Others) -> Any:
    names = {"uri": uri, "warehouse": others, "carrier": others}
    exec(ROWS, names)
    yield names
    client: AsyncMongoClient[Any] = names["collection"].database.client  # type: ignore[attr-defined]
    await client.close()


async def test_rows_are_stored_together(
    names: dict[str, Any], async_jobs: AsyncCollection[Any], others: Others
) -> None:
    rows = [{"row": number} for number in range(100)]
    async with AsyncMongoQueue(async_jobs, name="rows") as queue:
        await queue.put_many(rows)

    report: Report = await run_until_empty(names["worker"], async_jobs)

    assert report.done == 100
    assert sorted(row["row"] for call in others.inserted for row in call) == list(range(100))
    assert len(others.inserted) < 10


async def test_each_parcel_has_an_end_of_its_own(
    names: dict[str, Any], async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    exec(PARCELS, names)
    async with AsyncMongoQueue(async_jobs, name="parcels", keep=60) as queue:
        ids = await queue.put_many([{"parcel": "a"}, {"parcel": "broken"}], keep=60)
        with anyio.fail_after(20):
            report = await run_until_empty(names["worker"], async_jobs, failures="collect")

        assert report.outcomes == {"completed": 1, "retried": 1}
        assert await queue.result(ids[0]) == "a-1"
        assert (await queue.get(ids[1])).last_error == "no such parcel"
