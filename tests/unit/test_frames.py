"""Frames between processes: whole, in order, and never waited for (``worker/connection``)."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import bson
import pytest
from bson.binary import UUID_SUBTYPE

from streamqueue.processes import frames as feeds
from streamqueue.processes.frames import Connection


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
async def connection(channel: tuple[socket.socket, socket.socket]) -> AsyncIterator[Connection]:
    """Our end; the other one is `other`."""
    connection = Connection(channel[0])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.keep_sending)
        yield connection
        connection.close()


@pytest.fixture
def other(channel: tuple[socket.socket, socket.socket]) -> socket.socket:
    channel[1].settimeout(5)
    return channel[1]


async def receive(connection: Connection, count: int) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    with anyio.fail_after(5):
        while len(frames) < count and (some := await connection.receive()):
            frames += some
    return frames


def take(channel: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += channel.recv(length - len(data))
    return data


async def test_frames_that_arrive_together_are_received_together(
    connection: Connection, other: socket.socket
) -> None:
    other.send(b"".join(bson.encode({"n": n}) for n in range(5)))

    assert await connection.receive() == [{"n": n} for n in range(5)]


async def test_a_frame_that_arrives_in_pieces_is_received_when_it_is_whole(
    connection: Connection, other: socket.socket
) -> None:
    data = bson.encode({"text": "abc"}) + bson.encode({"n": 2})
    received: list[dict[str, Any]] = []

    async def keep_receiving() -> None:
        while frames := await connection.receive():
            received.extend(frames)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_receiving)
        for place in range(len(data)):
            assert len(received) == (place >= len(bson.encode({"text": "abc"})))
            other.send(data[place : place + 1])
            await anyio.wait_all_tasks_blocked()
        other.close()

    assert received == [{"text": "abc"}, {"n": 2}]


async def test_what_the_other_end_does_not_take_waits_for_it_in_order(
    connection: Connection, other: socket.socket
) -> None:
    frames = [{"n": n, "text": "x" * 5000} for n in range(1000)]

    for frame in frames:  # more than a socket holds; nothing waits
        connection.send(frame)

    data = await anyio.to_thread.run_sync(take, other, sum(len(bson.encode(f)) for f in frames))
    assert bson.decode_all(data) == frames


async def test_a_frame_larger_than_a_document_may_be_arrives_whole(connection: Connection) -> None:
    one, two = socket.socketpair()
    sender, receiver = Connection(one), Connection(two)
    jobs = [{"n": n, "text": "x" * 3_000_000} for n in range(8)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sender.keep_sending)
        sender.send({"jobs": jobs})
        frames = await receive(receiver, 1)
        sender.close()
    receiver.close()

    assert frames == [{"jobs": jobs}]


async def test_whoever_takes_nothing_for_long_is_left_behind(
    connection: Connection, other: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "MOST_KEPT_BYTES", 2_000_000)

    for _ in range(500):
        connection.send({"text": "x" * 10_000})

    assert connection.closed


async def test_a_frame_that_cannot_be_decoded_is_known_by_its_first_field(
    connection: Connection, other: socket.socket
) -> None:
    short_uuid = bson.Binary(b"abc", UUID_SUBTYPE)

    other.send(bson.encode({"event": {"_id": short_uuid}}) + bson.encode({"n": 2}))

    assert await receive(connection, 2) == [{"undecodable": "event"}, {"n": 2}]


@pytest.mark.parametrize("name", [b"\xff\xff\xff\xff", b"\xff\xfe\x00\x00"])
async def test_a_frame_without_a_name_that_is_text_stops_no_other(
    connection: Connection, other: socket.socket, name: bytes
) -> None:
    other.send(struct.pack("<i", 9) + b"\x99" + name + bson.encode({"n": 2}))

    odd, good = await receive(connection, 2)

    assert list(odd) == ["undecodable"]
    assert good == {"n": 2}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(struct.pack("<i", 0) * 4, id="no length"),
        pytest.param(struct.pack("<i", -5) + b"abcdef", id="a negative length"),
        pytest.param(struct.pack("<i", 2**31 - 1) + b"abcdef", id="a length beyond all bounds"),
    ],
)
async def test_what_is_no_frame_closes_the_connection(
    connection: Connection, other: socket.socket, data: bytes
) -> None:
    other.send(bson.encode({"n": 1}) + data)

    with anyio.fail_after(5):
        while await connection.receive():
            pass

    assert connection.closed


async def test_a_receiver_is_told_when_the_other_end_closes(
    connection: Connection, other: socket.socket
) -> None:
    other.send(bson.encode({"n": 1})[:-2])
    other.close()

    assert await receive(connection, 1) == []
    assert connection.closed


async def test_a_receiver_is_told_when_its_own_end_is_closed(
    connection: Connection, other: socket.socket
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive, connection, 1)
        await anyio.wait_all_tasks_blocked()
        connection.close()
        connection.close()

    assert other.recv(1) == b""


async def test_sending_to_an_end_that_is_closed_raises_nothing(
    connection: Connection, other: socket.socket
) -> None:
    other.close()

    connection.send({"n": 1})
    connection.send({"n": 2})

    assert connection.closed
