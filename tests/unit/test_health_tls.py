"""The server of metrics and health over TLS: real sockets, real certificates, real clients."""

from __future__ import annotations

import http.client
import json
import logging
import os
import select
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import CollectorRegistry, Gauge

from streamqueue import ConfigurationError
from streamqueue.health import server as module
from streamqueue.health.health import Health
from streamqueue.health.server import HealthServer
from tests.certified import Identity, client_context

PATIENCE = 10.0
"""How long a test waits for what should come at once."""

Serve = Callable[..., HealthServer]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def identity(tmp_path: Path, authority: trustme.CA) -> Identity:
    return Identity(tmp_path, authority)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "to everything", registry=registry).set(42)
    return registry


@pytest.fixture
def serve(registry: CollectorRegistry) -> Iterator[Serve]:
    servers: list[HealthServer] = []

    def serve(**files: Any) -> HealthServer:
        server = HealthServer(registry, Health(), **files)
        server.start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.stop()
    for thread in threading.enumerate():
        if thread.name.startswith("streamqueue-health"):
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def server(serve: Serve, identity: Identity) -> HealthServer:
    return serve(**identity.pair)


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client without a certificate."""
    return client_context(authority)


def ask(
    server: HealthServer, context: ssl.SSLContext, path: str = "/metrics", method: str = "GET"
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(
        server.host, server.port, timeout=PATIENCE, context=context
    )
    try:
        connection.request(method, path, body=None if method == "GET" else b"x" * 200_000)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def connect(server: HealthServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=PATIENCE)


def shake_hands(server: HealthServer, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(
        connect(server), server_hostname=server.host, suppress_ragged_eofs=False
    )


def everything(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def still_open(client: socket.socket) -> bool:
    return not select.select([client], [], [], 0)[0]


def client_hello(context: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def served_certificate(server: HealthServer, context: ssl.SSLContext) -> bytes:
    with shake_hands(server, context) as client:
        certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def certificate_in(path: Path) -> bytes:
    first, end, _ = path.read_text().partition("-----END CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(first + end)


# who is let in


def test_metrics_and_health_are_served_over_tls(
    server: HealthServer, trusting: ssl.SSLContext
) -> None:
    status, body = ask(server, trusting)

    assert status == 200
    assert b"answer 42.0" in body
    assert ask(server, trusting, "/healthz") == (200, b"ok")
    assert ask(server, trusting, "/nothing")[0] == 404


def test_the_certificate_is_what_the_client_verifies(
    server: HealthServer, stranger: trustme.CA
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server, client_context(stranger))


def test_the_key_may_be_in_the_file_of_the_certificate(
    serve: Serve, identity: Identity, trusting: ssl.SSLContext
) -> None:
    identity.cert.write_bytes(identity.key.read_bytes() + identity.cert.read_bytes())

    server = serve(certfile=str(identity.cert))

    assert ask(server, trusting)[0] == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_client_older_than_tls_1_2_is_refused(
    server: HealthServer, trusting: ssl.SSLContext
) -> None:
    trusting.minimum_version = ssl.TLSVersion.TLSv1
    trusting.maximum_version = ssl.TLSVersion.TLSv1_1
    trusting.set_ciphers("ALL:@SECLEVEL=0")

    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        ask(server, trusting)


def test_a_client_of_tls_1_2_is_served(server: HealthServer, trusting: ssl.SSLContext) -> None:
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2

    assert ask(server, trusting)[0] == 200


def test_with_client_authorities_only_their_clients_are_let_in(
    serve: Serve, identity: Identity, authority: trustme.CA, stranger: trustme.CA
) -> None:
    server = serve(**identity.pair, client_ca=identity.client_ca)

    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        ask(server, client_context(authority))
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        ask(server, client_context(authority, signed_by=stranger))
    assert ask(server, client_context(authority, signed_by=authority))[0] == 200


def test_a_refused_client_learns_why_also_when_it_has_asked_already(
    serve: Serve, identity: Identity, trusting: ssl.SSLContext
) -> None:
    server = serve(**identity.pair, client_ca=identity.client_ca)

    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        ask(server, trusting, method="POST")


def test_an_authority_without_its_root_is_enough(
    serve: Serve, identity: Identity, authority: trustme.CA
) -> None:
    between = authority.create_child_ca()
    between.cert_pem.write_to_path(identity.client_ca)
    server = serve(**identity.pair, client_ca=identity.client_ca)

    assert ask(server, client_context(authority, signed_by=between))[0] == 200
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        ask(server, client_context(authority, signed_by=authority))


def test_a_large_answer_arrives_whole(
    server: HealthServer, registry: CollectorRegistry, trusting: ssl.SSLContext
) -> None:
    Gauge("large", "x" * 4_000_000, registry=registry)

    status, body = ask(server, trusting)

    assert status == 200
    assert len(body) > 4_000_000


# clients that keep it waiting


def test_silent_clients_delay_nobody(
    server: HealthServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 6 * PATIENCE)
    silent = [connect(server) for _ in range(6)]
    half = [connect(server) for _ in range(4)]
    for client in half:
        client.sendall(client_hello(trusting)[:40])
    shaken = [shake_hands(server, trusting) for _ in range(4)]
    for client in shaken[:2]:
        client.sendall(b"GET /met")

    assert ask(server, trusting, "/metrics")[0] == 200
    assert ask(server, trusting, "/healthz")[0] == 200
    assert len(server._places) >= 14
    assert all(still_open(client) for client in [*silent, *half])
    for client in [*silent, *half, *shaken]:
        client.close()


def test_a_client_that_does_not_shake_hands_is_hung_up_on(
    server: HealthServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 1.0)
    hello = client_hello(trusting)

    with connect(server) as silent, connect(server) as half:
        half.sendall(hello[:40])

        assert everything(silent) == b""
        assert everything(half) == b""
        assert len(server._places) == 0


def test_a_client_that_drips_its_handshake_is_hung_up_on(
    server: HealthServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 0.2)

    with connect(server) as dripping:
        for byte in client_hello(trusting):
            dripping.sendall(bytes([byte]))
            if select.select([dripping], [], [], 0.02)[0]:
                break

        assert not still_open(dripping)


def test_a_client_that_drips_its_request_is_hung_up_on(
    server: HealthServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 1.5)

    with shake_hands(server, trusting) as dripping:
        dripping.settimeout(0.02)
        for _ in range(int(PATIENCE / 0.02)):
            dripping.sendall(b"x")
            try:
                dripping.recv(1)
            except TimeoutError:
                continue
            except (ssl.SSLEOFError, ConnectionError):
                return
    pytest.fail("nobody hung up")


@pytest.mark.few(1)
@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
def test_a_client_that_takes_its_answer_in_sips_is_hung_up_on(
    serve: Serve,
    identity: Identity,
    registry: CollectorRegistry,
    trusting: ssl.SSLContext,
    secure: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 1.5)
    Gauge("large", "x" * 24_000_000, registry=registry)  # more than it takes in that time
    server = serve(**identity.pair) if secure else serve()
    client: socket.socket = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE)
    client.connect((server.host, server.port))
    if secure:
        client = trusting.wrap_socket(client, server_hostname=server.host)
    with client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        taken, pause = 0, threading.Event()
        while sip := client.recv(16384):
            taken += len(sip)
            if len(server._places):
                pause.wait(0.005)

    assert 0 < taken < 24_000_000


def test_silent_clients_past_the_limit_keep_nobody_out(
    server: HealthServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 6 * PATIENCE)
    with shake_hands(server, trusting) as shaken:
        silent = [connect(server) for _ in range(40)]

        assert ask(server, trusting, "/healthz") == (200, b"ok")

        with pytest.raises(ssl.SSLEOFError):
            shaken.recv(1)
    assert everything(silent[0]) == b""
    assert still_open(silent[-1])
    for client in silent:
        client.close()


# clients that are not what they should be


def test_plain_http_is_told_to_use_https(
    server: HealthServer, trusting: ssl.SSLContext, capfd: pytest.CaptureFixture[str]
) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    connection.request("GET", "/metrics")
    response = connection.getresponse()

    assert response.status == 400
    assert "https://" in json.loads(response.read())["error"]
    connection.close()
    assert ask(server, trusting)[0] == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("said", [b"", b"\r\n", b"nonsense\r\n\r\n", b"\0" * 5000, b"\x16\x03\x01"])
def test_nothing_is_printed_when_clients_come_and_go(
    server: HealthServer,
    trusting: ssl.SSLContext,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    said: bytes,
) -> None:
    for ending in (b"", struct.pack("ii", 1, 0)):
        with connect(server) as client:
            if ending:  # a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ending)
            client.sendall(said)
    with shake_hands(server, trusting) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")

    assert ask(server, trusting)[0] == 200
    server.stop()
    for thread in threading.enumerate():
        if thread.name.startswith("streamqueue-health"):
            thread.join(PATIENCE)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_a_request_with_a_body_nobody_reads_is_answered(
    server: HealthServer, trusting: ssl.SSLContext
) -> None:
    assert ask(server, trusting, method="POST")[0] == 405


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_end_of_the_answer_cannot_be_mistaken_for_a_cut(
    server: HealthServer, trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    trusting.minimum_version = trusting.maximum_version = version

    with shake_hands(server, trusting) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")

        assert everything(client).endswith(b"\r\n\r\nok")  # SSLEOFError without a close_notify


def test_stop_hangs_up_on_clients_in_their_handshake_and_after_it(
    server: HealthServer, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 6 * PATIENCE)
    with connect(server) as silent, shake_hands(server, trusting) as shaken:
        assert ask(server, trusting)[0] == 200

        server.stop()

        assert everything(silent) == b""
        with pytest.raises(ssl.SSLEOFError):
            shaken.recv(1)


# renewal


def test_a_renewed_certificate_is_served_to_the_next_client(
    server: HealthServer, identity: Identity, trusting: ssl.SSLContext
) -> None:
    before = served_certificate(server, trusting)

    identity.renew()

    after = served_certificate(server, trusting)
    assert after == certificate_in(identity.cert) != before
    assert ask(server, trusting)[0] == 200


def test_a_link_that_is_turned_to_a_new_folder_is_a_renewal(
    serve: Serve, tmp_path: Path, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """As Kubernetes does it with a secret that is mounted."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = Identity(tmp_path / "old", authority), Identity(tmp_path / "new", authority)
    current, turned = tmp_path / "current", tmp_path / "turned"
    current.symlink_to("old")
    server = serve(certfile=current / old.cert.name, keyfile=current / old.key.name)
    assert served_certificate(server, trusting) == certificate_in(old.cert)

    turned.symlink_to("new")
    turned.rename(current)

    assert served_certificate(server, trusting) == certificate_in(new.cert)


