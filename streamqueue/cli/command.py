"""What a command of ``streamqueue`` is to click: its options, its variables, and its help.

Imports click alone: the version, completion and mistakes of usage wait for nothing else.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = "streamqueue"
COMPLETE = "_STREAMQUEUE_COMPLETE"
"""The variable with which a shell asks how a word may go on."""
SETTINGS = {
    # The same in every command: --queue is STREAMQUEUE_QUEUE, and not STREAMQUEUE_STATS_QUEUE.
    "auto_envvar_prefix": "STREAMQUEUE",
    "help_option_names": ["-h", "--help"],
}


class Options(SimpleNamespace):
    """The options and arguments that a command was given, their dashes as underscores."""


class _InContext(click.Command):
    """Says of every mistake of usage in which command it was made; click leaves out some."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        if None not in (ctx.params.get("uri"), ctx.params.get("uri_file")):
            raise click.UsageError("argument --uri-file: not allowed with argument --uri", ctx)
        return rest


class Command(_InContext):
    """Hands its options, all in one object, and the function that takes them to ``main``."""

    def __init__(
        self, name: str, run: Callable[[Options], int | None], *, example: str, **settings: Any
    ) -> None:
        super().__init__(name, context_settings=SETTINGS, epilog=shown(example), **settings)
        self._run = run

    def invoke(self, ctx: click.Context) -> Callable[[Options], int | None]:
        vars(ctx.obj).update(ctx.params)
        return self._run


def command(
    *parameters: click.Parameter, example: str, name: str | None = None
) -> Callable[[Callable[[Options], int | None]], Command]:
    """Make a function a command; its docstring is the help.

    Args:
        example: for the help: the line that a person would type.
        name: default: that of the function.
    """

    def make(function: Callable[[Options], int | None]) -> Command:
        return Command(
            name or function.__name__,
            function,
            params=list(parameters),
            help=function.__doc__,
            example=example,
        )

    return make


def shown(example: str) -> str:
    """Return the end of a help; the \b keeps click from filling its lines."""
    return f"\b\nExample:\n  {example}"


class Group(_InContext, click.Group):
    """Lists its commands in the order in which they were added."""

    def __init__(self, name: str, *, example: str, **settings: Any) -> None:
        super().__init__(name, context_settings=SETTINGS, epilog=shown(example), **settings)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def setting(flag: str, text: str, **keywords: Any) -> click.Option:
    """Return an option that may also be a variable, such as STREAMQUEUE_QUEUE.

    A variable that is empty is as good as none.
    """
    return click.Option([flag], help=text, **keywords)


def option(flag: str, text: str | None = None, **keywords: Any) -> click.Option:
    """Return an option of one call, which no variable is to bring into the next one."""
    return click.Option([flag], help=text, allow_from_autoenv=False, **keywords)
