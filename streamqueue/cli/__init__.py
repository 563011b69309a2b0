"""The ``streamqueue`` command."""