def test_renewed_client_authorities_decide_about_the_next_client(
    serve: Serve, identity: Identity, authority: trustme.CA, stranger: trustme.CA
) -> None:
    server = serve(**identity.pair, client_ca=identity.client_ca)
    ours = client_context(authority, signed_by=authority)
    theirs = client_context(authority, signed_by=stranger)
    assert ask(server, ours)[0] == 200

    stranger.cert_pem.write_to_path(identity.client_ca)

    assert ask(server, theirs)[0] == 200
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        ask(server, ours)


def damage(identity: Identity) -> None:
    identity.cert.write_text("-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n")


def renew_half(identity: Identity) -> None:
    key = identity.key.read_bytes()
    identity.renew()
    identity.key.write_bytes(key)


def remove(identity: Identity) -> None:
    identity.key.unlink()


@pytest.mark.parametrize("spoil", [damage, renew_half, remove])
def test_a_broken_renewal_keeps_the_old_pair_and_is_logged_once(
    server: HealthServer,
    identity: Identity,
    trusting: ssl.SSLContext,
    spoil: Callable[[Identity], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = certificate_in(identity.cert)

    spoil(identity)

    assert [served_certificate(server, trusting) for _ in range(3)] == [before] * 3
    [complaint] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert complaint.startswith("Going on with the previous certificates: ")
    assert str(identity.cert) in complaint or str(identity.key) in complaint

    identity.renew()

    assert served_certificate(server, trusting) == certificate_in(identity.cert) != before


def test_a_renewal_that_could_not_be_read_for_a_moment_is_not_forgotten(
    server: HealthServer,
    identity: Identity,
    trusting: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out_of_descriptors(*_: Any, **__: Any) -> Any:
        raise OSError(24, os.strerror(24))

    before = certificate_in(identity.cert)
    identity.renew()
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", out_of_descriptors)
        assert served_certificate(server, trusting) == before

    assert served_certificate(server, trusting) == certificate_in(identity.cert)


# files that are wrong from the start


def refusal(**files: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        HealthServer(CollectorRegistry(), Health(), **files)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_a_key_or_client_authorities_without_a_certificate_are_refused(identity: Identity) -> None:
    assert refusal(keyfile=identity.key).startswith(
        "keyfile= (--metrics-key) goes with certfile=: give "
    )
    assert refusal(client_ca=identity.client_ca).startswith(
        "client_ca= (--metrics-client-ca) goes with certfile=: give "
    )


@pytest.mark.parametrize("missing", ["certfile", "keyfile", "client_ca"])
def test_a_missing_file_is_named(identity: Identity, tmp_path: Path, missing: str) -> None:
    files = {**identity.pair, "client_ca": identity.client_ca, missing: tmp_path / "nowhere.pem"}

    message = refusal(**files)

    assert f"'{tmp_path / 'nowhere.pem'}', no such file or directory: give a PEM file" in message


def test_a_folder_is_no_certificate(identity: Identity, tmp_path: Path) -> None:
    assert "is a directory" in refusal(certfile=tmp_path, keyfile=identity.key)


def test_an_empty_name_is_not_taken_for_plain_http(identity: Identity) -> None:
    assert "cannot read the certificate ''" in refusal(certfile="", keyfile=identity.key)


def test_a_key_of_another_certificate_is_refused(identity: Identity) -> None:
    renew_half(identity)

    message = refusal(**identity.pair)

    assert "key values mismatch" in message
    assert str(identity.cert) in message
    assert str(identity.key) in message


def test_files_that_were_swapped_are_named(identity: Identity) -> None:
    message = refusal(certfile=identity.key, keyfile=identity.cert)

    assert message.startswith(f"there is no certificate in {identity.key}: give a PEM file")


def test_a_certificate_without_any_key_is_told_so(identity: Identity) -> None:
    message = refusal(certfile=identity.cert)

    assert message.startswith(f"there is no private key in {identity.cert}: give a PEM file")


def test_a_damaged_certificate_is_refused(identity: Identity) -> None:
    damage(identity)

    assert "or are damaged" in refusal(**identity.pair)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing of the kind", "there is no client authority in"),
        ("-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n", "is damaged"),
    ],
)
def test_client_authorities_that_are_none_are_refused(
    identity: Identity, content: str, message: str
) -> None:
    identity.client_ca.write_text(content)

    assert message in refusal(**identity.pair, client_ca=identity.client_ca)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(
    identity: Identity,
) -> None:
    locked = identity.key.with_suffix(".locked")
    subprocess.run(
        [
            *("openssl", "pkey", "-aes256", "-passout", "pass:secret"),
            *("-in", identity.key, "-out", locked),
        ],
        check=True,
        capture_output=True,
    )

    message = refusal(certfile=identity.cert, keyfile=locked)

    assert message.startswith(f"the private key {locked} has a passphrase: give one without")
