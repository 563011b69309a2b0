"""The systemd units: what systemd itself says of them, and that they fit what they start.

That the command line and the environment of the worker's unit do what they should is tested in
``tests/cli/test_notify.py``.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from streamqueue import Worker
from streamqueue.health.systemd import EXTENSION
from tests.ops.units import EXAMPLE, EXPORTER, INSTALLED, WORKER, Unit, assignments

PROGRAMS = Path(sys.executable).parent
UNITS = pytest.mark.parametrize("path", [WORKER, EXPORTER], ids=lambda path: path.stem)
EXPOSURE = 20
"""Tenths of what ``systemd-analyze security`` may find, of 100; it calls that OK up to 49."""

Edit = Callable[[str], str]


def unchanged(text: str) -> str:
    return text


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert shutil.which("systemd-analyze"), "apt-get install systemd"
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=30
    )


def installed(path: Path, folder: Path, edit: Edit = unchanged) -> Path:
    """Return a copy of a unit whose programs are where this virtual environment has them."""
    copy = folder / path.name
    copy.write_text(edit(path.read_text()).replace(INSTALLED, f"{PROGRAMS}/"))
    return copy


def complaints(path: Path, folder: Path, edit: Edit = unchanged) -> str:
    # It warns of an unknown key and exits with 0.
    result = analyze("verify", installed(path, folder, edit))
    return result.stderr or f"exit code {result.returncode}" * result.returncode


def is_exposed(path: Path, folder: Path, edit: Edit = unchanged) -> bool:
    unit = installed(path, folder, edit)
    result = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    assert "Overall exposure level" in result.stdout, result.stderr
    return result.returncode != 0


@UNITS
def test_systemd_finds_no_mistake(path: Path, tmp_path: Path) -> None:
    assert complaints(path, tmp_path) == ""


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda text: text.replace("ProtectHome", "ProtetcHome"), "Unknown key"),
        (lambda text: text.replace("WatchdogSec=30", "WatchdogSec=thirty"), "Failed to parse"),
        (lambda text: text.replace(f"{INSTALLED}s", f"{INSTALLED}no-s"), "is not executable"),
        (lambda text: text.replace("Type=notify", "Type=notified"), "Failed to parse"),
        (lambda text: text.replace("@system-service", "@system-servants"), "Unknown system call"),
    ],
    ids=["key", "time", "program", "type", "system calls"],
)
@UNITS
def test_systemd_would_find(path: Path, tmp_path: Path, edit: Edit, complaint: str) -> None:
    assert complaint in complaints(path, tmp_path, edit)


@UNITS
def test_there_is_little_that_the_services_may_do(path: Path, tmp_path: Path) -> None:
    assert not is_exposed(path, tmp_path)


@pytest.mark.parametrize("key", ["SystemCallFilter", "CapabilityBoundingSet"])
@UNITS
def test_they_may_do_too_much_without(path: Path, tmp_path: Path, key: str) -> None:
    def drop(text: str) -> str:
        return re.sub(rf"^{key}=.*\n", "", text, flags=re.MULTILINE)

    assert is_exposed(path, tmp_path, drop)


def confinement(path: Path) -> list[str]:
    """Everything from the user on: that does not depend on what the service is for."""
    return path.read_text().partition("DynamicUser=")[2].splitlines()


def test_both_may_do_the_same() -> None:
    assert confinement(WORKER) == confinement(EXPORTER)
    assert "NoNewPrivileges=yes" in confinement(WORKER)


def test_a_stop_leaves_the_drain_its_time() -> None:
    drain = inspect.signature(Worker).parameters["drain_timeout"].default

    assert drain + 10 <= Unit(WORKER).seconds("TimeoutStopSec")
    assert Unit(WORKER).seconds("TimeoutStopSec") > EXTENSION


def test_a_start_leaves_the_driver_the_time_to_find_a_server() -> None:
    assert Unit(WORKER).seconds("TimeoutStartSec") > 2 * 30


@UNITS
def test_the_services_are_started_again_whatever_happens(path: Path) -> None:
    unit = Unit(path)

    assert (unit.one("Restart"), unit.one("StartLimitIntervalSec")) == ("always", "0")
    assert unit.seconds("RestartSec") > 0


@UNITS
def test_the_address_with_its_password_is_a_credential(path: Path, tmp_path: Path) -> None:
    unit = Unit(path)

    name, _, source = unit.one("LoadCredential").partition(":")

    environment = unit.environment(tmp_path, instance="emails")
    assert environment["STREAMQUEUE_URI_FILE"] == str(tmp_path / name)
    assert source.startswith("/etc/streamqueue/")
    assert not any("mongodb" in value for value in environment.values())


def test_the_example_names_options_that_the_worker_has() -> None:
    command = [str(PROGRAMS / "streamqueue"), "worker", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    flags = set(re.findall(r"--[\w-]+", help_text))

    variables = dict(assignments(EXAMPLE.read_text()))

    named = {
        "--" + name.removeprefix("STREAMQUEUE_").lower().replace("_", "-") for name in variables
    }
    assert named - flags == {"--worker"}  # MODULE:WORKER, from the command line of the unit
    assert "${STREAMQUEUE_WORKER}" in Unit(WORKER).one("ExecStart")


@UNITS
def test_what_is_started_is_a_command_of_the_program(path: Path) -> None:
    unit = Unit(path)

    command = unit.command(PROGRAMS, {"STREAMQUEUE_WORKER": "tasks:worker"}, instance="emails")

    result = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=30)
    assert result.stdout.startswith(f"Usage: streamqueue {command[1]} ")
