"""Handlers of a module that writes to standard output, below Python, while it is imported."""

import os
from typing import Any

os.write(1, b"RETURN 1\nx")


def returns(payload: dict[str, Any]) -> None:
    """Do nothing more."""
