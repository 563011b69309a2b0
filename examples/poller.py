"""A poller of a partner whose API is slow, and allows so much and no more.

It shows a schedule, limits over all processes (a rate, two customers at a time, one job at a time
of each customer), one customer's calls in order (`group=`, `ordered=True`), and webhooks that come
twice in a day and are one job (`key=`, `unique_for=`).

To run it, with as many workers as you like:

    $ export STREAMQUEUE_URI='mongodb://localhost/shop?replicaSet=rs0'    # in each terminal
    $ streamqueue worker examples.poller:worker
    $ python -m examples.poller ada evt_17
    $ streamqueue limit --queue calls
"""

import sys
from datetime import timedelta
from typing import Any

import anyio
from bson import ObjectId
from pymongo import AsyncMongoClient

from streamqueue import AsyncJob, AsyncMongoQueue, Limit, NewJob, Worker, connection_uri

database = AsyncMongoClient[dict[str, Any]](connection_uri()).get_default_database()
calls = AsyncMongoQueue(database.jobs, name="calls")
webhooks = AsyncMongoQueue(database.jobs, name="webhooks")
worker = Worker(database.jobs)


async def ask(customer: str, about: str) -> str:
    """Call the partner, who takes his time."""
    await anyio.sleep(0.2)
    return f"{about} of {customer}"


@worker.schedule(every=10, key="look")  # the next tick is skipped while this one is at it
@worker.handler("looks")
async def look(job: AsyncJob) -> None:
    """Put a call for each customer; one whose last call still waits gets no second one."""
    customers = [each["_id"] async for each in database.customers.find()]
    await calls.put_many(
        [NewJob({"customer": each, "about": "orders"}, group=each) for each in customers],
        keys=[f"orders:{each}" for each in customers],
        on_conflict="skip",
    )


# Two customers at a time, and one customer's calls one after another, as they were put.
@worker.handler("calls", ordered=True, limits=Limit(running=2, rate=20))
async def call(job: AsyncJob) -> None:
    answer = await ask(job.data["customer"], job.data["about"])
    await database.answers.replace_one({"_id": job.id}, {"answer": answer}, upsert=True)


async def webhook(customer: str, event: str) -> ObjectId:
    """Put what the partner tells us, unless he has told us in the last 24 hours; return the id."""
    a_day = timedelta(hours=24)
    return await webhooks.put(
        {"event": event}, group=customer, key=event, on_conflict="skip", unique_for=a_day
    )


@worker.handler("webhooks", limits=Limit(running=1, per="group"))  # in any order
async def take(job: AsyncJob) -> None:
    event = {"customer": job.group, "event": job.data["event"]}
    await database.events.replace_one({"_id": job.id}, event, upsert=True)


if __name__ == "__main__":
    customer, event = sys.argv[1:]
    print("the event is job", anyio.run(webhook, customer, event))
