"""The two shells that people call, blocking and async."""
