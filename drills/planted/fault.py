"""A fault to plant: what somebody might well write, and the test that must notice it.

Examples: a filter without its token, a wait without its bound. The text must occur exactly once in
its function; when the code has moved on it is written anew.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """A place in the code, and what stands there instead.

    Attributes:
        place: ``module:function`` in the package, such as ``worker.leases:Leases.renew``; the
            module alone for what stands in none.
        text: whole or part lines, to the letter.
        instead: what replaces them.
    """

    place: str
    text: str
    instead: str

    @property
    def file(self) -> str:
        """The path of the module in the package; a folder's own is named ``folder.__init__``."""
        return self.place.partition(":")[0].replace(".", "/") + ".py"

    def apply(self, package: Path) -> None:
        """Change the file in this copy of the package.

        Raises:
            ValueError: the text is not there, or more than once.
        """
        path = package / self.file
        lines = path.read_text().splitlines(keepends=True)
        first, last = _span(_parse("".join(lines)), self.place.partition(":")[2].split("."))
        source = "".join(lines[first:last])
        if (count := source.count(self.text)) != 1:
            raise ValueError(f"{self.place} has {count} times, not once: {self.text!r}")
        lines[first:last] = source.replace(self.text, self.instead)
        path.write_text("".join(lines))


_parse = cache(ast.parse)
"""Hundreds of faults are planted in some dozens of files."""


def _span(node: ast.AST, names: Sequence[str]) -> tuple[int, int | None]:
    """Return from which line to which one has this function or class; without names, all."""
    span: tuple[int, int | None] = (0, None)
    for name in filter(None, names):
        found = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and child.name == name
        ]
        if not found:
            raise ValueError(f"there is no {'.'.join(names)}")
        node = last = found[-1]  # before it stand its overloads
        first = min([last.lineno, *(each.lineno for each in last.decorator_list)])
        span = first - 1, last.end_lineno
    return span


class PlantedFault:
    """A fault to plant.

    Args:
        name: what is wrong, as part of a sentence.
        law: the number of the law that it breaks.
        caught_by: the test that must fail: a file in ``tests/`` and, after ``::``, the test.
        edits: what to change.
    """

    def __init__(self, name: str, law: int, caught_by: str, *edits: Edit) -> None:
        self.name = name
        self.law = law
        self.caught_by = f"tests/{caught_by}"
        self.edits = edits

    def plant(self, package: Path) -> None:
        """Change a copy of the package.

        Raises:
            ValueError: the code has moved on, and the fault needs to be written anew.
        """
        for edit in self.edits:
            try:
                edit.apply(package)
            except ValueError as error:
                raise ValueError(f"write the fault {self.name!r} anew: {error}") from None
