"""Parents: the jobs that a held job came after, and their results, read as they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..protocol.dependencies import key_of
from .info import JobInfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from bson.raw_bson import RawBSONDocument

    from ..protocol.document import JobRecord
    from .holder import AsyncHolder, Holder

PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of one page, about: how many parents it has goes by the sizes of those before."""
FIRST_PAGE, LONGEST_PAGE = 4, 1000
"""Parents. A result may have 1 MiB."""


class Pages:
    """Cuts a list of ids into pages, whose jobs are about as large as may be read at once."""

    def __init__(self, ids: Sequence[Any]) -> None:
        self._left = list(ids)
        self._length = FIRST_PAGE

    def next(self) -> list[Any]:
        """Return the next ids; none at the end."""
        page, self._left = self._left[: self._length], self._left[self._length :]
        return page

    def read(self, page: Sequence[Any], found: Iterable[RawBSONDocument]) -> list[JobInfo | None]:
        """Return the jobs of a page in its order, as they were found; None for one that is gone."""
        found = list(found)
        size = sum(len(raw.raw) for raw in found)
        if found:
            fitting = PAGE_BYTES * len(found) // max(1, size)
            self._length = max(1, min(LONGEST_PAGE, fitting, 8 * self._length))
        infos = {key_of(info.id): info for info in map(JobInfo.from_raw, found)}
        return [infos.get(key_of(job_id)) for job_id in page]


def _result(info: JobInfo | None) -> Any:
    return None if info is None else info.result


class Parents:
    """The jobs that a job came after; iterating over it yields their results.

    They come in the order of ``after``: None for one that returned none, that failed, or that is
    gone.

    Nothing is read before it is iterated over, and then a page at a time (of about 4 MB), so that
    ten thousand results leave the memory as it was. They stay for as long as the job lives.

    Attributes:
        ids: their ids.
    """

    __slots__ = ("_holder", "_record", "ids")

    def __init__(self, record: JobRecord, holder: Holder) -> None:
        self._record = record
        self._holder = holder
        self.ids: tuple[Any, ...] = tuple(record.after)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Any]:
        return map(_result, self._read(whole=False))

    def infos(self) -> Iterator[JobInfo | None]:
        """Yield them as they are (:class:`JobInfo`), payload and result included, in the same
        order; None for one that is gone."""
        return self._read(whole=True)

    def _read(self, *, whole: bool) -> Iterator[JobInfo | None]:
        pages = Pages(self.ids)
        while page := pages.next():
            yield from pages.read(page, self._holder.parents(self._record, page, whole))

    def __repr__(self) -> str:
        return f"<{len(self.ids)} parents of job {self._record.id}>"


class AsyncParents:
    """The jobs that a job came after; iterating over it yields their results.

    With ``async for``, in the order of ``after``: None for one that returned none, that failed, or
    that is gone.

    Nothing is read before it is iterated over, and then a page at a time (of about 4 MB), so that
    ten thousand results leave the memory as it was. They stay for as long as the job lives.

    Attributes:
        ids: their ids.
    """

    __slots__ = ("_holder", "_record", "ids")

    def __init__(self, record: JobRecord, holder: AsyncHolder) -> None:
        self._record = record
        self._holder = holder
        self.ids: tuple[Any, ...] = tuple(record.after)

    def __len__(self) -> int:
        return len(self.ids)

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for info in self._read(whole=False):
            yield _result(info)

    def infos(self) -> AsyncIterator[JobInfo | None]:
        """Yield them as they are (:class:`JobInfo`), payload and result included, in the same
        order; None for one that is gone."""
        return self._read(whole=True)

    async def _read(self, *, whole: bool) -> AsyncIterator[JobInfo | None]:
        pages = Pages(self.ids)
        while page := pages.next():
            found = await self._holder.parents(self._record, page, whole)
            for info in pages.read(page, found):
                yield info

    def __repr__(self) -> str:
        return f"<{len(self.ids)} parents of job {self._record.id}>"
