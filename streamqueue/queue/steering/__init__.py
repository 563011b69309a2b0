"""What is done to jobs and queues from outside: cancelled, put off, requeued, paused."""
