"""A job put in a trace: its measurements say which, and its handler can go on with it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.samples import Exemplar
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, MongoQueue
from tests import programs
from tests.worker.started import StartedWorker, WorkerStarter

TRACER = TracerProvider().get_tracer("test")
A_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
A_TRACEPARENT = f"00-{A_TRACE}-00f067aa0ba902b7-01"


class Noting:
    """A handler that notes the traces of its jobs."""

    def __init__(self) -> None:
        self.traces: list[str | None] = []

    async def __call__(self, job: AsyncJob) -> None:
        self.traces.append(job.traceparent)


def exemplars(worker: StartedWorker, name: str) -> list[Exemplar]:
    return [
        sample.exemplar
        for family in worker.registry.collect()
        for sample in family.samples
        if sample.name == f"streamqueue_{name}_bucket" and sample.exemplar
    ]


async def test_a_job_put_in_a_span_is_measured_with_its_trace(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    noting = Noting()
    worker = await start(noting)
    with TRACER.start_as_current_span("order") as span:
        await queue.put({})

    await worker.until_outcomes(completed=1)

    context = span.get_span_context()
    expected = trace.format_trace_id(context.trace_id)
    flags = f"{context.trace_flags:02x}"
    assert noting.traces == [f"00-{expected}-{trace.format_span_id(context.span_id)}-{flags}"]
    for histogram in ("job_wait_seconds", "job_duration_seconds"):
        (exemplar,) = exemplars(worker, histogram)
        assert exemplar.labels == {"trace_id": expected}


async def test_a_job_put_in_no_span_has_no_trace(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await queue.put({})
    assert "traceparent" not in (jobs.find_one() or {})
    noting = Noting()
    worker = await start(noting)

    await worker.until_outcomes(completed=1)

    assert noting.traces == [None]
    assert exemplars(worker, "job_wait_seconds") == []


def test_all_of_many_put_in_a_span_have_its_trace(jobs: Collection[Any]) -> None:
    with TRACER.start_as_current_span("order"), MongoQueue(jobs) as queue:
        queue.put_many([{}, {"priority": 3}, {}])

    assert len(jobs.distinct("traceparent")) == 1
    assert jobs.count_documents({"traceparent": {"$type": "string"}}) == 3


@pytest.mark.parametrize("known", [True, False], ids=["from an event", "from a backlog"])
async def test_a_foreign_producer_may_name_a_trace(
    start: WorkerStarter, jobs: Collection[Any], known: bool
) -> None:
    job = {"queue": "default", "state": "ready", "payload": {}, "traceparent": A_TRACEPARENT}
    if not known:
        jobs.insert_one({**job, "run_at": None})
    worker = await start(noting := Noting())
    if known:
        await worker.until_idle()
        jobs.insert_one({**job})

    await worker.until_outcomes(completed=1)

    assert noting.traces == [A_TRACEPARENT]
    assert [found.labels for found in exemplars(worker, "job_duration_seconds")] == [
        {"trace_id": A_TRACE}
    ]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "odd",
    [
        *(7, "", "00-xyz", A_TRACEPARENT.upper(), f"{A_TRACEPARENT}-more", f"{A_TRACEPARENT}\n"),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{A_TRACE}{'a' * 200}-00f067aa0ba902b7-01",
    ],
)
async def test_an_odd_trace_is_ignored(
    start: WorkerStarter, jobs: Collection[Any], odd: Any
) -> None:
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {}, "traceparent": odd})
    worker = await start(Noting())

    await worker.until_outcomes(completed=1)

    assert exemplars(worker, "job_duration_seconds") == []


def test_without_opentelemetry_nothing_of_it_is_loaded() -> None:
    program = (
        "import sys, streamqueue.protocol.put; streamqueue.protocol.put.current_traceparent();"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )

    assert programs.run([sys.executable, "-c", program]).returncode == 0
