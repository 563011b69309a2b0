"""How the queues stand, counted from outside."""
