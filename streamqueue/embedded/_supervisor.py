"""End a mongod together with the program that started it.

A process of its own, between the program and mongod, because nothing inside the program runs when
it is killed. It is run by its path and imports the standard library only: importing the package
takes about as long as mongod needs to start.

Its stdin and stdout are one end of a socket pair; the program has the other. The program never
writes, so stdin turns readable only at its end: the program closed it or is gone. A fork of the
program also keeps its end open, so on Linux the program's own exit is watched as well. Whichever
comes first, or SIGTERM, ends mongod, deletes the temporary folder and then this process.

On stdout go lines: ``pid N`` once mongod runs, ``exit N`` when it ended by itself, ``unusable WHY``
when it cannot be run at all. After ``exit`` the folder stays until the program is done with it.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


def supervise(program: int, temporary: str, command: list[str]) -> None:
    """Run a command until the program is gone, wants it stopped, or SIGTERM arrives.

    Args:
        program: the process to end with; our parent.
        temporary: a folder to make before and delete after, or "".
        command: mongod and its arguments.
    """
    stops = [sys.stdin.fileno(), *_exit_of(program)]
    signals = _signals()
    if os.getppid() != program:
        return
    mongod: subprocess.Popen[bytes] | None = None
    try:
        if temporary:
            os.mkdir(temporary, 0o700)
        try:
            mongod = _run(command)
        except OSError as error:
            _report(f"unusable {error.strerror}")
            return
        _report(f"pid {mongod.pid}")
        _watch(mongod, stops, signals)
    finally:
        if mongod is not None:
            # Data that is deleted next need not be closed, which takes a second.
            _end(mongod, signal.SIGKILL if temporary else signal.SIGTERM)
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _exit_of(program: int) -> list[int]:
    if sys.platform == "linux":
        try:
            return [os.pidfd_open(program)]
        except OSError:
            pass  # an old kernel or a sandbox without it, or gone: the caller looks
    return []


def _signals() -> int:
    """Return a descriptor from which the number of each arriving signal can be read."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, _leave_to_the_loop)
    return read


def _leave_to_the_loop(number: int, frame: FrameType | None) -> None:
    """Replace the default action; the wakeup descriptor has the number."""


def _run(command: list[str]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)
    supervisor = os.getpid()

    def die_with_the_supervisor() -> None:
        # The kernel sends it when the *thread* that forked ends: safe here, with one thread, and
        # the reason why the program does not start mongod itself.
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != supervisor:
            os._exit(1)

    # mongod keeps a copy of the socket open, never used: the program reads its end when the
    # supervisor *and* mongod are gone, also when the supervisor could not wait for it.
    alive = os.dup(sys.stdout.fileno())
    try:
        return subprocess.Popen(  # noqa: S603  the program chose the command
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            pass_fds=(alive,),
            process_group=0,
            preexec_fn=die_with_the_supervisor,
        )
    finally:
        os.close(alive)


def _report(line: str) -> None:
    try:
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
    except OSError:
        pass  # the program is gone; the loop sees it too


def _watch(mongod: subprocess.Popen[bytes], stops: list[int], signals: int) -> None:
    reported = False
    while True:
        ready, _, _ = select.select([signals, *stops], [], [])
        if not set(stops).isdisjoint(ready):
            return
        if set(os.read(signals, 64)) != {signal.SIGCHLD}:
            return
        if not reported and mongod.poll() is not None:
            _report(f"exit {mongod.returncode}")
            reported = True


def _end(mongod: subprocess.Popen[bytes], how: signal.Signals) -> None:
    for number in (how, signal.SIGKILL):
        if mongod.poll() is None:
            # The group: STREAMQUEUE_MONGOD may be a script with mongod as its child.
            os.killpg(mongod.pid, number)
        try:
            mongod.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return


if __name__ == "__main__":
    supervise(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
