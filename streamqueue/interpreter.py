"""How the Python processes of our own are started: as their parent was."""

from __future__ import annotations

import sys
from pathlib import Path

_BY_FLAG = {
    "debug": "d",
    "optimize": "O",
    "dont_write_bytecode": "B",
    "no_site": "S",
    "verbose": "v",
    "bytes_warning": "b",
    "no_user_site": "s",
    "ignore_environment": "E",
}
"""The switches of the interpreter by their names in ``sys.flags``."""


def python(*arguments: str) -> list[str]:
    """Return the command that runs this interpreter, with its own switches, with these arguments.

    Also with ``-P``: a file ``random.py`` in the current folder is not to stand in for Python's
    own. ``streamqueue``, the program, starts without that folder, and ``-m`` starts with it.
    """
    return [sys.executable, *_switches(), *arguments]


def _switches() -> list[str]:
    flags = sys.flags
    switches = ["-I"] if flags.isolated else []
    for name, letter in _BY_FLAG.items():
        if times := int(getattr(flags, name)):
            switches.append("-" + times * letter)
    if not flags.isolated and (flags.safe_path or not _found_in_current_folder()):
        switches.append("-P")
    for warning in sys.warnoptions:
        switches.append(f"-W{warning}")
    for name, value in sys._xoptions.items():
        switches += ["-X", name if value is True else f"{name}={value}"]
    return switches


def _found_in_current_folder() -> bool:
    """Whether the package is where ``-m`` looks first: sources that are not installed."""
    return Path(__file__).parents[1] == Path.cwd()
