"""Dependencies: the jobs that a job comes after, and what their ends mean to it.

Whether a dependent may run is a function of the states of its parents' documents, computed by
whoever looks, as often as wanted; nothing counts up or down.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from bson import Int64, ObjectId

from ..durations import shown
from ..errors import ConfigurationError
from .document import ENDED_STATES, id_key, id_text, ids_meant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

IfParentFails = Literal["hold", "cancel", "run"]
"""What becomes of a dependent when a parent fails: when that is dead, cancelled or gone."""
Decision = Literal["run", "cancel", "wait"]

MAX_PARENTS = 50_000
"""Parents of a job: their ids take 0.9 MB of it."""


class Standing(NamedTuple):
    """How the parents of a dependent stand: how many of them live, and how the others ended.

    Attributes:
        missing: those that are not there: removed, or of no document ever.
    """

    live: int = 0
    done: int = 0
    dead: int = 0
    cancelled: int = 0
    missing: int = 0


def decide(rule: IfParentFails, parents: Standing) -> Decision:
    """Return what becomes of a dependent.

    ``run``: it runs once none of them lives. ``cancel``: it is cancelled as soon as one has failed.
    ``hold``: a dead one can be requeued, so it waits for that too; one that is cancelled or gone
    will never be done, so then it is cancelled.
    """
    final = parents.cancelled + parents.missing
    if rule == "cancel" and final + parents.dead:
        return "cancel"
    if rule == "hold" and final:
        return "cancel"
    if parents.live or (rule == "hold" and parents.dead):
        return "wait"
    return "run"


class Looked(NamedTuple):
    """A dependent that waits, as a look has found it.

    Attributes:
        id: its id.
        decision: what becomes of it.
        waits_for: the parent that it says it waits for.
        failed: it says that this one is dead.
        witness: the parent that it is to wait for, if it waits: one that lives, or a dead one.
        witness_failed: whether that is dead.
        needed: it is a parent itself.
        unmarked: some of its parents do not say that they are needed.
    """

    id: Any
    decision: Decision
    waits_for: Any
    failed: bool
    witness: Any
    witness_failed: bool
    needed: bool
    unmarked: bool

    @property
    def says_so(self) -> bool:
        """Whether its document says already for which parent it waits."""
        same = key_of(self.waits_for) == key_of(self.witness)
        return same and self.failed is self.witness_failed


def read_look(row: Mapping[str, Any]) -> Looked:
    """Read a row of the answer to :func:`~.operations.look_at_parents`."""
    counts: dict[str, int] = dict.fromkeys(Standing._fields, 0)
    witnesses: dict[str, list[Any]] = {"live": [], "dead": []}
    unmarked = found = 0
    for group in row["parents"]:
        state = group["_id"]
        ended = type(state) is str and state in ENDED_STATES
        kind = state if ended else "live"
        counts[kind] += group["count"]
        found += group["count"]
        unmarked += group["unmarked"]
        if kind in witnesses:
            witnesses[kind].append(group["last"])
    counts["missing"] = max(0, row["count"] - found)
    rule: Any = row.get("if_parent_fails")
    if rule not in get_args(IfParentFails):
        rule = "hold"
    standing = Standing(**counts)
    decision = decide(rule, standing)
    waits_for = row.get("waits_for") or {}
    lives = bool(witnesses["live"])
    # Of several states that live the server has sorted each: any will do that lives.
    some = witnesses["live"] or witnesses["dead"] or [None]
    return Looked(
        row["_id"],
        decision,
        waits_for.get("parents"),
        waits_for.get("failed") is True,
        latest(some),
        not lives,
        row.get("needed") is True,
        bool(unmarked),
    )


def latest(ids: Sequence[Any]) -> Any:
    """Return the last of some ids in the order in which they were made, as far as they have one:
    what was put last tends to end last."""
    made = [one for one in ids if isinstance(one, ObjectId)]
    return max(made) if made else ids[-1]


class Parents(NamedTuple):
    """The jobs that one comes after, valid.

    Attributes:
        ids: theirs, each once.
        rule: what becomes of the dependent when one fails.
        witness: the one of them that it waits for first; None is the last.
    """

    ids: tuple[Any, ...] = ()
    rule: IfParentFails = "hold"
    witness: Any = None

    def fields(self, delay: float | None) -> dict[str, Any]:
        """Return the fields of a dependent that is inserted; its delay begins when they have
        ended."""
        if not self.ids:
            return {}
        witness = self.ids[-1] if self.witness is None else self.witness
        return {
            "after": list(self.ids),
            "if_parent_fails": None if self.rule == "hold" else self.rule,
            "waits_for": {"parents": witness},
            "delay": delay or None,
        }


NO_PARENTS = Parents()


def check_parents(after: object, if_parent_fails: object) -> Parents:
    """Return the parents of a job, or raise ConfigurationError."""
    if after is None and if_parent_fails in (None, "hold"):
        return NO_PARENTS
    rules = get_args(IfParentFails)
    if if_parent_fails is not None:
        if not isinstance(if_parent_fails, str) or if_parent_fails not in rules:
            raise ConfigurationError(
                f"if_parent_fails is 'hold', 'cancel' or 'run', not {shown(if_parent_fails)}"
            )
        if after is None:
            raise ConfigurationError(
                "if_parent_fails says what becomes of a job that comes after others: give after= "
                "too, or leave it out"
            )
    rule: Any = str(if_parent_fails or "hold")
    return Parents(_ids(after), rule)


def _ids(after: object) -> tuple[Any, ...]:
    if isinstance(after, (str, bytes, dict)) or not isinstance(after, Iterable):
        raise ConfigurationError(
            f"after is a list of the ids of jobs, as put returned them, not {shown(after)}"
        )
    ids = {key_of(meant): meant for each in after for meant in [_id(each)]}
    if len(ids) > MAX_PARENTS:
        raise ConfigurationError(
            f"a job comes after {MAX_PARENTS:,} others at the most, and after has {len(ids):,}: "
            "let some of them be the parents of a job between"
        )
    return tuple(ids.values())


def _id(value: object) -> Any:
    # A text that may be that of an ObjectId is one, as for job_id: of jobs that are put only now no
    # look can say which of the two is meant.
    return ids_meant(value)[-1]


def key_of(job_id: object) -> object:
    """Return what an id can be looked up by, equal for what the server takes for equal."""
    return job_id if type(job_id) in _PLAIN else (id_key(job_id),)


_PLAIN = (ObjectId, str, int, Int64, float)


def parents_first(parents: Mapping[Any, Sequence[Any]]) -> dict[Any, int]:
    """Return how deep each of some jobs stands below those of them that have no parent among them:
    put by that, each comes behind its parents.

    Args:
        parents: by the key of a job, those of its parents that are among them.

    Raises:
        ConfigurationError: a job comes after itself, directly or by way of others.
    """
    depths: dict[Any, int] = {}
    left = {job: len(its) for job, its in parents.items()}
    children: dict[Any, list[Any]] = {}
    for job, its in parents.items():
        for parent in its:
            children.setdefault(parent, []).append(job)
    level = [job for job, count in left.items() if not count]
    depth = 0
    while level:
        below: list[Any] = []
        for job in level:
            depths[job] = depth
            for child in children.get(job, ()):
                left[child] -= 1
                if not left[child]:
                    below.append(child)
        level, depth = below, depth + 1
    if len(depths) < len(parents):
        job = next(job for job in parents if job not in depths)
        itself = job in parents[job]
        name = id_text(job[0] if type(job) is tuple else job)
        raise ConfigurationError(
            f"job {name} comes after itself"
            if itself
            else f"jobs come after one another in a circle, job {name} among them"
        )
    return depths
