"""Naming what blocks the event loop: ``time.sleep(5)`` in an ``async def`` stops everybody else.

Nothing in the event loop can say so while it lasts, so a thread looks twice a second whether the
loop still turns, and if not, which task has its turn and where in the code that is.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import plain
from ...clock import monotonic
from ...errors import type_name
from .tasks import Task, event_loop, running_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from .attempt import Attempt

logger = plain.logger("streamqueue.execution")

TICK = 0.5
"""Seconds between two beats of the event loop, and between two looks at them."""
LATE = 0.5
"""How late a beat is when the loop counts as blocked."""
FOR_GOOD = 10.0
"""A block is logged when it is over, with its length; one that lasts this long at once."""
AGAIN = 60.0
"""Seconds until the same task is named again."""
MOST_FRAMES = 5
MOST_NAMES = 1000
OWN = {str(Path(__file__).with_name(f"{name}.py")) for name in ("executor", "batches", "tasks")}


class Seen(NamedTuple):
    """A task that blocks the loop, and where; with nothing that would keep its job alive."""

    task: str
    place: str
    of_job: dict[str, object]

    def facts(self) -> dict[str, object]:
        """Return what a line of the log says of the job."""
        return self.of_job


class BlockedLoop:
    """Watches the event loop it is entered in, while it is.

    Args:
        attempt_of: returns the attempt that runs in a task, or None.
    """

    def __init__(self, attempt_of: Callable[[Task[Any]], Attempt | None]) -> None:
        self._attempt_of = attempt_of
        self._stopped = threading.Event()
        self._due = 0.0
        self._suspect: int | None = None
        self._seen: Seen | None = None
        self._named: dict[str, float] = {}

    def __enter__(self) -> None:
        self.beat()
        loop, ident = event_loop(), threading.get_ident()
        threading.Thread(
            target=self._watch, args=(loop, ident), name="streamqueue watch", daemon=True
        ).start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def beat(self) -> None:
        """Note that the event loop turns; name what kept it from that."""
        now = monotonic()
        seen, self._seen, self._suspect = self._seen, None, None
        late = now - self._due
        self._due = now + TICK
        if seen is not None:
            self._name(seen, late)

    def _watch(self, loop: Any, ident: int) -> None:
        while not self._stopped.wait(TICK):
            late = monotonic() - self._due
            if late < LATE:
                continue
            if self._seen is None:
                self._seen = self._look(loop, ident)
            elif late > FOR_GOOD:
                self._name(self._seen, late)

    def _look(self, loop: Any, ident: int) -> Seen | None:
        """Return who blocks the loop. The same task must be met twice: one alone may be there by
        chance, when the whole process was stopped and goes on."""
        task = running_task(loop)
        if task is None:
            return None
        if self._suspect != id(task):
            self._suspect = id(task)
            return None
        frame = sys._current_frames().get(ident)
        attempt = self._attempt_of(task)
        if attempt is None:
            return Seen(_name_of(task), _place(frame), {})
        return Seen(attempt.registered.handler.task, _place(frame), attempt.facts())

    def _name(self, seen: Seen, late: float) -> None:
        now = monotonic()
        if now < self._named.get(seen.task, now):
            return
        if len(self._named) >= MOST_NAMES:
            self._named.clear()
        self._named[seen.task] = now + AGAIN
        logger.warning(
            "%s has blocked the event loop for %.1f s, and with it all other jobs: %s",
            seen.task,
            late,
            seen.place,
            extra={
                "event": "loop_blocked",
                **seen.facts(),
                "task": seen.task,
                "place": seen.place,
                "seconds": round(late, 3),
            },
        )


def _name_of(task: Task[Any]) -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", None) or type_name(coroutine))


def _place(frame: FrameType | None) -> str:
    """Return where the code is: the innermost call, and who called it, up to the handler."""
    places: list[str] = []
    while frame is not None and frame.f_code.co_filename not in OWN:
        code = frame.f_code
        if "asyncio" in Path(code.co_filename).parts:
            break
        places.append(f"{Path(code.co_filename).name}, line {frame.f_lineno}, in {code.co_name}")
        frame = frame.f_back
    shown = places[:MOST_FRAMES]
    if places[MOST_FRAMES:]:
        shown[-1] = places[-1]  # the handler
    return "; called by ".join(shown)
