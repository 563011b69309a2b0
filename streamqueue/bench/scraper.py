"""What a Prometheus does to one consumer of the benchmark: it asks for the metrics, ten times a
second, while it is told to.

``python -m streamqueue.bench.scraper SETTINGS``. One report begins it, the next one ends it.
"""

from __future__ import annotations

import json
import sys
import threading
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from ..clock import monotonic
from .channel import obey, say, wait_for_go
from .process import pause

if TYPE_CHECKING:
    from collections.abc import Mapping

PER_SECOND = 10
TIMEOUT_SECONDS = 10.0
# What Prometheus says, which decides what is rendered.
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0,"
    "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}


class Scraper:
    """Scrapes one address.

    Args:
        settings: the ``address`` (``host:port``) that serves ``/metrics``.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._address = settings["address"]
        self._wanted = threading.Event()
        self._scrapes = 0

    def turn(self) -> dict[str, Any]:
        """Begin, or end; return how many scrapes were answered so far."""
        if self._wanted.is_set():
            self._wanted.clear()
        else:
            self._wanted.set()
        return {"scrapes": self._scrapes}

    def run(self) -> None:
        """Scrape for ever, when wanted."""
        say({"what": "ready"})
        due = monotonic()
        while True:
            self._wanted.wait()
            pause(max(0.0, due - monotonic()))
            due = max(due + 1 / PER_SECOND, monotonic())
            self._scrape()

    def _scrape(self) -> None:
        connection = HTTPConnection(self._address, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/metrics", headers=HEADERS)
            connection.getresponse().read()
            self._scrapes += 1
        finally:
            connection.close()


def main() -> int:
    """Scrape until SIGTERM."""
    scraper = Scraper(json.loads(sys.argv[1]))
    wait_for_go()
    obey(scraper.turn)
    scraper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
