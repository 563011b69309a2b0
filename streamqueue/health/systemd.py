"""What a service manager is told, in systemd's notification protocol.

A unit with ``Type=notify`` gives its main process the address of a datagram socket, and with
``WatchdogSec=`` the longest silence it puts up with. All that is said there follows from the
:class:`~streamqueue.health.health.Health` of the process:

- ``READY=1`` when there is, for the first time, no reason not to be ready;
- ``STATUS=``, one line: what the process does, or why it is not ready;
- ``WATCHDOG=1`` from the beats of the event loop, and from nothing else: a loop that is blocked
  sends none and is restarted, an outage of MongoDB changes nothing;
- ``STOPPING=1`` when it drains, and ``EXTEND_TIMEOUT_USEC=`` while the loop turns: a drain may take
  longer than ``TimeoutStopSec=``, and one that is stuck may not.
"""

from __future__ import annotations

import math
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from .health import Health

from .. import plain

logger = plain.logger("streamqueue.notify")

EXTENSION = 30.0
"""Seconds that a drain asks for at a time."""
MICROSECONDS = 1_000_000


class Notifier:
    """Tells the service manager what becomes of a process; without one, it does nothing.

    ::

        health.not_ready("start", "nothing has been collected yet")
        Notifier.from_environment().follow(health, "Exporting the state of the queues")

    It sends when the reasons of the health change and when ``health.beat()`` is called, which must
    be every second or so. Never raises, and never blocks the event loop: what the socket does not
    take is sent again at the next beat.

    Args:
        address: of a Unix datagram socket, ``@`` first for an abstract one. None: say nothing.
        watchdog: the longest silence between two signs of life, in seconds, at least 2. None: send
            no signs of life.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        address: str | None,
        watchdog: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.watchdog = watchdog
        self._address = address
        self._clock = clock
        self._ready = False
        self._status = ""
        self._next_ping = self._next_extension = -math.inf
        self._failed = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` out of the environment.

        Out, because no program that a handler starts may speak for the service. Without them, or
        with a watchdog that is another process's, the notifier says less, or nothing.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        watched = environment.pop("WATCHDOG_PID", "") or str(os.getpid())
        watchdog = None
        if address and watched == str(os.getpid()) and microseconds.isdecimal():
            watchdog = int(microseconds) / MICROSECONDS or None
        return cls(address or None, watchdog)

    def follow(self, health: Health, doing: str) -> None:
        """Tell of this health from now on. Call it in the event loop or before that runs.

        Args:
            health: give it a reason not to be ready first: without one, the service is ready now.
            doing: what the process does while it is ready, in one line.
        """
        if self._address is None:
            return

        def look() -> None:
            self._look(health, doing)

        health.observe(look)
        look()

    def _look(self, health: Health, doing: str) -> None:
        """Say what has not been said yet."""
        now = self._clock()
        reasons = health.reasons()
        draining = "draining" in reasons
        lines = []
        extends = draining and now >= self._next_extension
        if extends:
            lines += ["STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(EXTENSION * MICROSECONDS)}"]
        if not reasons and not self._ready:
            lines.append("READY=1")
        status = _status(reasons, doing, draining=draining)
        if status != self._status:
            lines.append(f"STATUS={status}")
        pings = self.watchdog is not None and now >= self._next_ping
        if pings:
            lines.append("WATCHDOG=1")
        if not lines or not self._send("\n".join(lines)):
            return
        self._ready = self._ready or not reasons
        self._status = status
        if extends:
            self._next_extension = now + EXTENSION / 3
        if pings and self.watchdog is not None:
            # At the latest at half of the time, as the protocol asks: a beat may be late.
            self._next_ping = now + self.watchdog / 3

    def _send(self, message: str) -> bool:
        address = self._address or ""
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.sendto(message.encode(errors="replace"), address)
        except OSError as error:
            if not self._failed:
                logger.warning(
                    "The service manager cannot be told anything (%s)",
                    error,
                    extra={"event": "manager_unreachable", "error": type(error).__name__},
                )
            self._failed = True
            return False
        self._failed = False
        return True


def _status(reasons: dict[str, str], doing: str, *, draining: bool) -> str:
    text = doing
    if reasons:
        text = f"{'Stopping' if draining else 'Not ready'}: {'; '.join(reasons.values())}"
    # A line break would begin another assignment, and `systemctl status` shows it on terminals.
    return plain.printable(" ".join(text.split()))
