"""What is known of the indexes of a collection: wanted, made, refused, in the way of one another.

Nothing here sends anything; what is sent, and how an answer is read, is in ``protocol.operations``.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from .. import plain
from ..backoff import Backoff
from ..clock import monotonic
from ..errors import ConfigurationError
from ..failures import failure_facts, failure_name
from ..protocol import operations
from ..protocol.schema import (
    EARLIER_KEY_INDEX,
    FEATURE_INDEXES,
    INDEXES,
    KEY_INDEX,
    RUNNING_KEY_INDEX,
)
from .collection import UNAUTHORIZED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pymongo.errors import PyMongoError

logger = plain.logger("streamqueue.store")

BUILD_SECONDS = 5.0
"""How long somebody's first call may wait for the indexes: the rest is for ``streamqueue init``."""
AGAIN = Backoff(initial=60, maximum=3600, factor=2, jitter=0.5)
"""The wait until they are tried again: each try holds up the collection until its limit is met."""
BUILD_EVERY = 60.0
"""Seconds between two tries to make the index of the keys, when something is in its way."""


class Indexes:
    """What became of the wish for indexes: for the log, once for each answer however often it is
    asked, and for whoever needs the one that keeps keys unique.

    Attributes:
        builds: how often that of each feature was asked for. Who looked before the last time looks
            again.
        outage: why the last time had no answer; None if it had one.
        in_the_way: why the index of the keys could not be made, the last time; None if it could.
        key_name: what that index is called here; somebody may have made it under another name.
        earlier_keys: whether jobs of an earlier version may be there that do not hold their keys.
        earlier_version: whether the index stands by which such a version keeps keys unique, so that
            some process may be one still, and put such jobs.
        features: what somebody here has used whose index is wanted as well.
        standing: those of them whose index was seen to be there.
    """

    def __init__(self) -> None:
        self.builds: Counter[str] = Counter()
        self.outage: PyMongoError | None = None
        self.in_the_way: str | None = None
        self.key_name: str = KEY_INDEX["name"]
        self.earlier_keys = True
        self.earlier_version = False
        self.features: set[str] = set()
        self.standing: set[str] = set()
        self._tried = -math.inf
        self._wanted = True
        self._again_at = math.inf
        self._failures = 0
        self._refused = False
        self._blocked: set[str] = set()

    @property
    def wanted(self) -> bool:
        """Whether nobody has asked for them yet, the collection may be new since, or it is time to
        try again."""
        return self._wanted or monotonic() >= self._again_at

    @property
    def all(self) -> list[Mapping[str, Any]]:
        """Those that are to be there."""
        wanted: list[Mapping[str, Any]] = [index.document for index in INDEXES]
        for feature, indexes in FEATURE_INDEXES.items():
            if feature in self.features:
                wanted += indexes
        return wanted

    @property
    def keyed(self) -> bool:
        """Whether somebody here has put with a key."""
        return "key" in self.features

    def want(self, feature: str) -> None:
        """Have the index of a feature made with the others, the next time they are asked for."""
        if feature not in self.features:
            self.features.add(feature)
            self._wanted = True

    def keys_kept(self, there: Sequence[Mapping[str, Any]]) -> None:
        """Note what is known of keys by the indexes that are there."""
        names = [str(one["name"]) for one in there if operations.keeps_keys_unique(one)]
        self.key_name = names[0] if names else self.key_name
        self.earlier_version = any(one.get("name") == EARLIER_KEY_INDEX for one in there)
        self.earlier_keys &= self.earlier_version

    def recheck(self) -> None:
        """Ask for them again: the collection may be new."""
        self._wanted = True
        self.standing.clear()

    def _answered(self) -> None:
        self._wanted, self._again_at, self._failures = False, math.inf, 0
        self.outage = None

    def failed(self, error: PyMongoError) -> None:
        """Note, and log, that they could not be made this time, and are tried again later."""
        name = failure_name(error)
        self._failures += 1
        wait = AGAIN.delay(self._failures)
        self._wanted, self._again_at = False, monotonic() + wait
        # An outage may be over in a moment, and says nothing of the next try.
        self.outage = None if isinstance(error, OperationFailure) else error
        if self.outage is None:
            self.in_the_way = f"it could not be created just now ({name})"
            self._tried = monotonic()
        logger.warning(
            "The indexes could not be created for now (%s), trying again in %.0f s: "
            "`streamqueue init` takes the time that it needs",
            name,
            wait,
            extra={
                "event": "indexes_failed",
                **failure_facts(error),
                "seconds": round(wait, 3),
            },
        )

    @property
    def hopeless(self) -> bool:
        """Whether the index of the keys could not be made a moment ago: the server reads the whole
        collection to say so."""
        return self.in_the_way is not None and monotonic() - self._tried < BUILD_EVERY

    def made(self, replies: Iterable[Mapping[str, Any]]) -> None:
        """Note, and log, how many there are now that were not there before; mongos does not say."""
        self._answered()
        self.in_the_way = None
        count = sum(
            reply.get("numIndexesAfter", 0) - reply.get("numIndexesBefore", 0) for reply in replies
        )
        if count > 0:
            logger.info(
                "Created %d indexes", count, extra={"event": "indexes_created", "count": count}
            )

    def refused(self, there: Sequence[Mapping[str, Any]] | None) -> None:
        """Note that the user's role does not include it: a warning if some are known to be missing.

        `there` are those that are there, None when the role does not include to look.
        """
        self._answered()
        self._tried = monotonic()
        self.in_the_way = "this user has no right to create it (createIndex)"
        if self._refused:
            return
        self._refused = True
        missing = 0
        for index in () if there is None else self.all:
            missing += not any(operations.serves_as(one, index) for one in there or ())
        no_keys = (
            self.keyed and bool(missing) and not any(map(operations.keeps_keys_unique, there or ()))
        )
        logger.log(
            logging.WARNING if missing else logging.DEBUG,
            "No right to create indexes%s%s: `streamqueue init`%s, run by who has it, does",
            f", and {missing} are missing" if missing else "",
            ", so keys cannot be used" if no_keys else "",
            " with --features" if self.features else "",
            extra={"event": "indexes_refused", "code": UNAUTHORIZED, "count": missing},
        )

    def blocked(
        self,
        index: Mapping[str, Any],
        error: OperationFailure,
        there: Sequence[Mapping[str, Any]] | None,
    ) -> None:
        """Note, and log, that something stands in the way of this one; nothing, if that does as
        well. `there` as for :meth:`refused`."""
        if any(operations.serves_as(one, index) for one in there or ()):
            return
        name = index["name"]
        # The class alone: the text of a duplicate quotes the key, which is the user's.
        reason = operations.INDEX_ERRORS[error.code or 0]
        if index in FEATURE_INDEXES["key"]:
            self._tried = monotonic()
            self.in_the_way = (
                "two jobs have one key already"
                if error.code == operations.DUPLICATE_KEY
                else f"another index is in its way ({reason})"
            )
        if name not in self._blocked:
            self._blocked.add(name)
            logger.warning(
                "The index %s cannot be made (%s)%s%s",
                name,
                reason,
                ", so keys cannot be used" if index in FEATURE_INDEXES["key"] else "",
                _way_out(index, error, there),
                extra={"event": "index_blocked", "code": error.code, "reason": reason},
            )

    def refusal(self, *, build: bool, seen: bool) -> ConfigurationError:
        """Return what a put with a key is told without the index.

        `build` is whether it could be made now, `seen` whether it was seen to be missing.
        """
        state = "one of which is missing" if seen else "which this user may not see (listIndexes)"
        why = self.in_the_way if build else "nothing is created inside a transaction"
        more = "" if seen else ", and give this one listIndexes"
        return ConfigurationError(
            f"put(key=...) needs the unique indexes {KEY_INDEX['name']} and "
            f"{RUNNING_KEY_INDEX['name']}, {state}"
            f"{'' if why is None else f', and {why}'}: run `streamqueue init` with --features, as "
            f"a user with the right createIndex{more}"
        )


