"""Handlers that run in child processes: these import this module."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamqueue import Cancel, Discard


def notes(payload: dict[str, Any]) -> None:
    """Write down which process this is, and the payload."""
    note(payload, f"{os.getpid()} {payload['n']!r}")


@dataclass
class Sum:
    left: int
    right: int


def adds_up(numbers: Sum) -> int:
    """Return a sum of what it is given as an instance."""
    return numbers.left + numbers.right


def note(payload: dict[str, Any], text: str) -> None:
    with Path(payload["file"]).open("a") as file:
        file.write(f"{text}\n")


def lasts(payload: dict[str, Any]) -> int:
    """Note the process, and then compute for ever."""
    note(payload, str(os.getpid()))
    while True:
        sum(number * number for number in range(1000))


def lasts_once(payload: dict[str, Any]) -> None:
    """Compute for ever the first time."""
    if not Path(payload["file"]).exists():
        lasts(payload)
    note(payload, str(os.getpid()))


class Hopeless(Exception):
    pass


def raises(payload: dict[str, Any]) -> None:
    raise KeyError("no such thing")


def exits(payload: dict[str, Any]) -> None:
    os._exit(1)


def adds(payload: dict[str, Any]) -> dict[str, Any]:
    return {"sum": sum(payload["numbers"])}


def says_done(payload: dict[str, Any]) -> str:
    return "done"


def discards(payload: dict[str, Any]) -> None:
    raise Discard("of no use")


def cancels(payload: dict[str, Any]) -> None:
    raise Cancel("of no use any more")


def leaves_once(payload: dict[str, Any]) -> None:
    """End the process without a word the first time."""
    first = not Path(payload["file"]).exists()
    note(payload, str(os.getpid()))
    if first:
        os._exit(0)


def forks_and_leaves(payload: dict[str, Any]) -> None:
    """Leave a forked process behind, which lasts."""
    if not os.fork():
        lasts(payload)
    os._exit(3)


def forks_and_both_return(payload: dict[str, Any]) -> str:
    """Note the process that is forked, which also returns."""
    forked = os.fork()
    if not forked:
        return "of the fork"
    note(payload, str(forked))
    os.waitpid(forked, 0)
    return "of the child"


def crashes_once(payload: dict[str, Any]) -> None:
    first = not Path(payload["file"]).exists()
    note(payload, str(os.getpid()))
    if first:
        ctypes.string_at(0)


def prints(payload: dict[str, Any]) -> None:
    """Write to the descriptors that the worker listens to, and read from the other."""
    os.write(1, b"RETURN 1\nx")
    subprocess.run([sys.executable, "-c", "print(input())"], check=False, timeout=10)
    note(payload, repr(os.read(0, 10)))


def returns_a_lock(payload: dict[str, Any]) -> Any:
    return threading.Lock()


def never_gets_ready(parent: int) -> None:
    """In the place of what makes a child ready, as a main module that does not end is."""
    threading.Event().wait()


def is_interrupted(parent: int) -> None:
    """The same, while somebody presses Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()


class Odd(dict[str, Any]):
    """A result that raises when it is looked at."""

    def values(self) -> Any:
        raise RuntimeError("no values")


def returns_what_raises(payload: dict[str, Any]) -> Any:
    return {"it": Odd(of="nothing")}


def sleeps(payload: dict[str, Any]) -> None:
    note(payload, str(os.getpid()))
    threading.Event().wait(payload["seconds"])
