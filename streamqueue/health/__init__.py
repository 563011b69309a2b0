"""What a process says of itself, and to whom: its metrics, and whether it lives and is ready."""
