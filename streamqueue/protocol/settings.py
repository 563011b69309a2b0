"""What is stored of a queue for all processes: whether it is paused.

In a collection beside the jobs, ``<jobs>.settings``, one document for each queue, so that who may
only insert jobs can pause nothing::

    _id              the queue
    paused           true while it is paused, else absent
    paused_at        since when

Fields are only ever added. Whoever has changed a document writes to the *bell* as well, a document
among the jobs that is none, whose events every stream of the collection lets through. It is a hint:
who hears it reads the settings, by majority.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BELL = "streamqueue_bell"
"""The ``_id`` of the bell. It has no queue and no state: no index of ours, so no count, has it."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The settings of one queue.

    Attributes:
        paused: nobody claims its jobs.
    """

    paused: bool = False

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> QueueSettings:
        """Read what anybody may have stored: what is not understood is not set."""
        return cls(paused=document.get("paused") is True)


UNSET = QueueSettings()
"""Those of a queue of which nothing is stored."""
