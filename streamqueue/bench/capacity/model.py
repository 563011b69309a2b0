"""What a deployment carries, by arithmetic: a few costs, and how often each is paid.

The costs are measured by ``costs.py``; the guide (``docs/capacity.md``) says what the model
leaves out. Nothing here measures or sends anything.
"""

from __future__ import annotations

from dataclasses import dataclass

FULL = 0.8
"""The share of a processor from which on waiting times grow faster than the load."""
MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True)
class Costs:
    """What is paid for.

    Attributes:
        put: the server's processor time for a put, one of several at a time; this and the next
            four in microseconds.
        drain: the server's, for the claim and the complete of a job, among many.
        stream: the server's, for each open stream that it tells of a put. (The claim and the
            complete are filtered out, for a twentieth of that.)
        worker: a consumer process's, for a job.
        dispatcher: a dispatcher's, for a job.
        oplog_bytes: in the oplog, for a job from its put to its complete.
    """

    put: float
    drain: float
    stream: float
    worker: float
    dispatcher: float
    oplog_bytes: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """Consumers, and what comes in.

    Attributes:
        jobs_per_second: what is put, all over.
        hosts: machines with consumers.
        processes: consumer processes on each.
        dispatched: they are of ``worker --processes``, so a host has one stream; else each process
            has one.
        server_processors: of the primary.
    """

    jobs_per_second: float
    hosts: int
    processes: int
    dispatched: bool = True
    server_processors: int = 4

    @property
    def streams(self) -> int:
        """How many change streams are open."""
        return self.hosts if self.dispatched else self.hosts * self.processes


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is used up.

    Attributes:
        name: for people.
        used: the share of it that is used; 1 is all of it.
        most: jobs a second at which it is full, by :data:`FULL`.
        next_step: what to do when it is.
    """

    name: str
    used: float
    most: float
    next_step: str


def parts_of(costs: Costs, deployment: Deployment) -> list[Part]:
    """Return what may give, the first to give first."""
    rate = deployment.jobs_per_second
    of_streams = deployment.streams * costs.stream
    per_job = costs.put + costs.drain + of_streams
    consumers = deployment.hosts * deployment.processes
    found = [
        _part(
            f"the primary's {deployment.server_processors} processors",
            rate,
            per_job,
            deployment.server_processors,
            "a dispatcher per host (--processes), for the streams cost more than the jobs"
            if of_streams > per_job / 2 and not deployment.dispatched
            else "put many jobs at a time (put_many, or puts side by side); "
            "then queues on a replica set of their own, or a larger primary",
        ),
        _part(
            f"{consumers} consumer processes, a processor each",
            rate,
            costs.worker,
            consumers,
            "more processes, up to the processors of a host, and then more hosts",
        ),
    ]
    if deployment.dispatched and deployment.processes > 1:
        found.append(
            _part(
                f"{deployment.hosts} dispatchers, a processor each",
                rate,
                costs.dispatcher,
                deployment.hosts,
                "fewer processes for each supervisor: several supervisors on a host, or more hosts",
            )
        )
    return sorted(found, key=lambda part: part.most)


def _part(name: str, rate: float, per_job: float, processors: int, next_step: str) -> Part:
    seconds = max(per_job, 1e-9) / MICROSECONDS
    return Part(name, rate * seconds / processors, FULL * processors / seconds, next_step)


def drained_here(costs: Costs, processes: int, processors: int) -> float:
    """Return jobs a second that consumers drain on the machine of their server, by the model: it
    has so many processors for all of them, and a process has one."""
    dispatched = processes > 1
    everybody = costs.drain + costs.worker + (costs.dispatcher if dispatched else 0)
    return min(
        processors * MICROSECONDS / everybody,
        processes * MICROSECONDS / costs.worker,
        MICROSECONDS / costs.dispatcher if dispatched and costs.dispatcher else float("inf"),
    )


def oplog_hours(costs: Costs, deployment: Deployment, gigabytes: float) -> float:
    """Return how far back an oplog of this size goes: how long a stream may be away."""
    return gigabytes * 1e9 / (deployment.jobs_per_second * costs.oplog_bytes) / 3600
