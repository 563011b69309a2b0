"""The places of the server of metrics and health: who gets one, and who goes."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from streamqueue.health import places as health_places
from streamqueue.health import renderings
from streamqueue.health import server as module
from streamqueue.health.health import Health
from streamqueue.health.places import MAX_CLIENTS, MAX_PER_ADDRESS, Place, Places, owner
from streamqueue.health.server import HealthServer
from tests.waiting import wait_until

PATIENCE = 10.0
"""How long a test waits for what should come at once."""


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Client:
    """One that has a place, and the other end of its connection."""

    def __init__(self, places: Places, opened: ExitStack, whose: str = "10.0.0.1") -> None:
        self.end, served = (opened.enter_context(end) for end in socket.socketpair())
        place = places.take(served, whose)
        assert place is not None
        self.place: Place = place
        place.is_begun, place.is_served = True, False

    def in_place(self) -> bool:
        return not select.select([self.end], [], [], 0)[0]


def test_there_are_places_for_several_addresses() -> None:
    assert 2 * MAX_PER_ADDRESS < MAX_CLIENTS


def test_when_all_are_taken_the_client_goes_that_has_been_silent_longest(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(health_places, "MAX_CLIENTS", 3)
    places = Places()
    first, second, third = (Client(places, opened) for _ in range(3))
    first.place.hear()

    fourth = Client(places, opened)

    assert not second.in_place()
    assert all(client.in_place() for client in (first, third, fourth))
    assert len(places) == 3


def test_whoever_waits_for_us_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(health_places, "MAX_CLIENTS", 2)
    places = Places()
    waiting, silent = (Client(places, opened) for _ in range(2))

    with waiting.place.served():
        newcomer = Client(places, opened)

        assert waiting.in_place()
        assert not silent.in_place()

        with newcomer.place.served():  # all wait: who has waited longest has least to lose
            Client(places, opened)

            assert not waiting.in_place()
            assert newcomer.in_place()


def test_a_newcomer_is_not_silent_before_somebody_listens(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(health_places, "MAX_CLIENTS", 2)
    places = Places()
    probe, silent = (Client(places, opened) for _ in range(2))
    probe.place.is_begun, probe.place.is_served = False, True

    newcomers = [Client(places, opened)]

    assert not silent.in_place()
    assert probe.place in places

    newcomers[0].place.is_served = True
    Client(places, opened)

    assert probe.place not in places
    assert probe.place.socket.fileno() == -1  # nobody else would close it


def test_an_address_with_too_many_takes_a_place_from_itself(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(health_places, "MAX_PER_ADDRESS", 2)
    places = Places()
    other = Client(places, opened, "10.0.0.2")

    greedy = [Client(places, opened, "10.0.0.1") for _ in range(4)]

    assert [client.in_place() for client in greedy] == [False, False, True, True]
    assert other.in_place()


def test_a_place_that_was_freed_is_anybodys(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(health_places, "MAX_CLIENTS", 1)
    places = Places()
    first = Client(places, opened)

    places.free(first.place)
    Client(places, opened)

    assert first.in_place()
    assert len(places) == 1


def test_while_too_many_are_ending_nobody_comes(
    monkeypatch: pytest.MonkeyPatch, opened: ExitStack
) -> None:
    monkeypatch.setattr(health_places, "MAX_CLIENTS", 1)
    monkeypatch.setattr(health_places, "ENDING_SECONDS", 0.01)
    places = Places()
    ending = Client(places, opened)
    Client(places, opened)
    ours, _theirs = (opened.enter_context(end) for end in socket.socketpair())

    assert places.take(ours, "10.0.0.1") is None

    places.free(ending.place)

    assert places.take(ours, "10.0.0.1") is not None


def test_everybody_can_be_hung_up_on(opened: ExitStack) -> None:
    places = Places()
    clients = [Client(places, opened) for _ in range(3)]
    clients[0].place.socket.close()

    places.clear()

    assert not any(client.in_place() for client in clients)
    assert len(places) == 0


def test_of_ipv6_a_network_is_one_owner() -> None:
    assert owner(("10.0.0.1", 4711)) == owner(("10.0.0.1", 4712)) != owner(("10.0.0.2", 4711))
    assert owner(("2001:db8::1", 1, 0, 0)) == owner(("2001:db8::ffff:1", 2, 0, 0))
    assert owner(("2001:db8::1", 1, 0, 0)) != owner(("2001:db8:0:1::1", 1, 0, 0))
    assert owner(("fe80::1%eth0", 1, 0, 2)) == owner(("fe80::2", 1, 0, 2))


# the server


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def server(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[HealthServer]:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 6 * PATIENCE)  # no place is freed by waiting
    with HealthServer(registry, Health()) as server:
        yield server


def ask(server: HealthServer, path: str) -> int:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def connect(server: HealthServer, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(
        (server.host, server.port), timeout=PATIENCE, source_address=(source, 0)
    )


def still_open(client: socket.socket) -> bool:
    return not select.select([client], [], [], 0)[0]


def serving() -> int:
    return sum(thread.name == "streamqueue-health-client" for thread in threading.enumerate())


def test_forty_clients_that_say_nothing_keep_no_probe_out(
    server: HealthServer, opened: ExitStack
) -> None:
    elsewhere = opened.enter_context(connect(server, "127.0.0.2"))
    silent = [opened.enter_context(connect(server)) for _ in range(40)]

    assert [ask(server, path) for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3

    kept = [still_open(client) for client in silent]
    assert kept == sorted(kept)  # the first to come have gone
    assert 1 <= sum(kept) < MAX_PER_ADDRESS
    assert still_open(elsewhere)


def test_silent_clients_of_many_addresses_keep_no_probe_out(
    server: HealthServer, opened: ExitStack
) -> None:
    for number in range(2 * MAX_CLIENTS):
        opened.enter_context(connect(server, f"127.0.1.{number % 32 + 1}"))

    assert ask(server, "/healthz") == 200
    assert len(server._places) <= MAX_CLIENTS


def test_clients_that_do_not_take_their_answer_keep_no_probe_out(
    server: HealthServer, registry: CollectorRegistry, opened: ExitStack
) -> None:
    Gauge("large", "x" * 8_000_000, registry=registry)  # more than the sockets hold
    for _ in range(40):
        deaf = opened.enter_context(socket.socket())
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((server.host, server.port))
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")

    assert ask(server, "/healthz") == 200
    assert len(server._places) <= MAX_PER_ADDRESS


def test_scrapes_that_wait_for_a_collector_keep_no_probe_out(
    server: HealthServer,
    registry: CollectorRegistry,
    opened: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renderings, "WAIT_SECONDS", 6 * PATIENCE)
    done = threading.Event()

    class Hanging:
        def collect(self) -> Iterator[Any]:
            done.wait(3 * PATIENCE)
            return iter(())

    monkeypatch.setattr(Hanging, "describe", lambda _: [], raising=False)
    registry.register(Hanging())
    try:
        for _ in range(3 * MAX_CLIENTS):
            opened.enter_context(connect(server)).sendall(b"GET /metrics HTTP/1.1\r\n\r\n")

        assert [ask(server, path) for path in ("/healthz", "/readyz")] == [200, 200]
        wait_until(
            lambda: serving() <= MAX_PER_ADDRESS + module.MAX_SCRAPES,
            "only so many threads wait for the collector",
        )
    finally:
        done.set()
    wait_until(lambda: ask(server, "/metrics") == 200, "the collector answers again")


def test_a_client_that_came_back_to_life_is_served(server: HealthServer, opened: ExitStack) -> None:
    patient = opened.enter_context(connect(server))
    for _ in range(MAX_PER_ADDRESS - 2):
        opened.enter_context(connect(server))

    assert ask(server, "/healthz") == 200
    patient.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")

    assert patient.recv(12) == b"HTTP/1.1 200"
