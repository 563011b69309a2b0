"""What steps promise: laws of the checker, by what the attempts and the ledger of steps say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from drills.account import Account, Finding
from drills.history import Line

Step = tuple[str, str]
"""A job and a name."""


def step_repeated(account: Account) -> Iterator[Finding]:
    """A step was run in an attempt that began when its result had been stored."""
    stored: dict[Step, float] = {}
    for line in _lines(account, "stored"):
        stored.setdefault(_step(line), line.at)
    for line in _lines(account, "runs"):
        job, name = step = _step(line)
        if line.said["since"] > stored.get(step, line.at):
            yield account.jobs[job], f"{name} was run again though its result was stored"


def step_differs(account: Account) -> Iterator[Finding]:
    """Two attempts were given different results of one step."""
    first: dict[Step, object] = {}
    for line in _lines(account, "stored"):
        job, name = step = _step(line)
        if first.setdefault(step, line.said["value"]) != line.said["value"]:
            yield account.jobs[job], f"{name} has two results"


def step_effect_not_once(account: Account) -> Iterator[Finding]:
    """What a step has done in its transaction is there twice, or is not there at all."""
    effects = Counter(map(_step, _lines(account, "effect")))
    stored = {_step(line) for line in _lines(account, "stored") if line.said["in_transaction"]}
    for job, name in sorted(stored | set(effects)):
        if (count := effects[job, name]) != 1:
            yield account.jobs[job], f"{name} is in effect {count} times"


LAWS = (step_repeated, step_differs, step_effect_not_once)


def _lines(account: Account, state: str) -> Iterator[Line]:
    for line in account.lines:
        if line.said["what"] == "step" and line.said["is"] == state:
            yield line


def _step(line: Line) -> Step:
    return str(line.said["job"]), str(line.said["name"])
