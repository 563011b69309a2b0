"""What a process knows of a queue whose jobs are claimed by rules: which slots are taken, which
groups had their turn, and where it has looked."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ..clock import monotonic
from ..protocol.document import id_key
from ..protocol.limits import UNRULED
from ..protocol.slots import WHOLE_QUEUE, Taken
from . import known_settings
from .starts import Starts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..protocol.limits import Rules

TAKEN_SECONDS = 1.0
"""How long it is gone by which slots are taken, before they are read again. It is safe for ever
where everybody goes by the rules; a process of an earlier version does not."""
MOST_TURNS = 10_000
"""Groups whose last turn is remembered."""


class RuledQueue:
    """A queue that has rules.

    Attributes:
        rules: those that hold, as far as is known.
        after: the group, and the task, from behind which others are looked for.
        checked: whether the indexes were seen on which its rules rest, since it may have changed.
        room: how many jobs have ended here whose places were not taken here since.
        late: how many jobs the rate of the whole queue held back, when they were chosen among last.
        starts: those that are reserved here under the rates of the queue.
    """

    def __init__(self) -> None:
        self.rules: Rules = UNRULED
        self.after = {"group": "", "task": ""}
        self.checked = False
        self.room = self.late = 0
        self._taken: Taken | None = None
        self._running: frozenset[object] = frozenset()
        self._read_at = self._learned_at = -math.inf
        self._turns: OrderedDict[str | None, int] = OrderedDict()
        self._turn = 0
        self.starts = Starts()

    def follow(self, rules: Rules) -> None:
        """Go by these rules from now on."""
        if rules != self.rules:
            self.rules = rules
            self.checked = False
            self.late = 0
            self.forget()
            self._learned_at = monotonic()

    @property
    def taken(self) -> Taken | None:
        """Which slots are taken, None if that has to be read: for every choice, as long as others
        may start jobs by the rules of before, in slots that those of now do not have."""
        if not self.rules.by_running:
            return Taken(self.rules, ())
        all_know_at = self._learned_at + known_settings.SURE_FOR
        if self._read_at < all_know_at or monotonic() - self._read_at >= TAKEN_SECONDS:
            return None
        return self._taken

    def starts_at(self, most: int) -> float:
        """Return from when on it is of use to look for up to so many jobs: not before the rate of
        the whole queue lets one of them start, if it held some back."""
        rate = self.rules.rate
        if rate is None or not self.late:
            return -math.inf
        return self.starts.next_at(WHOLE_QUEUE.name, rate, min(self.late, most), monotonic())

    def were_taken(self, running: Iterable[Mapping[str, Any]], asked_at: float) -> Taken:
        """Note which jobs run, as it was read; return the slots that they have."""
        running = list(running)
        self._taken, self._read_at = Taken(self.rules, running), asked_at
        self._running = ids_of(running)
        return self._taken

    def may_start_more(self, running: Iterable[Mapping[str, Any]]) -> bool:
        """Whether more may start than when something was held back: others run than then, or what
        runs is not all that holds a job back."""
        return bool(self.rules.ordered) or ids_of(running) != self._running

    def give_back(self, slots: Iterable[str]) -> None:
        """Note that a job that had these slots runs no more."""
        if self._taken is not None:
            self._taken.give_back(slots)

    def ended(self, slots: Sequence[str]) -> None:
        """Note that a job of the queue runs no more, which had these slots; none, if there were no
        rules when it was claimed: then it was counted as one without."""
        if slots:
            self.give_back(slots)
        else:
            self.forget()

    def forget(self) -> None:
        """Read anew which slots are taken, before the next one is."""
        self._taken = None

    def turn_of(self, group: str | None) -> int:
        """Return what sorts groups by their turns: the one that waits for the longest comes first,
        and before it those that had none yet."""
        return self._turns.get(group, 0)

    def had_turn(self, group: str | None) -> None:
        """Note that a job of this group was chosen: the others come first now."""
        self._turn += 1
        self._turns[group] = self._turn
        self._turns.move_to_end(group)
        if len(self._turns) > MOST_TURNS:
            self._turns.popitem(last=False)


def ids_of(jobs: Iterable[Mapping[str, Any]]) -> frozenset[object]:
    """Return what the ids of some jobs are compared by."""
    return frozenset(id_key(job["_id"]) for job in jobs)
