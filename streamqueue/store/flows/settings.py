"""The settings of queues: read for whoever claims, and changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from ...errors import ConfigurationError
from ...failures import failure_name
from ...names import is_name
from ...protocol import operations
from ...protocol.settings import BELL, QueueSettings
from ..collection import UNAUTHORIZED
from ..lines import log_room_unsaid, log_settings_refused
from .setting_up import require_index
from .steps import ReadSettings, Shielded, Upsert

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ...protocol.limits import Rules
    from ..state import StoreState
    from .steps import Flow


def settings_of(
    store: StoreState,
    queues: Sequence[str],
    schedules: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Flow[dict[str, QueueSettings] | None]:
    """Return the settings of those of the queues that have any; None if the user may not know.

    Args:
        schedules: is given those of the collection, read in the same round trip.

    Such a user is told so, once, and goes on: to stop would be the end of all work wherever
    consumers were upgraded before their roles.
    """
    try:
        found = yield ReadSettings(
            operations.settings_of(queues)
            if schedules is None
            else operations.settings_and_schedules(queues)
        )
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        if not store.settings_refused:
            store.settings_refused = True
            log_settings_refused(f"{store.jobs.name}.settings")
        return None
    if schedules is not None:
        schedules([document for document in found if operations.is_schedule(document)])
    return {document["_id"]: QueueSettings.from_document(document) for document in found}


def is_paused(store: StoreState, queue: str) -> Flow[bool]:
    """Return whether a queue is paused.

    Raises:
        OperationFailure: the user may not know, or other trouble of the server.
    """
    found = yield ReadSettings(operations.settings_of([queue]))
    return any(QueueSettings.from_document(document).paused for document in found)


def queues_with_settings(_store: StoreState, limit: int) -> Flow[dict[str, QueueSettings] | None]:
    """Return the settings of the queues that have any, of no more than so many; None if the user
    may not know."""
    try:
        found = yield ReadSettings(operations.queues_with_settings(limit))
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return None
    return {
        document["_id"]: QueueSettings.from_document(document)
        for document in found
        if is_name(document["_id"])
    }


def read_settings(_store: StoreState, command: operations.Find) -> Flow[list[dict[str, Any]]]:
    """Return what is stored among the settings, by majority."""
    found: list[dict[str, Any]] = yield ReadSettings(command)
    return found


def change_settings(store: StoreState, command: operations.Update) -> Flow[None]:
    """Change the settings of a queue, and ring the bell.

    Raises:
        ConfigurationError: as :func:`ring`.
    """
    yield Upsert(command, settings=True)
    yield from ring(store)


def declare_rules(store: StoreState, declared: Mapping[str, Rules], use: str) -> Flow[None]:
    """Store the rules that a worker declares for its queues; the bell is for the caller to ring.

    Args:
        use: what declares them, for the error.

    Raises:
        ConfigurationError: an index that they need is not there; nothing was stored.
    """
    features = {feature for rules in declared.values() for feature in rules.features}
    for feature in sorted(features):
        yield from require_index(store, feature, use, sure=True)
    for queue, rules in declared.items():
        yield Upsert(operations.declare_rules(queue, rules.declared()), settings=True)


def ring(store: StoreState) -> Flow[None]:
    """Ring the bell: settings were changed.

    Raises:
        ConfigurationError: nobody can be told, because the collection refuses the bell, as under a
            validator of an earlier version.
    """
    try:
        try:
            yield Upsert(operations.ring(), settings=False)
        except DuplicateKeyError:  # of two first rings at the same moment one may fail
            yield Upsert(operations.ring(), settings=False)
    except OperationFailure as error:
        if not operations.is_refusal(error):
            raise
        raise ConfigurationError(
            f"the settings are changed, but {store.jobs.full_name} refuses the document {BELL!r}, "
            f"by which consumers learn of that ({failure_name(error)}): install the validator of "
            "this version with `streamqueue init --validator`, and try again"
        ) from error


def say_room(store: StoreState) -> Flow[None]:
    """Tell whoever waits for it that a job of a queue with rules has ended, and others may start.

    Never raises: it is a hint, and whoever is held back looks again after a while.
    """
    try:
        yield Shielded(ring(store))
    except (PyMongoError, ConfigurationError) as error:
        log_room_unsaid(error)


def say_unsaid_room(store: StoreState) -> Flow[None]:
    """Do so if a job has ended here and nobody was told. Never raises."""
    if store.room_unsaid:
        store.room_unsaid = False
        yield from say_room(store)


def say_room_in(store: StoreState, queue: str) -> Flow[None]:
    """Do so if it matters in a queue which jobs there are, or may. Never raises."""
    try:
        found = yield ReadSettings(operations.settings_of([queue]))
    except PyMongoError:
        pass  # as one who may not read them, and may ring
    else:
        if not any(QueueSettings.from_document(document).rules.by_running for document in found):
            return
    yield from say_room(store)
