"""Locks that somebody else has had."""

from __future__ import annotations

from collections.abc import Callable


class HadBefore:
    """A lock that another thread has had just before; `did` is what it did there."""

    def __init__(self, did: Callable[[], object]) -> None:
        self._did = did

    def __enter__(self) -> None:
        self._did()

    def __exit__(self, *error: object) -> None: ...
