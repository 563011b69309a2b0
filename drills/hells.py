"""Handlers that do their worst to their worker, beside jobs that must not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drills.drill import Stage, drill

CROWD = 2
SLOTS = 8
LATEST = 1.0
"""Seconds from the end of its put to the start of an innocent job, at the most."""


@drill("handlers-from-hell", hells=(40, 1500, 15_000), innocents=(40, 1500, 15_000))
def handlers_from_hell(stage: Stage) -> None:
    """handlers leave scopes open, cancel tasks, raise what cannot be shown, beside innocent jobs"""
    stage.keep_crowd(CROWD, concurrency=SLOTS)
    for child in stage.consumers:
        stage.wait_for(lambda child=child: stage.is_ready(child), "a consumer")
    wanted = stage.wanted("hells")
    each: dict[str, Any] = {"max_attempts": 5, "tasks": 1, "pause": 0.01, "seconds": 0.002}
    producers = [
        stage.producer(jobs=wanted, deeds={"hell": 1}, **each),
        stage.producer(jobs=wanted, deeds={"innocent": 1}, **each),
    ]

    def over() -> bool:
        return not any(child.alive for child in producers) and stage.live() == 0

    stage.wait_for(over, "an end of all jobs", 30 + 0.1 * wanted)
    path = stage.history_of(producers[1])
    assert path is not None
    waits = waits_of(path, [found for c in stage.consumers if (found := stage.history_of(c))])
    stage.hits["hells"] = sum(stage.said(child, "hell") for child in stage.consumers)
    stage.hits["innocents"] = len(waits)
    stage.note(f"innocent jobs waited {1000 * max(waits):.0f} ms at the most")
    late = [wait for wait in waits if wait > LATEST]
    assert not late, f"{len(late)} innocent jobs were late, by {max(late):.1f} s"


def waits_of(producer: Path, consumers: list[Path]) -> list[float]:
    """Return how long the jobs of a producer waited for their first start."""
    lines = [json.loads(line) for line in producer.read_text().splitlines()]
    jobs = {line["call"]: line["job"] for line in lines if "call" in line and "job" in line}
    put = {
        jobs[line["call"]]: line["at"]
        for line in lines
        if line["is"] == "acknowledged" and line.get("call") in jobs
    }
    started: dict[str, float] = {}
    for path in consumers:
        for line in map(json.loads, path.read_text().splitlines()):
            if line["what"] == "attempt" and line["is"] == "started" and line["job"] in put:
                at = started.setdefault(line["job"], line["at"])
                started[line["job"]] = min(at, line["at"])
    return [at - put[job] for job, at in started.items()]


DRILLS = [handlers_from_hell]
