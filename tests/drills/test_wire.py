"""What a consumer's client sends, as it gets into the history."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, ObjectId
from pymongo.monitoring import CommandStartedEvent, CommandSucceededEvent

from drills.history import History, Wire, read_histories
from streamqueue.protocol import operations


class Client:
    """Sends renewals of one job."""

    def __init__(self, history: History) -> None:
        self._wire = Wire(history, lease=1.5)
        self._requests = 0

    def renews(self, number: int) -> None:
        """Send a renewal as the retryable write of that number; it is answered."""
        self._requests += 1
        wanted, update = operations.renew(operations.held(ObjectId(), bytes(16)), 1.5)
        command: dict[str, Any] = {
            "update": "jobs",
            "updates": [{"q": wanted, "u": update}],
            "lsid": {"id": Binary(bytes(16), 4)},
            "txnNumber": number,
        }
        server = ("127.0.0.1", 27017)
        self._wire.started(CommandStartedEvent(command, "drill", self._requests, server, None))
        took, reply = timedelta(milliseconds=1), {"n": 1, "ok": 1}
        self._wire.succeeded(
            CommandSucceededEvent(took, reply, "update", self._requests, server, None)
        )


@pytest.mark.parametrize(("numbers", "renewals"), [([1, 2], 2), ([1, 1], 1)])
def test_a_drivers_second_try_of_a_renewal_is_not_another_one(
    tmp_path: Path, numbers: list[int], renewals: int
) -> None:
    history = History(tmp_path, "consumer")
    client = Client(history)
    for number in numbers:
        client.renews(number)
    history.close()

    said = [line.said for line in read_histories(tmp_path)]
    assert len([s for s in said if s["what"] == "renew" and s["is"] == "acknowledged"]) == renewals
