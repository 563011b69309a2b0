"""Programs of Python in processes of their own, which are forked where everything is imported.

Importing what the command needs takes most of the time of most commands, and the tests call it well
over a thousand times. ``run`` and ``Popen`` are as in ``subprocess``. What a fork cannot do alike
(switches of the interpreter, its variables, another group of processes) is started as ever.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STATUS_BYTES = 4
OF_THE_INTERPRETER = ("PYTHON", "LANG", "LC_", "LD_", "COVERAGE", "MALLOC")
"""What variables begin with that are read when an interpreter starts."""
PRELOADED = """
from importlib import import_module
from pkgutil import walk_packages
import logging.handlers, ssl, uvicorn, uvicorn.config, uvicorn.loops.auto, uvicorn.lifespan.off
import uvicorn.protocols.http.h11_impl, anyio._backends._asyncio, anyio.to_process, rich.console
import streamqueue
for module in walk_packages(streamqueue.__path__, "streamqueue."):
    if not ("__main__" in module.name or "testing" in module.name or "embedded" in module.name):
        import_module(module.name)
"""


class Popen(subprocess.Popen[Any]):
    """A process, forked if it can be."""

    _status: int | None = None

    def _execute_child(self, *how: Any) -> None:
        arguments, executable, preexec, _close, passed, cwd, env = how[:7]
        shell, (reads, feeds, hears, writes, reads_errors, says) = how[9], how[10:16]
        *rights, umask, session, group = how[17:]
        plain = not (executable or preexec or passed or shell) and umask == -1
        plain = plain and all(right is None for right in rights)
        if not (plain and _is_forkable(arguments, env)):
            super()._execute_child(*how)  # type: ignore[misc]
            return
        self._status, status = os.pipe()
        files = [reads, writes, says]
        own = [standard if fd == -1 else fd for standard, fd in enumerate(files)]
        wanted = {
            "arguments": list(map(os.fspath, arguments[1:])),
            "cwd": os.getcwd() if cwd is None else os.fspath(cwd),
            "env": dict(os.environ if env is None else env),
            "session": bool(session),
            "group": None if group == -1 else group,
        }
        try:
            self.pid = _origin().fork(wanted, [*own, status])
        finally:
            os.close(status)
        self._child_created = True
        for fd, ours in ((reads, feeds), (writes, hears), (says, reads_errors)):
            if fd != -1 and ours != -1:  # of a pipe; another one is its owner's
                os.close(fd)
        if (devnull := getattr(self, "_devnull", None)) is not None:
            os.close(devnull)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._status is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc]
        if wait_flags & os.WNOHANG:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(0):
                    return 0, 0
        said = os.read(self._status, STATUS_BYTES)
        os.close(self._status)
        self._status = None
        # Nothing is said if the origin itself was killed.
        return self.pid, int.from_bytes(said, "big") if said else signal.SIGKILL

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll()  # type: ignore[misc]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid == self.pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def run(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    input: Any = None,  # noqa: A002
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(arguments, **options) as process:
        try:
            output, errors = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def _is_forkable(arguments: Any, env: Mapping[str, str] | None) -> bool:
    if isinstance(arguments, (str, bytes)) or os.fspath(arguments[0]) != sys.executable:
        return False
    if len(arguments) < 2:
        return False
    first = os.fspath(arguments[1])
    if first.startswith("-") and (first not in ("-m", "-c") or len(arguments) < 3):
        return False
    return env is None or _of_the_interpreter(env) == _of_the_interpreter(os.environ)


def _of_the_interpreter(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith(OF_THE_INTERPRETER)}


class Origin:
    """The process that others are forked from."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.programs", str(theirs.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.variables = _of_the_interpreter(os.environ)

    def fork(self, wanted: Mapping[str, Any], files: Sequence[int]) -> int:
        """Start a program; return its pid."""
        said = json.dumps(wanted).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(said).to_bytes(4, "big")], list(files))
            self._socket.sendall(said)
            return int.from_bytes(_read(self._socket, 4), "big")

    def close(self) -> None:
        """End it; what was forked goes on."""
        self._socket.close()
        self._process.wait()


_lock = threading.Lock()
_known: list[Origin] = []


def _origin() -> Origin:
    with _lock:
        if not _known or _known[0].variables != _of_the_interpreter(os.environ):
            for old in _known:
                old.close()
            _known[:] = [Origin()]
            atexit.register(_known[0].close)
        return _known[0]


def _read(stream: socket.socket, count: int) -> bytes:
    said = b""
    while len(said) < count:
        some = stream.recv(count - len(said))
        if not some:
            raise EOFError("the other side has ended")
        said += some
    return said


# in the origin


def _serve(stream: socket.socket) -> None:
    """Fork a program for each that is asked for, and say how each has ended."""
    exec(PRELOADED, {})
    gc.collect()
    gc.freeze()
    statuses: dict[int, int] = {}
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who wait for it
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(stream, selectors.EVENT_READ)
    selector.register(wake, selectors.EVENT_READ)
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if wake in ready:
            os.read(wake, 1000)
            _say_ends(statuses)
        if stream not in ready:
            continue
        head, files, _, _ = socket.recv_fds(stream, 4, 4)
        if not head:
            return
        wanted = json.loads(_read(stream, int.from_bytes(head, "big")))
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            _become(stream, files[:3], **wanted)
        for fd in files[:3]:
            os.close(fd)
        statuses[pid] = files[3]


def _say_ends(statuses: dict[int, int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        fd = statuses.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(fd, status.to_bytes(STATUS_BYTES, "big"))
        os.close(fd)


# in what was forked


def _become(
    stream: socket.socket,
    files: Sequence[int],
    *,
    arguments: list[str],
    cwd: str,
    env: Mapping[str, str],
    session: bool,
    group: int | None,
) -> None:
    """Run a program as the interpreter does, and end."""
    code = 1
    try:
        if session:
            os.setsid()
        if group is not None:
            os.setpgid(0, group)
        stream.sendall(os.getpid().to_bytes(4, "big"))  # by now a signal to its group gets there
        for standard, fd in enumerate(files):
            os.dup2(fd, standard)
        os.closerange(3, 4096)
        gc.unfreeze()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        reader = io.BufferedReader(io.FileIO(0))
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(reader, "utf-8")  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = _writer(1, "strict")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _writer(2, "backslashreplace")  # type: ignore[misc]
        sys.orig_argv[:] = [sys.executable, *arguments]
        code = _code_of(arguments)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _writer(fd: int, errors: str) -> io.TextIOWrapper:
    at_once = fd == 2 or os.isatty(fd)
    buffer = io.BufferedWriter(io.FileIO(fd, "w"))
    return io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=at_once)


def _code_of(arguments: list[str]) -> int:
    interrupted = False
    try:
        _execute(arguments)
        code: object = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    if interrupted:
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _execute(arguments: list[str]) -> None:
    kind, *rest = arguments
    if kind == "-m":
        name, *given = rest
        sys.argv[:] = ["-m", *given]
        sys.path[0] = os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        source, *given = rest
        sys.argv[:] = ["-c", *given]
        sys.path[0] = ""
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(source, "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = [kind, *rest]
        sys.path[0] = os.path.dirname(os.path.realpath(kind))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        _serve(ours)
