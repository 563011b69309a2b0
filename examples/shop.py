"""A web shop: an order and its jobs in one transaction, and what became of them by its number.

It shows an outbox (`put(session=)`), queues with slots of their own (`concurrency=`), payloads with
types, `keep=`, and jobs that are looked at and cancelled. To run it, with starlette and uvicorn:

    $ export STREAMQUEUE_URI='mongodb://localhost/shop?replicaSet=rs0'    # in each terminal
    $ streamqueue init --features
    $ streamqueue worker examples.shop:worker
    $ uvicorn examples.shop:app --port 8000
    $ curl --fail -d '{"to": "ada@example.org", "items": ["socks"]}' http://127.0.0.1:8000/orders
"""

from dataclasses import dataclass
from typing import Any

import anyio
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from streamqueue import AsyncJob, AsyncMongoQueue, Worker, connection_uri

client = AsyncMongoClient[dict[str, Any]](connection_uri())
shop = client.get_default_database()
worker = Worker(shop.jobs)
queues = {name: AsyncMongoQueue(shop.jobs, name=name) for name in ("emails", "invoices")}


@dataclass
class Mail:  # the payload of both
    to: str
    items: list[str]


@worker.handler("emails", payload=Mail, concurrency=10)
async def send(job: AsyncJob[Mail]) -> str:
    await anyio.sleep(0.1)  # the mail server takes it
    return f"sent to {job.data.to}"


@worker.handler("invoices", payload=Mail, concurrency=2)
async def write(job: AsyncJob[Mail]) -> dict[str, Any]:
    for count, item in enumerate(job.data.items, start=1):
        await anyio.sleep(0.1)  # somebody looks up what it costs
        await job.progress(count, note=item)
    return {"invoice": str(job.id), "lines": len(job.data.items)}


async def order(request: Request) -> JSONResponse:
    mail, number = Mail(**await request.json()), ObjectId()

    async def all_of_it(session: AsyncClientSession) -> None:
        puts = {name: await q.put(mail, keep=86400, session=session) for name, q in queues.items()}
        await shop.orders.insert_one({"_id": number, "jobs": puts}, session=session)

    async with client.start_session() as session:
        await session.with_transaction(all_of_it)
    return JSONResponse({"order": str(number)}, status_code=202)


async def look_or_cancel(request: Request) -> JSONResponse:
    found = await shop.orders.find_one({"_id": ObjectId(request.path_params["order"])})
    jobs = found["jobs"] if found else {}
    if request.method == "DELETE":
        return JSONResponse({name: await queues[name].cancel(jobs[name]) for name in jobs})
    infos = {name: await queues[name].get(jobs[name]) for name in jobs}
    return JSONResponse({name: [info.state, info.result] for name, info in infos.items()})


routes = [
    Route("/orders", order, methods=["POST"]),
    Route("/orders/{order}", look_or_cancel, methods=["GET", "DELETE"]),
]
app = Starlette(routes=routes)
