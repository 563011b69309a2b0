"""For tests of programs that use streamqueue: jobs are run to their ends, made without a server, or
moved in time. Its fixtures come as a pytest plugin (``plugin``), which pytest finds by itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .made_jobs import Call, MadeAsyncJob, MadeJob, make_job
    from .passing_time import advance
    from .runs import AttemptFailed, FailedAttempt, Report, run_until_empty

__all__ = [
    "AttemptFailed",
    "Call",
    "FailedAttempt",
    "MadeAsyncJob",
    "MadeJob",
    "Report",
    "advance",
    "make_job",
    "run_until_empty",
]

_HOMES = {
    "AttemptFailed": "runs",
    "Call": "made_jobs",
    "FailedAttempt": "runs",
    "MadeAsyncJob": "made_jobs",
    "MadeJob": "made_jobs",
    "Report": "runs",
    "advance": "passing_time",
    "make_job": "made_jobs",
    "run_until_empty": "runs",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: every run of pytest loads the plugin, which is
    in this package."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
