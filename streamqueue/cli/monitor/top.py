"""``streamqueue top``: the queue's pulse on a terminal, in 80 columns, drawn anew at each interval.

With the ``rich`` extra in colours; without it, or where the output is no terminal, in plain lines.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio

from ... import plain
from ...errors import only_one
from .. import tables
from .pulse import PulseTaker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymongo.asynchronous.collection import AsyncCollection

    from .pulse import Pulse

CLEAR = "\x1b[H\x1b[J"
LATE, VERY_LATE = 5.0, 60.0
"""Seconds a job may wait until it is shown in yellow, and in red."""


async def run(
    jobs: AsyncCollection[Any], *, interval: float = 1.0, once: bool = False, as_json: bool = False
) -> None:
    """Show the pulse until SIGTERM or SIGINT, or the key q at a terminal.

    Args:
        jobs: the collection.
        interval: seconds between two looks.
        once: stop after the first one that shows rates, which is the second look.
        as_json: print a line of JSON for each, for scripts.

    Raises:
        ReplicaSetRequired: a standalone server.
        PyMongoError: the first look failed.
    """
    taker = PulseTaker(jobs)
    title = f"{jobs.database.name}.{jobs.name}"
    await taker.take()  # raises if there is no server
    # That the stream broke stands on the screen; a line of the log would stand across it.
    lines = plain.logger("streamqueue.watcher")
    before, lines.disabled = lines.disabled, True
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_on_signal, tasks.cancel_scope)
            await tasks.start(taker.read)
            await taker.take()  # what there was when the stream was opened
            with _screen(title, as_json=as_json, once=once) as show, _keys() as keys:
                if keys is not None:
                    tasks.start_soon(_end_on_q, keys, tasks.cancel_scope)
                while True:
                    await anyio.sleep(interval)
                    show(await taker.take())
                    if once:
                        break
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise only_one(group) from None
    finally:
        lines.disabled = before


async def _end_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


@contextmanager
def _keys() -> Iterator[int | None]:
    """Return where keys come from one by one and are not shown; None without a terminal."""
    try:
        import termios
        import tty

        keys = sys.stdin.fileno()
        # (Who is in the background must not touch the terminal, and would be stopped.)
        ours = os.isatty(keys) and sys.stdout.isatty() and os.tcgetpgrp(keys) == os.getpgrp()
        before = termios.tcgetattr(keys) if ours else None
    except (ImportError, OSError, ValueError, AttributeError):  # closed, or something else
        before = None
    if before is None:
        yield None
        return
    tty.setcbreak(keys, termios.TCSANOW)
    try:
        yield keys
    finally:
        termios.tcsetattr(keys, termios.TCSANOW, before)


async def _end_on_q(keys: int, scope: anyio.CancelScope) -> None:
    while True:
        await anyio.wait_readable(keys)
        try:
            typed = os.read(keys, 100)
        except OSError:  # the terminal is gone, of which a signal tells
            return
        if not typed:
            return
        if b"q" in typed.lower():
            scope.cancel()
            return


@contextmanager
def _screen(title: str, *, as_json: bool, once: bool) -> Iterator[Callable[[Pulse], None]]:
    """Return what shows a pulse, on the best that is there."""
    if as_json:
        yield lambda pulse: print(plain.as_json(asdict(pulse)), flush=True)
        return
    redraw = sys.stdout.isatty() and not once
    if redraw:
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            pass
        else:
            console = Console(highlight=False)
            with Live(console=console, screen=True, auto_refresh=False) as live:
                yield lambda pulse: live.update(_in_colours(title, pulse), refresh=True)
            return
    yield lambda pulse: print(
        (CLEAR if redraw else "") + "\n".join(tables.pulse(title, pulse)),
        end="\n" if redraw or once else "\n\n",
        flush=True,
    )


def _in_colours(title: str, pulse: Pulse) -> Any:
    """Return the same lines with what needs a look in colour."""
    from rich.text import Text

    drawn = Text(no_wrap=True, overflow="ellipsis")
    for line in tables.pulse(title, pulse):
        style = ""
        if line.isupper() or line.startswith(title):
            style = "bold"
        drawn.append(line + "\n", style)
    if pulse.stream != "open":
        drawn.highlight_words([f"stream {pulse.stream}"], "bold red")
    for queue in pulse.census.queues.values():
        if queue.oldest_ready_age >= LATE:
            colour = "red" if queue.oldest_ready_age >= VERY_LATE else "yellow"
            name = re.escape(tables.name_cell(queue.name))  # anybody may have chosen it
            drawn.highlight_regex(rf"(?m)^{name} .*$", colour)
    drawn.highlight_regex(r"(?m)^PAUSED( SCHEDULES)?:.*$", "yellow")
    drawn.highlight_regex(r"(?m)^LIMIT: .*[( ]saturated\)$", "yellow")
    drawn.highlight_regex(r"(?m)^(NOBODY WORKS ON|OTHERS HAVE ALL SLOTS OF):.*$", "red")
    drawn.highlight_regex(r"(?m)^(LATE SCHEDULES|HELD (GROUPS|DEPENDENTS)):.*$", "red")
    drawn.highlight_regex(r"(?m) dead:.*$", "red")
    return drawn
