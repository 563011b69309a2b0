"""The jobs collection: checked, sent to, and its answers read."""
