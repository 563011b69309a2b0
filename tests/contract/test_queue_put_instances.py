"""Instances of classes as payloads: stored as their dicts, however they are put."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import NewJob, PayloadError
from tests.contract.looks import document


@dataclass
class Point:
    x: int
    y: int = 0


class Model(pydantic.BaseModel):
    x: int
    y: int = 0


@pytest.mark.parametrize("kind", [Point, Model], ids=["dataclass", "model"])
async def test_an_instance_is_stored_as_its_dict(
    queue: Any, jobs: Collection[Any], kind: Any
) -> None:
    one = await queue.put(kind(x=1))
    many = await queue.put_many([kind(x=2), NewJob(kind(x=3)), {"x": 4, "y": 0}])

    stored = [document(jobs, job_id)["payload"] for job_id in (one, *many)]
    assert stored == [{"x": x, "y": 0} for x in (1, 2, 3, 4)]


async def test_an_instance_that_bson_cannot_hold_is_refused(
    queue: Any, jobs: Collection[Any]
) -> None:
    with pytest.raises(PayloadError, match="beyond 64 bits"):
        await queue.put(Point(2**70))

    assert jobs.count_documents({}) == 0
