"""The options that several commands have, and what the values of all must be."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta

import click
from click import BadParameter

from ..store.collection import DEFAULT_COLLECTION
from .command import option, setting

LAST_PORT = 65535
LARGEST = 2**31 - 1
"""Of what is counted: the server takes no more for a limit, and nobody means more."""
MOST_PROCESSES = 1000
DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_AGO = 36_500
"""Days."""


# what the values must be


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # also of more digits than Python takes
        raise BadParameter(f"must be a whole number, not {quoted(text)}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadParameter(f"must be a number, not {quoted(text)}") from None


def duration(text: str) -> float:
    """Return seconds: a number of them, or such as 90s, 15m, 2h or 3d."""
    if said := re.fullmatch(DURATION, text):
        return float(said[1]) * UNITS[said[2]]
    try:
        return float(text)
    except ValueError:
        raise BadParameter(
            f"must be a number of seconds, or such as 90s, 15m, 2h or 3d, not {quoted(text)}"
        ) from None


def quoted(text: str) -> str:
    """Return what was typed, in quotes, and no more of it than a line holds."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def whole(text: str) -> int:
    value = integer(text)
    if value < 0:
        raise BadParameter(f"must not be negative, as {text[:40]} is")
    if value > LARGEST:
        raise BadParameter(f"must be at most {LARGEST:,}, not {quoted(text)}")
    return value


def at_least_one(text: str) -> int:
    value = whole(text)
    if value == 0:
        raise BadParameter("must be at least 1")
    return value


def processes(text: str) -> int:
    value = at_least_one(text)
    if value > MOST_PROCESSES:
        raise BadParameter(f"must be at most {MOST_PROCESSES:,}, not {value:,}")
    return value


def names(text: str) -> list[str]:
    """Return the names of a list with commas, each once."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise BadParameter(f"must be names with commas between them, not {quoted(text)}")
    return list(dict.fromkeys(found))


def moment(text: str) -> timedelta | datetime:
    """Return how long ago (90s, 15m, 2h, 3d), or when: a date, or a date and time, in UTC unless
    it says otherwise."""
    if ago := re.fullmatch(DURATION, text):
        seconds = float(ago[1]) * UNITS[ago[2]]
        if seconds <= LONGEST_AGO * UNITS["d"]:
            return timedelta(seconds=seconds)
        raise BadParameter(f"must be at most {LONGEST_AGO:,} days ago, not {quoted(text)}")
    found = _date(text)
    if found is None:
        raise BadParameter(
            "must be how long ago, such as 90s, 15m, 2h or 3d, or a time such as "
            f"2026-03-01T14:30:00Z, not {quoted(text)}"
        )
    return found


def instant(text: str) -> datetime:
    """Return a time: a date, or a date and time, in UTC unless it says otherwise."""
    found = _date(text)
    if found is None:
        raise BadParameter(f"must be a time such as 2026-03-01T14:30:00Z, not {quoted(text)}")
    return found


def time_limit(text: str) -> float | datetime:
    """Return how many seconds, or until when."""
    found = _date(text)
    try:
        return duration(text) if found is None or text.isdigit() else found
    except BadParameter:
        raise BadParameter(
            "must be a number of seconds, such as 90 or 15m, or a time such as "
            f"2026-03-01T14:30:00Z, not {quoted(text)}"
        ) from None


def _date(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def port(text: str) -> int:
    value = integer(text)
    if not 0 <= value <= LAST_PORT:
        raise BadParameter(f"must be 0 to {LAST_PORT}, not {text[:40]}")
    return value


def seconds(text: str) -> float:
    value = number(text)
    if not 0.1 <= value <= 3600:
        raise BadParameter(f"must be 0.1 to 3600 seconds, not {text[:40]}")
    return value


# the options


def uri_options(text: str) -> tuple[click.Option, click.Option]:
    """Return what ``begin`` makes the URI of; the variables are looked at there."""
    return (
        option("--uri", text, metavar="URI"),
        option(
            "--uri-file",
            "a file that holds the URI: a password in --uri is shown to everybody by ps",
            metavar="PATH",
        ),
    )


class _NoneIsUnset(click.Option):
    """One whose variable is a value when it is empty too, to be refused where it is used."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        return os.environ.get(f"{ctx.auto_envvar_prefix}_{str(self.name).upper()}")


def metrics_options(port_by_default: int | None = None) -> tuple[click.Option, ...]:
    """Return where to serve the metrics: on that port, or nowhere, unless the user says."""
    default = "not served" if port_by_default is None else str(port_by_default)
    return (
        setting(
            "--metrics-port",
            "serve /metrics, /healthz and /readyz, for Prometheus and probes, here; "
            f"default: {default}",
            type=port,
            default=port_by_default,
        ),
        setting(
            "--metrics-host",
            "on this address; default 127.0.0.1",
            metavar="ADDRESS",
            default="127.0.0.1",
        ),
        # A certificate that got lost on the way must not open the port to everybody.
        _NoneIsUnset(
            ["--metrics-cert"],
            metavar="FILE",
            help="over TLS with this certificate, a PEM file; default: plain HTTP",
        ),
        _NoneIsUnset(
            ["--metrics-key"],
            metavar="FILE",
            help="its private key, a PEM file without a passphrase",
        ),
        _NoneIsUnset(
            ["--metrics-client-ca"],
            metavar="FILE",
            help="only to clients with a certificate of an authority in this file",
        ),
    )


WHERE = (
    *uri_options("mongodb://host/database?replicaSet=name, with the database in its path"),
    setting(
        "--collection",
        f"default {DEFAULT_COLLECTION}",
        metavar="NAME",
        default=DEFAULT_COLLECTION,
    ),
)
QUEUE = setting("--queue", "default: default", metavar="NAME", default="default")
JSON = setting("--json", "print JSON, for scripts", is_flag=True)
FRESH = option("--fresh", "without their steps: all is run again", is_flag=True)
LOG = (
    setting(
        "--log-level",
        "default INFO",
        type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
        default="INFO",
    ),
    setting(
        "--log-format",
        "json writes one object per line, for programs; default text",
        type=click.Choice(["text", "json"], case_sensitive=False),
        default="text",
    ),
)
"""Those of a command that runs until it is told to stop."""
