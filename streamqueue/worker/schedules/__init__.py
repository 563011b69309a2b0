"""Schedules in a worker: declared in its code, and fired when they are due."""
