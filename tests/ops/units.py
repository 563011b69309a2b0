"""The unit files of ``deploy/systemd``, read as systemd reads them, as far as they go."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
WORKER = SYSTEMD / "streamqueue-worker@.service"
EXPORTER = SYSTEMD / "streamqueue-exporter.service"
EXAMPLE = SYSTEMD / "example.env"

INSTALLED = "/opt/streamqueue/bin/"
"""Where the units expect the programs of the virtual environment."""


def assignments(text: str) -> list[tuple[str, str]]:
    """Return the keys and values of a unit or environment file, in order, without its comments."""
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and line[0] not in "#;["]
    return [(key.strip(), value.strip()) for key, _, value in pairs]


@dataclass(frozen=True)
class Unit:
    """A unit file."""

    path: Path

    def all(self, key: str) -> list[str]:
        """Return every value of a key; an empty one takes back those before it."""
        values: list[str] = []
        for name, value in assignments(self.path.read_text()):
            if name == key:
                values = [*values, value] if value else []
        return values

    def one(self, key: str) -> str:
        """Return the value of a key that has one."""
        [value] = self.all(key)
        return value

    def seconds(self, key: str) -> float:
        """Return a time span; one that has no unit is in seconds."""
        return float(self.one(key))

    def environment(self, folder: Path, *files: Path, instance: str = "") -> dict[str, str]:
        """Return the environment of the service.

        Args:
            folder: of its credentials.
            files: instead of EnvironmentFile=; they have the last word.
            instance: what stands after the ``@``.
        """
        specifiers = {"%d": str(folder), "%i": instance, "%%": "%"}
        pairs = assignments("\n".join(self.all("Environment")))
        found = {key: _expand(value, specifiers) for key, value in pairs}
        for file in files:
            found |= dict(assignments(file.read_text()))
        return found

    def command(
        self, programs: Path, environment: Mapping[str, str], *, instance: str = ""
    ) -> list[str]:
        """Return the words of ExecStart=.

        Args:
            programs: the folder to use instead of :data:`INSTALLED`.
            environment: for ``${NAME}``.
            instance: what stands after the ``@``.
        """
        words = shlex.split(_expand(self.one("ExecStart"), {"%i": instance, "%%": "%"}))
        assert words[0].startswith(INSTALLED)
        words[0] = str(programs / words[0].removeprefix(INSTALLED))
        variable = re.compile(r"\$\{(\w+)\}")
        return [variable.sub(lambda name: environment.get(name[1], ""), word) for word in words]


def _expand(text: str, specifiers: Mapping[str, str]) -> str:
    return re.sub("%.", lambda found: specifiers[found[0]], text)
