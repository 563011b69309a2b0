"""The deed of several steps, whose process kills itself at their boundaries.

Every second step is part of a transaction that leaves an effect. What a step returns is made up
anew each time that it runs, so that a result tells which run it is of.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
from typing import TYPE_CHECKING, Any

import anyio
from pymongo.errors import PyMongoError

from drills.programs.effects import ABORT_SECONDS, MAJORITY, answered
from drills.transactions import STEP_LEDGER
from streamqueue import AsyncJob
from streamqueue.clock import monotonic

if TYPE_CHECKING:
    from drills.programs.consumer import Handler

MORTAL_ATTEMPTS = 3
"""Attempts of a job in which its process may kill itself: then it is done."""

DEATHS = ("dies unrun", "dies unstored", "dies uncommitted", "dies stored")
"""Before the function of a step is run; at its end; with the result in a transaction that is not
committed; and when it is stored."""


RARE = ("dies unstored", "dies uncommitted")
"""Those that come up less often: where nothing is run there is nothing to be stored."""


class Stepping:
    """One attempt at such a job."""

    def __init__(self, handler: Handler, job: AsyncJob, seconds: float) -> None:
        self._handler = handler
        self._history = handler._history
        self._job: Any = job  # or a blocking one
        self._seconds = seconds
        self._since = monotonic()

    async def run(self) -> None:
        """Do all steps, and complete the job."""
        for number in range(int(self._job.data["steps"])):
            name = f"step-{number}"
            self._may_die("dies unrun")
            value = await (self._step_in(name) if number % 2 else self._step(name))
            self._note("stored", name, value=value, in_transaction=bool(number % 2))
            self._may_die("dies stored")
        await self._handler._complete(self._job)

    async def _step(self, name: str) -> Any:
        return await answered(self._job.step(name, self._work, name))

    async def _step_in(self, name: str) -> Any:
        assert self._handler._effects is not None
        database = self._handler._effects.database
        ledger = database[STEP_LEDGER]
        entry = {"job": str(self._job.id), "name": name}

        def write(session: Any) -> str:
            ledger.insert_one(entry, session=session)
            return self._work(name)

        async def write_async(session: Any) -> str:
            await ledger.insert_one(entry, session=session)
            return self._work(name)

        function: Any = write_async if isinstance(self._job, AsyncJob) else write
        session = database.client.start_session()
        try:
            await answered(session.start_transaction(write_concern=MAJORITY))
            value = await answered(self._job.step(name, function, session, session=session))
            self._may_die("dies uncommitted")
            await answered(session.commit_transaction())
        finally:
            with anyio.move_on_after(ABORT_SECONDS, shield=True):
                try:
                    await answered(session.end_session())
                except PyMongoError:
                    pass  # the server ends it by itself
        return value

    def _work(self, name: str) -> str:
        self._note("runs", name)
        self._may_die("dies unstored")
        return secrets.token_hex(4)

    def _note(self, state: str, name: str, **more: Any) -> None:
        of = self._handler.attempt(self._job)
        self._history.note("step", state=state, name=name, since=self._since, **of, **more)

    def _may_die(self, where: str) -> None:
        deaths = float(self._job.data.get("deaths", 0)) * (2.0 if where in RARE else 1.0)
        if self._job.attempts <= MORTAL_ATTEMPTS and random.random() < deaths:
            self._history.note("step", state=where, **self._handler.attempt(self._job))
            os.kill(os.getpid(), signal.SIGKILL)


async def steps(handler: Handler, job: AsyncJob, seconds: float) -> None:
    """Do the steps of a job."""
    await Stepping(handler, job, seconds).run()
