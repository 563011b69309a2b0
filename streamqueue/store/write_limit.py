"""How long a write for many may take inside the server, and how many jobs a claim may be for.

A document that somebody's open transaction has changed makes a write wait inside the server until
that transaction has ended, and so do all that share the write. So each has a short limit of the
server's; when one meets it, it is sent again in parts until the document that blocks it is alone.
The others wait for one limit and a few more, and no longer.

And what takes too long for twenty large jobs may be done in time for one.
"""

from __future__ import annotations

from typing import Self

from pymongo.errors import OperationFailure, PyMongoError, WriteConcernError

from ..options import MAX_BATCH
from ..protocol import operations

USUAL, LONGEST = 0.5, 10.0
"""Seconds. No write takes half a second that does not wait for something; and a server that takes
ten is as good as none."""
SHARE, LEAST = 20, 0.05
"""Of a lease the limit is a twentieth: renewals begin after a third of it, and a thousand that are
divided four times over are all known before two thirds. Never so little that a busy server meets
it."""
LONGEST_WRITE = 60.0
"""Seconds a write of a held job may take, however long its lease lasts: one that takes longer is
sent again. (Nobody may ask a server for more than 2**31 ms, which is less than a month.)"""
SHRINK = 4


class WriteLimit:
    """The limit of the next shared write.

    Args:
        usual: seconds, while the server is quick.
        longest: seconds that nobody waits beyond.
    """

    def __init__(self, usual: float = USUAL, longest: float = LONGEST) -> None:
        self._usual = usual
        self._longest = longest
        self.seconds = usual

    @classmethod
    def of_lease(cls, timeout: float) -> Self:
        """Return one for writes that are of no use after so many seconds."""
        return cls(max(LEAST, min(USUAL, timeout / SHARE)), min(timeout, LONGEST_WRITE))

    def met(self) -> None:
        """Wait longer the next time: the server was slow with all of it, such as with the
        majority's word, and parts would not be faster."""
        self.seconds = min(2 * self.seconds, self._longest)

    def kept(self, took: float) -> None:
        """Note a write that was answered; after a quick one the limit is as usual."""
        if took < self._usual:
            self.seconds = self._usual

    def cut_short(self, error: BaseException) -> bool:
        """Whether a write failed because it was done in time, and waited for the majority for too
        long; then another try may take longer."""
        if not isinstance(error, WriteConcernError) or error.code != operations.TIMED_OUT:
            return False
        worth_it = self.seconds < self._longest
        self.met()
        return worth_it


class ClaimSize:
    """How many jobs a claim is for at the most.

    Attributes:
        most: the number; it shrinks when a claim fails or does not fit, and grows again.
    """

    def __init__(self) -> None:
        self.most = MAX_BATCH

    def failed(self, size: int, error: BaseException) -> None:
        """Note a claim of that many that failed: the next is smaller if it may have been too large,
        for the time it had or for what the server allows."""
        if isinstance(error, OperationFailure) or (
            isinstance(error, PyMongoError) and error.timeout
        ):
            self.late(size)

    def late(self, size: int) -> None:
        """Note a claim of that many whose lease was over when it was answered."""
        self.most = max(1, min(self.most, size) // SHRINK)

    def fitted(self, size: int, fit: int, taken: int) -> None:
        """Note a claim of `size` jobs that took so many, of which so many did fit into a reply."""
        if fit < taken:
            self.most = max(1, fit)
        elif size >= self.most:
            self.most = min(MAX_BATCH, 2 * self.most)
