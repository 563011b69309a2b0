"""TLS to the server: all works over it, and what is wrong with it is said in one sentence."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import anyio
import pytest
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient

from streamqueue import AsyncJob, MongoQueue, Worker
from tests.ops.running import Run, Spawn, says_one_sentence
from tests.ops.secured import Authority, SecuredServer, encrypted, role
from tests.waiting import wait_until

SOON = "&serverSelectionTimeoutMS=1000"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SecuredServer, Authority]]:
    """A server that speaks nothing but TLS, and who signed its certificate."""
    with encrypted(tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SecuredServer, Authority]]:
    """One that wants a certificate of its clients too."""
    folder = tmp_path_factory.mktemp("mutual")
    with encrypted(folder, client_certificates=True) as server:
        yield server


def certificate(path: Path) -> str:
    return f"&tlsCertificateKeyFile={quote_plus(str(path))}"


# it works


def test_a_queue_puts_and_waits_over_tls(
    tls: tuple[SecuredServer, Authority], database: str
) -> None:
    server, _ = tls
    with MongoClient[dict[str, Any]](server.address()) as client:
        with MongoQueue(client[database].jobs) as queue:
            assert queue.next(wait=0.01) is None  # the change stream is open now
            queue.put({"n": 1})
            job = queue.next(wait=10)

        assert job is not None
        assert job.data == {"n": 1}


def test_a_worker_handles_jobs_over_tls(
    tls: tuple[SecuredServer, Authority], database: str, run: Run, spawn: Spawn
) -> None:
    server, _ = tls
    made = run("init", uri=server.user(database, role("setup", database)))
    assert made.returncode == 0, made.stderr
    worker = spawn(server.user(database, role("consumer", database)))

    put = run("put", '{"kind": "plain"}', uri=server.user(database, role("producer", database)))

    assert (put.returncode, put.stderr) == (0, "")
    wait_until(lambda: worker.handled == ["plain 1"], "the job is handled")
    assert worker.stop() == 0


def test_settings_that_are_not_in_the_uri_reach_the_change_stream_too(
    tls: tuple[SecuredServer, Authority], database: str
) -> None:
    server, authority = tls
    user = server.user(database, role("consumer", database)).removeprefix("mongodb://")
    name, password = user.partition("@")[0].split(":")
    settings: Any = {"username": name, "password": password, "tlsCAFile": str(authority.ca)}
    done = anyio.Event()

    async def handle(job: AsyncJob) -> None:
        done.set()

    async def main() -> None:
        host = f"mongodb://{server.host}/?replicaSet=rs0"
        async with AsyncMongoClient[dict[str, Any]](host, tls=True, **settings) as client:
            worker = Worker(client[database].jobs, registry=CollectorRegistry(), max_await=0.1)
            worker.handler("default")(handle)
            async with anyio.create_task_group() as tasks:
                await tasks.start(worker.run)
                MongoQueue(server.client[database].jobs).put({})
                with anyio.fail_after(10):
                    await done.wait()
                worker.stop()

    anyio.run(main)


def test_the_command_line_and_a_worker_show_their_client_certificates(
    mutual: tuple[SecuredServer, Authority], database: str, run: Run, spawn: Spawn
) -> None:
    server, authority = mutual
    mine = certificate(authority.issue(common_name="worker", organization_name="shop"))

    worker = spawn(server.address(database=database) + mine)
    put = run("put", '{"kind": "plain"}', uri=server.address(database=database) + mine)

    assert (put.returncode, put.stderr) == (0, "")
    wait_until(lambda: worker.handled == ["plain 1"], "the job is handled")


def test_a_certificate_can_stand_for_user_and_password(
    mutual: tuple[SecuredServer, Authority], database: str, run: Run, spawn: Spawn
) -> None:
    server, authority = mutual
    who = {"common_name": "worker", "organization_unit_name": "jobs", "organization_name": "shop"}
    mine = authority.issue(**who)
    consumer = role("consumer", database)
    server.client.admin.command(consumer)
    granted = [{"role": consumer["createRole"], "db": "admin"}]
    server.client["$external"].command("createUser", "CN=worker,OU=jobs,O=shop", roles=granted)
    uri = (
        f"mongodb://{server.host}/{database}?replicaSet=rs0&authMechanism=MONGODB-X509"
        f"&authSource=%24external{server.options}{certificate(mine)}"
    )

    worker = spawn(uri)
    MongoQueue(server.client[database].jobs).put({"kind": "plain"})
    stats = run("stats", uri=uri)

    wait_until(lambda: worker.handled == ["plain 1"], "the job is handled")
    assert (stats.returncode, stats.stderr) == (0, "")


# it does not, and says why


Address = Callable[[SecuredServer, Authority, Path], str]


def by_another_name(server: SecuredServer, authority: Authority, folder: Path) -> str:
    return server.address().replace("127.0.0.1", "localhost")


def with_no_authority(server: SecuredServer, authority: Authority, folder: Path) -> str:
    return server.address().partition("&tlsCAFile=")[0]


def with_another_authority(server: SecuredServer, authority: Authority, folder: Path) -> str:
    return with_no_authority(server, authority, folder) + (
        f"&tlsCAFile={quote_plus(str(Authority.new(folder).ca))}"
    )


def without_tls(server: SecuredServer, authority: Authority, folder: Path) -> str:
    return server.address().partition("&tls=")[0]


def without_a_certificate(server: SecuredServer, authority: Authority, folder: Path) -> str:
    return server.address()


def with_a_strange_certificate(server: SecuredServer, authority: Authority, folder: Path) -> str:
    return server.address() + certificate(Authority.new(folder).issue(common_name="stranger"))


def with_a_file_that_is_missing(server: SecuredServer, authority: Authority, folder: Path) -> str:
    return with_no_authority(server, authority, folder) + "&tlsCAFile=/no/such.pem"


def with_a_file_of_something_else(server: SecuredServer, authority: Authority, folder: Path) -> str:
    (folder / "ca.pem").write_text("not a certificate")
    path = quote_plus(str(folder / "ca.pem"))
    return with_no_authority(server, authority, folder) + f"&tlsCAFile={path}"


def check_refusal(result: subprocess.CompletedProcess[str], words: str, code: int) -> None:
    assert words in result.stderr
    assert says_one_sentence(result.stderr)
    assert result.returncode == code


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("address", "words", "code"),
    [
        (by_another_name, "is not for 'localhost'", 1),
        (with_no_authority, "name the authority's certificate with tlsCAFile=", 1),
        (with_another_authority, "name the authority's certificate with tlsCAFile=", 1),
        (without_tls, "add tls=true", 1),
        (with_a_strange_certificate, "does not accept the client certificate", 1),
        (with_a_file_that_is_missing, "'/no/such.pem', which cannot be read", 2),
        (with_a_file_of_something_else, "must name PEM files", 2),
    ],
)
def test_what_is_wrong_with_tls_is_one_sentence(
    tls: tuple[SecuredServer, Authority],
    run: Run,
    tmp_path: Path,
    address: Address,
    words: str,
    code: int,
) -> None:
    result = run("stats", uri=address(*tls, tmp_path) + SOON)

    check_refusal(result, words, code)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (without_a_certificate, "wants a client certificate"),
        (with_a_strange_certificate, "does not accept the client certificate"),
        (without_tls, "add tls=true"),
    ],
)
def test_what_is_wrong_with_a_client_certificate_is_one_sentence(
    mutual: tuple[SecuredServer, Authority],
    run: Run,
    tmp_path: Path,
    address: Address,
    words: str,
) -> None:
    check_refusal(run("stats", uri=address(*mutual, tmp_path) + SOON), words, 1)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("address", "words", "code"),
    [
        (by_another_name, "is not for 'localhost'", 1),
        (with_no_authority, "name the authority's certificate with tlsCAFile=", 1),
        (without_tls, "add tls=true", 1),
        (with_a_strange_certificate, "does not accept the client certificate", 1),
        (with_a_file_that_is_missing, "'/no/such.pem', which cannot be read", 2),
    ],
)
def test_a_worker_says_it_too(
    tls: tuple[SecuredServer, Authority],
    spawn: Spawn,
    tmp_path: Path,
    address: Address,
    words: str,
    code: int,
) -> None:
    worker = spawn(address(*tls, tmp_path) + SOON)

    assert worker.process.wait(20) == code
    assert words in worker.log
    assert says_one_sentence(worker.log)


def test_a_server_that_speaks_no_tls_is_named_as_such(
    server: SecuredServer, tls: tuple[SecuredServer, Authority], run: Run, spawn: Spawn
) -> None:
    uri = server.address() + tls[0].options + SOON

    result, worker = run("stats", uri=uri), spawn(uri)

    check_refusal(result, "does not speak TLS", 1)
    assert worker.process.wait(20) == 1
    assert "does not speak TLS" in worker.log


@pytest.fixture
def expired(tmp_path: Path) -> Iterator[str]:
    """The address of something that shows a certificate that is out of date.

    mongod does not start with one.
    """
    authority = Authority.new(tmp_path / "authority")
    then = datetime(2020, 1, 1, tzinfo=UTC)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("127.0.0.1", not_before=then, not_after=then))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def show() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with suppress(OSError), client:
                        context.wrap_socket(client, server_side=True).close()

        thread = threading.Thread(target=show)
        thread.start()
        port = listener.getsockname()[1]
        ca = quote_plus(str(authority.ca))
        yield f"mongodb://127.0.0.1:{port}/test?tls=true&tlsCAFile={ca}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_certificate_that_is_out_of_date_is_named_as_such(run: Run, expired: str) -> None:
    check_refusal(run("stats", uri=expired + SOON), "is out of date", 1)
