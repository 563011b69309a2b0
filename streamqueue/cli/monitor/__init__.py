"""The commands that show consumers and queues at work."""
