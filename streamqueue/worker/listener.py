"""What a worker does when it hears of jobs: each event goes to the part that has use for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..stream.verdict import change_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..metrics.series import Metrics
    from ..protocol.foreign import BuryReason
    from ..store.asynchronous import AsyncStore
    from ..store.present_settings import PresentSettings
    from ..stream.verdict import Reason
    from .claimer import Claimer
    from .leases import Leases
    from .misfits import Misfits
    from .partition import Partition
    from .reaper import Reaper
    from .scheduler import Expiries, HeldBack, Timers


class WorkerListener:
    """Passes what a source says to the claimer, the timers, the reaper, the present settings and
    who holds jobs.

    The source is made with its listener, and some of the parts with the source: so the parts come
    by :meth:`connect`, before the source is run.
    """

    _claimer: Claimer
    _timers: Timers
    _reaper: Reaper
    _leases: Leases
    _expiries: Expiries
    _held_back: HeldBack
    _misfits: Misfits

    def __init__(
        self,
        store: AsyncStore,
        queues: Sequence[str],
        settings: PresentSettings,
        partition: Partition,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._settings = settings
        self._queues = queues
        self._partition = partition
        self._metrics = metrics
        self._opened_before = False

    def connect(
        self,
        claimer: Claimer,
        timers: Timers,
        reaper: Reaper,
        leases: Leases,
        expiries: Expiries,
        held_back: HeldBack,
        misfits: Misfits,
    ) -> None:
        """Pass on to these what is said from now on."""
        self._claimer, self._timers, self._reaper = claimer, timers, reaper
        self._leases, self._expiries, self._held_back = leases, expiries, held_back
        self._misfits = misfits

    def opened(self) -> None:
        """Look at the documents: whatever the look misses becomes an event."""
        if self._opened_before:
            self._store.recheck_indexes()  # a stream may break because its collection was dropped
        self._opened_before = True
        self._claimer.opened()
        self._settings.rang()
        self._timers.look()
        self._reaper.look()
        self._leases.look()
        self._expiries.opened()
        self._held_back.opened()
        self._misfits.opened()

    def broken(self, reason: Reason) -> None:
        """Do nothing: it is noted already where people look."""

    @property
    def loaded(self) -> bool:
        """Whether the claimer knows of waiting jobs."""
        return self._claimer.loaded

    @property
    def looks_often(self) -> bool:
        """Whether the claimer looks at the documents as soon as an event would come."""
        return self._claimer.looks_often

    async def until_unloaded(self) -> None:
        """Return when the claimer has use for an event again."""
        await self._claimer.until_unloaded()

    def unheard(self) -> None:
        """Look for jobs that fall due: what waits is looked at, and leases have their own look."""
        self._claimer.unheard()
        self._timers.look()
        self._expiries.look()

    def bell(self) -> None:
        """Read the settings of the queues."""
        self._settings.rang()

    def event(self, event: Mapping[str, Any]) -> None:
        """Claim the job of an event, arm the timer for it, or have its lease returned."""
        change = change_of(event)
        if change.expires_at is not None:
            self._expiries.note(change.expires_at)
        if change.bell:
            self._settings.rang()
        if change.scheduled:
            self._timers.note(change.run_at)
            if event["operationType"] != "insert":  # it may have run until now
                self._claimer.room()
        if change.anew and self._store.left:
            self._store.left.discard(event["documentKey"]["_id"])
        if change.ready:
            job = change.job
            if job is None or job.get("queue") not in self._queues:
                # A plain update does not say whose job it was, nor whether that ever had a place
                # in the claim order.
                self._claimer.scan("stream", adopt=True)
            else:
                self._claimer.announce(job, inserted=event["operationType"] == "insert")
        if change.expired:
            self._reaper.look()
        if change.asked:
            self._leases.look()
        if change.waits:
            self._store.needless = False
            self._held_back.note()
        if change.left:
            self._misfits.note()

    def asked(self) -> None:
        """Look whether a job that is held here is to be cancelled."""
        self._leases.look()

    def dispatched(self, yes: bool) -> None:
        """Take all that comes for ours, while somebody hands out the jobs."""
        self._partition.dispatched(yes)

    def more(self, everything: bool) -> None:
        """Claim what waits; with `everything` promote, reap and end what there is as well, and give
        a place to what has none."""
        self._claimer.scan("stream", adopt=everything)
        if everything:
            self._timers.look()
            self._reaper.look()
            self._expiries.opened()
            self._held_back.look()

    def buried(self, reason: BuryReason, count: int) -> None:
        """Count jobs that the dispatcher has buried."""
        self._metrics.buried(reason, count)

    def refused(self, job_ids: Sequence[Any]) -> None:
        """Leave these jobs out, and no others: the dispatcher tries them again."""
        self._store.unclaimable.hold_only(job_ids)
