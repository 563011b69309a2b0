"""What is published to a topic comes to all of its subscribers, or to none: a law of the checker.

That each has its copy once, and only its own, the laws of jobs say: a copy is a job that was put
into the queue of a subscriber.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from drills.account import Account, Finding, Job


def published_in_part(account: Account) -> Iterator[Finding]:
    """A message has come to one of its subscribers, and not to another."""
    for message, copies in messages(account).items():
        seen = [job for job in copies if came(job)]
        for job in copies if seen else ():
            if not came(job) and not account.cleared(job):
                queue = job.puts[0].said.get("queue")
                yield job, f"message {message} came to {len(seen)} queues, and not to {queue}"


def messages(account: Account) -> dict[str, list[Job]]:
    """Return the messages that were published, each with the jobs that it was to become."""
    found: defaultdict[str, list[Job]] = defaultdict(list)
    for job in account.jobs.values():
        for message in {put.said["message"] for put in job.puts if "message" in put.said}:
            found[message].append(job)
    return found


def came(job: Job) -> bool:
    """Whether the job was there, for certain."""
    return bool(job.attempts or job.doubtful) or job.document is not None


def notes(account: Account) -> list[str]:
    """Return figures of it for the report."""
    found = messages(account)
    if not found:
        return []
    whole = sum(all(map(came, copies)) for copies in found.values())
    none = sum(not any(map(came, copies)) for copies in found.values())
    return [f"{whole} messages came to all of their subscribers, {none} to none"]
