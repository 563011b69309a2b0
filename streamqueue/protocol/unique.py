"""What makes a job unique, as it was put: its key, and what becomes of a put whose key is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from .. import options
from ..durations import seconds, shown
from ..errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import timedelta

OnConflict = Literal["raise", "skip", "replace", "earlier"]
KeyUntil = Literal["start", "end"]

_UNTIL: dict[str, KeyUntil] = {
    "raise": "end",
    "skip": "end",
    "replace": "start",
    "earlier": "start",
}
"""Until when a key is held, by what becomes of a put that meets it. What is to change the job that
has it comes too late for one that has begun."""


class TaskKey(NamedTuple):
    """A key, and the task in which it is unique.

    Attributes:
        key: the text.
        task: the name of the task; None for the jobs without one.
    """

    key: str
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Unique:
    """What makes a job unique, valid.

    Attributes:
        key: unique among the keys that are held in its queue and task; None if it has none.
        on_conflict: what becomes of the put when the key is taken.
        until_start: the key is let go of when the job is claimed, not when it has ended.
        held_for: seconds from the put on that the key is held at the least; None: no longer than
            the job lives.
        max_delay: seconds from the first put on after which the job is due, however often it is
            replaced; None: it may be put off for ever.
    """

    key: str | None = None
    on_conflict: OnConflict = "raise"
    until_start: bool = False
    held_for: float | None = None
    max_delay: float | None = None

    @property
    def upserts(self) -> bool:
        """Whether a put looks for the holder of its key and inserts in one command."""
        return self.on_conflict != "raise"


NOT_UNIQUE = Unique()


@dataclass(frozen=True, slots=True)
class UniqueRule:
    """What was said of keys, whichever key it will be for; None is what nobody said."""

    on_conflict: OnConflict | None = None
    key_until: KeyUntil | None = None
    unique_for: float | None = None
    max_delay: float | None = None

    def over(self, other: UniqueRule) -> UniqueRule:
        """Return this, and what the other says where it says nothing: of its ``max_delay`` that is
        nothing for one that has said something else than ``"replace"``."""
        if self is NO_RULE:
            return other
        bounds = self.on_conflict in (None, "replace")
        return UniqueRule(
            self.on_conflict or other.on_conflict,
            self.key_until or other.key_until,
            other.unique_for if self.unique_for is None else self.unique_for,
            other.max_delay if self.max_delay is None and bounds else self.max_delay,
        )

    def of(self, key: object) -> Unique:
        """Return what makes a job with this key unique; ``NOT_UNIQUE`` if that is None.

        Raises:
            ConfigurationError: no key, or something that does not go with the rest.
        """
        if key is None:
            return NOT_UNIQUE
        conflict = self.on_conflict or "raise"
        if self.max_delay is not None and conflict != "replace":
            raise ConfigurationError(
                'max_delay bounds how long puts with on_conflict="replace" put a job off: give '
                "that too, or leave it out"
            )
        return Unique(
            options.key_name(key),
            conflict,
            (self.key_until or _UNTIL[conflict]) == "start",
            self.unique_for,
            self.max_delay,
        )

    def need_key(self) -> None:
        """Raise ConfigurationError if something was said, for there is no key that it is for."""
        if self is NO_RULE:
            return
        said = {
            "on_conflict": self.on_conflict not in (None, "raise"),
            "key_until": self.key_until is not None,
            "unique_for": self.unique_for is not None,
            "max_delay": self.max_delay is not None,
        }
        for name, is_said in said.items():
            if is_said:
                raise ConfigurationError(
                    f"{name} says what holds for a key, and there is none: give key= too (or keys= "
                    "of put_many)"
                )


NO_RULE = UniqueRule()


def check_rule(
    on_conflict: str | None,
    key_until: str | None,
    unique_for: float | timedelta | None,
    max_delay: float | timedelta | None,
) -> UniqueRule:
    """Return what was said of keys, or raise ConfigurationError."""
    if on_conflict is None and key_until is None and unique_for is None and max_delay is None:
        return NO_RULE  # as of each of many jobs without keys
    return UniqueRule(
        None if on_conflict is None else _one_of(on_conflict, OnConflict, "on_conflict"),
        None if key_until is None else _one_of(key_until, KeyUntil, "key_until"),
        None if unique_for is None else seconds(unique_for, "unique_for"),
        None if max_delay is None else seconds(max_delay, "max_delay"),
    )


def _one_of(value: object, kind: object, name: str) -> Any:
    words = get_args(kind)
    if not isinstance(value, str) or value not in words:
        listed = ", ".join(map(repr, words[:-1]))
        raise ConfigurationError(f"{name} is {listed} or {words[-1]!r}, not {shown(value)}")
    return str(value)
