"""The blocks of code of a page, and the commands of a block."""

from __future__ import annotations

import re
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in ROOT.glob("docs/**/*.md") if "_build" not in page.parts),
]


class Block(NamedTuple):
    """A block of code: its language, its text, and the number of its first line."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if its first line says so: ``# tasks.py``."""
        found = re.match(r'(?:# |""")(\w+\.py)\b', self.text)
        return found and found[1]


class Command(NamedTuple):
    """A line that a person types, and the lines that are shown below it."""

    line: str
    shown: list[str]


def name_of(page: Path) -> str:
    """Return the path of a page in the repository."""
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, those in lists too."""
    text = page.read_text("utf-8")
    return [
        Block(
            found["language"],
            textwrap.dedent(found["text"]),
            text.count("\n", 0, found.start()) + 2,
        )
        for found in re.finditer(
            r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$", text, re.M | re.S
        )
    ]


def commands_of(block: Block) -> list[Command]:
    """Return what is typed in a console, and what it answers."""
    commands: list[Command] = []
    going_on = False
    for line in block.text.splitlines():
        if line.startswith("$ "):
            commands.append(Command(line[2:], []))
        elif going_on or line.startswith("> "):
            last = commands.pop()
            commands.append(Command(f"{last.line}\n{line.removeprefix('> ')}", []))
        else:
            commands[-1].shown.append(line)
        going_on = not commands[-1].shown and line.endswith("\\")
    return commands


def has_its_own_test(page: Path, language: str) -> bool:
    """Whether a test that names the page runs its blocks in a language."""
    word, marks = f'"{page.name}"', [f"```{language}"]
    if language == "python":
        marks.append("recipes_of")
    return page.parent.name == "guides" and any(
        word in text and any(mark in text for mark in marks) for text in _tests_of_guides()
    )


@cache
def _tests_of_guides() -> list[str]:
    return [
        test.read_text("utf-8")
        for test in ROOT.glob("tests/*/test_*.py")
        if test.parent.name != "docs" and test.name != "test_docs.py"
    ]
