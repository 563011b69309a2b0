"""The rules by which the jobs of a worker's queues are claimed."""
