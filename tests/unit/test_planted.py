"""The faults that ``make planted`` plants can still be planted: the code has not moved on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import streamqueue
from drills.planted import FAULTS
from drills.planted.fault import PlantedFault

PACKAGE = Path(streamqueue.__file__).parent


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault: PlantedFault, tmp_path: Path) -> None:
    for file in {edit.file for edit in fault.edits}:
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(PACKAGE / file, tmp_path / file)

    fault.plant(tmp_path)

    for file in {edit.file for edit in fault.edits}:
        compile((tmp_path / file).read_text(), file, "exec")


def test_no_two_faults_have_the_same_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_test_of_each_fault_is_there() -> None:
    missing = []
    for fault in FAULTS:
        file, _, test = fault.caught_by.partition("::")
        if f"def {test.partition('[')[0]}(" not in (PACKAGE.parent / file).read_text():
            missing.append(fault.caught_by)

    assert missing == []
