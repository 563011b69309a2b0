"""Transactions of handlers and producers: what was asked for in one counts as its end says.

Each leaves an entry in a ledger, the effect of the work: what a shop books when an order is done. A
ledger tells afterwards what the client could not know, the outcome of a commit that nobody
answered: the entry and the queue's part of the transaction are there together, or neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drills.account import Attempt, Call

LEDGER = "ledger"
"""The collection of effects, beside the jobs."""
STEP_LEDGER = f"{LEDGER}.steps"
"""That of the effects of steps."""

Name = tuple[str, int]
"""The process, and the number of its transaction."""


def name_of(entry: Mapping[str, Any]) -> Name:
    """Return the transaction that an entry of the ledger was written in."""
    return str(entry["process"]), int(entry["transaction"])


@dataclass
class Transaction:
    """One transaction, and what was asked for in it.

    Attributes:
        attempts: the one at work in it; none for a put.
        outcome: ``committed``, ``aborted`` or ``unknown``, as its client was told.
        ended: when it was told so; infinity while it was not.
        entries: what it left in the ledger.
    """

    job: str
    name: Name
    begun: float
    attempts: list[Attempt] = field(default_factory=list)
    outcome: str = "unknown"
    ended: float = math.inf
    calls: list[Call] = field(default_factory=list)
    entries: list[Mapping[str, Any]] = field(default_factory=list)

    def settle(self, *, ledger: bool) -> None:
        """Give its calls the outcome that its end gave them.

        `ledger`: there is one, so that what nobody was told can be known.
        """
        known = {"committed": True, "aborted": False}.get(self.outcome)
        if known is None and ledger:
            known = bool(self.entries)
        for call in self.calls:
            if call.outcome != "acknowledged":
                # What was refused is refused. A call that broke off took the transaction with it.
                if known is False and call.outcome != "refused":
                    call.outcome = "failed"
            elif known is None:
                call.outcome, call.answered = "unknown", math.inf
            else:
                call.outcome = "acknowledged" if known else "failed"
                call.answered = self.ended if self.outcome == "committed" else math.inf


def settle(
    transactions: Mapping[Name, Transaction], entries: Iterable[Mapping[str, Any]] | None
) -> list[Mapping[str, Any]]:
    """Settle all transactions by their ends and the ledger (None: there is none).

    Returns the entries that no transaction accounts for.
    """
    strange = []
    for entry in entries or ():
        if (transaction := transactions.get(name_of(entry))) is not None:
            transaction.entries.append(entry)
        else:
            strange.append(entry)
    for transaction in transactions.values():
        transaction.settle(ledger=entries is not None)
    return strange
