"""The steps of a job: which ones earlier attempts have stored, and which this attempt has used.

A name stands for one result. So an attempt uses each name once, and what is stored under it is what
every later attempt is given. Nothing here reads or writes anything: whoever holds the job does.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

from ..errors import ConfigurationError, PayloadError
from .stored import text_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

MAX_STEP_BYTES = 256 * 1024
"""Of the result of one step: a claim brings the results of all of them."""
MAX_STEPS_BYTES = 4 * 1024 * 1024
"""Of the results of all steps of a job."""
MAX_STEPS = 1000
"""Steps of one job."""


StepResult = Literal["run", "replayed", "failed"]
"""What a call of a step came to: its function ran and the result is stored; that of an earlier
attempt was returned; or it was not stored, whatever kept it from that."""


class Steps:
    """The steps of one held job. Each of its holders may be another thread.

    Args:
        stored: the field of the document, whatever is in it: what is no step is no result.
    """

    __slots__ = ("_in_transactions", "_lock", "_sizes", "_stored", "_used")

    def __init__(self, stored: object = None) -> None:
        self._stored = dict(_named(stored))
        self._sizes: dict[str, int] | None = None
        self._used: set[str] = set()
        self._in_transactions: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def of_field(cls, stored: object) -> Self | None:
        """Return the steps that a document has, or None if it has no such field."""
        return None if stored is None else cls(stored)

    def use(self, name: str, *, in_transaction: bool) -> bool:
        """Note that this attempt uses a name; return whether it is the first time for certain.

        What was done in a transaction may have been undone with it: then whoever asks looks
        whether it is stored.

        Raises:
            ConfigurationError: the attempt has used it before.
        """
        with self._lock:
            first = name not in self._used
            if not first and not (in_transaction and name in self._in_transactions):
                raise used_twice(name)
            self._used.add(name)
            if in_transaction:
                self._in_transactions.add(name)
        return first

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def result(self, name: str) -> Any:
        """Return what an earlier attempt has stored."""
        return self._stored[name].get("result")

    def check_room(self, name: str) -> None:
        """Raise PayloadError if the job has as many steps as it may have, without this one."""
        with self._lock:
            self._check_count(name, self._all_sizes())

    def keep(self, name: str, size: int) -> None:
        """Note that a result of so many bytes is to be stored.

        Raises:
            PayloadError: those of the job would be too many, or too large.
        """
        with self._lock:
            sizes = self._all_sizes()
            self._check_count(name, sizes)
            total = size + sum(each for other, each in sizes.items() if other != name)
            if total > MAX_STEPS_BYTES:
                raise PayloadError(
                    f"the results of this job's steps have {total:,} bytes as BSON with the "
                    f"{size:,} of step {name!r}; the limit is {MAX_STEPS_BYTES:,}. Put large data "
                    "elsewhere (GridFS, an object store) and return its address"
                )
            sizes[name] = size

    def _check_count(self, name: str, sizes: Mapping[str, int]) -> None:
        if name not in sizes and len(sizes) >= MAX_STEPS:
            raise PayloadError(
                f"this job has {len(sizes):,} steps, which is the limit, and step {name!r} would "
                "be one more: do several things in one step, or put jobs for them"
            )

    def _all_sizes(self) -> dict[str, int]:
        if self._sizes is None:
            self._sizes = {name: _size(each) for name, each in self._stored.items()}
        return self._sizes


def used_twice(name: str) -> ConfigurationError:
    """Return what is raised when an attempt uses a name for a second time."""
    return ConfigurationError(
        f"this attempt has used the step {name!r} already, and a name stands for one result: in a "
        'loop, make it part of the name, as in f"mail-{number}"; to try a step again, do so in its '
        "function"
    )


def _named(stored: object) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(stored, list):
        return []
    entries = [each for each in reversed(stored) if isinstance(each, dict)]
    return [(name, each) for each in entries if (name := text_in(each.get("name"))) is not None]


def _size(entry: Mapping[str, Any]) -> int:
    return len(bson.encode({"result": entry.get("result")}, codec_options=_CODEC))


_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)
"""For sizes alone."""


class Stepping(Protocol):
    """A held job, with its steps."""

    steps: Steps | None


def steps_of(record: Stepping) -> Steps:
    """Return the steps of a held job, made by the first call of one that has none."""
    if record.steps is None:
        with _first:
            if record.steps is None:  # nobody was faster
                record.steps = Steps()
    return record.steps


_first = threading.Lock()
