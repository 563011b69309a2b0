"""examples/shop.py: as a program, and its pages one by one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pymongo.errors import WriteError
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.cli.main import main
from tests.waiting import wait_until_async

ORDER = {"to": "ada@example.org", "items": ["socks", "a hat"]}


@pytest.fixture
def initialised(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMQUEUE_URI", address)
    assert main(["init", "--features"]) == 0


@pytest.fixture
async def shop(initialised: None, load: Callable[[str], Any]) -> AsyncIterator[Any]:
    """The shop without a web server, and without a worker."""
    shop = load("shop")
    yield shop
    for queue in shop.queues.values():
        await queue.close()
    await shop.client.close()


async def ask(shop: Any, method: str, path: str, body: object = None) -> Any:
    """Return what a page answers."""
    answer: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: dict[str, Any]) -> None:
        answer.append(message.get("body", b""))

    request = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
    await shop.app(request, receive, send)
    return json.loads(b"".join(answer))


async def test_what_is_ordered_as_its_first_lines_say_is_confirmed_and_invoiced(
    follow: Callable[[str], Awaitable[None]], jobs: Collection[Any]
) -> None:
    await follow("shop")

    def results() -> list[Any] | None:
        done = [
            MongoQueue(jobs, name=name).list("done", data=True) for name in ("emails", "invoices")
        ]
        return [infos[0].result for infos in done] if all(done) else None

    email, invoice = await wait_until_async(results, "both jobs are done")
    assert (email, invoice["lines"]) == ("sent to ada@example.org", 1)


async def test_an_order_that_waits_is_cancelled(shop: Any) -> None:
    order = (await ask(shop, "POST", "/orders", ORDER))["order"]
    before = await ask(shop, "GET", f"/orders/{order}")

    cancelled = await ask(shop, "DELETE", f"/orders/{order}")

    assert before == {"emails": ["ready", None], "invoices": ["ready", None]}
    assert cancelled == {"emails": "cancelled", "invoices": "cancelled"}
    after = await ask(shop, "GET", f"/orders/{order}")
    assert after == {"emails": ["cancelled", None], "invoices": ["cancelled", None]}


async def test_an_order_that_cannot_be_stored_has_no_jobs(shop: Any, jobs: Collection[Any]) -> None:
    jobs.database.create_collection("orders", validator={"accepted": True})

    with pytest.raises(WriteError):
        await ask(shop, "POST", "/orders", ORDER)

    assert MongoQueue(jobs).counts() == {}
