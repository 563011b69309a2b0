"""What is stored of a queue for all processes: whether it is paused, and by which rules it is
claimed (``protocol.limits``).

In a collection beside the jobs, ``<jobs>.settings``, one document for each queue, so that who may
only insert jobs can pause nothing::

    _id              the queue
    paused           true while it is paused, else absent
    paused_at        since when
    declared         the rules that its handler declares, as of the last start of a worker
    limits           those that ``limit()`` has set, which win

Fields are only ever added. Whoever has changed a document writes to the *bell* as well, a document
among the jobs that is none, whose events every stream of the collection lets through. It is a hint:
who hears it reads the settings, by majority.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .limits import UNRULED, Rules

if TYPE_CHECKING:
    from collections.abc import Mapping

BELL = "streamqueue_bell"
"""The ``_id`` of the bell. It has no queue and no state: no index of ours, so no count, has it."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The settings of one queue.

    Attributes:
        paused: nobody claims its jobs.
        rules: how many of them may run, and in which order.
        declared: what is stored of the rules that the last worker declared, as it is.
    """

    paused: bool = False
    rules: Rules = UNRULED
    declared: object = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> QueueSettings:
        """Read what anybody may have stored: what is not understood is not set."""
        return cls(
            document.get("paused") is True,
            Rules.from_document(document),
            document.get("declared"),
        )


UNSET = QueueSettings()
"""Those of a queue of which nothing is stored."""
