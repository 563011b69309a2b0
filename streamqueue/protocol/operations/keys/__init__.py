"""Keys: when a job holds one, and what becomes of it then."""
