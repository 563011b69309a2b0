"""Handlers in child processes, which can be killed: anyio's pool of them, and what it leaves open.

A child is told by its first call to end with us, and to leave signals that stop a whole group of
processes to us. It is started apart from the call it is for: a start that is cancelled would leave
a process behind. What a function writes to the descriptors of standard input and output would come
between us and the child, so it gets others.

Calls and answers travel as pickles, over pipes between us and a child of our own: the name of the
function and its payload, and a result as BSON, or why there is none. Nothing else is ever
unpickled: what comes from the database was decoded as BSON, and a child that could send us anything
else runs the program's own code, as we do.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from anyio import BrokenWorkerProcess, fail_after, to_process

from ...errors import ConfigurationError, PayloadError, text_of, type_name
from ...protocol.result import decode_result, encode_result
from ...queue.outcome import End, asked_outcome, end_of, names_of
from .begun import not_begun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from anyio import CapacityLimiter

    from ..handler import Handler

TRIES = 3
"""Children that are started, or woken, for one call: a signal may have ended an idle one, or one
that was just being started."""
ENDED = "the child process ended before the handler: it crashed, was killed or called os._exit()"
LONGEST_START = 30.0
"""Seconds a child may take until it is ready, with all that the main module does. More than the 20
in which anyio must hear of it first: whoever is cancelled in those leaves a process behind."""
GUARD = 'if __name__ == "__main__":'
_PR_SET_PDEATHSIG = 1
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_pipes: list[int] = []
"""In a child: where the pipes to its parent are while 0 and 1 lead nowhere."""


class FailedInChild(Exception):
    """What a handler raised in its child process, as plain text and numbers.

    Attributes:
        end: what that means for the attempt.
        name: the name of its class.
        names: as :func:`~streamqueue.queue.outcome.names_of` returns them.
    """

    def __init__(self, end: End, name: str, names: tuple[frozenset[str], ...]) -> None:
        super().__init__(end.message)
        self.end = end
        self.name = name
        self.names = names


class Returned(NamedTuple):
    """What a child process sends back: the result, or how the attempt ends and because of what.

    Attributes:
        result: as BSON, or why that cannot be: it is no failure of the function.
    """

    result: bytes | str | None
    end: End | None = None
    name: str = ""
    names: tuple[frozenset[str], ...] = ()


class ChildNotReady(Exception):
    """A child process could not be started, or did not come through the program's main module."""


async def warm_up() -> None:
    """Start a child process, so that the first job does not wait for it."""
    with suppress(Exception):  # the first job will meet the same, and say so
        await _make_ready(tries=1)


async def run_in_child(handler: Handler, payload: Any, begin: Callable[[], None]) -> Any:
    """Return what a handler returns for a payload in a child process; cancelled, kill that.

    For a result that cannot be stored, and so not sent, a PayloadError is returned: the function
    has done its work, and whether that matters is for whoever stores results to say.

    There are as many children as handlers run at a time. They stay for five minutes after their
    last use, and until the next call of any, which ends those that were idle for longer.

    Args:
        begin: called once the child is there.

    Raises:
        FailedInChild: the handler raised.
        ChildNotReady: there is no child process to call it in.
        BrokenWorkerProcess: the child process ended.
    """
    try:
        returned: Returned = await to_process.run_sync(
            call,
            handler.function.__module__,
            handler.function.__qualname__,
            payload,
            handler.name is not None,
            cancellable=True,
            limiter=cast("CapacityLimiter", _WithChild(begin)),
        )
    except BrokenWorkerProcess:
        raise BrokenWorkerProcess(ENDED) from None
    if returned.end is not None:
        raise FailedInChild(returned.end, returned.name, returned.names)
    match returned.result:
        case None:
            return None
        case str(why):
            return PayloadError(why)
        case encoded:
            return decode_result(encoded)


class _Unlimited:
    """In the place of a limiter: how many handlers run at a time is limited already."""

    async def __aenter__(self) -> None:
        """Go on at once, without a turn of the event loop."""

    async def __aexit__(self, *_: object) -> None:
        """Nothing was taken."""


_UNLIMITED = cast("CapacityLimiter", _Unlimited())