def missing(feature: str, use: str, *, seen: bool = True) -> ConfigurationError:
    """Return what is told to who uses a feature whose index is not there and cannot be made.

    `seen` is whether it was seen to be missing.
    """
    names = " and ".join(str(index["name"]) for index in FEATURE_INDEXES[feature])
    several = len(FEATURE_INDEXES[feature]) > 1
    state = "one of which is missing" if several else "which is missing"
    if not seen:
        state = "which this user may not see (listIndexes)"
    return ConfigurationError(
        f"{use} needs the {'indexes' if several else 'index'} {names}, {state}: run `streamqueue "
        "init` with --features, as a user with the right createIndex"
        f"{'' if seen else ', and give this one listIndexes'}"
    )


def _way_out(
    index: Mapping[str, Any],
    error: OperationFailure,
    there: Sequence[Mapping[str, Any]] | None,
) -> str:
    """Say what to do about what is in the way of an index, if it is known."""
    if error.code == operations.DUPLICATE_KEY:
        return ""
    names = [str(one.get("name")) for one in there or () if operations.in_the_way(one, index)]
    if not names:
        return ": see `streamqueue init`"
    return f": {' and '.join(names)} differs from it; drop that, and run `streamqueue init`"


def conflict(
    index: Mapping[str, Any],
    error: OperationFailure,
    there: Sequence[Mapping[str, Any]] | None,
) -> str:
    """Say of an index why it cannot be made, and what to do, where somebody asked for it."""
    reason = operations.INDEX_ERRORS[error.code or 0]
    return f"the index {index['name']} cannot be made ({reason}){_way_out(index, error, there)}"


def check_kind(
    name: str,
    found: Sequence[Mapping[str, Any]] | None,
    indexes: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Raise if a collection is of a kind that cannot hold jobs, as far as it may be known.

    Args:
        name: the collection's.
        found: it, as the server describes it; empty if there is none yet, None if the user may not
            look.
        indexes: its indexes; None likewise.

    Raises:
        ConfigurationError: it is.
    """
    described = found[0] if found else {}
    options = described.get("options", {})
    kind = described.get("type", "collection")
    collation = options.get("collation")
    for index in indexes or ():
        if index.get("name") == "_id_":
            collation = index.get("collation", collation)
    why = None
    if kind == "view" or "viewOn" in options:
        why = "is a view, and nothing can be put there"
    elif kind == "timeseries":
        why = "is a time-series collection, whose documents cannot be claimed"
    elif options.get("capped"):
        why = "is a capped collection, which drops jobs that nobody has run"
    elif collation:
        why = (
            f"has a default collation (locale {collation.get('locale')}), by which names that "
            "differ may be equal"
        )
    if why is not None:
        raise ConfigurationError(f"the collection {name} {why}: give the queue an ordinary one")
