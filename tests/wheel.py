"""``python -m tests.wheel [TEST ...]``: run tests on the built wheel, and not on the checkout.

The wheel goes into a new environment, and the tests are copied to a folder without the package, so
that what the wheel lacks is missing. These are the contract tests, or whatever pytest takes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".wheel"
PYTHON = FOLDER / "environment" / "bin" / "python"
COPY = FOLDER / "tests-alone"
TESTS = ("tests/contract",)
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
    shutil.copytree(ROOT / "streamqueue", source / "streamqueue")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(ROOT, sys.executable, "-m", "venv", PYTHON.parents[1])
    install: list[str | Path] = [PYTHON, "-m", "pip", "install", "--quiet"]
    run(ROOT, *install, "--upgrade", "pip>=25.1")  # dependency groups
    run(ROOT, PYTHON, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", FOLDER, source)
    [wheel] = FOLDER.glob("*.whl")
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


def run(folder: Path, *command: str | Path) -> None:
    subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    sys.exit(main())
