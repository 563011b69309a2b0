"""Expressions that stand in more than one panel."""

from __future__ import annotations

from panels import limit_state, since, state

WAIT = "streamqueue_job_wait_seconds{@queue}"
DURATION = "streamqueue_job_duration_seconds{@queue}"

ATTEMPTS = "streamqueue_attempts_total{@queue}"
COMPLETED = 'streamqueue_attempts_total{@queue, outcome="completed"}'
DIED = 'streamqueue_attempts_total{@queue, outcome="dead"}'
FAILED = 'streamqueue_attempts_total{@queue, outcome=~"retried|dead"}'
ENDED = 'streamqueue_attempts_total{@queue, outcome=~"completed|retried|dead"}'
"""Released and lost attempts say nothing of the work: they are run again, unblamed. Nor do those
that were cancelled or expired: somebody has changed their mind, or it was too late."""

DUE = state('streamqueue_queue_jobs{@queue, state="ready"}')
SCHEDULED = state('streamqueue_queue_jobs{@queue, state="scheduled"}')
WAITING = state('streamqueue_queue_jobs{@queue, state="waiting"}')
DEAD = state('streamqueue_queue_jobs{@queue, state="dead"}')
OLDEST = state("streamqueue_queue_oldest_ready_age_seconds{@queue}")
OLDEST_RUNNING = state("streamqueue_queue_oldest_running_age_seconds{@queue}")
OVERDUE = state("streamqueue_queue_overdue_jobs{@queue}")
EXPIRED = state("streamqueue_queue_expired_leases{@queue}")
CONSUMERS = state("streamqueue_queue_consumers{@queue}")
PAUSED = state("streamqueue_paused{@queue}")
LATE_SCHEDULES = state("streamqueue_schedules_late_seconds{@queue}")
SUBSCRIPTIONS = state("streamqueue_queue_subscriptions{@queue}")
SLOTS = state("streamqueue_queue_slots{@queue}")
HELD_GROUPS = state("streamqueue_queue_held_groups{@queue}")
HELD_DEPENDENTS = state("streamqueue_queue_held_dependents{@queue}")
MISFITS = "max by (queue, reason) (streamqueue_queue_misfits{@queue})"
LIMIT = limit_state("streamqueue_queue_limit{@queue}")
UNDER_LIMIT = limit_state("streamqueue_queue_limit_running{@queue}")
STARTS_PER_SECOND = limit_state("streamqueue_queue_limit_starts_per_second{@queue}")
SATURATED = limit_state("streamqueue_queue_limit_saturated{@queue}")
AGE_OF_COUNTS = since("max(streamqueue_state_last_success_timestamp_seconds{@job})")

CONNECTED = "streamqueue_stream_connected{@job}"
LONGEST_SILENCE = since("min(streamqueue_stream_last_event_timestamp_seconds{@job} > 0)")

SHOWN = "$__range"
"""The time range on the screen."""

EACH_POINT = "Each point counts a minute, or more when zoomed out."
