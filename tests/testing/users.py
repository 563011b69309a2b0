"""Somebody's project with tests, in which pytest finds the plugin by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROCESSOR_TIME = """
import time
import pytest

total = 0.0

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    global total
    began = time.process_time()
    ended = yield
    total += time.process_time() - began
    return ended

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"processor seconds: {total}")
"""
"""A plugin that says how long the tests took, by the process's own clock: the machine may have
other things to do."""


class Project:
    """A folder with tests, and the package installed as far as entry points go."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self._installed = folder / "installed"
        about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        info = self._installed / f"streamqueue-{about['version']}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: streamqueue\nVersion: {about['version']}\n"
        )
        plugins = about["entry-points"]["pytest11"]
        lines = [f"{name} = {place}" for name, place in plugins.items()]
        (info / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self._installed), str(ROOT), str(self.folder)]),
            "STREAMQUEUE_TEST_URI": uri,
        }

    def write(self, name: str, text: str) -> None:
        """Write one of its files."""
        (self.folder / name).write_text(text)

    def test(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run its tests; every warning is an error."""
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"]
        return subprocess.run(
            [*command, *options],
            cwd=self.folder,
            env={**self._environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
