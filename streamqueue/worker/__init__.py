"""The consumer process: everything between a wake-up and the end of a job."""

from .runtime import Worker

__all__ = ["Worker"]
