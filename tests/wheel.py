"""``python -m tests.wheel [TEST ...]``: build sdist and wheel, and run tests on the wheel.

The wheel is built from the sdist; both are left in ``dist/``. It goes into a new environment, and
the tests are copied to a folder without the package, so that what the wheel lacks is missing. These
are the contract tests, or whatever pytest takes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".wheel"
PYTHON = FOLDER / "environment" / "bin" / "python"
COPY = FOLDER / "tests-alone"
DIST = ROOT / "dist"
TESTS = ("tests/contract",)
BESIDE = ("pyproject.toml", "README.md", "LICENSE")
"""What the package is built from, besides itself."""
WHERE = """
import streamqueue, sys
found = streamqueue.__file__
assert found.startswith(sys.prefix), f"not the installed package: {found}"
"""


def main() -> int:
    """Run what the arguments name; return the exit code."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    # From a copy: setuptools also packs what an earlier build left in `build/`.
    source = FOLDER / "source"
    ours = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "streamqueue", source / "streamqueue", ignore=ours)
    for name in BESIDE:
        shutil.copy(ROOT / name, source)
    wanted = {str(each.relative_to(source)) for each in source.rglob("*") if each.is_file()}
    run(ROOT, sys.executable, "-m", "venv", PYTHON.parents[1])
    install: list[str | Path] = [PYTHON, "-m", "pip", "install", "--quiet"]
    run(ROOT, *install, "--upgrade", "pip>=25.1", "build>=1.2")
    shutil.rmtree(DIST, ignore_errors=True)
    run(FOLDER, PYTHON, "-m", "build", "--outdir", DIST, source)
    [wheel], [sdist] = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    check(wheel, files_of(wheel), wanted - {*BESIDE})
    check(sdist, files_of(sdist), wanted)
    shutil.rmtree(PYTHON.parents[1])  # what `build` has brought along is no part of ours
    run(ROOT, sys.executable, "-m", "venv", PYTHON.parents[1])
    run(ROOT, *install, "--upgrade", "pip>=25.1")  # dependency groups
    # By itself first: what it needs must be among what it asks for.
    run(FOLDER, *install, wheel)
    run(FOLDER, PYTHON, "-c", WHERE)
    tools = ["--constraint", "dev-constraints.txt", "--group", "test"]
    run(ROOT, *install, *tools, f"{wheel}[embedded]")

    shutil.copytree(ROOT / "tests", COPY / "tests")
    shutil.copy(ROOT / "pyproject.toml", COPY)
    run(COPY, PYTHON, "-c", WHERE)
    command: list[str | Path] = [PYTHON, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    return subprocess.run([*command, *(sys.argv[1:] or TESTS)], cwd=COPY).returncode


def files_of(archive: Path) -> set[str]:
    """Return the files of a wheel or an sdist, without those that describe it."""
    if archive.suffix == ".whl":
        with ZipFile(archive) as opened:
            return {name for name in opened.namelist() if ".dist-info/" not in name}
    with tarfile.open(archive) as opened:
        names = [member.name.partition("/")[2] for member in opened if member.isfile()]
    return {
        name for name in names if ".egg-info/" not in name and name not in {"PKG-INFO", "setup.cfg"}
    }


def check(archive: Path, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuse an archive that lacks a file, or has one that is not ours.

    Raises:
        SystemExit: with their names.
    """
    lacks, has = sorted({*wanted} - {*found}), sorted({*found} - {*wanted})
    if lacks or has:
        raise SystemExit(f"{archive.name} lacks {lacks}, and should not have {has}")


def run(folder: Path, *command: str | Path) -> None:
    subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    sys.exit(main())
