"""Every command sent to MongoDB, as plain data. No I/O and no clock: the whole protocol, readable.

The life of a job, a verb on each arrow::

    scheduled ──promote──▶ ready ──claim──▶ running ──complete──▶ (gone), or done
                             ▲                 │
                             ├──── release ────┤  the attempt does not count
                             ├──── error ──────┤  by way of scheduled, when there is a backoff
                             ├──── reap ───────┤  the lease ran out
                             │                 ├──── error, reap: attempts used up ──▶ dead
                             │                 └──── discard ──▶ dead
                             └──── requeue ──── dead

A job whose key a running one has (which had let go of it at its start) is parked as ``waiting`` by
whoever would have claimed it, and is ready again when that one has ended (``held_back``).

One whose payload does not fit who claimed it, or whose task nobody here knows, is parked likewise,
and ready again when somebody comes who can run it (``misfits``).

A job that was asked to be cancelled while it ran goes none of these ways, but to ``cancelled``; so
does what waits for too long, if it was put with such a time (``expiry``).

Rules that hold for all of it:

* A claim is one compare-and-set on ``state: ready`` and writes a fresh random token (``lease``).
  Every later write of that attempt matches ``{_id, lease: token}``, so whoever lost the lease
  changes nothing.
* Times that are stored or compared are the server's: ``$$NOW``.
* Values that are not ours stand under ``$literal``: an update pipeline evaluates ``"$$ROOT"``.
* Numbers written by other programs are checked before they are added to, so that one damaged
  document cannot fail the batch it is in.
"""

from .attempts import *  # noqa: F403
from .awaited import *  # noqa: F403
from .cancels import *  # noqa: F403
from .claims import *  # noqa: F403
from .commands import *  # noqa: F403
from .consumers import *  # noqa: F403
from .deaths import *  # noqa: F403
from .dependencies import *  # noqa: F403
from .earlier import *  # noqa: F403
from .emptiness import *  # noqa: F403
from .events import *  # noqa: F403
from .expiry import *  # noqa: F403
from .expressions import *  # noqa: F403
from .held_back import *  # noqa: F403
from .indexes import *  # noqa: F403
from .keys.holding import *  # noqa: F403
from .keys.unique import *  # noqa: F403
from .limits import *  # noqa: F403
from .looks import *  # noqa: F403
from .misfits import *  # noqa: F403
from .passing_time import *  # noqa: F403
from .queues import *  # noqa: F403
from .rates import *  # noqa: F403
from .replies import *  # noqa: F403
from .settings.queues import *  # noqa: F403
from .settings.schedules import *  # noqa: F403
from .settings.topics import *  # noqa: F403
from .timers import *  # noqa: F403
from .waiting import *  # noqa: F403
