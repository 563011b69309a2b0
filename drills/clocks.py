"""Processes whose clocks are wrong: what is stored and compared is the server's time."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from drills.drill import Stage, drill, pause

LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1"
OFFSETS = ("+1h", "-1h", "+0h")


def find_library() -> Path | None:
    """Return libfaketime, or None where the package ``faketime`` is not installed."""
    return next(iter(Path("/").glob(LIBRARY.lstrip("/"))), None)


@drill("wrong-clocks", processes_an_hour_off=(4, 40, 400), kills=(4, 40, 400))
def wrong_clocks(stage: Stage) -> None:
    """producers and consumers with clocks an hour ahead and behind, delayed jobs, and kill -9"""
    library = find_library()
    assert library is not None, "libfaketime is needed: apt-get install faketime"
    with ExitStack() as stack:
        nurseries = {
            offset: stack.enter_context(
                stage.environment(
                    LD_PRELOAD=str(library),
                    FAKETIME=offset,
                    FAKETIME_DONT_FAKE_MONOTONIC="1",  # the histories share that clock
                )
            )
            for offset in OFFSETS
        }
        while stage.short_of("kills") or stage.short_of("processes an hour off"):
            for offset, nursery in nurseries.items():
                stage.producer(nursery, jobs=10, delay=stage.random.choice([None, 0.3, 1.0]))
                stage.consumer(nursery)
                stage.hits["processes an hour off"] += 2 * (offset != "+0h")
            pause(stage.random.uniform(0.2, 0.5))
            for child in stage.random.sample([c for c in stage.consumers if c.alive], 2):
                child.kill()
                stage.hits["kills"] += 1
        stage.wait_for(lambda: stage.live() == 0, "the end", 60)
        stage.stop_all()


DRILLS = [wrong_clocks]
