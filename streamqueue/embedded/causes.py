"""Why a mongod ended while it started, as one sentence that says what to do."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

from ..errors import EmbeddedServerError
from .binary import GET_ANOTHER

if TYPE_CHECKING:
    from pathlib import Path

HOST = "127.0.0.1"

EXIT_NETWORK = 48
EXIT_OTHER_VERSION = 62
PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "liblzma.so.5": "liblzma5",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
}
"""The Debian packages that have what mongod loads."""


class PortTaken(EmbeddedServerError):
    """Somebody listens on the port that mongod was to have."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"port {port} on {HOST} is in use: stop what listens there, or ask for another port "
            "or for none"
        )


class Log:
    """The lines of one run of mongod in its log, each a JSON document.

    Args:
        start: where the run begins in the file, in bytes.
    """

    def __init__(self, path: Path, start: int) -> None:
        try:
            with path.open("rb") as file:
                file.seek(start)
                self.text = file.read().decode(errors="replace")
        except OSError:
            self.text = ""

    def last_error(self) -> str:
        """Return the message of the last error or fatal line, or ""."""
        for line in reversed(self.text.splitlines()):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("s") not in ("E", "F"):
                continue
            message, detail = str(entry["msg"]).strip(), entry.get("attr", {}).get("error", "")
            # A failed assertion ends with these two; when they give no reason it stands before.
            if not detail and message.startswith(("Fatal assertion", "***")):
                continue
            return f"{message}: {detail}" if detail else message
        return ""


def cause_of_exit(
    code: int,
    printed: str,
    logged: Log,
    *,
    program: Path,
    port: int,
    folder: Path,
    where_is_the_log: str,
) -> EmbeddedServerError:
    """Return the error to raise for a mongod that ended by itself.

    Args:
        code: its exit code; negative is the number of a signal.
        printed: what it wrote before it opened its log.
        where_is_the_log: the end of a sentence, for causes that only the log explains.
    """
    text = f"{printed}\n{logged.text}"
    if missing := re.search(r"error while loading shared libraries: ([^\s:]+)", printed):
        library = missing[1]
        package = PACKAGES.get(library)
        return EmbeddedServerError(
            f"mongod needs the library {library}, which is missing: "
            + (f"apt-get install {package}" if package else "install the package that has it")
        )
    if too_new := re.search(r"version [`'](\w+_[\d.]+)' not found", printed):
        return EmbeddedServerError(
            f"this system is too old for {program} (it needs {too_new[1]}): {GET_ANOTHER}"
        )
    if code == -signal.SIGILL:
        return EmbeddedServerError(
            f"this processor lacks instructions that {program} needs (MongoDB 5.0 and "
            f"later need AVX): {GET_ANOTHER}"
        )
    if code == EXIT_NETWORK or "Address already in use" in text:
        return PortTaken(port)
    if "DBPathInUse" in text:
        return EmbeddedServerError(
            f"another mongod is using the data folder {folder}: stop it, or give another folder"
        )
    if re.search(r"read-only directory|Permission denied|Read-only file system", text):
        return EmbeddedServerError(
            f"mongod cannot write to the data folder {folder}: "
            "give a folder that this user can write to"
        )
    if code == EXIT_OTHER_VERSION or re.search(
        r"UPGRADE PROBLEM|[Ww]rong mongod version|unsupported WiredTiger file version", text
    ):
        return EmbeddedServerError(
            f"the data in {folder} was written by another version of MongoDB than "
            f"{program}: set STREAMQUEUE_MONGOD to that version, or give another folder"
        )
    ended = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    reason = logged.last_error() or last_line(printed)
    return EmbeddedServerError(f"mongod ended {ended} while it started: {reason}{where_is_the_log}")


def last_line(text: str) -> str:
    """Return the last line of a text that names an error, else the last one."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or ["it said nothing"])[-1].strip()
