"""Random documents, inserted by who may do nothing else, beside jobs that must not notice."""

from __future__ import annotations

import os

from drills.drill import Stage, drill
from tests.fuzzed import fuzz, new_database

SEED = "STREAMQUEUE_FUZZ_SEED"
"""An environment variable with the seed of a run that failed: it alone is done again."""
ODD, GOOD = 1500, 300


@drill("random-documents", seeds=(1, 8, 200))
def random_documents(stage: Stage) -> None:
    """random BSON in every field and state, beside good jobs, with every program of ours running"""
    given = os.environ.get(SEED)
    seeds = [int(given)] if given else [stage.random.getrandbits(32) for _ in range(10_000)]
    for seed in seeds:
        if not stage.short_of("seeds"):
            break
        folder = stage.directory / f"seed-{seed}"
        folder.mkdir()
        try:
            fuzz(new_database(stage.uri), folder, seed, odd=ODD, good=GOOD)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nagain: {SEED}={seed} make faults DRILLS=random-documents"
            ) from None
        stage.hits["seeds"] += 1
    if given:
        stage.hits["seeds"] = stage.wanted("seeds")


DRILLS = [random_documents]
