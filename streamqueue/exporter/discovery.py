"""Finding which queues there are: by jumping over an index, from one name to the next.

Anybody may have stored anything as a queue, in any number. So what is no name is counted, and
jumped over together with all that begins like it; and a walk has an end: it stops after so many
looks, or when its time is up, and the next one goes on from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from ..clock import monotonic
from ..names import is_name, name_after
from ..protocol.document import BARE_CODEC
from . import queries

if TYPE_CHECKING:
    from collections.abc import Set

    from ..protocol.document import State
    from ..protocol.operations import Find
    from ..store.asynchronous import AsyncStore

MOST_LOOKS = 500
"""Looks for the queues with jobs in one state, in one census."""
MOST_NAMES = 2000
"""Names that are remembered of one state; each has 64 characters at the most."""
COUNTED_AT_ONCE = 1000
MOST_LISTS = 100
NO_SUCH_INDEX = 2  # BadValue, for a hint
MOST_FOREIGN = 10_000
"""Documents in one state whose queue is no name that are counted: the rest only costs."""


class Walk:
    """Finds the queues with jobs in one state, and counts what has a queue that is no name.

    Args:
        store: the jobs.
        state: one whose index begins with the queue.
    """

    def __init__(self, store: AsyncStore, state: State) -> None:
        self._store = store
        self._jobs = store.jobs.with_options(codec_options=BARE_CODEC)
        self.state = state
        self._keys = queries.KEYS[state]
        self._begin()
        self._names: set[str] = set()
        self._foreign = 0

    def _begin(self) -> None:
        self._found: set[str] = set()
        self._found_foreign = 0
        self._position, self._past = "", False
        self._has_index = True

    @property
    def names(self) -> Set[str]:
        """The names found by the last whole walk, and since then."""
        return self._names | self._found

    @property
    def foreign(self) -> int:
        """How many documents there are at the least whose queue is a text and no name, or a list
        of such; a list counts once for each."""
        return max(self._foreign, self._found_foreign)

    async def go_on(self, known: Set[str], until: float) -> None:
        """Look for more names until that :func:`monotonic` time, or until all were found.

        Args:
            known: names of which nothing needs to be found out.

        Raises:
            PyMongoError: the server.
        """
        for _ in range(MOST_LOOKS):
            if monotonic() >= until:
                return
            found = await self._next()
            if found is None:
                self._end()
                return
            if is_name(found):
                if found not in known and (lists := await self._lists_of(found)):
                    self._found_foreign += lists
                elif len(self._found) < MOST_NAMES:
                    self._found.add(found)
                self._position, self._past = found, True
                continue
            jump = name_after(found)
            if self._found_foreign < MOST_FOREIGN:
                self._found_foreign += await self._count_before(jump)
            if jump is None:
                self._end()
                return
            self._position, self._past = jump, False

    def _end(self) -> None:
        self._names, self._foreign = self._found, self._found_foreign
        self._begin()

    async def _next(self) -> str | None:
        """Return the next text that is somebody's queue, as well as it can be read."""
        look = queries.next_queue(self.state, self._position, past=self._past)
        if self._has_index:
            try:
                found = await self._find(look, hint=self._keys, return_key=True)
            except OperationFailure as error:
                if error.code != NO_SUCH_INDEX:
                    raise
                self._has_index = False
            else:
                return str(found[0]["queue"]) if found else None
        found = await self._find(look, sort=look.sort, projection=look.projection)
        return self._first_text(found[0]["queue"]) if found else None

    def _first_text(self, queue: object) -> str | None:
        """Return the text itself, or of a list the one that was found."""
        at = self._position
        texts = [text for text in _listed(queue) if isinstance(text, str)]
        return min(
            (text for text in texts if text > at or (text == at and not self._past)), default=None
        )

    async def _find(self, look: Find, **options: Any) -> list[dict[str, Any]]:
        with self._store.limit():
            async with self._jobs.find(look.filter, limit=look.limit, **options) as cursor:
                return await cursor.to_list()

    async def _lists_of(self, name: str) -> int:
        """Return how many jobs have a list with this name as their queue, if no others are there;
        where there are many, it is not known, and 0."""
        look = queries.bare_queues(self.state, name, MOST_LISTS)
        found = await self._find(look, projection=look.projection)
        only_lists = len(found) < MOST_LISTS and all(
            isinstance(job["queue"], list) for job in found
        )
        return len(found) if only_lists else 0

    async def _count_before(self, jump: str | None) -> int:
        """Return how many documents, of the first ones, there are from here to a name."""
        pipeline = queries.foreign_names(
            self.state,
            self._position,
            jump,
            past=self._past,
            limit=COUNTED_AT_ONCE,
            sort=not self._has_index,
        )
        options: dict[str, Any] = {"hint": self._keys} if self._has_index else {}
        with self._store.limit():
            async with await self._jobs.aggregate(pipeline, **options) as cursor:
                return sum([row["count"] async for row in cursor])


def _listed(queue: object) -> list[object]:
    return queue if isinstance(queue, list) else [queue]
