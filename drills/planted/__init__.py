"""The faults that are planted in a copy of the code, each with the test that must notice it."""

from __future__ import annotations

from drills.planted import (
    dependencies,
    documents,
    handlers,
    held_keys,
    keeping,
    keys,
    limits,
    looking,
    migrating,
    order,
    pausing,
    rates,
    refused,
    schedules,
    slots,
    steering,
    streams,
    surroundings,
    topics,
    watching,
    workers,
    writes,
)
from drills.planted.fault import PlantedFault

FAULTS: tuple[PlantedFault, ...] = (
    *documents.FAULTS,
    *writes.FAULTS,
    *streams.FAULTS,
    *workers.FAULTS,
    *refused.FAULTS,
    *watching.FAULTS,
    *surroundings.FAULTS,
    *handlers.FAULTS,
    *limits.FAULTS,
    *order.FAULTS,
    *steering.FAULTS,
    *keeping.FAULTS,
    *held_keys.FAULTS,
    *keys.FAULTS,
    *pausing.FAULTS,
    *rates.FAULTS,
    *looking.FAULTS,
    *topics.FAULTS,
    *schedules.FAULTS,
    *dependencies.FAULTS,
    *slots.FAULTS,
    *migrating.FAULTS,
)
