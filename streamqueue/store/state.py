"""What a store knows besides its connection, and keeps from one flow to the next."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from ..clock import ServerClock
from ..errors import ForkedProcess
from ..outage import Outage
from ..protocol import foreign, operations
from .given_up import GivenUpClaims
from .indexes import Indexes
from .left import LeftToOthers
from .refused import StuckJobs
from .ruled import RuledQueue
from .write_limit import ClaimSize, WriteLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bson.raw_bson import RawBSONDocument

    from ..protocol.limits import Rules
    from .turns import Turns


class StoreState:
    """The base of both stores.

    Attributes:
        jobs: the collection, with majority writes and local reads on the primary.
        clock: the server's time; known once ``prepare()`` has returned.
        kind_known: the collection was seen to be one for jobs.
        unclaimable: ready jobs that the server refuses to have claimed.
        left: ready jobs that this process cannot run, and leaves to others.
        unpromotable: due jobs that it refuses to have promoted.
        unexpirable: jobs that are too late, and that it refuses to have ended.
        expiring: whether jobs may have a time after which they are not begun, as far as is known.
        unreapable: jobs that it refuses to have taken from the consumer that lost them.
        given_up: claims that are still to be undone for certain.
        claim_size: how many jobs a claim may be for.
        write_limit: how long the server may work on a write for many.
        buried: told of jobs that are buried unseen, by the reason, and how many.
        keyed: a job was claimed here that lets go of its key then, so that others may wait for it.
        depended: a job was put here that comes after others.
        needless: nobody has used dependencies, as far as is known, so that no job is needed.
        needed_before: where the look for parents that nobody needs goes on; None is the beginning.
        parked: told when a job waits for another one, or may.
        ruled: what is known of the queues that have rules; of others there is nothing.
        room_unsaid: a job has ended here whose place others may take, and were not told of.
        late: whether the last claim took longer than its lease, and its jobs were given back.
        settings_refused: the user may not read the settings of queues, and was told so.
        turns: returns whose turn it is, of processes that choose of a queue with rules; None while
            they do not get in each other's way.
        rates_refused: the user may not reserve starts, and was told so.
        index_of_buckets_at: from which :func:`monotonic` time on the index of the buckets is to be
            made (again).
        any_id: ids may be of any kind; for a shell, which looks nothing up by them.
    """

    jobs: Any

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.clock = ServerClock()
        self.indexes = Indexes()
        self.kind_known = False
        self.unclaimable = StuckJobs("cannot be claimed, nor be buried")
        self.left = LeftToOthers()
        self.unpromotable = StuckJobs("cannot be promoted")
        self.unreapable = StuckJobs("cannot be taken from the consumer that lost it")
        self.unexpirable = StuckJobs("cannot be ended, though it has expired")
        self.expiring = False
        self.given_up = GivenUpClaims()
        self.untaking = Outage()
        self.claim_size = ClaimSize()
        self.write_limit = WriteLimit()
        self.buried: Callable[[foreign.BuryReason, int], None] = lambda _reason, _count: None
        self.late = False
        self.keyed = False
        self.depended = False
        self.needless = False
        self.needed_before: Any = None
        self.parked: Callable[[], None] = lambda: None
        self.ruled: dict[str, RuledQueue] = {}
        self.room_unsaid = False
        self.settings_refused = False
        self.turns: Callable[[], Turns | None] = lambda: None
        self.rates_refused = False
        self.index_of_buckets_at = -math.inf
        self.any_id = False

    def check_place(self) -> None:
        """Raise if this is not the process whose connections these are."""
        if os.getpid() != self._pid:
            raise ForkedProcess

    def follow(self, queue: str, rules: Rules) -> None:
        """Go by these rules from now on when jobs of a queue are claimed."""
        if rules or queue in self.ruled:
            self.ruled.setdefault(queue, RuledQueue()).follow(rules)
            if not rules:
                del self.ruled[queue]

    def forget_slots(self, queue: str) -> None:
        """Read anew which slots of a queue are taken, before the next one is."""
        if queue in self.ruled:
            self.ruled[queue].forget()

    def makes_room(self, queue: object, slots: Sequence[str]) -> bool:
        """Whether others may start when a job ends that had these slots: where nothing but rates
        holds jobs of its queue back, they may start no sooner."""
        ruled = self.ruled.get(queue) if isinstance(queue, str) else None
        return bool(slots) or (ruled is not None and ruled.rules.by_running)

    def claim_given_up(self) -> None:
        """Be told that there is a claim to be undone."""

    @property
    def in_reach(self) -> bool:
        """Whether the driver knows of a server to write to; nothing is sent."""
        reachable: bool = self.jobs.database.client.topology_description.has_writable_server()
        return reachable

    def read(self, raw: RawBSONDocument) -> dict[str, Any]:
        """Return a document of anybody's."""
        return foreign.read(raw, any_id=self.any_id)

    def oddness_of(self, job: Mapping[str, Any]) -> foreign.BuryReason | None:
        """Say what makes a document impossible to run here."""
        return foreign.oddness_of(job, any_id=self.any_id)

    def is_duplicate_job(self, error: Exception | None) -> bool:
        """Whether an error says that a live job has the key that another was to have."""
        return operations.is_duplicate_job(error, self.indexes.key_name)

    def clashes(self, errors: Sequence[Exception | None]) -> operations.Clashes | None:
        """Sort what went wrong for each of many inserts; None if anything else did with one."""
        return operations.clashes(errors, self.indexes.key_name)

    def recheck_indexes(self) -> None:
        """Make the next ``prepare()`` create the indexes again: the collection may be new."""
        self.needless = False
        self.indexes.recheck()
        for ruled in self.ruled.values():
            ruled.checked = False

    def try_stuck_again(self) -> None:
        """Leave no job out next time: somebody wants to see all of them tried."""
        for stuck in (self.unclaimable, self.unpromotable, self.unreapable, self.unexpirable):
            stuck.forget()
