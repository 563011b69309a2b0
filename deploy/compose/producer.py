"""Put a trickle of jobs, with a burst now and then, until SIGTERM."""

import itertools
import os
import random
import signal
import threading

from pymongo import MongoClient

from streamqueue import MongoQueue

BURST_EVERY = 300

stop = threading.Event()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stop.set())

with MongoClient(os.environ["STREAMQUEUE_URI"], appname="producer") as client:
    jobs = client.get_default_database().jobs
    emails, reports = MongoQueue(jobs, name="emails"), MongoQueue(jobs, name="reports")
    for count in itertools.count(1):
        if stop.wait(random.expovariate(10)):  # ten a second
            break
        emails.put({"to": f"user{count}@example.org" if count % 200 else "nobody"})
        if count % 5 == 0:
            reports.put({"name": f"report {count}"}, delay=random.choice([0, 0, 30]))
        if count % BURST_EVERY == 0:
            emails.put_many([{"to": f"list{each}@example.org"} for each in range(200)])
