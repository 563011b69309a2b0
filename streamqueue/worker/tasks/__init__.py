"""Tasks in a worker: functions whose calls are jobs."""
