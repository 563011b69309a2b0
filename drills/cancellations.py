"""Calls that are cancelled wherever they wait leave nothing behind."""

from __future__ import annotations

import signal

from drills.drill import Stage, drill
from drills.programs.canceller import APP

PROGRAM = "drills.programs.canceller"
PER_PROCESS = 500
SETTLE_SECONDS = 5.0


@drill("cancelled-calls", cancelled=(80, 2000, 20_000))
def cancelled_calls(stage: Stage) -> None:
    """calls of the queue cancelled at every await, by anyio and by asyncio"""
    _cancel(stage, "calls")


@drill("cancelled-workers", cancelled=(20, 300, 3000))
def cancelled_workers(stage: Stage) -> None:
    """workers cancelled, instead of stopped, a few milliseconds after their start"""
    _cancel(stage, "workers")


def _cancel(stage: Stage, what: str) -> None:
    stage.jobs.count_documents({})  # our own connections are open
    before = left_over(stage)
    while stage.short_of("cancelled"):
        missing = stage.wanted("cancelled") - stage.hits["cancelled"]
        child = stage.other(PROGRAM, rounds=min(PER_PROCESS, missing), what=what)
        stage.wait_for(lambda c=child: stage.said(c, "closed") or not c.alive, f"the {what}", 120)
        stage.hits["cancelled"] += stage.said(child, "cancelled a call")
        if not child.alive:
            return
        running = stage.jobs.count_documents({"state": "running"})
        assert not running, f"{running} jobs are still held after all {what} were cancelled"
        stage.wait_for(
            lambda: left_over(stage) <= before,
            f"the end of cursors and connections ({before} before, {left_over(stage)} after)",
            SETTLE_SECONDS,
        )
        child.send(signal.SIGTERM)
        child.wait()


def left_over(stage: Stage) -> tuple[int, int]:
    """Return how many cursors the server has open, and how many connections to such programs.

    Only to those: our own client opens one more when it likes.
    """
    admin = stage.client.admin
    cursors = admin.command("serverStatus")["metrics"]["cursor"]["open"]["total"]
    theirs = {"appName": {"$regex": f"^({APP}|streamqueue-)"}}
    look = {"$currentOp": {"allUsers": True, "idleConnections": True}}
    return cursors, len(list(admin.aggregate([look, {"$match": theirs}])))


DRILLS = [cancelled_calls, cancelled_workers]
