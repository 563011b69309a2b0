"""The shop of the guide, as it stands there, with a real web server and a worker beside it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import programs
from tests.waiting import wait_until

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "web.md"
ITEMS = ["socks", "a hat", "gloves"]


class Customer:
    """Whoever orders, over HTTP."""

    def __init__(self, address: str) -> None:
        self._address = address

    def send(self, method: str, path: str, body: object = None) -> Any:
        """Return the answer to a request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, method=method)
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)

    def order(self, items: list[str]) -> str:
        """Order these; return which order it is."""
        return str(self.send("POST", "/orders", {"items": items})["order"])

    def follow(self, order: str) -> Iterator[dict[str, Any]]:
        """Yield what is said of an order, until there is no more to say."""
        with urllib.request.urlopen(f"{self._address}/orders/{order}/events", timeout=20) as lines:
            for line in lines:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    def is_served(self) -> bool:
        """Whether the shop answers."""
        try:
            self.send("GET", "/orders/none")
        except urllib.error.HTTPError as answer:
            answer.close()
            return True
        except OSError:
            pass
        return False


@pytest.fixture(scope="module")
def customer(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Customer]:
    folder = tmp_path_factory.mktemp("shop")
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert code.count("\n") < 80
    (folder / "shop.py").write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "STREAMQUEUE_URI": uri,
        "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
    }
    wanted = (
        ["uvicorn", "shop:app", "--port", str(port)],
        ["streamqueue", "worker", "shop:worker"],
    )
    with ExitStack() as running:
        for program in wanted:
            command = [sys.executable, "-m", *program]
            process = running.enter_context(
                programs.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
            )
            running.callback(process.terminate)
        shop = Customer(f"http://127.0.0.1:{port}")
        wait_until(shop.is_served, "the shop is open", within=30)
        yield shop


def test_an_order_is_followed_to_its_parcel(customer: Customer) -> None:
    order = customer.order(ITEMS)

    seen = list(customer.follow(order))

    assert seen[-1]["state"] == "done"
    assert seen[-1]["result"] == {"parcel": f"P-{order}", "items": 3}
    packed = [said["packed"] for said in seen]
    assert packed == sorted(packed)
    assert any(said["note"] and said["note"].startswith("packed") for said in seen)


def test_an_order_that_is_done_can_be_looked_at(customer: Customer) -> None:
    order = customer.order(ITEMS[:1])
    *_, last = customer.follow(order)

    assert customer.send("GET", f"/orders/{order}") == last
    assert customer.send("DELETE", f"/orders/{order}") == {"cancel": None}


def test_an_order_that_is_being_packed_is_cancelled(customer: Customer) -> None:
    order = customer.order(ITEMS * 20)
    following = customer.follow(order)
    assert next(said for said in following if said["packed"])["state"] == "running"

    assert customer.send("DELETE", f"/orders/{order}") == {"cancel": "asked"}

    *_, last = following
    assert last["state"] == "cancelled"
    assert customer.send("GET", f"/orders/{order}")["state"] == "cancelled"


@pytest.mark.parametrize("order", ["none", "6b0dd0afedc4034520000000"])
def test_an_order_that_is_not_there_is_not_found(customer: Customer, order: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        customer.send("GET", f"/orders/{order}")

    refused.value.close()
    assert refused.value.code == 404
