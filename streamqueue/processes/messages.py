"""What a dispatcher and its members say to one another, and a supervisor and its processes.

Dispatcher and members send frames (``frames``): each is one message, a document with its fields,
and the name of the first field says which. Built and read as plain dicts: several are sent for
every job. A conversation::

    member                  dispatcher
      Joining       ──▶
                    ◀──       Refused, Opened
                    ◀──       Event or Fetch: there is a job
      Ask           ──▶
                    ◀──       Jobs
      Lost          ──▶                     (somebody else was faster)
      Idle          ──▶                     (everything sent so far is dealt with)
                    ◀──       Tick, once a second; Broken, Buried, Refused, Asked, Bell
      Leaving       ──▶                     (and the connection is closed)

A message with other fields than these is of another version of the program: then the connection is
closed, and the member listens to a change stream of its own.

Supervisor and processes send single bytes over a socket pair (``child``); the supervisor's ``JOIN``
carries the descriptor of a connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..protocol.foreign import BuryReason
    from ..stream.verdict import Reason

READY, BEAT, TOLD, LIMIT = b"r", b"b", b"t", b"l"
"""A process says: it is ready; its event loop turns; it was told to stop; how long a stop may take,
as seconds in digits and a semicolon."""
STOP, HURRY, JOIN = b"s", b"h", b"j"
"""The supervisor says: stop; end the drain time; here is a connection."""


@final
class Event(TypedDict):
    """Dispatcher: a change event, whose job this member may claim."""

    event: Mapping[str, Any]


@final
class Fetch(TypedDict):
    """Dispatcher: ask for what waits; or look for all there may be to do."""

    fetch: Literal["waiting", "everything"]


@final
class Jobs(TypedDict):
    """Dispatcher, to Ask: waiting jobs that nobody else was given; `more`: there are others."""

    jobs: list[Mapping[str, Any]]
    more: bool


@final
class Tick(TypedDict):
    """Dispatcher: it lives.

    Attributes:
        tick: how many signs of life its stream has given since the last one.
        pings: how often the server has answered meanwhile, while the stream rested.
    """

    tick: int
    pings: int


@final
class Opened(TypedDict):
    """Dispatcher: its change stream is open (again)."""

    opened: bool


@final
class Broken(TypedDict):
    """Dispatcher: its change stream is being reopened, for this reason."""

    broken: Reason


@final
class Refused(TypedDict):
    """Dispatcher: the server refuses every change of these jobs, and of no others."""

    refused: Sequence[Any]


@final
class Buried(TypedDict):
    """Dispatcher: `count` jobs were buried for this reason; nobody asks it for its metrics."""

    buried: BuryReason
    count: int


@final
class Asked(TypedDict):
    """Dispatcher: somebody has asked to cancel a job that runs, whoever may hold it."""

    asked: bool


@final
class Bell(TypedDict):
    """Dispatcher: the settings of a queue were changed."""

    bell: bool


@final
class Undecodable(TypedDict):
    """Nobody: a frame that cannot be decoded came here, whose first field has this name."""

    undecodable: str


@final
class Joining(TypedDict):
    """Member, first of all: its name, and how many jobs it can claim."""

    consumer: str
    free: int


@final
class Ask(TypedDict):
    """Member: it can claim so many of the jobs that wait.

    Attributes:
        done: how many events and fetches it has dealt with, in the order they were sent.
        refused: ids of jobs that the server let it not claim, since it last said so.
        held, ahead, room: as of ``worker.sharing.fairness.Holder``, if queues share its slots.
    """

    ask: int
    done: int
    refused: Sequence[Any]
    held: NotRequired[Mapping[str, int]]
    ahead: NotRequired[Mapping[str, int]]
    room: NotRequired[Mapping[str, int]]


@final
class Lost(TypedDict):
    """Member: of so many jobs it tried to claim it `won` some, because somebody was faster."""

    lost: int
    won: int


@final
class Idle(TypedDict):
    """Member: it has dealt with everything it was sent, and can claim so many jobs.

    Attributes:
        done, refused, room: as in Ask.
        more: it knows of waiting jobs that it cannot take.
    """

    idle: int
    done: int
    more: bool
    refused: Sequence[Any]
    room: NotRequired[Mapping[str, int]]


@final
class Leaving(TypedDict):
    """Member: it stops, and what it was sent is for others."""

    leaving: bool


FromDispatcher = (
    Event | Fetch | Jobs | Tick | Opened | Broken | Refused | Buried | Asked | Bell | Undecodable
)
FromMember = Joining | Ask | Lost | Idle | Leaving
