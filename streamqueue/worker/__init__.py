"""The consumer process: everything between a wake-up and the end of a job."""

from .worker import Worker

__all__ = ["Worker"]
