"""What a worker refuses before it starts, and what it says of itself over HTTP."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, ConfigurationError, ReplicaSetRequired, Worker
from streamqueue.embedded import find_mongod
from streamqueue.health.server import HealthServer
from streamqueue.worker.worker import settings_of
from tests.certified import Identity, client_context
from tests.waiting import wait_until, wait_until_async
from tests.worker.faults import failing
from tests.worker.started import STREAM_APP, StartedWorker, WorkerStarter


async def nothing(job: AsyncJob) -> None:
    pass


def generator(job: AsyncJob) -> Iterator[None]:
    yield


# what is refused


async def test_a_worker_without_a_handler_does_not_run(start: WorkerStarter) -> None:
    worker = start.prepare()

    with pytest.raises(ConfigurationError, match="no handler"):
        await worker.worker.run(handle_signals=False)


async def test_a_queue_has_one_handler(async_jobs: AsyncCollection[Any]) -> None:
    worker = Worker(async_jobs)
    worker.handler("emails")(nothing)

    with pytest.raises(ConfigurationError, match="'emails' has a handler already"):
        worker.handler("emails")(nothing)


@pytest.mark.parametrize("handler", [generator, "text", None])
async def test_what_cannot_be_a_handler_is_refused(
    async_jobs: AsyncCollection[Any], handler: Any
) -> None:
    with pytest.raises(ConfigurationError, match="handler must"):
        Worker(async_jobs).handler("emails")(handler)


@pytest.mark.parametrize("name", ["", ".a", "a b", "a" * 65, {"$ne": ""}, None])
async def test_a_bad_queue_name_is_refused(async_jobs: AsyncCollection[Any], name: Any) -> None:
    with pytest.raises(ConfigurationError, match="queue name"):
        Worker(async_jobs).handler(name)


@pytest.mark.parametrize(
    "setting",
    [
        {"concurency": 3},
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"timeout": 0},
        {"timeout": "30"},
        {"max_attempts": 0},
        {"drain_timeout": -1},
        {"sweep_interval": 0},
        {"reap_interval": float("nan")},
        {"max_await": 0},
        {"backoff": 3},
        {"consumer_id": ""},
        {"metrics_port": -1},
        {"metrics_port": 70_000},
        {"metrics_host": "", "metrics_port": 0},
        {"metrics_cert": "nowhere.pem", "metrics_port": 0},
        {"metrics_client_ca": "nowhere.pem", "metrics_port": 0},
    ],
    ids=str,
)
async def test_a_setting_that_is_unknown_or_out_of_range_is_refused(
    async_jobs: AsyncCollection[Any], setting: dict[str, Any]
) -> None:
    async def make_and_run() -> None:
        worker = Worker(async_jobs, registry=CollectorRegistry(), **setting)
        worker.handler("emails")(nothing)
        await worker.run(handle_signals=False)

    with pytest.raises(ConfigurationError, match=next(iter(setting)).removeprefix("metrics_")):
        await make_and_run()


@pytest.mark.parametrize(
    ("wrong", "meant"), [("concurency", "concurrency"), ("metric_port", "metrics_port")]
)
async def test_a_misspelt_setting_is_told_with_the_one_that_was_meant(
    async_jobs: AsyncCollection[Any], wrong: str, meant: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"'{wrong}': did you mean {meant}\\?"):
        Worker(async_jobs, **{wrong: 3})  # type: ignore[arg-type]


async def test_a_blocking_collection_is_refused(jobs: Any) -> None:
    with pytest.raises(ConfigurationError, match="AsyncCollection"):
        Worker(jobs)


async def test_a_worker_that_runs_is_not_run_twice(start: WorkerStarter) -> None:
    worker = await start(nothing)

    with pytest.raises(ConfigurationError, match="running already"):
        await worker.worker.run(handle_signals=False)


@pytest.fixture
def standalone(tmp_path: Path) -> Iterator[str]:
    """The address of a mongod that is no replica set."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(str(find_mongod()), "--dbpath", str(tmp_path), "--port", str(port)),
            *("--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        with MongoClient(f"mongodb://127.0.0.1:{port}/?directConnection=true") as client:
            client.admin.command("ping")
        yield f"mongodb://127.0.0.1:{port}/?directConnection=true"
    finally:
        process.kill()
        process.wait()


async def test_a_standalone_server_is_refused_with_the_way_out(standalone: str) -> None:
    async with AsyncMongoClient(standalone) as client:
        worker = Worker(client.app.jobs, registry=CollectorRegistry())
        worker.handler("default")(nothing)

        with pytest.raises(ReplicaSetRequired, match=r"rs\.initiate"):
            await worker.run(handle_signals=False)


async def test_a_stream_that_is_refused_at_the_start_is_raised_as_it_is(
    start: WorkerStarter, client: MongoClient[Any]
) -> None:
    worker = start.prepare(nothing)

    with (
        failing(client, "aggregate", app=STREAM_APP, errorCode=13),
        pytest.raises(OperationFailure) as raised,
    ):
        await worker.worker.run(handle_signals=False)

    assert raised.value.code == 13


async def test_a_worker_whose_start_failed_can_be_started_again(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    worker = start.prepare(nothing)
    with failing(client, "aggregate", app=STREAM_APP, errorCode=13):
        try:
            await worker.worker.run(handle_signals=False)
        except (OperationFailure, ExceptionGroup):
            pass

    await start.begin(worker)
    await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)


# over HTTP


async def get(worker: StartedWorker, path: str) -> tuple[int, str]:
    """Return the status and the body of the worker's answer."""
    assert worker.worker.server is not None
    url = f"http://{worker.worker.server.address}{path}"

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()

    return await anyio.to_thread.run_sync(ask)


async def test_a_running_worker_serves_its_metrics_and_is_healthy_and_ready(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = await start(nothing, metrics_port=0)
    await queue.put({"n": 1})
    await worker.until_outcomes(completed=1)

    status, text = await get(worker, "/metrics")
    health = await get(worker, "/healthz")
    ready = await get(worker, "/readyz")

    assert status == 200
    assert 'streamqueue_attempts_total{outcome="completed",queue="default",task="nothing"} 1.0' in (
        text.splitlines()
    )
    assert health == (200, "ok")
    assert ready == (200, '{"ready": true}')


async def test_a_worker_is_not_ready_before_its_stream_is_open(
    start: WorkerStarter, client: MongoClient[Any]
) -> None:
    worker = start.prepare(nothing, metrics_port=0)
    slow = {"blockConnection": True, "blockTimeMS": 1000}

    with failing(client, "aggregate", app=STREAM_APP, times=1, **slow):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start.begin, worker)
            await wait_until_async(lambda: worker.worker.server is not None, "it serves")
            status, text = await get(worker, "/readyz")

    assert status == 503
    assert list(json.loads(text)["reasons"]) == ["stream"]
    assert (await get(worker, "/readyz"))[0] == 200


async def test_a_worker_is_not_ready_when_it_begins_to_serve(
    start: WorkerStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_at_the_start = []
    worker = start.prepare(nothing, metrics_port=0)
    begin = HealthServer.start

    def note(server: HealthServer) -> None:
        ready_at_the_start.append(worker.worker.health.ready())
        begin(server)

    monkeypatch.setattr(HealthServer, "start", note)
    await start.begin(worker)

    assert ready_at_the_start == [False]


async def test_a_worker_that_drains_is_alive_and_not_ready(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    started, finish = anyio.Event(), anyio.Event()

    async def handler(job: AsyncJob) -> None:
        started.set()
        await finish.wait()

    worker = await start(handler, metrics_port=0)
    await queue.put({"n": 1})
    await started.wait()
    worker.worker.stop()
    await wait_until_async(lambda: not worker.worker.health.ready(), "it drains")

    status, text = await get(worker, "/readyz")
    health = await get(worker, "/healthz")
    finish.set()
    await worker.until_ended()

    assert (status, list(json.loads(text)["reasons"])) == (503, ["draining"])
    assert health[0] == 200


async def test_a_port_that_is_taken_is_refused(start: WorkerStarter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        worker = start.prepare(nothing, metrics_port=taken.getsockname()[1])

        with pytest.raises(ConfigurationError, match="in use"):
            await worker.worker.run(handle_signals=False)


async def test_with_a_certificate_it_serves_tls_to_the_clients_of_an_authority(
    start: WorkerStarter, tmp_path: Path
) -> None:
    authority = trustme.CA()
    identity = Identity(tmp_path, authority)
    worker = await start(
        nothing,
        metrics_port=0,
        metrics_cert=identity.cert,
        metrics_key=identity.key,
        metrics_client_ca=identity.client_ca,
    )
    assert worker.worker.server is not None
    url = f"https://{worker.worker.server.address}/readyz"

    def ask(context: ssl.SSLContext) -> int:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:
            return int(answer.status)

    known, unknown = client_context(authority, authority), client_context(authority)
    assert await anyio.to_thread.run_sync(ask, known) == 200
    with pytest.raises(OSError, match="CERTIFICATE_REQUIRED"):
        await anyio.to_thread.run_sync(ask, unknown)


async def test_a_worker_inside_a_web_application_answers_through_its_server(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = start.prepare(nothing)
    app = worker.worker.health_app().asgi

    async def get(path: str) -> tuple[int, str]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope: Any = {"type": "http", "method": "GET", "path": path, "headers": []}
        await app(scope, anyio.sleep_forever, send)  # type: ignore[arg-type]
        return sent[0]["status"], sent[1]["body"].decode()

    not_running = (503, '{"ready": false, "reasons": {"worker": "the worker does not run"}}')
    assert await get("/readyz") == not_running
    await start.begin(worker)
    await queue.put({"n": 1})
    await worker.until_outcomes(completed=1)

    assert await get("/readyz") == (200, '{"ready": true}')
    assert await get("/healthz") == (200, "ok")
    assert 'task="nothing"} 1.0' in (await get("/metrics"))[1]

    await worker.stop()
    status, text = await get("/readyz")
    assert (status, json.loads(text)["reasons"]["worker"]) == (503, "the worker does not run")


async def test_a_worker_that_could_not_start_is_not_ready(start: WorkerStarter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        worker = start.prepare(nothing, metrics_port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError):
            await worker.worker.run(handle_signals=False)

    assert worker.worker.health.reasons()["worker"] == "the worker does not run"


async def test_the_port_is_closed_when_the_worker_has_stopped(start: WorkerStarter) -> None:
    worker = await start(nothing, metrics_port=0)
    assert worker.worker.server is not None
    port = worker.worker.server.port

    await worker.stop()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.fixture
def check_metrics() -> Callable[[str], str]:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian has it in the package prometheus)")

    def check(text: str) -> str:
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    return check


async def test_a_scrape_after_some_work_pleases_promtool_and_stays_small(
    start: WorkerStarter, queue: AsyncMongoQueue, check_metrics: Callable[[str], str]
) -> None:
    async def second(job: AsyncJob) -> None:
        raise ValueError

    worker = await start(nothing, second, metrics_port=0)
    await queue.put_many([{"n": n} for n in range(10)])
    await AsyncMongoQueue(queue._jobs, name="second").put({}, max_attempts=1)
    await worker.until_outcomes(completed=10, dead=1)

    _, text = await get(worker, "/metrics")

    assert check_metrics(text) == ""
    lines = [line for line in text.splitlines() if "_created" not in line]
    assert len(lines) < 500  # the command line serves those alone


# without a server


def test_a_worker_can_be_made_and_given_handlers_before_there_is_a_server() -> None:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient("mongodb://127.0.0.1:9/")
    worker = Worker(client.app.jobs, registry=CollectorRegistry())

    worker.handler("emails")(nothing)

    assert list(settings_of(worker).handlers) == ["emails"]


def test_a_stopped_worker_leaves_the_users_own_client_open(uri: str, jobs: Collection[Any]) -> None:
    """A program may go on with it after the worker."""

    async def main() -> int:
        async with AsyncMongoClient(uri) as client:
            collection = client[jobs.database.name].jobs
            worker = Worker(collection, registry=CollectorRegistry(), max_await=0.1)
            worker.handler("default")(nothing)
            async with anyio.create_task_group() as tasks:
                await tasks.start(worker.run)
                worker.stop()
            return await collection.count_documents({})

    assert anyio.run(main) == 0
    wait_until(lambda: jobs.count_documents({}) == 0, "the server answers")
