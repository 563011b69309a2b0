"""Two queues to look at: ``emails`` waits as a mail server would, ``reports`` computes a little,
also by itself each minute.

A few of the jobs fail, so that retries and dead jobs are there to be seen.
"""

import hashlib
import random

import anyio
from pymongo import AsyncMongoClient

from streamqueue import AsyncJob, Discard, Job, Worker, connection_uri

# From STREAMQUEUE_URI, or from the file that STREAMQUEUE_URI_FILE names: a secret in a file shows
# in no process list, no crash report and no `docker inspect`.
client = AsyncMongoClient(connection_uri(), appname="tasks")
worker = Worker(client.get_default_database().jobs, concurrency=20, drain_timeout=30)


@worker.handler("emails")
async def send(job: AsyncJob) -> None:
    if "@" not in job.data["to"]:
        raise Discard("not an address")  # dead at once, no retry
    await anyio.sleep(random.uniform(0.02, 0.2))  # a mail server's time
    if random.random() < 0.02:
        raise ConnectionError("the mail server hung up")  # back after the backoff


@worker.schedule("* * * * *", payload={"name": "each minute"}, key="each minute")
@worker.handler("reports")
def report(job: Job) -> None:  # a plain function runs in a thread
    hashlib.pbkdf2_hmac("sha256", job.data["name"].encode(), b"salt", 50_000)
