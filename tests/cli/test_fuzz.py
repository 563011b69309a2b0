"""Whoever may only insert stops nobody: random BSON in every field and state, beside good jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzzed import fuzz


@pytest.mark.slow
def test_random_documents_stop_no_program_and_no_good_job(address: str, tmp_path: Path) -> None:
    # One run that is always the same; ``make faults`` does others.
    fuzz(address, tmp_path, seed=7, odd=200, good=60)