class _WithChild(_Unlimited):
    """In the place of a limiter, too: whoever comes through it is given a child that is ready.

    The last child to come back to the pool is the first that is taken from it, and there is no turn
    of the event loop in between. So no call that can be cancelled starts one.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    async def __aenter__(self) -> None:
        await _make_ready(TRIES)
        self._begin()


async def _make_ready(tries: int) -> None:
    """Leave a child process that is ready at the end of the pool.

    Raises:
        ChildNotReady: there is none after so many tries, or one takes too long.
    """
    for left in reversed(range(tries)):
        problem: BaseException | None
        try:
            with fail_after(LONGEST_START, shield=True):
                await to_process.run_sync(
                    prepare, os.getpid(), cancellable=True, limiter=_UNLIMITED
                )
            return
        except TimeoutError:
            raise ChildNotReady(_not_ready(f"it was not within {LONGEST_START:g} s")) from None
        except (BrokenWorkerProcess, KeyboardInterrupt) as error:  # by a Ctrl-C for all of us
            problem = error.__cause__
            if not left or isinstance(problem, (TimeoutError, ConfigurationError)):
                why = "it ended" if problem is None else f"{type_name(problem)}: {text_of(problem)}"
                raise ChildNotReady(_not_ready(why)) from None


def _not_ready(why: str) -> str:
    return (
        f"the child process did not get ready: {why}. It loads the file that the program was "
        f"started with, so what that does must stand below {GUARD}"
    )


# in the child process


def check_not_in_child() -> None:
    """Raise ConfigurationError while a child process of anyio's loads the program's main module.

    It has no ``__main__`` then, and only then.
    """
    if "__main__" not in sys.modules:
        raise ConfigurationError("a worker cannot run in the child process of a worker")


def prepare(parent: int) -> None:
    """Make this process end with its parent, and by nothing that is meant for that."""
    _let_go_in_forks()
    for number in _STOPS:
        signal.signal(number, _leave_to_the_parent)
    if sys.platform == "linux":  # also out of native code that never lets go of the interpreter
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    elif threading.active_count() == 1:
        threading.Thread(target=end_with_pipe, args=(0,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


@cache
def _let_go_in_forks() -> None:
    """Let no process that is forked from this one hold the pipes: the parent takes their end for
    the end of this one, and nobody else must answer."""
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in _pipes or (0, 1):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def end_with_pipe(descriptor: int) -> None:
    """End this process as soon as nobody has the other end of a pipe or socket."""
    watch = select.poll()
    watch.register(os.dup(descriptor), 0)  # an end is told of unasked
    watch.poll()
    os._exit(1)


def call(module: str, name: str, payload: Any, is_task: bool = False) -> Returned:
    """Call a function with a payload, or a task with what is in it; return what that returned, or
    what it means that it raised.

    It is named, and not sent as a pickle: its module may write while it is imported, too.
    """
    problem: BaseException | None
    try:
        with _streams_of_its_own():
            function = attrgetter(name)(import_module(module))
            result = function(**payload) if is_task else function(payload)
        problem = not_begun(result, function.__name__)
    except BaseException as error:
        problem = error
    if problem is None:
        return Returned(_packed(result))
    return Returned(None, end_of(problem, asked_outcome), type_name(problem), names_of(problem))


def _packed(result: object) -> bytes | str | None:
    try:
        encoded = encode_result(result)
        return None if encoded is None else bytes(encoded.raw)
    except PayloadError as problem:
        return str(problem)
    except BaseException as problem:  # an object that does what it likes when it is looked at
        return f"this result cannot be stored: {type_name(problem)}: {text_of(problem)}"


def _leave_to_the_parent(number: int, frame: FrameType | None) -> None:
    """A handler and not SIG_IGN, which the programs that a function starts would inherit."""


@contextmanager
def _streams_of_its_own() -> Iterator[None]:
    """A context in which standard input and output lead nowhere, also for other programs."""
    _pipes.extend((os.dup(0), os.dup(1)))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # nobody reads what is written to standard error
        os.dup2(nowhere, number)
    os.close(nowhere)
    try:
        yield
    finally:
        for number, descriptor in enumerate(_pipes):
            os.dup2(descriptor, number)
            os.close(descriptor)
        _pipes.clear()
