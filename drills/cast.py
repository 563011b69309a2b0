"""Everybody who sends anything to a queue: a worker, a fleet with its dispatcher, and both shells.

They share one collection, and with them operators and strangers (``operators.py``). Each calls its
connections by a name of its own, by which a proxy tells them apart.
"""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from drills.dispatching import Fleet
from drills.drill import Stage
from drills.operators import Operator, Stranger
from drills.programs.consumer import QUEUE
from drills.proxy import Proxies
from drills.servers import CLIENT
from streamqueue.clock import monotonic

OTHER_QUEUE = "drill-2"
PATIENT_QUEUE, PATIENT = "drill-patient", "patient"
PATIENT_LEASE, PATIENT_JOB = 6.0, 8.0
FLEET = 2
"""Processes beside their dispatcher."""
LIFETIME = ("--setParameter", "transactionLifetimeLimitSeconds=10")
"""For the servers: transactions of processes that were killed must not hold up the end of a drill
for a minute."""

ROLES: Mapping[str, Collection[str]] = {
    "worker": {"worker"},
    "dispatcher and its processes": {"dispatcher", "fleet"},
    "blocking shell": {"blocking", "blocking-producer"},
    "async shell": {"shell", "producer"},
}
"""Who takes part, and what the clients of each call themselves."""
SHELLS = ("blocking shell", "async shell")
APPS = frozenset(itertools.chain.from_iterable(ROLES.values()))

DEEDS: Mapping[str, float] = {
    "complete": 30,
    "return": 10,
    "long": 6,
    "progress": 14,
    "error": 10,
    "raise": 10,
    "release": 4,
    "retry": 6,
    "snooze": 4,
}
LOOK_EVERY = 1.0
MOST_WAITING = 200
LEFT_SECONDS = 40.0
"""In which those that nobody disturbs any more must have done all there is."""


class Cast:
    """Everybody, at work until the end.

    Args:
        lease: of all consumers.
        patience: seconds until a client gives up a connection over which nothing comes.
        held: the longest time for which a message is held back.
    """

    def __init__(
        self, stage: Stage, proxies: Proxies, *, lease: float, patience: float, held: float
    ) -> None:
        self._stage = stage
        self._lease = lease
        self._patience = patience
        self._looked = monotonic()
        self.proxies = proxies
        stage.history.note("hold", state="planned", seconds=held)
        stage.of_drainers = {"others": [OTHER_QUEUE, PATIENT_QUEUE]}
        # Before all else: a collection cannot be made by two transactions at once.
        database = stage.client[stage.database]
        for name in ("jobs", "ledger"):
            database.create_collection(name)
        fleet = {"client": self._client("fleet"), "dispatcher": self._client("dispatcher")}
        workers: dict[str, Any] = {"lease": lease, "others": [OTHER_QUEUE]}
        self.fleet = Fleet(stage, processes=FLEET, **fleet, **workers)
        shells: dict[str, Any] = {"lease": lease, "repairs": True}
        consumers = [
            stage.consumer(client=self._client("worker"), **workers),
            stage.consumer(by="queue", client=self._client("shell"), **shells),
            stage.consumer(by="blocking", client=self._client("blocking"), **shells),
        ]
        for child in consumers:
            stage.wait_for(lambda child=child: stage.is_ready(child), "a consumer is ready")
        queues = (QUEUE, OTHER_QUEUE)
        self._stranger = Stranger(stage.client, stage.jobs, queues, (0.3, 2 * lease))
        self.operator = Operator(stage.jobs, stage.history, queues, self._stranger.touched)
        for by, app in (("async", "producer"), ("blocking", "blocking-producer")):
            self._feed(by, app)

    def add_patient_workers(self) -> None:
        """Have workers more, with a queue of their own, whose leases and jobs are long: one can be
        lost while the next look at the others is far off. One of them is there to take it."""
        about: dict[str, Any] = {"queue": PATIENT_QUEUE, "lease": PATIENT_LEASE}
        for app in (PATIENT, PATIENT, "rival"):
            self._stage.consumer(client={**CLIENT, "appname": app}, concurrency=8, **about)
        often: dict[str, Any] = {"jobs": 1_000_000, "tasks": 1, "pause": 0.8, "client": CLIENT}
        self._stage.producer(
            queue=PATIENT_QUEUE, deeds={"complete": 1}, payload={"seconds": PATIENT_JOB}, **often
        )

    def _client(self, app: str) -> dict[str, Any]:
        return {**CLIENT, "appname": app, "socketTimeoutMS": round(1000 * self._patience)}

    def _feed(self, by: str, app: str) -> None:
        """Have jobs put by one of the shells: at once and for later, alone and in transactions."""

        def put(**settings: Any) -> None:
            often: dict[str, Any] = {"deeds": DEEDS, "priorities": (0, 0, 5), "seconds": 0.05}
            often |= {"jobs": 1_000_000, "by": by, "client": self._client(app), "tasks": 2}
            self._stage.producer(**{**often, **settings})

        put(pause=1.0)
        put(pause=0.8, delay=0.2)
        # Work may take longer than its lease lasts: nobody promises that it ever ends well.
        work: dict[str, Any] = {"deeds": {"transact": 1}, "seconds": 0.2 * self._lease}
        put(pause=0.8, **work, max_attempts=4, transacts=0.3)
        # Given up early and repeated, while the first may yet come: that is safe as long as the
        # job is in the queue, so these wait.
        put(pause=0.8, delay=2 * self._patience, patience=self._patience / 2)

    def meddle(self) -> None:
        """Let operators edit, and strangers begin and end transactions, for a moment."""
        self.operator.act()
        self._stranger.act()
        self._brake()
        for done in (self.operator.done, self._stranger.done):
            self._stage.hits.update({name: n - self._stage.hits[name] for name, n in done.items()})

    def _brake(self) -> None:
        """Let nobody put more than can be done: what waits for long shows nothing."""
        if monotonic() < self._looked + LOOK_EVERY:
            return
        self._looked = monotonic()
        waiting = self._stage.jobs.estimated_document_count()
        if waiting > MOST_WAITING or waiting < MOST_WAITING / 3:
            for child in self._stage.others:
                child.send(signal.SIGSTOP if waiting > MOST_WAITING else signal.SIGCONT)

    def end(self) -> None:
        """Disturb nobody any more, and wait until nothing is left, with no one to help."""
        stage = self._stage
        self.proxies.heal()
        self._stranger.close()
        stage.wait_for(self.operator.settle, "what operators put off is brought back", 30)
        self.operator.close()
        for child in stage.others:
            child.kill()
        began = monotonic()
        stage.wait_for(lambda: stage.live() == 0, "nothing is left to the drain", LEFT_SECONDS)
        late = ", ".join(f"{n} {kind}" for kind, n in self.proxies.counts.late.items())
        stage.note(
            f"nothing was left {monotonic() - began:.1f} s after the last fault; carried out after "
            f"its sender had given it up: {late or 'nothing'}"
        )
        for role, apps in ROLES.items():
            held: Counter[str] = Counter()
            for what, count in self.proxies.counts.held.items():
                if what.app in apps:
                    held[f"{what.kind} {what.direction}"] += count
            said = ", ".join(f"{count} {what}" for what, count in sorted(held.items()))
            stage.note(f"held back of the {role}: {said or 'nothing'}")
