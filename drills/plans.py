"""What a proxy is to do to which commands, and how often it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from drills.commands import Kind

Direction = Literal["request", "reply"]


@dataclass(frozen=True)
class Command:
    """A command on its way to the server.

    Attributes:
        kind: what the queue does by it.
        retryable: identifies it and the driver's second try of it; None when there will be none.
    """

    kind: Kind | None
    retryable: tuple[Any, ...] | None


@dataclass
class Plan:
    """Which commands lose their connection, or are held back.

    Attributes:
        kinds: of these kinds.
        share: each with this probability.
        reply: after the server has answered that it did something, so that the sender cannot know;
            else before the server has received anything.
        again: whether the driver's own second try is treated alike, so that the queue sees it.
        left: how many more, or None for any number.
        hold: between how many seconds each is held back; None cuts the connection instead.
        apps: of these applications only; None of any.
    """

    kinds: Sequence[Kind]
    share: float = 1.0
    reply: bool = True
    again: bool = False
    left: int | None = None
    hold: tuple[float, float] | None = None
    apps: Collection[str] | None = None

    def wants(self, command: Command, app: str | None) -> bool:
        """Whether this command may fall under it."""
        return (
            command.kind in self.kinds
            and self.left != 0
            and (self.apps is None or app in self.apps)
        )


@dataclass(frozen=True)
class Held:
    """What was held back: of whom, what, and on which way."""

    app: str
    kind: Kind
    direction: Direction


@dataclass
class Counts:
    """How often what happened.

    Attributes:
        cuts: connections that ended with a command of this kind unsent or unanswered; under
            ``all`` those that were cut whatever they did.
        ambiguous: those of them where the server had done what was asked for.
        told: those of the ambiguous ones that no second try of the driver could hide.
        held: messages that were held back and have passed, or that nobody waited for any more.
        late: held requests that the server carried out after their sender had given them up.
        wedged: connections that were left open and pass nothing any more.
        errors: what the server answered to change streams, by its code.
    """

    cuts: Counter[str] = field(default_factory=Counter)
    ambiguous: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    held: Counter[Held] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    wedged: int = 0
    errors: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"{self.cuts.total()} cuts {dict(self.cuts)}, "
            f"ambiguous {dict(self.ambiguous)}, of these told {dict(self.told)}, "
            f"{self.wedged} connections wedged"
        )

    def held_back(self, kind: Kind, direction: Direction, apps: Collection[str] = ()) -> int:
        """Return how many such messages were held back, of these applications or of all."""
        return sum(
            count
            for held, count in list(self.held.items())  # counted in another thread
            if (held.kind, held.direction) == (kind, direction) and (not apps or held.app in apps)
        )
