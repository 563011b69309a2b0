"""The recipes for OpenTelemetry, Sentry and structlog, as they stand in the guide."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Job, Worker
from tests.waiting import wait_until_async

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "observability.md").read_text()
OTEL, SENTRY, STRUCTLOG, FILTER = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)
REPORTS = Path(__file__).with_name("programs") / "reports.py"


def defined(recipe: str, jobs: AsyncCollection[Any]) -> dict[str, Any]:
    """Return what a recipe defines, with the test's collection."""
    at_once = Backoff(initial=0.01)
    settings: dict[str, Any] = {"registry": CollectorRegistry(), "max_await": 0.05}
    names = {"jobs": jobs, "Worker": partial(Worker, backoff=at_once, **settings)}
    exec(recipe, names)
    return names


async def run_job(worker: Worker, queue: AsyncMongoQueue, handler: Any) -> None:
    """Run the one job there is until it has ended."""
    worker.handler("default")(handler)
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await worker.run(handle_signals=False, task_status=task_status)

        async def ended() -> Any:
            stats = await queue.stats()
            return stats["total"] == stats["errors"]

        await tasks.start(run)
        await wait_until_async(ended, "the job has ended")
        worker.stop()


# OpenTelemetry


class Spans:
    """The recipe's tracer, and the spans that it has made."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._kept.get_finished_spans() if span.name == name]


@pytest.fixture
def traced(async_jobs: AsyncCollection[Any]) -> tuple[Worker, Spans]:
    """A worker with the recipe for spans."""
    spans, names = Spans(), defined(OTEL, async_jobs)
    names["tracer"] = spans.tracer
    return names["worker"], spans


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_the_span_of_the_put_is_the_parent_of_that_of_every_attempt(
    traced: tuple[Worker, Spans], queue: AsyncMongoQueue, kind: str
) -> None:
    worker, spans = traced

    def work(job: AsyncJob | Job) -> None:
        with spans.tracer.start_as_current_span("work"):
            if job.attempts == 1:
                raise OSError("no answer")

    async def handler(job: AsyncJob) -> None:
        work(job)

    def blocking(job: Job) -> None:
        work(job)

    with spans.tracer.start_as_current_span("order"):
        await queue.put({})
    await run_job(worker, queue, handler if kind == "async" else blocking)

    [order] = spans.named("order")
    attempts, works = spans.named("process default"), spans.named("work")
    assert [span.parent and span.parent.span_id for span in attempts] == [ids(order)[1]] * 2
    assert {ids(span)[0] for span in [*attempts, *works]} == {ids(order)[0]}
    parents = [span.parent and span.parent.span_id for span in works]
    assert parents == [ids(span)[1] for span in attempts]
    assert [len(span.events) for span in attempts] == [1, 0]
    assert attempts[0].kind is trace.SpanKind.CONSUMER
    assert (attempts[1].attributes or {})["streamqueue.attempt"] == 2


async def test_a_job_that_was_put_in_no_span_begins_a_trace(
    traced: tuple[Worker, Spans], queue: AsyncMongoQueue
) -> None:
    worker, spans = traced

    async def handler(job: AsyncJob) -> None:
        pass

    await queue.put({})
    await run_job(worker, queue, handler)

    [attempt] = spans.named("process default")
    assert attempt.parent is None


async def test_what_a_handler_puts_is_in_the_same_trace(
    traced: tuple[Worker, Spans], queue: AsyncMongoQueue
) -> None:
    worker, spans = traced

    async def handler(job: AsyncJob) -> None:
        if not job.data:
            await queue.put({"n": 2})

    await queue.put({})
    await run_job(worker, queue, handler)

    first, second = spans.named("process default")
    assert second.parent is not None
    assert (second.parent.trace_id, second.parent.span_id) == ids(first)


# Sentry


async def test_an_error_of_a_handler_is_an_event_that_names_the_job_and_holds_no_payload(
    uri: str, jobs: Collection[Any]
) -> None:
    arguments = {"uri": uri, "database": jobs.database.name, "collection": jobs.name}
    ended = await anyio.run_process(
        [sys.executable, str(REPORTS), json.dumps({**arguments, "recipe": SENTRY})],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.STDOUT,
    )

    events = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith(b"{")]
    raised = [event for event in events if "exception" in event]
    logged = {event["logger"]: event for event in events if event.get("logger") == "shop"}
    [error] = raised
    assert error["exception"]["values"][-1]["value"] == "no such card, of 4 digits"
    assert error["tags"]["queue"] == "async"
    assert error["contexts"]["job"]["attempt"] == 1
    assert logged["shop"]["tags"]["queue"] in {"async", "blocking"}
    of_queues = {event["tags"]["queue"] for event in events if event.get("logger") == "shop"}
    assert of_queues == {"async", "blocking"}
    assert "4111" not in ended.stdout.decode()


# logs


@pytest.fixture
def structured() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.mark.parametrize("kind", ["async", "blocking"])
@pytest.mark.usefixtures("structured")
async def test_a_line_of_structlog_says_whose_it_is(
    async_jobs: AsyncCollection[Any],
    queue: AsyncMongoQueue,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    worker = defined(STRUCTLOG, async_jobs)["worker"]

    async def handler(job: AsyncJob) -> None:
        structlog.get_logger().info("charged")

    def blocking(job: Job) -> None:
        structlog.get_logger().info("charged")

    job_id = await queue.put({})
    await run_job(worker, queue, handler if kind == "async" else blocking)

    [line] = [line for line in capsys.readouterr().out.splitlines() if "charged" in line]
    said = json.loads(line)
    assert (said["queue"], said["job_id"], said["attempt"]) == ("default", str(job_id), 1)


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_filter_puts_the_job_on_the_records_of_a_formatter_of_ones_own(
    async_jobs: AsyncCollection[Any], queue: AsyncMongoQueue, capsys: Any, kind: str
) -> None:
    names = defined(FILTER, async_jobs)
    names["handler"].setStream(sys.stdout)
    logger = logging.getLogger("shop")
    logger.addHandler(names["handler"])

    async def handler(job: AsyncJob) -> None:
        logger.warning("charged")

    def blocking(job: Job) -> None:
        logger.warning("charged")

    try:
        job_id = await queue.put({})
        worker = Worker(async_jobs, registry=CollectorRegistry(), max_await=0.05)
        await run_job(worker, queue, handler if kind == "async" else blocking)
        logger.warning("outside")
    finally:
        logger.removeHandler(names["handler"])

    lines = capsys.readouterr().out.splitlines()
    assert f"WARNING default {job_id} charged" in lines
    assert "WARNING - - outside" in lines
