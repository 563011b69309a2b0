"""Whoever follows the pages notices what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tests.docs.blocks import Block, blocks_of, commands_of
from tests.docs.session import Session, Surroundings


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path, "mongodb://127.0.0.1:1/none?replicaSet=rs0", Surroundings())


def console(text: str) -> Block:
    return Block("console", text, 1)


@pytest.mark.parametrize(
    "text",
    [
        "$ false\n",
        "$ echo one\ntwo\n",
        "$ streamqueue stats --colour\n",
        "$ streamqueue bench --colour\n",
        "$ make coffee\n",
        "$ pip install '.[coffee]'\n",
        "$ pip install other\n",
    ],
)
async def test_a_command_that_does_not_do_what_the_page_shows_is_noticed(
    session: Session, text: str
) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        await session.follow(console(text))


@pytest.mark.parametrize(
    "text",
    [
        "$ echo 2026-11-29T01:31:48.272Z   7  vm:4711\n2025-01-02 03:04:05 19 other:1\n",
        f"$ echo {'a' * 24}\n{'b' * 24}\n",
        "$ printf 'one\\ntwo\\n'\n...\ntwo\n",
        "$ make demo\n",
        "$ pip install '.[cron]'  # a comment\n",
        "$ for each in a b; do\n>   echo $each\n> done\na\nb\n",
    ],
)
async def test_a_command_that_does_what_the_page_shows_is_fine(session: Session, text: str) -> None:
    await session.follow(console(text))


async def test_python_that_raises_is_noticed(session: Session) -> None:
    with pytest.raises(ZeroDivisionError):
        await session.follow(Block("python", "1 / 0\n", 1))


async def test_names_of_one_block_are_there_in_the_next(session: Session) -> None:
    await session.follow(Block("python", "async def three():\n    return 3\n", 1))
    await session.follow(Block("python", "print(await three())\n", 1))

    assert session.printed == ["3"]


def test_the_blocks_of_a_page_are_found_in_lists_too(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "1. do\n\n   ```console\n   $ one \\\n     two\n   three\n   ```\n\n```js\n```\n"
    )

    first, second = blocks_of(page)

    assert (first.language, first.line, second.language) == ("console", 4, "js")
    assert commands_of(first) == [("one \\\n  two", ["three"])]
