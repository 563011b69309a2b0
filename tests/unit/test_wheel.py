"""What is packed is the package, all of it, and nothing else."""

from __future__ import annotations

import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

import streamqueue
from tests.matrix import PYTHONS
from tests.wheel import ROOT, check, files_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a.py"}, r"lacks \['b.py'\], and should not have \[\]"),
        ({"a.py", "b.py", "c.py"}, r"lacks \[\], and should not have \['c.py'\]"),
    ],
)
def test_an_archive_that_is_not_just_the_package_is_refused(found: set[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        check(Path("x.whl"), found, {"a.py", "b.py"})


def test_what_describes_an_archive_is_no_file_of_ours(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("streamqueue/a.py", "")
        wheel.writestr("x-1.dist-info/METADATA", "")
    (tmp_path / "a.py").touch()
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as sdist:
        for name in ("streamqueue/a.py", "PKG-INFO", "setup.cfg", "x.egg-info/SOURCES.txt"):
            sdist.add(tmp_path / "a.py", f"x-1/{name}")

    assert files_of(tmp_path / "x.whl") == {"streamqueue/a.py"}
    assert files_of(tmp_path / "x.tar.gz") == {"streamqueue/a.py"}


def test_the_version_is_the_same_in_both_places() -> None:
    assert PROJECT["version"] == streamqueue.__version__


def test_the_classifiers_name_the_pythons_of_the_matrix() -> None:
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: 3." in text]

    assert named == list(PYTHONS)
